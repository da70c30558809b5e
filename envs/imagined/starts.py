"""Initial latent states of imagined episodes."""

from collections.abc import Callable

import numpy as np
import torch

from worldmodel.imagination import starts
from worldmodel.model import LatentModel, WorldModel
from worldmodel.replay.replay import SequenceReplay
from worldmodel.types import State

Starts = Callable[[int], State]
"""A function of a number N that returns N latent states (N, ...), in which imagined episodes begin."""


class ReplayedStarts:
    """Filtered states of recorded time steps, drawn uniformly from all that are not terminal.

    A pool of states is inferred at once, and again when it is used up. The steps are drawn with torch's random
    numbers, and so depend on the seed of the imagined environment. The random numbers of the replay are not used.

    Args:
        window: the largest number of time steps that a state is filtered from.
        pool: the number of states that are inferred at once.
    Raises:
        ValueError: when called, if every recorded step is terminal.
    """

    def __init__(self, model: WorldModel, replay: SequenceReplay, window: int = 16, pool: int = 1024) -> None:
        self.model, self.replay, self.window, self.pool = model, replay, window, pool
        self.states: State | None = None
        self.used = 0

    def refresh(self) -> None:
        """Discard the pool, because the model or the replay has changed."""
        self.states = None

    @torch.no_grad()
    def _filled(self, count: int) -> State:
        rows = -(-max(count, self.pool) // self.window)
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        batch = self.replay.sample(2 * rows, self.window, self.model.initial(1)[0].device, rng)
        begin, alive = starts(self.model.observe(batch).states, batch)
        if not alive.any():
            raise ValueError("every recorded step is terminal: no imagined episode can begin there")
        chosen = torch.multinomial(alive, max(count, self.pool), replacement=True)
        return type(begin)(*(field[chosen] for field in begin))

    def __call__(self, count: int) -> State:
        if self.states is None or self.used + count > len(self.states[0]):
            self.states, self.used = self._filled(count), 0
        self.used += count
        return type(self.states)(*(field[self.used - count : self.used] for field in self.states))


class PriorStarts:
    """Samples of p(z_1 | z_0, u_0 = 0), the model's own distribution of the first state of an episode."""

    def __init__(self, model: LatentModel, control_size: int) -> None:
        self.model, self.control_size = model, control_size

    def __call__(self, count: int) -> State:
        state = self.model.initial(count)
        return self.model.imagine(state, torch.zeros(count, self.control_size, device=state[0].device))
