"""``DL_info.csv``: the 18 official columns of the DeepLesion release, one row a lesion.

Format: https://nihcc.app.box.com/v/DeepLesion (README of the release); cite Yan et al., J Med Imaging 5(3), 2018.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from operator import itemgetter
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa

from data_prep.bookmark import BOOKMARK_SCHEMA, Bookmark, records_to_table
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection
from data_prep.readers._csv_lines import cells_of, lines_of
from data_prep.readers._deeplesion_columns import plain_rows
from data_prep.readers._deeplesion_rows import COLUMNS, FILE_NAME, SOURCE, SPLITS, read_rows

__all__ = ["COLUMNS", "FILE_NAME", "SOURCE", "SPLITS", "read", "read_tables", "recognise"]

_LONGEST_LINE = 16_384  # a row of the release has about 350 characters; a longer line is damage
_BATCH = 5_000


def recognise(head: bytes, path: Path) -> bool:
    """Is this a DeepLesion CSV? Yes where its first line names at least three of the official columns."""
    first_line = head.split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    names = {name.strip().strip('"') for name in first_line.split(",")}
    return len(names.intersection(COLUMNS)) >= 3


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """Every row as a bookmark, or the reason why not; a row's number is its line, the header being line 1.

    Points and boxes are brought from the release's frames into px; ``stated_box_px`` is the release's own box. The
    diameters, which the release gives in pixels, become ``stated_*_mm`` by the length of a pixel along each axis. A
    row with a long but no short diameter (``NaN``; our own export writes such rows) becomes a ``length``.

    Raises:
        UnreadableError: the file cannot be opened, or a column is missing.
    """
    for batch in _batches(path):
        marks, rejected = read_rows(zip(batch.lines, batch.rows, strict=True))
        yield from (mark for _, mark in marks)
        yield from _by_line([*batch.damaged, *rejected])


def read_tables(path: Path) -> Iterator[pa.Table | Rejection]:
    """What :func:`read` gives, in the same order, much faster: the bookmarks as tables in ``BOOKMARK_SCHEMA``.

    Plain rows are converted by whole columns; every other one is left to the code behind :func:`read`.
    """
    for batch in _batches(path):
        plain, table = plain_rows(batch.rows)
        lines = np.array(batch.lines, dtype=np.int64)
        odd = np.flatnonzero(~plain).tolist()
        marks, rejected = read_rows((batch.lines[i], batch.rows[i]) for i in odd)
        if marks:
            others = records_to_table((mark for _, mark in marks), Bookmark, BOOKMARK_SCHEMA)
            order = np.argsort(np.concatenate([lines[plain], [line for line, _ in marks]]))
            table = pa.concat_tables([table, others]).take(pa.array(order))
        if table.num_rows:
            yield table
        yield from _by_line([*batch.damaged, *rejected])


def _by_line(rejected: list[Rejection]) -> list[Rejection]:
    return sorted(rejected, key=lambda rejection: int(rejection.row))


# --- lines and cells -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Batch:
    """Some rows, their cells in the order of :data:`COLUMNS`, and the lines among them that are no rows."""

    lines: list[int] = field(default_factory=list)
    rows: list[Sequence[str]] = field(default_factory=list)
    damaged: list[Rejection] = field(default_factory=list)


def _batches(path: Path) -> Iterator[_Batch]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline=None) as file:
            yield from _read(file, path)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error


def _read(file: TextIO, path: Path) -> Iterator[_Batch]:
    header: list[str] = []
    order: list[int] = []
    lines = lines_of(file, _LONGEST_LINE)
    start = 1
    while some := list(islice(lines, _BATCH)):
        batch = _Batch()
        for line_number, cells in enumerate(_cells(some), start):
            if isinstance(cells, str):
                batch.damaged.append(Rejection("", str(line_number), cells))
            elif not cells:
                continue
            elif not order:
                header = cells
                order = _order(cells, path)
                pick, width = itemgetter(*order), max(order) + 1
            elif len(cells) < width:
                reason = f"the row has {len(cells)} cells instead of {len(header)}"
                batch.damaged.append(Rejection("", str(line_number), reason))
            else:
                batch.lines.append(line_number)
                batch.rows.append(pick(cells))
        start += len(some)
        yield batch
    if not order:
        _order([], path)


def _cells(lines: list[str]) -> Sequence[list[str] | str]:
    """The cells of each line, none for a blank one, or in words why it cannot be parsed.

    A quotation mark left open would swallow the lines after it. So where lines and rows do not come out the same
    number, each line is parsed on its own.
    """
    if max(map(len, lines)) < _LONGEST_LINE and not any(
        number % 2 for number in set(map(str.count, lines, repeat('"')))
    ):
        try:
            rows = list(csv.reader(lines))
        except csv.Error:  # a cell that goes on for many lines
            rows = []
        if len(rows) == len(lines):
            return rows
    return list(map(_cells_of, lines))


def _cells_of(line: str) -> list[str] | str:
    try:
        return cells_of(line, ",", _LONGEST_LINE)
    except ValueError as error:
        return str(error)


def _order(header: list[str], path: Path) -> list[int]:
    """Where each of :data:`COLUMNS` stands."""
    names = [name.strip() for name in header]
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UnreadableError(
            f"{path}: the column {', '.join(missing)} is missing; a DeepLesion CSV has the 18 columns of the release"
        )
    return [names.index(name) for name in COLUMNS]
