"""Every change of coordinates or units in ``data_prep``; nothing here reads a file.

The frame inside the project ("px"): pixels, (x, y) = (column, row), (0, 0) at the **corner** of the first pixel, so
pixel i covers [i, i + 1) and its centre is i + 0.5. Boxes are half-open ``x0, y0, x1, y1``. Patient space is DICOM's
LPS in mm. Affines and ImagePositionPatient speak of voxel **centres**: ``world = affine @ (p - 0.5)``.

Points are arrays of shape (N, 2) or (N, 3), boxes of shape (N, 4) or (4,); functions return new float64 arrays.
Known answers for every function: ``tests/known_answers.json``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
ArrayLike = npt.ArrayLike

DEEPLESION_PADDING_PX = 5.0
"""DeepLesion grows the bounds of the four RECIST end points by this much on every side."""


def _array(values: ArrayLike, *, last: int | None = None) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if last is not None and array.shape[-1:] != (last,):
        raise ValueError(f"expected a last axis of {last}, got shape {array.shape}")
    return array


# --- pixel indices -------------------------------------------------------------------------------------------------


def index_to_px(index: ArrayLike) -> Array:
    """0-based pixel indices, whose integer is the pixel's centre (NumPy, ITK, NIfTI) -> px."""
    return _array(index) + 0.5


def px_to_index(points_px: ArrayLike) -> Array:
    """px -> 0-based pixel indices, whose integer is the pixel's centre."""
    return _array(points_px) - 0.5


# --- DeepLesion ----------------------------------------------------------------------------------------------------


def deeplesion_point_to_px(points: ArrayLike) -> Array:
    """DeepLesion points (1-based, pixel 1's centre is 1) -> px."""
    return _array(points) - 0.5


def px_to_deeplesion_point(points_px: ArrayLike) -> Array:
    """px -> DeepLesion points."""
    return _array(points_px) + 0.5


def deeplesion_box_to_px(box: ArrayLike) -> Array:
    """DeepLesion boxes (1-based, inclusive ``x1, y1, x2, y2``) -> half-open px boxes."""
    half_open: Array = _array(box, last=4) - np.array([1.0, 1.0, 0.0, 0.0])
    return half_open


def px_to_deeplesion_box(box_px: ArrayLike) -> Array:
    """Half-open px boxes -> DeepLesion boxes."""
    inclusive: Array = _array(box_px, last=4) + np.array([1.0, 1.0, 0.0, 0.0])
    return inclusive


def box_from_recist(points_px: ArrayLike) -> Array:
    """The official box of a lesion from the end points of its diameters.

    Args:
        points_px: (N, 2) end points in px, N >= 2.

    Returns:
        ``x0, y0, x1, y1`` = [min - 5.5, max + 5.5]: DeepLesion's bounds of the points ± 5 px, inclusive, brought into
        our half-open frame. Not clipped, as in the release.
    """
    points = _array(points_px, last=2)
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"expected at least two (x, y) points, got shape {points.shape}")
    grow = DEEPLESION_PADDING_PX + 0.5
    return np.concatenate([points.min(axis=0) - grow, points.max(axis=0) + grow])


def clip_box(box_px: ArrayLike, columns: int, rows: int) -> Array | None:
    """The part of a px box inside the image, or None where they do not overlap."""
    x0, y0, x1, y1 = _array(box_px, last=4)
    clipped = np.array([max(x0, 0.0), max(y0, 0.0), min(x1, float(columns)), min(y1, float(rows))])
    return clipped if clipped[0] < clipped[2] and clipped[1] < clipped[3] else None


# --- COCO ----------------------------------------------------------------------------------------------------------


def px_box_to_coco(box_px: ArrayLike) -> Array:
    """Half-open px boxes -> COCO ``x, y, width, height`` (0-based, corner of the first pixel is 0)."""
    box = _array(box_px, last=4)
    return np.concatenate([box[..., :2], box[..., 2:] - box[..., :2]], axis=-1)


# --- presentation states (PS3.3 C.10.4, C.10.5, C.10.6) ------------------------------------------------------------


def display_to_px(
    points: ArrayLike,
    top_left: ArrayLike,
    bottom_right: ArrayLike,
    *,
    rotation_deg: int = 0,
    flip: bool = False,
) -> Array:
    """Presentation-state points in DISPLAY units -> px.

    Args:
        points: (N, 2) fractions of the displayed area, (0, 0) its top left, (1, 1) its bottom right, as displayed.
        top_left: DisplayedAreaTopLeftHandCorner, (column, row), 1-based pixel, of the displayed image.
        bottom_right: DisplayedAreaBottomRightHandCorner, likewise, inclusive.
        rotation_deg: ImageRotation, clockwise, one of 0, 90, 180, 270; applied to the image before the flip.
        flip: ImageHorizontalFlip is Y.
    """
    if rotation_deg not in (0, 90, 180, 270):
        raise ValueError(f"ImageRotation must be 0, 90, 180 or 270, got {rotation_deg}")
    points = _array(points, last=2)
    u, v = points[..., 0], points[..., 1]
    if flip:
        u = 1.0 - u
    s, t = {0: (u, v), 90: (v, 1.0 - u), 180: (1.0 - u, 1.0 - v), 270: (1.0 - v, u)}[rotation_deg]
    # The two corners are pixels of the unrotated image, so after a rotation neither needs to be the smaller one.
    corners = np.stack([_array(top_left, last=2), _array(bottom_right, last=2)])
    low, high = corners.min(axis=0) - 1.0, corners.max(axis=0)
    points_px: Array = low + np.stack([s, t], axis=-1) * (high - low)
    return points_px


# --- patient space -------------------------------------------------------------------------------------------------


def dicom_affine(
    position_lps_mm: ArrayLike, orientation: ArrayLike, pixel_spacing_mm: ArrayLike, step_lps_mm: ArrayLike
) -> Array:
    """(4, 4) affine from voxel indices (column, row, slice; centres) to LPS mm.

    Args:
        position_lps_mm: ImagePositionPatient of slice 0.
        orientation: ImageOrientationPatient, six cosines: along a row, then along a column.
        pixel_spacing_mm: PixelSpacing as DICOM stores it, (between rows = y step, between columns = x step).
        step_lps_mm: (3,) from one slice to the next.
    """
    cosines = _array(orientation, last=6)
    row_mm, column_mm = _array(pixel_spacing_mm, last=2)
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * column_mm
    affine[:3, 1] = cosines[3:] * row_mm
    affine[:3, 2] = _array(step_lps_mm, last=3)
    affine[:3, 3] = _array(position_lps_mm, last=3)
    return affine


def px_to_lps(points_px: ArrayLike, affine: ArrayLike) -> Array:
    """(N, 3) points (x, y in px; z a slice coordinate with slice i's centre at i + 0.5) -> LPS mm."""
    points, matrix = _array(points_px, last=3), _array(affine)
    return (points - 0.5) @ matrix[:3, :3].T + matrix[:3, 3]


def lps_to_px(points_lps_mm: ArrayLike, affine: ArrayLike) -> Array:
    """LPS mm -> (N, 3) points (x, y in px; z with slice i's centre at i + 0.5)."""
    points, matrix = _array(points_lps_mm, last=3), _array(affine)
    index = np.linalg.solve(matrix[:3, :3], (points - matrix[:3, 3]).T).T
    return index_to_px(index)


def ras_to_lps_affine(affine_ras: ArrayLike) -> Array:
    """NIfTI affine (voxel centres -> RAS mm) -> the same into LPS mm."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ _array(affine_ras)


# --- lengths -------------------------------------------------------------------------------------------------------

LENGTH_UNIT_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "centimeter": 10.0, "m": 1000.0, "um": 0.001}
"""UCUM codes and the words seen in AIM files -> millimetres."""

AREA_UNIT_MM2 = {"mm2": 1.0, "cm2": 100.0}


def length_mm(start_px: ArrayLike, end_px: ArrayLike, spacing_mm: ArrayLike) -> float:
    """Length of the segment between two px points; ``spacing_mm`` is (x step, y step)."""
    delta = (_array(end_px, last=2) - _array(start_px, last=2)) * _array(spacing_mm, last=2)
    return float(math.hypot(*delta))


def aim_frame_number(number: Any) -> int:
    """AIM's referenced frame number -> DICOM's 1-based one; AIM writes 0 for "the only frame"."""
    return max(int(number), 1)
