"""Episodes that can be played again: each begins from a seed of its own."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

SEED = "worldmodel/seed"
"""The key of the `info` of a reset that began from another seed than it was given: see `envs.Restart`."""


class RepeatableEpisodes(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Seeds every episode by its number, and remembers its actions: what a run needs to go on in the middle of one.

    A reset without a seed begins the next episode of the last seed that was given. An environment that depends on its
    seed and its actions alone can then be brought back to any step of it.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.seed, self.episode = int(np.random.SeedSequence().generate_state(1)[0]), -1
        self.began = self.seed  # what the running episode really began from
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.seed, self.episode = int(seed), -1
        self.episode += 1
        return self._begin(episode_seed(self.seed, self.episode), options)

    def _begin(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.actions = []
        observation, info = self.env.reset(seed=seed, options=options)
        self.began = info.get(SEED, seed)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        return self.env.step(action)

    def position(self) -> dict[str, Any]:
        """Where it stands, as numbers and an array (t, *shape) of the actions since the reset."""
        numbers = {"seed": self.seed, "episode": self.episode, "began": self.began}
        return {**numbers, "actions": np.array(self.actions)}

    def go_to(self, position: Mapping[str, Any]) -> Any:
        """Play an episode again up to where :meth:`position` was asked; the observation there.

        Where the environment does not repeat itself it is another one, and None if the episode ends before.
        """
        self.seed, self.episode = position["seed"], position["episode"]
        observation, _ = self._begin(position["began"])
        for action in position["actions"]:
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                return None
        return observation


def episode_seed(seed: int, episode: int) -> int:
    """For the first episode the given seed, then numbers below 2^31, where the seeds of evaluations begin."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0]) >> 1 if episode else seed


def another_seed(seed: int, tries: int) -> int:
    """In place of `seed`, after so many tries with it: a number on the same side of 2^31, and no seed of an episode."""
    drawn = int(np.random.SeedSequence([seed, tries], spawn_key=(1,)).generate_state(1)[0])
    return drawn | 2**31 if seed >= 2**31 else drawn >> 1
