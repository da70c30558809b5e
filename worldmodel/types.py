"""What crosses the borders between rooms: flat tuples of arrays, and the glossary of their shapes.

====== ==============================================================================
letter meaning
====== ==============================================================================
B, T   sequences in a batch, steps in a sequence (batch first, time second)
N, H   environments or imagined trajectories, imagined steps (the horizon)
A      width of a control vector u: action dimensions, or the sum of one-hot widths
Z, P   latent size, number of parameters of a latent distribution
F, E   feature (what heads and behaviours read), embedding (what the posterior reads)
====== ==============================================================================

A row is a *time step*: the observation x_t together with the action u_{t-1} that led to it. A reset is a
time step, too, with a null action and no reward. This is the only alignment used anywhere in the project, and
:class:`worldmodel.envs.recording.recorder.RecordTrajectories` is the only place that makes it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

State = Any
"""A member's latent state: a NamedTuple of tensors whose leading dimensions are (B,) or (B, T)."""


def restart(state: State, start: State, is_first: Tensor) -> State:
    """Replace the rows of `state` where `is_first` (B,) by those of `start` (derivation Eq. 34)."""

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(is_first.reshape(-1, *(1,) * (old.dim() - 1)), new, old)

    return type(state)(*(chosen(new, old) for new, old in zip(start, state, strict=True)))


def pack(state: State) -> Tensor:
    """A state, each field (B, T, ...), as one tensor (B, T, D)."""
    return torch.cat([field.flatten(2) for field in state], -1)


def unpack(packed: Tensor, like: State) -> State:
    """(B, D) back to a state of the shapes of `like`, each field (B, ...)."""
    sizes = [field[0].numel() for field in like]
    return type(like)(*(part.view_as(field) for part, field in zip(packed.split(sizes, -1), like, strict=True)))


class TimeStep(NamedTuple):
    """n simultaneous time steps, one per environment, as NumPy arrays."""

    obs: dict[str, np.ndarray]  # {key: (n, width)} float32, or (n, groups) int64 where discrete
    prev_action: np.ndarray  # (n, A) float32: the control u_{t-1} that led here; zero where is_first
    reward: np.ndarray  # (n,) float32: received on the way here; zero where is_first
    is_first: np.ndarray  # (n,) bool: the observation of a reset
    is_last: np.ndarray  # (n,) bool: the episode ends here, by termination or truncation
    is_terminal: np.ndarray  # (n,) bool: no return can follow; never set by a time limit


class Batch(NamedTuple):
    """B windows of T consecutive time steps, as tensors on the model's device."""

    obs: dict[str, Tensor]  # {key: (B, T, width)}
    prev_action: Tensor  # (B, T, A)
    reward: Tensor  # (B, T)
    is_first: Tensor  # (B, T) bool: also set where a window crosses a seam of the replay
    is_last: Tensor  # (B, T) bool
    is_terminal: Tensor  # (B, T) bool
    mask: Tensor  # (B, T) float: 1 for a recorded step, 0 for padding, which is finite and starts with is_first


def join(batches: Sequence[Batch], dim: int) -> Batch:
    """Batches side by side: sequences (dim 0), or one after the other in time (dim 1)."""
    obs = {key: torch.cat([batch.obs[key] for batch in batches], dim) for key in batches[0].obs}
    return Batch(obs, *(torch.cat(leaves, dim) for leaves in zip(*(batch[1:] for batch in batches), strict=True)))


class Inference(NamedTuple):
    """The posterior over a window, and what the ELBO needs of it."""

    states: State  # posterior states s_1..s_T, each field (B, T, ...)
    prior: Tensor  # (B, T, P) parameters of p(z_t | .)
    posterior: Tensor  # (B, T, P) parameters of q(z_t | .)
    sample: Tensor  # (B, T, Z): z_t, drawn from the posterior


class Elbo(NamedTuple):
    """The sequential ELBO, in nats, summed over dimensions; never reweighted, never averaged."""

    total: Tensor  # (B, T): sum of log_likelihood minus kl
    log_likelihood: dict[str, Tensor]  # {head: (B, T)}: E_q log p(x_t | z_t), one entry per emission
    kl: Tensor  # (B, T): KL(q(z_t | .) || p(z_t | z_{t-1}, u_{t-1}))


class Prediction(NamedTuple):
    """Means of every emission of a latent state."""

    obs: dict[str, Tensor]  # {key: (..., width)}; probabilities where discrete: of 1 where binary, else of each class
    reward: Tensor  # (...,)
    cont: Tensor  # (...,) probability that the episode goes on after this state, times the model's `discount`


class Rollout(NamedTuple):
    """An imagined trajectory: H + 1 states, and the H controls, rewards and continuations between them."""

    features: Tensor  # (N, H + 1, F) of s_0..s_H
    actions: Tensor  # (N, H, A): actions[:, h] leads from s_h to s_{h+1}
    policy: Tensor  # (N, H, P): parameters of the policy that drew actions[:, h] at s_h
    reward: Tensor  # (N, H): reward[:, h] is received on arriving at s_{h+1}
    cont: Tensor  # (N, H): cont[:, h] is the probability that the return goes on after s_{h+1}, times `discount`
