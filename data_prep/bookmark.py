"""Bookmark: what somebody drew, where, and in which source; one row of ``bookmarks.parquet``."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from os import PathLike
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.atomic import atomic_path
from data_prep.errors import DataPrepError

SCHEMA_VERSION = 1

DETECTOR = "detector"
"""The source of what software found, whatever the file: a person must accept it before it trains or is released."""

SOURCES = (
    "deeplesion-csv",
    "dicom-sr",
    "dicom-gsps",
    "aim-xml",
    "aim-json",
    "dicom-seg",
    "rtstruct",
    "nifti",
    "csv",
    DETECTOR,
)

POINTS_PER_FORM: dict[str, tuple[int, int | None]] = {
    "bidirectional": (4, 4),  # long axis start, end, short axis start, end
    "length": (2, 2),  # start, end
    "ellipse": (4, 4),  # major axis start, end, minor axis start, end (as SCOORD ELLIPSE)
    "circle": (2, 2),  # centre, a point on the perimeter (as SCOORD CIRCLE)
    "polygon": (3, None),  # a closed outline; the first point is not repeated
    "polyline": (2, None),  # an open line
    "arrow": (2, 2),  # tail, head
    "point": (1, 1),
    "text": (0, 1),  # the anchor, where there is one
    "segmentation": (3, None),  # the outer outline of the mask on this slice
    "box": (2, 2),  # x0, y0 and x1, y1 (half-open)
}
"""Form -> the least and the greatest number of points (None: no limit)."""

SOURCE_FRAMES = ("declared", "assumed")

MAX_COORDINATE_PX = 1e6
"""No image is as large; a greater coordinate is damage."""

MAX_POINTS = 100_000
"""More points than any drawn outline has; a larger count is damage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bookmark:
    """One drawn mark.

    ``points_px`` is flat ``(x, y, x, y, ...)`` in px (see :mod:`data_prep.frames`), ordered as
    :data:`POINTS_PER_FORM` says. Fields that a source does not state are None. Spacings are those of the image, in
    mm; ``spacing_z_mm`` is kept as stated (in DeepLesion its sign says which way the slices are numbered): use
    :func:`positive_or_none`.

    ``image`` is the path of the key slice below the images folder, with ``/``; None where there is no such image.
    ``slice_index`` is 0-based along the grid sorted towards +S; for DeepLesion the number in the file name, which
    mostly rises towards the feet.

    Raises:
        ValueError: unknown form, source or frame, a wrong number of points, or a coordinate that is not finite or
            greater than :data:`MAX_COORDINATE_PX`.
    """

    bookmark_id: str
    source: str
    form: str
    points_px: tuple[float, ...]
    source_file: str = ""
    source_frame: str = "declared"
    text: str | None = None
    finding_code: str | None = None  # "value^scheme^meaning"
    tracking_uid: str | None = None
    patient_id: str | None = None
    site: str | None = None  # anatomical site as stated: "value^scheme^meaning" or words
    modality: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    image_uid: str | None = None
    frame_number: int | None = None  # 1-based
    image: str | None = None
    slice_index: int | None = None
    rows: int | None = None
    columns: int | None = None
    spacing_x_mm: float | None = None
    spacing_y_mm: float | None = None
    spacing_z_mm: float | None = None
    stated_long_mm: float | None = None
    stated_short_mm: float | None = None
    window_min_hu: float | None = None
    window_max_hu: float | None = None
    norm_x: float | None = None
    norm_y: float | None = None
    norm_z: float | None = None
    slice_first: int | None = None
    slice_last: int | None = None
    laterality: str | None = None
    observer: str | None = None
    patient_sex: str | None = None
    patient_age: float | None = None  # years
    split: str | None = None  # the source's own: train, validation or test
    coarse_type: int | None = None  # DeepLesion's 1..8; None where it says -1
    possibly_noisy: bool = False
    stated_box_px: tuple[float, ...] | None = None  # the source's own box, half-open px
    score: float | None = None  # a detector's
    note: str | None = None  # what the reader had to assume or repair, in words

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"unknown source {self.source!r}")
        if self.source_frame not in SOURCE_FRAMES:
            raise ValueError(f"unknown source_frame {self.source_frame!r}")
        if self.form not in POINTS_PER_FORM:
            raise ValueError(f"unknown form {self.form!r}")
        count, odd = divmod(len(self.points_px), 2)
        low, high = POINTS_PER_FORM[self.form]
        if odd or count < low or count > (MAX_POINTS if high is None else high):
            raise ValueError(f"a {self.form} cannot have {len(self.points_px)} coordinates")
        if not all(map(math.isfinite, self.points_px)):
            raise ValueError(f"the coordinates of this {self.form} are not finite numbers")
        if self.points_px and max(map(abs, self.points_px)) > MAX_COORDINATE_PX:
            raise ValueError(f"a coordinate of this {self.form} lies outside any image")
        box = self.stated_box_px
        if box is not None and not (
            len(box) == 4
            and all(-MAX_COORDINATE_PX <= value <= MAX_COORDINATE_PX for value in box)  # so not NaN either
            and box[0] < box[2]
            and box[1] < box[3]
        ):
            raise ValueError(f"the stated box {box} is not a box")

    @property
    def points(self) -> list[tuple[float, float]]:
        """``points_px`` as (x, y) pairs."""
        return list(zip(self.points_px[::2], self.points_px[1::2], strict=True))


def make_id(*parts: object) -> str:
    """A stable 16-digit hexadecimal id of the given parts (content, not memory): same parts, same id."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def positive_or_none(value: float | None) -> float | None:
    """The magnitude of a stated spacing, or None where it is missing, NaN or zero."""
    return abs(value) if value and math.isfinite(value) else None


_ARROW_TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int32(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "tuple[float, ...]": pa.list_(pa.float64()),
    "tuple[str, ...]": pa.list_(pa.string()),
}


def arrow_schema(record: type[Any], name: str) -> pa.Schema:
    """The Parquet schema of a flat dataclass, ``schema_version`` second; shared with :mod:`data_prep.lesion`."""
    fields = [pa.field(f.name, _ARROW_TYPES[str(f.type).removesuffix(" | None")]) for f in dataclasses.fields(record)]
    fields.insert(1, pa.field("schema_version", pa.int32()))
    return pa.schema(fields, metadata={"lesion_bookmarks": name, "schema_version": str(SCHEMA_VERSION)})


def records_to_table(records: Iterable[Any], record: type[Any], schema: pa.Schema) -> pa.Table:
    """Flat dataclass instances -> an Arrow table with ``schema``."""
    names = [field.name for field in schema if field.name != "schema_version"]
    rows = [*map(attrgetter(*names), records)]
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    columns["schema_version"] = (SCHEMA_VERSION,) * len(rows)
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def table_to_records(table: pa.Table, record: type[Any]) -> Iterator[Any]:
    """Rows of an Arrow table -> instances of ``record`` (which checks them); unknown columns are ignored."""
    fields = [f for f in dataclasses.fields(record) if f.name in table.column_names]
    tuples = {f.name for f in fields if "tuple" in str(f.type)}
    for batch in table.select([f.name for f in fields]).to_batches():
        for row in batch.to_pylist():
            for name in tuples:
                if row[name] is not None:
                    row[name] = tuple(row[name])
            yield record(**row)


def read_table(path: str | PathLike[str], schema: pa.Schema) -> pa.Table:
    """Read a Parquet file of ours and check its columns and version.

    Raises:
        DataPrepError: no such file, not Parquet, a missing column, or a newer ``schema_version``.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise DataPrepError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise DataPrepError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    missing = [field.name for field in schema if field.name not in table.column_names]
    if missing:
        raise DataPrepError(f"{path}: the column {missing[0]!r} is missing; make the file again with `harvest`")
    versions = set(table.column("schema_version").unique().to_pylist())
    if versions - {SCHEMA_VERSION}:
        raise DataPrepError(f"{path}: schema_version {sorted(versions)} is not {SCHEMA_VERSION}; update this program")
    return table.select(schema.names).cast(schema)


def write_table(table: pa.Table, path: str | PathLike[str]) -> None:
    """Write a Parquet file atomically."""
    with atomic_path(path, keep_mode=True) as temporary:
        pq.write_table(table, temporary, compression="zstd")


BOOKMARK_SCHEMA = arrow_schema(Bookmark, "bookmarks")


def write_bookmarks(bookmarks: Iterable[Bookmark], path: str | PathLike[str]) -> None:
    """Write ``bookmarks.parquet``."""
    write_table(records_to_table(bookmarks, Bookmark, BOOKMARK_SCHEMA), path)


def read_bookmarks(path: str | PathLike[str]) -> list[Bookmark]:
    """Read ``bookmarks.parquet``; raises DataPrepError on a file that is not one."""
    return list(table_to_records(read_table(path, BOOKMARK_SCHEMA), Bookmark))
