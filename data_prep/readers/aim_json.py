"""AIM 4 in JSON, as ePAD stores it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection
from data_prep.readers._aim import load
from data_prep.readers._aim4 import children, read_collection

SOURCE = "aim-json"


def recognise(head: bytes, path: Path) -> bool:
    """Is this AIM 4 JSON? Told by its root key."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return start[:1] in (b"{", b"[") and (b'"ImageAnnotationCollection"' in start or b'"imageAnnotations"' in start)


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """Every mark of one file, which holds one collection or a list of them.

    Raises:
        UnreadableError: cannot be read, larger than 16 MiB, not JSON, nested too deep, or no AIM collection inside.
    """
    data = load(path)
    try:
        tree = json.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise UnreadableError(f"{path}: the JSON is nested too deep") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise UnreadableError(f"{path}: not readable JSON ({type(error).__name__})") from error
    roots = [root for root in (tree if isinstance(tree, list) else [tree]) if isinstance(root, dict)]
    collections = [
        collection
        for root in roots
        for collection in ([root] if "imageAnnotations" in root else children(root, "ImageAnnotationCollection"))
    ]
    if not collections:
        raise UnreadableError(f"{path}: JSON without an AIM ImageAnnotationCollection")
    for collection in collections:
        yield from read_collection(collection, SOURCE)
