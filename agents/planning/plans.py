"""Distributions over plans (sequences of actions). A planner samples candidates from one, and fits it to the best.

All candidates are computed from standard normal noise (N, K, H, A), so noise that is correlated over time works for
continuous and discrete actions. The parameters of a family, (N, H, P), may be averaged.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.specs import ActionSpec

EPS = 1e-6


class PlanFamily(ABC):
    """A family of plan distributions in which the H actions of a plan are independent."""

    @abstractmethod
    def prior(self, count: int, horizon: int, device: torch.device) -> Tensor:
        """Return the parameters (N, H, P) of the prior, from which a search begins."""

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Convert parameters (N, H, P) and standard normal noise (N, K, H, A) to valid plans (N, K, H, A)."""

    @abstractmethod
    def fit(self, plans: Tensor, weights: Tensor) -> Tensor:
        """Fit parameters (N, H, P) to plans (N, E, H, A) with weights (N, E) that sum to 1."""

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """Return the central plans (N, H, A) for parameters (N, H, P)."""

    @abstractmethod
    def widen(self, params: Tensor) -> Tensor:
        """Return parameters with the same center and the spread of the prior, to continue the search from there."""


class BoxPlans(PlanFamily):
    """Normal distributions with samples clipped to [-1, 1] (PlaNet). The parameters are [mean, std].

    Args:
        size: the width of an action, A.
        std: the standard deviation of the prior.
        min_std: a lower bound of a fitted standard deviation.
        max_std: an upper bound of a fitted standard deviation.
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
    """One categorical distribution per discrete variable and step. Actions are concatenated one-hot vectors.

    The parameters are probabilities p (N, H, A). A sample is argmax(log p + g) with Gumbel noise g (Maddison et al.
    2014), which is computed from the normal noise through its quantiles. So it is correlated over time like that
    noise, and has the probabilities p at every step.

    Args:
        classes: the number of categories of each variable.
        floor: the share of the uniform distribution in a fitted one, so that no category becomes impossible.
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
        """Return the one-hot vectors of the category with the highest preference (..., A) of each variable."""
        groups = preference.split(self.classes, -1)
        return torch.cat([F.one_hot(g.argmax(-1), g.shape[-1]).to(preference.dtype) for g in groups], -1)

    def fit(self, plans: Tensor, weights: Tensor) -> Tensor:
        shares = (weights[..., None, None] * plans).sum(1)
        return torch.lerp(shares, self.prior(len(shares), shares.shape[1], shares.device), self.floor)

    def mode(self, params: Tensor) -> Tensor:
        return self._code(params)

    def widen(self, params: Tensor) -> Tensor:
        """Mix in half of the uniform distribution. The old plan remains the most likely one."""
        return torch.lerp(params, self.prior(len(params), params.shape[1], params.device), 0.5)


def plan_family(spec: ActionSpec, std: float = 1.0, min_std: float = 0.0, max_std: float = 1.0) -> PlanFamily:
    """Return the plan family of an action space. The standard deviations are for continuous actions."""
    return OneHotPlans(spec.classes) if spec.classes else BoxPlans(spec.width, std, min_std, max_std)


def colour(horizon: int, beta: float) -> Tensor:
    """Return a matrix (H, H). White noise (..., H) times it has the power spectrum f^-beta and variance 1 at each step.

    The method of Timmer and König (1995) as a circular filter: each row is the same response, shifted by one step.
    Frequencies below the lowest one that fits into the horizon, also 0, are replaced by that frequency.
    """
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64).clamp(min=1 / horizon)
    response = torch.fft.irfft(frequency ** (-beta / 2), n=horizon)
    response = response / response.norm()
    return torch.stack([response.roll(h) for h in range(horizon)]).float()
