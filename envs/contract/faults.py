"""Check what an environment returns, and describe a fault so that the author of the environment can find it."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.envs.contract.infos import said
from worldmodel.specs import OBSERVATION, ObservationSpec, ObservationSpecs, keyed

Faults = dict[int, tuple[str, str]]
"""{environment: (observation key, problem)}"""

REWARD = "the reward"  # used in place of an observation key in a fault

FAULT = "worldmodel/fault"
"""The key of `info` with the failures of a replaced environment, a tuple of texts; see `envs.Restart`."""

LONGEST = 500  # characters of an exception's message

NUMBERS = "biuf"  # the kinds of dtypes that hold real numbers

LARGEST = float(np.finfo(np.float32).max)  # rewards are recorded in single precision


class EnvironmentFault(ValueError):
    """An environment failed: it raised an error, did not answer, or returned a wrong value, shape or key."""


def described(error: Exception) -> str:
    """Describe an error of an environment in one line: its type, its message, and the file and line.

    The message of an `EnvironmentFault` is returned unchanged.
    """
    if isinstance(error, EnvironmentFault):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message cannot be printed)"
    return f"{type(error).__name__}: {text[:LONGEST]}{where}"


def reported(infos: Any, count: int) -> list[tuple[str, ...]]:
    """Return the failures of each environment of a vector, read from its infos; see `envs.infos.said`."""
    return [texts or () for texts in said(infos, FAULT, count)]


def named(observation: Any) -> Mapping[str, Any]:
    """Return an observation as a dictionary. One that is not a dictionary is put under the key OBSERVATION."""
    return observation if isinstance(observation, Mapping) else {OBSERVATION: observation}


def as_array(value: Any) -> np.ndarray:
    """Return a value as an array. If NumPy cannot convert it, return an array that holds the name of its type."""
    try:
        return np.asarray(value)
    except Exception:  # raised by NumPy or by the value's `__array__`
        return np.asarray(type(value).__name__, object)


def one_number(value: Any) -> float | None:
    """Return a number, or the only entry of an array, as a float. Return None for any other value."""
    if isinstance(value, bool | float):  # the usual case
        return float(value)
    array = as_array(value)
    return float(array.ravel()[0]) if array.size == 1 and array.dtype.kind in NUMBERS else None


def numbers(values: Any, count: int) -> np.ndarray | None:
    """Return one number per environment, (count,), from an array (count,) or (count, 1, ...); None for other values."""
    array = as_array(values)
    sound = array.shape[:1] == (count,) and array.size == count and array.dtype.kind in NUMBERS
    return array.reshape(count) if sound else None


def structure_fault(specs: ObservationSpecs, observation: Any, lead: tuple[int, ...] = ()) -> tuple[str, str] | None:
    """Return the first (key, problem) in the keys, dtypes and shapes of an observation, or None.

    Args:
        lead: the leading dimensions of all arrays.
    """
    values = keyed(specs, observation)
    for extra in values.keys() - specs.keys():
        return extra, "is not in the observation space"
    for key, spec in specs.items():
        if key not in values:
            return key, "is missing"
        array = as_array(values[key])
        if array.dtype.kind not in NUMBERS:
            return key, f"has dtype {array.dtype}, which is not numeric"
        if array.shape != (*lead, *spec.shape):
            return key, f"has shape {array.shape[len(lead) :]}, but its space has shape {spec.shape}"
        if (problem := _cast_fault(array, spec)) is not None:
            return key, problem
    return None


def _cast_fault(array: np.ndarray, spec: ObservationSpec) -> str | None:
    """Describe the first number that would change when an array of integers or pixels is recorded."""
    return lost(array, spec.dtype) if spec.classes or spec.image else None


def lost(array: np.ndarray, dtype: np.dtype) -> str | None:
    """Describe the first number of an array that would change if it were converted to the integer `dtype`."""
    if array.dtype == dtype or dtype.kind not in "biu" or np.can_cast(array.dtype, dtype, "safe"):
        return None
    with np.errstate(invalid="ignore"):
        changed = array.astype(dtype) != array
    return f"holds {array[changed].ravel()[0]}, which cannot be stored as {dtype}" if changed.any() else None


def reward_fault(reward: Any) -> str | None:
    """Describe what is wrong with the reward of one environment. It must be a finite number, or an array of one."""
    number = one_number(reward)
    if number is None:
        array = as_array(reward)
        return f"has shape {array.shape} and dtype {array.dtype}, but must be a number"
    return None if abs(number) <= LARGEST else "is not finite"


def end_fault(terminated: Any, truncated: Any) -> str | None:
    """Describe what is wrong with the flags that end an episode. Each must be a bool, a number, or an array of one."""
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        number = one_number(flag)
        if number is None:
            array = as_array(flag)
            return f"'{name}' has shape {array.shape} and dtype {array.dtype}, but must be True or False"
        if number != number:
            return f"'{name}' is NaN, but must be True or False"
    return None


def info_fault(info: Any) -> str | None:
    """Describe what is wrong with the info of one environment. It must be a dictionary."""
    return None if isinstance(info, dict) else f"'info' is a {type(info).__name__}, but must be a dictionary"


def blamed(key: str, problem: str, env: int, step: int) -> EnvironmentFault:
    """Return the error that names the fault, the environment and the step."""
    what = REWARD if key is REWARD else f"observation '{key}'"
    return EnvironmentFault(f"{what} of environment {env} at step {step} {problem}")


def value_faults(specs: ObservationSpecs, rows: Mapping[str, np.ndarray]) -> Faults:
    """Return the faults of encoded rows {key: (n, width)} that are not finite or lie outside their classes."""
    faults: Faults = {}
    for key, values in rows.items():
        valid = specs[key].valid(values)
        if not valid.all():
            problem = "is outside its space" if specs[key].classes else "is not finite"
            faults = {int(env): (key, problem) for env in np.flatnonzero(~valid)} | faults
    return faults
