"""Which windows of a replay are drawn: uniformly at random, and each new window once before these."""

import numpy as np

from worldmodel.replay.places import Places
from worldmodel.replay.timeline import Timeline


class WindowSampler:
    """Draws windows of stored time steps.

    A window may start at any stored step, and all starts are equally likely. A window that runs past the newest step
    continues at the oldest step of the same environment. Each step therefore lies in exactly T of the windows of T
    steps, and has the same chance of being replayed as any other.

    Args:
        num_envs: the number of environments.
        seed: the seed of the random order.
        online: if True, every window of new steps is drawn once, before the random ones, as soon as it is complete
            (the online queue of DreamerV3).
    """

    def __init__(self, num_envs: int, seed: int, online: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.online = online
        self.served = np.zeros(num_envs, np.int64)  # rows of each environment that the online queue has handed out

    def reset_queue(self) -> None:
        """Start the online queue again, at the oldest stored step of each environment."""
        self.served = np.zeros_like(self.served)

    def draw(self, timeline: Timeline, batch_size: int, window: int, rng: np.random.Generator | None = None) -> Places:
        """Return the places of `batch_size` windows: (B, T).

        Args:
            timeline: the steps to draw from.
            rng: another random generator. If it is given, the sampler's own generator and queue do not change.
        Raises:
            ValueError: if nothing is stored.
        """
        stored = timeline.storage.stored
        if not stored.any():
            raise ValueError("the replay is empty: collect time steps before sampling")
        new = self._new_windows(timeline, batch_size, window) if self.online and rng is None else []
        number = (rng or self.rng).integers(stored.sum(), size=batch_size - len(new))
        env, first = timeline.locate(number)
        if new:
            env = np.concatenate([[each for each, _ in new], env])
            first = np.concatenate([[rank for _, rank in new], first])
        return timeline.places(env[:, None], (first[:, None] + np.arange(window)) % stored[env][:, None])

    def _new_windows(self, timeline: Timeline, batch_size: int, window: int) -> list[tuple[int, int]]:
        """Take up to `batch_size` windows from the online queue, those that have waited longest first.

        Returns:
            The environment and the age rank of the first step of each window.
        """
        written, oldest, new = timeline.storage.written, timeline.storage.oldest, list[tuple[int, int]]()
        self.served = np.maximum(self.served, oldest)
        while len(new) < batch_size:
            complete = np.flatnonzero(written - self.served >= window)
            if not len(complete):
                break
            env = int(complete[self.served[complete].argmin()])  # the one that has waited for the longest time
            new.append((env, int(self.served[env] - oldest[env])))
            self.served[env] += window
        return new
