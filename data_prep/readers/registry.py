"""Which reader reads a file; decided by its content, never by its name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection

if TYPE_CHECKING:
    import pyarrow as pa

    from data_prep.readers._planes import ImageLookup

HEAD_BYTES = 4_096

MODULES = (
    "deeplesion_csv",
    "dicom_sr",
    "dicom_gsps",
    "dicom_seg",
    "rtstruct",
    "key_object",
    "aim_xml",
    "aim_json",
    "detections_json",
    "nifti_mask",
    "plain_csv",  # last: it asks least of a file
)
"""Modules of :mod:`data_prep.readers`, in the order in which they are asked."""


class Reader(Protocol):
    """What a reader module has; see :mod:`data_prep.readers`."""

    SOURCE: str

    def recognise(self, head: bytes, path: Path) -> bool: ...

    def read(self, path: Path) -> Iterator[Bookmark | Rejection]: ...


@runtime_checkable
class ReaderOfTables(Reader, Protocol):
    """A reader that is faster a table at a time."""

    def read_tables(self, path: Path) -> Iterator[pa.Table | Rejection]: ...


@runtime_checkable
class ReaderWithImages(Reader, Protocol):
    """A reader of marks whose place in pixels may be known only from the images."""

    USES_IMAGES: bool

    def read(self, path: Path, images: ImageLookup | None = None) -> Iterator[Bookmark | Rejection]: ...


@cache
def reader(name: str) -> Reader:
    """A reader module by its name in :data:`MODULES`; imported on first use."""
    return cast(Reader, importlib.import_module(f"data_prep.readers.{name}"))


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        UnreadableError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error


def recognise(path: Path, head: bytes | None = None) -> Reader | None:
    """The reader for a file, or None where its format is not one of ours.

    Raises:
        UnreadableError: the file cannot be opened.
    """
    if head is None:
        head = head_of(path)
    for name in MODULES:
        module = reader(name)
        if module.recognise(head, path):
            return module
    return None
