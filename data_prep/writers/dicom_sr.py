"""Write bookmarks as a DICOM structured report: TID 1500 in a Comprehensive SR, with highdicom.

One measurement group per bookmark:

=============================  =====================================================================================
form                           content (PS3.16)
=============================  =====================================================================================
bidirectional, length          TID 1501: NUM Long Axis and Short Axis, or Length, each inferred from a POLYLINE
polyline                       TID 1501: NUM Path length, inferred from an open POLYLINE
circle, ellipse                TID 1410: Image Region, CIRCLE or ELLIPSE; NUM Area where the spacing is known
polygon, segmentation, box     TID 1410: Image Region, a closed POLYLINE; NUM Area likewise
point, arrow, text             TID 1410: Image Region, POINT (an arrow's head, a text's anchor); the words are a Comment
text without an anchor         TID 1501: the image and the Comment
=============================  =====================================================================================

Coordinates are written as they are (px is SCOORD's own frame) in float32, the type of GraphicData: 2e-5 px below 512.
The same input gives the same bytes: nothing is taken from the clock or from a random source.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

import data_prep
from data_prep import frames
from data_prep.bookmark import Bookmark, make_id
from data_prep.errors import DataPrepError
from data_prep.readers._sr_context import LOCAL_SCHEME

TRACKING_PREFIX = "lesion-bookmarks:"
"""Tracking identifiers that start so were made by this writer and are no words of a person."""

PIXELS = Code("{pixels}", "UCUM", "pixels")
_MOST_EXPLICIT_POINTS = 8000
_IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_LATERALITY = {
    "left": codes.SCT.Left,
    "l": codes.SCT.Left,
    "right": codes.SCT.Right,
    "r": codes.SCT.Right,
    "bilateral": Code("51440002", "SCT", "Bilateral"),
    "b": Code("51440002", "SCT", "Bilateral"),
}
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_HEADER = (
    *_UIDS,
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


def derive_uid(*parts: object) -> str:
    """A valid UID below 2.25 that depends on ``parts`` alone (PS3.5 B.2, with a hash in the UUID's place)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def build_report(
    bookmarks: Sequence[Bookmark],
    evidence: Sequence[Dataset],
    *,
    sop_instance_uid: str,
    series_instance_uid: str,
    created: datetime.datetime,
    observer_name: str | None = None,
    series_number: int = 100,
    instance_number: int = 1,
    algorithm: tuple[str, str] | None = None,
    series_description: str = "Lesion measurements",
) -> Dataset:
    """The bookmarks of one study as a TID 1500 report.

    Args:
        bookmarks: at least one; each names its image by ``image_uid`` (and ``frame_number`` where it has frames).
            Their points are in px. Lengths are the stated ones, else computed with the image's PixelSpacing, else
            given in pixels.
        evidence: headers of the images, with Study, Series, SOP instance and class UIDs; one patient, one study.
            Images without a bookmark are left out of the report.
        sop_instance_uid: of the report.
        series_instance_uid: of the report's series.
        created: becomes content date, series date and instance creation date; the wall clock as given.
        observer_name: who drew the marks; without it the bookmarks' own ``observer``, else this program as a device.
        series_number: of the report's series.
        instance_number: of the report.
        algorithm: name and version of the detector that made the marks (TID 4019); None for a person's marks.
        series_description: of the report's series.

    Returns:
        A data set with file meta; ``dataset.save_as(path, enforce_file_format=True)`` writes it.

    Raises:
        DataPrepError: no bookmark, an image that is not in ``evidence`` or lacks a UID, several studies or patients.
    """
    if not bookmarks:
        raise DataPrepError("a report needs at least one bookmark")
    images = _evidence_of(bookmarks, evidence)
    observers = {mark.observer for mark in bookmarks if mark.observer}
    common = observer_name or (next(iter(observers)) if len(observers) == 1 else None)
    groups: list[sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations] = []
    for number, mark in enumerate(bookmarks):
        group = _group(mark, images[mark.image_uid or ""], (sop_instance_uid, number), algorithm)
        observer = None if observer_name else mark.observer
        if observer and observer != common:
            _add_observer(group[0], observer)
        groups.append(group)
    longest = max(len(mark.points_px) // 2 for mark in bookmarks)
    modality = next(iter(images.values())).get("Modality")
    content = sr.MeasurementReport(
        observation_context=_observation_context(common),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion if modality == "CT" else _IMAGING_PROCEDURE,
        imaging_measurements=groups,
    )
    report = sr.ComprehensiveSR(
        evidence=[_header(image) for image in images.values()],
        content=content,
        series_instance_uid=series_instance_uid,
        series_number=series_number,
        sop_instance_uid=sop_instance_uid,
        instance_number=instance_number,
        is_complete=True,
        is_final=algorithm is None,
        manufacturer="lesion-bookmarks",
        manufacturer_model_name="data_prep",
        software_versions=data_prep.__version__,
        series_description=series_description[:64],
        content_date=created.date(),
        content_time=created.time(),
        series_date=created.date(),
        series_time=created.time(),
        specific_character_set="ISO_IR 192",
        # In an explicit syntax an FL element ends at 64 KiB; implicit lengths have 32 bits.
        transfer_syntax_uid=ImplicitVRLittleEndian if longest > _MOST_EXPLICIT_POINTS else ExplicitVRLittleEndian,
    )
    report.PatientName = str(next(iter(images.values())).get("PatientName") or "")
    report.InstanceCreationDate = report.ContentDate
    report.InstanceCreationTime = report.ContentTime
    for equipment in report.get("ContributingEquipmentSequence", []):  # highdicom notes itself there, with the clock
        equipment.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    return report


# --- evidence and context ------------------------------------------------------------------------------------------


def _evidence_of(bookmarks: Iterable[Bookmark], evidence: Sequence[Dataset]) -> dict[str, Dataset]:
    known = {str(image.get("SOPInstanceUID") or ""): image for image in evidence}
    images: dict[str, Dataset] = {}
    for mark in bookmarks:
        uid = mark.image_uid or ""
        if not uid or uid not in known:
            raise DataPrepError(f"bookmark {mark.bookmark_id}: its image {uid or '(none)'} is not among the evidence")
        images.setdefault(uid, known[uid])
    for uid, image in images.items():
        missing = [name for name in _UIDS if not image.get(name)]
        if missing:
            raise DataPrepError(f"image {uid}: {missing[0]} is empty, so a report cannot refer to it")
    for name in ("StudyInstanceUID", "PatientID"):
        if len({str(image.get(name) or "") for image in images.values()}) > 1:
            raise DataPrepError(f"a report covers one study of one patient, but the images differ in {name}")
    return images


def _header(image: Dataset) -> Dataset:
    """What the report inherits, every required attribute present; a sex outside PS3.3's terms is left empty."""
    header = Dataset()
    for name in _HEADER:
        value = "" if image.get(name) is None else str(image.get(name))
        setattr(header, name, value if _is_valid(name, value) else "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    header.PatientName = ""  # highdicom warns in words about a name without ^: names stay out of logs
    for name in ("PatientAge", "StudyDescription"):
        if image.get(name) and _is_valid(name, str(image.get(name))):
            setattr(header, name, str(image.get(name)))
    return header


_FORMS = {
    "DA": re.compile(r"\d{8}"),
    "TM": re.compile(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?"),
    "AS": re.compile(r"\d{3}[DWMY]"),
}


def _is_valid(name: str, value: str) -> bool:
    """Whether a date, time or age is one (PS3.5 6.2): highdicom raises on others, such as 19470000."""
    form = _FORMS.get(dictionary_VR(name))
    if form is None or not value:
        return True
    if form.fullmatch(value) is None:
        return False
    try:
        if name.endswith("Date"):
            datetime.datetime.strptime(value, "%Y%m%d")
        elif name.endswith("Time"):
            datetime.datetime.strptime(value[:6], "%H%M%S"[: len(value[:6])])
    except ValueError:
        return False
    return True


def _person(name: str) -> str:
    return name if "^" in name else f"{name}^"


def _observation_context(observer: str | None) -> sr.ObservationContext:
    if observer:
        person = sr.PersonObserverIdentifyingAttributes(name=_person(observer))
        return sr.ObservationContext(
            observer_person_context=sr.ObserverContext(
                observer_type=codes.DCM.Person, observer_identifying_attributes=person
            )
        )
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", "lesion-bookmarks"), name="lesion-bookmarks", model_name="data_prep"
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _add_observer(group: Dataset, observer: str) -> None:
    """Override the report's observer in one group (TID 1002: type, then name)."""
    person = sr.ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes(name=_person(observer)),
    )
    for item in person:
        group.ContentSequence.append(item)


# --- one measurement group -----------------------------------------------------------------------------------------


def _group(
    mark: Bookmark, image: Dataset, place: tuple[str, int], algorithm: tuple[str, str] | None
) -> sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    common: dict[str, Any] = {
        "tracking_identifier": sr.TrackingIdentifier(
            uid=mark.tracking_uid or derive_uid("tracking", *place), identifier=TRACKING_PREFIX + mark.bookmark_id
        ),
        "finding_type": _concept(mark.finding_code),
        "finding_sites": _sites(mark),
        "algorithm_id": sr.AlgorithmIdentification(*algorithm) if algorithm else None,
    }
    frame = mark.frame_number if int(image.get("NumberOfFrames") or 1) > 1 else None
    source = sr.SourceImageForRegion(
        str(image.SOPClassUID), str(image.SOPInstanceUID), None if frame is None else [frame]
    )
    spacing_mm = _spacing_mm(mark, image)
    lines = _lines(mark, source, spacing_mm)
    extra = [*_scores(mark)]
    group: sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations
    if lines or not mark.points_px:
        whole = None
        if not lines:  # a text without an anchor belongs to the image as a whole
            whole = [
                sr.SourceImageForMeasurementGroup(
                    str(image.SOPClassUID), str(image.SOPInstanceUID), None if frame is None else [frame]
                )
            ]
        group = sr.MeasurementsAndQualitativeEvaluations(
            **common, measurements=[*lines, *extra] or None, source_images=whole
        )
    else:
        graphic, points = _region(mark)
        group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            **common,
            referenced_region=sr.ImageRegion(graphic, points, source),
            measurements=[*_sizes(mark, spacing_mm), *extra] or None,
        )
    if mark.text:
        group[0].ContentSequence.append(
            sr.TextContentItem(codes.DCM.Comment, mark.text, relationship_type=sr.RelationshipTypeValues.CONTAINS)
        )
    return group


def _region(mark: Bookmark) -> tuple[sr.GraphicTypeValues, np.ndarray]:
    points = np.array(mark.points, dtype=np.float32)
    kind = sr.GraphicTypeValues
    if mark.form == "circle":
        return kind.CIRCLE, points
    if mark.form == "ellipse":
        return kind.ELLIPSE, points
    if mark.form in ("point", "arrow", "text"):
        return kind.POINT, points[-1:]
    if mark.form == "box":
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float32)
    return kind.POLYLINE, np.concatenate([points, points[:1]])


def _lines(
    mark: Bookmark, source: sr.SourceImageForRegion, spacing_mm: tuple[float, float] | None
) -> list[sr.Measurement]:
    points = np.array(mark.points, dtype=np.float64).reshape(-1, 2)
    if mark.form == "bidirectional":
        parts = [
            (codes.SCT.LongAxis, points[:2], mark.stated_long_mm),
            (codes.SCT.ShortAxis, points[2:], mark.stated_short_mm),
        ]
    elif mark.form == "length":
        parts = [(codes.SCT.Length, points, mark.stated_long_mm)]
    elif mark.form == "polyline":
        parts = [(codes.DCM.PathLength, points, mark.stated_long_mm)]
    else:
        return []
    measurements = []
    for name, ends, stated_mm in parts:
        value, unit = stated_mm, codes.UCUM.Millimeter
        if value is None:
            unit = codes.UCUM.Millimeter if spacing_mm else PIXELS
            value = sum(frames.length_mm(a, b, spacing_mm or (1.0, 1.0)) for a, b in itertools.pairwise(ends))
        coordinates = sr.CoordinatesForMeasurement(sr.GraphicTypeValues.POLYLINE, ends.astype(np.float32), source)
        measurements.append(sr.Measurement(name, float(value), unit, referenced_coordinates=[coordinates]))
    return measurements


def _sizes(mark: Bookmark, spacing_mm: tuple[float, float] | None) -> list[sr.Measurement]:
    """Stated diameters of an outline, and its area where the spacing is known."""
    measurements = [
        sr.Measurement(name, float(value), codes.UCUM.Millimeter)
        for name, value in ((codes.SCT.LongAxis, mark.stated_long_mm), (codes.SCT.ShortAxis, mark.stated_short_mm))
        if value is not None
    ]
    area_px2 = _area_px2(mark)
    if spacing_mm and area_px2:
        area_mm2 = area_px2 * spacing_mm[0] * spacing_mm[1]
        measurements.append(sr.Measurement(codes.SCT.Area, area_mm2, codes.UCUM.SquareMillimeter))
    return measurements


def _area_px2(mark: Bookmark) -> float:
    points = np.array(mark.points, dtype=np.float64).reshape(-1, 2)
    if mark.form == "circle":
        return math.pi * float(np.sum((points[1] - points[0]) ** 2))
    if mark.form == "ellipse":
        major, minor = (float(np.hypot(*(b - a))) for a, b in ((points[0], points[1]), (points[2], points[3])))
        return math.pi / 4.0 * major * minor
    if mark.form == "box":
        return float(np.prod(points[1] - points[0]))
    if mark.form in ("polygon", "segmentation"):
        x, y = points.T  # the shoelace formula
        return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2.0
    return 0.0


def _scores(mark: Bookmark) -> list[sr.Measurement]:
    if mark.score is None:
        return []
    return [sr.Measurement(codes.DCM.CertaintyOfFinding, 100.0 * float(mark.score), codes.UCUM.Percent)]


def _spacing_mm(mark: Bookmark, image: Dataset) -> tuple[float, float] | None:
    """(x step, y step) of the image itself, else as the bookmark states it."""
    stated = image.get("PixelSpacing") or []
    if len(stated) == 2:
        between_rows, between_columns = map(float, stated)
        if between_rows > 0 and between_columns > 0:
            return between_columns, between_rows
    if mark.spacing_x_mm and mark.spacing_y_mm:
        return mark.spacing_x_mm, mark.spacing_y_mm
    return None


def _concept(stated: str | None) -> Code | sr.CodedConcept | None:
    """``value^scheme^meaning`` or plain words -> a code; words get a stable value in :data:`LOCAL_SCHEME`."""
    if not stated:
        return None
    parts = stated.split("^", 2)
    if len(parts) == 3 and all(part.strip() for part in parts) and len(parts[1]) <= 16:
        return sr.CodedConcept(parts[0], parts[1], parts[2][:64])
    return sr.CodedConcept(make_id(stated), LOCAL_SCHEME, stated.replace("\\", "/")[:64])


def _sites(mark: Bookmark) -> list[sr.FindingSite] | None:
    site = _concept(mark.site)
    if site is None:
        return None
    side = _LATERALITY.get((mark.laterality or "").strip().lower()) or _concept(mark.laterality)
    return [sr.FindingSite(site, laterality=side)]
