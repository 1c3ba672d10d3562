"""DeepLesion rows -> lesions by whole columns: what :func:`data_prep.merge.merge` gives row by row, much faster.

A row of the release is one lesion with the release's own box, so nothing has to be compared with anything; a million
rows would otherwise spend most of the time making objects.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.bookmark import SCHEMA_VERSION, make_id
from data_prep.frames import Array
from data_prep.lesion import LESION_SCHEMA
from data_prep.merge import DISAGREES_MM, DISAGREES_RELATIVE
from data_prep.readings import RIGHT_ANGLE_TOLERANCE_DEG, odd_pair


def is_release_row(table: pa.Table) -> pa.ChunkedArray:
    """Which bookmarks (rows of a bookmark table) this module takes: whole DeepLesion rows."""
    return pc.and_(
        pc.and_(pc.equal(table["source"], "deeplesion-csv"), pc.equal(table["form"], "bidirectional")),
        pc.is_valid(table["stated_box_px"]),
    )


def release_lesions(table: pa.Table) -> pa.Table:
    """Bookmark rows that :func:`is_release_row` -> lesion rows in the same order."""
    rows = table.num_rows
    points = _lists(table["points_px"], rows, 8)
    box = _lists(table["stated_box_px"], rows, 4)
    spacing = np.stack([_spacing(table["spacing_x_mm"]), _spacing(table["spacing_y_mm"])], axis=1)
    steps = points.reshape(rows, 4, 2)
    axes = np.stack([steps[:, 1] - steps[:, 0], steps[:, 3] - steps[:, 2]], axis=1)  # (rows, long/short, x/y)
    drawn_mm = np.linalg.norm(axes * spacing[:, None, :], axis=2)
    stated_mm = np.stack([_floats(table["stated_long_mm"]), _floats(table["stated_short_mm"])], axis=1)
    with np.errstate(invalid="ignore"):
        disagrees = np.abs(stated_mm - drawn_mm) > np.minimum(DISAGREES_MM, DISAGREES_RELATIVE * drawn_mm)

    ids = table["bookmark_id"].to_pylist()
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        name: table[name] for name in LESION_SCHEMA.names if name in table.column_names
    }
    columns |= {
        "lesion_id": pa.array([make_id("lesion", bookmark_id) for bookmark_id in ids], pa.string()),
        "schema_version": pa.array([SCHEMA_VERSION] * rows, pa.int32()),
        "bookmark_ids": pa.array([[bookmark_id] for bookmark_id in ids], pa.list_(pa.string())),
        "recist_px": table["points_px"],
        "centre_x": pa.array((box[:, 0] + box[:, 2]) / 2),
        "centre_y": pa.array((box[:, 1] + box[:, 3]) / 2),
        "long_diameter_mm": _nullable(drawn_mm[:, 0]),
        "short_diameter_mm": _nullable(drawn_mm[:, 1]),
        "measurement_disagrees": pa.array(disagrees.any(axis=1)),
        "review": pa.array(["unreviewed"] * rows, pa.string()),
        "note": pa.array(_notes(steps, axes, table["note"].to_pylist()), pa.string()),
    }
    columns |= {name: pa.array(box[:, k]) for k, name in enumerate(("x0", "y0", "x1", "y1"))}
    arrays = [_cast(columns[field.name], field) for field in LESION_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=LESION_SCHEMA)


def _cast(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    return column if column.type == field.type else column.cast(field.type)


def _lists(column: pa.ChunkedArray, rows: int, length: int) -> Array:
    """A column of lists of one length -> (rows, length)."""
    return np.asarray(pc.list_flatten(column).to_numpy(), dtype=np.float64).reshape(rows, length)


def _floats(column: pa.ChunkedArray) -> Array:
    return np.asarray(column.to_numpy(), dtype=np.float64)  # null -> NaN


def _spacing(column: pa.ChunkedArray) -> Array:
    """Magnitudes; NaN where a spacing is missing or zero (see ``positive_or_none``)."""
    values = np.abs(_floats(column))
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _nullable(values: Array) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)  # NaN -> null


def _notes(steps: Array, axes: Array, stated: list[str | None]) -> list[str | None]:
    """The rows' own notes with those of :func:`odd_pair`, which is asked only about pairs that may be odd."""
    long_px, short_px = np.linalg.norm(axes, axis=2).T
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.abs((axes[:, 0] * axes[:, 1]).sum(axis=1)) / (long_px * short_px)
    straight = cosine < np.sin(np.radians(RIGHT_ANGLE_TOLERANCE_DEG)) - 1e-6  # False for NaN too
    clearly = straight & (short_px < long_px * 1.0009) & _clearly_cross(steps)
    notes = list(stated)
    for i in np.flatnonzero(~clearly):
        found = [*odd_pair(steps[i]), *filter(None, [stated[i]])]
        notes[i] = "; ".join(sorted(found)) or None
    return notes


def _clearly_cross(steps: Array) -> np.ndarray:
    """Whether the two segments cross by a margin; touching ones are left to the exact test."""
    p, q, r, s = (steps[:, k] for k in range(4))

    def side(a: Array, b: Array, c: Array) -> Array:
        value = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
        return np.where(np.abs(value) < 1e-3, 0.0, value)

    return np.asarray((side(p, q, r) * side(p, q, s) < 0) & (side(r, s, p) * side(r, s, q) < 0))
