"""Episodes that are there as arrays, such as a log of somebody else's, as rows of a replay."""

from typing import Any

import numpy as np

from worldmodel.replay.replay import SequenceReplay
from worldmodel.specs import ActionSpec, ObservationSpecs, encode_observation, keyed
from worldmodel.types import Arrival


def add_episode(
    replay: SequenceReplay, observations: Any, actions: Any, rewards: Any, terminated: bool = False, env: int = 0
) -> None:
    """Append an episode of T steps, as an environment would have given it.

        add_episode(replay, observations, actions, rewards, terminated=True)

    Args:
        observations: (T + 1, *shape), or {key: (T + 1, *shape)}: that of the reset, and one after every action.
        actions: (T, *shape), which the environment was given.
        rewards: (T,), or (T, 1).
        terminated: whether the episode came to its end, rather than to a time limit or the end of a recording.
        env: the stream to append to; a window goes on from one episode of a stream to the next, across a reset.
    Raises:
        ValueError: for another number of rows, another shape, a class that there is not, or what is not finite; then
            nothing is appended.
    """
    rows = arrivals(replay.obs_specs, replay.action_spec, observations, actions, rewards, terminated)
    for at in range(len(rows.reward)):
        one = {key: values[at : at + 1] for key, values in rows.obs.items()}
        replay.add(Arrival(one, *(column[at : at + 1] for column in rows[1:])), np.array([env]))


def arrivals(
    obs_specs: ObservationSpecs,
    action_spec: ActionSpec,
    observations: Any,
    actions: Any,
    rewards: Any,
    terminated: bool = False,
) -> Arrival:
    """The T + 1 rows of an episode, one after the other; see :func:`add_episode`."""
    rewards, actions = np.asarray(rewards, np.float32), np.asarray(actions)
    if rewards.ndim > 1 and rewards.shape == (len(rewards), *(1,) * (rewards.ndim - 1)):
        rewards = rewards.reshape(len(rewards))  # an array that holds one number is that number
    if rewards.ndim != 1 or not len(rewards):
        raise ValueError(f"rewards are those of T steps, (T,), and not of shape {rewards.shape}")
    steps = len(rewards)
    named = keyed(obs_specs, observations)
    if missing := [key for key in obs_specs if key not in named]:
        raise ValueError(f"no observations {missing} among {list(named)}")
    _check_shape("actions", actions, (steps, *action_spec.shape))
    for key, spec in obs_specs.items():
        _check_shape(f"'{key}'", np.asarray(named[key]), (steps + 1, *spec.shape))
    obs = encode_observation(obs_specs, named)
    for key, spec in obs_specs.items():
        if not (valid := spec.valid(obs[key])).all():
            why = "is outside its classes" if spec.classes else "is not finite"
            raise ValueError(f"'{key}' {why} in row {int(np.flatnonzero(~valid)[0])}")
    control = action_spec.encode(actions)
    for name, values in (("action", control), ("reward", rewards[:, None])):
        if not (finite := np.isfinite(values).all(-1)).all():
            raise ValueError(f"the {name} of step {int(np.flatnonzero(~finite)[0])} is not finite")
    at = np.arange(steps + 1)
    return Arrival(
        obs,
        np.concatenate([np.zeros_like(control[:1]), control]),
        np.concatenate([np.zeros_like(rewards[:1]), rewards]),
        at == 0,
        at == steps,
        (at == steps) & terminated,
    )


def _check_shape(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} of {shape[0]} rows have the shape {shape}, and not {values.shape}")
