"""Rows of learning curves in CSV files that only grow: what one run or another machine adds, and nothing else changes.

    python benchmarks/learning_rows.py results/control18.csv OTHER/control18.csv

merges the rows of the second file into the first, and those of the second control18_final.csv into the first one.
Rows belong to a run: a task, a variant, a seed, a commit and the hash of a config. A run whose rows are there already
is left as it is; other rows under the name of the same run are an error, since one of the two must be wrong.
"""

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from worldmodel.training.run.weights import write_text_atomic

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


def final_file(out: Path) -> Path:
    """Where final evaluations and milestones go, beside the CSV of the curves."""
    return out.with_name(f"{out.stem}_final.csv")


def read(file: Path) -> list[Row]:
    """Every row of a file, in its order; none where there is no file.

    Raises:
        ValueError: naming the file, if it holds something else, or a row that was cut off.
    """
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        first, *rest = csv.reader(lines) if file.stat().st_size else [[]]
    if first not in (COLUMNS, COLUMNS[:7]):
        raise ValueError(f"{file} holds no learning curves: its first line is '{','.join(first)}'")
    for number, cells in enumerate(rest, 2):
        needed = cells[2:7] if len(first) > 7 else cells[2:6]  # some old rows do not say their seconds
        if len(cells) != len(first) or not all(map(_is_number, needed)):
            raise ValueError(f"{file}, line {number} was cut off or is no row of a learning curve: mend or remove it")
    return [dict(zip(COLUMNS, [*cells, "", "", ""], strict=False)) for cells in rest]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def runs(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """Rows by run, in the order in which they come."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def one_each(rows: Iterable[Row], commit: str = "") -> list[Row]:
    """The rows of a commit, or how it begins: at most one run of each task, variant and seed.

    Raises:
        ValueError: if there are several, as of two commits, or none.
    """
    found = [row for row in rows if row["commit"].startswith(commit)]
    seen: dict[tuple[str, str, int], Key] = {}
    for run in runs(found):
        if (other := seen.setdefault(run[:3], run)) != run:
            raise ValueError(f"several runs of one seed, {other} and {run}: choose a commit with --commit")
    if not found:
        raise ValueError(f"no rows of commit '{commit}'")
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
        for target, source in ((into, other), (final_file(into), final_file(other))):
            added = merge(target, read(source))
            print(
                "\n".join(f"{target}: added {run}" for run in added) or f"{target} holds every run of {source} already"
            )
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
