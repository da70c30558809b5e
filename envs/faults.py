"""What is wrong with what an environment returned, said so that its author can find it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from worldmodel.spaces import OBSERVATION, ObservationSpecs

Faults = dict[int, tuple[str, str]]
"""{environment: (observation key, problem)}"""


class EnvironmentFault(ValueError):
    """An environment broke its own contract: a value that is not finite, a wrong shape, a missing key."""


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


def value_faults(specs: ObservationSpecs, rows: Mapping[str, np.ndarray]) -> Faults:
    """The encoded rows {key: (n, width)} that are not finite or outside their classes."""
    faults: Faults = {}
    for key, values in rows.items():
        classes = specs[key].classes
        valid = (values >= 0) & (values < np.asarray(classes)) if classes else np.isfinite(values)
        if not valid.all():
            problem = "is outside its space" if classes else "is not finite"
            faults = {int(env): (key, problem) for env in np.flatnonzero(~valid.all(axis=1))} | faults
    return faults
