"""The second half of a harvest: part files -> ``bookmarks.parquet`` and ``lesions.parquet``.

Marks of one image may lie anywhere in the parts. One pass over the identifying columns finds the order of all marks and
cuts it into buckets that hold whole images; a second pass deals the rows out to the buckets; then one bucket at a time
is merged (with several processes, a few at a time). So memory does not grow with the archive, and the result does not
depend on how files were dealt out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import frames
from data_prep.atomic import PRIVATE, atomic_path
from data_prep.bookmark import BOOKMARK_SCHEMA, Bookmark, records_to_table, table_to_records
from data_prep.errors import DataPrepError
from data_prep.lesion import LESION_SCHEMA, Lesion
from data_prep.merge import merge
from data_prep.readers import Rejection
from data_prep.release_lesions import is_release_row, release_lesions
from data_prep.review import Reviews
from data_prep.splits import Patients

if TYPE_CHECKING:
    from data_prep.archive.index import ImageRecord

FindImage = Callable[[str, int | None], "ImageRecord | None"]
"""SOP instance UID and frame number -> the image, or None."""

BUCKET_ROWS = 500  # merged at a time: marks and lesions as objects cost about 8 kB a row
_BATCH_ROWS = 20_000  # read at a time, as columns
_MOST_BUCKETS = 200  # files open at a time
_AHEAD = 4  # buckets given to a pool at a time

# Hardly a value comes twice within a column of a row group, so dictionaries would cost time and space.
_STORED = {"compression": "zstd", "use_dictionary": False}

_WHO = ("patient_id", "study_uid", "series_uid", "image_uid", "source_file")
_WHERE = ("image_uid", "frame_number", "series_uid", "slice_index", "image")
_IMAGE_FACTS = (
    "patient_id",
    "study_uid",
    "series_uid",
    "modality",
    "rows",
    "columns",
    "spacing_x_mm",
    "spacing_y_mm",
    "spacing_z_mm",
    "slice_index",
    "patient_sex",
    "patient_age",
)


@dataclass(slots=True)
class Joined:
    """What the second half counted."""

    bookmarks: Counter[tuple[str, str]] = field(default_factory=Counter)  # by source and form
    lesions: int = 0
    with_box: int = 0
    with_image: int = 0  # a slice below the images folder
    with_dicom: int = 0  # a DICOM image of the index
    duplicates: int = 0
    patients: int = 0
    patients_in_two_splits: int = 0
    reviews_kept: int = 0
    reviews_gone: int = 0  # of lesions that this harvest does not have
    rejections: list[Rejection] = field(default_factory=list)


def join(
    parts: Sequence[Path],
    out: Path,
    work: Path,
    *,
    image_exists: Callable[[str], bool] | None,
    find_image: FindImage | None,
    pool: Executor | None = None,
    on_progress: Callable[[int], object] = lambda rows: None,
) -> Joined:
    """Merge the parts into the two tables in ``out``; review states of the lesions that are there already are kept.

    Args:
        parts: the Parquet files of bookmarks.
        out: the output folder.
        work: a folder for files that are deleted afterwards.
        image_exists: whether a path lies below the images folder; None: not checked, the stated path is kept.
        find_image: looks up a DICOM image; None: there are none.
        pool: of processes that merge; None: this one does.
        on_progress: called with a number of rows that are done.

    Raises:
        DataPrepError: a table cannot be written.
    """
    result = Joined()
    keys, patients = _scan(parts, find_image)
    result.patients_in_two_splits = patients.in_two_splits
    buckets = _buckets(keys)
    result.duplicates = int((buckets < 0).sum())
    seen: set[str] = set()
    reviews = Reviews(out / "lesions.parquet")
    with (
        atomic_path(out / "bookmarks.parquet", mode=PRIVATE, keep_mode=True) as bookmarks_path,
        atomic_path(out / "lesions.parquet", mode=PRIVATE, keep_mode=True) as lesions_path,
        pq.ParquetWriter(bookmarks_path, BOOKMARK_SCHEMA, **_STORED) as bookmarks_file,
        pq.ParquetWriter(lesions_path, LESION_SCHEMA, **_STORED) as lesions_file,
        ThreadPoolExecutor(1) as writer,  # Arrow compresses one bucket while Python merges the next
    ):
        written: list[Future[None]] = []

        def finish(bucket: _Bucket) -> None:
            marks, lesions = _complete(bucket, patients, image_exists, result)
            lesions = _reviewed(lesions, reviews)
            for before in written:
                before.result()
            written[:] = [
                writer.submit(bookmarks_file.write_table, marks),
                writer.submit(lesions_file.write_table, lesions),
            ]
            seen.update(lesions["patient_id"].unique().to_pylist())
            on_progress(bucket.table.num_rows)

        begun: deque[_Bucket] = deque()
        for table in _dealt(parts, buckets, work, result):
            begun.append(_begin(table, find_image, pool, result))
            if pool is None or len(begun) > _AHEAD:
                finish(begun.popleft())
        while begun:
            finish(begun.popleft())
        for last in written:
            last.result()
    result.patients = len(seen)
    result.reviews_kept, result.reviews_gone = len(reviews) - reviews.gone, reviews.gone
    return result


def _reviewed(lesions: pa.Table, reviews: Reviews) -> pa.Table:
    """The lesions with the states that a person gave them before."""
    if not reviews:
        return lesions
    known = [reviews.of(ids) for ids in lesions["bookmark_ids"].to_pylist()]
    at = lesions.schema.get_field_index("review")
    states = pc.coalesce(pa.array(known, pa.string()), lesions["review"])
    return lesions.set_column(at, lesions.schema.field(at), states)


def _scan(parts: Sequence[Path], find_image: FindImage | None) -> tuple[pa.Table, Patients]:
    """(order key, bookmark_id) of every row, and whose they are."""
    orders, patients = [], Patients()
    names = [*dict.fromkeys(("bookmark_id", "split", *_WHO, *_WHERE))]  # each once
    for table in _some_rows(parts, names):
        orders.append(pa.table({"key": _order_key(table), "id": table["bookmark_id"]}))
        who = _identities(table).append_column("split", table["split"]).group_by([*_WHO, "split"]).aggregate([])
        for *identity, split in zip(*(column.to_pylist() for column in who.columns), strict=True):
            patients.add(identity, split)
            image = find_image(identity[3], None) if find_image is not None and identity[3] else None
            if image is not None:
                patients.add((image.patient_id, image.study_uid, image.series_uid, identity[3], None))
    return pa.concat_tables(orders), patients


def _some_rows(parts: Sequence[Path], columns: list[str]) -> Iterator[pa.Table]:
    """The rows of all parts, a bucket's worth or more at a time (a table costs kilobytes, however few its rows)."""
    held: list[pa.RecordBatch] = []
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            held.append(batch)
            if sum(one.num_rows for one in held) >= BUCKET_ROWS:
                yield pa.Table.from_batches(held).combine_chunks()
                held = []
    yield pa.Table.from_batches(held, pa.schema([BOOKMARK_SCHEMA.field(name) for name in columns]))


def _order_key(table: pa.Table, fallback: str = "bookmark_id") -> pa.ChunkedArray:
    """What :func:`data_prep.merge.image_key` says, by column, in an order people expect (slices by number)."""
    text = pa.string()
    frame = pc.cast(pc.coalesce(table["frame_number"], pa.scalar(1, pa.int32())), text)
    number = pc.utf8_lpad(pc.cast(table["slice_index"], text), 6, "0")
    return pc.coalesce(
        pc.binary_join_element_wise(table["image_uid"], pc.utf8_lpad(frame, 6, "0"), "\x1f"),
        pc.binary_join_element_wise(table["series_uid"], number, "\x1f"),
        table["image"],
        pc.binary_join_element_wise("\x1f", table[fallback], ""),
    )


def _identities(table: pa.Table) -> pa.Table:
    """What tells whose each mark is; of an image without a UID its folder, which is a series and so one patient's."""
    image = pc.coalesce(table["image_uid"], pc.replace_substring_regex(table["image"], "/[^/]*$", "/"))
    return table.select(_WHO).set_column(_WHO.index("image_uid"), "image_uid", image)


def _buckets(keys: pa.Table) -> npt.NDArray[np.int64]:
    """The bucket of every row; -1 for one whose mark is already there (of copies, the first that was read is kept)."""
    rows = keys.num_rows
    buckets = np.full(rows, -1, dtype=np.int64)
    if not rows:
        return buckets
    numbered = keys.append_column("row", pa.array(np.arange(rows))).combine_chunks()
    order = pc.sort_indices(numbered, [("id", "ascending"), ("row", "ascending")])
    first = order.filter(pa.array(np.append(True, _differs(numbered["id"].take(order)))))
    kept = numbered.take(first)
    kept = kept.select(["key", "row"]).take(pc.sort_indices(kept, [("key", "ascending"), ("id", "ascending")]))
    starts = np.append(True, _differs(kept["key"]))
    start_of_image = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
    per_bucket = max(BUCKET_ROWS, -(-rows // _MOST_BUCKETS))
    buckets[kept["row"].to_numpy()] = np.unique(start_of_image // per_bucket, return_inverse=True)[1]
    return buckets


def _differs(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """(n - 1,) whether a value differs from the one before it."""
    if len(column) < 2:
        return np.zeros(0, dtype=np.bool_)
    values = column.combine_chunks()
    return np.asarray(pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False))


def _dealt(parts: Sequence[Path], buckets: npt.NDArray[np.int64], work: Path, result: Joined) -> Iterator[pa.Table]:
    """The rows of each bucket, in their final order."""
    names = [work / f"bucket-{number}.arrow" for number in range(int(buckets.max(initial=-1)) + 1)]
    try:
        with ExitStack() as stack:
            writers = [stack.enter_context(pa.ipc.new_file(str(name), BOOKMARK_SCHEMA)) for name in names]
            start = 0
            for rows in _some_rows(parts, BOOKMARK_SCHEMA.names):
                place = buckets[start : start + rows.num_rows]
                start += rows.num_rows
                for number in np.unique(place):
                    chosen = rows.filter(pa.array(place == number))
                    if number < 0:
                        result.rejections += _copies(chosen)
                    else:
                        writers[number].write_table(chosen.cast(BOOKMARK_SCHEMA))
    except OSError as error:
        raise DataPrepError(f"{work}: cannot write ({error.strerror or error})") from error
    for name in names:
        with pa.OSFile(str(name)) as file:
            table = pa.ipc.open_file(file).read_all()
        name.unlink()
        yield table.take(_order(table, "bookmark_id"))


def _copies(rows: pa.Table) -> list[Rejection]:
    pairs = zip(rows["source_file"].to_pylist(), rows["bookmark_id"].to_pylist(), strict=True)
    return [Rejection(file, f"bookmark {mark}", "a copy of a mark that was harvested already") for file, mark in pairs]


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A bucket whose marks are being merged."""

    table: pa.Table  # as it was dealt
    plain: pa.Table  # of it, the rows that become lesions as they are
    others: pa.Table  # the other marks that are kept, with their images' facts
    in_dicom: set[str | None]
    merged: Future[pa.Table]  # the others' lesions


def _begin(table: pa.Table, find_image: FindImage | None, pool: Executor | None, result: Joined) -> _Bucket:
    """Look the images of a bucket's marks up, and have the marks merged."""
    release = is_release_row(table)
    others: list[Bookmark] = []
    in_dicom: set[str | None] = set()
    for mark in table_to_records(table.filter(pc.invert(release)), Bookmark):
        image = find_image(mark.image_uid, mark.frame_number) if find_image is not None and mark.image_uid else None
        if image is not None:
            in_dicom.add(mark.image_uid)
            mark = _with_image_facts(mark, image)
        reason = None
        if image is not None and image.frame_count > 1 and mark.frame_number is None:
            reason = f"the mark names none of the {image.frame_count} frames of its image, so it is on no slice"
        elif _outside(mark):
            reason = "the mark lies wholly outside its image"
        if reason is not None:
            result.rejections.append(Rejection(mark.source_file, f"bookmark {mark.bookmark_id}", reason))
        else:
            others.append(mark)
    stored = records_to_table(others, Bookmark, BOOKMARK_SCHEMA)
    merged: Future[pa.Table]
    if pool is not None:
        merged = pool.submit(_merged, stored)
    else:
        merged = Future()
        merged.set_result(_merged(stored))
    return _Bucket(table, table.filter(release), stored, in_dicom, merged)


def _merged(marks: pa.Table) -> pa.Table:
    return records_to_table(merge(table_to_records(marks, Bookmark)), Lesion, LESION_SCHEMA)


def _complete(
    bucket: _Bucket, patients: Patients, image_exists: Callable[[str], bool] | None, result: Joined
) -> tuple[pa.Table, pa.Table]:
    """The bookmark and lesion rows of one bucket, complete and in order."""
    marks = pa.concat_tables([bucket.plain, bucket.others])
    lesions = pa.concat_tables([release_lesions(bucket.plain), bucket.merged.result()])
    marks = marks.take(_order(marks, "bookmark_id"))
    lesions = _with_patients(lesions.take(_order(lesions, "lesion_id")), _who(bucket.table, patients))
    if image_exists is not None:  # only now: until here the path also says which marks are on one image
        there = [name for name in bucket.table["image"].unique().to_pylist() if name and image_exists(name)]
        marks, lesions = (_keep_images(rows, pa.array(there, pa.string())) for rows in (marks, lesions))

    kinds = marks.group_by(["source", "form"]).aggregate([([], "count_all")])
    for mark_source, form, count in zip(*(kinds[name].to_pylist() for name in kinds.column_names), strict=True):
        result.bookmarks[mark_source, form] += count
    result.lesions += lesions.num_rows
    result.with_box += lesions.num_rows - lesions["x0"].null_count
    result.with_image += lesions.num_rows - lesions["image"].null_count
    result.with_dicom += sum(uid in bucket.in_dicom for uid in lesions["image_uid"].to_pylist() if uid is not None)
    return marks, lesions


def _keep_images(table: pa.Table, there: pa.Array) -> pa.Table:
    kept = pc.if_else(pc.is_in(table["image"], there), table["image"], None)
    place = table.schema.get_field_index("image")
    return table.set_column(place, table.schema.field(place), kept)


def _order(table: pa.Table, id_column: str) -> pa.Array:
    order = pa.table({"key": _order_key(table, id_column), "id": table[id_column]})
    return pc.sort_indices(order, [("key", "ascending"), ("id", "ascending")])


def _with_image_facts(mark: Bookmark, image: ImageRecord) -> Bookmark:
    """The mark with what its image itself says, which goes before what a report says about the image."""
    facts = {name: getattr(image, name) for name in _IMAGE_FACTS}
    return dataclasses.replace(mark, **{name: value for name, value in facts.items() if value is not None})


def _outside(mark: Bookmark) -> bool:
    """Whether no part of the mark, grown as its box will be, lies in its image."""
    if not mark.rows or not mark.columns or not mark.points_px:
        return False
    if mark.stated_box_px is not None:
        box = mark.stated_box_px
    elif mark.form in ("arrow", "point", "text", "box"):
        xs, ys = mark.points_px[::2], mark.points_px[1::2]
        box = (min(xs), min(ys), max(xs) + 1e-9, max(ys) + 1e-9)  # a point is a box without extent
    else:
        return frames.clip_box(frames.box_from_recist(mark.points), mark.columns, mark.rows) is None
    return frames.clip_box(box, mark.columns, mark.rows) is None


def _who(table: pa.Table, patients: Patients) -> pa.Table:
    """``bookmark_id``, ``patient`` and ``split`` of every row; each different identity is looked up once."""
    identities = _identities(table)
    names = identities.column_names
    numbered = identities.append_column("row", pa.array(np.arange(table.num_rows)))
    groups = numbered.group_by(names).aggregate([("row", "list")])
    found = list(map(patients.of, zip(*(groups[name].to_pylist() for name in names), strict=True)))
    rows = pc.list_flatten(groups["row_list"])
    group_of = pc.list_parent_indices(groups["row_list"])
    known = pa.table(
        {
            "patient": pa.array([patient for patient, _ in found], pa.string()).take(group_of.combine_chunks()),
            "split": pa.array([split for _, split in found], pa.string()).take(group_of.combine_chunks()),
        }
    ).take(pc.sort_indices(rows))
    return known.add_column(0, "bookmark_id", table["bookmark_id"])


def _with_patients(lesions: pa.Table, who: pa.Table) -> pa.Table:
    """Every lesion with its split, and with a patient: where none is stated, the study, series or image stands in."""
    known = who.take(pc.index_in(pc.list_element(lesions["bookmark_ids"], 0), who["bookmark_id"].combine_chunks()))
    columns = {"patient_id": pc.coalesce(lesions["patient_id"], known["patient"]), "split": known["split"]}
    for name, column in columns.items():
        lesions = lesions.set_column(lesions.schema.get_field_index(name), LESION_SCHEMA.field(name), column)
    return lesions
