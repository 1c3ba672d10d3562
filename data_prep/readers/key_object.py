"""Key-object notes: which images somebody flagged, and under which title.

A note marks no place: each flagged image, or frame of it, becomes a ``text`` bookmark without an anchor, which joins
the lesions that other marks make there, or stays as a location to review. A rejection note withdraws its images: they
become no bookmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydicom import Dataset

from data_prep.bookmark import Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.frames import aim_frame_number
from data_prep.quiet import quiet_pydicom
from data_prep.readers import Rejection
from data_prep.readers._sr_context import MAX_TEXT, ImageReference, describe, image_reference, report_facts
from data_prep.readers._sr_tree import Item, parse, sequence, text
from data_prep.readers.dicom_kind import (
    DAMAGE,
    KEY_OBJECT_SELECTION,
    MAX_ITEMS,
    load_dataset,
    looks_like_dicom,
    sop_class_uid,
)
from data_prep.readers.dicom_sr import MAX_BYTES

SOURCE = "dicom-sr"  # a key-object selection document is a structured report (PS3.3 A.35.4)

PREFIX = "key image: "
"""Begins the text of a flagged image's bookmark."""

REJECTION_TITLES = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}
"""Titles (DCM) of a rejection note: its images are no longer to be used (IHE RAD, Imaging Object Change Management)."""

_DESCRIPTION = "113012"  # (DCM) Key Object Description


def recognise(head: bytes, path: Path) -> bool:
    """Key Object Selection Document Storage."""
    return looks_like_dicom(head) and sop_class_uid(path) == KEY_OBJECT_SELECTION


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """The images and frames a note flags, in its order, each once; of a rejection note a single Rejection.

    The text is :data:`PREFIX`, the document title ("Of Interest", "For Surgery", ...) and, after a colon, the note's
    own description where it has one.

    Raises:
        UnreadableError: not DICOM, too large, damaged, or more images and frames than a note names.
    """
    dataset = load_dataset(path, max_bytes=MAX_BYTES)
    with quiet_pydicom():
        try:
            found = list(islice(_flagged(dataset), MAX_ITEMS + 1))
        except DAMAGE as error:
            raise UnreadableError(f"{path}: damaged key-object note ({type(error).__name__})") from None
    if len(found) > MAX_ITEMS:  # one element may list a million frames
        raise UnreadableError(f"{path}: more than {MAX_ITEMS} images and frames; not a plausible note")
    yield from found
    if not found:
        yield Rejection("", "", "a key-object note that flags no image")


def _flagged(dataset: Dataset) -> Iterator[Bookmark | Rejection]:
    tree = parse(dataset)
    report = report_facts(dataset, tree)
    images = [item for item in tree.root.walk() if item.value_type == "IMAGE"]
    code = tree.root.concept.value
    if code in REJECTION_TITLES:
        withdrawn = {found.sop_instance_uid for found in map(image_reference, images) if found is not None}
        reason = f"withdrawn by a rejection note ({code} {REJECTION_TITLES[code]}); images it names: {len(withdrawn)}"
        yield Rejection("", "", reason)
        return
    title = PREFIX + (tree.root.concept.meaning or "Key object")
    for item in tree.root.named(_DESCRIPTION)[:1]:
        title = f"{title}: {text(item.dataset, 0x0040A160)}"
    seen: set[str] = set()
    for item in images:
        for reference in _references(item):
            key = make_id(SOURCE, report.sop_instance_uid, reference.sop_instance_uid, reference.frame_number, "text")
            if key in seen:
                continue
            seen.add(key)
            fields: dict[str, Any] = describe(report, item, reference)
            fields["text"] = title[:MAX_TEXT]
            yield Bookmark(bookmark_id=key, source=SOURCE, form="text", points_px=(), **fields)


def _references(item: Item) -> Iterator[ImageReference]:
    """What an IMAGE item refers to, once for every frame it names (1-based; 0 is taken as 1)."""
    reference = image_reference(item)
    if reference is None:
        return
    frames = sequence(item.dataset, 0x00081199)[0].get(0x00081160)
    if frames is None or frames.VM < 2:
        yield reference
    else:
        for number in frames.value:
            yield replace(reference, frame_number=aim_frame_number(number), note=None)
