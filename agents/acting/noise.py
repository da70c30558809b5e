"""Noise for exploration: added to an action, or used to sample it with correlation over time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.specs import ActionSpec

OCTAVES = 9
"""Time constants 1, 2, 4, ..., 256 steps."""


class PinkNoise:
    """Gaussian noise with variance 1 at every step and a power spectrum of about 1/f.

    A slow environment sums the actions, so white noise cancels itself, while noise with a single long time constant
    overshoots. Pink noise contains all time constants in equal shares, and needs no tuning (Eberhard et al. 2023, "Pink
    Noise Is All You Need"). Here it is the sum of K relaxation processes an octave apart (Bernamont 1937), so that its
    length need not be fixed:

        x_k <- a_k x_k + sqrt(1 - a_k^2) w,   a_k = exp(-1 / 2^k),   noise = sum_k x_k / sqrt(K)

    The memory (..., K) is x_1..x_K.
    """

    def __init__(self) -> None:
        self.decay = torch.exp(-(0.5 ** torch.arange(OCTAVES)))
        self.fresh = (1 - self.decay.square()).sqrt()

    def initial(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Sample the memory (..., K) from the stationary distribution of the processes."""
        return torch.randn(*shape, OCTAVES, device=device)

    def step(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise (...) and the next memory (..., K)."""
        memory = self.decay.to(memory) * memory + self.fresh.to(memory) * torch.randn_like(memory)
        return memory.sum(-1) / OCTAVES**0.5, memory


def disturbed(spec: ActionSpec, control: Tensor, noise: float) -> Tensor:
    """Add exploration noise to actions (N, A), and return valid actions (N, A).

    A continuous action gets Gaussian noise and is clipped. A discrete variable is replaced by a uniform sample with
    the probability `noise`.

    Args:
        noise: a standard deviation for continuous actions (PlaNet, Dreamer V1), a probability for discrete ones.
    """
    if not spec.classes:
        return (control + noise * torch.randn_like(control)).clamp(-1, 1)
    groups = []
    for group in control.split(list(spec.classes), -1):
        drawn = F.one_hot(torch.randint(group.shape[-1], group.shape[:-1], device=group.device), group.shape[-1])
        again = torch.rand(*group.shape[:-1], 1, device=group.device) < noise
        groups.append(torch.where(again, drawn.to(group.dtype), group))
    return torch.cat(groups, -1)
