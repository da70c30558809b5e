"""Read sequences from an .npz archive: a recording, or arrays that are chosen by name."""

from pathlib import Path

import numpy as np

from worldmodel.digits import Range, less
from worldmodel.replay.archive import array_names, read_arrays
from worldmodel.specs import ObservationSpec
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.config.names import nearest
from worldmodel.training.data.dataset import Dataset, recorded
from worldmodel.training.data.recordings import OBS_PREFIX, check_finite, read_recording

LENGTHS_ARRAY = "lengths"  # the array with the length of each sequence


def read_npz(file: Path, source: DataConfig) -> Dataset:
    """Read a recording, see :func:`read_recording`, or arrays by name, see :func:`named_arrays`.

    Raises:
        ValueError: if an array is missing, has another shape, or has a value that is not finite. The message names the
            file, the array, the row and the column.
    """
    held = array_names(file)
    ours = "stored" in held and any(name.startswith(OBS_PREFIX) for name in held)
    arrays = read_arrays(file, held if ours else _wanted(file, held, source))
    return read_recording(file, arrays, source) if ours else named_arrays(file, arrays, source)


def _wanted(file: Path, held: list[str], source: DataConfig) -> list[str]:
    if not source.observations:
        raise ValueError(f"{file}: data.observations names no array. {nearest('', held)}.")
    named = [*source.observations, *(source.controls or [])]
    for name in named:
        if name not in held:
            raise ValueError(f"{file}: there is no array '{name}': {nearest(name, held)}.")
    return list(dict.fromkeys([*named, *([LENGTHS_ARRAY] if LENGTHS_ARRAY in held else [])]))


def named_arrays(file: Path, arrays: dict[str, np.ndarray], source: DataConfig) -> Dataset:
    """Build a dataset from named arrays.

    An array has the shape (N, L, width), or (L, width) for one sequence. With an array `lengths` (N,), it has the shape
    (sum of lengths, width), or (N, L, width) with padding. Each observation array becomes a key. A boolean array
    becomes a binary observation.
    """
    lengths = arrays.get(LENGTHS_ARRAY)
    keys, controls = source.observations or [], source.controls or []
    columns = {name: _sequences(file, name, arrays[name], lengths) for name in [*keys, *controls]}
    count = len(columns[keys[0]])
    for name, column in columns.items():
        if [len(each) for each in column] != [len(each) for each in columns[keys[0]]]:
            shapes = f"{arrays[name].shape} does not fit '{keys[0]}' {arrays[keys[0]].shape}"
            raise ValueError(
                f"{file}: '{name}' {shapes}. The shape must be (N, L, width) or (L, width), with width 1 for a scalar."
            )
    specs = {key: _named_spec(columns[key]) for key in keys}
    offset = (
        Range.of(np.concatenate([columns[name][i] for name in controls], 1) for i in range(count)).offset
        if controls
        else ()
    )
    sequences, names = [], [f"{file}, sequence {index + 1}" for index in range(count)]
    for index in range(count):
        obs = {key: specs[key].encode(columns[key][index]) for key in keys}
        length = len(obs[keys[0]])
        control = less(np.concatenate([np.zeros((length, 0)), *(columns[name][index] for name in controls)], 1), offset)
        sequences.append(recorded(obs, np.roll(control, source.delay, 0)))
    return Dataset.of(specs, sequences, names, control_offset=offset)


def _named_spec(sequences: list[np.ndarray]) -> ObservationSpec:
    """Return the spec of the arrays (L, width) of one observation key."""
    width = sequences[0].shape[-1]
    if sequences[0].dtype == bool:
        return ObservationSpec((width,), (2,) * width, (0,) * width)
    return ObservationSpec((width,), offset=Range.of(sequences).offset)


def _sequences(file: Path, name: str, array: np.ndarray, lengths: np.ndarray | None) -> list[np.ndarray]:
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(
            f"{file}: '{name}' has the shape {array.shape} and the type {array.dtype}. It must be an array of numbers "
            "(N, L, width) or (L, width)."
        )
    whole = list(array) if array.ndim == 3 else [array]
    sequences = whole if lengths is None else _cut(file, name, array, lengths)
    for index, sequence in enumerate(sequences):
        check_finite(f"{file}, sequence {index + 1}", name, sequence)
    return sequences


def _cut(file: Path, name: str, array: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    whole = lengths.ndim == 1 and lengths.dtype.kind in "iu" and len(lengths) and lengths.min() > 0
    whole = whole and lengths.max() <= array.size  # then the sum cannot overflow
    padded = array.ndim == 3
    if whole and padded and len(lengths) == len(array) and lengths.max() <= array.shape[1]:
        return [rows[:length] for rows, length in zip(array, lengths, strict=True)]
    if whole and not padded and lengths.sum() == len(array):
        return np.split(array, np.cumsum(lengths)[:-1])
    total = f"with the sum {lengths.sum()}" if lengths.dtype.kind in "iu" else f"of type {lengths.dtype}"
    raise ValueError(
        f"{file}: 'lengths' {lengths.shape} {total} does not divide '{name}' {array.shape} into sequences. It must "
        "hold integers of at least 1 whose sum is the number of rows."
    )
