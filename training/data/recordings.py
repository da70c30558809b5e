"""Read sequences from the recordings of this package."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from worldmodel.digits import Range
from worldmodel.envs.contract.spaces import CHANNELS, SMALLEST_IMAGE
from worldmodel.specs import STATE, ObservationSpec, observed
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.config.names import nearest
from worldmodel.training.data.dataset import Dataset, recorded

SCALAR_ARRAYS = {"stored", "reward", "is_first", "is_last", "is_terminal"}  # one number per row
RECORDING_ARRAYS = SCALAR_ARRAYS | {"prev_action"}  # in every recording
OBS_PREFIX = "obs/"  # begins the names of the arrays that hold observations
DTYPE_NAMES = {"f": "real numbers", "i": "whole numbers", "u": "whole numbers from 0 up", "b": "true and false"}


def read_recording(file: Path, arrays: dict[str, np.ndarray], source: DataConfig) -> Dataset:
    """Build a dataset from a recording, which `worldmodel collect` and `SequenceReplay.save` write.

    A recording has one stream per environment, which is cut at every reset. A reset without a following step is left
    out. Arrays with pixels (H, W, C) in every row are images. The number of classes of a discrete observation is the
    number that occurs in the recording.
    """
    check_recording(file, arrays)
    held = [name.removeprefix(OBS_PREFIX) for name in arrays if name.startswith(OBS_PREFIX)]
    keys = chosen_keys(str(file), held, source)
    control = arrays["prev_action"]
    check_controls(str(file), control.shape[-1], source)
    specs = {key: _spec(file, key, arrays[OBS_PREFIX + key], arrays["stored"]) for key in keys}
    sequences, names = [], []
    for stream, stored in enumerate(arrays["stored"]):
        first = arrays["is_first"][stream, :stored]
        for start, stop in pairwise([0, *(np.flatnonzero(first[1:]) + 1), stored]):
            if stop - start < 2:
                continue
            rows = stream, slice(start, stop)
            obs = {key: specs[key].encode(arrays[OBS_PREFIX + key][rows]) for key in keys}
            sequences.append(recorded(obs, control[rows], arrays["reward"][rows], arrays["is_terminal"][rows]))
            names.append(f"{file}, stream {stream + 1}, rows {start + 1}-{stop}")
    if not sequences:
        raise ValueError(f"{file}: this recording has no sequence of two or more steps.")
    return Dataset.of(specs, sequences, names, from_env=True)


def check_recording(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Refuse arrays that do not fit each other or have values that are not finite.

    Raises:
        ValueError: if there is such an array. The message names the file, the array, the row and the column.
    """
    if missing := sorted(RECORDING_ARRAYS - set(arrays)):
        raise ValueError(f"{file}: this recording lacks {', '.join(missing)}. Record it again.")
    stored, shape = arrays["stored"], arrays["reward"].shape
    if stored.dtype.kind not in "iu" or stored.ndim != 1 or stored.min(initial=0) < 0:
        raise ValueError(
            f"{file}: 'stored' has the shape {stored.shape} and the type {stored.dtype}. It must hold the number of "
            "rows of each stream."
        )
    for name, array in arrays.items():
        if name == "stored":
            continue
        kinds = _kinds(name)
        if array.dtype.kind not in kinds:
            wanted = " or ".join(DTYPE_NAMES[kind] for kind in kinds)
            raise ValueError(f"{file}: '{name}' has the type {array.dtype}. It must hold {wanted}.")
        if name.startswith(OBS_PREFIX) and array.ndim > 3 and not _pictures(name, array):
            raise ValueError(
                f"{file}: '{name}' has the shape {array.shape} and the type {array.dtype}. Images must have the shape "
                "(num_envs, steps, H, W, C) and the type uint8, with 1, 3 or 4 channels."
            )
        fits = len(shape) == 2 and array.shape[:2] == shape
        fits = fits and (_pictures(name, array) or array.ndim == (2 if name in SCALAR_ARRAYS else 3))
        fits = fits and (name == "prev_action" or 0 not in array.shape[2:])  # there may be no actions
        if not fits or stored.shape != shape[:1] or stored.max(initial=0) > shape[-1]:
            raise ValueError(f"{file}: '{name}' has the shape {array.shape}, which does not fit 'reward' {shape}.")
        for stream, count in enumerate(stored):
            where, rows = f"{file}, stream {stream + 1}", array[stream, :count]
            if array.dtype.kind == "f":
                check_finite(where, name, rows)
            elif array.dtype.kind in "iu" and rows.min(initial=0) < 0:
                raise ValueError(f"{where}, '{name}': {rows.min()} is negative. Discrete values must be at least 0.")


def _pictures(name: str, array: np.ndarray) -> bool:
    """Return whether an array holds images, (num_envs, L, H, W, C) of pixels."""
    return name.startswith(OBS_PREFIX) and array.dtype == np.uint8 and array.ndim == 5 and array.shape[-1] in CHANNELS


def _kinds(name: str) -> str:
    """Return the dtype kinds that an array with this name may have."""
    if name.startswith(OBS_PREFIX):
        return "fiu"
    return "b" if name.startswith("is_") else "f"


def chosen_keys(where: str, held: list[str], source: DataConfig) -> list[str]:
    """Return the observation keys that the config names, by default all keys that are visible to a model."""
    if not source.observations:
        return list(observed(dict.fromkeys(held)))
    named = [STATE + name if STATE + name in held and name not in held else name for name in source.observations]
    for name in named:
        if name not in held:
            raise ValueError(f"{where}: there is no observation '{name}': {nearest(name, held)}.")
    return named


def check_controls(where: str, width: int, source: DataConfig) -> None:
    """Refuse a config whose controls differ from the recorded actions, `width` numbers with the name `prev_action`."""
    if source.controls and not width:
        raise ValueError(f"{where}: there are no actions, but data.controls names {', '.join(source.controls)}.")
    if source.controls == [] and width:
        raise ValueError(
            f"{where}: there are actions, but data.controls is empty. Leave data.controls out to use the actions."
        )
    if source.controls not in (None, [], ["prev_action"]):
        raise ValueError(
            f"{where}: the only control of a recording is 'prev_action'. Leave data.controls out to use it."
        )


def _spec(file: Path, key: str, values: np.ndarray, stored: np.ndarray) -> ObservationSpec:
    if values.dtype.kind == "f":
        width = math.prod(values.shape[2:])
        kept = Range.of(values[stream, :count].reshape(count, width) for stream, count in enumerate(stored))
        return ObservationSpec(values.shape[2:], offset=kept.offset)
    if values.ndim == 5:
        return ObservationSpec(values.shape[2:], image=True)
    if values.dtype == np.uint8 and values.shape[-1] >= SMALLEST_IMAGE**2:
        raise ValueError(
            f"{file}: '{key}' holds {values.shape[-1]} pixels per row, but not the width and height of the images, "
            "because an earlier version recorded it. Record it again."
        )
    seen = np.concatenate([values[stream, :count] for stream, count in enumerate(stored)])
    classes = np.maximum(seen.max(0) + 1, 2)
    return ObservationSpec(values.shape[2:], tuple(classes.tolist()), (0,) * len(classes))


def check_finite(where: str, name: str, rows: np.ndarray) -> None:
    """Refuse rows with values that are not finite as float32, the type of all training data.

    Raises:
        ValueError: if there is one. The message names `where`, the array `name`, the row and the column.
    """
    with np.errstate(over="ignore"):
        wrong = np.argwhere(~np.isfinite(rows.astype(np.float32)))
    if len(wrong):
        place = wrong[0]
        column = f", column {place[1] + 1}" if rows.ndim > 1 else ""
        raise ValueError(f"{where}, '{name}', row {place[0] + 1}{column}: {rows[tuple(place)]} is not a finite number.")
