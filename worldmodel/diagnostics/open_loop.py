"""What a model foresees: imagined with the recorded controls, from a state inferred of the steps before."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.diagnostics.emissions import emissions, without_images
from worldmodel.diagnostics.scores import Scores, crps, root_mean_square
from worldmodel.diagnostics.windows import crop, unbroken
from worldmodel.imagination import unroll
from worldmodel.learning.bounds import repeated
from worldmodel.model import WorldModel
from worldmodel.types import Batch, State


class Forecast(NamedTuple):
    """One emission over K imagined steps of B windows, from S samples of the latent path; k = 1 is one step ahead."""

    mean: Tensor  # (B, K, W): of the emission's means; the median where the output says so
    samples: Tensor  # (S, B, K, W) of the emission itself, its noise included
    log_prob: Tensor  # (B, K) log 1/S sum_s p(x_k | s_k^s) in nats: Rao-Blackwellised, no noise is sampled for it
    value: Tensor  # (B, K, W): what was recorded


@torch.no_grad()
def open_loop(model: WorldModel, batch: Batch, context: int, samples: int = 64) -> dict[str, Forecast]:
    """Infer a state from the first `context` steps of each window and imagine the rest with the recorded controls.

    The state is sampled from `observe` of the context alone: for members that filter that is filtering, and a smoother
    sees nothing later than the context either. Windows in which an episode begins after the context are left out.

    Returns:
        A forecast of every observation key but those of images, and of the reward.
    Raises:
        ValueError: if nothing is left to see or to imagine, no window is whole, or the model cannot imagine.
    """
    length = batch.reward.shape[1]
    if not 1 <= context < length:
        raise ValueError(f"context must be at least 1 and leave something of the window of {length}: {context}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1: {samples}")
    batch = unbroken(batch, context)
    embedding = model.encoder(crop(batch, 0, context).obs).repeat_interleave(samples, 0)
    many = repeated(without_images(model, batch), samples)
    _, features = foretold(model, many, context, embedding)
    ahead, many_ahead = (emissions(model, crop(each, context)) for each in (batch, many))

    def by_sample(values: Tensor) -> Tensor:
        return values.unflatten(0, (-1, samples)).transpose(0, 1)

    forecasts = {}
    for name, emission in ahead.items():
        head = emission.head
        logs = by_sample(head.log_prob(features, many_ahead[name].value))
        draws = by_sample(head.output.sample(head(features)))
        log_prob = logs.logsumexp(0) - math.log(samples)
        forecasts[name] = Forecast(by_sample(head.mean(features)).mean(0), draws, log_prob, emission.numbers)
    return forecasts


def foretold(model: WorldModel, batch: Batch, context: int, embedding: Tensor | None = None) -> tuple[State, Tensor]:
    """The states inferred of the context, (B, context, ...), and features (B, K, F) of the K steps after it.

    These are imagined with the recorded controls, from the last of those states: both together are one path.

    Args:
        embedding: (B, context, E) of the context, where that is known already.
    """
    states = model.observe(crop(batch, 0, context), embedding=embedding).states
    return states, unroll(model, last(states), batch.prev_action[:, context:])[1]


def last(states: State) -> State:
    """(B, T, ...) -> (B, ...)."""
    return type(states)(*(field[:, -1] for field in states))


def scores(forecast: Forecast) -> Scores:
    """Errors of a forecast by step and entry."""
    error = root_mean_square(forecast.value - forecast.mean)
    return Scores(error, crps(forecast.samples, forecast.value).mean(0), -forecast.log_prob.mean(0))
