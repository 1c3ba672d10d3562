"""Plain rows of ``DL_info.csv`` -> bookmarks by whole columns.

A row is plain where :mod:`data_prep.readers._deeplesion_rows` would make a ``bidirectional`` mark without a note of
it. What is plain is decided narrowly: a row that is wrongly taken for odd costs time, no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_prep import frames
from data_prep.bookmark import BOOKMARK_SCHEMA, SCHEMA_VERSION, Bookmark, make_id
from data_prep.frames import Array
from data_prep.lesion import COARSE_TYPES
from data_prep.readers._deeplesion_rows import (
    BOX_TOLERANCE_PX,
    COLUMNS,
    FILE_NAME,
    LARGEST_SIDE,
    SOURCE,
    SPLITS,
    number_of,
    sex_of,
)

Mask = npt.NDArray[np.bool_]

_LISTS = {
    "Measurement_coordinates": 8,
    "Bounding_boxes": 4,
    "Lesion_diameters_Pixel_": 2,
    "Normalized_lesion_location": 3,
    "Slice_range": 2,
    "Spacing_mm_px_": 3,
    "Image_size": 2,
    "DICOM_windows": 2,
}
_INDICES = ("Patient_index", "Study_index", "Series_ID", "Key_slice_index")
_NUMBERS = (*_INDICES, "Coarse_lesion_type", "Possibly_noisy", "Patient_age", "Train_Val_Test")
_POINTS_IN_ID = "\x1f".join(["%.3f"] * 8)  # as make_id joins eight parts
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Bookmark)} | {"schema_version": SCHEMA_VERSION}


def plain_rows(rows: Sequence[Sequence[str]]) -> tuple[Mask, pa.Table]:
    """Which of the rows (cells in the order of :data:`COLUMNS`) are plain, and their bookmarks in the same order."""
    if not rows:
        return np.zeros(0, dtype=np.bool_), BOOKMARK_SCHEMA.empty_table()
    cells: dict[str, tuple[str, ...]] = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    # File_name is ASCII here as well: RE2's \d is.
    name = pc.extract_regex(pa.array(cells["File_name"], pa.string()), pattern=f"^{FILE_NAME.pattern}$")
    plain = np.asarray(name.is_valid().to_numpy(zero_copy_only=False))
    values: dict[str, Array] = {column: _numbers(cells[column]) for column in _NUMBERS}
    for column, count in _LISTS.items():
        values[column], complete = _lists(cells[column], count)
        plain &= complete
    plain &= _as_named(name, values) & _as_drawn(values)
    plain &= np.isin(values["Train_Val_Test"], list(SPLITS))
    plain &= np.isin(values["Coarse_lesion_type"], [-1, *COARSE_TYPES])
    chosen = np.flatnonzero(plain)
    sexes = [sex_of(cells["Patient_gender"][i]) for i in chosen.tolist()]
    return plain, _table(name.filter(pa.array(plain)), {key: value[chosen] for key, value in values.items()}, sexes)


def _as_named(name: pa.StructArray, values: Mapping[str, Array]) -> Mask:
    """Whether the index columns say what File_name says."""
    same = np.ones(len(name), dtype=np.bool_)
    for part, column in zip(("patient", "study", "series", "slice"), _INDICES, strict=True):
        stated = pc.cast(pc.struct_field(name, part), pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
        same &= values[column] == stated
    return same


def _as_drawn(values: Mapping[str, Array]) -> Mask:
    """Whether points and box are finite, belong together by the release's rule, and lie in an image of a known size."""
    points, box, size = values["Measurement_coordinates"], values["Bounding_boxes"], np.trunc(values["Image_size"])
    box_px = frames.deeplesion_box_to_px(box)
    ends, pad = points.reshape(-1, 4, 2), frames.DEEPLESION_PADDING_PX
    with np.errstate(invalid="ignore", over="ignore"):
        ruled = np.concatenate([ends.min(axis=1) - pad, ends.max(axis=1) + pad], axis=1)
        good = np.isfinite(points).all(axis=1) & np.isfinite(box).all(axis=1)
        good &= (np.abs(ruled - box) <= BOX_TOLERANCE_PX).all(axis=1)
        good &= (box[:, :2] <= box[:, 2:]).all(axis=1) & (box_px[:, :2] < box_px[:, 2:]).all(axis=1)
        good &= ((values["Image_size"] >= 1) & (values["Image_size"] <= LARGEST_SIDE)).all(axis=1)
        good &= (box_px[:, :2] >= 0).all(axis=1) & (box_px[:, 2:] <= size).all(axis=1)
        good &= ~np.isnan(values["Lesion_diameters_Pixel_"][:, 1])
        return np.asarray(good & (values["Spacing_mm_px_"][:, 0] == values["Spacing_mm_px_"][:, 1]))


def _table(name: pa.StructArray, values: Mapping[str, Array], sexes: list[str | None]) -> pa.Table:
    """The bookmarks of plain rows; ``name`` has the parts of File_name."""
    count = len(name)
    patient, study, series, number = (pc.struct_field(name, part) for part in ("patient", "study", "series", "slice"))
    study_uid = pc.binary_join_element_wise(patient, study, "_")
    series_uid = pc.binary_join_element_wise(study_uid, series, "_")
    points_px = frames.deeplesion_point_to_px(values["Measurement_coordinates"])
    file_names = pc.binary_join_element_wise(series_uid, pc.binary_join_element_wise(number, ".png", ""), "_")
    ids = [
        make_id(SOURCE, file_name, "bidirectional", _POINTS_IN_ID % tuple(points))
        for file_name, points in zip(file_names.to_pylist(), points_px.tolist(), strict=True)
    ]
    spacing, size = values["Spacing_mm_px_"], values["Image_size"].astype(np.int32)
    with np.errstate(invalid="ignore", over="ignore"):
        stated_mm = values["Lesion_diameters_Pixel_"] * np.abs(spacing[:, :1])
    noisy, coarse_type = values["Possibly_noisy"], values["Coarse_lesion_type"].astype(np.int32)
    columns: dict[str, pa.Array] = {
        "bookmark_id": pa.array(ids, pa.string()),
        "source": pa.repeat(SOURCE, count),
        "form": pa.repeat("bidirectional", count),
        "points_px": _list_column(points_px),
        "modality": pa.repeat("CT", count),
        "rows": pa.array(size[:, 1]),
        "columns": pa.array(size[:, 0]),
        "stated_box_px": _list_column(frames.deeplesion_box_to_px(values["Bounding_boxes"])),
        "patient_id": patient,
        "study_uid": study_uid,
        "series_uid": series_uid,
        "image": pc.binary_join_element_wise(series_uid, pc.binary_join_element_wise(number, ".png", ""), "/"),
        "slice_index": pc.cast(number, pa.int32()),
        "patient_sex": pa.array(sexes, pa.string()),
        "patient_age": _finite(values["Patient_age"]),
        # Codes are 1, 2, 3.
        "split": pa.array([None, *SPLITS.values()]).take(pa.array(values["Train_Val_Test"].astype(np.int32))),
        "coarse_type": pa.array(coarse_type, mask=coarse_type == -1),
        "possibly_noisy": pa.array(~np.isnan(noisy) & (noisy != 0)),
    }
    columns |= {f"spacing_{axis}_mm": _finite(spacing[:, k]) for k, axis in enumerate("xyz")}
    columns |= {f"stated_{axis}_mm": _finite(stated_mm[:, k]) for k, axis in enumerate(("long", "short"))}
    columns |= {f"norm_{axis}": _finite(values["Normalized_lesion_location"][:, k]) for k, axis in enumerate("xyz")}
    columns |= {f"window_{end}_hu": _finite(values["DICOM_windows"][:, k]) for k, end in enumerate(("min", "max"))}
    columns |= {f"slice_{end}": _small_int(values["Slice_range"][:, k]) for k, end in enumerate(("first", "last"))}
    arrays = [
        columns[field.name] if field.name in columns else pa.repeat(pa.scalar(_DEFAULTS[field.name], field.type), count)
        for field in BOOKMARK_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=BOOKMARK_SCHEMA)


def _numbers(texts: Sequence[str]) -> Array:
    """Cells of one number each; NaN where it is empty or something else."""
    values = _finite_numbers(pa.array(texts, pa.string()))
    return np.fromiter(map(number_of, texts), np.float64, len(texts)) if values is None else values


def _lists(texts: Sequence[str], count: int) -> tuple[Array, Mask]:
    """Cells of ``count`` numbers each -> (rows, count), and which cells are that; the others are NaN."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if len(places) <= len(texts) // 4:  # sizes, spacings and windows repeat
        values, complete = _lists(list(places), count)
        chosen = np.fromiter(map(places.__getitem__, texts), np.int64, len(texts))
        return values[chosen], complete[chosen]
    if set(map(str.count, texts, repeat(","))) == {count - 1}:
        flat = _finite_numbers(pc.list_flatten(pc.split_pattern(pa.array(texts, pa.string()), ",")))
        if flat is not None:
            return flat.reshape(-1, count), np.ones(len(texts), dtype=np.bool_)
    values = np.full((len(texts), count), np.nan)
    complete = np.zeros(len(texts), dtype=np.bool_)
    for i, text in enumerate(texts):
        parts = text.split(",")
        if len(parts) == count:
            try:
                values[i] = list(map(float, parts))
                complete[i] = True
            except ValueError:
                pass
    return values, complete


def _finite_numbers(texts: pa.StringArray) -> Array | None:
    """The numbers, correctly rounded as Python's are; None where a text is no number, or none that is finite.

    What Arrow takes for a finite number Python does too. Their words for others differ (``nan(1)`` is one to Arrow
    alone), as do spellings that only Python takes (``+1``, ``1_0``): those are left to Python.
    """
    try:
        values = np.asarray(pc.cast(pc.ascii_trim_whitespace(texts), pa.float64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid:
        return None
    return values if np.isfinite(values).all() else None


def _list_column(values: Array) -> pa.ListArray:
    rows, length = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(length)), values.ravel())


def _finite(values: Array) -> pa.Array:
    return pa.array(values, mask=~np.isfinite(values))


def _small_int(values: Array) -> pa.Array:
    known = np.abs(values) < 1e6  # False for NaN
    return pa.array(np.where(known, values, 0).astype(np.int32), mask=~known)
