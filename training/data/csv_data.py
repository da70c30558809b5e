"""Sequences from a CSV file with a header: one row per time step, columns chosen by name."""

import csv
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from worldmodel.digits import Range, less
from worldmodel.specs import OBSERVATION, ObservationSpec
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.config.names import nearest
from worldmodel.training.data.dataset import Dataset, recorded
from worldmodel.training.data.separators import Watched, question


class Table(NamedTuple):
    """The chosen columns of a file."""

    values: np.ndarray  # (rows, columns) float64
    lines: list[int]  # (rows,) where each row stands, counted from 1
    marks: list[str]  # (rows,) what the sequence column says; empty strings without one
    breaks: list[int]  # rows before which the file has blank lines, or its header again
    watched: dict[str, Watched]  # every column


def read_csv(file: Path, source: DataConfig) -> Dataset:
    """All observed columns are one vector x_t, in the order they are named in; so are the controls.

    Raises:
        ValueError: naming file, line and column, for a column that is missing or a cell that is no finite number; and
            for a table that looks like several recordings, unless `data.sequence` says what it is.
    """
    observed, table = source.observations or [], _read_table(file, source)
    x, u = np.split(table.values, [len(observed)], 1)
    spec = ObservationSpec((len(observed),), names=tuple(observed), offset=Range.of([x]).offset)
    offset = Range.of([u]).offset
    x, u = spec.encode(x), less(u, offset)
    if source.delay:
        u = np.roll(u, 1, 0)  # row t's control led to row t + 1; the first row of a sequence has none anyway
    begins, notes = _begins(file, table, source)
    pieces = list(pairwise([*begins, len(x)]))
    sequences = [recorded({OBSERVATION: x[a:b]}, u[a:b]) for a, b in pieces]
    names = [f"{file}, lines {table.lines[a]}-{table.lines[b - 1]}" for a, b in pieces]
    return Dataset.of({OBSERVATION: spec}, sequences, names, control_offset=offset, notes=notes)


def _begins(file: Path, table: Table, source: DataConfig) -> tuple[list[int], tuple[str, ...]]:
    """The first row of every sequence, and what to tell of that."""
    if source.sequence is False:
        return [0], ()
    if isinstance(source.sequence, str):
        return _marked(file, table, source.sequence), ()
    begins = [0, *table.breaks]
    lone = sum(b - a == 1 for a, b in pairwise([*begins, len(table.lines)]))
    notes: tuple[str, ...] = ()
    if 2 * lone > len(begins):  # between all rows: how the file is written
        begins, notes = [0], (f"{file}: blank lines stand between most rows, and end no sequence",)
    if len(begins) > 1:
        first = table.lines[begins[1]]
        why = f"since blank lines or its header stand between them (the second begins in line {first})"
        return begins, (f"{file}: {len(begins)} sequences, {why}; data.sequence: false joins them",)
    asked = question(str(file), table.watched.values(), [*(source.observations or []), *(source.controls or [])])
    if asked:
        raise ValueError(asked)
    return [0], notes


def _marked(file: Path, table: Table, mark: str) -> list[int]:
    """Rows where the mark changes; where it rises like a time, those where it falls.

    A mark that comes back would make two of one, or one of two.
    """
    watched = table.watched[mark]
    if watched.rises and len(table.marks) > 1:
        if not watched.falls:
            raise ValueError(
                f"{file}, column '{mark}': it rises in every row and never falls, so that no sequence ends: leave "
                "data.sequence out, or name a column that has one value in each sequence"
            )
        row_of = {line: row for row, line in enumerate(table.lines)}
        return [0, *(row_of[line] for line in watched.falls)]
    begins = [0, *(row for row in range(1, len(table.marks)) if table.marks[row] != table.marks[row - 1])]
    seen: dict[str, int] = {}
    for row in begins:
        if table.marks[row] in seen:
            raise ValueError(
                f"{file}, line {table.lines[row]}, column '{mark}': '{table.marks[row]}' comes back, it began in "
                f"line {table.lines[seen[table.marks[row]]]}: sort the rows, or give every sequence its own mark"
            )
        seen[table.marks[row]] = row
    return begins


def _read_table(file: Path, source: DataConfig) -> Table:
    observed, controlled = source.observations or [], source.controls or []
    mark = source.sequence if isinstance(source.sequence, str) else None
    values, lines, marks, breaks, gap = list[list[float]](), list[int](), list[str](), list[int](), False
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = _rows(csv.reader(stream))
            first, header = next((row for row in rows if row[1]), (1, []))
            if not observed:
                raise ValueError(f"{file}: data.observations names no column. {nearest('', header)}")
            named = [*observed, *controlled, *([mark] if mark else [])]
            index = {name: _column(file, first, header, name) for name in named}
            watched = [Watched(name) for name in header]
            for line, cells in rows:
                if not cells or cells == header:
                    gap = True
                    continue
                if any(cell.strip() for cell in cells[len(header) :]):  # a decimal comma, perhaps
                    raise ValueError(f"{file}, line {line}: {len(cells)} cells, under a header of {len(header)}")
                if gap and values:
                    breaks.append(len(values))
                gap = False
                values.append([_number(file, line, name, cells, index[name]) for name in [*observed, *controlled]])
                marks.append(_cell(file, line, mark, cells, index[mark]) if mark else "")
                lines.append(line)
                for column, cell in zip(watched, cells, strict=False):
                    column.see(line, cell.strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as CSV: {error}") from error
    if not values:
        raise ValueError(f"{file}: holds a header and no rows")
    return Table(np.array(values), lines, marks, breaks, {column.name: column for column in watched})


def _rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Every row with its line; a blank one has no cells."""
    for cells in reader:
        yield reader.line_num, cells if any(cell.strip() for cell in cells) else []


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
