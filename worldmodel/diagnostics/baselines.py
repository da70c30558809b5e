"""Forecasts that need no world model: what a learned one must beat, on the same windows.

Each predicts a mean; its standard deviation at step k is that of its own errors k steps ahead on training windows.
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
    """Everything emitted as one vector of D numbers; see :func:`worldmodel.diagnostics.emissions.emissions`."""

    values: Tensor  # (B, T, D)
    control: Tensor  # (B, T, A): what led to each row
    is_first: Tensor  # (B, T) bool
    mask: Tensor  # (B, T)


def series(model: WorldModel, batch: Batch) -> Series:
    """The emissions of a batch, side by side in the order of `emissions`."""
    values = torch.cat([emission.numbers for emission in emissions(model, batch).values()], -1)
    return Series(values, batch.prev_action * ~batch.is_first.unsqueeze(-1), batch.is_first, batch.mask)


def moments(model: WorldModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) of everything emitted, over the rows in which it was recorded.

    The deviation of a constant is 0, which rounding in its mean would hide.
    """
    found = [each.numbers[each.recorded] for each in emissions(model, batch).values()]
    spread = [torch.where((x == x[:1]).all(0), 0.0, x.std(0, correction=0)) for x in found]
    return torch.cat([x.mean(0) for x in found]), torch.cat(spread)


def by_name(model: WorldModel, batch: Batch, joint: Tensor) -> dict[str, Tensor]:
    """(..., D) -> {emission: (..., W)}, the inverse of the concatenation in :func:`series`."""
    found = emissions(model, batch)
    widths = [emission.numbers.shape[-1] for emission in found.values()]
    return dict(zip(found, joint.split(widths, -1), strict=True))


Predictor = Callable[[Series, int], Tensor]
"""Windows and the length of their context -> (B, T - context, D), from the context and the later controls alone."""


class Baseline(NamedTuple):
    predict: Predictor
    std: Tensor  # (K, D) of the errors k steps ahead
    exact: Tensor  # (K, D) bool: where there were next to none, so that a Gaussian of them would be sure of everything


def repeat_last(windows: Series, context: int) -> Tensor:
    """Nothing changes any more."""
    ahead = windows.values.shape[1] - context
    return windows.values[:, context - 1 : context].expand(-1, ahead, -1)


@dataclass(frozen=True)
class TrainMean:
    """Always the mean of the training data."""

    mean: Tensor  # (D,)

    def __call__(self, windows: Series, context: int) -> Tensor:
        return self.mean.expand_as(windows.values[:, context:])


@dataclass(frozen=True)
class ARX:
    """A linear autoregression with controls, x_t = c + sum_{i=1..p} A_i x_{t-i} + B_i u_{t-i} + noise.

    Simulated open loop: its own predictions are its later inputs. They are kept within the range of the training data
    and as much again on either side, so that an unstable fit cannot explode and make others look good.
    """

    weight: Tensor  # (p (D + A) + 1, D): A_1', .., A_p', B_1', .., B_p', c'
    low: Tensor  # (D,) below which no prediction goes
    high: Tensor  # (D,)
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
    """The last `order` values (B, p, D) and `order` - 1 controls (B, p - 1, A) of the context, newest first.

    What lies before the episode, or before the window, is its first value again and a null control.
    """
    time = torch.arange(context, device=windows.values.device)
    begun = torch.where(windows.is_first[:, :context], time, 0).amax(1, keepdim=True)
    lag = context - 1 - torch.arange(order, device=time.device)
    rows = torch.arange(len(begun), device=time.device).unsqueeze(1)
    values = windows.values[rows, torch.maximum(lag, begun)]
    known = (lag[:-1] > begun).unsqueeze(-1)
    return values, windows.control[rows, lag[:-1].clamp(min=0)] * known


def fit_arx(train: Series, order: int = 3, ridge: float = 1e-4) -> ARX:
    """Least squares over every row whose `order` predecessors are of its episode.

    Args:
        ridge: added to the mean squares of the standardised regressors.
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
    """(n, I), (n, O) -> (I + 1, O), the last row the intercept, which is not penalised. Solved in double precision.

        weight = (X^T X + n ridge 1)^-1 X^T Y = X^T (X X^T + n ridge 1)^-1 Y

    Of the two systems the smaller one is solved: one-hot codes of many actions have more columns than there are rows.
    Where a column does not vary, as that of an action that was never taken, its weight is 0.
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
    """Repeat the last value, the training mean, and a linear autoregression with controls.

    Args:
        train: recorded sequences (B, T, ...), one stream of any length included.
        windows: windows of the same data, as long as those to be predicted; for the standard deviations.
        context: steps of a window that are seen.
        order: of the autoregression, if the context is as long.
    """
    data, sample = series(model, train), series(model, unbroken(windows, context))
    mean, std = moments(model, train)
    predictors: dict[str, Predictor] = {
        "repeat last": repeat_last,
        "train mean": TrainMean(mean),
        "linear ARX": fit_arx(data, min(order, context)),
    }
    floor, ahead = torch.where(std > 0, 1e-3 * std, 1.0), sample.values[:, context:]  # of a constant any serves
    found = {}
    for name, predict in predictors.items():
        error = root_mean_square(ahead - predict(sample, context))
        found[name] = Baseline(predict, torch.maximum(error, floor), (error <= floor) | (std == 0))
    return found
