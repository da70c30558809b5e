"""Detect columns of a table that seem to separate several recordings, so that the user can be asked about them."""

import math
import re
from collections.abc import Iterable
from datetime import datetime

TIME_WORDS = {
    "time",
    "times",
    "t",
    "timestamp",
    "datetime",
    "date",
    "step",
    "steps",
    "index",
    "frame",
    "seconds",
    "sec",
    "ms",
}
SEQUENCE_WORDS = {
    *("experiment", "experiments", "exp", "episode", "ep", "run", "trial", "sequence", "seq", "session", "series"),
    *("trajectory", "traj", "recording", "subject", "segment", "rollout", "batch", "file", "group", "id"),
}
MAX_FALL_SHARE = 0.25  # share of rows; a column that falls more often is not a time
MAX_DISTINCT_VALUES = 10_000  # values of a column to remember


class Watched:
    """Statistics of one column, which is read row by row.

    Attributes:
        changes: lines in which the text differs from that in the previous row.
        falls: lines in which the number, or the date, is smaller than that in the previous row.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.words = set(re.findall(r"[a-z]+", name.lower()))
        self.rows = 0
        self.changes, self.falls = list[int](), list[int]()
        self.returns = False  # a value appears again after another one
        self.counts = True  # every new value is the previous one plus 1
        self.ordered = True  # every value is a number or a date
        self._text: str | None = None
        self._number = math.nan
        self._seen = set[str]()

    def see(self, line: int, text: str) -> None:
        """Add the cell of the next row."""
        self.rows += 1
        if text == self._text:
            return
        number = ordinal(text)
        self.ordered &= not math.isnan(number)
        if self._text is not None:
            self.changes.append(line)
            self.counts &= number == self._number + 1
            if number < self._number:
                self.falls.append(line)
        self.returns |= text in self._seen
        if len(self._seen) < MAX_DISTINCT_VALUES:
            self._seen.add(text)
        self._text, self._number = text, number

    @property
    def blocks(self) -> bool:
        """Return whether the column numbers or names recordings: few values, each in one block of rows."""
        telling = self.counts or not self.ordered or bool(self.words & SEQUENCE_WORDS)
        return telling and not self.returns and 0 < len(self.changes) < self.rows / 2 - 1

    @property
    def clock(self) -> bool:
        """Return whether the column has the name of a time, and rises with a few falls."""
        return bool(self.words & TIME_WORDS) and self.ordered and 0 < len(self.falls) <= MAX_FALL_SHARE * self.rows

    @property
    def rises(self) -> bool:
        """Return whether the number changes in every row, as a time does. Sequences then begin where it falls."""
        return self.ordered and len(self.changes) == self.rows - 1


def ordinal(text: str) -> float:
    """Return the number that a text spells, the timestamp of a date, or NaN for any other text."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def question(file: str, columns: Iterable[Watched], chosen: Iterable[str]) -> str | None:
    """Return the question whether a table is really one sequence, or None if no column suggests otherwise.

    Args:
        chosen: the observed and the control columns. A step or a ramp in them is a signal, so among them only a time
            leads to a question.
    """
    known, signals = list(columns), set(chosen)
    answer = "or to false if all rows are one sequence."
    for column in known:
        if column.blocks and column.name not in signals:
            where, count = f"{file}, line {column.changes[0]}: column '{column.name}'", len(column.changes) + 1
            return (
                f"{where} has {count} values, each in one block of rows, as if the file held {count} recordings. "
                f"Set data.sequence to {column.name}, {answer}"
            )
    for column in known:
        if column.clock:
            where = f"{file}, line {column.falls[0]}: column '{column.name}'"
            remedy = f"to {column.name} to begin a sequence at each fall, to a column with one value in each sequence"
            return f"{where} falls, as if another recording began there. Set data.sequence {remedy}, {answer}"
    return None
