"""What single precision loses of numbers in double precision: digits that an offset would save.

Near 1.7e9, as seconds since 1970 are now, two neighbours in single precision are 128 apart; near 5.3e6, metres of a
map's grid, they are half a metre apart.
"""

from collections.abc import Iterable, Sequence

import numpy as np

STEPS = 1000.0
"""Steps of single precision that a range must hold: fewer are coarse beside the smallest sigma of an output."""

NOISE = 1e-13
"""Share of the numbers it was made of that a number may owe to roundings in double precision: less is no movement."""


class Range:
    """The smallest and the largest value of each entry of rows (n, width), in double precision."""

    def __init__(self, width: int) -> None:
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    @staticmethod
    def of(parts: Iterable[np.ndarray]) -> "Range":
        """Of all rows (n, width) of several arrays, at least one."""
        found: Range | None = None
        for rows in parts:
            found = found or Range(rows.shape[1])
            found.see(rows)
        assert found is not None
        return found

    def see(self, rows: np.ndarray) -> None:
        """Take more rows (n, width)."""
        if len(rows):
            np.minimum(self.low, rows.min(0), out=self.low)
            np.maximum(self.high, rows.max(0), out=self.high)

    @property
    def step(self) -> np.ndarray:
        """(width,): how far neighbours in single precision are from each other there."""
        with np.errstate(over="ignore"):
            below = np.nextafter(self._size.astype(np.float32), np.float32(0))  # the largest number has none above it
        return below.astype(np.float64) - np.nextafter(below, np.float32(0))

    @property
    def coarse(self) -> np.ndarray:
        """(width,) bool: which entries move, and by so little of their size that single precision blurs it."""
        with np.errstate(invalid="ignore", over="ignore"):
            span = self.high - self.low
            return np.isfinite(span) & (span > NOISE * self._size) & (span < STEPS * self.step)

    @property
    def offset(self) -> tuple[float, ...]:
        """What to subtract of each entry: the middle of those that are coarse, 0 of others; empty where none is."""
        coarse = self.coarse
        middle = np.where(coarse, self.low + (self.high - self.low) / 2, 0.0)
        return tuple(middle.tolist()) if coarse.any() else ()

    @property
    def _size(self) -> np.ndarray:
        return np.maximum(np.abs(self.low), np.abs(self.high))


def less(values: np.ndarray, offset: Sequence[float]) -> np.ndarray:
    """Rows (n, width) less an offset, if there is one, in single precision: subtracted before digits are lost."""
    return (values.astype(np.float64) - np.asarray(offset) if len(offset) else values).astype(np.float32)
