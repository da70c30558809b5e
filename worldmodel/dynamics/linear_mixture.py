"""Linear systems with controls, mixed: locally linear dynamics (Watter et al. 2015, Karl et al. 2017)."""

import torch
from torch import Tensor, nn

from worldmodel.dynamics import kalman
from worldmodel.dynamics.kalman import Moments
from worldmodel.kernels.precision import exact


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

    @exact
    def forward(self, weights: Tensor, z: Tensor, control: Tensor) -> Tensor:
        """(..., M), z_{t-1} (..., Z), u_{t-1} (..., A) -> (..., Z)."""
        return torch.einsum("...m,mij,...j->...i", weights, self.A, z) + self.drive(weights, control)


class KalmanMixture(LinearMixture):
    """z_t = A z_{t-1} + B u_{t-1} + N(0, Q), a_t = C z_t + N(0, R), and what is known of z_t, in closed form.

    Args:
        count, size, control_size: as above. seen: width of a_t.
    """

    def __init__(self, count: int, size: int, control_size: int, seen: int) -> None:
        super().__init__(count, size, control_size)
        self.C = nn.Parameter(torch.randn(count, seen, size) / size**0.5)
        self.log_q = nn.Parameter(torch.full((size,), -2.0))  # log variances: of the transition
        self.log_r = nn.Parameter(torch.full((seen,), -2.0))  # and of the observation

    @exact
    def predict(self, weights: Tensor, before: Moments, control: Tensor) -> Moments:
        """Of z_{t-1} -> of z_t."""
        return kalman.predict(before, mixed(weights, self.A), self.drive(weights, control), self.log_q.exp().diag())

    @exact
    def emit(self, weights: Tensor, state: Moments) -> Moments:
        """Of z_t -> of a_t."""
        return kalman.emit(state, mixed(weights, self.C), self.log_r.exp().diag())

    @exact
    def update(self, weights: Tensor, state: Moments, seen: Tensor) -> Moments:
        """Of z_t -> of z_t given a_t."""
        return kalman.update(state, mixed(weights, self.C), self.log_r.exp().diag(), seen)

    @exact
    def smooth(self, weights: Tensor, filtered: Moments, predicted: Moments, is_first: Tensor) -> Moments:
        """Of z_1..z_T given a_{1:t}, and of z_2..z_T given a_{<t} -> of z_1..z_T given all of a_{1:T}."""
        return kalman.smooth(filtered, predicted, mixed(weights, self.A), is_first)
