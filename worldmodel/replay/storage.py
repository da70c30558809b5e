"""Storage of the rows of a replay: one ring for each environment, column by column.

Row i of an environment is in slot i % L of a ring of L slots. Each environment has two counters. `begun` counts the
rows whose writing has started, and `written` counts the rows that are complete. The stored rows are

    max(begun - L, 0) <= i < written

A new row counts only after it is complete. The old row in its slot stops counting before the slot is changed. After
an error or a crash in between, no stored row mixes old and new content.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from worldmodel.kernels.memory import addresses_are_free, untouched
from worldmodel.specs import ActionSpec, ObservationSpecs

OBS = "obs/"  # the prefix of the columns that hold an observation
FLAGS = ("is_first", "is_last", "is_terminal")
COPY_BYTES = 2**24  # the largest number of bytes that are copied at a time
FIRST_SLOTS = 1024  # the number of slots with which growing rings begin


class Column(NamedTuple):
    """One field of a row."""

    dtype: np.dtype
    shape: tuple[int, ...]  # of one row: (width,), or () for a scalar
    image: tuple[int, ...] = ()  # (H, W, C) if a row is an image

    @property
    def nbytes(self) -> int:
        """The size of one row in bytes."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def shown(self) -> tuple[int, ...]:
        """The shape of one row in an archive, where an image is not flattened."""
        return self.image or self.shape


Columns = Mapping[str, Column]


def time_step_columns(obs_specs: ObservationSpecs, action_spec: ActionSpec) -> dict[str, Column]:
    """Return the columns of an :class:`worldmodel.types.TimeStep` under the names that they have in files."""
    real, flag = np.dtype(np.float32), np.dtype(bool)
    named = {
        OBS + key: Column(spec.dtype, (spec.width,), spec.shape if spec.image else ())
        for key, spec in obs_specs.items()
    }
    named |= {"prev_action": Column(real, (action_spec.width,)), "reward": Column(real, ())}
    return named | {name: Column(flag, ()) for name in FLAGS}


def row_bytes(columns: Columns) -> int:
    """Return the size in bytes of one row with all its columns."""
    return sum(column.nbytes for column in columns.values())


class Storage(ABC):
    """Rings of rows, and the counters that say which rows are stored.

    Args:
        columns: the columns of a row.
        length: the number of slots of each ring, L.
        begun, written: the counters described above, (num_envs,) int64. They are changed in place.
    """

    def __init__(self, columns: Columns, length: int, begun: np.ndarray, written: np.ndarray) -> None:
        self.columns, self.length = dict(columns), length
        self.begun, self.written = begun, written
        self.beside: dict[str, Column] = {}  # additional columns, which no file keeps after the process has ended

    # Memory and disk implement these methods.

    @abstractmethod
    def array(self, name: str) -> np.ndarray:
        """Return a column (num_envs, L, *shape) for reading. Slots that were never written may be missing."""

    @abstractmethod
    def put(self, name: str, env: np.ndarray, slot: np.ndarray, values: np.ndarray) -> None:
        """Write the values (..., *shape) of a column into these slots (...)."""

    @abstractmethod
    def add_beside(self, name: str, column: Column) -> None:
        """Add a column that no file keeps after the process has ended."""

    @abstractmethod
    def begin_writing(self) -> None:
        """Prepare for writing. It is called before every change."""

    @abstractmethod
    def flush(self) -> None:
        """Wait until everything stored would survive a power failure, if the storage can ensure this."""

    def take(self, name: str, env: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Return a copy of the values of a column in these slots: (...) -> (..., *shape)."""
        array = self.array(name)
        slots = array.shape[1]
        return array.reshape(self.num_envs * slots, *array.shape[2:]).take(env * slots + slot, 0)

    # These methods are the same for memory and disk.

    @property
    def num_envs(self) -> int:
        return len(self.written)

    @property
    def oldest(self) -> np.ndarray:
        """The index of the oldest stored row of each environment: (num_envs,)."""
        return np.maximum(self.begun - self.length, 0)

    @property
    def stored(self) -> np.ndarray:
        """The number of stored rows of each environment: (num_envs,)."""
        return np.maximum(self.written - self.oldest, 0)

    def append(self, cells: Mapping[str, np.ndarray], envs: np.ndarray) -> None:
        """Append one row to each of these environments (n,), which must not repeat.

        Args:
            cells: the values (n, *shape) of every column. envs: the environments.
        Raises:
            ValueError: if a column is missing, unknown, or has the wrong shape. Nothing has changed then.
        """
        shapes = {name: np.shape(values) for name, values in cells.items()}
        expected = {name: (len(envs), *column.shape) for name, column in self.columns.items()}
        if shapes != expected:
            wrong = sorted(name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name))
            problems = [_mismatch(name, shapes.get(name), expected.get(name)) for name in wrong]
            raise ValueError(f"the rows do not fit the replay: {'; '.join(problems)}")
        self.begin_writing()
        row = self.written[envs]
        self.begun[envs] = np.maximum(self.begun[envs], row + 1)  # after `roll_back`, `begun` may be larger
        for name, values in cells.items():
            self.put(name, envs, row % self.length, values)
        self.written[envs] = row + 1

    def chunks(self, name: str, env: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the slots of the stored rows of one environment, oldest first, and the values of a column there.

        Each pair holds at most about `COPY_BYTES` bytes.
        """
        rows = np.arange(self.oldest[env], self.oldest[env] + self.stored[env])
        step = max(COPY_BYTES // max(self._column(name).nbytes, 1), 1)
        for start in range(0, len(rows), step):
            slot = rows[start : start + step] % self.length
            yield slot, self.take(name, np.full_like(slot, env), slot)

    def adopt(self, other: "Storage") -> None:
        """Copy the rows of another storage with the same columns and length. This storage must be empty."""
        self.begin_writing()
        for name in self.columns:
            for env in range(self.num_envs):
                for slot, values in other.chunks(name, env):
                    self.put(name, np.full_like(slot, env), slot, values)
        self.begun[:] = other.begun
        self.written[:] = other.written

    def roll_back(self, written: np.ndarray) -> None:
        """Drop the rows that were added to each environment after its first `written` rows (num_envs,)."""
        self.begin_writing()
        self.written[:] = np.minimum(self.written, written)

    def replace(self, other: "Storage") -> None:
        """Replace all rows with a copy of the rows of another storage with the same columns and length."""
        self.begin_writing()
        self.written[:] = 0
        self.adopt(other)

    def _column(self, name: str) -> Column:
        return self.columns[name] if name in self.columns else self.beside[name]


def _mismatch(name: str, shape: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> str:
    """Return how the shape of a column differs from what is expected."""
    if expected is None:
        return f"{name} is not a column of the replay"
    return f"{name} is missing" if shape is None else f"{name} has the shape {shape} instead of {expected}"


class Memory(Storage):
    """Rings in memory. They take memory only for the rows that were written.

    On some systems a memory mapping also costs memory for pages that were never written. There the rings begin with
    few slots and grow.
    """

    def __init__(self, columns: Columns, num_envs: int, length: int) -> None:
        super().__init__(columns, length, np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64))
        self.whole = addresses_are_free()  # whether the rings have all their slots from the beginning
        self.arrays = {name: self._rings(column, 0) for name, column in columns.items()}

    def _rings(self, column: Column, needed: int) -> np.ndarray:
        """Return zeros (num_envs, slots, *shape) with at least `needed` slots."""
        if self.whole:
            try:
                return untouched((self.num_envs, self.length, *column.shape), column.dtype)
            except MemoryError:  # the address space of the process is too small
                self.whole = False
        slots = min(max(2 * needed, FIRST_SLOTS), self.length)
        return untouched((self.num_envs, slots, *column.shape), column.dtype)

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def put(self, name: str, env: np.ndarray, slot: np.ndarray, values: np.ndarray) -> None:
        needed, held = int(slot.max(initial=-1)) + 1, self.arrays[name].shape[1]
        if needed > held:
            grown = self._rings(self._column(name), needed)
            grown[:, :held] = self.arrays[name]
            self.arrays[name] = grown
        self.arrays[name][env, slot] = values

    def add_beside(self, name: str, column: Column) -> None:
        self.beside[name] = column
        self.arrays[name] = self._rings(column, 0)

    def begin_writing(self) -> None:
        """Do nothing: arrays in memory can always be written."""

    def flush(self) -> None:
        """Do nothing: rows in memory end with the process."""
