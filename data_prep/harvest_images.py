"""The images a harvest looks things up in: DICOM folders as one index, and a folder of PNG slices."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_prep.archive.index import ImageIndex, ImageRecord, SeriesReport
from data_prep.readers import Rejection


class Images:
    """Several indices as one; the first folder that has an image wins."""

    def __init__(self, indices: Sequence[ImageIndex]) -> None:
        self._indices = tuple(indices)
        self.series: list[SeriesReport] = [series for index in indices for series in index.series]

    def find(self, sop_instance_uid: str, frame_number: int | None = None) -> ImageRecord | None:
        """The image with this SOP instance UID, or None; see :meth:`ImageIndex.find`."""
        for index in self._indices:
            record = index.find(sop_instance_uid, frame_number)
            if record is not None:
                return record
        return None

    def damaged(self) -> list[Rejection]:
        """The DICOM files that could not be indexed."""
        return [
            Rejection(path.as_posix(), "", f"an image that cannot be used: {reason}")
            for index in self._indices
            for path, reason in index.skipped
        ]


@dataclass(frozen=True, slots=True)
class IndexedFolders:
    """Indexed folders with the files their indices are kept in: small enough to send to another process.

    ``fingerprint`` changes where any image below the folders does.
    """

    folders: tuple[tuple[Path, Path], ...]  # (folder, its index)
    fingerprint: str

    def open(self) -> Images:
        """The images; read from the kept indices once in each process."""
        return _open(self)


@lru_cache(maxsize=1)
def _open(folders: IndexedFolders) -> Images:
    return Images([ImageIndex.load(folder, kept) for folder, kept in folders.folders])


def index_folders(folders: Sequence[tuple[Path, Path]], *, workers: int, progress: bool) -> IndexedFolders:
    """Index the DICOM images below the folders.

    Args:
        folders: each, searched with its subfolders, and the file its index is kept in.
        workers: processes.
        progress: show progress bars.
    """
    indices = [ImageIndex.build(folder, cache=kept, workers=workers, progress=progress) for folder, kept in folders]
    return IndexedFolders(tuple(folders), "-".join(index.fingerprint for index in indices))


def exists_below(images: Path) -> Callable[[str], bool]:
    """Whether a path is a file below ``images``; folders are listed: a million single questions are slow."""
    series = frozenset(entry.name for entry in images.iterdir())

    @lru_cache(maxsize=256)  # marks come ordered by series
    def names(folder: str) -> frozenset[str]:
        try:
            with os.scandir(images / folder) as entries:
                return frozenset(entry.name for entry in entries if entry.is_file())
        except OSError:
            return frozenset()

    def exists(image: str) -> bool:
        folder, _, name = image.rpartition("/")
        first = image.partition("/")[0]
        return first in series and ".." not in folder.split("/") and name in names(folder)

    return exists
