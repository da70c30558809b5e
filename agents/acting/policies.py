"""Policy distributions over control vectors: squashed or clipped Gaussians in [-1, 1]^A, and one-hot groups."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.networks.latents import LOG_2PI, positive, straight_through


class PolicyFamily(ABC):
    """A family of distributions over controls (..., A), indexed by parameters (..., P)."""

    parameters: int

    @abstractmethod
    def sample(self, params: Tensor, noise: Tensor | None = None) -> Tensor:
        """A control; differentiable in the parameters where the family allows it.

        Args:
            noise: (..., A), standard normal: what a Gaussian is drawn with. Others draw their own.
        """

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """The deterministic control."""

    @abstractmethod
    def log_prob(self, params: Tensor, control: Tensor) -> Tensor:
        """(..., P), (..., A) -> (...): log density or mass of a given control, in nats."""

    @abstractmethod
    def entropy(self, params: Tensor) -> Tensor:
        """(..., P) -> (...): entropy in nats, exact or an unbiased estimate, differentiable in the parameters."""


class TanhNormal(PolicyFamily):
    """u = tanh(a), a ~ N(mu, diag sigma^2), as in Dreamer V1 and SAC. Parameters are [mu, raw].

    mu = 5 tanh(raw_mu / 5) keeps the mean from drifting to where tanh has no gradient (Dreamer V1). Near the bounds
    float32 tells few controls apart, and of 1 itself the a is lost: |u| ends at `edge`, which has the probability that
    |a| lies beyond, see :class:`ClippedNormal`.
    """

    limit = 5.0
    min_std = 1e-4
    edge = 1 - 2.0**-20  # 16 float32 numbers below 1

    def __init__(self, size: int, initial_std: float = 1.0) -> None:
        self.parameters = 2 * size
        self.shift = initial_std + math.log(-math.expm1(-initial_std))  # softplus(shift) = initial_std

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation before the squashing, each (..., A)."""
        mean, raw = params.chunk(2, -1)
        return self.limit * torch.tanh(mean / self.limit), positive(raw + self.shift) + self.min_std

    def sample(self, params: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, std = self.moments(params)
        drawn = torch.addcmul(mean, std, torch.randn_like(std) if noise is None else noise)
        return torch.tanh(drawn).clamp(-self.edge, self.edge)

    def mode(self, params: Tensor) -> Tensor:
        return torch.tanh(self.moments(params)[0])

    def log_prob(self, params: Tensor, control: Tensor) -> Tensor:
        """Log density inside of the edges, log mass on them and beyond."""
        mean, std = self.moments(params)
        control = control.clamp(-self.edge, self.edge)
        error = (control.atanh() - mean) / std
        jacobian = torch.log1p(-control.square())  # log |d tanh(a) / da|
        inside = -0.5 * error.square() - std.log() - 0.5 * LOG_2PI - jacobian
        # What is drawn lies within some standard deviations; far beyond, torch's gradient of the mass is not finite.
        outside = torch.special.log_ndtr((-control.sign() * error).clamp(min=-100))
        return torch.where(control.abs() < self.edge, inside, outside).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """H[N(mu, sigma)] + E[log |d tanh(a) / da|]: the first exact, the second from one sample."""
        mean, std = self.moments(params)
        sample = torch.addcmul(mean, std, torch.randn_like(std))
        jacobian = 2 * (math.log(2) - sample - F.softplus(-2 * sample))  # log (1 - tanh(a)^2), stable for large a
        return (std.log() + 0.5 * (LOG_2PI + 1) + jacobian).sum(-1)


class ClippedNormal(PolicyFamily):
    """u = a clipped to [-1, 1], a ~ N(tanh(mu), diag sigma^2), sigma in (0.1, 1), as in DreamerV3.

    DreamerV3 clips in the environment and takes the density of a. Here u is what the model imagines with and what is
    recorded, so a control at a bound has the probability that a lies beyond it, which is the policy gradient of the
    same policy with less variance (Fujita and Maeda 2018, "Clipped Action Policy Gradient").
    """

    min_std, max_std = 0.1, 1.0

    def __init__(self, size: int) -> None:
        self.parameters = 2 * size

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a, each (..., A)."""
        mean, raw = params.chunk(2, -1)
        return torch.tanh(mean), (self.max_std - self.min_std) * torch.sigmoid(raw + 2) + self.min_std

    def sample(self, params: Tensor, noise: Tensor | None = None) -> Tensor:
        mean, std = self.moments(params)
        return torch.addcmul(mean, std, torch.randn_like(std) if noise is None else noise).clamp(-1, 1)

    def mode(self, params: Tensor) -> Tensor:
        return self.moments(params)[0]

    def log_prob(self, params: Tensor, control: Tensor) -> Tensor:
        """Log density inside of the bounds, log mass on them."""
        mean, std = self.moments(params)
        inside = -0.5 * ((control - mean) / std).square() - std.log() - 0.5 * LOG_2PI
        outside = torch.special.log_ndtr((control.sign() * mean - 1) / std)
        return torch.where(control.abs() < 1, inside, outside).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """That of a, exact: the regulariser of DreamerV3."""
        _, std = self.moments(params)
        return (std.log() + 0.5 * (LOG_2PI + 1)).sum(-1)


class OneHotCategorical(PolicyFamily):
    """One categorical per discrete variable, as concatenated one-hot codes. Parameters are logits (..., A).

    A share `unimix` of the uniform distribution keeps every action possible (DreamerV3), so that the log
    probabilities of the score-function gradient stay bounded.
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
