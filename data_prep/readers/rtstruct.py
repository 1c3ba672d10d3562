"""Reader for DICOM RT structure sets: contours in patient millimetres, placed on the images they were drawn on.

One bookmark per lesion, on the slice where its long diameter is greatest: contours of one ROI that overlap from slice
to slice are one lesion. An ROI whose stated type is not that of a tumour (the patient's outline, an organ, a planning
margin) is rejected. A structure set holds no pixels, spacing or image geometry, so without ``images`` each contour is
rejected with that reason. What software drew (ROI Generation Algorithm AUTOMATIC) has the source ``detector``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from data_prep.bookmark import DETECTOR, MAX_POINTS, Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.frames import Array
from data_prep.quiet import quiet_pydicom
from data_prep.readers import Rejection
from data_prep.readers._masks import Piece, key_slice, lesions, piece_of_outline
from data_prep.readers._planes import (
    MASK_DAMAGE,
    ImageGeometry,
    ImageLookup,
    Plane,
    Reference,
    code_or_none,
    frames_of,
    nearest_image,
    plane_of_image,
    text_or_none,
)
from data_prep.readers._sr_tree import raw_bytes
from data_prep.readers.dicom_kind import load_dataset, sop_class_uid

SOURCE = "rtstruct"
USES_IMAGES = True

_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

_MAX_FILE_BYTES = 1 << 29
_MAX_ITEMS = 1_000_000

_MAX_PIXELS = 1 << 26  # 8192 x 8192: what is drawn is measured as a mask

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")

_CONTOUR_DATA = 0x30060050

_LESION_TYPES = frozenset({"GTV", "CTV"})
"""RT ROI Interpreted Types that are tumour by definition (PS3.3 C.8.8.8.1). A PTV is a margin around one."""

_OTHER_TYPES = frozenset({
    "EXTERNAL", "PTV", "TREATED_VOLUME", "IRRAD_VOLUME", "OAR", "BOLUS", "AVOIDANCE", "ORGAN", "MARKER", "REGISTRATION",
    "ISOCENTER", "CONTRAST_AGENT", "CAVITY", "BRACHY_CHANNEL", "BRACHY_ACCESSORY", "BRACHY_SRC_APP", "BRACHY_CHNL_SHLD",
    "SUPPORT", "FIXATION", "DOSE_REGION", "CONTROL", "DOSE_MEASUREMENT",
})  # fmt: skip
"""The standard's other terms. A reason names none but these: free text may be anything."""


def recognise(head: bytes, path: Path) -> bool:
    """Whether the file is an RT Structure Set."""
    return sop_class_uid(path) == _SOP_CLASS


@dataclass(slots=True)
class _Contour:
    row: str  # where it is in the file
    points_px: Array  # (N, 2)
    reference: Reference
    image: ImageGeometry
    plane: Plane


class _UnplacedError(ValueError):
    """A contour that cannot be placed; the message is the reason."""


def read(path: Path, images: ImageLookup | None = None) -> Iterator[Bookmark | Rejection]:
    """Every lesion and marked point of the structure set.

    Args:
        path: the file.
        images: where the images can be looked up that the contours lie on.

    Raises:
        UnreadableError: not a structure set, or damaged.
    """
    with quiet_pydicom():
        found = list(_read(path, images))
    yield from found


def _read(path: Path, images: ImageLookup | None) -> Iterator[Bookmark | Rejection]:
    dataset = load_dataset(path, max_bytes=_MAX_FILE_BYTES, max_items=_MAX_ITEMS)
    try:
        described = {int(item.ROINumber): item for item in dataset.get("StructureSetROISequence") or ()}
        observed: defaultdict[int, list[pydicom.Dataset]] = defaultdict(list)
        for item in dataset.get("RTROIObservationsSequence") or ():
            observed[int(item.ReferencedROINumber)].append(item)
        series_of = _referenced_images(dataset)
        rois = list(dataset.get("ROIContourSequence") or ())
    except MASK_DAMAGE as error:
        raise UnreadableError(f"{path}: the structure set is damaged ({type(error).__name__})") from error
    for place, roi in enumerate(rois, start=1):
        try:
            number = int(roi.ReferencedROINumber)
            reason = _why_no_lesion(observed[number])
            if reason is not None:
                yield Rejection("", f"ROI {number}", reason)
                continue
            facts = _Facts(dataset, number, described.get(number), observed[number], series_of)
            yield from _roi(facts, roi, images)
        except MASK_DAMAGE as error:
            reason = str(error) if type(error) is ValueError else type(error).__name__
            yield Rejection("", f"ROI item {place}", f"the ROI cannot be used: {reason}")


def _referenced_images(dataset: pydicom.Dataset) -> dict[str, str | None]:
    """SOP Instance UID -> series UID of all images of the Referenced Frame of Reference Sequence."""
    return {
        uid: text_or_none(series, "SeriesInstanceUID")
        for frame_of_reference in dataset.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame_of_reference.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
        for image in series.get("ContourImageSequence") or ()
        if (uid := text_or_none(image, "ReferencedSOPInstanceUID"))
    }


def _why_no_lesion(observations: Sequence[pydicom.Dataset]) -> str | None:
    """Why an ROI is no lesion by its stated type; None where it is one, or no type is stated."""
    types = set()
    for observation in observations:
        value = observation.get("RTROIInterpretedType")
        values = value if isinstance(value, pydicom.multival.MultiValue) else [value]
        types |= {str(each).strip(" \0").upper() for each in values if each is not None}
    types.discard("")
    if not types or types & _LESION_TYPES:
        return None
    known = ", ".join(sorted(types & _OTHER_TYPES))
    return f"an ROI of type {known} is no lesion" if known else "an ROI of a type other than GTV and CTV is no lesion"


class _Facts:
    """What the structure set says about one ROI, as keyword arguments of a bookmark."""

    def __init__(
        self,
        dataset: pydicom.Dataset,
        number: int,
        described: pydicom.Dataset | None,
        observations: Sequence[pydicom.Dataset],
        series_of: dict[str, str | None],
    ) -> None:
        described = described or pydicom.Dataset()
        observed = observations[-1] if observations else pydicom.Dataset()
        self.number = number
        self.instance = text_or_none(dataset, "SOPInstanceUID")
        self.series_of = series_of
        automatic = text_or_none(described, "ROIGenerationAlgorithm") == "AUTOMATIC"
        self.source = DETECTOR if automatic else SOURCE
        self.common: dict[str, Any] = {
            "text": text_or_none(described, "ROIName"),
            "finding_code": code_or_none(observed.get("RTROIIdentificationCodeSequence")),
            "tracking_uid": text_or_none(described, "TrackingUID"),
            "observer": text_or_none(observed, "ROIInterpreter"),
            "patient_id": text_or_none(dataset, "PatientID"),
            "study_uid": text_or_none(dataset, "StudyInstanceUID"),
        }

    def bookmark(self, contour: _Contour, form: str, points_px: Array, note: str | None) -> Bookmark:
        uid, frame_number = contour.reference
        points = np.round(points_px, 6)
        return Bookmark(
            bookmark_id=make_id(SOURCE, self.instance, self.number, uid, form, *np.round(points, 3).ravel()),
            source=self.source,
            form=form,
            points_px=tuple(float(value) for value in points.ravel()),
            image_uid=uid,
            frame_number=frame_number,
            series_uid=self.series_of.get(uid),
            rows=contour.plane.rows,
            columns=contour.plane.columns,
            spacing_x_mm=contour.image.spacing_x_mm,
            spacing_y_mm=contour.image.spacing_y_mm,
            note=note,
            **self.common,
        )


def _roi(facts: _Facts, roi: pydicom.Dataset, images: ImageLookup | None) -> Iterator[Bookmark | Rejection]:
    contours: list[_Contour] = []
    pieces: list[Piece] = []
    items = roi.get("ContourSequence") or ()
    if not items:
        yield Rejection("", f"ROI {facts.number}", "the ROI has no contours")
    for place, item in enumerate(items, start=1):
        row = f"ROI {facts.number} contour {place}"
        try:
            contour = _place(item, row, facts, images)
            kind = text_or_none(item, "ContourGeometricType")
            if kind == "POINT":
                yield facts.bookmark(contour, "point", contour.points_px[:1], None)
                continue
            if kind not in _CLOSED:
                raise _UnplacedError(f"a contour of type {_quoted(kind)} encloses no area")
            piece = _piece(contour, len(contours))
        except MASK_DAMAGE as error:
            reason = (
                str(error) if isinstance(error, _UnplacedError) else f"the contour is damaged ({type(error).__name__})"
            )
            yield Rejection("", row, reason)
            continue
        contours.append(contour)
        pieces.append(piece)
    for lesion in lesions(pieces):
        spacing = contours[lesion[0].tag].image
        key = key_slice(lesion, (float(spacing.spacing_x_mm or 1), float(spacing.spacing_y_mm or 1)))
        contour = contours[key.tag]
        note = f"long diameter greatest here, of {key.slices} slices"
        try:
            yield facts.bookmark(contour, "segmentation", key.outline_px, note)
        except ValueError as error:
            yield Rejection("", contour.row, str(error))


def _quoted(kind: str | None) -> str:
    return kind if kind in ("OPEN_PLANAR", "OPEN_NONPLANAR") else "that is missing or unknown"


def _place(item: pydicom.Dataset, row: str, facts: _Facts, images: ImageLookup | None) -> _Contour:
    """A contour on its image.

    Raises:
        _UnplacedError: no image, or the contour does not lie on it.
    """
    references = [
        (uid, int(reference.get("ReferencedFrameNumber") or 0) or None)
        for reference in item.get("ContourImageSequence") or ()
        if (uid := text_or_none(reference, "ReferencedSOPInstanceUID"))
    ]
    named = ", ".join(uid for uid, _ in references[:1]) or "it lies on"
    if images is None:
        raise _UnplacedError(f"the image {named} is needed to place millimetre contours; harvest with --images")
    points_lps = _points_lps_mm(item)
    if len(references) != 1 or len(list(frames_of(images, references[0]))) > 1:
        candidates = references or [(uid, None) for uid in facts.series_of]
        nearest = nearest_image(images, candidates, points_lps.mean(axis=0))
        if nearest is None:
            raise _UnplacedError("none of the images given lies in the plane of the contour")
        references = [nearest]
    image = images.find(*references[0])
    plane = None if image is None else plane_of_image(image)
    if image is None or plane is None:
        reason = "is not among the images given" if image is None else "has no position, orientation or spacing"
        raise _UnplacedError(f"the image {references[0][0]} {reason}: millimetre contours cannot be placed")
    if plane.rows * plane.columns > _MAX_PIXELS:
        raise _UnplacedError(f"the image {references[0][0]} claims {plane.columns} x {plane.rows} pixels")
    points_px, off_mm = plane.to_px(points_lps)
    if float(np.abs(off_mm).max()) > plane.tolerance_mm:
        raise _UnplacedError(f"the contour lies {np.abs(off_mm).max():.1f} mm off the plane of the image it names")
    return _Contour(row, points_px, references[0], image, plane)


def _points_lps_mm(item: pydicom.Dataset) -> Array:
    """(N, 3) points of a contour.

    Read from the bytes: pydicom makes an object of each number and keeps it, 50 times the size of the file.

    Raises:
        _UnplacedError: they are no points, or too many.
        ValueError: they are no numbers.
    """
    raw = raw_bytes(item, _CONTOUR_DATA)
    text = b"" if raw is None else raw[0].strip(b" \0")
    count = text.count(b"\\") + 1 if text else 0
    if count == 0 or count % 3 or count > 3 * MAX_POINTS:
        raise _UnplacedError(f"{count} coordinates are not points of x, y and z")
    values = np.fromiter(map(float, text.split(b"\\")), np.float64, count)
    if not np.isfinite(values).all():
        raise _UnplacedError(f"{count} coordinates are not points of x, y and z")
    return values.reshape(-1, 3)


def _piece(contour: _Contour, tag: int) -> Piece:
    points = contour.points_px
    if len(points) > 1 and np.allclose(points[0], points[-1], atol=1e-6):
        points = points[:-1]
    if len(points) < 3 or np.ptp(points, axis=0).max() <= 0:
        raise _UnplacedError("a closed contour needs at least three different points")
    # Slices without a number (images outside a series) are neighbours of none.
    slot = contour.image.slice_index
    piece = piece_of_outline(
        points,
        slot=-2 * (tag + 1) if slot is None else slot,
        tag=tag,
        rows=contour.plane.rows,
        columns=contour.plane.columns,
    )
    if piece is None:
        raise _UnplacedError("the contour lies outside the image it names")
    return piece
