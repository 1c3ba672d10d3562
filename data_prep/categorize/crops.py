"""Square crops around a lesion at three physical scales: the lesion itself, its neighbourhood, its region."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import roi_align

from data_prep.bookmark import positive_or_none
from data_prep.lesion import Lesion

SCALES = ("lesion", "near", "far")

PLAUSIBLE_SPACING_MM = (0.05, 10.0)
"""A stated spacing outside this range is damage, and is treated as unknown."""

MAX_SAMPLES_PER_PIXEL = 8
"""Bound on the averaging when a large area is shrunk, so that no input can make a crop slow."""


@dataclass(frozen=True, slots=True)
class CropSettings:
    """What the network sees; stored in the categoriser's file, because features depend on every value.

    Attributes:
        lesion_factor: side of the lesion crop over the longer side of the box.
        lesion_min_mm: least side of the lesion crop; below it there is nothing to recognise.
        lesion_max_mm: greatest side of the lesion crop.
        near_mm: side of the neighbourhood crop.
        far_mm: side of the region crop; shows which organs lie around.
        side_px: side of every crop as the network sees it. A trunk fills 384 mm, so 160 mm at 128 px is 1.25 mm/px.
        window_min_hu: intensity 0; also what lies outside the image (air is darker or equal).
        window_max_hu: intensity 1.
        assumed_spacing_mm: where the image states none: a usual one for an adult's trunk.
    """

    lesion_factor: float = 1.5
    lesion_min_mm: float = 20.0
    lesion_max_mm: float = 320.0
    near_mm: float = 80.0
    far_mm: float = 160.0
    side_px: int = 128
    window_min_hu: float = -175.0
    window_max_hu: float = 275.0
    assumed_spacing_mm: float = 0.8

    def __post_init__(self) -> None:
        sizes = (self.lesion_factor, self.lesion_min_mm, self.near_mm, self.far_mm, self.assumed_spacing_mm)
        if not all(0 < size <= 2000 for size in sizes) or not self.lesion_min_mm <= self.lesion_max_mm <= 2000:
            raise ValueError("a crop's size must be positive and at most 2000 mm")
        if not 32 <= self.side_px <= 512:
            raise ValueError(f"the side of a crop must be 32 to 512 px, got {self.side_px}")
        if not -math.inf < self.window_min_hu < self.window_max_hu < math.inf:
            raise ValueError(f"the window {self.window_min_hu}..{self.window_max_hu} HU is empty")


def stated_spacing_mm(lesion: Lesion) -> tuple[float, float] | None:
    """The image's (x, y) pixel spacing, or None where it is missing or absurd; one stated value serves both."""
    low, high = PLAUSIBLE_SPACING_MM
    stated = [positive_or_none(value) for value in (lesion.spacing_x_mm, lesion.spacing_y_mm)]
    good = [value if value is not None and low <= value <= high else None for value in stated]
    x, y = good[0] or good[1], good[1] or good[0]
    return None if x is None or y is None else (x, y)


def crop_boxes_px(lesion: Lesion, settings: CropSettings) -> npt.NDArray[np.float64]:
    """Where to crop.

    Returns:
        (3, 4) px boxes in the order of :data:`SCALES`, all centred on the centre of the lesion's box, each square in
        **millimetres**; they may stick out of the image.

    Raises:
        ValueError: the lesion has no box.
    """
    box = lesion.box_px
    if box is None:
        raise ValueError(f"lesion {lesion.lesion_id} has no box")
    spacing = stated_spacing_mm(lesion) or (settings.assumed_spacing_mm, settings.assumed_spacing_mm)
    spacing_mm = np.array(spacing)
    corners = np.array(box).reshape(2, 2)
    centre = corners.mean(axis=0)
    longest_mm = float(((corners[1] - corners[0]) * spacing_mm).max())
    lesion_mm = min(max(settings.lesion_factor * longest_mm, settings.lesion_min_mm), settings.lesion_max_mm)
    half = np.array([[lesion_mm], [settings.near_mm], [settings.far_mm]]) / spacing_mm / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def window(hu: npt.NDArray[np.float32], low_hu: float, high_hu: float) -> npt.NDArray[np.float32]:
    """HU -> intensity in [0, 1]; values outside the window are clipped."""
    intensity: npt.NDArray[np.float32] = np.clip((hu - np.float32(low_hu)) / np.float32(high_hu - low_hu), 0, 1)
    return intensity


def cut(image: npt.NDArray[np.float32], boxes_px: npt.NDArray[np.float64], side_px: int) -> torch.Tensor:
    """Resample boxes of one slice to squares.

    Args:
        image: (rows, columns) float32 intensities.
        boxes_px: (N, 4) px boxes.
        side_px: the side of the result.

    Returns:
        (N, 1, side_px, side_px) float32, [..., row, column]: bilinear where enlarged, averaged where shrunk, 0
        outside the image.
    """
    plane = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    crops = torch.empty(len(boxes_px), 1, side_px, side_px)
    for index, box in enumerate(boxes_px):
        samples = math.ceil(max(box[2] - box[0], box[3] - box[1]) / side_px)
        # `aligned=True` is our frame: (0, 0) is the corner of the first pixel.
        crops[index] = roi_align(
            plane,
            [torch.from_numpy(box[None]).float()],
            output_size=side_px,
            sampling_ratio=min(samples, MAX_SAMPLES_PER_PIXEL),
            aligned=True,
        )[0]
    return crops
