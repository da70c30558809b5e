"""All stored rows of a replay in one `.npz` file, to keep, to share, or to fit a model to."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import ZipFile, ZipInfo

import numpy as np

from worldmodel.replay.storage import COPY_BYTES, Storage, row_bytes
from worldmodel.validation import check_memory

NPY = ".npy"  # the ending of the name of an array in an archive
STORED = "stored"  # the name of the array with the number of rows of each environment
MOST_ENVS = 2**20  # the largest number of environments that is read


def write_archive(file: Path, storage: Storage) -> None:
    """Write every stored row, oldest first. A few rows are written at a time, because all may exceed the memory.

    The archive holds each column as (num_envs, L, ...), and images as (num_envs, L, H, W, C). L is the number of rows
    of the longest stream, and shorter streams are padded with zeros. The array `stored` holds the number of rows of
    each environment. An older file is replaced in one step.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.stem}.partial.npz")
    try:
        with partial.open("wb") as content:
            with ZipFile(content, "w") as archive:
                _write_members(archive, storage)
            content.flush()
            os.fsync(content.fileno())
        partial.replace(file)
    except BaseException:  # for example of a full disk: remove the incomplete file
        partial.unlink(missing_ok=True)
        raise


def _write_members(archive: ZipFile, storage: Storage) -> None:
    with archive.open(f"{STORED}.npy", "w") as member:
        np.lib.format.write_array(member, storage.stored, allow_pickle=False)
    for name in storage.columns:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            _write_column(member, storage, name)


def _write_column(member: IO[bytes], storage: Storage, name: str) -> None:
    column, stored = storage.columns[name], storage.stored
    longest = int(stored.max(initial=0))
    shape = (storage.num_envs, longest, *column.shown)
    header = {"descr": np.lib.format.dtype_to_descr(column.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    for env, count in enumerate(stored):
        for _, rows in storage.chunks(name, env):
            member.write(rows.tobytes())
        for _ in range(longest - count):
            member.write(bytes(column.nbytes))


def all_rows(storage: Storage) -> dict[str, np.ndarray]:
    """Return the arrays that :func:`write_archive` writes."""
    stored = storage.stored
    arrays = {STORED: stored}
    for name, column in storage.columns.items():
        arrays[name] = np.zeros((len(stored), int(stored.max(initial=0)), *column.shown), column.dtype)
        for env in range(len(stored)):
            at = 0
            for _, rows in storage.chunks(name, env):
                arrays[name][env, at : at + len(rows)] = rows.reshape(-1, *column.shown)
                at += len(rows)
    return arrays


@contextmanager
def readable(file: Path) -> Iterator[ZipFile]:
    """Open an `.npz` archive.

    Raises:
        ValueError: if the file is missing, damaged or no archive, or if any error occurs inside the `with` block. The
            message names the file.
    """
    if not file.is_file():
        raise ValueError(f"there is no file at {file}")
    try:
        with ZipFile(file) as archive:
            yield archive
    except Exception as error:  # zipfile, zlib and numpy raise many types of errors for a damaged file
        raise ValueError(f"{file} cannot be read as an .npz archive: {error or type(error).__name__}") from error


def read_arrays(file: Path, wanted: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` archive by name.

    Code in the file is never executed. The size in the header of each array is compared with the size of its data and
    with the memory of the machine before any array is read.

    Args:
        file: the archive.
        wanted: the names to return, as far as the archive has them; by default all.
    Raises:
        ValueError: if the file is damaged, is no archive, holds Python objects, or does not fit into the memory. The
            message names the file.
    """
    with readable(file) as archive:
        chosen = {name: info for name, info in _members(archive).items() if wanted is None or name in wanted}
        for info in chosen.values():
            _header(archive, info)
        check_memory(sum(info.file_size for info in chosen.values()), "its arrays", "give a shorter recording")
        return {name: _read_array(archive, info) for name, info in chosen.items()}


def array_names(file: Path) -> list[str]:
    """Return the names of the arrays of an `.npz` archive.

    Raises:
        ValueError: if the file is damaged or no archive. The message names the file.
    """
    with readable(file) as archive:
        return [name.removesuffix(NPY) for name in archive.namelist()]


def _members(archive: ZipFile) -> dict[str, ZipInfo]:
    found = {info.filename.removesuffix(NPY): info for info in archive.infolist()}
    if len(found) < len(archive.infolist()):
        raise ValueError("two of its arrays have the same name")
    return found


class Described(NamedTuple):
    """The header of an array."""

    shape: tuple[int, ...]
    fortran: bool  # whether the numbers are in column-major order
    dtype: np.dtype


def _header(archive: ZipFile, info: ZipInfo) -> Described:
    """Return the header of an array, and check that the size of its data is as the header says."""
    with archive.open(info) as member:
        described = _read_header(member)
        shape, _, dtype = described
        if dtype.hasobject:
            raise ValueError(f"'{info.filename}' holds Python objects, which are not read. Store numbers instead.")
        promised, there = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if promised != there:
        raise ValueError(
            f"the header of '{info.filename}' says that it has the shape {shape} and the type {dtype}. "
            f"That is {promised} bytes, but the file holds {there} bytes."
        )
    return described


def _read_header(member: IO[bytes]) -> Described:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return Described(*read(member))


def _read_array(archive: ZipFile, info: ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        member.read()  # the checksum is compared at the end of the member
    return array


def read_archive(file: Path, storage: Storage) -> None:
    """Read a file that :func:`write_archive` wrote into an empty storage. A smaller storage keeps the newest rows.

    A few rows are read at a time, so that the memory never holds them twice.

    Raises:
        ValueError: if the file is damaged, or holds other columns or another number of environments.
    """
    stored, found = _described(file)
    longest = _checked(file, storage, stored, found)
    kept = np.minimum(stored, storage.length)
    check_memory(int(kept.sum()) * row_bytes(storage.columns), f"the rows of {file}", "give a shorter recording")
    with readable(file) as archive:
        members = _members(archive)
        for name in storage.columns:
            with archive.open(members[name]) as member:
                _read_column(member, storage, name, stored, longest)
    storage.begun[:] = storage.written[:] = kept


def _described(file: Path) -> tuple[np.ndarray, dict[str, Described]]:
    """Return the number of rows of each environment, and the headers of the arrays by name."""
    with readable(file) as archive:
        members = _members(archive)
        found = {name: _header(archive, info) for name, info in members.items()}
        few = STORED in found and math.prod(found[STORED].shape) <= MOST_ENVS
        return _read_array(archive, members[STORED]) if few else np.empty(0), found


def _checked(file: Path, storage: Storage, stored: np.ndarray, found: dict[str, Described]) -> int:
    """Check that an archive fits a storage, and return the number of rows of its longest stream."""
    columns, num_envs = storage.columns, storage.num_envs
    if set(found) != {STORED, *columns}:
        raise ValueError(
            f"{file} holds the arrays {sorted(found)}, but this replay needs {sorted(columns)}. "
            "Give a recording of the same environment."
        )
    longest = found[next(iter(columns))].shape[1:2]
    for name, column in columns.items():
        shape, fortran, dtype = found[name]
        shapes = [(num_envs, *longest, *row) for row in (column.shown, column.shape)]  # old versions wrote flat images
        if dtype != column.dtype or shape not in shapes or not longest or fortran:
            needed = ", ".join(map(str, (num_envs, "steps", *column.shown)))
            raise ValueError(
                f"{file}: '{name}' has the shape {shape} and the type {dtype} instead of ({needed}) and "
                f"{column.dtype}. Give a recording of the same environment, made with the same section env of the "
                "config."
            )
    if stored.shape != (num_envs,) or stored.dtype.kind not in "iu":
        raise ValueError(
            f"{file}: '{STORED}' has the shape {stored.shape} and the type {stored.dtype}, but it must be one whole "
            f"number for each of the {num_envs} environments"
        )
    if stored.min(initial=0) < 0 or stored.max(initial=0) > longest[0]:
        raise ValueError(f"{file}: '{STORED}' counts {stored} rows, but the arrays have {longest[0]} rows")
    return longest[0]


def _read_column(member: IO[bytes], storage: Storage, name: str, stored: np.ndarray, longest: int) -> None:
    """Put the newest rows of each stream into its ring, beginning at the first slot."""
    column = storage.columns[name]
    step = max(COPY_BYTES // max(column.nbytes, 1), 1)
    _read_header(member)
    for env, count in enumerate(stored.tolist()):
        first = max(count - storage.length, 0)
        for start in range(0, longest, step):
            stop = min(start + step, longest)
            content = np.frombuffer(_exactly(member, (stop - start) * column.nbytes), column.dtype)
            rows = content.reshape(stop - start, *column.shape)[max(first - start, 0) : max(count - start, 0)]
            slot = np.arange(len(rows)) + max(start - first, 0)
            storage.put(name, np.full_like(slot, env), slot, rows)
    member.read()  # the checksum is compared at the end of the member


def _exactly(member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) < size:
        raise ValueError(f"{size - len(content)} bytes are missing at the end of a column")
    return content
