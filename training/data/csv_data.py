"""Read sequences from a CSV file with a header: one row per time step, with columns chosen by name."""

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
    """The chosen columns of a CSV file."""

    values: np.ndarray  # (rows, columns) float64
    lines: list[int]  # (rows,) the line of each row in the file, counted from 1
    marks: list[str]  # (rows,) the sequence column; empty strings if there is none
    breaks: list[int]  # the rows before which the file has blank lines, or repeats its header
    watched: dict[str, Watched]  # every column by name


def read_csv(file: Path, source: DataConfig) -> Dataset:
    """Read a CSV file. The observed columns form one vector x_t, in the order of `data.observations`.

    The control columns form one vector in the same way.

    Raises:
        ValueError: if a column is missing, a cell is not a finite number, or the table looks like several recordings
            and `data.sequence` is not set. The message names the file, the line and the column.
    """
    observed, table = source.observations or [], _read_table(file, source)
    x, u = np.split(table.values, [len(observed)], 1)
    spec = ObservationSpec((len(observed),), names=tuple(observed), offset=Range.of([x]).offset)
    offset = Range.of([u]).offset
    x, u = spec.encode(x), less(u, offset)
    if source.delay:
        u = np.roll(u, 1, 0)  # the control of row t leads to row t + 1; the first row of a sequence has none anyway
    begins, notes = _begins(file, table, source)
    pieces = list(pairwise([*begins, len(x)]))
    sequences = [recorded({OBSERVATION: x[a:b]}, u[a:b]) for a, b in pieces]
    names = [f"{file}, lines {table.lines[a]}-{table.lines[b - 1]}" for a, b in pieces]
    return Dataset.of({OBSERVATION: spec}, sequences, names, control_offset=offset, notes=notes)


def _begins(file: Path, table: Table, source: DataConfig) -> tuple[list[int], tuple[str, ...]]:
    """Return the first row of every sequence, and notes about the division for the user."""
    if source.sequence is False:
        return [0], ()
    if isinstance(source.sequence, str):
        return _marked(file, table, source.sequence), ()
    begins = [0, *table.breaks]
    lone = sum(b - a == 1 for a, b in pairwise([*begins, len(table.lines)]))
    notes: tuple[str, ...] = ()
    if 2 * lone > len(begins):  # blank lines between all rows are a matter of format
        begins, notes = [0], (f"{file}: there are blank lines between most rows. They are ignored.",)
    if len(begins) > 1:
        first = table.lines[begins[1]]
        note = (
            f"{file}: {len(begins)} sequences, separated by blank lines or repeated headers. The second begins in line "
            f"{first}. Set data.sequence: false to join them."
        )
        return begins, (note,)
    asked = question(str(file), table.watched.values(), [*(source.observations or []), *(source.controls or [])])
    if asked:
        raise ValueError(asked)
    return [0], notes


def _marked(file: Path, table: Table, mark: str) -> list[int]:
    """Return the first row of every sequence: the rows in which the column `mark` changes.

    If its value rises in every row, like a time, these are the rows in which it falls.

    Raises:
        ValueError: if the value never falls although it is a time, or if a value reappears after another one. It is
            then unclear whether that is the same sequence.
    """
    watched = table.watched[mark]
    if watched.rises and len(table.marks) > 1:
        if not watched.falls:
            raise ValueError(
                f"{file}, column '{mark}': the values rise in every row and never fall, so no sequence ends. Leave "
                "data.sequence out, or name a column that has one value in each sequence."
            )
        row_of = {line: row for row, line in enumerate(table.lines)}
        return [0, *(row_of[line] for line in watched.falls)]
    begins = [0, *(row for row in range(1, len(table.marks)) if table.marks[row] != table.marks[row - 1])]
    seen: dict[str, int] = {}
    for row in begins:
        if table.marks[row] in seen:
            raise ValueError(
                f"{file}, line {table.lines[row]}, column '{mark}': '{table.marks[row]}' appears again after line "
                f"{table.lines[seen[table.marks[row]]]}. Sort the rows, or give every sequence its own value."
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
                raise ValueError(f"{file}: data.observations names no column. {nearest('', header)}.")
            named = [*observed, *controlled, *([mark] if mark else [])]
            index = {name: _column(file, first, header, name) for name in named}
            watched = [Watched(name) for name in header]
            for line, cells in rows:
                if not cells or cells == header:
                    gap = True
                    continue
                if any(cell.strip() for cell in cells[len(header) :]):  # perhaps decimal commas
                    raise ValueError(
                        f"{file}, line {line}: the row has {len(cells)} cells, but the header has {len(header)}."
                    )
                if gap and values:
                    breaks.append(len(values))
                gap = False
                values.append([_number(file, line, name, cells, index[name]) for name in [*observed, *controlled]])
                marks.append(_cell(file, line, mark, cells, index[mark]) if mark else "")
                lines.append(line)
                for column, cell in zip(watched, cells, strict=False):
                    column.see(line, cell.strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as CSV: {error}.") from error
    if not values:
        raise ValueError(f"{file}: the file has a header, but no rows.")
    return Table(np.array(values), lines, marks, breaks, {column.name: column for column in watched})


def _rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield every row with its line number. A blank row has no cells."""
    for cells in reader:
        yield reader.line_num, cells if any(cell.strip() for cell in cells) else []


def _column(file: Path, line: int, header: list[str], name: str) -> int:
    if header.count(name) > 1:
        raise ValueError(f"{file}, line {line}: {header.count(name)} columns are called '{name}'.")
    if name not in header:
        raise ValueError(f"{file}, line {line}: there is no column '{name}': {nearest(name, header)}.")
    return header.index(name)


def _cell(file: Path, line: int, name: str, cells: list[str], index: int) -> str:
    text = cells[index].strip() if index < len(cells) else ""
    if not text:
        raise ValueError(f"{file}, line {line}, column '{name}': the cell is empty.")
    return text


def _number(file: Path, line: int, name: str, cells: list[str], index: int) -> float:
    text = _cell(file, line, name, cells, index)
    try:
        value = float("" if "_" in text else text)  # Python accepts 1_000, which is not a number in a CSV
    except ValueError:
        raise ValueError(f"{file}, line {line}, column '{name}': '{text}' is not a number.") from None
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise ValueError(f"{file}, line {line}, column '{name}': {text} is not a finite number.")
    return value
