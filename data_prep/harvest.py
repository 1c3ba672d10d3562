"""Harvest: files, folders and CSVs -> ``bookmarks.parquet``, ``lesions.parquet`` and ``rejected.csv``.

Formats are the readers' business; here are many files, several processes, and what happens when one of them is
killed: what is read stays in a hidden work folder until the tables are whole, and a second run with the same
arguments goes on from there. Its tables are then the same, byte for byte, as those of a run that was never disturbed.
"""

from __future__ import annotations

import csv
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from data_prep.atomic import PRIVATE, make_folder, write_csv
from data_prep.errors import DataPrepError
from data_prep.harvest_images import IndexedFolders, exists_below, index_folders
from data_prep.harvest_join import join
from data_prep.harvest_parts import PartCounts, SourceFile, find_files, in_parts, part_path, read_part
from data_prep.readers import Rejection

WORK_FOLDER = ".harvest-work"
_IN_HAND = 64  # parts given to the pool at a time: the list of files may be very long


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestSummary:
    """What a harvest found; all numbers are counts.

    ``bookmarks`` is by (source, form). ``images`` are files that are images, not marks. ``with_image`` counts lesions
    whose PNG slice is there (``images_checked``: whether a folder was given to look in), ``with_dicom`` lesions whose
    DICOM image is there. ``reviews_kept`` counts states that people had given to lesions of an earlier harvest into the
    same folder, ``reviews_gone`` those whose lesion is no longer there. ``rejected`` is the number of rows of
    ``rejected.csv``, of which ``duplicates`` are copies of a harvested mark.
    """

    files: int
    images: int
    bookmarks: dict[tuple[str, str], int] = field(default_factory=dict)
    lesions: int
    with_box: int
    with_image: int
    with_dicom: int
    images_checked: bool
    patients: int
    patients_in_two_splits: int
    reviews_kept: int = 0
    reviews_gone: int = 0
    rejected: int
    duplicates: int

    @property
    def total_bookmarks(self) -> int:
        """All marks."""
        return sum(self.bookmarks.values())

    def lines(self) -> list[str]:
        """The summary in words, for people."""
        lines = [f"read {self.files:,} files; {self.images:,} of them are images"]
        lines.append(f"{self.total_bookmarks:,} bookmarks:")
        lines += [f"    {source:14} {form:14} {count:>9,}" for (source, form), count in sorted(self.bookmarks.items())]
        lines.append(f"{self.lesions:,} lesions of {self.patients:,} patients; {self.with_box:,} have a box")
        if self.images_checked or self.with_dicom:
            slices = f"{self.with_image:,} have their PNG slice, " if self.images_checked else ""
            missing = self.lesions - self.with_dicom - (self.with_image if self.images_checked else 0)
            lines.append(f"    {slices}{self.with_dicom:,} have their DICOM image, {missing:,} have no image there")
        else:
            lines.append("    images were not looked for (give --images)")
        if self.patients_in_two_splits:
            lines.append(
                f"    {self.patients_in_two_splits:,} patients are stated in two splits; each went to one as a whole"
            )
        if self.reviews_kept or self.reviews_gone:
            gone = f"; {self.reviews_gone:,} were of lesions that are no longer there" if self.reviews_gone else ""
            lines.append(f"    {self.reviews_kept:,} review states of the earlier lesions.parquet were kept{gone}")
        lines.append(f"{self.rejected:,} rows in rejected.csv ({self.duplicates:,} of them copies)")
        return lines


def harvest(
    sources: Sequence[Path],
    out: Path,
    *,
    images: Path | None = None,
    index: Path | None = None,
    workers: int = 1,
    progress: bool = True,
) -> HarvestSummary:
    """Read every mark in ``sources``.

    Args:
        sources: files and folders.
        out: output folder, made where it is missing.
        images: a folder of PNG slices (``SERIES/NNN.png``) or of DICOM images. A mark keeps its ``image`` only where
            that PNG is there; DICOM images give their marks spacing, size, patient and place in the series. Where it
            is None, paths are kept unchecked and DICOM images that lie among the sources are used.
        index: a file to keep the index of the DICOM images in; it holds patients' IDs. None: it is not kept.
        workers: processes.
        progress: show progress bars.

    Returns:
        The counts.

    Raises:
        DataPrepError: a source or the images folder is missing, or the output cannot be written.
    """
    if images is not None and not images.is_dir():
        raise DataPrepError(f"{images}: no such images folder")
    if index is not None and images is None and len(sources) > 1:
        raise DataPrepError(f"{index}: an index is of one folder; say with --images which of the sources it is")
    out = make_folder(out)
    work = out / WORK_FOLDER
    with _processes(workers) as pool:
        counts, read, later, refused = _read_files([Path(source) for source in sources], out, work, pool, progress)
        if images is not None:
            folders = [images]
        else:
            folders = [Path(source) for source in sources if Path(source).is_dir()] if counts.dicom_images else []
        indexed = _look_for_images(folders, read, counts, index, work, workers, progress)
        if later:
            counts.add(_read_all(later, work, pool, progress, partial(read_part, images=indexed)))
            read += [part_path(part, work, images=indexed, deferring=False).with_suffix(".parquet") for part in later]
        found = None if indexed is None else indexed.open()
        with tqdm(total=counts.bookmarks, desc="merging marks", unit="mark", disable=not progress) as bar:
            joined = join(
                read,
                out,
                work,
                image_exists=None if images is None else exists_below(images),
                find_image=None if found is None else found.find,
                pool=pool,
                on_progress=bar.update,
            )
    rejections = refused + joined.rejections + ([] if found is None else found.damaged())
    rejected = _write_rejected(rejections, read, out / "rejected.csv")
    shutil.rmtree(work, ignore_errors=True)
    return HarvestSummary(
        files=counts.files,
        images=counts.images,
        bookmarks=dict(sorted(Counter(joined.bookmarks).items())),
        lesions=joined.lesions,
        with_box=joined.with_box,
        with_image=joined.with_image,
        with_dicom=joined.with_dicom,
        images_checked=images is not None,
        patients=joined.patients,
        patients_in_two_splits=joined.patients_in_two_splits,
        reviews_kept=joined.reviews_kept,
        reviews_gone=joined.reviews_gone,
        rejected=rejected,
        duplicates=joined.duplicates,
    )


def _read_files(
    sources: Sequence[Path], out: Path, work: Path, pool: ProcessPoolExecutor | None, progress: bool
) -> tuple[PartCounts, list[Path], list[list[SourceFile]], list[Rejection]]:
    """What was counted, the parts' tables, the files to read again once the images are known, and what was refused.

    The list of all files lives no longer than this: it takes some 300 bytes a file.
    """
    files, refused = find_files(sources, out)
    if not files and not refused:
        raise DataPrepError(f"{', '.join(map(str, sources))}: no file to read")
    make_folder(work).chmod(0o700)  # its files name patients
    parts = list(in_parts(files))
    counts = _read_all(parts, work, pool, progress, partial(read_part, deferring=True))
    # Files whose marks lie on images in ways that only the images tell are read when these are known.
    deferred = set(counts.deferred)
    later = list(in_parts([file for file in files if file.name in deferred]))
    return counts, [part_path(part, work).with_suffix(".parquet") for part in parts], later, refused


def _read_all(
    parts: Sequence[Sequence[SourceFile]],
    work: Path,
    pool: ProcessPoolExecutor | None,
    progress: bool,
    read: Callable[..., PartCounts],
) -> PartCounts:
    total = PartCounts()
    bar = tqdm(total=sum(map(len, parts)), desc="reading files", unit="file", disable=not progress)
    with bar:

        def done(counts: PartCounts) -> None:
            total.add(counts)
            bar.set_postfix(marks=total.bookmarks, refresh=False)
            bar.update(counts.files)

        if pool is None or len(parts) == 1:
            for part in parts:
                done(read(part, work, lambda marks: bar.set_postfix(marks=total.bookmarks + marks)))
        else:
            for counts in _in_processes(parts, work, pool, read):
                done(counts)
    return total


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """A pool of so many processes; None for one, which is this one."""
    if workers <= 1:
        yield None
        return
    try:
        # Spawned, not forked: the parent holds threads and locks of Arrow.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool
    except BrokenProcessPool as error:
        raise DataPrepError(
            "a worker process was killed (out of memory?); run again with fewer --workers: what is read is kept"
        ) from error


def _in_processes(
    parts: Sequence[Sequence[SourceFile]], work: Path, pool: ProcessPoolExecutor, read: Callable[..., PartCounts]
) -> Iterator[PartCounts]:
    queue = iter(parts)
    running: set[Future[PartCounts]] = set()
    while True:
        for part in queue:
            running.add(pool.submit(read, part, work))
            if len(running) >= _IN_HAND:
                break
        if not running:
            return
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            yield future.result()


def _look_for_images(
    folders: Sequence[Path],
    parts: Sequence[Path],
    counts: PartCounts,
    index: Path | None,
    work: Path,
    workers: int,
    progress: bool,
) -> IndexedFolders | None:
    """The DICOM images below the folders; None where no mark refers to one or there is no folder to look in."""
    if not folders or not (counts.deferred or any(_names_images(part) for part in parts)):
        return None
    kept = [index] if index is not None else [work / f"images-{number}.parquet" for number in range(len(folders))]
    return index_folders(list(zip(folders, kept, strict=True)), workers=workers, progress=progress)


def _names_images(part: Path) -> bool:
    return bool(pc.any(pc.is_valid(pq.read_table(part, columns=["image_uid"])[0])).as_py())


def _write_rejected(rejections: Sequence[Rejection], parts: Sequence[Path], path: Path) -> int:
    rows: list[tuple[str, str, str]] = []
    for part in parts:
        with part.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
            rows += [(source, row, reason) for source, row, reason in csv.reader(file)]
    whole = {source for source, row, _ in rows if not row}  # refused as a mark and as an image: told once
    rows += [(r.source_file, r.row, r.reason) for r in rejections if r.row or r.source_file not in whole]
    rows.sort(key=lambda row: row[0])  # stable: within a file the order in which it was read
    write_csv(path, ("source_file", "row", "reason"), rows, mode=PRIVATE)
    return len(rows)
