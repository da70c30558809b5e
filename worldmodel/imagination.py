"""Imagined rollouts, with no observation: of given controls, or where policy and prior take turns."""

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.dynamics.scan import scan
from worldmodel.model import LatentModel
from worldmodel.types import Batch, Rollout, State

Policy = Callable[[Tensor], tuple[Tensor, Tensor]]
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


def rollout(model: LatentModel, start: State, policy: Policy, horizon: int, through: bool = True) -> Rollout:
    """Imagine `horizon` steps from filtered states (derivation Eq. 36).

    Args:
        start: s_0, each field (N, ...). A smoothed state would leak the future that it was inferred from.
        policy: Called with the features of s_0..s_{H-1}. Gradients flow through what it returns.
        through: Whether gradients also flow through the model, from one step to the next and to its predictions.
    Returns:
        H + 1 features and H actions, rewards and continuations; see :class:`Rollout` for their indices.
    Raises:
        ValueError: If `horizon` is below 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1: {horizon}")
    through = through and torch.is_grad_enabled()
    state, features = start, [model.feature(start)]
    actions: list[Tensor] = []
    params: list[Tensor] = []
    for _ in range(horizon):
        action, parameters = policy(features[-1])
        with torch.set_grad_enabled(through):
            state = model.imagine(state, action)
            features.append(model.feature(state))
        actions.append(action)
        params.append(parameters)
    by_time = torch.stack(features)  # (H + 1, N, F): a slice of time is then contiguous, and needs no copy
    with torch.set_grad_enabled(through):
        outcome = model.predict(by_time[1:], decode=False)
    return Rollout(
        by_time.transpose(0, 1), torch.stack(actions, 1), torch.stack(params, 1), outcome.reward.t(), outcome.cont.t()
    )
