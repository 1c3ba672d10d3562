"""Bookmarks as AIM 4 XML: one ImageAnnotationCollection, one ImageAnnotation a bookmark.

A bidirectional measurement is stored as ePAD stores it: two lines, tied to a long axis and a short axis calculation.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring  # writing only

from pydicom import Dataset

import data_prep
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.readers._aim import WORDS_SCHEME

_AIM = "gme://caCORE.caCORE/4.4/edu.northwestern.radiology.AIM"
_ISO = "uri:iso.org:21090"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"

_SHAPES = {
    "length": "MultiPoint",
    "arrow": "MultiPoint",
    "polyline": "MultiPoint",
    "ellipse": "Ellipse",
    "circle": "Circle",
    "point": "Point",
    "polygon": "Polyline",
    "segmentation": "Polyline",
    "box": "Polyline",
}

_CODES = {  # SNOMED RT, as ePAD and the AIM workstation write them
    "Length": ("G-D7FE", "SRT", "Length"),
    "LongAxis": ("G-A185", "SRT", "Long axis"),
    "ShortAxis": ("G-A186", "SRT", "Short axis"),
}

_NAME_LENGTH = 64
"""Longest annotation name; what viewers show in their lists."""

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def build_annotations(
    bookmarks: Sequence[Bookmark],
    evidence: Sequence[Dataset],
    *,
    created: datetime.datetime,
    uid: str,
    observer_name: str | None = None,
) -> bytes:
    """The AIM 4 XML document of ``bookmarks``.

    Same arguments, same bytes. Identifiers inside are made from ``uid`` and the bookmarks' ids.

    Args:
        bookmarks: marks of one patient and one observer with ``image_uid`` and points in px, which are written as they
            are (AIM's custom is SCOORD's frame, see :mod:`data_prep.readers._aim`). A ``segmentation`` is written as
            its outline and reads back as a polygon.
        evidence: the images (their headers are enough).
        created: date and time of the annotation.
        uid: unique identifier of the collection.
        observer_name: AIM's user; None: the observer that all bookmarks share, else "unknown".

    Returns:
        UTF-8 XML that follows AIM_v4_rv44_XML.xsd.

    Raises:
        DataPrepError: no bookmarks, several patients or observers, an image that is not in ``evidence``, or a text
            without a place.
    """
    if not bookmarks:
        raise DataPrepError("there is no bookmark to write as AIM")
    by_uid = {str(image.SOPInstanceUID): image for image in evidence}
    missing = next((mark.image_uid for mark in bookmarks if mark.image_uid not in by_uid), "")
    if missing != "":
        raise DataPrepError(f"the image {missing} of a bookmark is not among the given images")
    images = [by_uid[str(mark.image_uid)] for mark in bookmarks]
    if len({str(image.get("PatientID", "")) for image in images}) > 1:
        raise DataPrepError("an AIM collection is about one patient; write one for each patient")
    observers = {mark.observer for mark in bookmarks}
    if observer_name is None and len(observers) > 1:
        raise DataPrepError("an AIM collection has one observer; write one for each observer")
    observer = observer_name or observers.pop() or "unknown"

    root = Element("ImageAnnotationCollection", {"xmlns": _AIM, "xmlns:iso": _ISO, "xmlns:xsi": _XSI})
    root.set("aimVersion", "AIMv4_0")
    _identifier(root, "uniqueIdentifier", uid)
    when = created.strftime("%Y%m%d%H%M%S")
    _value(root, "dateTime", when)
    user = SubElement(root, "user")
    _value(user, "name", observer)
    _value(user, "loginName", observer)
    equipment = SubElement(root, "equipment")
    _value(equipment, "manufacturerName", "lesion-bookmarks")
    _value(equipment, "softwareVersion", data_prep.__version__)
    person = SubElement(root, "person")
    _value(person, "name", images[0].get("PatientName"))
    _value(person, "id", images[0].get("PatientID"))
    for name, keyword in (("birthDate", "PatientBirthDate"), ("sex", "PatientSex")):
        if images[0].get(keyword):
            _value(person, name, images[0].get(keyword))
    annotations = SubElement(root, "imageAnnotations")
    for mark, image in zip(bookmarks, images, strict=True):
        _annotation(annotations, mark, image, uid, when)
    indent(root, " ")
    document: str = tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{document}\n'.encode()


def _derived_uid(*parts: str) -> str:
    """A UID made from its parts alone (PS3.5 B.2 form, 2.25 and a number of 128 bits)."""
    return f"2.25.{int.from_bytes(hashlib.sha256('/'.join(parts).encode()).digest()[:16], 'big')}"


def _value(parent: Element, name: str, value: object) -> None:
    """An element with a value; an unknown one (nullFlavor NI) where there is none."""
    words = _NOT_XML.sub("", "" if value is None else str(value))
    SubElement(parent, name, {"value": words} if words else {"nullFlavor": "NI"})


def _identifier(parent: Element, name: str, uid: object) -> None:
    SubElement(parent, name, {"root": str(uid)} if uid else {"nullFlavor": "NI"})


def _code(parent: Element, name: str, code: str | tuple[str, str, str] | None) -> None:
    """A coded concept from "value^scheme^meaning"; words without a code get a private scheme."""
    if not code:
        SubElement(parent, name, {"nullFlavor": "NI"})
        return
    parts = code.split("^", 2) if isinstance(code, str) else code
    value, scheme, meaning = parts if len(parts) == 3 else (str(code), WORDS_SCHEME, str(code))
    element = SubElement(
        parent, name, {"code": _NOT_XML.sub("", value), "codeSystem": scheme, "codeSystemName": scheme}
    )
    _value(element, "iso:displayName", meaning)


def _annotation(parent: Element, mark: Bookmark, image: Dataset, collection_uid: str, when: str) -> None:
    """One ImageAnnotation; the order of elements is the schema's."""
    annotation_uid = _derived_uid(collection_uid, mark.bookmark_id)
    node = SubElement(parent, "ImageAnnotation")
    _identifier(node, "uniqueIdentifier", annotation_uid)
    _code(node, "typeCode", mark.finding_code)
    _value(node, "dateTime", when)
    _value(node, "name", mark.text[:_NAME_LENGTH] if mark.text else None)
    if mark.text and mark.form != "text":
        _value(node, "comment", mark.text)
    if mark.site:
        entity = SubElement(SubElement(node, "imagingPhysicalEntityCollection"), "ImagingPhysicalEntity")
        _identifier(entity, "uniqueIdentifier", _derived_uid(annotation_uid, "site"))
        _code(entity, "typeCode", mark.site)
        _value(entity, "label", "Location")

    markups = _markups(mark)
    long_name = "Length" if mark.form == "length" else "LongAxis"
    stated = [(long_name, mark.stated_long_mm, 0), ("ShortAxis", mark.stated_short_mm, len(markups) - 1)]
    # Of a pair both calculations are written, if need be without a value: they are what makes a pair of two lines.
    present = [item for item in stated if item[1] is not None or mark.form == "bidirectional"]
    if present:
        collection = SubElement(node, "calculationEntityCollection")
        for name, value_mm, _ in present:
            _calculation(collection, name, value_mm, _derived_uid(annotation_uid, name))
    if mark.tracking_uid or mark.laterality:
        _lesion(node, mark, annotation_uid)
    collection = SubElement(node, "markupEntityCollection")
    for index, (shape, points) in enumerate(markups):
        _markup(collection, mark, shape, points, index + 1, _derived_uid(annotation_uid, f"markup {index}"))
    if present:
        statements = SubElement(node, "imageAnnotationStatementCollection")
        for name, _, index in present:
            statement = SubElement(statements, "ImageAnnotationStatement")
            # The type that the schema of AIM 4 offers for this; readers go by the two identifiers.
            statement.set("xsi:type", "CalculationEntityReferencesCalculationEntityStatement")
            _identifier(statement, "subjectUniqueIdentifier", _derived_uid(annotation_uid, name))
            _identifier(statement, "objectUniqueIdentifier", _derived_uid(annotation_uid, f"markup {index}"))
    _image_reference(node, image, _derived_uid(annotation_uid, "image"))


def _calculation(parent: Element, name: str, value_mm: float | None, uid: str) -> None:
    entity = SubElement(parent, "CalculationEntity")
    _identifier(entity, "uniqueIdentifier", uid)
    _code(entity, "typeCode", _CODES[name])
    _value(entity, "description", name)
    if value_mm is None:
        return
    result = SubElement(SubElement(entity, "calculationResultCollection"), "CalculationResult")
    result.set("xsi:type", "CompactCalculationResult")
    result.set("type", "Scalar")
    _value(result, "unitOfMeasure", "mm")
    _code(result, "dataType", ("C48870", "NCI", "Double"))
    dimension = SubElement(SubElement(result, "dimensionCollection"), "Dimension")
    for key, value in (("index", 0), ("size", 1), ("label", name)):
        _value(dimension, key, value)
    _value(result, "value", repr(value_mm))


def _lesion(parent: Element, mark: Bookmark, annotation_uid: str) -> None:
    """Tracking UID and side, in the observation that AIM 4 has for them."""
    lesion = SubElement(SubElement(parent, "lesionObservationEntityCollection"), "LesionObservationEntity")
    lesion.set("xsi:type", "GeneralLesionObservationEntity")
    _identifier(lesion, "uniqueIdentifier", _derived_uid(annotation_uid, "lesion"))
    _identifier(lesion, "lesionUniqueIdentifier", mark.tracking_uid)
    _value(lesion, "trackingIdentifier", mark.bookmark_id)
    _code(lesion, "lesionType", mark.finding_code)
    if mark.laterality:
        _code(lesion, "laterality", mark.laterality)


def _markups(mark: Bookmark) -> list[tuple[str, list[tuple[float, float]]]]:
    """AIM shape and points of a form."""
    points = mark.points
    if mark.form == "bidirectional":
        return [("MultiPoint", points[:2]), ("MultiPoint", points[2:])]
    if mark.form == "text":
        if not points or not mark.text:
            raise DataPrepError("a text without words or place cannot be written as AIM")
        return [("MultiPoint", points)]
    if mark.form == "arrow":  # the head comes first, as ePAD has it
        points = points[::-1]
    if mark.form == "box":
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    if mark.form in ("polygon", "segmentation", "box"):
        points = [*points, points[0]]
    return [(_SHAPES[mark.form], points)]


def _markup(
    parent: Element, mark: Bookmark, shape: str, points: list[tuple[float, float]], number: int, uid: str
) -> None:
    node = SubElement(parent, "MarkupEntity")
    if mark.form == "text":
        node.set("xsi:type", "TextAnnotationEntity")
        _identifier(node, "uniqueIdentifier", uid)
        _value(node, "text", mark.text)
        node = SubElement(node, "geometricShapeEntity")
        uid = _derived_uid(uid, "anchor")
    node.set("xsi:type", f"TwoDimension{shape}")
    _identifier(node, "uniqueIdentifier", uid)
    _value(node, "shapeIdentifier", number)
    if mark.form in ("polyline", "box"):
        _value(node, "label", mark.form)
    _value(node, "includeFlag", "true")
    if mark.form == "arrow":
        _value(node, "lineStyle", "Arrow")
    _identifier(node, "imageReferenceUid", mark.image_uid)
    _value(node, "referencedFrameNumber", mark.frame_number or 1)
    coordinates = SubElement(node, "twoDimensionSpatialCoordinateCollection")
    for index, (x, y) in enumerate(points):
        coordinate = SubElement(coordinates, "TwoDimensionSpatialCoordinate")
        for key, value in (("coordinateIndex", index), ("x", repr(x)), ("y", repr(y))):
            _value(coordinate, key, value)


def _image_reference(parent: Element, image: Dataset, uid: str) -> None:
    reference = SubElement(SubElement(parent, "imageReferenceEntityCollection"), "ImageReferenceEntity")
    reference.set("xsi:type", "DicomImageReferenceEntity")
    _identifier(reference, "uniqueIdentifier", uid)
    study = SubElement(reference, "imageStudy")
    _identifier(study, "instanceUid", image.get("StudyInstanceUID"))
    _value(study, "startDate", image.get("StudyDate"))
    _value(study, "startTime", image.get("StudyTime"))
    series = SubElement(study, "imageSeries")
    _identifier(series, "instanceUid", image.get("SeriesInstanceUID"))
    modality = image.get("Modality")
    _code(series, "modality", (modality, "DCM", modality) if modality else None)
    item = SubElement(SubElement(series, "imageCollection"), "Image")
    _identifier(item, "sopClassUid", image.get("SOPClassUID"))
    _identifier(item, "sopInstanceUid", image.get("SOPInstanceUID"))
