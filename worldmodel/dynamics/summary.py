"""What a smoothing posterior sees: a summary of the present and the future, cut at the borders of episodes."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.dynamics.scan import scan
from worldmodel.networks.recurrent import GRUCell
from worldmodel.types import restart


class Memory(NamedTuple):
    summary: Tensor  # (B, size)


class Recurrence(nn.Module):
    """A GRU over a window (B, T, inputs) -> (B, T, size), in either direction; it starts afresh in every episode.

    Backward, it makes a smoothing posterior (derivation Eq. 27).
    """

    def __init__(self, inputs: int, size: int, backward: bool) -> None:
        super().__init__()
        self.cell, self.size, self.backward = GRUCell(inputs, size), size, backward

    def forward(self, inputs: Tensor, is_first: Tensor, start: Tensor | None = None) -> Tensor:
        """`start` (B, size): the memory before the window, zero by default."""
        empty = Memory(inputs.new_zeros(len(inputs), self.size))
        # Backward, the memory is cut after the last step of an episode: where the next one is another's first.
        after = torch.cat([is_first[:, 1:], torch.ones_like(is_first[:, :1])], 1)

        def step(memory: Memory, now: tuple[Tensor, ...]) -> tuple[Memory, tuple[Tensor, ...]]:
            drive, border = now
            (summary,) = restart(memory, empty, border)
            summary = self.cell.step(drive, summary)
            return Memory(summary), (summary,)

        begin = empty if start is None else Memory(start)
        border = after if self.backward else is_first
        _, (summaries,) = scan(step, begin, (self.cell.of_input(inputs), border), reverse=self.backward)
        return summaries


def leaving(control: Tensor) -> Tensor:
    """(B, T, A), u_{t-1} beside x_t -> u_t beside x_t; null at the end, and where x_{t+1} begins an episode."""
    return torch.cat([control[:, 1:], torch.zeros_like(control[:, :1])], 1)
