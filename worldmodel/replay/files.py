"""How the rows of a replay get into files and out of them.

Two kinds of files exist: a folder in which a running replay keeps its rows (:mod:`worldmodel.replay.disk`), and an
archive with a copy of all rows (:mod:`worldmodel.replay.archive`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.replay.archive import read_archive
from worldmodel.replay.disk import Disk
from worldmodel.replay.storage import Memory, Storage


def moved_to_disk(folder: Path, storage: Storage) -> Disk:
    """Return rings in a new folder that hold a copy of the rows of a storage.

    Raises:
        ValueError: if the folder already holds a replay, or the disk has no room for full rings.
    """
    disk = Disk.create(folder, storage.columns, storage.num_envs, storage.length)
    disk.adopt(storage)
    return disk


def loaded(file: Path, storage: Storage) -> Storage:
    """Return a storage with the rows of an archive in place of those of `storage`.

    A storage on the disk is overwritten and returned itself. Nothing changes if the archive cannot be read.

    Raises:
        ValueError: if the archive is damaged, or holds other columns or another number of environments.
    """
    rows = Memory(storage.columns, storage.num_envs, storage.length)
    read_archive(file, rows)
    if not isinstance(storage, Disk):
        return rows
    storage.replace(rows)
    return storage


def was_overwritten(disk: Disk, state: Mapping[str, Any]) -> bool:
    """Return whether rows that were stored when a training state was saved have been overwritten since."""
    oldest = np.maximum(state["written"] - disk.length, 0)
    return bool((disk.oldest > oldest).any())
