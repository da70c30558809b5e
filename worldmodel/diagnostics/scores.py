"""How good a probabilistic forecast is: errors, likelihoods, CRPS, and whether its intervals can be believed.

A forecast is S samples (S, ...) of a value (...), or a Gaussian in closed form.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.networks.latents import LOG_2PI

LEVELS = (0.5, 0.8, 0.95)
"""Central intervals whose coverage is reported."""

BINS = 10
"""Of the histogram of the probability integral transform."""


def crps(samples: Tensor, value: Tensor) -> Tensor:
    """(S, ...), (...) -> (...): the continuous ranked probability score, in the unit of the value; less is better.

        CRPS(F, y) = E|X - y| - E|X - X'| / 2        (Gneiting and Raftery 2007, Eq. 21)

    The fair estimator: pairs of different samples alone, so that its expectation does not depend on S (Ferro 2014).

    Raises:
        ValueError: for fewer than two samples.
    """
    count = len(samples)
    if count < 2:
        raise ValueError(f"CRPS needs at least two samples: {count}")
    # sum_{i < j} |x_i - x_j| over sorted samples: each is the larger of (i - 1) pairs and the smaller of (S - i).
    rank = torch.arange(1 - count, count, 2, dtype=samples.dtype, device=samples.device)
    ordered = samples.sort(0).values
    spread = torch.tensordot(rank, ordered, dims=1) / (count * (count - 1))
    return (samples - value).abs().mean(0) - spread


def gaussian_crps(mean: Tensor, std: Tensor, value: Tensor) -> Tensor:
    """The score of N(mean, std^2) in closed form (Gneiting and Raftery 2007, Eq. 22 with the sign of a loss)."""
    error = (value - mean) / std
    density = torch.exp(-0.5 * error.square()) / math.sqrt(2 * math.pi)
    return std * (error * torch.erf(error / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def gaussian_log_prob(mean: Tensor, std: Tensor, value: Tensor) -> Tensor:
    """log N(value; mean, std^2) in nats, entry by entry."""
    return -0.5 * ((value - mean) / std).square() - std.log() - 0.5 * LOG_2PI


def pit(samples: Tensor, value: Tensor) -> Tensor:
    """(S, ...), (...) -> (...): the probability integral transform, by the rank of the value among the samples.

    (rank + U) / (S + 1), ties broken at random: exactly uniform on [0, 1] if value and samples come from the same
    distribution, for any S, discrete or not.
    """
    below = (samples < value).sum(0)
    ties = (samples == value).sum(0)
    position = below + torch.rand_like(value) * (ties + 1)
    return position / (len(samples) + 1)


class Calibration(NamedTuple):
    """Whether a forecast knows what it does not know; of a calibrated one every field is known beforehand.

    That of `error_std` is for many samples: of S Gaussian ones it is sqrt((1 + 1/S) (S - 1) / (S - 3)).
    """

    coverage: Tensor  # (levels, ...): share of values in each central interval; equal to the level
    error_mean: Tensor  # (...): of (value - mean) / standard deviation of the forecast; 0
    error_std: Tensor  # (...): 1; above it the model is too sure of itself
    counts: Tensor  # (BINS, ...): PIT histogram; flat


def inside(place: Tensor, level: float) -> Tensor:
    """Whether values lie in their central interval, by their :func:`pit`."""
    return 2 * (place - 0.5).abs() < level


def calibration(samples: Tensor, value: Tensor, place: Tensor | None = None) -> Calibration:
    """Samples (S, B, ...) and values (B, ...), statistics over B.

    Args:
        place: their :func:`pit`, which breaks ties at random, if it has been taken before.
    Raises:
        ValueError: for fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"calibration needs at least two samples: {len(samples)}")
    place = pit(samples, value) if place is None else place
    coverage = torch.stack([inside(place, level).to(value.dtype).mean(0) for level in LEVELS])
    known = torch.finfo(value.dtype)
    rounding = (known.eps * samples.abs().amax(0)).clamp(min=known.tiny)
    error = (value - samples.mean(0)) / torch.maximum(samples.std(0), rounding)
    bins = (place * BINS).long().clamp(max=BINS - 1)
    counts = torch.stack([(bins == i).sum(0) for i in range(BINS)])
    return Calibration(coverage, error.mean(0), error.std(0, correction=0), counts)


class Scores(NamedTuple):
    """By step k of the horizon (K,) and entry (W,); means over windows."""

    rmse: Tensor  # (K, W), of the mean of the forecast, in the unit of the value
    crps: Tensor  # (K, W), in the same unit
    nll: Tensor  # (K,) nats of the whole observation, summed over entries


def skill(rmse: Tensor, baseline: Tensor) -> Tensor:
    """1 - RMSE / RMSE of the baseline: 1 is perfect, 0 no better, negative worse."""
    return 1 - rmse / baseline


def gaussian_scores(mean: Tensor, std: Tensor, value: Tensor) -> Scores:
    """Of independent Gaussians with mean (B, K, W) and standard deviation (K, W)."""
    nll = -gaussian_log_prob(mean, std, value).sum(-1).mean(0)
    return Scores(root_mean_square(value - mean), gaussian_crps(mean, std, value).mean(0), nll)


def root_mean_square(error: Tensor) -> Tensor:
    """(B, ...) -> (...)."""
    return error.square().mean(0).sqrt()


class Paired(NamedTuple):
    """A difference measured on the same sequences, its mean and the standard error of that."""

    mean: Tensor
    error: Tensor
    sign: Tensor  # wins less losses, in standard deviations of what a fair coin would give

    @property
    def z(self) -> Tensor:
        """The mean in standard errors; 0 where nothing differs at all."""
        return (self.mean / self.error).nan_to_num(0.0)

    @property
    def clearest(self) -> Tensor:
        """z or the sign test, whichever says more: where a few sequences differ by far, their spread drowns z."""
        return torch.where(self.sign.abs() > self.z.abs(), self.sign, self.z)


def paired(a: Tensor, b: Tensor, overlap: int = 1) -> Paired:
    """a - b of sequences (B,) that are independent of each other, or of windows of which `overlap` share a step.

    So many windows are then counted as one, which errs on the side of caution.

    Raises:
        ValueError: for fewer than two.
    """
    if len(a) < 2:
        raise ValueError(f"a paired comparison needs at least two sequences: {len(a)}")
    difference = a - b
    untied = (difference != 0).sum().clamp(min=1)
    sign = difference.sign().sum() / (untied * overlap).sqrt()
    return Paired(difference.mean(), difference.std() * (overlap / len(difference)) ** 0.5, sign)
