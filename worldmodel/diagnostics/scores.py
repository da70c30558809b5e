"""Scores of probabilistic forecasts: errors, likelihoods, CRPS and calibration.

A forecast consists of S samples (S, ...) of a value (...), or it is a Gaussian in closed form.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.networks.latents import LOG_2PI

LEVELS = (0.5, 0.8, 0.95)
"""The levels of the central intervals whose coverage is reported."""

BINS = 10
"""The number of bins of the histogram of the probability integral transform."""


def crps(samples: Tensor, value: Tensor) -> Tensor:
    """Return the continuous ranked probability score: (S, ...), (...) -> (...). Lower is better.

        CRPS(F, y) = E|X - y| - E|X - X'| / 2        (Gneiting and Raftery 2007, Eq. 21)

    It has the unit of the value. This is the fair estimator, which uses only pairs of different samples. Its
    expectation does not depend on S (Ferro 2014).

    Raises:
        ValueError: if there are fewer than two samples.
    """
    count = len(samples)
    if count < 2:
        raise ValueError(f"the CRPS needs at least two samples, but there are {count}")
    # sum_{i < j} |x_i - x_j|: in sorted order, x_i is the larger one in i - 1 pairs and the smaller one in S - i.
    rank = torch.arange(1 - count, count, 2, dtype=samples.dtype, device=samples.device)
    ordered = samples.sort(0).values
    spread = torch.tensordot(rank, ordered, dims=1) / (count * (count - 1))
    return (samples - value).abs().mean(0) - spread


def gaussian_crps(mean: Tensor, std: Tensor, value: Tensor) -> Tensor:
    """Return the CRPS of N(mean, std^2) in closed form (Gneiting and Raftery 2007, Eq. 22 with the sign of a loss)."""
    error = (value - mean) / std
    density = torch.exp(-0.5 * error.square()) / math.sqrt(2 * math.pi)
    return std * (error * torch.erf(error / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def gaussian_log_prob(mean: Tensor, std: Tensor, value: Tensor) -> Tensor:
    """Return log N(value; mean, std^2) in nats for each entry."""
    return -0.5 * ((value - mean) / std).square() - std.log() - 0.5 * LOG_2PI


def pit(samples: Tensor, value: Tensor) -> Tensor:
    """Return the probability integral transform, the rank of the value among the samples: (S, ...), (...) -> (...).

    It is (rank + U) / (S + 1) with a uniform U, and ties are broken at random. If the value and the samples have the
    same distribution, discrete or not, it is exactly uniform on [0, 1] for any S.
    """
    below = (samples < value).sum(0)
    ties = (samples == value).sum(0)
    position = below + torch.rand_like(value) * (ties + 1)
    return position / (len(samples) + 1)


class Calibration(NamedTuple):
    """Whether the uncertainty of a forecast is right. The comments say which values a calibrated forecast has.

    The value of `error_std` holds for many samples. For S Gaussian samples it is sqrt((1 + 1/S) (S - 1) / (S - 3)).
    """

    coverage: Tensor  # (levels, ...): share of the values in each central interval. Calibrated: the level
    error_mean: Tensor  # (...): mean of (value - mean) / standard deviation of the forecast. Calibrated: 0
    error_std: Tensor  # (...): standard deviation of the same. Calibrated: 1; a larger one means overconfidence
    counts: Tensor  # (BINS, ...): histogram of the PIT. Calibrated: flat


def inside(place: Tensor, level: float) -> Tensor:
    """Return whether values lie in their central interval, given their :func:`pit`."""
    return 2 * (place - 0.5).abs() < level


def calibration(samples: Tensor, value: Tensor, place: Tensor | None = None) -> Calibration:
    """Return the calibration of samples (S, B, ...) for values (B, ...), with statistics over B.

    Args:
        samples: the forecast. value: the recorded values.
        place: their :func:`pit`, if it has been computed before. It is random where there are ties.
    Raises:
        ValueError: if there are fewer than two samples.
    """
    if len(samples) < 2:
        raise ValueError(f"calibration needs at least two samples, but there are {len(samples)}")
    place = pit(samples, value) if place is None else place
    coverage = torch.stack([inside(place, level).to(value.dtype).mean(0) for level in LEVELS])
    known = torch.finfo(value.dtype)
    rounding = (known.eps * samples.abs().amax(0)).clamp(min=known.tiny)
    error = (value - samples.mean(0)) / torch.maximum(samples.std(0), rounding)
    bins = (place * BINS).long().clamp(max=BINS - 1)
    counts = torch.stack([(bins == i).sum(0) for i in range(BINS)])
    return Calibration(coverage, error.mean(0), error.std(0, correction=0), counts)


class Scores(NamedTuple):
    """Scores for each step k of the horizon (K,) and each entry (W,), as means over windows."""

    rmse: Tensor  # (K, W), error of the mean of the forecast, in the unit of the value
    crps: Tensor  # (K, W), in the unit of the value
    nll: Tensor  # (K,) nats of the whole observation, summed over entries


def skill(rmse: Tensor, baseline: Tensor) -> Tensor:
    """Return 1 - RMSE / RMSE of the baseline: 1 is perfect, 0 is as good as the baseline, negative is worse."""
    return 1 - rmse / baseline


def gaussian_scores(mean: Tensor, std: Tensor, value: Tensor) -> Scores:
    """Return the scores of independent Gaussians with mean (B, K, W) and standard deviation (K, W)."""
    nll = -gaussian_log_prob(mean, std, value).sum(-1).mean(0)
    return Scores(root_mean_square(value - mean), gaussian_crps(mean, std, value).mean(0), nll)


def root_mean_square(error: Tensor) -> Tensor:
    """Return the root mean square over the first dimension: (B, ...) -> (...)."""
    return error.square().mean(0).sqrt()


class Paired(NamedTuple):
    """A difference that was measured on the same sequences."""

    mean: Tensor
    error: Tensor  # the standard error of the mean
    sign: Tensor  # the sign test: wins minus losses, in standard deviations under equal chances

    @property
    def z(self) -> Tensor:
        """The mean in standard errors. It is 0 if there is no difference at all."""
        return (self.mean / self.error).nan_to_num(0.0)

    @property
    def clearest(self) -> Tensor:
        """`z` or `sign`, whichever is larger in absolute value. A few outliers can make `z` small."""
        return torch.where(self.sign.abs() > self.z.abs(), self.sign, self.z)


def paired(a: Tensor, b: Tensor, overlap: int = 1) -> Paired:
    """Return the paired difference a - b of sequences (B,).

    Args:
        a, b: one number for each sequence.
        overlap: 1 for independent sequences. For windows that overlap, the number of windows that share a step. These
            are counted as one, which makes the result more cautious.
    Raises:
        ValueError: if there are fewer than two sequences.
    """
    if len(a) < 2:
        raise ValueError(f"a paired comparison needs at least two sequences, but there is only {len(a)}")
    difference = a - b
    untied = (difference != 0).sum().clamp(min=1)
    sign = difference.sign().sum() / (untied * overlap).sqrt()
    return Paired(difference.mean(), difference.std() * (overlap / len(difference)) ** 0.5, sign)
