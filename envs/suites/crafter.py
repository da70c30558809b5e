"""Crafter (Hafner 2022), an open world with 22 achievements, as a Gymnasium environment. Needs the extra `crafter`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.envs.suites.names import unknown

PREFIX = "crafter:"
LIMIT = 10_000  # steps of an episode
REWARDS = {"reward": True, "noreward": False}  # variant, written after the prefix: False sets every reward to 0


class Crafter(gym.Env[Any, Any]):
    """The game Crafter, observed as images (size, size, 3) of uint8.

    An episode terminates when the player dies. It is truncated after 10,000 steps, unless `endless` is set.
    `info["achievements"]` counts each achievement in this episode; `info["inventory"]` lists what the player owns.

    Raises:
        ValueError: if crafter is not installed, or if it has no such variant.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - declared as in Gymnasium

    def __init__(self, variant: str, size: int = 64, render_mode: str | None = None, endless: bool = False) -> None:
        if variant not in REWARDS:
            raise ValueError(unknown("crafter", "variant", variant, REWARDS))
        self.crafter, self.reward, self.size, self.render_mode = _crafter(), REWARDS[variant], size, render_mode
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self.crafter.constants.actions))
        self.length = None if endless else LIMIT
        self.world: Any = None  # set by the first reset
        self.seen: Any = None  # the last observation

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self.world is None:  # only the constructor of a world accepts a seed
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
        """Return the last observation (size, size, 3).

        Rendering it again would use the world's random numbers, and so change the game.
        """
        return self.seen.copy()


def _repeatable(crafter: Any) -> Any:
    """Return a subclass of `crafter.Env` whose worlds are determined by the seed.

    Crafter keeps the objects of each chunk in a set, whose order depends on memory addresses, and samples from it.
    The subclass sorts them first.
    """

    class Repeatable(crafter.Env):  # type: ignore[misc]
        def _balance_chunk(self, chunk: Any, objects: Any) -> None:
            number = self._world._obj_map
            super()._balance_chunk(chunk, sorted(objects, key=lambda each: number[tuple(each.pos)]))

    return Repeatable


def _crafter() -> Any:
    """Import the package `crafter`."""
    try:
        import crafter
    except ImportError as error:
        raise ValueError(f"{PREFIX} needs crafter: pip install 'worldmodel[crafter]' ({error})") from error
    return crafter
