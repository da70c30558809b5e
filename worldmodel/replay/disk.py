"""The rows of a replay in a folder. They may exceed the memory, and they outlive the process.

    replay.json         a description of the other files: number of environments, slots, columns
    counters            (2, num_envs) int64: the `begun` and `written` counters of each environment
    obs%2FKEY.raw ...   one file for each column: (num_envs, slots, width), row after row, without a header

The files are read through memory maps and written with system calls. A full disk then raises an error that can be
caught. A write into a memory map would end the process instead. The files are sparse: slots that were never written
take no room on the disk.

If the process is killed, at most the row that is being written is lost (see :mod:`worldmodel.replay.storage`). Only
`flush` protects the rows against a power failure.
"""

import json
import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from worldmodel.replay.storage import Column, Columns, Storage, row_bytes

try:
    import fcntl
except ImportError:  # Windows has no fcntl. Two processes can then write to the same folder.
    fcntl = None  # type: ignore[assignment]

MANIFEST, COUNTERS, LOCK = "replay.json", "counters", "lock"
VERSION = 1
BINARY = getattr(os, "O_BINARY", 0)  # without it, Windows changes line ends
READAHEAD = 2**16  # bytes that the system maps around each place that is read
MAX_MAPPED = 2**27  # bytes of a file that may stay mapped: they count as memory of the process


class Disk(Storage):
    """Rings in files, as described above. Use :meth:`create` or :meth:`open` to make one.

    No file changes before the first row is written, so read permission is enough to look at a replay. A reader sees
    the rows that were stored when it opened the folder. If another process continues to write, it overwrites the
    oldest of them.
    """

    def __init__(self, folder: Path, columns: Columns, num_envs: int, length: int) -> None:
        counters = np.fromfile(folder / COUNTERS, np.int64).reshape(2, num_envs)
        super().__init__(columns, length, *counters)
        self.folder = folder
        self.maps: dict[str, mmap.mmap] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.touched: dict[str, int] = {}  # the number of bytes of each map that may be in memory now
        self.reading: dict[str, int] = {}  # the file descriptors for reading
        self.files: dict[str, int] = {}  # the file descriptors for writing
        self.counters: mmap.mmap | None = None  # the map of the counters, after writing has begun
        self._closing = weakref.finalize(self, _close, self.reading, self.files)
        for name, column in columns.items():
            self._map(name, column, os.open(folder / file_name(name), os.O_RDONLY | BINARY))

    @staticmethod
    def create(folder: Path, columns: Columns, num_envs: int, length: int) -> "Disk":
        """Make empty rings in a new folder.

        Raises:
            ValueError: if the folder already holds a replay, or the disk has no room for full rings.
        """
        if (folder / MANIFEST).exists():
            raise ValueError(f"{folder} already holds a replay. Choose another folder, or remove this one.")
        check_room(folder, num_envs * length * row_bytes(columns))
        folder.mkdir(parents=True, exist_ok=True)
        for name, column in columns.items():
            with (folder / file_name(name)).open("wb") as file:
                file.truncate(_file_size(column, num_envs, length))
        np.zeros((2, num_envs), np.int64).tofile(folder / COUNTERS)
        text = json.dumps(_manifest(columns, num_envs, length), indent=1) + "\n"
        partial = folder / (MANIFEST + ".partial")
        partial.write_text(text)
        os.replace(partial, folder / MANIFEST)  # the last step: if this file exists, all other files are complete
        return Disk(folder, columns, num_envs, length)

    @staticmethod
    def open(folder: Path, columns: Columns, num_envs: int) -> "Disk":
        """Open the rings that :meth:`create` made in this folder.

        Raises:
            ValueError: if there are none, if files are damaged or missing, or if they hold other columns or another
                number of environments.
        """
        length = _checked(folder, columns, num_envs)
        return Disk(folder, columns, num_envs, length)

    def _map(self, name: str, column: Column, descriptor: int) -> None:
        """Map an open file as the array of a column, and keep its descriptor."""
        self.reading[name] = descriptor
        self.maps[name] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        shape = (self.num_envs, self.length, *column.shape)
        flat = np.frombuffer(self.maps[name], column.dtype, math.prod(shape))
        self.arrays[name], self.touched[name] = flat.reshape(shape), 0

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def take(self, name: str, env: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """See :meth:`worldmodel.replay.storage.Storage.take`.

        The rows are read in parts, so that at most about `MAX_MAPPED` bytes of a file stay mapped.
        """
        column, place = self._column(name), (env * self.length + slot).ravel()
        held = self.arrays[name].reshape(self.num_envs * self.length, *column.shape)
        rows = np.empty((len(place), *column.shape), column.dtype)
        step = max(MAX_MAPPED // (column.nbytes + READAHEAD), 1)
        for start in range(0, len(place), step):
            part = place[start : start + step]
            self._expect(name, part, column.nbytes)
            np.take(held, part, 0, rows[start : start + step], "clip")  # no place is outside; "raise" makes a copy
            self._count(name, len(part) * (column.nbytes + READAHEAD))
        return rows.reshape(*slot.shape, *column.shape)

    def _expect(self, name: str, place: np.ndarray, nbytes: int) -> None:
        """Ask the system to fetch the places that are read next.

        Without this it fetches page by page, which takes six times as long if the files are not in its cache.
        """
        if len(place) * nbytes < READAHEAD or not hasattr(os, "posix_fadvise"):
            return
        for start, stop in _runs(place):
            if (stop - start) * nbytes >= READAHEAD:
                where = int(place[start]) * nbytes, (stop - start) * nbytes
                os.posix_fadvise(self.reading[name], *where, os.POSIX_FADV_WILLNEED)

    def _count(self, name: str, touched: int) -> None:
        """Count the bytes of a file that have been read, and release its memory if they may exceed `MAX_MAPPED`."""
        self.touched[name] += touched
        if self.touched[name] >= MAX_MAPPED and len(self.maps[name]) > MAX_MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            self.maps[name].madvise(mmap.MADV_DONTNEED)  # the system may still keep the pages in its cache
            self.touched[name] = 0

    # Writing.

    def begin_writing(self) -> None:
        """Open the files for writing, if they are not open yet.

        Raises:
            ValueError: if another process writes to this folder.
        """
        if self.counters is not None:
            return
        problem = f"{self.folder} is being written to by another process. Stop that process first."
        self.files[LOCK] = locked(self.folder / LOCK, problem)
        for name in self.columns:
            self.files[name] = os.open(self.folder / file_name(name), os.O_RDWR | BINARY)
        with (self.folder / COUNTERS).open("r+b") as file:
            self.counters = mmap.mmap(file.fileno(), 0)
        self.begun, self.written = np.frombuffer(self.counters, np.int64).reshape(2, -1)

    def put(self, name: str, env: np.ndarray, slot: np.ndarray, values: np.ndarray) -> None:
        """See :meth:`worldmodel.replay.storage.Storage.put`.

        Raises:
            OSError: if the disk is full or fails. The error names the folder.
        """
        column = self._column(name)
        place = (env * self.length + slot).ravel()
        rows = np.empty((*slot.shape, *column.shape), column.dtype)
        rows[...] = values  # an array assignment, so that conversions and errors are the same as in memory
        content = rows.reshape(-1).view(np.uint8).data
        for start, stop in _runs(place):
            part = content[start * column.nbytes : stop * column.nbytes]
            self._write(name, int(place[start]) * column.nbytes, part)

    def _write(self, name: str, offset: int, content: memoryview) -> None:
        try:
            write_at(self.files[name], offset, content)
        except OSError as error:
            reason = f"{error.strerror}, while the replay wrote '{name}'"
            raise OSError(error.errno, reason, str(self.folder)) from error

    def add_beside(self, name: str, column: Column) -> None:
        """Add a column in a file without a name. The system removes it when the process ends in any way."""
        self.begin_writing()
        self.beside[name] = column
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(_file_size(column, self.num_envs, self.length))
            self._map(name, column, os.dup(file.fileno()))
            self.files[name] = os.dup(file.fileno())

    def flush(self) -> None:
        """Write everything to the disk: the rows first, and then the counters that refer to them."""
        if self.counters is None:
            return
        for name in self.columns:
            os.fsync(self.files[name])
        self.counters.flush()


def file_name(column: str) -> str:
    """Return the name of the file that holds a column. Characters that a file name may not contain are escaped."""
    return quote(column, safe="") + ".raw"


def write_at(descriptor: int, offset: int, content: memoryview) -> None:
    """Write all of the content. One system call may write less than it is given."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    while content:
        content = content[os.write(descriptor, content) :]


def check_room(folder: Path, needed: int) -> None:
    """Check that the disk has room for a full replay.

    Raises:
        ValueError: if the disk has fewer than `needed` bytes free.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"a full replay takes {needed / 1e9:.1f} GB, but the disk of {there} has only {free / 1e9:.1f} GB free. "
            "Lower replay.capacity or replay.capacity_bytes."
        )


def _runs(place: np.ndarray) -> Iterator[tuple[int, int]]:
    """Return [start, stop) of each run of consecutive numbers in `place`."""
    borders = [0, *(np.flatnonzero(np.diff(place) != 1) + 1).tolist(), len(place)]
    return ((start, stop) for start, stop in pairwise(borders) if start < stop)


def _file_size(column: Column, num_envs: int, length: int) -> int:
    return max(num_envs * length * column.nbytes, 1)  # an empty file cannot be mapped


def _manifest(columns: Columns, num_envs: int, length: int) -> dict[str, Any]:
    described = {
        name: {"dtype": column.dtype.str, "shape": list(column.shape), "image": list(column.image)}
        for name, column in columns.items()
    }
    return {"version": VERSION, "num_envs": num_envs, "slots": length, "columns": described}


def read_manifest(folder: Path) -> tuple[dict[str, Column], int, int]:
    """Return the columns, the number of environments and the number of slots of each ring in a folder.

    Raises:
        ValueError: if the folder holds no replay, or one that this version cannot read.
    """
    file = folder / MANIFEST
    try:
        found = json.loads(file.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"its format is version {found['version']}, but this program reads version {VERSION}")
        columns = {
            name: Column(np.dtype(column["dtype"]), _shape(column["shape"]), _shape(column.get("image", [])))
            for name, column in found["columns"].items()
        }
        num_envs, length = int(found["num_envs"]), int(found["slots"])
        if min(num_envs, length) < 1:
            raise ValueError(f"it describes {num_envs} environments with {length} slots, but each must be at least 1")
        if any(column.dtype.kind not in "biuf" or min(column.shape, default=0) < 0 for column in columns.values()):
            raise ValueError(f"not all of its columns hold numbers: {_named(columns)}")
        if any(column.image and math.prod(column.image) != math.prod(column.shape) for column in columns.values()):
            raise ValueError(f"the size of its images differs from the size of its rows: {_named(columns)}")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no replay: the file {MANIFEST} is missing") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as the description of a replay: {error!r}") from error
    return columns, num_envs, length


def _shape(numbers: list[Any]) -> tuple[int, ...]:
    return tuple(map(int, numbers))


def _checked(folder: Path, columns: Columns, num_envs: int) -> int:
    """Check the files of a folder against what is expected, and return the number of slots of each ring."""
    held, envs, length = read_manifest(folder)
    fits = held.keys() == columns.keys() and all(
        column[:2] == columns[name][:2] and column.image in ((), columns[name].image)  # old versions wrote no image
        for name, column in held.items()
    )
    if not fits:
        raise ValueError(
            f"the replay in {folder} has the columns {_named(held)}, but this environment needs {_named(columns)}"
        )
    if envs != num_envs:
        raise ValueError(f"the replay in {folder} is of {envs} environments, but here are {num_envs}")
    sizes = {file_name(name): _file_size(column, num_envs, length) for name, column in columns.items()}
    for name, size in {COUNTERS: 16 * num_envs, **sizes}.items():
        found = _size(folder / name)
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ValueError(f"{folder / name} {what}. The replay is damaged, and its rows cannot be used.")
    begun, written = np.fromfile(folder / COUNTERS, np.int64).reshape(2, num_envs)
    if (written < 0).any() or (begun < written).any():
        raise ValueError(
            f"{folder / COUNTERS} counts {written} complete rows, but {begun} rows whose writing has started. "
            "The replay is damaged."
        )
    return length


def _size(file: Path) -> int | None:
    """Return the size of a file in bytes, or None if it does not exist."""
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:  # the name is not a valid file name
        return None


def _named(columns: Columns) -> str:
    return ", ".join(f"'{name}' {column.dtype}{list(column.shape)}" for name, column in sorted(columns.items()))


def locked(file: Path, problem: str) -> int:
    """Lock a file against other processes, and return the descriptor that holds the lock.

    The lock ends when the descriptor is closed or the process ends.

    Raises:
        ValueError: with the message `problem`, if another process holds the lock.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        if fcntl is not None:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ValueError(problem) from error
    return descriptor


def _close(*files: dict[str, int]) -> None:
    for descriptor in (descriptor for some in files for descriptor in some.values()):
        os.close(descriptor)
