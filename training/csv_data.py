"""Sequences from a CSV file with a header: one row per time step, columns chosen by name."""

import csv
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from training.data_config import DataConfig
from training.dataset import Dataset, recorded
from training.names import nearest
from worldmodel.spaces import OBSERVATION, ObservationSpec


class Table(NamedTuple):
    """The chosen columns of a file."""

    values: np.ndarray  # (rows, columns) float32
    marks: list[str]  # (rows,) what the sequence column says; empty strings without one
    lines: list[int]  # (rows,) where each row stands, counted from 1


def read_csv(file: Path, source: DataConfig) -> Dataset:
    """All observed columns are one vector x_t, in the order they are named in; so are the controls.

    Raises:
        ValueError: naming file, line and column, for a column that is missing or a cell that is no finite number.
    """
    observed, controlled = source.observations or [], source.controls or []
    table = _read_table(file, observed, controlled, source.sequence)
    x, u = np.split(table.values, [len(observed)], 1)
    if source.delay:
        u = np.roll(u, 1, 0)  # row t's control led to row t + 1; the first row of a sequence has none anyway
    pieces = _pieces(file, table, source.sequence)
    sequences = [recorded({OBSERVATION: x[a:b]}, u[a:b]) for a, b in pieces]
    names = [f"{file}, lines {table.lines[a]}-{table.lines[b - 1]}" for a, b in pieces]
    return Dataset.of({OBSERVATION: ObservationSpec((len(observed),))}, sequences, names)


def _pieces(file: Path, table: Table, mark: str | None) -> list[tuple[int, int]]:
    """First and last row, excluded, of every sequence. A mark that comes back would make two of one, or one of two."""
    starts = [0, *(row for row in range(1, len(table.marks)) if table.marks[row] != table.marks[row - 1])]
    seen: dict[str, int] = {}
    for row in starts:
        if table.marks[row] in seen:
            raise ValueError(
                f"{file}, line {table.lines[row]}, column '{mark}': '{table.marks[row]}' comes back, it began in "
                f"line {table.lines[seen[table.marks[row]]]}: sort the rows, or give every sequence its own mark"
            )
        seen[table.marks[row]] = row
    return list(pairwise([*starts, len(table.marks)]))


def _read_table(file: Path, observed: list[str], controlled: list[str], mark: str | None) -> Table:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = _rows(csv.reader(stream))
            first, header = next(rows, (1, []))
            if not observed:
                raise ValueError(f"{file}: data.observations names no column. {nearest('', header)}")
            named = [*observed, *controlled, *([mark] if mark else [])]
            index = {name: _column(file, first, header, name) for name in named}
            values, marks, lines = [], [], []
            for line, cells in rows:
                if any(cell.strip() for cell in cells[len(header) :]):  # a decimal comma, perhaps
                    raise ValueError(f"{file}, line {line}: {len(cells)} cells, under a header of {len(header)}")
                values.append([_number(file, line, name, cells, index[name]) for name in [*observed, *controlled]])
                marks.append(_cell(file, line, mark, cells, index[mark]) if mark else "")
                lines.append(line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as CSV: {error}") from error
    if not values:
        raise ValueError(f"{file}: holds a header and no rows")
    return Table(np.array(values, np.float32), marks, lines)


def _rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not blank, with its line."""
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num, cells


def _column(file: Path, line: int, header: list[str], name: str) -> int:
    if header.count(name) > 1:
        raise ValueError(f"{file}, line {line}: {header.count(name)} columns are called '{name}'")
    if name not in header:
        raise ValueError(f"{file}, line {line}: there is no column '{name}': {nearest(name, header)}")
    return header.index(name)


def _cell(file: Path, line: int, name: str, cells: list[str], index: int) -> str:
    text = cells[index].strip() if index < len(cells) else ""
    if not text:
        raise ValueError(f"{file}, line {line}, column '{name}': the cell is empty")
    return text


def _number(file: Path, line: int, name: str, cells: list[str], index: int) -> float:
    text = _cell(file, line, name, cells, index)
    try:
        value = float("" if "_" in text else text)  # Python reads 1_000 as a number; nobody writes data so
    except ValueError:
        raise ValueError(f"{file}, line {line}, column '{name}': '{text}' is not a number") from None
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise ValueError(f"{file}, line {line}, column '{name}': {text} is not a finite number")
    return value
