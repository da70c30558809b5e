"""Every stored row of a replay as one `.npz` file, to keep, to hand on or to fit a model to."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO
from zipfile import ZipFile, ZipInfo

import numpy as np

from worldmodel.limits import check_memory
from worldmodel.storage import Columns, Storage

NPY = ".npy"  # after the name of an array in an archive
STORED = "stored"  # the array of an archive that says how many rows of each environment count


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


def read_arrays(file: Path, wanted: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` archive: those that are wanted and there, by default all.

    Nothing in the file is executed, and no more memory is asked for than the machine has: what an array says of its
    size is compared with what is there before any is read.

    Raises:
        ValueError: naming the file, if it is damaged, no archive, holds objects, or does not fit into the memory.
    """
    if not file.is_file():
        raise ValueError(f"no file at {file}")
    try:
        with ZipFile(file) as archive:
            found = {info.filename.removesuffix(NPY): info for info in archive.infolist()}
            if len(found) < len(archive.infolist()):
                raise ValueError("two of its arrays have the same name")
            chosen = {name: info for name, info in found.items() if wanted is None or name in wanted}
            for info in chosen.values():
                _check_size(archive, info)
            check_memory(sum(info.file_size for info in chosen.values()), "its arrays", "give a shorter recording")
            return {name: _read_array(archive, info) for name, info in chosen.items()}
    except Exception as error:  # of zipfile, zlib and numpy, which have no error in common for a damaged file
        raise ValueError(f"{file} cannot be read as an .npz archive: {error or type(error).__name__}") from error


def array_names(file: Path) -> list[str]:
    """What the arrays of an `.npz` archive are called.

    Raises:
        ValueError: naming the file, if it is damaged or no archive.
    """
    if not file.is_file():
        raise ValueError(f"no file at {file}")
    try:
        with ZipFile(file) as archive:
            return [name.removesuffix(NPY) for name in archive.namelist()]
    except Exception as error:  # see read_arrays
        raise ValueError(f"{file} cannot be read as an .npz archive: {error or type(error).__name__}") from error


def _check_size(archive: ZipFile, info: ZipInfo) -> None:
    """Refuse an array whose header promises more, or less, than follows it."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        if dtype.hasobject:
            raise ValueError(f"'{info.filename}' holds Python objects, which are not read: store numbers")
        promised, there = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if promised != there:
        raise ValueError(f"'{info.filename}' says it is {shape} of {dtype}, {promised} bytes, and {there} follow")


def _read_array(archive: ZipFile, info: ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        member.read()  # to the end, where the checksum is compared
    return array


def read_archive(file: Path, columns: Columns, num_envs: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of each environment that count (num_envs,), and every column (num_envs, L, ...): what was written.

    Raises:
        ValueError: if the file is damaged, or holds other columns or another number of environments.
    """
    saved = read_arrays(file)
    if set(saved) != {STORED, *columns}:
        raise ValueError(
            f"{file} holds {sorted(saved)}; this replay needs {sorted(columns)}: give a recording of the same "
            "environment"
        )
    stored = saved.pop(STORED)
    longest = next(iter(saved.values())).shape[1:2]
    for name, array in saved.items():
        column = columns[name]
        shapes = [(num_envs, *longest, *row) for row in (column.shown, column.shape)]  # flat: of earlier versions
        if array.dtype != column.dtype or array.shape not in shapes or not longest:
            shape = ", ".join(map(str, (num_envs, "steps", *column.shown)))
            raise ValueError(
                f"{file}: '{name}' is {array.shape} of {array.dtype}, not ({shape}) of {column.dtype}: give a "
                "recording of the same environment, with the same section env of the config"
            )
        saved[name] = array.reshape(shapes[1])
    if stored.shape != (num_envs,) or stored.dtype.kind not in "iu":
        raise ValueError(f"{file}: '{STORED}' is {stored.shape} of {stored.dtype}, not a row count per environment")
    if stored.min(initial=0) < 0 or stored.max(initial=0) > longest[0]:
        raise ValueError(f"{file}: '{STORED}' counts {stored} rows, where there are {longest[0]}")
    return stored.astype(np.int64), saved
