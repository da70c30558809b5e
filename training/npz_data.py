"""Sequences from an .npz archive of arrays chosen by name, or of our own making."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from training.data_config import DataConfig
from training.dataset import Dataset, recorded
from training.names import nearest
from training.recordings import OBS, OWN, check_finite, read_recording
from worldmodel.spaces import ObservationSpec

LENGTHS = "lengths"  # the array of an archive that says how long each of its sequences is


def read_npz(file: Path, source: DataConfig) -> Dataset:
    """Sequences of a recording, see :func:`read_recording`, or of arrays by name, see :func:`named_arrays`.

    Raises:
        ValueError: naming file, array, row and column, for what is missing, not finite or of another shape.
    """
    with _readable(file):
        archive = np.load(file, allow_pickle=False)
        held = list(archive.files)
    ours = "stored" in held and any(name.startswith(OBS) for name in held)
    if ours and (missing := sorted(OWN - set(held))):
        raise ValueError(f"{file}: a recording without {', '.join(missing)}: record it again")
    wanted = held if ours else _wanted(file, held, source)
    with archive, _readable(file):
        arrays = {name: archive[name] for name in wanted}
    return read_recording(file, arrays, source) if ours else named_arrays(file, arrays, source)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (BadZipFile, zlib.error, EOFError, OSError, ValueError, AttributeError) as error:  # the last: a single array
        raise ValueError(f"{file} cannot be read as an .npz archive: {error}") from error


def _wanted(file: Path, held: list[str], source: DataConfig) -> list[str]:
    if not source.observations:
        raise ValueError(f"{file}: data.observations names no array. {nearest('', held)}")
    named = [*source.observations, *(source.controls or [])]
    for name in named:
        if name not in held:
            raise ValueError(f"{file}: there is no array '{name}': {nearest(name, held)}")
    return list(dict.fromkeys([*named, *([LENGTHS] if LENGTHS in held else [])]))


def named_arrays(file: Path, arrays: dict[str, np.ndarray], source: DataConfig) -> Dataset:
    """Arrays (N, L, width), (L, width) for one sequence, or (sum of lengths, width) with an array `lengths` (N,).

    With `lengths`, (N, L, width) is padded. Each observation array is a key of its own; one of booleans is binary.
    """
    lengths = arrays.get(LENGTHS)
    keys, controls = source.observations or [], source.controls or []
    columns = {name: _sequences(file, name, arrays[name], lengths) for name in [*keys, *controls]}
    count = len(columns[keys[0]])
    for name, column in columns.items():
        if [len(each) for each in column] != [len(each) for each in columns[keys[0]]]:
            shapes = f"{arrays[name].shape} does not fit '{keys[0]}' {arrays[keys[0]].shape}"
            raise ValueError(f"{file}: '{name}' {shapes}: (N, L, width) or (L, width), with a width of 1 for a scalar")
    specs = {key: _named_spec(columns[key][0]) for key in keys}
    sequences, names = [], [f"{file}, sequence {index + 1}" for index in range(count)]
    for index in range(count):
        obs = {key: columns[key][index].astype(specs[key].dtype) for key in keys}
        length = len(obs[keys[0]])
        given = [columns[name][index].astype(np.float32) for name in controls]
        control = np.concatenate([np.zeros((length, 0), np.float32), *given], 1)
        sequences.append(recorded(obs, np.roll(control, source.delay, 0)))
    return Dataset.of(specs, sequences, names)


def _named_spec(values: np.ndarray) -> ObservationSpec:
    width = values.shape[-1]
    return ObservationSpec((width,), (2,) * width, (0,) * width) if values.dtype == bool else ObservationSpec((width,))


def _sequences(file: Path, name: str, array: np.ndarray, lengths: np.ndarray | None) -> list[np.ndarray]:
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{file}: '{name}' is {array.shape} of {array.dtype}, not numbers (N, L, width) or (L, width)")
    whole = list(array) if array.ndim == 3 else [array]
    sequences = whole if lengths is None else _cut(file, name, array, lengths)
    for index, sequence in enumerate(sequences):
        check_finite(f"{file}, sequence {index + 1}", name, sequence)
    return sequences


def _cut(file: Path, name: str, array: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    whole = lengths.ndim == 1 and lengths.dtype.kind in "iu" and len(lengths) and lengths.min() > 0
    padded = array.ndim == 3
    if whole and padded and len(lengths) == len(array) and lengths.max() <= array.shape[1]:
        return [rows[:length] for rows, length in zip(array, lengths, strict=True)]
    if whole and not padded and lengths.sum() == len(array):
        return np.split(array, np.cumsum(lengths)[:-1])
    raise ValueError(
        f"{file}: 'lengths' {lengths.shape} of sum {lengths.sum()} does not divide '{name}' {array.shape} into "
        "sequences: whole numbers from 1 up, whose sum is the number of rows"
    )
