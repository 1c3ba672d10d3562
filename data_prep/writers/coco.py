"""COCO detection annotations from lesions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from data_prep import frames
from data_prep.atomic import write_json
from data_prep.bookmark import positive_or_none
from data_prep.errors import DataPrepError
from data_prep.lesion import COARSE_TYPES, Lesion
from data_prep.writers.select import Categories, Slice, Target, select


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoSummary:
    """Counts; ``left_out`` is lesions by reason."""

    images: int
    annotations: int
    left_out: Counter[str] = field(default_factory=Counter)


def write_coco(
    lesions: Iterable[Lesion],
    images: str | PathLike[str],
    out: str | PathLike[str],
    *,
    categories: Categories | None = None,
    split: str | None = None,
) -> CocoSummary:
    """Write a COCO file; atomic. The same lesions are used as in a datalist, their boxes clipped to the slice.

    ``bbox`` is ``x, y, width, height`` with (0, 0) at the corner of the first pixel; ids count from 1. Category ids
    are labels + 1, because many programs keep 0 for background. Beside COCO's own keys: images have ``split``,
    ``patient_id`` and ``spacing_mm``; annotations ``lesion_id``, ``recist_px``, diameters and the official type.

    Args:
        lesions: from ``lesions.parquet``.
        images: the images folder.
        out: the file to write.
        categories: names and labels; None: one category, ``lesion``.
        split: only ``train``, ``validation`` or ``test``; None: all.

    Raises:
        DataPrepError: no images folder, no lesion that can be used, or the file cannot be written.
    """
    categories = categories or Categories()
    selection = select(lesions, images, categories)
    slices = [found for found in selection.slices if split is None or found.split == split]
    if not slices:
        raise DataPrepError("no lesion can be used, so there is no COCO file")
    annotations: list[dict[str, Any]] = []
    for image_id, found in enumerate(slices, start=1):
        annotations += [
            {"id": len(annotations) + i, "image_id": image_id, **_annotation(target)}
            for i, target in enumerate(found.targets, start=1)
        ]
    value = {
        "info": {"description": "Lesions on key slices", "version": "1"},
        "licenses": [],
        "images": [_image(image_id, found) for image_id, found in enumerate(slices, start=1)],
        "annotations": annotations,
        "categories": [
            {"id": label + 1, "name": name, "supercategory": "lesion"} for label, name in enumerate(categories.names)
        ],
    }
    write_json(out, value, indent=None)
    return CocoSummary(images=len(slices), annotations=len(annotations), left_out=selection.left_out)


def _image(image_id: int, found: Slice) -> dict[str, Any]:
    first = found.targets[0].lesion
    return {
        "id": image_id,
        "file_name": found.image,
        "width": found.columns,
        "height": found.rows,
        "split": found.split,
        "patient_id": found.patient_id,
        "spacing_mm": list(map(positive_or_none, (first.spacing_x_mm, first.spacing_y_mm, first.spacing_z_mm))),
    }


def _annotation(target: Target) -> dict[str, Any]:
    lesion = target.lesion
    x, y, width, height = frames.px_box_to_coco(target.box_px).tolist()
    return {
        "category_id": target.label + 1,
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": 0,
        "lesion_id": lesion.lesion_id,
        "recist_px": list(lesion.recist_px) if lesion.recist_px is not None else None,
        "long_diameter_mm": lesion.long_diameter_mm,
        "short_diameter_mm": lesion.short_diameter_mm,
        "coarse_type": COARSE_TYPES.get(lesion.coarse_type) if lesion.coarse_type is not None else None,
    }
