"""Rows of learning curves in CSV files that only grow: what one run or another machine adds, and nothing else changes.

    python benchmarks/learning_rows.py results/control18.csv OTHER/control18.csv

merges the rows of the second file into the first. Rows belong to a run: a task, a variant, a seed, a commit and the
hash of a config. A run whose rows are there already is left as it is; other rows under the name of the same run are
an error, since one of the two must be wrong.
"""

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from training.weights import write_text_atomic

try:
    import fcntl
except ImportError:  # on Windows: one process at a time there
    fcntl = None  # type: ignore[assignment]

COLUMNS = ["task", "variant", "seed", "env_steps", "frames", "return", "seconds", "commit", "config", "threads"]
"""`seconds` are those of training, without evaluation, in rows that name a commit; older rows include it."""

Row = dict[str, str]


class Key(NamedTuple):
    """Which run a row belongs to; commit and config are "" in files from before they were recorded."""

    task: str
    variant: str
    seed: int
    commit: str
    config: str

    def __str__(self) -> str:
        at = f" at commit {self.commit[:8]}, config {self.config}" if self.commit else ""
        return f"{self.task} {self.variant}, seed {self.seed}{at}"


def key(row: Mapping[str, str]) -> Key:
    """The run that a row belongs to."""
    return Key(row["task"], row["variant"], int(row["seed"]), row["commit"], row["config"])


def read(file: Path) -> list[Row]:
    """Every row of a file, in its order; none where there is no file.

    Raises:
        ValueError: naming the file, if it holds something else.
    """
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        table = csv.DictReader(lines)
        missing = [name for name in COLUMNS[:7] if name not in (table.fieldnames or ())]
        if missing:
            raise ValueError(f"{file} holds no learning curves: its first line lacks {', '.join(missing)}")
        rows = [{name: row.get(name) or "" for name in COLUMNS} for row in table]
    broken = next((number for number, row in enumerate(rows, 2) if not row["return"] or not row["seed"].isdecimal()), 0)
    if broken:
        raise ValueError(f"{file}, line {broken} was cut off or is no row of a learning curve: mend or remove it")
    return rows


def runs(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """Rows by run, in the order in which they come."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def merge(file: Path, rows: Iterable[Row]) -> list[Key]:
    """Add the rows of runs that a file does not hold yet; the file is replaced in one step, and no row of it changes.

    Returns:
        The runs that were added.
    Raises:
        ValueError: if the file holds other rows of one of the runs. Then nothing is added.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file.parent):
        before, new = read(file), runs(rows)
        there = runs(before)
        for run in new:
            if run in there and there[run] != new[run]:
                raise ValueError(f"{file} already holds {run}, with other rows: the same run was made twice")
        added = [run for run in new if run not in there]
        if added:
            write_text_atomic(file, _text([*before, *(row for run in added for row in new[run])]))
    return added


def _text(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from merging into files of a folder at the same time."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    into, other = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        if not other.is_file():
            raise ValueError(f"there is no file {other}")
        added = merge(into, read(other))
    except ValueError as error:
        sys.exit(str(error))
    print("\n".join(f"added: {run}" for run in added) or f"{into} holds every run of {other} already")


if __name__ == "__main__":
    main()
