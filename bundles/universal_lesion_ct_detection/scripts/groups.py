"""Groups of lesions that an evaluation reports on: category, official type, size, slice spacing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.froc import ImageResult

DEEPLESION_TYPES = {
    1: "bone", 2: "abdomen", 3: "mediastinum", 4: "liver", 5: "lung", 6: "kidney", 7: "soft tissue", 8: "pelvis",
}  # fmt: skip
"""DeepLesion's Coarse_lesion_type; -1 means unknown."""


@dataclass(frozen=True)
class Grouping:
    """A way to sort lesions into groups: its key in `metrics.json`, its groups in order, and each lesion's group.

    ``group_of(result)`` gives the m groups of an image's lesions; one that is not in ``groups`` (None) is left out.
    """

    key: str
    groups: tuple[str, ...]
    group_of: Callable[[ImageResult], Sequence[str | None]]


def _number(value: Any) -> float:
    """The value as a float; NaN where it is missing or no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _by_name(key: str, attribute: str, names: Mapping[int, str]) -> Grouping:
    def group_of(result: ImageResult) -> list[str | None]:
        numbers = (_number(value) for value in result.true_attributes.get(attribute, ()))
        return [None if math.isnan(number) else names.get(int(number)) for number in numbers]

    return Grouping(key, tuple(names.values()), group_of)


def _by_bin(key: str, bins: tuple[str, ...], attribute: str, bin_of: Callable[[Any], str | None]) -> Grouping:
    return Grouping(key, bins, lambda result: [bin_of(value) for value in result.true_attributes.get(attribute, ())])


def _size_mm(value: Any) -> str | None:
    size = _number(value)
    if not size > 0:
        return None
    return "under 10 mm" if size < 10 else "10 to 30 mm" if size <= 30 else "over 30 mm"


def _slice_spacing(value: Any) -> str | None:
    spacing = abs(_number(value))  # its sign is a direction in some releases
    if not spacing > 0:
        return None
    return "up to 2.5 mm" if spacing <= 2.5 else "over 2.5 mm"


PX_BINS = ("under 20 px", "20 px or more")


def _px_bins(sizes: np.ndarray) -> list[str | None]:
    return [PX_BINS[0] if size < 20 else PX_BINS[1] for size in sizes]


def _size_px(result: ImageResult) -> list[str | None]:
    return _px_bins((result.true_boxes_px[:, 2:] - result.true_boxes_px[:, :2]).max(axis=1, initial=0.0))


def _root_area_px(result: ImageResult) -> list[str | None]:
    # DeepLesion's numbers are of its outer pixels: x2 - x1 is a pixel less than what those cover.
    sides = result.true_boxes_px[:, 2:] - result.true_boxes_px[:, :2] - 1
    return _px_bins(np.sqrt(sides.clip(min=0).prod(axis=1)))


def groupings(
    results: Sequence[ImageResult], type_names: Mapping[int, str] | None, category_names: Sequence[str] | None
) -> list[Grouping]:
    """The groupings that these results have attributes for.

    Args:
        results: images; a grouping is given where any lesion has its attribute: ``label`` (0-based int) for
            ``by_category``, ``coarse_type`` for ``by_type``, ``long_diameter_mm`` for ``by_size_mm``,
            ``slice_spacing_mm`` for ``by_slice_spacing``. Two are always there: ``by_size_px``, the long side of the
            box, and ``by_root_area_px``, the square root of its area (COCO's measure of size) with the sides as
            DeepLesion's own numbers give them, x2 - x1.
        type_names: names of the official types; DeepLesion's where None.
        category_names: names of the categories by label; ``category 0``, ... where None.
    """
    values: dict[str, set[float]] = {}
    for result in results:
        for name, column in result.true_attributes.items():
            values.setdefault(name, set()).update(number for number in map(_number, column) if math.isfinite(number))
    if category_names is None:
        labels = [label for label in values.get("label", ()) if label >= 0]
        category_names = [f"category {label}" for label in range(int(max(labels, default=-1)) + 1)]
    types = DEEPLESION_TYPES if type_names is None else type_names
    candidates = [
        ("label", _by_name("by_category", "label", dict(enumerate(category_names)))),
        ("coarse_type", _by_name("by_type", "coarse_type", types)),
        (
            "long_diameter_mm",
            _by_bin("by_size_mm", ("under 10 mm", "10 to 30 mm", "over 30 mm"), "long_diameter_mm", _size_mm),
        ),
        (
            "slice_spacing_mm",
            _by_bin("by_slice_spacing", ("up to 2.5 mm", "over 2.5 mm"), "slice_spacing_mm", _slice_spacing),
        ),
    ]
    chosen = [grouping for attribute, grouping in candidates if values.get(attribute) and grouping.groups]
    return [*chosen, Grouping("by_size_px", PX_BINS, _size_px), Grouping("by_root_area_px", PX_BINS, _root_area_px)]
