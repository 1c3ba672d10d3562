"""Readers: one file per source format, all the same shape.

A reader module has

* ``SOURCE``: its name in :data:`data_prep.bookmark.SOURCES`;
* ``recognise(head: bytes, path: Path) -> bool``: is this file mine? Judged by the first 4,096 bytes, never by the name;
  ``path`` is there for readers that must open the file to know (all DICOM kinds share a preamble);
* ``read(path: Path) -> Iterator[Bookmark | Rejection]``: every mark in the file, or why it is not harvested.
  Raises :class:`data_prep.errors.UnreadableError` where the whole file is of no use;
* ``USES_IMAGES = True`` where ``read`` takes the images as a second argument, to place marks given in millimetres or
  to check where a mask lies (:class:`data_prep.readers._planes.ImageLookup`; None: they are not at hand);
* ``read_tables(path: Path) -> Iterator[pa.Table | Rejection]`` where one file may hold a million marks: what ``read``
  gives, in the same order, the bookmarks as tables of some thousand rows in
  :data:`data_prep.bookmark.BOOKMARK_SCHEMA`. A harvest then takes it instead of ``read``.

Readers know formats and nothing of files by the thousand; :mod:`data_prep.harvest` is the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejection:
    """One mark (or row, or file) that was not harvested; one row of ``rejected.csv``."""

    source_file: str
    row: str  # a row number, an instance UID or a content-item path within the file; "" for the whole file
    reason: str
