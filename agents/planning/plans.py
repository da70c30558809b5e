"""Distributions over plans, sequences of controls: what a planner draws candidates from and fits to the best of them.

All candidates are made of standard normal noise (N, K, H, A), so that noise correlated over time serves boxes and
categories alike. A family's parameters (N, H, P) are numbers that may be averaged.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.specs import ActionSpec

EPS = 1e-6


class PlanFamily(ABC):
    """Independent distributions of the H controls of a plan."""

    @abstractmethod
    def prior(self, count: int, horizon: int, device: torch.device) -> Tensor:
        """(N, H, P): of plans of which nothing is known."""

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """(N, H, P), standard normal noise (N, K, H, A) -> plans (N, K, H, A), each a valid one."""

    @abstractmethod
    def fit(self, plans: Tensor, weights: Tensor) -> Tensor:
        """(N, E, H, A), weights (N, E) that sum to 1 -> (N, H, P)."""

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """(N, H, P) -> (N, H, A): the plan in the middle."""

    @abstractmethod
    def widen(self, params: Tensor) -> Tensor:
        """The same middle with the spread of the prior, to search again from there."""


class BoxPlans(PlanFamily):
    """Normal distributions, their draws clipped to [-1, 1] (PlaNet). Parameters are [mean, std].

    Args:
        size: A. std: of the prior. min_std, max_std: bounds of what is fitted.
    """

    def __init__(self, size: int, std: float = 1.0, min_std: float = 0.0, max_std: float = 1.0) -> None:
        self.size, self.std, self.min_std, self.max_std = size, std, min_std, max_std

    def prior(self, count: int, horizon: int, device: torch.device) -> Tensor:
        mean = torch.zeros(count, horizon, self.size, device=device)
        return torch.cat([mean, torch.full_like(mean, self.std)], -1)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        mean, std = params.unsqueeze(1).chunk(2, -1)
        return torch.addcmul(mean, std, noise).clamp(-1, 1)

    def fit(self, plans: Tensor, weights: Tensor) -> Tensor:
        weights = weights[..., None, None]
        mean = (weights * plans).sum(1)
        variance = (weights * (plans - mean.unsqueeze(1)).square()).sum(1)
        return torch.cat([mean, variance.sqrt().clamp(self.min_std, self.max_std)], -1)

    def mode(self, params: Tensor) -> Tensor:
        return params.chunk(2, -1)[0].clamp(-1, 1)

    def widen(self, params: Tensor) -> Tensor:
        mean = params.chunk(2, -1)[0]
        return torch.cat([mean, torch.full_like(mean, self.std)], -1)


class OneHotPlans(PlanFamily):
    """One categorical per discrete variable and step; controls are concatenated one-hot codes.

    Parameters are probabilities (N, H, A). A draw is argmax(log p + g) with Gumbel noise g (Maddison et al. 2014),
    made of the normal noise by its quantiles: as correlated over time as that is, and at every step with the
    probabilities p.

    Args:
        classes: categories of each variable. floor: share of the uniform distribution in what is fitted, so that
            nothing is ruled out.
    """

    def __init__(self, classes: tuple[int, ...], floor: float = 0.05) -> None:
        self.classes, self.floor = list(classes), floor

    def prior(self, count: int, horizon: int, device: torch.device) -> Tensor:
        shares = torch.cat([torch.full((n,), 1 / n, device=device) for n in self.classes])
        return shares.expand(count, horizon, -1)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        share = torch.special.ndtr(noise).clamp(EPS, 1 - EPS)
        return self._code(params.clamp(min=EPS).log().unsqueeze(1) - (-share.log()).log())

    def _code(self, preference: Tensor) -> Tensor:
        """(..., A) -> one-hot codes of the preferred category of each variable."""
        groups = preference.split(self.classes, -1)
        return torch.cat([F.one_hot(g.argmax(-1), g.shape[-1]).to(preference.dtype) for g in groups], -1)

    def fit(self, plans: Tensor, weights: Tensor) -> Tensor:
        shares = (weights[..., None, None] * plans).sum(1)
        return torch.lerp(shares, self.prior(len(shares), shares.shape[1], shares.device), self.floor)

    def mode(self, params: Tensor) -> Tensor:
        return self._code(params)

    def widen(self, params: Tensor) -> Tensor:
        """Half of the uniform distribution: the old plan is still the likeliest."""
        return torch.lerp(params, self.prior(len(params), params.shape[1], params.device), 0.5)


def plan_family(spec: ActionSpec, std: float = 1.0, min_std: float = 0.0, max_std: float = 1.0) -> PlanFamily:
    """The family of an action space; the standard deviations are those of a box."""
    return OneHotPlans(spec.classes) if spec.classes else BoxPlans(spec.width, std, min_std, max_std)


def colour(horizon: int, beta: float) -> Tensor:
    """(H, H): white noise (..., H) times this has the power spectrum f^-beta, and variance 1 at every step.

    Timmer and König (1995), as a circular filter: each row holds the same response, shifted by one step. The lowest
    frequency that fits into the horizon stands for those below it, the constant included.
    """
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64).clamp(min=1 / horizon)
    response = torch.fft.irfft(frequency ** (-beta / 2), n=horizon)
    response = response / response.norm()
    return torch.stack([response.roll(h) for h in range(horizon)]).float()
