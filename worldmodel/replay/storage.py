"""Where the rows of a replay live: in one ring per environment, column by column.

Row i of a stream lies in slot i % L of a ring of L slots. Two counters per environment say which rows count: `begun`
rows were begun to be written, `written` of them are whole. Those stored are

    max(begun - L, 0) <= i < written

so that a row counts only once it is whole, and the one whose slot it takes is forgotten before that is touched: an
error or a crash in between leaves no row that is half the old one and half the new.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from worldmodel.kernels.memory import addresses_are_free, untouched
from worldmodel.specs import ActionSpec, ObservationSpecs

OBS = "obs/"  # before the names of columns that hold an observation
FLAGS = ("is_first", "is_last", "is_terminal")
CHUNK = 2**24  # bytes copied at a time
SHORT = 1024  # slots of rings that grow, at first


class Column(NamedTuple):
    """One field of a row."""

    dtype: np.dtype
    shape: tuple[int, ...]  # of one row: (width,), or () for a scalar
    image: tuple[int, ...] = ()  # (H, W, C) where a row is a picture

    @property
    def nbytes(self) -> int:
        """Of one row."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def shown(self) -> tuple[int, ...]:
        """The shape of one row for who opens a file: a picture's is not flat."""
        return self.image or self.shape


Columns = Mapping[str, Column]


def arrival_columns(obs_specs: ObservationSpecs, action_spec: ActionSpec) -> dict[str, Column]:
    """The columns of an :class:`worldmodel.types.Arrival`, under the names that they have in files."""
    real, flag = np.dtype(np.float32), np.dtype(bool)
    named = {
        OBS + key: Column(spec.dtype, (spec.width,), spec.shape if spec.image else ())
        for key, spec in obs_specs.items()
    }
    named |= {"prev_action": Column(real, (action_spec.width,)), "reward": Column(real, ())}
    return named | {name: Column(flag, ()) for name in FLAGS}


def row_bytes(columns: Columns) -> int:
    """Of one row, over all columns."""
    return sum(column.nbytes for column in columns.values())


class Storage(ABC):
    """Rings of rows, and which rows of them count.

    Args:
        columns: what a row holds.
        length: slots of each ring, L.
        begun, written: (num_envs,) int64, see above; they are changed in place.
    """

    def __init__(self, columns: Columns, length: int, begun: np.ndarray, written: np.ndarray) -> None:
        self.columns, self.length = dict(columns), length
        self.begun, self.written = begun, written
        self.beside: dict[str, Column] = {}  # columns that are forgotten with the process

    # What memory and disk do in their own ways.

    @abstractmethod
    def array(self, name: str) -> np.ndarray:
        """A column (num_envs, L, *shape) to look at: the first slots of it at least, as far as they were written."""

    @abstractmethod
    def put(self, name: str, env: np.ndarray, slot: np.ndarray, values: np.ndarray) -> None:
        """Write values (..., *shape) of a column to these places (...)."""

    @abstractmethod
    def add_beside(self, name: str, column: Column) -> None:
        """Another column, which no file will hold later."""

    @abstractmethod
    def begin_writing(self) -> None:
        """Called before anything is changed."""

    @abstractmethod
    def flush(self) -> None:
        """Return when everything stored would survive the end of the machine, where it can."""

    def take(self, name: str, env: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """A copy of what a column holds at these places: (...) -> (..., *shape)."""
        array = self.array(name)
        slots = array.shape[1]
        return array.reshape(self.num_envs * slots, *array.shape[2:]).take(env * slots + slot, 0)

    # What follows from it.

    @property
    def num_envs(self) -> int:
        return len(self.written)

    @property
    def oldest(self) -> np.ndarray:
        """(num_envs,) the number of the oldest row that counts."""
        return np.maximum(self.begun - self.length, 0)

    @property
    def stored(self) -> np.ndarray:
        """(num_envs,) rows that count."""
        return np.maximum(self.written - self.oldest, 0)

    def append(self, cells: Mapping[str, np.ndarray], envs: np.ndarray) -> None:
        """One row for each of these environments (n,), without repeats: of every column (n, *shape).

        Raises:
            ValueError: if a column is missing, unknown, or of another shape; nothing has changed then.
        """
        shapes = {name: np.shape(values) for name, values in cells.items()}
        expected = {name: (len(envs), *column.shape) for name, column in self.columns.items()}
        if shapes != expected:
            wrong = sorted(name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name))
            told = [f"{name} is {shapes.get(name, 'missing')}, not {expected.get(name, 'a column')}" for name in wrong]
            raise ValueError(f"rows do not fit the replay: {'; '.join(told)}")
        self.begin_writing()
        row = self.written[envs]
        self.begun[envs] = np.maximum(self.begun[envs], row + 1)  # more had been begun before a roll_back
        for name, values in cells.items():
            self.put(name, envs, row % self.length, values)
        self.written[envs] = row + 1

    def chunks(self, name: str, env: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The stored rows of one stream, oldest first, a few at a time: their slots, and a column of them."""
        rows = np.arange(self.oldest[env], self.oldest[env] + self.stored[env])
        step = max(CHUNK // max(self._column(name).nbytes, 1), 1)
        for start in range(0, len(rows), step):
            slot = rows[start : start + step] % self.length
            yield slot, self.take(name, np.full_like(slot, env), slot)

    def adopt(self, other: "Storage") -> None:
        """Hold what another storage of the same columns and length holds, in the same slots, instead of nothing."""
        self.begin_writing()
        for name in self.columns:
            for env in range(self.num_envs):
                for slot, values in other.chunks(name, env):
                    self.put(name, np.full_like(slot, env), slot, values)
        self.begun[:] = other.begun
        self.written[:] = other.written

    def roll_back(self, written: np.ndarray) -> None:
        """Forget what was added to each stream after its first `written` rows (num_envs,)."""
        self.begin_writing()
        self.written[:] = np.minimum(self.written, written)

    def replace(self, other: "Storage") -> None:
        """Hold what another storage of the same columns and length holds, instead of what is there."""
        self.begin_writing()
        self.written[:] = 0
        self.adopt(other)

    def _column(self, name: str) -> Column:
        return self.columns[name] if name in self.columns else self.beside[name]


class Memory(Storage):
    """Rings in memory of their own, which take room only for the rows that were written.

    Where a mapping costs more than its pages that are written, they begin short and grow with what is stored.
    """

    def __init__(self, columns: Columns, num_envs: int, length: int) -> None:
        super().__init__(columns, length, np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64))
        self.whole = addresses_are_free()  # whether rings are mapped at once
        self.arrays = {name: self._rings(column, 0) for name, column in columns.items()}

    def _rings(self, column: Column, needed: int) -> np.ndarray:
        """Zeros (num_envs, slots, *shape), with `needed` slots at least."""
        if self.whole:
            try:
                return untouched((self.num_envs, self.length, *column.shape), column.dtype)
            except MemoryError:  # more addresses than a process can have
                self.whole = False
        slots = min(max(2 * needed, SHORT), self.length)
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
        """Arrays are always ready."""

    def flush(self) -> None:
        """What is in memory ends with the process."""
