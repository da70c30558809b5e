"""Repeatable episodes: each episode has its own seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

SEED = "worldmodel/seed"
"""The key of `info` with the seed of a reset, if it is not the seed that was given; see `envs.Restart`."""

EVALUATION_SEEDS = (2**31 - 2**24, 2**31)
"""The range of reset seeds of evaluations, from the first to below the second. Training uses seeds below the first.

All are below 2^31, since many simulators need seeds that fit a signed integer of 32 bits. See `env.evaluation_seeds`.
"""


class RepeatableEpisodes(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Seed every episode by its number, and store its actions, so that a run can be resumed within an episode.

    A reset without a seed begins the next episode of the last given seed. If an environment depends only on its seed
    and its actions, it can be brought back to any step of the episode.

    Args:
        below: an upper bound of all seeds that are not given by the user.
    """

    def __init__(self, env: gym.Env[Any, Any], below: int = EVALUATION_SEEDS[0]) -> None:
        RecordConstructorArgs.__init__(self, below=below)
        gym.Wrapper.__init__(self, env)
        self.below = below
        self.seed, self.episode = unforeseen_seed(below), -1
        self.began = self.seed  # the seed that the running episode really began from
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
        """Return the position in the episode: its seeds, and the actions since the reset (t, *shape)."""
        numbers = {"seed": self.seed, "episode": self.episode, "began": self.began}
        return {**numbers, "actions": np.array(self.actions)}

    def go_to(self, position: Mapping[str, Any]) -> Any:
        """Replay an episode up to a position returned by :meth:`position`, and return the observation there.

        If the environment is not deterministic, the observation may differ. It is None if the episode ends earlier.
        """
        self.seed, self.episode = position["seed"], position["episode"]
        observation, _ = self._begin(position["began"])
        for action in position["actions"]:
            observation, _, terminated, truncated, _ = self.step(action)
            if terminated or truncated:
                return None
        return observation


def unforeseen_seed(below: int) -> int:
    """Return a random seed below a number."""
    return int(np.random.SeedSequence().generate_state(1)[0]) % below


def episode_seed(seed: int, episode: int, below: int = EVALUATION_SEEDS[0]) -> int:
    """Return the seed of an episode: the given seed for the first one, then a seed below `below`."""
    return (int(np.random.SeedSequence([seed, episode]).generate_state(1)[0]) >> 1) % below if episode else seed


def another_seed(seed: int, tries: int, evaluation: Sequence[int] = EVALUATION_SEEDS) -> int:
    """Return a seed to use in place of `seed` after a number of failed tries.

    A seed of an evaluation is replaced by another seed of an evaluation, and a seed of training by one of training.
    The new seed equals that of another episode only by chance.

    Args:
        evaluation: the range of the seeds of evaluations.
    """
    drawn = int(np.random.SeedSequence([seed, tries], spawn_key=(1,)).generate_state(1)[0])
    first, end = evaluation
    return first + drawn % (end - first) if seed >= first else (drawn >> 1) % first


def evaluation_seeds(episodes: int, stream: int, evaluation: Sequence[int] = EVALUATION_SEEDS) -> list[int]:
    """Return the reset seeds of an evaluation. Two values of `stream` share a seed only by chance.

    Args:
        evaluation: the range of the seeds, which contains no seed of training.
    """
    first, end = evaluation
    return [first + int(seed) % (end - first) for seed in np.random.SeedSequence(stream).generate_state(episodes)]
