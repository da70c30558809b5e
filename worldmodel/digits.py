"""Offsets that keep the digits which single precision would lose.

The distance between two neighbouring numbers in single precision grows with their size. Near 1.7e9, the present number
of seconds since 1970, it is 128. Near 5.3e6, a coordinate of a map in metres, it is 0.5.
"""

from collections.abc import Iterable, Sequence

import numpy as np

FEWEST_STEPS = 1000.0
"""The fewest steps of single precision that a range must have.

With fewer, a step would be large compared with the smallest standard deviation that an output can have.
"""

NOISE = 1e-13
"""A range below this share of the size of its numbers is attributed to rounding in double precision."""


class Range:
    """The smallest and the largest value of each column of rows (n, width), in double precision."""

    def __init__(self, width: int) -> None:
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    @staticmethod
    def of(parts: Iterable[np.ndarray]) -> "Range":
        """Return the range of all rows (n, width) of several arrays. There must be at least one array."""
        found: Range | None = None
        for rows in parts:
            found = found or Range(rows.shape[1])
            found.see(rows)
        assert found is not None
        return found

    def see(self, rows: np.ndarray) -> None:
        """Extend the range by more rows (n, width)."""
        if len(rows):
            np.minimum(self.low, rows.min(0), out=self.low)
            np.maximum(self.high, rows.max(0), out=self.high)

    @property
    def step(self) -> np.ndarray:
        """The distance between neighbours in single precision, for numbers of this size: (width,)."""
        with np.errstate(over="ignore"):
            below = np.nextafter(self._size.astype(np.float32), np.float32(0))  # the largest number has none above
        return below.astype(np.float64) - np.nextafter(below, np.float32(0))

    @property
    def coarse(self) -> np.ndarray:
        """Whether each column varies so little compared with its size that single precision blurs it: (width,) bool.

        A column that does not vary is not coarse.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            span = self.high - self.low
            return np.isfinite(span) & (span > NOISE * self._size) & (span < FEWEST_STEPS * self.step)

    @property
    def offset(self) -> tuple[float, ...]:
        """The numbers to subtract: the middle of the range of each coarse column, and 0 for the others.

        It is empty if no column is coarse.
        """
        coarse = self.coarse
        middle = np.where(coarse, self.low + (self.high - self.low) / 2, 0.0)
        return tuple(middle.tolist()) if coarse.any() else ()

    @property
    def _size(self) -> np.ndarray:
        return np.maximum(np.abs(self.low), np.abs(self.high))


def less(values: np.ndarray, offset: Sequence[float]) -> np.ndarray:
    """Return rows (n, width) minus an offset, in single precision. An empty offset subtracts nothing.

    The difference is taken in double precision, before digits are lost.
    """
    return (values.astype(np.float64) - np.asarray(offset) if len(offset) else values).astype(np.float32)
