"""Latent families: how a parameter tensor is read as a distribution over z.

Inside the time loop only parameter tensors travel; a family samples from them and owns its closed-form KL, so that
no code path can compute a divergence that disagrees with the sampling. All results are in nats, summed over the
latent's dimensions, never averaged.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.kernels.precision import exact

LOG_2PI = math.log(2 * math.pi)


def positive(raw: Tensor) -> Tensor:
    """softplus(raw) > 0. Of a slice, not contiguous, torch would compute it entry by entry, 13 times slower."""
    return F.softplus(raw.contiguous())


@dataclass
class LatentConfig:
    """The latent variable z_t of a member of the family."""

    family: Literal["gaussian", "onehot"] = "gaussian"
    size: int = 16  # dimensions of a Gaussian
    min_std: float = 0.1  # floor of a Gaussian's standard deviation (PlaNet)
    groups: int = 8  # one-hot variables
    classes: int = 8  # categories of each
    unimix: float = 0.01  # share of the uniform distribution in every category (DreamerV3)

    def __post_init__(self) -> None:
        if self.family not in ("gaussian", "onehot"):
            raise ValueError(f"family must be gaussian or onehot: '{self.family}'")
        if min(self.size, self.groups, self.classes) < 1:
            raise ValueError(f"size, groups and classes must be at least 1: {self.size}, {self.groups}, {self.classes}")
        if not 0 < self.min_std < 1:
            raise ValueError(f"min_std must lie between 0 and the 1 of a standard normal: {self.min_std}")
        if not 0 <= self.unimix < 1:
            raise ValueError(f"unimix must lie in [0, 1): {self.unimix}")


class LatentFamily(ABC):
    """A family of distributions over z (..., Z), indexed by parameters (..., P)."""

    size: int  # Z
    parameters: int  # P

    @abstractmethod
    def sample(self, params: Tensor) -> Tensor:
        """(..., P) -> (..., Z): one sample, differentiable in the parameters."""

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """(..., P) -> (..., Z): the most likely value."""

    @abstractmethod
    def mean_by_unit(self, params: Tensor) -> Tensor:
        """(..., P) -> (..., U, n): E[z], n numbers to a unit: the probabilities of a one-hot group, else one."""

    @abstractmethod
    def kl_by_unit(self, q: Tensor, p: Tensor) -> Tensor:
        """(..., P), (..., P) -> (..., U): KL(q || p) in nats, in closed form, by the U dimensions or groups of z."""

    def kl(self, q: Tensor, p: Tensor) -> Tensor:
        """(..., P), (..., P) -> (...): KL(q || p) in nats, the sum over all units."""
        return self.kl_by_unit(q, p).sum(-1)

    @abstractmethod
    def log_prob(self, params: Tensor, z: Tensor) -> Tensor:
        """(..., P), (..., Z) -> (...): log density (or mass) of z in nats."""

    @abstractmethod
    def standard(self) -> Tensor:
        """Parameters (P,) of the prior of those who know nothing: N(0, I), or uniform."""


class Gaussian(LatentFamily):
    """N(mu, diag sigma^2), with sigma = softplus(raw) + min_std. Parameters are [mu, raw]. Derivation Eq. 6, 7."""

    def __init__(self, size: int, min_std: float = 0.1) -> None:
        self.size, self.parameters, self.min_std = size, 2 * size, min_std

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 2 Z) -> mean and standard deviation, each (..., Z)."""
        mean, raw = params.chunk(2, -1)
        return mean, positive(raw) + self.min_std

    def sample(self, params: Tensor) -> Tensor:
        mean, std = self.moments(params)
        return torch.addcmul(mean, std, torch.randn_like(std))

    def mode(self, params: Tensor) -> Tensor:
        return params.chunk(2, -1)[0]

    def mean_by_unit(self, params: Tensor) -> Tensor:
        return self.mode(params).unsqueeze(-1)

    def kl_by_unit(self, q: Tensor, p: Tensor) -> Tensor:
        (mean_q, std_q), (mean_p, std_p) = self.moments(q), self.moments(p)
        ratio = (std_q / std_p).square()
        return 0.5 * (ratio + ((mean_q - mean_p) / std_p).square() - 1 - ratio.log())

    def log_prob(self, params: Tensor, z: Tensor) -> Tensor:
        mean, std = self.moments(params)
        return (-0.5 * ((z - mean) / std).square() - std.log() - 0.5 * LOG_2PI).sum(-1)

    def standard(self) -> Tensor:
        raw = math.log(math.expm1(1 - self.min_std))
        return torch.cat([torch.zeros(self.size), torch.full((self.size,), raw)])


JUST_BELOW_ONE = 1 - 2**-22


def draw(probs: Tensor) -> Tensor:
    """(..., C) probabilities -> (..., 1): the class drawn, where their sum from the first on passes a uniform number.

    An integer, but a floating-point number to a compiler, which counts in the type that it is given: in int64, two
    registers for one.

    One random number for all classes: a race of exponential ones needs C, and took a fourth of an imagined step.
    """
    total = probs.to(torch.promote_types(probs.dtype, torch.float32)).cumsum(-1)  # bfloat16 would never pass the last
    end = JUST_BELOW_ONE * total[..., -1:]  # never at the end: a class has to pass
    before = total <= torch.rand_like(end) * end
    return before.sum(-1, keepdim=True)


def straight_through(probs: Tensor) -> Tensor:
    """(..., C) probabilities -> a one-hot draw whose gradient is that of the probabilities (Bengio et al. 2013)."""
    fixed = probs.detach()
    drawn = draw(fixed)
    code = torch.zeros_like(fixed).scatter(-1, drawn, 1.0)
    return code + (probs - fixed) if probs.requires_grad else code  # the brackets keep the draw exactly 0 or 1


class OneHot(LatentFamily):
    """G independent one-hot variables of C classes, mixed with the uniform distribution (DreamerV2, DreamerV3).

    Parameters are logits (..., G * C). Probabilities are (1 - unimix) softmax(logits) + unimix / C, and every
    method, the KL included (derivation Eq. 9), uses those. Samples carry the straight-through gradient of the
    probabilities.
    """

    def __init__(self, groups: int, classes: int, unimix: float = 0.01) -> None:
        self.groups, self.classes, self.unimix = groups, classes, unimix
        self.size = self.parameters = groups * classes

    def probs(self, params: Tensor) -> Tensor:
        """(..., G * C) -> (..., G, C) class probabilities."""
        probs = params.unflatten(-1, (self.groups, self.classes)).softmax(-1)
        return (1 - self.unimix) * probs + self.unimix / self.classes if self.unimix else probs

    def _log_probs(self, params: Tensor) -> Tensor:
        if self.unimix:
            return self.probs(params).log()
        return params.unflatten(-1, (self.groups, self.classes)).log_softmax(-1)

    def sample(self, params: Tensor) -> Tensor:
        return straight_through(self.probs(params)).flatten(-2)

    def mode(self, params: Tensor) -> Tensor:
        probs = self.probs(params)
        return F.one_hot(probs.argmax(-1), self.classes).to(probs.dtype).flatten(-2)

    def mean_by_unit(self, params: Tensor) -> Tensor:
        return self.probs(params)

    def kl_by_unit(self, q: Tensor, p: Tensor) -> Tensor:
        log_q = self._log_probs(q)
        return (log_q.exp() * (log_q - self._log_probs(p))).sum(-1)

    def log_prob(self, params: Tensor, z: Tensor) -> Tensor:
        return (self._log_probs(params) * z.unflatten(-1, (self.groups, self.classes))).sum((-1, -2))

    def standard(self) -> Tensor:
        return torch.zeros(self.parameters)


class FullGaussian(LatentFamily):
    """N(mu, L L^T) with a lower-triangular factor L. Parameters are [mu, rows of L]; for exact linear systems."""

    def __init__(self, size: int) -> None:
        self.size, self.parameters = size, size + size * size

    def pack(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Mean (..., Z) and covariance (..., Z, Z) -> parameters (..., P)."""
        factor = torch.linalg.cholesky(covariance).expand(*mean.shape, self.size)
        return torch.cat([mean, factor.flatten(-2)], -1)

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """(..., P) -> mean (..., Z) and factor L (..., Z, Z)."""
        mean, factor = params.split([self.size, self.size**2], -1)
        return mean, factor.unflatten(-1, (self.size, self.size))

    @exact
    def sample(self, params: Tensor) -> Tensor:
        mean, factor = self.moments(params)
        return mean + (factor @ torch.randn_like(mean).unsqueeze(-1)).squeeze(-1)

    def mode(self, params: Tensor) -> Tensor:
        return self.moments(params)[0]

    def mean_by_unit(self, params: Tensor) -> Tensor:
        return self.mode(params).unsqueeze(-1)

    def kl_by_unit(self, q: Tensor, p: Tensor) -> Tensor:
        """Derivation Eq. 8 by the chain rule: dimension i has E_q KL(q(z_i | z_{<i}) || p(z_i | z_{<i}))."""
        (mean_q, factor_q), (mean_p, factor_p) = self.moments(q), self.moments(p)
        spread = _solve(factor_p, factor_q).square().sum(-1)
        shift = _solve(factor_p, (mean_q - mean_p).unsqueeze(-1)).square().squeeze(-1)
        return 0.5 * (spread + shift - 1) + _log_diagonal(factor_p) - _log_diagonal(factor_q)

    def log_prob(self, params: Tensor, z: Tensor) -> Tensor:
        mean, factor = self.moments(params)
        distance = _solve(factor, (z - mean).unsqueeze(-1)).square().sum((-1, -2))
        return -0.5 * (distance + self.size * LOG_2PI) - _log_diagonal(factor).sum(-1)

    def standard(self) -> Tensor:
        return self.pack(torch.zeros(self.size), torch.eye(self.size))


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


def _log_diagonal(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log()


class WithStatic(LatentFamily):
    """Of a varying z and a static v: [z, v], where v is drawn once and held from then on.

    Parameters are [those of z, those of v, the v that is held, whether it is held]. A held v is certain under q and
    p alike: it costs no nats. A free one is N(mu, diag sigma^2).
    """

    def __init__(self, varying: LatentFamily, static: int) -> None:
        self.varying, self.static = varying, Gaussian(static)
        self.size = varying.size + static
        self.sizes = [varying.parameters, self.static.parameters, static, 1]
        self.parameters = sum(self.sizes)

    def sample(self, params: Tensor) -> Tensor:
        z, v, held, is_held = params.split(self.sizes, -1)
        return torch.cat([self.varying.sample(z), torch.lerp(self.static.sample(v), held, is_held)], -1)

    def mode(self, params: Tensor) -> Tensor:
        z, v, held, is_held = params.split(self.sizes, -1)
        return torch.cat([self.varying.mode(z), torch.lerp(self.static.mode(v), held, is_held)], -1)

    def mean_by_unit(self, params: Tensor) -> Tensor:
        z, v, held, is_held = params.split(self.sizes, -1)
        varying = self.varying.mean_by_unit(z)
        static = torch.lerp(self.static.mode(v), held, is_held).unsqueeze(-1)
        return torch.cat([varying, F.pad(static, (0, varying.shape[-1] - 1))], -2)

    def kl_by_unit(self, q: Tensor, p: Tensor) -> Tensor:
        (z_q, v_q, _, is_held), (z_p, v_p, _, _) = q.split(self.sizes, -1), p.split(self.sizes, -1)
        return torch.cat([self.varying.kl_by_unit(z_q, z_p), (1 - is_held) * self.static.kl_by_unit(v_q, v_p)], -1)

    def log_prob(self, params: Tensor, z: Tensor) -> Tensor:
        varying, v, _, is_held = params.split(self.sizes, -1)
        now, static = z.split([self.varying.size, self.static.size], -1)
        return self.varying.log_prob(varying, now) + (1 - is_held.squeeze(-1)) * self.static.log_prob(v, static)

    def standard(self) -> Tensor:
        return torch.cat([self.varying.standard(), self.static.standard(), torch.zeros(self.static.size + 1)])


def latent_family(config: LatentConfig) -> LatentFamily:
    """The family that a config names."""
    if config.family == "onehot":
        return OneHot(config.groups, config.classes, config.unimix)
    return Gaussian(config.size, config.min_std)
