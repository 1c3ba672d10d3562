"""Bookmarks as a DICOM segmentation (binary, one segment per bookmark), through highdicom.

Drawn outlines are filled: a pixel belongs to the segment when its centre is inside. A RECIST pair says only how far the
lesion reaches along two lines; it becomes the roundest outline through its four end points that measures as the pair
when it is read back (the ellipse with these axes, where they cross in their middles).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import highdicom
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

import data_prep
from data_prep import frames, recist
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.frames import Array
from data_prep.readers._masks import rasterise
from data_prep.writers.dicom_sr import derive_uid

FORMS = ("bidirectional", "ellipse", "circle", "polygon", "segmentation")
"""Forms that enclose an area; the others cannot be a segment."""

_DRAWN = ("polygon", "segmentation")

_EXPONENTS = (2.0, 1.75, 1.5, 1.25, 1.0)  # from the ellipse to the kite
_CLOSE_PX = 0.9  # below the 1.5 px a side within which a segmentation agrees with the pair it was made of


def build_segmentation(
    bookmarks: Sequence[Bookmark],
    evidence: Sequence[Dataset],
    *,
    sop_instance_uid: str,
    series_instance_uid: str,
    created: datetime.datetime,
    series_number: int = 300,
    instance_number: int = 1,
    observer_name: str | None = None,
) -> Dataset:
    """A segmentation with one segment per bookmark.

    The same arguments give the same bytes: UIDs that are not given (dimension organisation, tracking UIDs a bookmark
    lacks) follow from ``sop_instance_uid``.

    Args:
        bookmarks: of :data:`FORMS`, each with ``image_uid``, all on images of one series.
        evidence: the images, at least those marked; single-frame, with their headers (pixel data is not read).
        sop_instance_uid: of the new object.
        series_instance_uid: of the new object's series.
        created: content date and time.
        series_number: of the new object's series.
        instance_number: within that series.
        observer_name: the content creator, as DICOM writes names (``Family^Given``).

    Raises:
        DataPrepError: no bookmarks, one without an area or outside its image, a marked image that is not in
            ``evidence``, or images of several series.
    """
    if not bookmarks:
        raise DataPrepError("a segmentation needs at least one bookmark")
    images = _marked_images(bookmarks, evidence)
    position = {str(image.SOPInstanceUID): number for number, image in enumerate(images)}
    rows, columns = int(images[0].Rows), int(images[0].Columns)
    masks = np.zeros((len(images), rows, columns, len(bookmarks)), dtype=np.uint8)
    for number, bookmark in enumerate(bookmarks):
        masks[position[str(bookmark.image_uid)], :, :, number] = mask_of(bookmark, rows, columns)
    segmentation = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=masks,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe(number, bookmark, sop_instance_uid) for number, bookmark in enumerate(bookmarks, start=1)
        ],
        series_instance_uid=series_instance_uid,
        series_number=series_number,
        sop_instance_uid=sop_instance_uid,
        instance_number=instance_number,
        manufacturer="lesion-bookmarks",
        manufacturer_model_name="lesion-bookmarks",
        software_versions=data_prep.__version__,
        device_serial_number="0",
        content_label="LESIONS",
        content_description="Lesions from bookmarks",
        content_creator_name=observer_name,
        series_description="Lesions from bookmarks",
    )
    _fix(segmentation, created, derive_uid(sop_instance_uid, "dimension organization"))
    return segmentation


def mask_of(bookmark: Bookmark, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """(rows, columns) mask of a bookmark.

    Raises:
        DataPrepError: its form has no area, or none of it is on the image.
    """
    points = np.asarray(bookmark.points, dtype=np.float64)
    # RECIST lengths in pixels where the spacing is not known: right for square pixels.
    spacing = (bookmark.spacing_x_mm or 1.0, bookmark.spacing_y_mm or 1.0)
    if bookmark.form == "bidirectional":
        mask = _mask_of_pair(points, spacing, rows, columns)
    elif bookmark.form == "ellipse":
        mask = rasterise(recist.outline_of_ellipse(points), rows, columns)
    elif bookmark.form == "circle":
        axes = recist.axes_of_circle(points[0], points[1], spacing)
        mask = rasterise(recist.outline_of_ellipse(axes), rows, columns)
    elif bookmark.form in _DRAWN:
        mask = rasterise(points, rows, columns)
    else:
        raise DataPrepError(
            f"bookmark {bookmark.bookmark_id}: a {bookmark.form} has no area; a segmentation takes {', '.join(FORMS)}"
        )
    if not mask.any():
        raise DataPrepError(f"bookmark {bookmark.bookmark_id}: it lies outside its image of {columns} x {rows} pixels")
    return mask


def _mask_of_pair(axes_px: Array, spacing_mm: tuple[float, float], rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """The roundest outline through the ends of a RECIST pair whose mask measures as the pair; else the nearest.

    An ellipse of nearly equal axes has no sure long axis once it is pixels, and quarter ellipses about an off-centre
    crossing may be longest elsewhere; the flatter the outline between the four ends, the surer they are the farthest.
    """
    box = frames.box_from_recist(axes_px)
    best: tuple[float, npt.NDArray[np.bool_]] | None = None
    for exponent in _EXPONENTS:
        mask = rasterise(recist.outline_of_axes(axes_px, exponent), rows, columns)
        if not mask.any():
            return mask
        measured = frames.box_from_recist(recist.diameters(recist.mask_outline(mask), spacing_mm))
        error = float(np.abs(measured - box).max())
        if best is None or error < best[0]:
            best = error, mask
        if error <= _CLOSE_PX:
            break
    assert best is not None
    return best[1]


def _marked_images(bookmarks: Sequence[Bookmark], evidence: Sequence[Dataset]) -> list[Dataset]:
    """The marked images, each once, in the order of the evidence."""
    wanted = {bookmark.image_uid for bookmark in bookmarks}
    images = {str(image.SOPInstanceUID): image for image in evidence if str(image.SOPInstanceUID) in wanted}
    if len(images) != len(wanted):
        raise DataPrepError(
            f"{len(wanted) - len(images)} of the {len(wanted)} marked images are not among the images given; "
            "a segmentation can only be made with all of them"
        )
    if len({str(image.SeriesInstanceUID) for image in images.values()}) > 1:
        raise DataPrepError("the bookmarks are on images of several series; make one segmentation per series")
    if any(int(image.get("NumberOfFrames") or 1) > 1 for image in images.values()):
        raise DataPrepError("segmentations of multi-frame images are not written; use a structured report")
    return list(images.values())


def _describe(number: int, bookmark: Bookmark, sop_instance_uid: str) -> highdicom.seg.SegmentDescription:
    drawn = bookmark.form in _DRAWN
    tracking_uid = bookmark.tracking_uid or derive_uid(sop_instance_uid, "tracking", number)
    site = _code(bookmark.site)
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=(bookmark.text or f"Lesion {number}").replace("\\", "/").strip()[:64] or f"Lesion {number}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=_code(bookmark.finding_code) or codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        if drawn
        else highdicom.seg.SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=None
        if drawn
        else highdicom.AlgorithmIdentificationSequence(
            name="outline of a drawn measurement",
            family=codes.cid7162.MorphologicalOperations,
            version=data_prep.__version__,
            source="lesion-bookmarks",
        ),
        tracking_uid=tracking_uid,
        tracking_id=bookmark.bookmark_id,
        anatomic_regions=None if site is None else [site],
    )


def _code(text: str | None) -> Code | None:
    """``value^scheme^meaning`` -> a code; None for free words or parts too long for a code."""
    parts = (text or "").split("^")
    if len(parts) != 3 or not all(parts) or len(parts[0]) > 16 or len(parts[1]) > 16 or len(parts[2]) > 64:
        return None
    return Code(*parts)


def _fix(segmentation: Dataset, created: datetime.datetime, dimension_uid: str) -> None:
    """Replace what highdicom takes from the clock and from random numbers."""
    for keyword, value in (
        ("InstanceCreationDate", created.strftime("%Y%m%d")),
        ("InstanceCreationTime", created.strftime("%H%M%S")),
        ("ContentDate", created.strftime("%Y%m%d")),
        ("ContentTime", created.strftime("%H%M%S")),
    ):
        setattr(segmentation, keyword, value)
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension_uid
    for item in segmentation.get("ContributingEquipmentSequence") or ():
        item.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
