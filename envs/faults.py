"""What is wrong with what an environment returned, said so that its author can find it."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.spaces import OBSERVATION, ObservationSpecs, encode_observation

Faults = dict[int, tuple[str, str]]
"""{environment: (observation key, problem)}"""

REWARD = "the reward"  # stands for an observation key in a fault

FAULT = "worldmodel/fault"
"""The key of `info` under which a replaced environment says what went wrong: a tuple of texts, see `envs.Restart`."""

LONGEST = 500  # characters of what an exception says

LARGEST = float(np.finfo(np.float32).max)  # rewards are recorded in single precision


class EnvironmentFault(ValueError):
    """An environment failed: an error or no answer, a value that is not finite, a wrong shape, a missing key."""


def described(error: Exception) -> str:
    """What went wrong in an environment, and where: an `EnvironmentFault` says so itself."""
    if isinstance(error, EnvironmentFault):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    try:
        text = str(error)
    except Exception:
        text = "(it cannot say what)"
    return f"{type(error).__name__}: {text[:LONGEST]}{where}"


def reported(infos: Mapping[str, Any], env: int) -> tuple[str, ...]:
    """What the `infos` of a vector environment say that went wrong in one of its environments."""
    return infos[FAULT][env] or () if FAULT in infos else ()


def named(observation: Any) -> Mapping[str, Any]:
    """An observation as a dictionary: itself, or under the key of a plain observation."""
    return observation if isinstance(observation, Mapping) else {OBSERVATION: observation}


def structure_fault(specs: ObservationSpecs, observation: Any, lead: tuple[int, ...] = ()) -> tuple[str, str] | None:
    """The first (key, problem) in the keys, dtypes and shapes of an observation with leading dimensions `lead`."""
    values = named(observation)
    for extra in values.keys() - specs.keys():
        return extra, "is not in the observation space"
    for key, spec in specs.items():
        if key not in values:
            return key, "is missing"
        array = np.asarray(values[key])
        if array.dtype.kind not in "biuf":
            return key, f"has dtype {array.dtype}, not a number"
        if array.shape != (*lead, *spec.shape):
            return key, f"has shape {array.shape[len(lead) :]}, its space says {spec.shape}"
    return None


def observation_fault(specs: ObservationSpecs, observation: Any) -> tuple[str, str] | None:
    """The first (key, problem) in the observation of one environment: its structure, then its values."""
    fault = structure_fault(specs, observation)
    if fault:
        return fault
    batched = {key: np.asarray(named(observation)[key])[None] for key in specs}
    return value_faults(specs, encode_observation(specs, batched)).get(0)


def reward_fault(reward: Any) -> str | None:
    """What is wrong with the reward of one environment: it is a finite number, or an array that holds one."""
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "biuf":
        return f"has shape {array.shape} and dtype {array.dtype}, not a number"
    return None if abs(float(array.ravel()[0])) <= LARGEST else "is not finite"


def end_fault(terminated: Any, truncated: Any) -> str | None:
    """What is wrong with the flags that end an episode: each is true or false, or a number."""
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        array = np.asarray(flag)
        if array.size != 1 or array.dtype.kind not in "biuf":
            return f"'{name}' has shape {array.shape} and dtype {array.dtype}, not true or false"
    return None


def info_fault(info: Any) -> str | None:
    """What is wrong with the additional information of one environment."""
    return None if isinstance(info, dict) else f"'info' is a {type(info).__name__}, not a dictionary"


def blamed(key: str, problem: str, env: int, step: int) -> EnvironmentFault:
    """The error that names what is wrong, and with which environment."""
    what = REWARD if key is REWARD else f"observation '{key}'"
    return EnvironmentFault(f"{what} of environment {env} {problem} at step {step}")


def value_faults(specs: ObservationSpecs, rows: Mapping[str, np.ndarray]) -> Faults:
    """The encoded rows {key: (n, width)} that are not finite or outside their classes."""
    faults: Faults = {}
    for key, values in rows.items():
        valid = specs[key].valid(values)
        if not valid.all():
            problem = "is outside its space" if specs[key].classes else "is not finite"
            faults = {int(env): (key, problem) for env in np.flatnonzero(~valid)} | faults
    return faults
