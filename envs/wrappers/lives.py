"""Games with several lives, in which a lost life can end an episode."""

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs


class EndWithLife(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """End an episode when a life is lost. The next reset continues the same game from there.

    No step is taken between the two, so every reward and frame is counted. A reset with a seed, or after the end of a
    game, begins a new game.

    Args:
        env: a game of the Arcade Learning Environment.
    Raises:
        ValueError: if `env` is another environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.ale = console(env)
        self.lives = 0
        self.left: Any = None  # the observation after a lost life, if the game goes on

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self.lives = self.lives, self.ale.lives()
        lost = 0 < self.lives < before  # some games report 0 lives for a few frames before they end
        self.left = observation if lost and not (terminated or truncated) else None
        return observation, reward, terminated or lost, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        left, self.left = self.left, None
        if left is not None and seed is None:
            return left, {"lives": self.lives}
        observation, info = self.env.reset(seed=seed, options=options)
        self.lives = self.ale.lives()
        return observation, info


def console(env: gym.Env[Any, Any]) -> Any:
    """Return the emulator of a game, which knows the number of lives.

    Raises:
        ValueError: if the environment is not a game of the Arcade Learning Environment.
    """
    ale = getattr(env.unwrapped, "ale", None)
    if ale is None:
        raise ValueError(f"env.life_loss: only Atari games have lives, and {env.unwrapped} is not one: use 'ignore'")
    return ale
