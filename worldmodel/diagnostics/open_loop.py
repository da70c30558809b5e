"""Open-loop forecasts: a model imagines future steps with the recorded actions, from a state inferred before them."""

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
    """The forecast of one emission for B windows and K imagined steps, from S samples of the latent path.

    k = 1 is one step ahead.
    """

    mean: Tensor  # (B, K, W): the mean over the samples of the emission's mean, or of its median for some outputs
    samples: Tensor  # (S, B, K, W): samples of the emission, including its noise
    log_prob: Tensor  # (B, K): log 1/S sum_s p(x_k | s_k^s) in nats, Rao-Blackwellized: the noise is not sampled
    value: Tensor  # (B, K, W): the recorded values


@torch.no_grad()
def open_loop(model: WorldModel, batch: Batch, context: int, samples: int = 64) -> dict[str, Forecast]:
    """Infer a state from the first `context` steps of each window, and imagine the rest with the recorded actions.

    The state is sampled from `observe` of the context only. A smoother therefore does not see later steps either.
    Windows in which an episode begins after the context are left out.

    Args:
        model: the model. batch: the windows (B, T).
        context: the number of steps that the model sees.
        samples: the number of samples of the latent path.
    Returns:
        A forecast of the reward and of every observation key that is not an image.
    Raises:
        ValueError: if the context is empty or as long as the window, no window is left, or the model cannot imagine.
    """
    length = batch.reward.shape[1]
    if not 1 <= context < length:
        raise ValueError(f"context must be at least 1 and below the {length} steps of a window, but it is {context}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, but it is {samples}")
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
    """Return the states of the context (B, context, ...), and the features (B, K, F) of the K steps after it.

    The later steps are imagined with the recorded actions, from the last state of the context. Both parts form one
    path.

    Args:
        model: the model. batch: the windows (B, T).
        context: the number of steps that the model sees.
        embedding: (B, context, E), the embedding of the context if it has been computed already.
    """
    states = model.observe(crop(batch, 0, context), embedding=embedding).states
    return states, unroll(model, last(states), batch.prev_action[:, context:])[1]


def last(states: State) -> State:
    """Return the last state of each window: (B, T, ...) -> (B, ...)."""
    return type(states)(*(field[:, -1] for field in states))


def scores(forecast: Forecast) -> Scores:
    """Return the errors of a forecast by step and entry."""
    error = root_mean_square(forecast.value - forecast.mean)
    return Scores(error, crps(forecast.samples, forecast.value).mean(0), -forecast.log_prob.mean(0))
