"""Every stored row of a replay as one `.npz` file, to keep, to hand on or to fit a model to."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import ZipFile, ZipInfo

import numpy as np

from worldmodel.replay.storage import CHUNK, Storage, row_bytes
from worldmodel.validation import check_memory

NPY = ".npy"  # after the name of an array in an archive
STORED = "stored"  # the array of an archive that says how many rows of each environment count
MOST_ENVS = 2**20  # environments that it may count the rows of


def write_archive(file: Path, storage: Storage) -> None:
    """Write every stored row, oldest first, a few at a time: they may be more than the memory holds.

    The archive holds each column as (num_envs, L, ...), images as (num_envs, L, H, W, C), zero where a stream has fewer
    than the L rows of the longest, and `stored`, the number of rows of each environment that count. It replaces an
    older file in one step.
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
    except BaseException:  # of a full disk: what there is of it is in the way
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
    """What :func:`write_archive` writes, as arrays in memory."""
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
    """An `.npz` archive, opened.

    Raises:
        ValueError: naming the file, if it is none or damaged, or whatever else goes wrong while it is read.
    """
    if not file.is_file():
        raise ValueError(f"no file at {file}")
    try:
        with ZipFile(file) as archive:
            yield archive
    except Exception as error:  # of zipfile, zlib and numpy, which have no error in common for a damaged file
        raise ValueError(f"{file} cannot be read as an .npz archive: {error or type(error).__name__}") from error


def read_arrays(file: Path, wanted: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` archive: those that are wanted and there, by default all.

    Nothing in the file is executed, and no more memory is asked for than the machine has: what an array says of its
    size is compared with what is there before any is read.

    Raises:
        ValueError: naming the file, if it is damaged, no archive, holds objects, or does not fit into the memory.
    """
    with readable(file) as archive:
        chosen = {name: info for name, info in _members(archive).items() if wanted is None or name in wanted}
        for info in chosen.values():
            _header(archive, info)
        check_memory(sum(info.file_size for info in chosen.values()), "its arrays", "give a shorter recording")
        return {name: _read_array(archive, info) for name, info in chosen.items()}


def array_names(file: Path) -> list[str]:
    """What the arrays of an `.npz` archive are called.

    Raises:
        ValueError: naming the file, if it is damaged or no archive.
    """
    with readable(file) as archive:
        return [name.removesuffix(NPY) for name in archive.namelist()]


def _members(archive: ZipFile) -> dict[str, ZipInfo]:
    found = {info.filename.removesuffix(NPY): info for info in archive.infolist()}
    if len(found) < len(archive.infolist()):
        raise ValueError("two of its arrays have the same name")
    return found


class Described(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    fortran: bool  # columns of it stand together, not rows
    dtype: np.dtype


def _header(archive: ZipFile, info: ZipInfo) -> Described:
    """Refuse an array whose header promises more, or less, than follows it."""
    with archive.open(info) as member:
        described = _read_header(member)
        shape, _, dtype = described
        if dtype.hasobject:
            raise ValueError(f"'{info.filename}' holds Python objects, which are not read: store numbers")
        promised, there = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if promised != there:
        raise ValueError(f"'{info.filename}' says it is {shape} of {dtype}, {promised} bytes, and {there} follow")
    return described


def _read_header(member: IO[bytes]) -> Described:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return Described(*read(member))


def _read_array(archive: ZipFile, info: ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        member.read()  # to the end, where the checksum is compared
    return array


def read_archive(file: Path, storage: Storage) -> None:
    """Let a storage that holds nothing hold what :func:`write_archive` wrote, of each stream the newest rows.

    They are read a few at a time, so that they are in memory once.

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
    """Rows of each environment that count, and what the arrays say of themselves."""
    with readable(file) as archive:
        members = _members(archive)
        found = {name: _header(archive, info) for name, info in members.items()}
        few = STORED in found and math.prod(found[STORED].shape) <= MOST_ENVS
        return _read_array(archive, members[STORED]) if few else np.empty(0), found


def _checked(file: Path, storage: Storage, stored: np.ndarray, found: dict[str, Described]) -> int:
    """Rows of the longest stream in an archive that fits this storage."""
    columns, num_envs = storage.columns, storage.num_envs
    if set(found) != {STORED, *columns}:
        raise ValueError(
            f"{file} holds {sorted(found)}; this replay needs {sorted(columns)}: give a recording of the same "
            "environment"
        )
    longest = found[next(iter(columns))].shape[1:2]
    for name, column in columns.items():
        shape, fortran, dtype = found[name]
        shapes = [(num_envs, *longest, *row) for row in (column.shown, column.shape)]  # flat: of earlier versions
        if dtype != column.dtype or shape not in shapes or not longest or fortran:
            needed = ", ".join(map(str, (num_envs, "steps", *column.shown)))
            raise ValueError(
                f"{file}: '{name}' is {shape} of {dtype}, not ({needed}) of {column.dtype}: give a "
                "recording of the same environment, with the same section env of the config"
            )
    if stored.shape != (num_envs,) or stored.dtype.kind not in "iu":
        raise ValueError(f"{file}: '{STORED}' is {stored.shape} of {stored.dtype}, not a row count per environment")
    if stored.min(initial=0) < 0 or stored.max(initial=0) > longest[0]:
        raise ValueError(f"{file}: '{STORED}' counts {stored} rows, where there are {longest[0]}")
    return longest[0]


def _read_column(member: IO[bytes], storage: Storage, name: str, stored: np.ndarray, longest: int) -> None:
    """Of each stream the newest rows that fit into a ring, from its first slot on."""
    column = storage.columns[name]
    step = max(CHUNK // max(column.nbytes, 1), 1)
    _read_header(member)
    for env, count in enumerate(stored.tolist()):
        first = max(count - storage.length, 0)
        for start in range(0, longest, step):
            stop = min(start + step, longest)
            content = np.frombuffer(_exactly(member, (stop - start) * column.nbytes), column.dtype)
            rows = content.reshape(stop - start, *column.shape)[max(first - start, 0) : max(count - start, 0)]
            slot = np.arange(len(rows)) + max(start - first, 0)
            storage.put(name, np.full_like(slot, env), slot, rows)
    member.read()  # to the end, where the checksum is compared


def _exactly(member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) < size:
        raise ValueError(f"{size - len(content)} bytes of a column are missing")
    return content
