"""The stored time steps of every environment in the order of time, and the slots that hold them.

A stored time step has three addresses:

* its number: the streams of the environments are put one after the other, each with its oldest step first, and the
  steps are counted from 0;
* its environment and its age rank: 0 for the oldest stored step of the environment, 1 for the next one, and so on;
* its environment and its slot in the ring of that environment.
"""

from itertools import pairwise

import numpy as np

from worldmodel.replay.places import Places
from worldmodel.replay.storage import Storage


class Timeline:
    """Translates the addresses of the time steps that a storage holds now. It has no state of its own."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def __len__(self) -> int:
        """Return the number of stored time steps."""
        return int(self.storage.stored.sum())

    def locate(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the environments and the age ranks of steps that are given by number."""
        stored = self.storage.stored
        ends = np.cumsum(stored)
        env = np.searchsorted(ends, number, side="right")
        return env, number - (ends - stored)[env]

    def locate_one(self, number: int) -> tuple[int, int]:
        """Return the environment and the age rank of one step.

        Raises:
            ValueError: if no step has this number.
        """
        if not 0 <= number < len(self):
            raise ValueError(f"step {number} does not exist: the replay holds the steps 0 to {len(self) - 1}")
        (env,), (rank,) = self.locate(np.array([number]))
        return int(env), int(rank)

    def places(self, env: np.ndarray, rank: np.ndarray) -> Places:
        """Return the places of steps that are given by environment and age rank, (B, T) or broadcastable to it."""
        env, rank = np.broadcast_arrays(env, rank)
        return Places(env, (self.storage.oldest[env] + rank) % self.storage.length, rank == 0)

    def stream(self, env: int, start: int = 0, stop: int | None = None) -> Places:
        """Return the places of the steps of one environment, oldest first: (1, L)."""
        rank = np.arange(self.storage.stored[env])[None, start:stop]
        return self.places(np.full_like(rank, env), rank)

    def everything(self, every: int = 1) -> Places:
        """Return the places of every step, or of every `every`-th step, in the order of their numbers: (1, L)."""
        env, rank = self.locate(np.arange(0, len(self), every))
        return self.places(env[None], rank[None])

    def episodes(self) -> np.ndarray:
        """Return one row for each stored episode: environment, first age rank, and age rank after the last step."""
        found = []
        for env, stored in enumerate(self.storage.stored):
            places = self.stream(env)
            first = self.storage.take("is_first", places.env, places.slot) | places.seam
            found += [(env, *ends) for ends in pairwise([*np.flatnonzero(first[0]), stored])]
        return np.array(found, np.int64).reshape(-1, 3)

    def within_episodes(self, window: int) -> Places:
        """Return the places of the windows that lie inside one episode: (B, window). B may be 0.

        The first window of an episode begins with the episode, and each later one where the one before ends.
        """
        found = [
            (env, start) for env, begin, end in self.episodes() for start in range(begin, end - window + 1, window)
        ]
        env, start = np.array(found, np.int64).reshape(-1, 2).T
        return self.places(env[:, None], start[:, None] + np.arange(window))

    def rest_of_episode(self, number: int) -> Places:
        """Return the places of a step and of all later steps of its episode: (1, L).

        Raises:
            ValueError: if no step has this number.
        """
        env, rank = self.locate_one(number)
        ends = [int(end) for where, begin, end in self.episodes() if where == env and begin <= rank < end]
        return self.places(np.array([[env]]), np.arange(rank, ends[0])[None])

    def history(self, number: int, window: int) -> Places:
        """Return the places of a step and of the steps before it in its stream, at most `window`: (1, <= window).

        Raises:
            ValueError: if no step has this number.
        """
        env, rank = self.locate_one(number)
        return self.places(np.array([[env]]), np.arange(max(rank - window + 1, 0), rank + 1)[None])

    def newest(self) -> Places:
        """Return the place of the newest step of each environment: (num_envs, 1)."""
        return self.places(np.arange(self.storage.num_envs)[:, None], (self.storage.stored - 1)[:, None])

    def ends(self, envs: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return those of the environments that have steps, by default of all, and the slots of their newest steps."""
        stored = self.storage.stored
        envs = np.flatnonzero(stored) if envs is None else envs[stored[envs] > 0]
        return envs, (self.storage.written[envs] - 1) % self.storage.length

    def by_rank(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the environment and the slot of every age rank of every environment, and whether it is stored.

        All three have the shape (num_envs, L), where L is the number of steps of the longest stream.
        """
        stored = self.storage.stored
        rank = np.arange(stored.max(initial=0))
        slot = (self.storage.oldest[:, None] + rank) % self.storage.length
        return np.arange(len(stored))[:, None] + np.zeros_like(slot), slot, rank < stored[:, None]
