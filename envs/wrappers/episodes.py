"""Episodes that can be played again: each begins from a seed of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

SEED = "worldmodel/seed"
"""The key of the `info` of a reset that began from another seed than it was given: see `envs.Restart`."""

EVALUATION_SEEDS = (2**31 - 2**24, 2**31)
"""Reset seeds of evaluations, from the first to below the second; those of training lie below the first.

All are below 2^31, since many simulators take seeds of 32 bits with a sign. See `env.evaluation_seeds`.
"""


class RepeatableEpisodes(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Seeds every episode by its number, and remembers its actions: what a run needs to go on in the middle of one.

    A reset without a seed begins the next episode of the last seed that was given. An environment that depends on its
    seed and its actions alone can then be brought back to any step of it.

    Args:
        below: all seeds are below it that are not given.
    """

    def __init__(self, env: gym.Env[Any, Any], below: int = EVALUATION_SEEDS[0]) -> None:
        RecordConstructorArgs.__init__(self, below=below)
        gym.Wrapper.__init__(self, env)
        self.below = below
        self.seed, self.episode = unforeseen_seed(below), -1
        self.began = self.seed  # what the running episode really began from
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.seed, self.episode = int(seed), -1
        self.episode += 1
        return self._begin(episode_seed(self.seed, self.episode, self.below), options)

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


def unforeseen_seed(below: int) -> int:
    """A seed below a number, another one each time."""
    return int(np.random.SeedSequence().generate_state(1)[0]) % below


def episode_seed(seed: int, episode: int, below: int = EVALUATION_SEEDS[0]) -> int:
    """For the first episode the given seed, then numbers below a number: the first seed of evaluations."""
    return (int(np.random.SeedSequence([seed, episode]).generate_state(1)[0]) >> 1) % below if episode else seed


def another_seed(seed: int, tries: int, evaluation: Sequence[int] = EVALUATION_SEEDS) -> int:
    """In place of `seed`, after so many tries with it: one of an evaluation for one of an evaluation, else of training.

    It is no seed of an episode but by chance.

    Args:
        evaluation: the range of the former.
    """
    drawn = int(np.random.SeedSequence([seed, tries], spawn_key=(1,)).generate_state(1)[0])
    first, end = evaluation
    return first + drawn % (end - first) if seed >= first else (drawn >> 1) % first


def evaluation_seeds(episodes: int, stream: int, evaluation: Sequence[int] = EVALUATION_SEEDS) -> list[int]:
    """Reset seeds within a range in which no training seed lies; another `stream` shares none but by chance."""
    first, end = evaluation
    return [first + int(seed) % (end - first) for seed in np.random.SeedSequence(stream).generate_state(episodes)]
