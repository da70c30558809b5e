"""Imagined rollouts, with no observation: of given controls, or where policy and prior take turns."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from worldmodel.dynamics.scan import in_parts, joined, scan
from worldmodel.kernels.coded import Coded, Features, in_time, of_parts, parts
from worldmodel.model import LatentModel, WorldModel
from worldmodel.types import Batch, Rollout, State

Policy = Callable[[Any], tuple[Tensor, Tensor]]
"""Features (N, F) -> controls (N, A), and the parameters (N, P) of the distribution they were drawn from."""


def unroll(model: LatentModel, start: State, controls: Tensor, sample: bool = True) -> tuple[State, Tensor]:
    """Imagine what given controls lead to: s_0, (N, H, A) -> s_H, and the features of s_1..s_H (N, H, F).

    Without `sample`, each state is the mode of its prior given the one before.
    """

    def step(state: State, inputs: tuple[Tensor, ...]) -> tuple[State, tuple[Tensor, ...]]:
        (control,) = inputs
        state = model.imagine(state, control, sample)
        return state, (model.feature(state),)

    last, (features,) = scan(step, start, (controls,))
    return last, features


def starts(states: State, batch: Batch, count: int = 0) -> tuple[State, Tensor]:
    """Replayed states to imagine from, and whether anything can follow them: (N, ...), (N,).

    Args:
        states: filtered ones of `batch`, each field (B, T, ...).
        count: how many of them, drawn without repeats; 0: all, in their order.
    """
    alive = (batch.mask * ~batch.is_terminal).flatten()
    fields = [field.detach().flatten(0, 1) for field in states]
    if count:
        chosen = torch.randperm(len(alive), device=alive.device)[:count]
        alive, fields = alive[chosen], [field[chosen] for field in fields]
    return type(states)(*fields), alive


def rollout(
    model: LatentModel, start: State, policy: Policy, horizon: int, through: bool = True, coded: bool = False
) -> Rollout:
    """Imagine `horizon` steps from filtered states (derivation Eq. 36).

    Args:
        start: s_0, each field (N, ...). A smoothed state would leak the future it was inferred from.
        policy: called with the features of s_0..s_{H-1}; gradients flow through what it returns.
        through: whether they also flow through the model, from one step to the next and to what it predicts.
        coded: whether the policy takes :class:`Coded` features, which it is given where they are known to be such.
    Returns:
        H + 1 features and H controls, rewards and continuations; see :class:`Rollout` for their indices.
    Raises:
        ValueError: if there is no step to imagine.
    """
    through = through and torch.is_grad_enabled()
    look: Callable[[State], Features] = model.feature
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1: {horizon}")
    first = look(start)
    if coded and not through and not torch.compiler.is_compiling() and isinstance(model, WorldModel):
        first = model.coded(start, sampled=False)
        look = partial(model.coded, sampled=True) if isinstance(first, Coded) else look

    def step(carry: tuple[State, Features], _: tuple[Tensor, ...]) -> tuple[tuple[State, Features], tuple[Tensor, ...]]:
        state, feature = carry
        action, params = policy(feature)
        with torch.set_grad_enabled(through):
            if isinstance(feature, Coded):
                state = cast(WorldModel, model).imagine(state, action, ones=feature.ones)
            else:
                state = model.imagine(state, action)
            feature = look(state)
        return (state, feature), (action, params, *parts(feature))

    _, outputs = in_parts(step, (start, first), (), horizon)
    actions, params, *found = zip(*outputs, strict=True)
    begun = [one.unsqueeze(1) for one in parts(first)]
    every = [time_first([one, *more]) for one, more in zip(begun, found, strict=True)]
    known = of_parts(every, first)
    with torch.set_grad_enabled(through):
        # Coded for a WorldModel alone, which takes them: any other model is given the features that it makes itself.
        outcome = model.predict(cast(Tensor, in_time(known, 1)), decode=False)
    return Rollout(known, joined(actions), joined(params), outcome.reward.t(), outcome.cont.t())


def time_first(parts: Sequence[Tensor]) -> Tensor:
    """Parts of imagined sequences, each (N, n, ...) -> (N, H, ...), in memory step by step.

    Whoever reads all but the first or the last of them then needs no copy.
    """
    return torch.cat([part.transpose(0, 1) for part in parts]).transpose(0, 1)
