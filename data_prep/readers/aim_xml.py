"""AIM XML: version 3 (one ImageAnnotation, facts in attributes) and version 4 (a collection, facts in elements).

The version is told by the namespace: ``aimVersion`` says AIM.1.0 in genuine version 3 files. Addresses of images and
schemas in the file are never opened; entities and document type declarations are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError  # the types only; parsing is defusedxml's

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data_prep.bookmark import MAX_POINTS, Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection
from data_prep.readers._aim import (
    NAMESPACE,
    Annotation,
    Calculation,
    ImageReference,
    Markup,
    bookmarks,
    clean,
    frame_number,
    load,
    measurement,
    modality_of,
    number,
)
from data_prep.readers._aim4 import read_collection

SOURCE = "aim-xml"

MAX_DEPTH = 64
"""Levels of elements; AIM uses about ten."""

_XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"


def recognise(head: bytes, path: Path) -> bool:
    """Is this AIM XML? Told by AIM's namespace, in UTF-8 or UTF-16."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    start = head[: len(head) // 2 * 2].decode(encoding, "replace").lstrip("\ufeff \t\r\n")
    return start.startswith("<") and NAMESPACE in start


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """Every mark of one AIM file.

    Raises:
        UnreadableError: cannot be read, larger than 16 MiB, not well-formed, with entities or a document type,
            nested too deep, or not AIM 3 or 4.
    """
    data = load(path)
    try:
        root: Element = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        raise UnreadableError(f"{path}: XML with a document type or entities, which AIM has not; refused") from error
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        raise UnreadableError(f"{path}: not well-formed XML ({type(error).__name__})") from error
    if NAMESPACE not in root.tag:
        raise UnreadableError(f"{path}: XML that is not AIM")
    _refuse_depth(root, path)
    match _name(root.tag):
        case "ImageAnnotationCollection":
            yield from read_collection(_tree(root), SOURCE)
        case "ImageAnnotation":
            yield from bookmarks(_annotation3(root), SOURCE)
        case "AnnotationOfAnnotation" | "AnnotationOfAnnotationCollection":
            yield Rejection("", "", "an AIM annotation of annotations marks nothing on an image itself")
        case other:
            raise UnreadableError(f"{path}: an AIM file with the unknown root {other[:60]!r}")


def _name(tag: str) -> str:
    return tag.rsplit("}", 1)[-1]


def _refuse_depth(root: Element, path: Path) -> None:
    level, depth = list(root), 1
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UnreadableError(f"{path}: elements nested more than {MAX_DEPTH} deep, which AIM never is")
        level = [child for element in level for child in element]


def _tree(element: Element) -> dict[str, Any]:
    """An element as the dict that :mod:`data_prep.readers._aim4` walks."""
    node: dict[str, Any] = {"xsi:type" if key == _XSI_TYPE else _name(key): value for key, value in element.items()}
    for child in element:
        node.setdefault(_name(child.tag), []).append(_tree(child))
    return node


# --- version 3 -----------------------------------------------------------------------------------------------------


def _all(element: Element, *path: str) -> list[Element]:
    """The elements at the end of a path of local names."""
    found = [element]
    for name in path:
        found = [child for item in found for child in item if _name(child.tag) == name]
    return found


def _get(element: Element | None, attribute: str) -> str | None:
    return clean(element.get(attribute)) if element is not None else None


def _coded(element: Element) -> str | None:
    parts = [_get(element, key) or "" for key in ("codeValue", "codingSchemeDesignator", "codeMeaning")]
    return "^".join(part.replace("^", " ") for part in parts) if parts[0] else parts[2] or None


def _annotation3(root: Element) -> Annotation:
    user, person = (next(iter(_all(root, *path)), None) for path in (("user", "User"), ("person", "Person")))
    sites = map(_coded, _all(root, "anatomicEntityCollection", "AnatomicEntity"))
    facts = {
        "observer": _get(user, "name") or _get(user, "loginName"),
        "patient_id": _get(person, "id"),
        "patient_sex": _get(person, "sex"),
        "finding_code": _coded(root),
        "site": next(filter(None, sites), None),
    }
    shapes = _all(root, "geometricShapeCollection", "GeometricShape")
    coordinates = [sorted(p.items()) for p in root.iter() if _name(p.tag) == "SpatialCoordinate"]
    uid = _get(root, "uniqueIdentifier")  # missing in genuine files
    annotation = Annotation(uid or make_id(_get(root, "dateTime"), sorted(facts.items(), key=str), coordinates), facts)
    annotation.texts = _texts3(root)
    for study in _all(root, "imageReferenceCollection", "ImageReference", "imageStudy", "ImageStudy"):
        for series in _all(study, "imageSeries", "ImageSeries"):
            for image in _all(series, "imageCollection", "Image"):
                if image_uid := _get(image, "sopInstanceUID"):
                    annotation.images[image_uid] = ImageReference(
                        _get(study, "instanceUID"), _get(series, "instanceUID"), modality_of(_get(image, "sopClassUID"))
                    )
    for index, shape in enumerate(shapes, start=1):
        _add_markup3(annotation, shape, f"shape {index}", None)
    for index, note in enumerate(_all(root, "textAnnotationCollection", "TextAnnotation"), start=1):
        holder = next(iter(_all(note, "multiPoint", "MultiPoint")), note)
        _add_markup3(annotation, holder, f"text {index}", _get(note, "text") or "")
    annotation.calculations = list(_calculations3(root))
    for segmentation in _all(root, "segmentationCollection", "Segmentation"):
        uid_of = _get(segmentation, "sopInstanceUID") or ""
        annotation.rejected.append(
            ("segmentation", f"it refers to the DICOM segmentation {uid_of}: harvest that object")
        )
    if not annotation.markups and not annotation.rejected:
        annotation.rejected.append(("", "an annotation without a drawn mark"))
    return annotation


def _texts3(root: Element) -> list[str]:
    said = [_get(root, "comment")]
    for observation in _all(root, "imagingObservationCollection", "ImagingObservation"):
        path = ("imagingObservationCharacteristicCollection", "ImagingObservationCharacteristic")
        details = ", ".join(filter(None, (_get(c, "codeMeaning") for c in _all(observation, *path))))
        said.append(": ".join(filter(None, [_get(observation, "codeMeaning"), details])))
        said.append(_get(observation, "comment"))
    return list(dict.fromkeys(filter(None, said)))


def _add_markup3(annotation: Annotation, shape: Element, where: str, words: str | None) -> None:
    points = [
        p
        for p in _all(shape, "spatialCoordinateCollection", "SpatialCoordinate")
        if not (p.get(_XSI_TYPE) or "").endswith("ThreeDimensionSpatialCoordinate")
    ]
    if words == "" or len(points) > MAX_POINTS or (not points and words is None):
        annotation.rejected.append((where, "no text" if words == "" else f"{len(points)} points in the image plane"))
        return
    points.sort(key=_order)
    xy = np.array([(number(p.get("x")), number(p.get("y"))) for p in points], dtype=np.float64).reshape(-1, 2)
    images = {_get(p, "imageReferenceUID") for p in points}
    if len(images) > 1:
        annotation.rejected.append((where, "its points lie on several images"))
        return
    kind = (shape.get(_XSI_TYPE) or "").rsplit(":", 1)[-1]
    frame = frame_number(points[0].get("referencedFrameNumber")) if points else None
    image_uid = images.pop() if images else None
    style, identifier = _get(shape, "lineStyle"), _get(shape, "shapeIdentifier")
    annotation.markups.append(Markup(where, identifier, kind, xy, image_uid, frame, None, style, words))


def _order(point: Element) -> float:
    index = number(point.get("coordinateIndex"))
    return index if math.isfinite(index) else 0.0


def _calculations3(root: Element) -> Iterator[Calculation]:
    for entity in _all(root, "calculationCollection", "Calculation"):
        result = next(iter(_all(entity, "calculationResultCollection", "CalculationResult")), None)
        data = (
            next(iter(_all(result, "calculationDataCollection", "CalculationData")), None)
            if result is not None
            else None
        )
        measured = measurement(
            {_get(entity, "codeValue") or ""},
            [_get(entity, "description"), _get(entity, "codeMeaning")],
            _get(result, "unitOfMeasure"),
            _get(data, "value"),
        )
        ties = _all(entity, "referencedGeometricShapeCollection", "ReferencedGeometricShape")
        if measured:
            named = (_get(tie, "referencedShapeIdentifier") for tie in ties)
            yield Calculation(*measured, frozenset(filter(None, named)))
