"""A small CSV for those who have only a spreadsheet: one row a mark.

One line is one row: a cell may be quoted, but has no line break. Columns (any order; comma, semicolon or tab between
them; the first line names them):

* ``form``: bidirectional, length, ellipse, circle, polygon, polyline, arrow, point, text or box.
* ``points_px``: the coordinates ``x y x y ...``, spaces between them, ordered as
  :data:`data_prep.bookmark.POINTS_PER_FORM` says (a box: ``x0 y0 x1 y1``).
* ``image`` (path of a slice below the images folder, ``SERIES/NNN.png``) or ``image_uid`` (SOP Instance UID), or both.
* optional ``frame``: ``px`` (0, 0 is the corner of the first pixel; the default), ``index`` (0-based, the first pixel's
  centre is 0) or ``deeplesion`` (1-based, the first pixel's centre is 1; a box is inclusive).
* optional, as in ``bookmarks.parquet``: ``patient_id study_uid series_uid frame_number slice_index rows columns
  spacing_x_mm spacing_y_mm spacing_z_mm stated_long_mm stated_short_mm window_min_hu window_max_hu patient_age modality
  text site laterality finding_code tracking_uid observer patient_sex split``.

Other columns are ignored. Give ``patient_id`` wherever you know it: without it, patients cannot be kept apart.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data_prep import frames
from data_prep.bookmark import MAX_POINTS, POINTS_PER_FORM, Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection
from data_prep.readers._csv_lines import cells_of, lines_of
from data_prep.splits import SPLITS

SOURCE = "csv"

REQUIRED = ("form", "points_px")
WORDS = (
    "patient_id",
    "study_uid",
    "series_uid",
    "image_uid",
    "modality",
    "text",
    "site",
    "laterality",
    "finding_code",
    "tracking_uid",
    "observer",
    "patient_sex",
)
WHOLE_NUMBERS = ("frame_number", "slice_index", "rows", "columns")
NUMBERS = (
    "spacing_x_mm",
    "spacing_y_mm",
    "spacing_z_mm",
    "stated_long_mm",
    "stated_short_mm",
    "window_min_hu",
    "window_max_hu",
    "patient_age",
)
COLUMNS = (*REQUIRED, "image", "frame", "split", *WORDS, *WHOLE_NUMBERS, *NUMBERS)

POINT_FRAMES: dict[str, Callable[[frames.ArrayLike], frames.Array]] = {
    "px": lambda points: np.asarray(points, dtype=np.float64),
    "index": frames.index_to_px,
    "deeplesion": frames.deeplesion_point_to_px,
}

_LONGEST_LINE = 4_000_000  # a polygon of MAX_POINTS points with 40 characters each
_MOST_CELLS = 16_384  # in a line; a spreadsheet has no more columns
_LONGEST_PATH = 1024
_LARGEST_INT = 2**31 - 1
_SEPARATORS = re.compile(r"[\s,;]+")
_log = logging.getLogger(__name__)


def recognise(head: bytes, path: Path) -> bool:
    """Is this such a CSV? Yes where its first line names ``form`` and ``points_px`` among its columns."""
    first_line = head.split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    return set(REQUIRED) <= set(_cells(first_line))


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """Every row as a bookmark, or the reason why not; a row's number is its line, the header being line 1.

    Raises:
        UnreadableError: the file cannot be opened, its first line is no header, or names neither ``image`` nor
            ``image_uid``.
    """
    csv.field_size_limit(_LONGEST_LINE)
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = lines_of(file, _LONGEST_LINE)
            first_line = next(lines, "")
            delimiter = _delimiter(first_line)
            header = _header(first_line, delimiter, path)
            for line_number, line in enumerate(lines, start=2):
                try:
                    cells = cells_of(line, delimiter, _LONGEST_LINE)
                    if not any(cell.strip() for cell in cells):
                        continue
                    if len(cells) > _MOST_CELLS or any(cell.strip() for cell in cells[len(header) :]):
                        raise ValueError(f"the row has {len(cells)} cells, the header {len(header)}")
                    stated = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}
                    yield _bookmark(stated)
                except ValueError as error:
                    yield Rejection("", str(line_number), str(error))
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error


def _header(first_line: str, delimiter: str, path: Path) -> list[str]:
    try:
        header = [name.strip() for name in cells_of(first_line, delimiter, _LONGEST_LINE)]
    except ValueError as error:
        raise UnreadableError(f"{path}: the first line does not name the columns ({error})") from None
    if len(header) > _MOST_CELLS:
        raise UnreadableError(f"{path}: the first line has {len(header)} cells, more than a spreadsheet has columns")
    if "image" not in header and "image_uid" not in header:
        raise UnreadableError(f"{path}: needs a column 'image' or 'image_uid' that says which image was marked")
    if unknown := sorted({name for name in header if name} - set(COLUMNS)):
        _log.info("%s: columns that are not used: %s", path, ", ".join(unknown))
    return header


def _delimiter(first_line: str) -> str:
    return max(",;\t", key=first_line.count)


def _cells(first_line: str) -> list[str]:
    return [name.strip().strip('"') for name in first_line.split(_delimiter(first_line))]


def _bookmark(stated: dict[str, str]) -> Bookmark:
    """One row; raises ValueError with the reason where it is not a mark."""
    form = stated.get("form", "").lower()
    if form not in POINTS_PER_FORM or form == "segmentation":
        raise ValueError(f"form must be one of {', '.join(name for name in POINTS_PER_FORM if name != 'segmentation')}")
    image = safe_image(stated["image"]) if "image" in stated else None
    image_uid = stated.get("image_uid")
    if image is None and image_uid is None:
        raise ValueError("neither image nor image_uid says which image was marked")
    frame = stated.get("frame", "px").lower()
    if frame not in POINT_FRAMES:
        raise ValueError(f"frame must be one of {', '.join(POINT_FRAMES)}")
    points_px = _points_px(stated.get("points_px", ""), form, frame)
    split = stated.get("split")
    if split is not None and split.lower() not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}")
    fields: dict[str, Any] = {name: stated.get(name) for name in WORDS}
    fields |= {name: _number(stated[name], name) for name in NUMBERS if name in stated}
    fields |= {name: _whole(stated[name], name) for name in WHOLE_NUMBERS if name in stated}
    identity = (image or "", image_uid or "", fields.get("frame_number", 1), stated.get("observer", ""))
    return Bookmark(
        bookmark_id=make_id(SOURCE, *identity, stated.get("text", ""), form, *(f"{value:.3f}" for value in points_px)),
        source=SOURCE,
        source_frame="declared" if "frame" in stated else "assumed",
        form=form,
        points_px=points_px,
        image=image,
        split=split.lower() if split else None,
        **fields,
    )


def _points_px(text: str, form: str, frame: str) -> tuple[float, ...]:
    if not text and form == "text":
        return ()
    cells = _SEPARATORS.split(text.strip(" ,;[]()"), maxsplit=2 * MAX_POINTS + 1)
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        raise ValueError("points_px are not numbers with spaces between them") from None
    if not all(map(math.isfinite, values)):
        raise ValueError("points_px are not finite numbers")
    if form == "box":
        if len(values) != 4:
            raise ValueError("a box has four numbers: x0 y0 x1 y1")
        if frame == "deeplesion":
            return tuple(frames.deeplesion_box_to_px(values).tolist())
    return tuple(POINT_FRAMES[frame](values).tolist())


def safe_image(text: str) -> str:
    """A path below the images folder, with ``/``; raises ValueError for one that could lead out of it."""
    if len(text) > _LONGEST_PATH:
        raise ValueError(f"image is longer than {_LONGEST_PATH} characters, as no path is")
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts or re.search(r"[\\:\x00-\x1f]", text):
        raise ValueError("image must be a path below the images folder, like SERIES/NNN.png")
    return str(path)


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{name} is not a number")
    return value


def _whole(text: str, name: str) -> int:
    value = _number(text, name)
    if value != int(value) or not 0 <= value <= _LARGEST_INT:
        raise ValueError(f"{name} is not a whole number")
    return int(value)
