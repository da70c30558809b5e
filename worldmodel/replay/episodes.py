"""Add episodes that exist as arrays, such as a log from another program, to a replay."""

from typing import Any

import numpy as np

from worldmodel.replay.replay import SequenceReplay
from worldmodel.specs import ActionSpec, ObservationSpecs, encode_observation, keyed
from worldmodel.types import TimeStep


def add_episode(
    replay: SequenceReplay, observations: Any, actions: Any, rewards: Any, terminated: bool = False, env: int = 0
) -> None:
    """Append an episode of T actions to a replay, as if it had been recorded in an environment.

        add_episode(replay, observations, actions, rewards, terminated=True)

    Args:
        replay: the replay to extend.
        observations: (T + 1, *shape), or {key: (T + 1, *shape)}: the observation of the reset, and one after every
            action.
        actions: (T, *shape), in the units of the environment.
        rewards: (T,), or (T, 1).
        terminated: True if the episode ended by itself, False if a time limit or the end of the recording cut it.
        env: the environment whose stream is extended. Windows may reach from one episode of a stream into the next.
    Raises:
        ValueError: if a number of rows or a shape is wrong, a class does not exist, or a value is not finite. Nothing
            is appended then.
    """
    rows = time_steps(replay.obs_specs, replay.action_spec, observations, actions, rewards, terminated)
    for at in range(len(rows.reward)):
        one = {key: values[at : at + 1] for key, values in rows.obs.items()}
        replay.add(TimeStep(one, *(column[at : at + 1] for column in rows[1:])), np.array([env]))


def time_steps(
    obs_specs: ObservationSpecs,
    action_spec: ActionSpec,
    observations: Any,
    actions: Any,
    rewards: Any,
    terminated: bool = False,
) -> TimeStep:
    """Return the T + 1 rows of an episode; see :func:`add_episode` for the arguments."""
    rewards, actions = np.asarray(rewards, np.float32), np.asarray(actions)
    if rewards.ndim > 1 and rewards.shape == (len(rewards), *(1,) * (rewards.ndim - 1)):
        rewards = rewards.reshape(len(rewards))  # each reward is an array of one number
    if rewards.ndim != 1 or not len(rewards):
        raise ValueError(f"rewards have the shape {rewards.shape}, but they must have the shape (T,) with T at least 1")
    steps = len(rewards)
    named = keyed(obs_specs, observations)
    if missing := [key for key in obs_specs if key not in named]:
        raise ValueError(f"the observations {missing} are missing, there are only {list(named)}")
    _check_shape("actions", actions, (steps, *action_spec.shape))
    for key, spec in obs_specs.items():
        _check_shape(f"'{key}'", np.asarray(named[key]), (steps + 1, *spec.shape))
    obs = encode_observation(obs_specs, named)
    for key, spec in obs_specs.items():
        if not (valid := spec.valid(obs[key])).all():
            why = "is not one of its classes" if spec.classes else "is not finite"
            raise ValueError(f"observation '{key}' {why} in row {int(np.flatnonzero(~valid)[0])}")
    control = action_spec.encode(actions)
    for name, values in (("action", control), ("reward", rewards[:, None])):
        if not (finite := np.isfinite(values).all(-1)).all():
            raise ValueError(f"the {name} of step {int(np.flatnonzero(~finite)[0])} is not finite")
    at = np.arange(steps + 1)
    return TimeStep(
        obs,
        np.concatenate([np.zeros_like(control[:1]), control]),
        np.concatenate([np.zeros_like(rewards[:1]), rewards]),
        at == 0,
        at == steps,
        (at == steps) & terminated,
    )


def _check_shape(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"the shape of {name} must be {shape}, for {shape[0]} rows, but it is {values.shape}")
