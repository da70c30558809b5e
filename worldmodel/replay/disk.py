"""The rows of a replay in a folder: more of them than the memory holds, and they outlive the process.

    replay.json         what the other files hold: number of environments, slots, columns
    counters            (2, num_envs) int64: the rows begun and written of each environment
    obs%2FKEY.raw ...   one file per column: (num_envs, slots, width), row after row, no header

Files are read through memory maps and written with system calls: a full disk is then an error that can be caught,
where a store into a map would end the process. They are sparse: what is not written takes no room on the disk.

`kill -9` at any instant costs at most the row that is being written (see :mod:`worldmodel.replay.storage`): what a
process
wrote stays when it dies. Against the end of the whole machine, `flush` is needed.
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
except ImportError:  # not on Windows, where nobody is kept from writing twice
    fcntl = None  # type: ignore[assignment]

MANIFEST, COUNTERS, LOCK = "replay.json", "counters", "lock"
VERSION = 1
BINARY = getattr(os, "O_BINARY", 0)  # Windows would change line ends
BEFORE = 2**16  # bytes that the system maps around each place that is read
MAPPED = 2**27  # bytes of a file that may stay mapped, and count as memory of the process


class Disk(Storage):
    """Rings in files; see above. Made by :meth:`create` and :meth:`open`.

    Nothing is changed before the first row is written, so that to look at a replay takes no more than to read it.
    A reader sees the rows that were stored when it opened the folder, of which a process that goes on writing
    overwrites the oldest.
    """

    def __init__(self, folder: Path, columns: Columns, num_envs: int, length: int) -> None:
        counters = np.fromfile(folder / COUNTERS, np.int64).reshape(2, num_envs)
        super().__init__(columns, length, *counters)
        self.folder = folder
        self.maps: dict[str, mmap.mmap] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.touched: dict[str, int] = {}  # bytes of each map that may be in memory now
        self.reading: dict[str, int] = {}  # descriptors of the files
        self.files: dict[str, int] = {}  # those to write with
        self.counters: mmap.mmap | None = None  # where rows are counted, once there are any to write
        self._closing = weakref.finalize(self, _close, self.reading, self.files)
        for name, column in columns.items():
            self._map(name, column, os.open(folder / file_name(name), os.O_RDONLY | BINARY))

    @staticmethod
    def create(folder: Path, columns: Columns, num_envs: int, length: int) -> "Disk":
        """Empty rings in a new folder.

        Raises:
            ValueError: if the folder holds a replay, or the disk has no room for full rings.
        """
        if (folder / MANIFEST).exists():
            raise ValueError(f"{folder} already holds a replay: choose another folder, or remove it")
        check_room(folder, num_envs * length * row_bytes(columns))
        folder.mkdir(parents=True, exist_ok=True)
        for name, column in columns.items():
            with (folder / file_name(name)).open("wb") as file:
                file.truncate(_file_size(column, num_envs, length))
        np.zeros((2, num_envs), np.int64).tofile(folder / COUNTERS)
        text = json.dumps(_manifest(columns, num_envs, length), indent=1) + "\n"
        partial = folder / (MANIFEST + ".partial")
        partial.write_text(text)
        os.replace(partial, folder / MANIFEST)  # last: where it is, the others are whole
        return Disk(folder, columns, num_envs, length)

    @staticmethod
    def open(folder: Path, columns: Columns, num_envs: int) -> "Disk":
        """The rings that :meth:`create` made in this folder.

        Raises:
            ValueError: if there are none, files are damaged or missing, or hold other columns or another number of
                environments.
        """
        length = _checked(folder, columns, num_envs)
        return Disk(folder, columns, num_envs, length)

    def _map(self, name: str, column: Column, descriptor: int) -> None:
        """Show the content of an open file as the array of a column; the descriptor is kept."""
        self.reading[name] = descriptor
        self.maps[name] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        shape = (self.num_envs, self.length, *column.shape)
        flat = np.frombuffer(self.maps[name], column.dtype, math.prod(shape))
        self.arrays[name], self.touched[name] = flat.reshape(shape), 0

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def take(self, name: str, env: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """See :meth:`worldmodel.replay.storage.Storage.take`; a part at a time, so that no more than `MAPPED` stays
        mapped."""
        column, place = self._column(name), (env * self.length + slot).ravel()
        held = self.arrays[name].reshape(self.num_envs * self.length, *column.shape)
        rows = np.empty((len(place), *column.shape), column.dtype)
        step = max(MAPPED // (column.nbytes + BEFORE), 1)
        for start in range(0, len(place), step):
            part = place[start : start + step]
            self._expect(name, part, column.nbytes)
            np.take(held, part, 0, rows[start : start + step], "clip")  # none lies outside; to raise needs a copy
            self._count(name, len(part) * (column.nbytes + BEFORE))
        return rows.reshape(*slot.shape, *column.shape)

    def _expect(self, name: str, place: np.ndarray, nbytes: int) -> None:
        """Have all that is about to be read fetched at once, not page by page: six times as fast from a cold disk."""
        if len(place) * nbytes < BEFORE or not hasattr(os, "posix_fadvise"):
            return
        for start, stop in _runs(place):
            if (stop - start) * nbytes >= BEFORE:
                where = int(place[start]) * nbytes, (stop - start) * nbytes
                os.posix_fadvise(self.reading[name], *where, os.POSIX_FADV_WILLNEED)

    def _count(self, name: str, touched: int) -> None:
        """Unmap what has been read of a file, where that may have become too much."""
        self.touched[name] += touched
        if self.touched[name] >= MAPPED and len(self.maps[name]) > MAPPED and hasattr(mmap, "MADV_DONTNEED"):
            self.maps[name].madvise(mmap.MADV_DONTNEED)  # it stays in the cache of the system, while that has room
            self.touched[name] = 0

    # Writing.

    def begin_writing(self) -> None:
        """Open the files for writing, the first time.

        Raises:
            ValueError: if another process writes to this folder.
        """
        if self.counters is not None:
            return
        problem = f"{self.folder} is being written to by another process: stop it first"
        self.files[LOCK] = locked(self.folder / LOCK, problem)
        for name in self.columns:
            self.files[name] = os.open(self.folder / file_name(name), os.O_RDWR | BINARY)
        with (self.folder / COUNTERS).open("r+b") as file:
            self.counters = mmap.mmap(file.fileno(), 0)
        self.begun, self.written = np.frombuffer(self.counters, np.int64).reshape(2, -1)

    def put(self, name: str, env: np.ndarray, slot: np.ndarray, values: np.ndarray) -> None:
        """See :meth:`worldmodel.replay.storage.Storage.put`.

        Raises:
            OSError: naming the folder, if the disk is full or fails.
        """
        column = self._column(name)
        place = (env * self.length + slot).ravel()
        rows = np.empty((*slot.shape, *column.shape), column.dtype)
        rows[...] = values  # as an assignment to an array: the same conversions, the same errors
        content = rows.reshape(-1).view(np.uint8).data
        for start, stop in _runs(place):
            part = content[start * column.nbytes : stop * column.nbytes]
            self._write(name, int(place[start]) * column.nbytes, part)

    def _write(self, name: str, offset: int, content: memoryview) -> None:
        try:
            write_at(self.files[name], offset, content)
        except OSError as error:
            reason = f"{error.strerror}, when the replay wrote '{name}'"
            raise OSError(error.errno, reason, str(self.folder)) from error

    def add_beside(self, name: str, column: Column) -> None:
        """In a file without a name, which is gone when the process ends, however it ends."""
        self.begin_writing()
        self.beside[name] = column
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(_file_size(column, self.num_envs, self.length))
            self._map(name, column, os.dup(file.fileno()))
            self.files[name] = os.dup(file.fileno())

    def flush(self) -> None:
        """Rows before the counters that count them."""
        if self.counters is None:
            return
        for name in self.columns:
            os.fsync(self.files[name])
        self.counters.flush()


def file_name(column: str) -> str:
    """Of the file that holds a column; a key may hold characters that a file's name may not."""
    return quote(column, safe="") + ".raw"


def write_at(descriptor: int, offset: int, content: memoryview) -> None:
    """Write all of it, in as many calls as the system takes for it."""
    os.lseek(descriptor, offset, os.SEEK_SET)
    while content:
        content = content[os.write(descriptor, content) :]


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what a disk cannot hold in the end.

    Raises:
        ValueError: if it has fewer than `needed` bytes free.
    """
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"a full replay takes {needed / 1e9:.1f} GB, and the disk of {there} has {free / 1e9:.1f} GB free: lower "
            "replay.capacity, or set replay.capacity_bytes to less"
        )


def _runs(place: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where in `place` numbers follow each other: [start, stop) of each run."""
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
    """The columns, the number of environments and the slots of each ring that a folder holds.

    Raises:
        ValueError: if it holds no replay, or one that this version cannot read.
    """
    file = folder / MANIFEST
    try:
        found = json.loads(file.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"it is of version {found['version']}, this is for version {VERSION}")
        columns = {
            name: Column(np.dtype(column["dtype"]), _shape(column["shape"]), _shape(column.get("image", [])))
            for name, column in found["columns"].items()
        }
        num_envs, length = int(found["num_envs"]), int(found["slots"])
        if min(num_envs, length) < 1:
            raise ValueError(f"it has {num_envs} environments with {length} slots")
        if any(column.dtype.kind not in "biuf" or min(column.shape, default=0) < 0 for column in columns.values()):
            raise ValueError(f"its columns are no numbers: {_named(columns)}")
        if any(column.image and math.prod(column.image) != math.prod(column.shape) for column in columns.values()):
            raise ValueError(f"the pictures in it are not as large as its rows: {_named(columns)}")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no replay: {MANIFEST} is missing") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as the description of a replay: {error!r}") from error
    return columns, num_envs, length


def _shape(numbers: list[Any]) -> tuple[int, ...]:
    return tuple(map(int, numbers))


def _checked(folder: Path, columns: Columns, num_envs: int) -> int:
    """The slots of each ring in a folder that holds what is expected, whole."""
    held, envs, length = read_manifest(folder)
    fits = held.keys() == columns.keys() and all(
        column[:2] == columns[name][:2] and column.image in ((), columns[name].image)  # earlier versions left it out
        for name, column in held.items()
    )
    if not fits:
        raise ValueError(f"{folder} holds the replay columns {_named(held)}; needed are {_named(columns)}")
    if envs != num_envs:
        raise ValueError(f"{folder} holds the replay of {envs} environments, here are {num_envs}")
    sizes = {file_name(name): _file_size(column, num_envs, length) for name, column in columns.items()}
    for name, size in {COUNTERS: 16 * num_envs, **sizes}.items():
        found = _size(folder / name)
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ValueError(f"{folder / name} {what}: the replay is damaged, its rows cannot be used")
    begun, written = np.fromfile(folder / COUNTERS, np.int64).reshape(2, num_envs)
    if (written < 0).any() or (begun < written).any():
        raise ValueError(f"{folder / COUNTERS}: {written} rows written of {begun} begun: the replay is damaged")
    return length


def _size(file: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:  # a name that no file can have
        return None


def _named(columns: Columns) -> str:
    return ", ".join(f"'{name}' {column.dtype}{list(column.shape)}" for name, column in sorted(columns.items()))


def locked(file: Path, problem: str) -> int:
    """A descriptor that keeps other processes from this file, until it is closed or this process ends.

    Raises:
        ValueError: saying `problem`, if another process has one.
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
