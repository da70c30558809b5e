"""Games of several lives, and what a lost one means to whoever learns from them."""

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs


class EndWithLife(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """A lost life terminates the episode; the next reset goes on in the same game, from where the life was lost.

    Nothing is played between the two, so that no reward and no frame goes uncounted. A reset with a seed, or one that
    no lost life led to, begins a new game.

    Args:
        env: a game of the Arcade Learning Environment.
    Raises:
        ValueError: if it is none.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.ale = console(env)
        self.lives = 0
        self.left: Any = None  # the observation that a life was lost with, where the game goes on

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self.lives = self.lives, self.ale.lives()
        lost = 0 < self.lives < before  # some games show 0 for a few frames before they are over
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
    """What plays the game of an environment, and knows how many lives are left.

    Raises:
        ValueError: if it is no game of the Arcade Learning Environment.
    """
    ale = getattr(env.unwrapped, "ale", None)
    if ale is None:
        raise ValueError(f"env.life_loss: {env.unwrapped} is no Atari game, which alone has lives: leave it at ignore")
    return ale
