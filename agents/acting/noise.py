"""Noise for exploration: added to a control, or what it is drawn with, correlated over time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.specs import ActionSpec

OCTAVES = 9
"""Time constants 1, 2, 4, ..., 256 steps."""


class PinkNoise:
    """Gaussian noise with variance 1 at every step and a power spectrum of about 1/f.

    White noise, summed up by a sluggish environment, cancels itself; noise of one long time constant overshoots. Pink
    noise has all time constants in equal shares and needs no tuning (Eberhard et al. 2023, "Pink Noise Is All You
    Need"). Here it is the sum of relaxation processes an octave apart (Bernamont 1937), so that it has no length:

        x_k <- a_k x_k + sqrt(1 - a_k^2) w,   a_k = exp(-1 / 2^k),   noise = sum_k x_k / sqrt(K)

    The memory (..., K) is x_1..x_K.
    """

    def __init__(self) -> None:
        self.decay = torch.exp(-(0.5 ** torch.arange(OCTAVES)))
        self.fresh = (1 - self.decay.square()).sqrt()

    def initial(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Of processes that have been going on for ever: (..., K)."""
        return torch.randn(*shape, OCTAVES, device=device)

    def step(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Memory (..., K) -> noise (...), and the next memory."""
        memory = self.decay.to(memory) * memory + self.fresh.to(memory) * torch.randn_like(memory)
        return memory.sum(-1) / OCTAVES**0.5, memory


def disturbed(spec: ActionSpec, control: Tensor, noise: float) -> Tensor:
    """(N, A): a valid control near the given one: plus N(0, noise^2), clipped; where discrete, drawn anew.

    Args:
        noise: a standard deviation (PlaNet, Dreamer V1), or the probability that a variable is drawn uniformly.
    """
    if not spec.classes:
        return (control + noise * torch.randn_like(control)).clamp(-1, 1)
    groups = []
    for group in control.split(list(spec.classes), -1):
        drawn = F.one_hot(torch.randint(group.shape[-1], group.shape[:-1], device=group.device), group.shape[-1])
        again = torch.rand(*group.shape[:-1], 1, device=group.device) < noise
        groups.append(torch.where(again, drawn.to(group.dtype), group))
    return torch.cat(groups, -1)
