"""Place marks given in patient space (SCOORD3D) on the slice they were drawn on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from data_prep import frames
from data_prep.frames import Array, ArrayLike

FLAT_TOLERANCE_MM = 0.5
"""Distance from a slice's plane that is accepted where the distance between slices is unknown."""


class PlacedImage(Protocol):
    """What is needed of an image; :class:`data_prep.archive.index.ImageRecord` has it."""

    @property
    def sop_instance_uid(self) -> str | None: ...
    @property
    def sop_class_uid(self) -> str | None: ...
    @property
    def series_uid(self) -> str | None: ...
    @property
    def frame_number(self) -> int: ...
    @property
    def frame_count(self) -> int: ...
    @property
    def frame_of_reference_uid(self) -> str | None: ...
    @property
    def position_lps_mm(self) -> Any: ...
    @property
    def orientation(self) -> Any: ...
    @property
    def spacing_x_mm(self) -> float | None: ...
    @property
    def spacing_y_mm(self) -> float | None: ...
    @property
    def spacing_z_mm(self) -> float | None: ...


class ImageLookup(Protocol):
    """What is needed of an index of images; :class:`data_prep.archive.index.ImageIndex` has it."""

    def __hash__(self) -> int: ...
    def find(self, sop_instance_uid: str, frame_number: int | None = None) -> Any: ...
    @property
    def series(self) -> Sequence[Any]: ...


def scoord3d_to_px(points_lps_mm: ArrayLike, image: PlacedImage) -> tuple[Array, float]:
    """Points in patient space -> (N, 2) px of a slice, and their greatest distance from its plane in mm.

    Raises:
        ValueError: the image states no position, orientation or spacing, or the points are not (N, 3).
    """
    if image.position_lps_mm is None or image.orientation is None or not image.spacing_x_mm or not image.spacing_y_mm:
        raise ValueError("the image states no position, orientation or pixel spacing")
    cosines = np.asarray(image.orientation, dtype=np.float64)
    normal = np.cross(cosines[:3], cosines[3:])
    affine = frames.dicom_affine(image.position_lps_mm, cosines, (image.spacing_y_mm, image.spacing_x_mm), normal)
    points = frames.lps_to_px(points_lps_mm, affine)
    return points[:, :2], float(np.max(np.abs(points[:, 2] - 0.5)))  # the step is 1 mm, so z counts millimetres


def place(
    points_lps_mm: Array, images: Iterable[PlacedImage], *, preferred_series: Iterable[str | None] = ()
) -> tuple[PlacedImage, Array]:
    """Find the slice that flat points lie on.

    The slice whose plane is nearest is taken, where that is at most half a slice away; of several series in one frame
    of reference those that the report names as evidence come first.

    Raises:
        ValueError: no slice is near enough.
    """
    wanted = set(preferred_series) - {None}
    best: tuple[bool, float, str, PlacedImage, Array] | None = None
    nearest = np.inf
    for image in images:
        try:
            points_px, distance_mm = scoord3d_to_px(points_lps_mm, image)
        except (ValueError, np.linalg.LinAlgError):
            continue
        nearest = min(nearest, distance_mm)
        tolerance = abs(image.spacing_z_mm) / 2.0 if image.spacing_z_mm else FLAT_TOLERANCE_MM
        if distance_mm > tolerance + 1e-3:
            continue
        candidate = (image.series_uid not in wanted, distance_mm, image.sop_instance_uid or "", image, points_px)
        if best is None or candidate[:3] < best[:3]:
            best = candidate
    if best is None:
        if not np.isfinite(nearest):
            raise ValueError("no image of its frame of reference is at hand")
        raise ValueError(f"its points do not lie on one slice at hand (the nearest is {nearest:.1f} mm away)")
    return best[3], best[4]


@lru_cache(maxsize=2)
def by_frame_of_reference(images: ImageLookup) -> dict[str, list[PlacedImage]]:
    """Every image of an index by its frame of reference; made once for an index."""
    found: dict[str, list[PlacedImage]] = defaultdict(list)
    for report in images.series:
        for record in report.records:
            if record.frame_of_reference_uid:
                found[record.frame_of_reference_uid].append(record)
    return dict(found)
