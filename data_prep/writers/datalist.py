"""``datalist.json``: slices with lesion boxes by split, as the bundles read it (``schemas/datalist.schema.json``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from data_prep.archive.png import neighbours
from data_prep.atomic import write_json
from data_prep.bookmark import positive_or_none
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion
from data_prep.schemas import validate
from data_prep.splits import tuning_patients
from data_prep.writers.select import Categories, Slice, select

SCHEMA_VERSION = 1
SECTIONS = ("training", "tuning", "validation", "test")
_SECTION_OF_SPLIT = {"train": "training", "validation": "validation", "test": "test"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatalistSummary:
    """Counts: (slices, lesions, patients) by section, lesions left out by reason, boxes that were clipped."""

    sections: dict[str, tuple[int, int, int]]
    left_out: Counter[str] = field(default_factory=Counter)
    clipped: int = 0

    def lines(self) -> list[str]:
        """The summary in words, for people."""
        lines = [
            f"{name:12} {slices:>7,} slices {lesions:>7,} lesions {patients:>6,} patients"
            for name, (slices, lesions, patients) in self.sections.items()
        ]
        lines.append(f"{self.clipped:,} boxes that stuck out were clipped to their slice")
        lines += [f"left out: {count:,} ({reason})" for reason, count in sorted(self.left_out.items())]
        return lines


def write_datalist(
    lesions: Iterable[Lesion],
    images: str | PathLike[str],
    out: str | PathLike[str],
    *,
    categories: Categories | None = None,
    slices: int = 3,
    slice_distance_mm: float | None = None,
) -> DatalistSummary:
    """Write a datalist; atomic.

    Args:
        lesions: from ``lesions.parquet``, with their split.
        images: the images folder (PNG slices, 16-bit, HU + 32768).
        out: the file to write.
        categories: names and labels; None: one category, ``lesion``.
        slices: how many neighbouring slices an item lists, odd; a missing one is stood in for by the nearest.
        slice_distance_mm: how far apart the neighbours are to be at least. None: the next stored slices. Where the
            slice step is not known, the next stored slices are taken too.

    Returns:
        The counts.

    Raises:
        DataPrepError: no images folder, an even number of slices, or no lesion that can be used (nothing is written).
    """
    if slices < 1 or slices % 2 == 0:
        raise DataPrepError(f"the number of slices must be odd (1, 3, 5, ...), got {slices}")
    if slice_distance_mm is not None and not slice_distance_mm > 0:
        raise DataPrepError(f"the distance of neighbouring slices must be more than 0 mm, got {slice_distance_mm}")
    categories = categories or Categories()
    selection = select(lesions, images, categories)
    if not selection.slices:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in selection.left_out.most_common())
        raise DataPrepError(f"no lesion can be used, so there is no datalist ({reasons or 'there are no lesions'})")
    tuning = tuning_patients(found.patient_id for found in selection.slices if found.split == "train")
    sections: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    patients: dict[str, set[str]] = {name: set() for name in SECTIONS}
    for found in selection.slices:
        section = _SECTION_OF_SPLIT[found.split]
        if section == "training" and found.patient_id in tuning:
            section = "tuning"
        sections[section].append(_item(found, Path(images), slices, slice_distance_mm))
        patients[section].add(found.patient_id)
    value = {"schema_version": SCHEMA_VERSION, "kind": "bookmarks", **sections, "categories": list(categories.names)}
    validate(value, "datalist")
    write_json(out, value, indent=None)
    return DatalistSummary(
        sections={
            name: (len(items), sum(len(item["box"]) for item in items), len(patients[name]))
            for name, items in sections.items()
        },
        left_out=selection.left_out,
        clipped=selection.clipped,
    )


def _item(found: Slice, images: Path, slices: int, slice_distance_mm: float | None) -> dict[str, Any]:
    lesions = [target.lesion for target in found.targets]
    first = lesions[0]
    spacing_mm = [positive_or_none(value) for value in (first.spacing_x_mm, first.spacing_y_mm, first.spacing_z_mm)]
    step = 1
    if slice_distance_mm is not None and spacing_mm[2]:
        # Rounded up, so that planes at that distance lie between slices; a hair over a whole number is that number.
        step = max(1, math.ceil(slice_distance_mm / spacing_mm[2] - 1e-3))
    return {
        "image": neighbours(images, found.image, slices, step),
        "box": [list(target.box_px) for target in found.targets],
        "label": [target.label for target in found.targets],
        "spacing_mm": spacing_mm,
        "patient_id": found.patient_id,
        "lesion_id": [lesion.lesion_id for lesion in lesions],
        "recist_px": [
            list(lesion.recist_px) if lesion.recist_px is not None and len(lesion.recist_px) == 8 else None
            for lesion in lesions
        ],
        "coarse_type": [lesion.coarse_type for lesion in lesions],
        "long_diameter_mm": [lesion.long_diameter_mm for lesion in lesions],
        "short_diameter_mm": [lesion.short_diameter_mm for lesion in lesions],
        "image_size": [found.columns, found.rows],
        "slice_index": first.slice_index,
        "numbers_lead_to": first.numbers_lead_to,
    }
