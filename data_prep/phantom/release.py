"""The same content in DeepLesion's form: PNG slices, lesions for ``DL_info.csv``, and the full truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep import frames
from data_prep.archive import png
from data_prep.lesion import Lesion
from data_prep.phantom.anatomy import Anatomy
from data_prep.phantom.dicom_series import Study, slice_number
from data_prep.phantom.radiologist import Mark, bookmark, image_name
from data_prep.phantom.scanner import MATRIX, Scan, body_position

MARGIN_MM = 30.0
"""DeepLesion stores this much of the series on each side of a key slice."""


def key_range(scan: Scan, index: int) -> tuple[int, int]:
    """First and last slice index (inclusive) stored around a key slice."""
    reach = math.floor(MARGIN_MM / scan.protocol.slice_mm + 1e-9)
    return max(index - reach, 0), min(index + reach, len(scan.hu) - 1)


def write_images(study: Study, scan: Scan, keys: Sequence[int], images: Path) -> None:
    """Write the slices around every key slice below ``images``."""
    wanted: set[int] = set()
    for key in keys:
        first, last = key_range(scan, key)
        wanted.update(range(first, last + 1))
    for index in sorted(wanted):
        png.write_hu(images / image_name(study, index), scan.hu[index])


def marked_lesion(study: Study, scan: Scan, body: Anatomy, mark: Mark) -> Lesion:
    """A mark as a row of the release, its split and type not yet decided (``coarse_type`` is the true one)."""
    drawn = bookmark(study, scan, mark)
    box = frames.box_from_recist(mark.points_px)
    centre_x, centre_y = float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2
    norm_x, norm_y, norm_z = body_position(scan.protocol, body, centre_x, centre_y, mark.slice_index)
    first, last = key_range(scan, mark.slice_index)
    return Lesion(
        lesion_id=drawn.bookmark_id,
        bookmark_ids=(drawn.bookmark_id,),
        source=drawn.source,
        image=image_name(study, mark.slice_index),
        patient_id=f"{study.patient:06d}",
        slice_index=slice_number(mark.slice_index),
        rows=MATRIX,
        columns=MATRIX,
        spacing_x_mm=drawn.spacing_x_mm,
        spacing_y_mm=drawn.spacing_y_mm,
        spacing_z_mm=-scan.protocol.slice_mm,  # numbered towards the head, see Lesion.numbers_lead_to
        window_min_hu=drawn.window_min_hu,
        window_max_hu=drawn.window_max_hu,
        norm_x=norm_x,
        norm_y=norm_y,
        norm_z=norm_z,
        slice_first=slice_number(first),
        slice_last=slice_number(last),
        patient_sex=study.sex,
        patient_age=float(study.age),
        x0=float(box[0]),
        y0=float(box[1]),
        x1=float(box[2]),
        y1=float(box[3]),
        centre_x=centre_x,
        centre_y=centre_y,
        recist_px=drawn.points_px,
        long_diameter_mm=drawn.stated_long_mm,
        short_diameter_mm=drawn.stated_short_mm,
        coarse_type=mark.seen.lesion.kind.coarse_type,
    )


def truth_item(study: Study, scan: Scan, key: int, marks: Sequence[Mark]) -> dict[str, Any]:
    """One key slice as a datalist item with every true lesion on it, but for ``image``.

    ``marked`` says which lesions have a bookmark on this very slice; ``kind`` names them.
    """
    marked = {mark.seen.lesion.number for mark in marks if mark.slice_index == key}
    p = scan.protocol
    item: dict[str, Any] = {
        "key_image": image_name(study, key),
        "patient_id": f"{study.patient:06d}",
        "spacing_mm": [p.spacing_mm, p.spacing_mm, p.slice_mm],
        "image_size": [MATRIX, MATRIX],
        "slice_index": slice_number(key),
    }
    columns: dict[str, list[Any]] = {
        name: []
        for name in (
            "box",
            "label",
            "lesion_id",
            "recist_px",
            "coarse_type",
            "long_diameter_mm",
            "short_diameter_mm",
            "marked",
            "kind",
        )
    }
    for number, seen in sorted(scan.seen[key].items()):
        box = frames.clip_box(frames.box_from_recist(seen.recist_px), MATRIX, MATRIX)
        if box is None:
            continue
        columns["box"].append(_rounded(box))
        columns["label"].append(0)
        columns["lesion_id"].append(f"{study.series_name}_{slice_number(key):03d}_lesion{number:02d}")
        columns["recist_px"].append(_rounded(seen.recist_px.ravel()))
        columns["coarse_type"].append(seen.lesion.kind.coarse_type)
        columns["long_diameter_mm"].append(round(seen.diameters_mm[0], 4))
        columns["short_diameter_mm"].append(round(seen.diameters_mm[1], 4))
        columns["marked"].append(number in marked)
        columns["kind"].append(seen.lesion.kind.name)
    return item | columns


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(float(v), 6) for v in values]
