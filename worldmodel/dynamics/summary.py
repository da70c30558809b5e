"""Summaries of sequences for posteriors, such as of the present and the future. They restart in every episode."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldmodel.dynamics.scan import scan
from worldmodel.networks.recurrent import GRUCell
from worldmodel.types import restart


class Memory(NamedTuple):
    summary: Tensor  # (B, size)


class Recurrence(nn.Module):
    """A GRU over a window, (B, T, inputs) -> (B, T, size), in either direction. It restarts in every episode.

    The backward direction makes a smoothing posterior (derivation Eq. 27).
    """

    def __init__(self, inputs: int, size: int, backward: bool) -> None:
        super().__init__()
        self.cell, self.size, self.backward = GRUCell(inputs, size), size, backward

    def forward(self, inputs: Tensor, is_first: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the summary at every step.

        Args:
            inputs: (B, T, inputs). is_first: (B, T) bool.
            start: (B, size), the memory before the window, zero by default.
        """
        empty = Memory(inputs.new_zeros(len(inputs), self.size))
        # The backward direction restarts at the last step of an episode: the next step is the first of another one.
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
    """Shift controls (B, T, A) from u_{t-1} at x_t to u_t at x_t.

    The result is zero at the last step, and wherever x_{t+1} begins an episode.
    """
    return torch.cat([control[:, 1:], torch.zeros_like(control[:, :1])], 1)
