"""Policy distributions over encoded actions: squashed or clipped Gaussians in [-1, 1]^A, and one-hot groups."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.networks.latents import LOG_2PI, positive, straight_through


class PolicyFamily(ABC):
    """A family of distributions over actions (..., A) with parameters (..., P)."""

    parameters: int

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor | None = None) -> Tensor:
        """Sample an action. It is differentiable with respect to the parameters if the family allows it.

        Args:
            noise: standard normal noise (..., A) for a Gaussian. Other families ignore it.
        """

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """Return the deterministic action."""

    @abstractmethod
    def log_prob(self, params: Tensor, control: Tensor) -> Tensor:
        """Return the log density or log mass (...) of an action (..., A) in nats."""

    @abstractmethod
    def entropy(self, params: Tensor) -> Tensor:
        """Return the entropy (...) in nats, exact or as an unbiased estimate, differentiable in the parameters."""


class TanhNormal(PolicyFamily):
    """u = tanh(a), a ~ N(mu, diag sigma^2), as in Dreamer V1 and SAC. The parameters are [mu, raw].

    mu = 5 tanh(raw_mu / 5) keeps the mean where tanh has a gradient (Dreamer V1). Near the bounds, float32 has few
    values, and a cannot be recovered from u = 1. Therefore |u| is limited to `edge`, which has the probability that
    |a| lies beyond it; see :class:`ClippedNormal`.
    """

    limit = 5.0
    min_std = 1e-4
    edge = 1 - 2.0**-20  # 16 float32 numbers below 1

    def __init__(self, size: int, initial_std: float = 1.0) -> None:
        self.parameters = 2 * size
        self.shift = initial_std + math.log(-math.expm1(-initial_std))  # softplus(shift) = initial_std

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation before tanh, each (..., A)."""
        mean, raw = params.chunk(2, -1)
        return self.limit * torch.tanh(mean / self.limit), positive(raw + self.shift) + self.min_std

    def sample(self, params: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, std = self.moments(params)
        drawn = torch.addcmul(mean, std, torch.randn_like(std) if noise is None else noise)
        return torch.tanh(drawn).clamp(-self.edge, self.edge)

    def mode(self, params: Tensor) -> Tensor:
        return torch.tanh(self.moments(params)[0])

    def log_prob(self, params: Tensor, control: Tensor) -> Tensor:
        """Return the log density between the edges, and the log mass at and beyond them."""
        mean, std = self.moments(params)
        control = control.clamp(-self.edge, self.edge)
        error = (control.atanh() - mean) / std
        jacobian = torch.log1p(-control.square())  # log |d tanh(a) / da|
        inside = -0.5 * error.square() - std.log() - 0.5 * LOG_2PI - jacobian
        # Samples lie within a few standard deviations. Far beyond, torch's gradient of log_ndtr is not finite.
        outside = torch.special.log_ndtr((-control.sign() * error).clamp(min=-100))
        return torch.where(control.abs() < self.edge, inside, outside).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Return H[N(mu, sigma)] + E[log |d tanh(a) / da|]. The first term is exact, the second uses one sample."""
        mean, std = self.moments(params)
        sample = torch.addcmul(mean, std, torch.randn_like(std))
        jacobian = 2 * (math.log(2) - sample - F.softplus(-2 * sample))  # log (1 - tanh(a)^2), stable for large a
        return (std.log() + 0.5 * (LOG_2PI + 1) + jacobian).sum(-1)


class ClippedNormal(PolicyFamily):
    """u = a clipped to [-1, 1], a ~ N(tanh(mu), diag sigma^2), sigma in (0.1, 1), as in DreamerV3.

    DreamerV3 clips in the environment and uses the density of a. Here the model and the replay use the clipped u. So
    an action at a bound has the probability that a lies beyond it. This gives the policy gradient of the same policy
    with less variance (Fujita and Maeda 2018, "Clipped Action Policy Gradient").
    """

    min_std, max_std = 0.1, 1.0

    def __init__(self, size: int) -> None:
        self.parameters = 2 * size

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of a, each (..., A)."""
        mean, raw = params.chunk(2, -1)
        return torch.tanh(mean), (self.max_std - self.min_std) * torch.sigmoid(raw + 2) + self.min_std

    def sample(self, params: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, std = self.moments(params)
        return torch.addcmul(mean, std, torch.randn_like(std) if noise is None else noise).clamp(-1, 1)

    def mode(self, params: Tensor) -> Tensor:
        return self.moments(params)[0]

    def log_prob(self, params: Tensor, control: Tensor) -> Tensor:
        """Return the log density between the bounds, and the log mass at the bounds."""
        mean, std = self.moments(params)
        inside = -0.5 * ((control - mean) / std).square() - std.log() - 0.5 * LOG_2PI
        outside = torch.special.log_ndtr((control.sign() * mean - 1) / std)
        return torch.where(control.abs() < 1, inside, outside).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Return the exact entropy of a, which DreamerV3 uses as the regularizer."""
        _, std = self.moments(params)
        return (std.log() + 0.5 * (LOG_2PI + 1)).sum(-1)


class OneHotCategorical(PolicyFamily):
    """One categorical distribution per discrete variable, as concatenated one-hot vectors.

    The parameters are logits (..., A). A share `unimix` of the uniform distribution keeps every action possible
    (DreamerV3). This bounds the log probabilities of the score-function gradient.
    """

    def __init__(self, classes: tuple[int, ...], unimix: float = 0.01) -> None:
        self.classes, self.unimix = list(classes), unimix
        self.parameters = sum(classes)

    def _log_probs(self, params: Tensor) -> list[Tensor]:
        groups = [group.softmax(-1) for group in params.split(self.classes, -1)]
        return [((1 - self.unimix) * probs + self.unimix / probs.shape[-1]).log() for probs in groups]

    def sample(self, params: Tensor, noise: Tensor | None = None) -> Tensor:
        return torch.cat([straight_through(logs.exp()) for logs in self._log_probs(params)], -1)

    def mode(self, params: Tensor) -> Tensor:
        groups = params.split(self.classes, -1)
        return torch.cat([F.one_hot(g.argmax(-1), g.shape[-1]).to(g.dtype) for g in groups], -1)

    def log_prob(self, params: Tensor, control: Tensor) -> Tensor:
        return (torch.cat(self._log_probs(params), -1) * control).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        logs = torch.cat(self._log_probs(params), -1)
        return -(logs.exp() * logs).sum(-1)
