"""Key-object notes: which images somebody flagged, and under which title.

A note carries no mark of its own: :func:`read` says so in one rejection, and :func:`flagged_images` gives the images,
for whoever joins them to the marks drawn on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pydicom

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection
from data_prep.readers._sr_context import image_reference
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

_DESCRIPTION = "113012"  # (DCM) Key Object Description


def recognise(head: bytes, path: Path) -> bool:
    """Key Object Selection Document Storage."""
    return looks_like_dicom(head) and sop_class_uid(path) == KEY_OBJECT_SELECTION


def flagged_images(path: Path) -> list[tuple[str, str]]:
    """The images a note flags, in its order, each once.

    Returns:
        (SOP instance UID, title): the document title ("Of Interest", "For Surgery", ...), followed by the note's own
        description after a colon where it has one.

    Raises:
        UnreadableError: not DICOM, too large, or damaged.
    """
    dataset = load_dataset(path, max_bytes=MAX_BYTES)
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            tree = parse(dataset)
            title = tree.root.concept.meaning or "Key object"
            for item in tree.root.named(_DESCRIPTION)[:1]:
                title = f"{title}: {text(item.dataset, 0x0040A160)}"
            references = [image_reference(item) for item in tree.root.walk() if item.value_type == "IMAGE"]
        except DAMAGE as error:
            raise UnreadableError(f"{path}: damaged key-object note ({type(error).__name__})") from None
    return [(uid, title) for uid in dict.fromkeys(r.sop_instance_uid for r in references if r is not None)]


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """One rejection that says how many images the note flags; raises UnreadableError as :func:`flagged_images`."""
    count = len(flagged_images(path))
    yield Rejection("", "", f"a key-object note: it flags {count} image{'' if count == 1 else 's'} and carries no mark")
