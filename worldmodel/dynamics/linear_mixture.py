"""Linear systems with controls, mixed: locally linear dynamics (Watter et al. 2015, Karl et al. 2017)."""

import torch
from torch import Tensor, nn


def mixed(weights: Tensor, matrices: Tensor) -> Tensor:
    """(..., M), (M, i, j) -> (..., i, j)."""
    return torch.einsum("...m,mij->...ij", weights, matrices)


class LinearMixture(nn.Module):
    """M systems z_t = A z_{t-1} + B u_{t-1}, of which weights (..., M) make one.

    Args:
        count: M. size: Z. control_size: A.
    """

    def __init__(self, count: int, size: int, control_size: int) -> None:
        super().__init__()
        # Slow, but within the unit circle: z_t is unbounded, and a record may be long.
        self.A = nn.Parameter(0.9 * torch.eye(size) + 0.05 * torch.randn(count, size, size) / size**0.5)
        self.B = nn.Parameter(torch.randn(count, size, control_size) / max(control_size, 1) ** 0.5)

    def drive(self, weights: Tensor, control: Tensor) -> Tensor:
        """(..., M), (..., A) -> B u (..., Z)."""
        return torch.einsum("...m,mij,...j->...i", weights, self.B, control)

    def forward(self, weights: Tensor, z: Tensor, control: Tensor) -> Tensor:
        """(..., M), z_{t-1} (..., Z), u_{t-1} (..., A) -> (..., Z)."""
        return torch.einsum("...m,mij,...j->...i", weights, self.A, z) + self.drive(weights, control)
