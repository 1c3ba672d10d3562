"""One row of ``DL_info.csv`` -> one bookmark: the authority for what is odd about a row and what is said about it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep import frames
from data_prep.bookmark import Bookmark, make_id
from data_prep.lesion import COARSE_TYPES
from data_prep.readers import Rejection

SOURCE = "deeplesion-csv"

COLUMNS = (
    "File_name",
    "Patient_index",
    "Study_index",
    "Series_ID",
    "Key_slice_index",
    "Measurement_coordinates",
    "Bounding_boxes",
    "Lesion_diameters_Pixel_",
    "Normalized_lesion_location",
    "Coarse_lesion_type",
    "Possibly_noisy",
    "Slice_range",
    "Spacing_mm_px_",
    "Image_size",
    "DICOM_windows",
    "Patient_gender",
    "Patient_age",
    "Train_Val_Test",
)
SPLITS = {1: "train", 2: "validation", 3: "test"}

# Only this form may become a path. Two official slices have four digits (000676_01_01_1022.png).
FILE_NAME = re.compile(r"(?P<patient>\d{6,8})_(?P<study>\d{2,4})_(?P<series>\d{2,4})_(?P<slice>\d{3,5})\.png", re.ASCII)

LARGEST_SIDE = 65_535  # DICOM's Rows and Columns are unsigned 16-bit
LONGEST_SEX = 16  # DICOM's CS
BOX_TOLERANCE_PX = 0.01


@dataclass(slots=True)
class _Row:
    """A row whose numbers were read, still in the release's frames; ``fields`` go to the bookmark as they are."""

    line_number: int
    file_name: str
    points: list[float]
    box: list[float]
    columns: int | None
    rows: int | None
    has_short: bool
    fields: dict[str, Any]


def read_rows(rows: Iterable[tuple[int, Sequence[str]]]) -> tuple[list[tuple[int, Bookmark]], list[Rejection]]:
    """Line numbers and cells (in the order of :data:`COLUMNS`) -> marks with their line numbers, and rejections."""
    parsed: list[_Row] = []
    rejected: list[Rejection] = []
    for line_number, cells in rows:
        try:
            parsed.append(_parse(line_number, *cells))
        except ValueError as error:
            rejected.append(Rejection("", str(line_number), str(error)))
    marks: list[tuple[int, Bookmark]] = []
    if parsed:  # one array operation for all rows, not one a row
        points_px = frames.deeplesion_point_to_px([row.points for row in parsed]).tolist()
        boxes_px = frames.deeplesion_box_to_px([row.box for row in parsed]).tolist()
        for row, points, box in zip(parsed, points_px, boxes_px, strict=True):
            try:
                marks.append((row.line_number, _bookmark(row, points, box)))
            except ValueError as error:
                rejected.append(Rejection("", str(row.line_number), str(error)))
    return marks, rejected


def _parse(
    line_number: int,
    file_name: str,
    patient_index: str,
    study_index: str,
    series_id: str,
    key_slice_index: str,
    measurement_coordinates: str,
    bounding_boxes: str,
    diameters_px: str,
    normalized_location: str,
    coarse_lesion_type: str,
    possibly_noisy: str,
    slice_range: str,
    spacing_mm: str,
    image_size: str,
    windows: str,
    gender: str,
    age: str,
    split: str,
) -> _Row:
    """Raises ValueError where the row has no usable mark."""
    name = FILE_NAME.fullmatch(file_name.strip())
    if name is None:
        raise ValueError("File_name is not like 000001_01_01_109.png")
    patient, study, series, number = name.groups()
    slice_index = int(number)
    notes: list[str] = []
    named = (int(patient), int(study), int(series), slice_index)
    if tuple(map(number_of, (patient_index, study_index, series_id, key_slice_index))) != named:
        notes.append("the index columns differ from File_name, which was taken")

    points = _numbers(measurement_coordinates, 8, "Measurement_coordinates")
    box = _numbers(bounding_boxes, 4, "Bounding_boxes")
    if not all(map(math.isfinite, points)):
        raise ValueError("Measurement_coordinates are not finite numbers")
    if not all(map(math.isfinite, box)) or box[0] > box[2] or box[1] > box[3]:
        raise ValueError("Bounding_boxes is not a box (x1, y1, x2, y2)")
    columns, rows = map(_side, _numbers(image_size, 2, "Image_size"))
    spacing = _numbers(spacing_mm, 3, "Spacing_mm_px_")
    long_px, short_px = _numbers(diameters_px, 2, "Lesion_diameters_Pixel_")
    has_short = math.isnan(long_px) or not math.isnan(short_px)
    if not has_short:
        notes.append("the row states no short diameter; its long axis alone was taken")
    elif _rule_differs(points, box):
        notes.append("the box is not the bounds of the diameters ± 5 px; the stated box was kept")

    first, last = map(_small_int, _numbers(slice_range, 2, "Slice_range"))
    norm_x, norm_y, norm_z = map(_finite, _numbers(normalized_location, 3, "Normalized_lesion_location"))
    window_min_hu, window_max_hu = map(_finite, _numbers(windows, 2, "DICOM_windows"))
    split_code, type_code, noisy = number_of(split), number_of(coarse_lesion_type), number_of(possibly_noisy)
    if split_code not in SPLITS:
        notes.append("Train_Val_Test is not 1, 2 or 3")
    known_type = type_code in COARSE_TYPES
    if not known_type and type_code != -1:
        notes.append("Coarse_lesion_type is not -1 or 1 to 8")
    fields = {
        "patient_id": patient,
        "study_uid": f"{patient}_{study}",
        "series_uid": f"{patient}_{study}_{series}",
        "image": f"{patient}_{study}_{series}/{number}.png",
        "slice_index": slice_index,
        "spacing_x_mm": _finite(spacing[0]),
        "spacing_y_mm": _finite(spacing[1]),
        "spacing_z_mm": _finite(spacing[2]),
        "stated_long_mm": _stated_mm(long_px, points[:4], spacing),
        "stated_short_mm": _stated_mm(short_px, points[4:], spacing),
        "window_min_hu": window_min_hu,
        "window_max_hu": window_max_hu,
        "norm_x": norm_x,
        "norm_y": norm_y,
        "norm_z": norm_z,
        "slice_first": first,
        "slice_last": last,
        "patient_sex": sex_of(gender),
        "patient_age": _finite(number_of(age)),
        "split": SPLITS.get(int(split_code)) if split_code in SPLITS else None,
        "coarse_type": int(type_code) if known_type else None,
        "possibly_noisy": not math.isnan(noisy) and noisy != 0,
        "note": "; ".join(notes) or None,
    }
    return _Row(line_number, file_name.strip(), points, box, columns, rows, has_short, fields)


def _bookmark(row: _Row, points: list[float], box: list[float]) -> Bookmark:
    """The mark of a row, ``points`` and ``box`` in px; ValueError where there is none."""
    # Nearly every box lies inside; only the few others need the exact test.
    if (
        row.columns is not None
        and row.rows is not None
        and (box[0] < 0 or box[1] < 0 or box[2] > row.columns or box[3] > row.rows)
        and frames.clip_box(box, row.columns, row.rows) is None
    ):
        raise ValueError("the box lies wholly outside its image")
    form = "bidirectional" if row.has_short else "length"
    kept = tuple(points if row.has_short else points[:4])
    return Bookmark(
        bookmark_id=make_id(SOURCE, row.file_name, form, *(f"{value:.3f}" for value in kept)),
        source=SOURCE,
        form=form,
        points_px=kept,
        modality="CT",
        rows=row.rows,
        columns=row.columns,
        stated_box_px=tuple(box),
        **row.fields,
    )


def number_of(text: str) -> float:
    """A cell of one number; NaN where it is empty or something else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def sex_of(text: str) -> str | None:
    """``Patient_gender``; None where it is empty or too long to be one."""
    sex = text.strip()
    return sex if sex and len(sex) <= LONGEST_SEX else None


def _numbers(text: str, count: int, column: str) -> list[float]:
    try:
        values = list(map(float, text.split(",")))
    except ValueError:
        raise ValueError(f"{column} are not numbers") from None
    if len(values) != count:
        raise ValueError(f"{column} has {len(values)} numbers instead of {count}")
    return values


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _side(value: float) -> int | None:
    """A side of the image in pixels, None where the row does not state it."""
    if math.isnan(value):
        return None
    if not 1 <= value <= LARGEST_SIDE:
        raise ValueError("Image_size is not the size of an image")
    return int(value)


def _small_int(value: float) -> int | None:
    return int(value) if abs(value) < 1e6 else None


def _stated_mm(stated_px: float, axis: list[float], spacing_mm: list[float]) -> float | None:
    """A diameter stated in pixels -> mm, by the length of one pixel along that axis."""
    if spacing_mm[0] == spacing_mm[1]:  # always so in the release
        return _finite(stated_px * abs(spacing_mm[0]))
    length_px = frames.length_mm(axis[:2], axis[2:], (1.0, 1.0))
    if not length_px:
        return None
    return _finite(stated_px / length_px * frames.length_mm(axis[:2], axis[2:], spacing_mm[:2]))


def _rule_differs(points: list[float], box: list[float]) -> bool:
    """Whether the box is not the release's own rule; both in the release's frame."""
    xs, ys, pad = points[::2], points[1::2], frames.DEEPLESION_PADDING_PX
    expected = (min(xs) - pad, min(ys) - pad, max(xs) + pad, max(ys) + pad)
    return any(abs(a - b) > BOX_TOLERANCE_PX for a, b in zip(expected, box, strict=True))
