"""Forecasts that need no world model. A learned model should beat them on the same windows.

Each baseline predicts a mean. Its standard deviation k steps ahead is that of its own errors k steps ahead on training
windows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.diagnostics.emissions import emissions
from worldmodel.diagnostics.scores import root_mean_square
from worldmodel.diagnostics.windows import unbroken
from worldmodel.dynamics.scan import scan
from worldmodel.kernels.precision import doubled
from worldmodel.model import WorldModel
from worldmodel.networks.outputs import resolved
from worldmodel.types import Batch


class Series(NamedTuple):
    """All emissions as one vector of D numbers; see :func:`worldmodel.diagnostics.emissions.emissions`."""

    values: Tensor  # (B, T, D)
    control: Tensor  # (B, T, A): the action that led to each row
    is_first: Tensor  # (B, T) bool
    mask: Tensor  # (B, T)


def series(model: WorldModel, batch: Batch) -> Series:
    """Return the emissions of a batch, concatenated in the order of `emissions`."""
    values = torch.cat([emission.numbers for emission in emissions(model, batch).values()], -1)
    return Series(values, batch.prev_action * ~batch.is_first.unsqueeze(-1), batch.is_first, batch.mask)


def moments(model: WorldModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation (D,) of all emissions, over the rows in which they were recorded.

    The standard deviation of a constant is set to exactly 0. Rounding errors in its mean would give another number.
    """
    found = [each.numbers[each.recorded] for each in emissions(model, batch).values()]
    spread = [torch.where((x == x[:1]).all(0), 0.0, x.std(0, correction=0)) for x in found]
    return torch.cat([x.mean(0) for x in found]), torch.cat(spread)


def by_name(model: WorldModel, batch: Batch, joint: Tensor) -> dict[str, Tensor]:
    """Split a joint vector into emissions, (..., D) -> {emission: (..., W)}: the inverse of :func:`series`."""
    found = emissions(model, batch)
    widths = [emission.numbers.shape[-1] for emission in found.values()]
    return dict(zip(found, joint.split(widths, -1), strict=True))


Predictor = Callable[[Series, int], Tensor]
"""A function of windows and the length of their context that returns predictions (B, T - context, D).

It may use only the steps of the context and the later actions.
"""


class Baseline(NamedTuple):
    """A fitted baseline and its standard deviations."""

    predict: Predictor
    std: Tensor  # (K, D) of the errors k steps ahead
    exact: Tensor  # (K, D) bool: True if the errors were almost 0, so that a Gaussian would be far too certain


def repeat_last(windows: Series, context: int) -> Tensor:
    """Predict that nothing changes after the context."""
    ahead = windows.values.shape[1] - context
    return windows.values[:, context - 1 : context].expand(-1, ahead, -1)


@dataclass(frozen=True)
class TrainMean:
    """Predicts the mean of the training data."""

    mean: Tensor  # (D,)

    def __call__(self, windows: Series, context: int) -> Tensor:
        return self.mean.expand_as(windows.values[:, context:])


@dataclass(frozen=True)
class ARX:
    """A linear autoregression with actions u, x_t = c + sum_{i=1..p} A_i x_{t-i} + B_i u_{t-i} + noise.

    It is simulated open loop: its predictions are its later inputs. Predictions are clipped to the range of the
    training data, extended on both sides by the width of this range. Otherwise an unstable fit could diverge, and the
    model would look good in comparison.
    """

    weight: Tensor  # (p (D + A) + 1, D): A_1', .., A_p', B_1', .., B_p', c'
    low: Tensor  # (D,) lower limit of the predictions
    high: Tensor  # (D,) upper limit of the predictions
    order: int  # p

    def __call__(self, windows: Series, context: int) -> Tensor:
        values, control = history(windows, context, self.order)

        def step(carry: tuple[Tensor, Tensor], inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, Tensor], tuple]:
            values, control = carry
            control = torch.cat([inputs[0].unsqueeze(1), control], 1)
            lags = torch.cat([values.flatten(1), control.flatten(1), torch.ones_like(values[:, 0, :1])], 1)
            ahead = (lags @ self.weight).clamp(self.low, self.high)
            return (torch.cat([ahead.unsqueeze(1), values[:, :-1]], 1), control[:, :-1]), (ahead,)

        _, (predicted,) = scan(step, (values, control), (windows.control[:, context:],))
        return predicted


def history(windows: Series, context: int, order: int) -> tuple[Tensor, Tensor]:
    """Return the last `order` values (B, p, D) and `order` - 1 actions (B, p - 1, A) of the context, newest first.

    Before the beginning of the episode or the window, the first value is repeated and the action is zero.
    """
    time = torch.arange(context, device=windows.values.device)
    begun = torch.where(windows.is_first[:, :context], time, 0).amax(1, keepdim=True)
    lag = context - 1 - torch.arange(order, device=time.device)
    rows = torch.arange(len(begun), device=time.device).unsqueeze(1)
    values = windows.values[rows, torch.maximum(lag, begun)]
    known = (lag[:-1] > begun).unsqueeze(-1)
    return values, windows.control[rows, lag[:-1].clamp(min=0)] * known


def fit_arx(train: Series, order: int = 3, ridge: float = 1e-4) -> ARX:
    """Fit the autoregression by least squares to every row whose `order` predecessors belong to its episode.

    Args:
        train: the training data.
        order: p, the number of earlier steps.
        ridge: the penalty, added to the mean squares of the standardized regressors.
    Raises:
        ValueError: if there is no such row.
    """
    values, length = train.values, train.values.shape[1]
    if length <= order:
        raise ValueError(f"no episode is longer than the order {order} of the linear baseline")
    lags = [values[:, order - i : length - i] for i in range(1, order + 1)]
    lags += [train.control[:, order - i + 1 : length - i + 1] for i in range(1, order + 1)]
    begins = torch.stack([train.is_first[:, order - i + 1 : length - i + 1] for i in range(1, order + 1)]).any(0)
    recorded = torch.stack([train.mask[:, i : length - order + i] for i in range(order + 1)]).all(0)
    rows = recorded & ~begins
    if not rows.any():
        raise ValueError(f"no episode is longer than the order {order} of the linear baseline")
    weight = least_squares(torch.cat(lags, -1)[rows], values[:, order:][rows], ridge)
    seen = values[train.mask > 0]
    low, high = seen.amin(0), seen.amax(0)
    return ARX(weight, low - (high - low), high + (high - low), order)


def least_squares(inputs: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Return the weights of a ridge regression, (n, I), (n, O) -> (I + 1, O). The last row is the intercept.

        weight = (X^T X + n ridge 1)^-1 X^T Y = X^T (X X^T + n ridge 1)^-1 Y

    The smaller of the two systems is solved, in double precision: one-hot features of many actions can have more
    columns than there are rows. The intercept is not penalized. A column that does not vary, such as that of an action
    that was never taken, gets the weight 0.
    """
    vary = (inputs != inputs[:1]).any(0)
    x, y = doubled(inputs[:, vary]), doubled(targets)
    centre, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(resolved(scale, x.abs().amax(0)), scale, torch.ones_like(scale))
    x, about = (x - centre) / scale, y - y.mean(0)
    wide = x.shape[1] > len(x)
    gram = x @ x.mT if wide else x.mT @ x
    gram.diagonal().add_(ridge * len(x))
    solved = x.mT @ torch.linalg.solve(gram, about) if wide else torch.linalg.solve(gram, x.mT @ about)
    found = solved / scale.unsqueeze(1)
    weight = found.new_zeros(inputs.shape[1] + 1, y.shape[1])
    weight[:-1][vary.to(found.device)] = found
    weight[-1] = y.mean(0) - centre @ found
    return weight.to(targets)


def fit_baselines(model: WorldModel, train: Batch, windows: Batch, context: int, order: int = 3) -> dict[str, Baseline]:
    """Fit three baselines: repetition of the last value, the training mean, and a linear autoregression.

    Args:
        model: the model whose emissions are predicted.
        train: recorded sequences (B, T, ...). One stream of any length is enough.
        windows: windows of the same data, as long as those to be predicted. They give the standard deviations.
        context: the number of steps of a window that are seen.
        order: the order of the autoregression. A shorter context lowers it.
    """
    data, sample = series(model, train), series(model, unbroken(windows, context))
    mean, std = moments(model, train)
    predictors: dict[str, Predictor] = {
        "repeat last": repeat_last,
        "train mean": TrainMean(mean),
        "linear ARX": fit_arx(data, min(order, context)),
    }
    floor, ahead = torch.where(std > 0, 1e-3 * std, 1.0), sample.values[:, context:]  # 1.0 is arbitrary
    found = {}
    for name, predict in predictors.items():
        error = root_mean_square(ahead - predict(sample, context))
        found[name] = Baseline(predict, torch.maximum(error, floor), (error <= floor) | (std == 0))
    return found
