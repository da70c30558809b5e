"""Our own recordings, as sequences."""

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

OWN = {"stored", "prev_action", "reward", "is_first", "is_last", "is_terminal"}  # arrays of every recording
SCALARS = OWN - {"prev_action"}  # of them those that hold one number a row; observations and controls hold vectors
OBS = "obs/"
KINDS = {"f": "real numbers", "i": "whole numbers", "u": "whole numbers from 0 up", "b": "true and false"}


def read_recording(file: Path, arrays: dict[str, np.ndarray], source: DataConfig) -> Dataset:
    """What `worldmodel collect` and `SequenceReplay.save` wrote: one stream per environment, cut at every reset.

    A reset that nothing followed is no sequence. Images are what has pixels (H, W, C) in every row; the number of
    classes of a discrete observation is taken from the recording.
    """
    check_recording(file, arrays)
    keys = chosen_keys(str(file), [name.removeprefix(OBS) for name in arrays if name.startswith(OBS)], source)
    control = arrays["prev_action"]
    check_controls(str(file), control.shape[-1], source)
    specs = {key: _spec(file, key, arrays[OBS + key], arrays["stored"]) for key in keys}
    sequences, names = [], []
    for stream, stored in enumerate(arrays["stored"]):
        first = arrays["is_first"][stream, :stored]
        for start, stop in pairwise([0, *(np.flatnonzero(first[1:]) + 1), stored]):
            if stop - start < 2:
                continue
            rows = stream, slice(start, stop)
            obs = {key: specs[key].encode(arrays[OBS + key][rows]) for key in keys}
            sequences.append(recorded(obs, control[rows], arrays["reward"][rows], arrays["is_terminal"][rows]))
            names.append(f"{file}, stream {stream + 1}, rows {start + 1}-{stop}")
    if not sequences:
        raise ValueError(f"{file}: holds no sequence of two steps or more")
    return Dataset.of(specs, sequences, names, from_env=True)


def check_recording(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Refuse arrays that do not fit each other, or are not finite.

    Raises:
        ValueError: naming file, array, row and column.
    """
    if missing := sorted(OWN - set(arrays)):
        raise ValueError(f"{file}: a recording without {', '.join(missing)}: record it again")
    stored, shape = arrays["stored"], arrays["reward"].shape
    if stored.dtype.kind not in "iu" or stored.ndim != 1 or stored.min(initial=0) < 0:
        raise ValueError(f"{file}: 'stored' is {stored.shape} of {stored.dtype}, not a row count per stream")
    for name, array in arrays.items():
        if name == "stored":
            continue
        kinds = _kinds(name)
        if array.dtype.kind not in kinds:
            raise ValueError(f"{file}: '{name}' is of {array.dtype}, not {' or '.join(KINDS[kind] for kind in kinds)}")
        if name.startswith(OBS) and array.ndim > 3 and not _pictures(name, array):
            raise ValueError(
                f"{file}: '{name}' is {array.shape} of {array.dtype}: pictures are (num_envs, steps, H, W, C) of "
                "uint8, with 1, 3 or 4 channels"
            )
        fits = len(shape) == 2 and array.shape[:2] == shape
        fits = fits and (_pictures(name, array) or array.ndim == (2 if name in SCALARS else 3))
        fits = fits and (name == "prev_action" or 0 not in array.shape[2:])  # nothing may be controlled
        if not fits or stored.shape != shape[:1] or stored.max(initial=0) > shape[-1]:
            raise ValueError(f"{file}: '{name}' is {array.shape}, which does not fit 'reward' {shape}")
        for stream, count in enumerate(stored):
            where, rows = f"{file}, stream {stream + 1}", array[stream, :count]
            if array.dtype.kind == "f":
                check_finite(where, name, rows)
            elif array.dtype.kind in "iu" and rows.min(initial=0) < 0:
                raise ValueError(f"{where}, '{name}': {rows.min()} is below 0, where what is discrete begins")


def _pictures(name: str, array: np.ndarray) -> bool:
    """Whether an array is (num_envs, L, H, W, C) of pixels."""
    return name.startswith(OBS) and array.dtype == np.uint8 and array.ndim == 5 and array.shape[-1] in CHANNELS


def _kinds(name: str) -> str:
    """The kinds of dtypes that an array of this name may have."""
    if name.startswith(OBS):
        return "fiu"
    return "b" if name.startswith("is_") else "f"


def chosen_keys(where: str, held: list[str], source: DataConfig) -> list[str]:
    """The observation keys that the config names, or all that a model may see."""
    if not source.observations:
        return list(observed(dict.fromkeys(held)))
    named = [STATE + name if STATE + name in held and name not in held else name for name in source.observations]
    for name in named:
        if name not in held:
            raise ValueError(f"{where}: there is no observation '{name}': {nearest(name, held)}")
    return named


def check_controls(where: str, width: int, source: DataConfig) -> None:
    """Refuse a config that wants other controls than the recorded actions, `width` numbers called `prev_action`."""
    if source.controls and not width:
        raise ValueError(f"{where}: holds no actions, data.controls wants {', '.join(source.controls)}")
    if source.controls == [] and width:
        raise ValueError(f"{where}: holds actions, data.controls names none: leave data.controls out to use them")
    if source.controls not in (None, [], ["prev_action"]):
        raise ValueError(f"{where}: a recording has one control, 'prev_action': leave data.controls out to use it")


def _spec(file: Path, key: str, values: np.ndarray, stored: np.ndarray) -> ObservationSpec:
    if values.dtype.kind == "f":
        width = math.prod(values.shape[2:])
        kept = Range.of(values[stream, :count].reshape(count, width) for stream, count in enumerate(stored))
        return ObservationSpec(values.shape[2:], offset=kept.offset)
    if values.ndim == 5:
        return ObservationSpec(values.shape[2:], image=True)
    if values.dtype == np.uint8 and values.shape[-1] >= SMALLEST_IMAGE**2:
        raise ValueError(
            f"{file}: '{key}' holds {values.shape[-1]} pixels a row and not how wide and high a picture is, which "
            "earlier versions left out: record it again"
        )
    seen = np.concatenate([values[stream, :count] for stream, count in enumerate(stored)])
    classes = np.maximum(seen.max(0) + 1, 2)
    return ObservationSpec(values.shape[2:], tuple(classes.tolist()), (0,) * len(classes))


def check_finite(where: str, name: str, rows: np.ndarray) -> None:
    """Finite also as float32, in which everything is learned."""
    with np.errstate(over="ignore"):
        wrong = np.argwhere(~np.isfinite(rows.astype(np.float32)))
    if len(wrong):
        place = wrong[0]
        column = f", column {place[1] + 1}" if rows.ndim > 1 else ""
        raise ValueError(f"{where}, '{name}', row {place[0] + 1}{column}: {rows[tuple(place)]} is not a finite number")
