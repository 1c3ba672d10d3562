"""Key-object notes: which images somebody flagged, and under which title.

A note marks no place: each flagged image becomes a ``text`` bookmark without an anchor, which joins the lesions that
other marks make on that image, or stays as a location to review.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom import Dataset

from data_prep.bookmark import Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.quiet import quiet_pydicom
from data_prep.readers import Rejection
from data_prep.readers._sr_context import MAX_TEXT, describe, image_reference, report_facts
from data_prep.readers._sr_tree import parse, text
from data_prep.readers.dicom_kind import (
    DAMAGE,
    KEY_OBJECT_SELECTION,
    load_dataset,
    looks_like_dicom,
    sop_class_uid,
)
from data_prep.readers.dicom_sr import MAX_BYTES

SOURCE = "dicom-sr"  # a key-object selection document is a structured report (PS3.3 A.35.4)

PREFIX = "key image: "
"""Begins the text of a flagged image's bookmark."""

_DESCRIPTION = "113012"  # (DCM) Key Object Description


def recognise(head: bytes, path: Path) -> bool:
    """Key Object Selection Document Storage."""
    return looks_like_dicom(head) and sop_class_uid(path) == KEY_OBJECT_SELECTION


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """The images a note flags, in its order, each once.

    The text is :data:`PREFIX`, the document title ("Of Interest", "For Surgery", ...) and, after a colon, the note's
    own description where it has one.

    Raises:
        UnreadableError: not DICOM, too large, or damaged.
    """
    dataset = load_dataset(path, max_bytes=MAX_BYTES)
    with quiet_pydicom():
        try:
            found = _flagged(dataset)
        except DAMAGE as error:
            raise UnreadableError(f"{path}: damaged key-object note ({type(error).__name__})") from None
    yield from found
    if not found:
        yield Rejection("", "", "a key-object note that flags no image")


def _flagged(dataset: Dataset) -> list[Bookmark]:
    tree = parse(dataset)
    report = report_facts(dataset, tree)
    title = PREFIX + (tree.root.concept.meaning or "Key object")
    for item in tree.root.named(_DESCRIPTION)[:1]:
        title = f"{title}: {text(item.dataset, 0x0040A160)}"
    found: dict[str, Bookmark] = {}
    for item in tree.root.walk():
        reference = image_reference(item) if item.value_type == "IMAGE" else None
        if reference is None:
            continue
        fields: dict[str, Any] = describe(report, item, reference)
        fields["text"] = title[:MAX_TEXT]
        key = make_id(SOURCE, report.sop_instance_uid, reference.sop_instance_uid, reference.frame_number, "text")
        found.setdefault(key, Bookmark(bookmark_id=key, source=SOURCE, form="text", points_px=(), **fields))
    return list(found.values())
