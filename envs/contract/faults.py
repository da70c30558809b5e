"""What is wrong with what an environment returned, said so that its author can find it."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.envs.contract.infos import said
from worldmodel.specs import OBSERVATION, ObservationSpec, ObservationSpecs, keyed

Faults = dict[int, tuple[str, str]]
"""{environment: (observation key, problem)}"""

REWARD = "the reward"  # stands for an observation key in a fault

FAULT = "worldmodel/fault"
"""The key of `info` under which a replaced environment says what went wrong: a tuple of texts, see `envs.Restart`."""

LONGEST = 500  # characters of what an exception says

NUMBERS = "biuf"  # the kinds of dtypes that hold them

LARGEST = float(np.finfo(np.float32).max)  # rewards are recorded in single precision


class EnvironmentFault(ValueError):
    """An environment failed: an error or no answer, a value that is not finite, a wrong shape, a missing key."""


def described(error: Exception) -> str:
    """What went wrong in an environment, and where, in one line: an `EnvironmentFault` says so itself."""
    if isinstance(error, EnvironmentFault):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(it cannot say what)"
    return f"{type(error).__name__}: {text[:LONGEST]}{where}"


def reported(infos: Any, count: int) -> list[tuple[str, ...]]:
    """What went wrong in each environment of a vector, as its infos say; see `envs.infos.said`."""
    return [texts or () for texts in said(infos, FAULT, count)]


def named(observation: Any) -> Mapping[str, Any]:
    """An observation as a dictionary: itself, or under the key of a plain observation."""
    return observation if isinstance(observation, Mapping) else {OBSERVATION: observation}


def as_array(value: Any) -> np.ndarray:
    """A value as NumPy takes it; what it does not take, as lists of different lengths, as an object."""
    try:
        return np.asarray(value)
    except Exception:  # of NumPy, or of the value's own `__array__`
        return np.asarray(type(value).__name__, object)


def one_number(value: Any) -> float | None:
    """The number that a value is, or that an array of any shape holds alone; None where it is none."""
    if isinstance(value, bool | float):  # most are
        return float(value)
    array = as_array(value)
    return float(array.ravel()[0]) if array.size == 1 and array.dtype.kind in NUMBERS else None


def numbers(values: Any, count: int) -> np.ndarray | None:
    """One number of each of `count` environments (count,): each of an array (count, 1, ...) is one, too."""
    array = as_array(values)
    sound = array.shape[:1] == (count,) and array.size == count and array.dtype.kind in NUMBERS
    return array.reshape(count) if sound else None


def structure_fault(specs: ObservationSpecs, observation: Any, lead: tuple[int, ...] = ()) -> tuple[str, str] | None:
    """The first (key, problem) in the keys, dtypes and shapes of an observation with leading dimensions `lead`."""
    values = keyed(specs, observation)
    for extra in values.keys() - specs.keys():
        return extra, "is not in the observation space"
    for key, spec in specs.items():
        if key not in values:
            return key, "is missing"
        array = as_array(values[key])
        if array.dtype.kind not in NUMBERS:
            return key, f"has dtype {array.dtype}, not a number"
        if array.shape != (*lead, *spec.shape):
            return key, f"has shape {array.shape[len(lead) :]}, its space says {spec.shape}"
        if (problem := _cast_fault(array, spec)) is not None:
            return key, problem
    return None


def _cast_fault(array: np.ndarray, spec: ObservationSpec) -> str | None:
    """What of an array the whole numbers would lose that it is recorded as."""
    return lost(array, spec.dtype) if spec.classes or spec.image else None


def lost(array: np.ndarray, dtype: np.dtype) -> str | None:
    """The first number of an array that is another one as whole numbers of `dtype`, and so would be lost."""
    if array.dtype == dtype or dtype.kind not in "biu" or np.can_cast(array.dtype, dtype, "safe"):
        return None
    with np.errstate(invalid="ignore"):
        changed = array.astype(dtype) != array
    return f"holds {array[changed].ravel()[0]}, which is no number of {dtype}" if changed.any() else None


def reward_fault(reward: Any) -> str | None:
    """What is wrong with the reward of one environment: it is a finite number, or an array that holds one."""
    number = one_number(reward)
    if number is None:
        array = as_array(reward)
        return f"has shape {array.shape} and dtype {array.dtype}, not a number"
    return None if abs(number) <= LARGEST else "is not finite"


def end_fault(terminated: Any, truncated: Any) -> str | None:
    """What is wrong with the flags that end an episode: each is true or false, or a number, or an array of one."""
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        number = one_number(flag)
        if number is None:
            array = as_array(flag)
            return f"'{name}' has shape {array.shape} and dtype {array.dtype}, not true or false"
        if number != number:
            return f"'{name}' is not a number, and so neither true nor false"
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
