"""Where one recording ends and the next begins in a table that does not say so: what a person should be asked about."""

import math
import re
from collections.abc import Iterable
from datetime import datetime

TIME = {
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
MARKS = {
    *("experiment", "experiments", "exp", "episode", "ep", "run", "trial", "sequence", "seq", "session", "series"),
    *("trajectory", "traj", "recording", "subject", "segment", "rollout", "batch", "file", "group", "id"),
}
RARE = 0.25  # share of rows: what falls more often is no clock
MOST = 10_000  # values of a column that are told apart


class Watched:
    """One column, seen row by row.

    Attributes:
        changes: lines in which its text is another than in the row before.
        falls: lines in which its number, or its date, is smaller than in the row before.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.words = set(re.findall(r"[a-z]+", name.lower()))
        self.rows = 0
        self.changes, self.falls = list[int](), list[int]()
        self.returns = False  # a value comes back after another one
        self.counts = True  # every value is a whole number, one more than that before
        self.ordered = True  # every value is a number or a date
        self._text: str | None = None
        self._number = math.nan
        self._seen = set[str]()

    def see(self, line: int, text: str) -> None:
        """Take the cell of one more row."""
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
        if len(self._seen) < MOST:
            self._seen.add(text)
        self._text, self._number = text, number

    @property
    def blocks(self) -> bool:
        """Whether it numbers or names recordings: few values, each in one block of rows."""
        telling = self.counts or not self.ordered or bool(self.words & MARKS)
        return telling and not self.returns and 0 < len(self.changes) < self.rows / 2 - 1

    @property
    def clock(self) -> bool:
        """Whether it is called like a time, rises, and falls now and then."""
        return bool(self.words & TIME) and self.ordered and 0 < len(self.falls) <= RARE * self.rows

    @property
    def rises(self) -> bool:
        """Whether it is another number in every row, such as a time: no mark, but its falls are."""
        return self.ordered and len(self.changes) == self.rows - 1


def ordinal(text: str) -> float:
    """A number or a date as a number; NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def question(file: str, columns: Iterable[Watched], chosen: Iterable[str]) -> str | None:
    """What to ask about a table that is to be one sequence; None if nothing speaks against it.

    Args:
        chosen: columns that are observed or control: of these a step or a ramp is a signal, and only a time is told.
    """
    known, signals = list(columns), set(chosen)
    answer = "or to false if all rows are one sequence"
    for column in known:
        if column.blocks and column.name not in signals:
            where, count = f"{file}, line {column.changes[0]}: column '{column.name}'", len(column.changes) + 1
            return (
                f"{where} has {count} values, each in one block of rows, as if so many recordings followed each other: "
                f"set data.sequence to {column.name}, {answer}"
            )
    for column in known:
        if column.clock:
            where = f"{file}, line {column.falls[0]}: column '{column.name}'"
            remedy = f"to {column.name}, whose falls end a sequence, to a column that has one value in each sequence"
            return f"{where} falls, as if another recording began there: set data.sequence {remedy}, {answer}"
    return None
