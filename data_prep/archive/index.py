"""An index of the images below a folder: headers only, built once, then only what changed is read again."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data_prep.archive.header import ImageHeader, read_headers
from data_prep.archive.series import ImageRecord, SeriesReport, frame_of, group_series
from data_prep.atomic import PRIVATE, atomic_path
from data_prep.bookmark import arrow_schema
from data_prep.errors import DataPrepError, printable

__all__ = ["ImageIndex", "ImageRecord", "SeriesReport"]

FEWEST_FOR_PROCESSES = 256
"""Starting processes costs more than reading fewer headers than this."""

_CACHE_VERSION = "2"
_HEADER_FIELDS = [field for field in arrow_schema(ImageHeader, "header") if field.name != "schema_version"]
_CACHE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("reason", pa.string()),
        pa.field("images", pa.list_(pa.struct(_HEADER_FIELDS))),
    ],
    metadata={"lesion_bookmarks": "image-index", "version": _CACHE_VERSION},
)


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    """What one file holds; ``reason`` says why it could not be read."""

    path: str  # below the folder
    size: int
    mtime_ns: int
    reason: str | None
    images: tuple[ImageHeader, ...]


class ImageIndex:
    """The images below a folder, by SOP instance and by series.

    Attributes:
        folder: the folder.
        series: every series, as :class:`SeriesReport`.
        skipped: (path, reason) of each file that is DICOM but damaged.
        files_read: how many files had to be read, the rest being known from the cache.
        fingerprint: a hash of the paths, sizes and times of change of all images.
    """

    def __init__(self, folder: Path, files: Iterable[_File], files_read: int = 0) -> None:
        self.folder = folder
        files = list(files)
        state = sorted((file.path, file.size, file.mtime_ns) for file in files if file.images)
        self.fingerprint = hashlib.sha256(repr(state).encode()).hexdigest()[:32]
        self.files_read = files_read
        self.skipped = [(folder / file.path, file.reason) for file in files if file.reason is not None]
        self.series = group_series(((file.path, image) for file in files for image in file.images), folder)
        self._series = {report.key: report for report in self.series}
        self._records: dict[tuple[str, int], ImageRecord] = {}
        self._shared: set[str] = set()
        for report in self.series:
            for record in report.records:
                if record.sop_instance_uid:
                    known = self._records.setdefault((record.sop_instance_uid, record.frame_number), record)
                    if (known.patient_id, known.study_uid) != (record.patient_id, record.study_uid):
                        self._shared.add(record.sop_instance_uid)

    @classmethod
    def build(
        cls, folder: str | os.PathLike[str], *, cache: Path | None = None, workers: int = 1, progress: bool = True
    ) -> ImageIndex:
        """Read the headers of every DICOM image below ``folder``.

        Args:
            folder: searched with its subfolders; symbolic links to folders are not followed.
            cache: a Parquet file that keeps what was read (readable by its owner only: it holds patients' IDs); a
                file with the same path, size and time of change is not read again. None: no cache. A cache that
                cannot be read is made anew.
            workers: processes.
            progress: show a progress bar.

        Raises:
            DataPrepError: no such folder, or the cache cannot be written.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataPrepError(f"{folder}: no such folder")
        known = {} if cache is None else _read_cache(cache)
        files: list[_File] = []
        to_read: list[tuple[str, int, int]] = []
        unread: list[_File] = []
        for path, size, mtime_ns in _walk(folder, unread):
            file = known.get(path)
            if file is not None and (file.size, file.mtime_ns) == (size, mtime_ns):
                files.append(file)
            else:
                to_read.append((path, size, mtime_ns))
        bar = tqdm(total=len(to_read), desc="indexing images", unit="file", disable=not progress)
        with bar:
            for file in _read_all(folder, to_read, workers):
                files.append(file)
                bar.update()
        if cache is not None and (to_read or len(files) != len(known)):
            _write_cache(files, cache)
        return cls(folder, [*files, *unread], files_read=len(to_read))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], cache: Path) -> ImageIndex:
        """The index that :meth:`build` kept in ``cache``, as it is: nothing is looked for in the folder."""
        return cls(Path(folder), _read_cache(cache).values())

    def __len__(self) -> int:
        """The number of images (frames)."""
        return sum(len(report.records) for report in self.series)

    def find(self, sop_instance_uid: str, frame_number: int | None = None) -> ImageRecord | None:
        """The image with this SOP instance UID, or None.

        A UID that images of several patients or studies bear (badly anonymised archives) finds none of them.

        Args:
            sop_instance_uid: as a report refers to it.
            frame_number: 1-based; None is the first frame.
        """
        if sop_instance_uid in self._shared:
            return None
        record = self._records.get((sop_instance_uid, frame_number or 1))
        if record is not None or not frame_number:
            return record
        first = self._records.get((sop_instance_uid, 1))  # a multi-frame image whose frames have no headers
        if first is None or not 1 <= frame_number <= first.frame_count:
            return None
        return frame_of(first, frame_number)

    def is_shared(self, sop_instance_uid: str) -> bool:
        """Whether images of several patients or studies bear this UID, so that it names none of them."""
        return sop_instance_uid in self._shared

    def series_of(self, record: ImageRecord) -> SeriesReport:
        """The series an image is in."""
        return self._series[record.series_key]


def _walk(folder: Path, unread: list[_File]) -> Iterator[tuple[str, int, int]]:
    """(path below the folder, size, time of change) of every file, in a stable order; what cannot be read is listed."""

    def refuse(path: str | Path, reason: str) -> None:
        unread.append(_File(printable(os.path.relpath(path, folder)), 0, 0, reason, ()))

    def unlisted(error: OSError) -> None:
        refuse(error.filename or folder, f"this folder cannot be listed ({error.strerror})")

    for root, folders, names in os.walk(folder, onerror=unlisted):
        folders.sort()
        for name in sorted(names):
            path = Path(root) / name
            try:
                facts = path.stat()
                relative = path.relative_to(folder).as_posix()
                relative.encode()  # a name that is no text cannot be kept in the cache
            except OSError as error:
                refuse(path, f"cannot be read ({error.strerror})")
                continue
            except UnicodeEncodeError:
                refuse(path, "cannot be read (its name is not text; rename it)")
                continue
            yield relative, facts.st_size, facts.st_mtime_ns


def _read_file(job: tuple[str, str, int, int]) -> _File:
    folder, path, size, mtime_ns = job
    try:
        return _File(path, size, mtime_ns, None, tuple(read_headers(Path(folder) / path)))
    except DataPrepError as error:
        return _File(path, size, mtime_ns, str(error).removeprefix(f"{Path(folder) / path}: "), ())


def _read_all(folder: Path, to_read: list[tuple[str, int, int]], workers: int) -> Iterator[_File]:
    jobs = ((str(folder), *file) for file in to_read)
    if workers <= 1 or len(to_read) < FEWEST_FOR_PROCESSES:
        yield from map(_read_file, jobs)
        return
    # Spawned, not forked: the parent may hold threads and locks of numerical libraries.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_read_file, jobs, chunksize=64)


def _read_cache(path: Path) -> dict[str, _File]:
    try:
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(b"version") != _CACHE_VERSION.encode():
            return {}
        return {row["path"]: _from_row(row) for batch in table.to_batches() for row in batch.to_pylist()}
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return {}  # no cache yet, or one of another version: everything is read again


def _from_row(row: dict[str, object]) -> _File:
    images = row.pop("images")
    assert isinstance(images, list)
    for image in images:
        for name in ("position_lps_mm", "orientation"):
            image[name] = None if image[name] is None else tuple(image[name])
    return _File(**row, images=tuple(ImageHeader(**image) for image in images))  # type: ignore[arg-type]


def _write_cache(files: list[_File], path: Path) -> None:
    columns = {
        "path": [file.path for file in files],
        "size": [file.size for file in files],
        "mtime_ns": [file.mtime_ns for file in files],
        "reason": [file.reason for file in files],
        "images": [[dataclasses.asdict(image) for image in file.images] for file in files],
    }
    with atomic_path(path, mode=PRIVATE) as temporary:
        pq.write_table(pa.Table.from_pydict(columns, schema=_CACHE_SCHEMA), temporary, compression="zstd")
