"""Crafter (Hafner 2022), an open world with 22 achievements, as a Gymnasium environment. Needs the extra `crafter`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.envs.suites.names import unknown

PREFIX = "crafter:"
LIMIT = 10_000  # steps of an episode
REWARDS = {"reward": True, "noreward": False}  # what follows the prefix: whether there is a reward, or 0 throughout


class Crafter(gym.Env[Any, Any]):
    """Seen as (size, size, 3) uint8. An episode terminates with the player's death; 10,000 steps truncate it, unless
    it is to be `endless`.

    `info["achievements"]` holds how often each was reached in this episode, `info["inventory"]` what the player has.

    Raises:
        ValueError: if crafter is not installed, or has no such variant.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, variant: str, size: int = 64, render_mode: str | None = None, endless: bool = False) -> None:
        if variant not in REWARDS:
            raise ValueError(unknown("crafter", "variant", variant, REWARDS))
        self.crafter, self.reward, self.size, self.render_mode = _crafter(), REWARDS[variant], size, render_mode
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self.crafter.constants.actions))
        self.length = None if endless else LIMIT
        self.world: Any = None  # from the first reset on
        self.seen: Any = None  # the last picture

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self.world is None:  # it takes a seed when it is made, and counts its worlds from there
            drawn = int(self.np_random.integers(2**31 - 1))
            size = (self.size, self.size)
            self.world = _repeatable(self.crafter)(size=size, reward=self.reward, length=self.length, seed=drawn)
        self.seen = self.world.reset()
        return self.seen, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.seen, reward, done, info = self.world.step(int(action))
        terminated = info["discount"] == 0
        told = {key: info[key] for key in ("achievements", "inventory")}
        return self.seen, float(reward), terminated, bool(done) and not terminated, told

    def render(self) -> np.ndarray:  # type: ignore[override]
        """What was seen last (size, size, 3): to draw it anew would draw from the world's chance, and change it."""
        return self.seen.copy()


def _repeatable(crafter: Any) -> Any:
    """Its class, of worlds that a seed repeats.

    It keeps the creatures of a place in a set, in the order of their addresses in memory, and draws from that.
    """

    class Repeatable(crafter.Env):  # type: ignore[misc]
        def _balance_chunk(self, chunk: Any, objects: Any) -> None:
            number = self._world._obj_map
            super()._balance_chunk(chunk, sorted(objects, key=lambda each: number[tuple(each.pos)]))

    return Repeatable


def _crafter() -> Any:
    """The package `crafter`."""
    try:
        import crafter
    except ImportError as error:
        raise ValueError(f"{PREFIX} needs crafter: pip install 'worldmodel[crafter]' ({error})") from error
    return crafter
