"""Where DICOM objects that lie on images belong: planes in patient space, and the images they refer to."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import BytesLengthException
from pydicom.valuerep import PersonName

from data_prep import frames
from data_prep.frames import Array
from data_prep.readers.dicom_kind import DAMAGE

MASK_DAMAGE = (*DAMAGE, ArithmeticError, AssertionError, BytesLengthException, RuntimeError)
"""What pydicom and its pixel decoders raise on damaged objects."""


FLAT_TOLERANCE_MM = 0.5
"""Distance from a slice's plane that is accepted where the distance between slices is unknown."""


class ImageGeometry(Protocol):
    """What an image must know for something to be placed on it (:class:`data_prep.archive.index.ImageRecord`)."""

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
    def position_lps_mm(self) -> Sequence[float] | None: ...
    @property
    def orientation(self) -> Sequence[float] | None: ...
    @property
    def spacing_x_mm(self) -> float | None: ...
    @property
    def spacing_y_mm(self) -> float | None: ...
    @property
    def spacing_z_mm(self) -> float | None: ...
    @property
    def rows(self) -> int | None: ...
    @property
    def columns(self) -> int | None: ...
    @property
    def slice_index(self) -> int | None: ...


class ImageLookup(Protocol):
    """The images of an archive (:class:`data_prep.archive.index.ImageIndex`)."""

    def __hash__(self) -> int: ...

    def find(self, sop_instance_uid: str, frame_number: int | None = None, /) -> ImageGeometry | None:
        """The image, or None where it is not there."""

    @property
    def series(self) -> Sequence[SeriesLike]: ...


class SeriesLike(Protocol):
    """Images of one series (:class:`data_prep.archive.series.SeriesReport`)."""

    @property
    def records(self) -> Sequence[ImageGeometry]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A grid of pixels in patient space; ``affine`` takes (column, row, mm along the normal) to LPS mm."""

    affine: Array
    rows: int
    columns: int
    slice_mm: float | None = None  # distance of the next slice, where known

    def to_px(self, points_lps_mm: npt.ArrayLike) -> tuple[Array, Array]:
        """(N, 3) LPS mm -> (N, 2) px and (N,) mm off the plane along its normal."""
        points = frames.lps_to_px(points_lps_mm, self.affine)
        return points[:, :2], frames.px_to_index(points[:, 2])

    def to_lps(self, points_px: npt.ArrayLike) -> Array:
        """(N, 2) px -> (N, 3) LPS mm on the plane."""
        points = np.asarray(points_px, dtype=np.float64)
        return frames.px_to_lps(np.column_stack([points, np.full(len(points), 0.5)]), self.affine)

    @property
    def normal(self) -> Array:
        """Unit vector, columns × rows."""
        return self.affine[:3, 2].copy()

    @property
    def tolerance_mm(self) -> float:
        """How far off the plane something may lie and still be on this slice: half a slice, or 0.5 mm."""
        return max(self.slice_mm / 2, 0.01) + 1e-3 if self.slice_mm else FLAT_TOLERANCE_MM


def make_plane(
    position_lps_mm: Sequence[float] | None,
    orientation: Sequence[float] | None,
    spacing_mm: tuple[float | None, float | None],
    size: tuple[int | None, int | None],
    slice_mm: float | None = None,
) -> Plane | None:
    """A plane from what DICOM states, or None where something is missing or not a geometry.

    Args:
        position_lps_mm: centre of the first pixel.
        orientation: six cosines.
        spacing_mm: (x step, y step).
        size: (rows, columns).
        slice_mm: distance of the next slice.
    """
    if position_lps_mm is None or orientation is None or not all(spacing_mm) or not all(size):
        return None
    position, cosines = np.asarray(position_lps_mm, float), np.asarray(orientation, float)
    x_mm, y_mm = float(spacing_mm[0] or 0), float(spacing_mm[1] or 0)
    if position.shape != (3,) or cosines.shape != (6,):
        return None
    if not (np.isfinite(position).all() and np.isfinite(cosines).all() and x_mm > 0 and y_mm > 0):
        return None
    along_row, along_column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm([along_row, along_column], axis=1)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(along_row @ along_column) > 1e-2:
        return None
    normal = np.cross(along_row, along_column)
    affine = frames.dicom_affine(position, cosines, (y_mm, x_mm), normal / np.linalg.norm(normal))
    return Plane(affine, int(size[0] or 0), int(size[1] or 0), slice_mm)


def plane_of_image(image: ImageGeometry) -> Plane | None:
    """The plane of an image of the archive, or None where it has no geometry (a Secondary Capture)."""
    return make_plane(
        image.position_lps_mm,
        image.orientation,
        (image.spacing_x_mm, image.spacing_y_mm),
        (image.rows, image.columns),
        abs(image.spacing_z_mm) if image.spacing_z_mm and math.isfinite(image.spacing_z_mm) else None,
    )


Reference = tuple[str, int | None]
"""SOP Instance UID and 1-based frame number (None: the only frame)."""


def frames_of(images: ImageLookup, reference: Reference) -> Iterator[tuple[Reference, ImageGeometry]]:
    """The image that is referred to; of a multi-frame image without a frame number all frames (PS3.3 10.3)."""
    uid, number = reference
    image = images.find(uid, number)
    if image is None:
        return
    if number is not None or image.frame_count == 1:
        yield reference, image
        return
    for frame_number in range(1, image.frame_count + 1):
        frame = images.find(uid, frame_number)
        if frame is not None:
            yield (uid, frame_number), frame


def nearest_image(
    images: ImageLookup, candidates: Iterable[Reference], point_lps_mm: npt.ArrayLike
) -> Reference | None:
    """Of the images named, the one in whose plane (within half a slice) a point lies nearest; None: there is none."""
    best: tuple[float, Reference] | None = None
    for reference, image in (found for one in candidates for found in frames_of(images, one)):
        plane = plane_of_image(image)
        if plane is None:
            continue
        _, off_mm = plane.to_px(np.asarray(point_lps_mm, float)[None])
        distance = abs(float(off_mm[0]))
        if distance <= plane.tolerance_mm and (best is None or distance < best[0] - 1e-6):
            best = distance, reference
    return None if best is None else best[1]


def place(
    points_lps_mm: Array, images: Iterable[ImageGeometry], *, preferred_series: Iterable[str | None] = ()
) -> tuple[ImageGeometry, Array]:
    """Of the images given, the one that flat points lie on, and the points on it in px.

    The slice whose plane is nearest is taken, where that is at most half a slice away; of several series in one frame
    of reference those preferred come first.

    Raises:
        ValueError: no slice is near enough.
    """
    wanted = set(preferred_series) - {None}
    best: tuple[bool, float, str, ImageGeometry, Array] | None = None
    nearest = np.inf
    for image in images:
        plane = plane_of_image(image)
        if plane is None:
            continue
        points_px, off_mm = plane.to_px(points_lps_mm)
        distance_mm = float(np.abs(off_mm).max())
        nearest = min(nearest, distance_mm)
        if distance_mm > plane.tolerance_mm:
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
def by_frame_of_reference(images: ImageLookup) -> dict[str, list[ImageGeometry]]:
    """Every image by its frame of reference; made once for an index."""
    found: dict[str, list[ImageGeometry]] = defaultdict(list)
    for series in images.series:
        for image in series.records:
            if image.frame_of_reference_uid:
                found[image.frame_of_reference_uid].append(image)
    return dict(found)


def text_or_none(dataset: pydicom.Dataset, keyword: str) -> str | None:
    """A text attribute without surrounding blanks; None where it is missing, empty or not text."""
    value = dataset.get(keyword)
    return str(value).strip() or None if isinstance(value, (str, PersonName)) else None


def code_or_none(items: Sequence[pydicom.Dataset] | None) -> str | None:
    """The first item of a code sequence as ``value^scheme^meaning``."""
    for item in items or ():
        value = text_or_none(item, "CodeValue") or text_or_none(item, "LongCodeValue")
        scheme, meaning = text_or_none(item, "CodingSchemeDesignator"), text_or_none(item, "CodeMeaning")
        if value or meaning:
            return "^".join(part or "" for part in (value, scheme, meaning))
    return None
