"""Our own ``detections.json`` (a detector's findings) -> boxes that a person may accept or reject."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.bookmark import DETECTOR, Bookmark, make_id
from data_prep.errors import DataPrepError, UnreadableError
from data_prep.readers import Rejection
from data_prep.readers.plain_csv import safe_image
from data_prep.schemas import validate

SOURCE = DETECTOR

_LARGEST_STEP_MM = 1e4
_LARGEST_FILE = 512 * 2**20  # bytes; about a million findings


def recognise(head: bytes, path: Path) -> bool:
    """Is this a detections.json? Yes for a JSON object that begins with ``schema_version`` and ``series``."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"{") and b'"schema_version"' in start and b'"series"' in start


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """Every finding as a ``box`` with its score; its row is ``series/finding``, both 0-based.

    Its id is made of the series, the image (UID, path or slice number), the label and the box. The bundle's
    ``find_unmarked`` writes the same id into its gallery, so changing the parts is changing the format.

    Raises:
        UnreadableError: not JSON, not after the schema (``schemas/detections.schema.json``), or absurdly large.
    """
    value = load(path)
    for i, series in enumerate(value["series"]):
        grid = series["grid"]
        spacing = _spacing_mm(grid["affine_lps"])
        for j, finding in enumerate(series["findings"]):
            row = f"{i}/{j}"
            box_px = tuple(map(float, finding["box_px"]))
            try:
                yield Bookmark(
                    bookmark_id=make_id(
                        SOURCE,
                        series["series_uid"],
                        # A PNG slice has no UID; its path says which one it is.
                        finding["image_uid"] or finding.get("image") or finding["slice_index"],
                        finding["label"],
                        *(f"{value:.3f}" for value in box_px),
                    ),
                    source=SOURCE,
                    form="box",
                    points_px=box_px,
                    stated_box_px=box_px,
                    text=finding["category"],
                    patient_id=series["patient_id"] or None,
                    study_uid=series["study_uid"] or None,
                    series_uid=series["series_uid"] or None,
                    image_uid=finding["image_uid"] or None,
                    image=safe_image(finding["image"]) if finding.get("image") else None,
                    slice_index=finding["slice_index"],
                    rows=grid["rows"],
                    columns=grid["columns"],
                    spacing_x_mm=spacing[0],
                    spacing_y_mm=spacing[1],
                    spacing_z_mm=spacing[2],
                    score=float(finding["score"]),
                )
            except ValueError as error:
                yield Rejection("", row, str(error))


def _spacing_mm(affine_lps: list[list[float]]) -> list[float | None]:
    """The x, y and z step of a grid; None for one that cannot be."""
    with np.errstate(all="ignore"):
        steps = np.linalg.norm(np.array(affine_lps, dtype=np.float64)[:3, :3], axis=0)
    return [float(step) if 0 < step < _LARGEST_STEP_MM else None for step in steps]


def load(path: Path) -> dict[str, Any]:
    """The checked content of a detections.json.

    Raises:
        UnreadableError: see :func:`read`.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UnreadableError(f"{path}: larger than {_LARGEST_FILE >> 20} MiB; split it by series")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: not readable JSON ({error})") from error
    try:
        validate(value, "detections")
    except DataPrepError as error:
        raise UnreadableError(f"{path}: {error}") from error
    assert isinstance(value, dict)
    return value
