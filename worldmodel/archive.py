"""Every stored row of a replay as one `.npz` file, to keep, to hand on or to fit a model to."""

import os
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

import numpy as np

from worldmodel.storage import Columns, Storage

STORED = "stored"  # the array of an archive that says how many rows of each environment count


def write_archive(file: Path, storage: Storage) -> None:
    """Write every stored row, oldest first, a few at a time: they may be more than the memory holds.

    The archive holds each column as (num_envs, L, ...), zero where a stream has fewer than the L rows of the longest,
    and `stored`, the number of rows of each environment that count. It replaces an older file in one step.
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
    shape = (storage.num_envs, longest, *column.shape)
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
        arrays[name] = np.zeros((len(stored), int(stored.max(initial=0)), *column.shape), column.dtype)
        for env in range(len(stored)):
            at = 0
            for _, rows in storage.chunks(name, env):
                arrays[name][env, at : at + len(rows)] = rows
                at += len(rows)
    return arrays


def read_archive(file: Path, columns: Columns, num_envs: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows of each environment that count (num_envs,), and every column (num_envs, L, ...): what was written.

    Raises:
        ValueError: if the file is damaged, or holds other columns or another number of environments.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            saved = {name: archive[name] for name in archive.files}
    except (BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a replay: {error}") from error
    if set(saved) != {STORED, *columns}:
        raise ValueError(f"{file} holds {sorted(saved)}; this replay needs {sorted(columns)}")
    stored = saved.pop(STORED)
    for name, array in saved.items():
        shape = (num_envs, "L", *columns[name].shape)
        if array.shape[2:] != columns[name].shape or len(array) != num_envs:
            raise ValueError(f"{file}: '{name}' is {array.shape}, which does not fit into {shape}")
    return stored, saved
