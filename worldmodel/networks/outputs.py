"""Output distributions: how the last layer of a head is read as p(x_t | z_t).

Every `log_prob` is in nats, summed over the entries of one observation. Constants and the Jacobian of a change of
variables are included, so that likelihoods of different outputs can be compared; only :class:`TwoHot`, which gives a
mass over bins and no density, compares with nothing but itself.
"""

import math
from abc import ABC, abstractmethod
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from worldmodel.digits import NOISE
from worldmodel.kernels.precision import doubled, exact
from worldmodel.networks.latents import LOG_2PI, positive, straight_through
from worldmodel.networks.layers import Logits


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|) (DreamerV3, Eq. 9): the identity near 0, a logarithm far from it."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp |x| - 1), the inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


class Output(nn.Module, ABC):
    """Reads parameters (..., P) as a distribution over a value (..., width)."""

    width: int
    parameters_size: int  # P
    linear: type[nn.Linear] = nn.Linear  # the kind of layer that gives the parameters

    @abstractmethod
    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        """(..., P), (..., width) -> (...): log density or mass in nats.

        `value` may have more leading dimensions: several values of one prediction.
        """

    @abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """(..., P) -> (..., width)."""

    @abstractmethod
    def sample(self, params: Tensor) -> Tensor:
        """(..., P) -> a draw as an encoder takes it, differentiable: (..., width), or concatenated one-hot codes."""

    def fit(self, value: Tensor, mask: Tensor, layer: nn.Linear | None = None) -> None:
        """Take units from recorded values (..., width) where mask (...) is set; most outputs have none.

        With `layer`, the one that gives the parameters, it is rescaled so that its predictions stay what they were.
        """


ROUNDING = 1e-6
"""Share of the size of a number that its rounding to single precision may change."""

SMALLEST = 1e-37
"""The smallest unit: single precision has no more digits for what is much smaller."""

LEARNED = 100.0
"""A unit that changes by a larger factor belongs to an entry that was at rest before, or that only begins to move."""


def resolved(std: Tensor, size: Tensor) -> Tensor:
    """(width,) bool: which entries of an observation move by more than rounding explains.

    Neither limit depends on the unit of the user: one is a share of the size of the entry itself, the other of the
    largest entry, because numbers that should be 0 are left over at the rounding of those they were computed from.

    Args:
        std: standard deviation of each entry. size: its largest absolute value.
    """
    largest = size.amax(-1, keepdim=True) if size.shape[-1] else size
    return std > torch.maximum(ROUNDING * size, NOISE * largest).clamp(min=SMALLEST)


class Normalizer(nn.Module):
    """x -> (x - loc) / scale, in units taken from recorded data."""

    loc: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Take mean and standard deviation of values (..., width); an entry that is at rest keeps the scale 1.

        At rest is what moves by no more than rounding explains, see :func:`resolved`. The unit in which a user has
        measured is of no consequence.

        Returns:
            ratio, shift (width,): see :meth:`change`.
        Raises:
            ValueError: if `mask` (...) leaves nothing to take them from.
        """
        rows = doubled(value[mask > 0])  # a small variation on a large offset survives
        if not len(rows):
            raise ValueError("no recorded step to take units from: record some first")
        std = rows.std(0, correction=0)
        moving = resolved(std, rows.abs().amax(0))
        return self.change(rows.mean(0), torch.where(moving, std, torch.ones_like(std)))

    def change(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Set the units (width,), whatever device they come from.

        Returns:
            ratio, shift (width,): what was z in the old units is (z - shift) / ratio in the new ones. For an entry
            whose unit changes by more than `LEARNED` they are 1 and 0: its weights begin in the new unit as they are,
            because no number of updates brings weights back that were multiplied by a million.
        """
        loc, scale = loc.to(self.loc), scale.to(self.scale)
        ratio, shift = scale / self.scale, (loc - self.loc) / self.scale
        anew = (ratio < 1 / LEARNED) | (ratio > LEARNED)
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        return ratio.masked_fill(anew, 1.0), shift.masked_fill(anew, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.loc) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.scale + self.loc


class Normal(Output):
    """N(mu, diag sigma^2) in standardised units, both predicted: sigma = softplus(raw) + min_std.

    A predicted sigma weighs each entry by how well it can be known. With sigma fixed at 1, observations that vary
    by less than 1 cost less to ignore than to encode, and the posterior collapses onto the prior (derivation Eq. 44;
    Rybkin et al. 2021, "Simple and Effective VAE Training with Calibrated Decoders").
    """

    def __init__(self, width: int, min_std: float = 0.03) -> None:
        super().__init__()
        self.width, self.parameters_size, self.min_std = width, 2 * width, min_std
        self.normalizer = Normalizer(width)

    def moments(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 2 width) -> mean and standard deviation in standardised units, each (..., width)."""
        mean, raw = params.chunk(2, -1)
        return mean, positive(raw) + self.min_std

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        mean, std = self.moments(params)
        error = (self.normalizer(value) - mean) / std
        return (-0.5 * error.square() - std.log() - self.normalizer.scale.log() - 0.5 * LOG_2PI).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        return self.normalizer.inverse(params.chunk(2, -1)[0])

    def sample(self, params: Tensor) -> Tensor:
        mean, std = self.moments(params)
        return self.normalizer.inverse(torch.addcmul(mean, std, torch.randn_like(std)))

    def fit(self, value: Tensor, mask: Tensor, layer: nn.Linear | None = None) -> None:
        ratio, shift = self.normalizer.fit(value, mask)
        if layer is not None:
            self.keep(layer, ratio, shift)

    @torch.no_grad()
    def keep(self, layer: nn.Linear, ratio: Tensor, shift: Tensor) -> None:
        """Let the last layer predict the same in new units (Pop-Art; van Hasselt et al. 2016, Proposition 1).

        Exact for the mean. The standard deviation follows where it is well below its unit, softplus(x) ~ exp(x).
        """
        mean, raw = layer.weight[: self.width], layer.bias[self.width :]
        mean.div_(ratio.unsqueeze(1))
        layer.bias[: self.width].sub_(shift).div_(ratio)
        raw.sub_(ratio.log())


class SymlogNormal(Output):
    """symlog(x) ~ N(mu, 1): squared error in symlog space (DreamerV3), as a density over x itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = self.parameters_size = width

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        jacobian = value.abs().log1p()  # d symlog / dx = 1 / (1 + |x|)
        return (-0.5 * (symlog(value) - params).square() - 0.5 * LOG_2PI - jacobian).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        return symexp(params)  # the median; the mean of a symlog-normal has no closed form

    def sample(self, params: Tensor) -> Tensor:
        return symexp(params + torch.randn_like(params))


class Bernoulli(Output):
    """Independent binary entries; parameters are logits, `mean` is the probability of 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = self.parameters_size = width

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        value = value.to(params.dtype)  # recorded as an index
        return -F.binary_cross_entropy_with_logits(params.expand_as(value), value, reduction="none").sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        return params.sigmoid()

    def sample(self, params: Tensor) -> Tensor:
        one = params.sigmoid()
        return straight_through(torch.stack([1 - one, one], -1))[..., 1]


class Categorical(Output):
    """One variable per entry of `classes`; values are indices (..., G), `mean` is concatenated probabilities."""

    def __init__(self, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.classes, self.width, self.parameters_size = list(classes), len(classes), sum(classes)
        runs = [(count, len(list(same))) for count, same in groupby(classes)]  # neighbours of as many classes: at once
        self.variables = [each for _, each in runs]
        self.shapes = [(each, count) for count, each in runs]

    def groups(self, params: Tensor) -> list[Tensor]:
        """(..., P) -> logits (..., G', classes) of each run of variables."""
        parts = params.split([each * count for each, count in self.shapes], -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        params = params.expand(*value.shape[:-1], -1)
        values = value.split(self.variables, -1)
        pairs = zip(self.groups(params), values, strict=True)
        logs = [logits.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1) for logits, chosen in pairs]
        return torch.cat(logs, -1).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        return torch.cat([group.softmax(-1).flatten(-2) for group in self.groups(params)], -1)

    def sample(self, params: Tensor) -> Tensor:
        return torch.cat([straight_through(group.softmax(-1)).flatten(-2) for group in self.groups(params)], -1)


class TwoHot(Output):
    """A scalar as a categorical over bins spaced evenly in symlog (DreamerV3, Eq. 10), from symexp(-limit) up.

    The target puts its mass on the two bins around the value, so that the expected bin equals it. `log_prob` is the
    cross entropy with that target: a mass over bins in nats, not a density.
    """

    bins: Tensor
    linear = Logits

    def __init__(self, bins: int = 255, limit: float = 20.0) -> None:
        super().__init__()
        if bins < 3 or bins % 2 == 0:
            raise ValueError(f"two-hot needs an odd number of bins, at least 3, so that one lies at 0: {bins}")
        self.width, self.parameters_size = 1, bins
        half = symexp(torch.linspace(-limit, 0, bins // 2 + 1, dtype=torch.float64))
        self.register_buffer("bins", torch.cat([half, -half[:-1].flip(0)]).float(), persistent=False)

    def between(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """(...) -> the bin above each value, and the share of it in the target; values outside go to the last one."""
        value = value.clamp(self.bins[0], self.bins[-1])
        above = torch.searchsorted(self.bins, value.contiguous()).clamp(1, len(self.bins) - 1)
        low, high = self.bins[above - 1], self.bins[above]
        return above, (value - low) / (high - low)

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        above, share = self.between(value)  # (..., 1)
        params = params.expand(*value.shape[-params.dim() : -1], -1)
        low, high = _LogProbs.apply(params, torch.cat([above - 1, above], -1)).unbind(-1)
        return torch.lerp(low, high, share.squeeze(-1).to(low.dtype))

    @exact
    def mean(self, params: Tensor) -> Tensor:
        # The bins sum to zero, so that the mass of an outer one can be taken from all: where the other outer ones have
        # the same, as from the start, huge bins cancel exactly. No gradient: its sum over the bins is zero as well, but
        # not when rounded.
        probs = params.softmax(-1)[..., : len(self.bins)]
        more = probs - probs[..., :1].detach()
        return more @ self.bins.unsqueeze(-1)

    @exact
    def sample(self, params: Tensor) -> Tensor:
        return straight_through(params.softmax(-1))[..., : len(self.bins)] @ self.bins.unsqueeze(-1)


class _LogProbs(torch.autograd.Function):
    """log p_c of some classes c (..., K) under logits (..., C); several rows of classes for one of logits may lead.

        d log p_c / d logit_k = [k = c] - p_k

    Torch's own gradients of a two-hot loss write a row of zeros for each target, and read them again, twice.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor) -> Tensor:
        log = logits.log_softmax(-1)
        ctx.save_for_backward(log, classes)
        return log.expand(*classes.shape[:-1], -1).gather(-1, classes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        log, classes = ctx.saved_tensors
        rows = math.prod(classes.shape[: classes.dim() - log.dim()])
        each = (rows, *log.shape[:-1], classes.shape[-1])
        gradient, classes = (values.reshape(each).movedim(0, -2).flatten(-2) for values in (gradient, classes))
        return log.exp().mul(-gradient.sum(-1, keepdim=True)).scatter_add(-1, classes, gradient), None
