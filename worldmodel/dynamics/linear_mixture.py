"""Mixtures of linear systems with controls: locally linear dynamics (Watter et al. 2015, Karl et al. 2017)."""

import torch
from torch import Tensor, nn

from worldmodel.dynamics import kalman
from worldmodel.dynamics.kalman import Moments
from worldmodel.kernels.precision import exact


def mixed(weights: Tensor, matrices: Tensor) -> Tensor:
    """Return the weighted sum of M matrices: (..., M), (M, i, j) -> (..., i, j)."""
    return torch.einsum("...m,mij->...ij", weights, matrices)


class LinearMixture(nn.Module):
    """M systems z_t = A z_{t-1} + B u_{t-1}, which are mixed with weights (..., M).

    Args:
        count: M, the number of systems. size: Z, the width of z_t. control_size: A, the width of u_t.
    """

    def __init__(self, count: int, size: int, control_size: int) -> None:
        super().__init__()
        # The eigenvalues of A are close to 1 but below it: otherwise z_t could diverge on a long recording.
        self.A = nn.Parameter(0.9 * torch.eye(size) + 0.05 * torch.randn(count, size, size) / size**0.5)
        self.B = nn.Parameter(torch.randn(count, size, control_size) / max(control_size, 1) ** 0.5)

    def drive(self, weights: Tensor, control: Tensor) -> Tensor:
        """Return B u with the mixed B: (..., M), (..., A) -> (..., Z)."""
        return torch.einsum("...m,mij,...j->...i", weights, self.B, control)

    @exact
    def forward(self, weights: Tensor, z: Tensor, control: Tensor) -> Tensor:
        """Return A z_{t-1} + B u_{t-1} with the mixed A and B: (..., M), (..., Z), (..., A) -> (..., Z)."""
        return torch.einsum("...m,mij,...j->...i", weights, self.A, z) + self.drive(weights, control)


class KalmanMixture(LinearMixture):
    """The mixed system z_t = A z_{t-1} + B u_{t-1} + N(0, Q), a_t = C z_t + N(0, R), with its Kalman filter.

    Args:
        count, size, control_size: as in :class:`LinearMixture`. seen: the width of a_t.
    """

    def __init__(self, count: int, size: int, control_size: int, seen: int) -> None:
        super().__init__(count, size, control_size)
        self.C = nn.Parameter(torch.randn(count, seen, size) / size**0.5)
        self.log_q = nn.Parameter(torch.full((size,), -2.0))  # log variances of the transition
        self.log_r = nn.Parameter(torch.full((seen,), -2.0))  # log variances of the observation

    @exact
    def predict(self, weights: Tensor, before: Moments, control: Tensor) -> Moments:
        """Return the moments of z_t from those of z_{t-1}."""
        return kalman.predict(before, mixed(weights, self.A), self.drive(weights, control), self.log_q.exp().diag())

    @exact
    def emit(self, weights: Tensor, state: Moments) -> Moments:
        """Return the moments of a_t from those of z_t."""
        return kalman.emit(state, mixed(weights, self.C), self.log_r.exp().diag())

    @exact
    def update(self, weights: Tensor, state: Moments, seen: Tensor) -> Moments:
        """Return the moments of z_t given a_t."""
        return kalman.update(state, mixed(weights, self.C), self.log_r.exp().diag(), seen)

    @exact
    def smooth(self, weights: Tensor, filtered: Moments, predicted: Moments, is_first: Tensor) -> Moments:
        """Return the moments of z_1..z_T given a_{1:T}, from those given a_{<=t} and those of z_2..z_T given a_{<t}."""
        return kalman.smooth(filtered, predicted, mixed(weights, self.A), is_first)
