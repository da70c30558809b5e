"""The steps of the Kalman filter and smoother for z_t = A_t z_{t-1} + d_t + N(0, Q) and a_t = C_t z_t + N(0, R).

Moments are a mean (..., Z) and a covariance (..., Z, Z). Every row of the batch may have its own matrices.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.dynamics.scan import scan


class Moments(NamedTuple):
    mean: Tensor  # (..., Z)
    covariance: Tensor  # (..., Z, Z)


def product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the product of a matrix and a vector: (..., i, j), (..., j) -> (..., i)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def predict(before: Moments, transition: Tensor, drive: Tensor, noise: Tensor) -> Moments:
    """Return p(z_t | a_{<t}) from p(z_{t-1} | a_{<t}), A (..., Z, Z), d_t (..., Z) and Q (Z, Z)."""
    covariance = transition @ before.covariance @ transition.mT + noise
    return Moments(product(transition, before.mean) + drive, covariance)


def emit(state: Moments, emission: Tensor, noise: Tensor) -> Moments:
    """Return p(a_t | .) from p(z_t | .), C (..., A, Z) and R (A, A)."""
    return Moments(product(emission, state.mean), emission @ state.covariance @ emission.mT + noise)


def update(state: Moments, emission: Tensor, noise: Tensor, value: Tensor) -> Moments:
    """Return p(z_t | a_{<=t}) from p(z_t | a_{<t}) and a_t (..., A).

    The covariance is computed in the Joseph form, which keeps it positive definite in single precision.
    """
    expected = emit(state, emission, noise)
    gain = torch.linalg.solve(expected.covariance, emission @ state.covariance).mT
    rest = torch.eye(state.mean.shape[-1]).to(gain) - gain @ emission
    covariance = rest @ state.covariance @ rest.mT + gain @ noise @ gain.mT
    return Moments(state.mean + product(gain, value - expected.mean), covariance)


def smooth(filtered: Moments, predicted: Moments, transition: Tensor, is_first: Tensor) -> Moments:
    """Return p(z_t | a_{1:T}) for all t (Rauch, Tung and Striebel 1965).

    Args:
        filtered: p(z_t | a_{<=t}), t = 1..T: (B, T, ...).
        predicted: p(z_{t+1} | a_{<=t}), t = 1..T-1: (B, T - 1, ...).
        transition: A_{t+1} (B, T - 1, Z, Z).
        is_first: (B, T - 1), whether t + 1 begins another episode. Later steps then do not affect step t.
    """
    last = Moments(filtered.mean[:, -1], filtered.covariance[:, -1])
    if filtered.mean.shape[1] == 1:
        return filtered

    def step(later: Moments, inputs: tuple[Tensor, ...]) -> tuple[Moments, tuple[Tensor, ...]]:
        mean, covariance, mean_ahead, covariance_ahead, transition, border = inputs
        gain = torch.linalg.solve(covariance_ahead, transition @ covariance).mT * ~border[:, None, None]
        mean = mean + product(gain, later.mean - mean_ahead)
        covariance = covariance + gain @ (later.covariance - covariance_ahead) @ gain.mT
        return Moments(mean, covariance), (mean, covariance)

    earlier = (filtered.mean[:, :-1], filtered.covariance[:, :-1])
    _, smoothed = scan(step, last, (*earlier, *predicted, transition, is_first), reverse=True)
    return Moments(*(torch.cat([each, end.unsqueeze(1)], 1) for each, end in zip(smoothed, last, strict=True)))
