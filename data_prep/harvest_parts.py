"""The first half of a harvest: files -> part files of bookmarks and rejections, each written once and whole.

A part belongs to a list of files with their sizes and times of change. Its name is the hash of that list, and its
``.json`` is written last; so a harvest that was killed finds the parts that are done and reads only the others.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep import __version__
from data_prep.atomic import PRIVATE, atomic_path, write_json
from data_prep.bookmark import BOOKMARK_SCHEMA, SCHEMA_VERSION, Bookmark, records_to_table
from data_prep.errors import DataPrepError, printable
from data_prep.readers import Rejection
from data_prep.readers.registry import Reader, ReaderOfTables, ReaderWithImages, head_of, recognise

if TYPE_CHECKING:
    from data_prep.harvest_images import IndexedFolders
    from data_prep.readers._planes import ImageLookup

FILES_PER_PART = 64
BYTES_PER_PART = 64 * 2**20
_BATCH = 5_000  # bookmarks held in memory at a time

_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"GIF8", b"BM")
_IDENTIFIERS = ("patient_id", "study_uid", "series_uid", "image_uid", "image", "tracking_uid", "observer")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read; ``name`` is the path as the user would write it."""

    name: str
    size: int
    mtime_ns: int


@dataclass(slots=True)
class PartCounts:
    """What a part's files held."""

    files: int = 0
    images: int = 0
    dicom_images: int = 0
    bookmarks: int = 0
    rejected: int = 0
    deferred: list[str] = field(default_factory=list)  # files to read again once the images are known

    def add(self, other: PartCounts) -> None:
        """Sum up."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True, slots=True)
class _ImageFile:
    """A file that is an image, not a mark."""

    dicom: bool


@dataclass(frozen=True, slots=True)
class _Deferred:
    """A file that is to be read again once the images are known."""


def find_files(sources: Sequence[Path], leave_out: Path) -> tuple[list[SourceFile], list[Rejection]]:
    """Every file of the given files and folders, once, ordered by name; links to folders are not followed.

    Args:
        sources: files and folders.
        leave_out: a folder that is not searched (the output folder, where it lies in a source).

    Raises:
        DataPrepError: a source does not exist.
    """
    files: dict[str, SourceFile] = {}
    refused: list[Rejection] = []
    for source in sources:
        if not source.exists():
            raise DataPrepError(f"{source}: no such file or folder")
        unlisted: list[OSError] = []
        for path in _walk(source, leave_out.resolve(), unlisted) if source.is_dir() else [source]:
            name = printable(path.as_posix())
            try:
                facts = path.stat()
            except OSError as error:
                refused.append(Rejection(name, "", f"cannot be read ({error.strerror})"))
                continue
            if name != path.as_posix():
                refused.append(Rejection(name, "", "the file's name is not text; rename it"))
            elif not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait for ever
                refused.append(Rejection(name, "", "not a regular file"))
            else:
                files.setdefault(name, SourceFile(name, facts.st_size, facts.st_mtime_ns))
        for problem in unlisted:
            name = printable(problem.filename or source)
            refused.append(Rejection(name, "", f"this folder cannot be listed ({problem.strerror})"))
    return [files[name] for name in sorted(files)], refused


def _walk(folder: Path, leave_out: Path, unlisted: list[OSError]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=unlisted.append):
        folders[:] = [name for name in folders if (Path(root) / name).resolve() != leave_out]
        yield from (Path(root) / name for name in names)


def in_parts(files: Sequence[SourceFile]) -> Iterator[list[SourceFile]]:
    """Lists of files that are read in one go."""
    part: list[SourceFile] = []
    size = 0
    for file in files:
        if part and (len(part) >= FILES_PER_PART or size + file.size > BYTES_PER_PART):
            yield part
            part, size = [], 0
        part.append(file)
        size += file.size
    if part:
        yield part


def part_path(
    files: Sequence[SourceFile], work: Path, *, images: IndexedFolders | None = None, deferring: bool = True
) -> Path:
    """Where the part of these files, read in this way, lies (without suffix)."""
    how = [deferring, None if images is None else images.fingerprint]
    state = json.dumps([SCHEMA_VERSION, __version__, how, [[file.name, file.size, file.mtime_ns] for file in files]])
    return work / hashlib.sha256(state.encode()).hexdigest()[:32]


def read_part(
    files: Sequence[SourceFile],
    work: Path,
    on_progress: Callable[[int], object] | None = None,
    *,
    images: IndexedFolders | None = None,
    deferring: bool = False,
) -> PartCounts:
    """Read files into a part (``.parquet`` bookmarks, ``.csv`` rejections, ``.json`` counts), unless it is there.

    Args:
        files: from :func:`in_parts`.
        work: the work folder.
        on_progress: called with the number of marks read so far, now and then.
        images: the images that marks in millimetres are placed on; None: there are none.
        deferring: leave files whose marks depend on the images for later, and name them in ``deferred``.

    Raises:
        DataPrepError: the part cannot be written.
    """
    path = part_path(files, work, images=images, deferring=deferring)
    done = path.with_suffix(".json")
    try:
        return PartCounts(**json.loads(done.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass  # not done yet
    counts = PartCounts(files=len(files))
    with (
        atomic_path(path.with_suffix(".parquet"), mode=PRIVATE) as parquet,
        atomic_path(path.with_suffix(".csv"), mode=PRIVATE) as rejections,
        pq.ParquetWriter(parquet, BOOKMARK_SCHEMA, compression="lz4", use_dictionary=False) as writer,
        rejections.open("w", newline="", encoding="utf-8") as text,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # libraries quote values of the file, which may be names
        refused = csv.writer(text)
        batch: list[tuple[str, Bookmark]] = []
        for file in files:
            for found in read_file(Path(file.name), None if images is None else images.open(), deferring):
                if isinstance(found, Bookmark):
                    batch.append((file.name, found))
                    if len(batch) >= _BATCH:
                        _write_batch(batch, writer, refused, counts)
                        batch.clear()
                        if on_progress is not None:
                            on_progress(counts.bookmarks)
                elif isinstance(found, pa.Table):
                    _write_batch(batch, writer, refused, counts)  # what came before it
                    batch.clear()
                    writer.write_table(_with_file(found, file.name))
                    counts.bookmarks += found.num_rows
                    if on_progress is not None:
                        on_progress(counts.bookmarks)
                elif isinstance(found, Rejection):
                    counts.rejected += 1
                    refused.writerow((file.name, _one_line(found.row), _one_line(found.reason)))
                elif isinstance(found, _Deferred):
                    counts.files -= 1
                    counts.deferred.append(file.name)
                else:
                    counts.images += 1
                    counts.dicom_images += found.dicom
        _write_batch(batch, writer, refused, counts)
    write_json(done, asdict(counts), indent=None)
    return counts


def read_file(
    path: Path, images: ImageLookup | None = None, deferring: bool = False
) -> Iterator[Bookmark | pa.Table | Rejection | _ImageFile | _Deferred]:
    """Every mark of one file (some readers give them as tables), or why there is none; never raises."""
    try:
        head = head_of(path)
        if not head:
            yield Rejection("", "", "the file is empty")
            return
        module = recognise(path, head)
        if module is None:
            yield _not_a_mark(head, path)
            return
        empty = True
        for found in _read_with_images(module, path, images, deferring):
            empty = False
            yield found
        if empty:
            yield Rejection("", "", "the file holds no mark")
    except DataPrepError as error:
        yield Rejection("", "", str(error).removeprefix(f"{path}: "))
    except Exception as error:
        # The last net under the readers, for files damaged in a way nobody foresaw. The exception's own words may quote
        # a name from the file, so only its type is told; the rest is for whoever switches debugging on.
        _log.debug("%s", path, exc_info=True)
        yield Rejection("", "", f"damaged, or of a kind that is not understood ({type(error).__name__})")


def _read_with_images(
    module: Reader, path: Path, images: ImageLookup | None, deferring: bool
) -> Iterator[Bookmark | pa.Table | Rejection | _Deferred]:
    if isinstance(module, ReaderOfTables):
        yield from module.read_tables(path)
        return
    if not isinstance(module, ReaderWithImages):
        yield from module.read(path)
        return
    found = list(module.read(path, images))
    if deferring and any(isinstance(mark, Rejection) or mark.source_frame == "assumed" for mark in found):
        yield _Deferred()
    else:
        yield from found


def _not_a_mark(head: bytes, path: Path) -> Rejection | _ImageFile:
    if head.startswith(_PICTURES):
        return _ImageFile(dicom=False)
    from data_prep.readers.dicom_kind import looks_like_dicom, sop_class_uid

    if not looks_like_dicom(head):
        return Rejection("", "", "not a format that is known")
    from pydicom.uid import UID

    uid = sop_class_uid(path)
    if uid is None:
        return Rejection("", "", "not a format that is known (DICOM that states no SOP Class, or damaged)")
    name = UID(uid).name
    if "Image Storage" in name:
        return _ImageFile(dicom=True)
    kind = name if name != uid else "a private SOP Class"
    return Rejection("", "", f"not a format that is known (DICOM: {kind})")


def _write_batch(batch: list[tuple[str, Bookmark]], writer: pq.ParquetWriter, refused: Any, counts: PartCounts) -> None:
    if not batch:
        return
    try:
        table = _table(batch)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        # A number or text that no column can hold: find whose it is.
        fit = []
        for name, bookmark in batch:
            try:
                _table([(name, bookmark)])
                fit.append((name, bookmark))
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                counts.rejected += 1
                refused.writerow((name, f"bookmark {bookmark.bookmark_id}", _unfit(bookmark)))
        table = _table(fit)
    counts.bookmarks += table.num_rows
    writer.write_table(table)


def _table(batch: Sequence[tuple[str, Bookmark]]) -> pa.Table:
    """Bookmarks with their files; identifiers that are present but empty become null."""
    table = records_to_table((bookmark for _, bookmark in batch), Bookmark, BOOKMARK_SCHEMA)
    columns = {"source_file": pa.array([name for name, _ in batch], pa.string())}
    for name in _IDENTIFIERS:
        values = [getattr(bookmark, name) for _, bookmark in batch]
        if "" in values:
            columns[name] = pa.array([value or None for value in values], pa.string())
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def _with_file(table: pa.Table, name: str) -> pa.Table:
    """A table of bookmarks with their file; as :func:`_table` does it."""
    columns = {"source_file": pa.repeat(name, table.num_rows)}
    for identifier in _IDENTIFIERS:
        column = table[identifier]
        columns[identifier] = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)
    for identifier, column in columns.items():
        place = table.schema.get_field_index(identifier)
        table = table.set_column(place, table.schema.field(place), column)
    return table


def _unfit(bookmark: Bookmark) -> str:
    """Which field no column can hold."""
    for column in BOOKMARK_SCHEMA:
        try:
            pa.array([getattr(bookmark, column.name, None)], type=column.type)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            return f"the mark's {column.name} is out of all range"
    return "the mark cannot be stored"


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())[:500]
