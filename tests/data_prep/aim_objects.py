"""AIM 3 and AIM 4 documents for the tests, put together by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.bookmark import Bookmark
from data_prep.readers import Rejection, aim_json, aim_xml
from tests.data_prep.damage import beginnings_and_overwritten

IMAGE_UID = "2.25.11"


def read_json(tree: Any, folder: Path) -> list[Bookmark | Rejection]:
    path = folder / "aim"
    path.write_text(json.dumps(tree))
    assert aim_json.recognise(path.read_bytes()[:4096], path)
    return list(aim_json.read(path))


def read_xml(document: bytes | str, folder: Path) -> list[Bookmark | Rejection]:
    path = folder / "aim"
    path.write_bytes(document if isinstance(document, bytes) else document.encode())
    assert aim_xml.recognise(path.read_bytes()[:4096], path)
    return list(aim_xml.read(path))


def only(found: list[Bookmark | Rejection]) -> Bookmark:
    (mark,) = found
    assert isinstance(mark, Bookmark), mark
    return mark


def refused(found: list[Bookmark | Rejection]) -> Rejection:
    (mark,) = found
    assert isinstance(mark, Rejection), mark
    return mark


def shape(kind: str, points: Any, uid: str = "2.25.1", **more: Any) -> dict[str, Any]:
    coordinates = [
        {"coordinateIndex": {"value": i}, "x": {"value": x}, "y": {"value": y}} for i, (x, y) in enumerate(points)
    ]
    return {
        "xsi:type": kind,
        "uniqueIdentifier": {"root": uid},
        "imageReferenceUid": {"root": IMAGE_UID},
        "referencedFrameNumber": {"value": 1},
        "twoDimensionSpatialCoordinateCollection": {"TwoDimensionSpatialCoordinate": coordinates},
        **more,
    }


def calculation(name: str, value: Any, unit: str = "mm", uid: str = "2.25.9") -> dict[str, Any]:
    return {
        "uniqueIdentifier": {"root": uid},
        "typeCode": [{"code": "0", "codeSystemName": "99X", "iso:displayName": {"value": name}}],
        "description": {"value": name},
        "calculationResultCollection": {
            "CalculationResult": [{"unitOfMeasure": {"value": unit}, "value": {"value": str(value)}}]
        },
    }


def tie(calculation_uid: str, markup_uid: str) -> dict[str, Any]:
    return {"subjectUniqueIdentifier": {"root": calculation_uid}, "objectUniqueIdentifier": {"root": markup_uid}}


def collection(*shapes: Any, calculations: Any = (), ties: Any = (), **more: Any) -> dict[str, Any]:
    series = {
        "instanceUid": {"root": "2.25.12"},
        "modality": {"code": "MR"},
        "imageCollection": {"Image": [{"sopInstanceUid": {"root": IMAGE_UID}}]},
    }
    annotation = {
        "uniqueIdentifier": {"root": "2.25.100"},
        "name": {"value": "Lesion 1"},
        "markupEntityCollection": {"MarkupEntity": list(shapes)},
        "calculationEntityCollection": {"CalculationEntity": list(calculations)},
        "imageAnnotationStatementCollection": {"ImageAnnotationStatement": list(ties)},
        "imageReferenceEntityCollection": {
            "ImageReferenceEntity": [{"imageStudy": {"instanceUid": {"root": "2.25.13"}, "imageSeries": series}}]
        },
        **more,
    }
    return {"ImageAnnotationCollection": {"imageAnnotations": {"ImageAnnotation": [annotation]}}}


def aim3(shapes: str, more: str = "", attributes: str = "") -> str:
    return f"""<?xml version="1.0"?>
<ImageAnnotation xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM" aimVersion="AIM.3.0"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" {attributes}>
<geometricShapeCollection>{shapes}</geometricShapeCollection>{more}</ImageAnnotation>"""


def shape3(kind: str, points: Any, number: int = 0) -> str:
    xy = "".join(
        f'<SpatialCoordinate coordinateIndex="{i}" imageReferenceUID="{IMAGE_UID}" referencedFrameNumber="0" '
        f'x="{x}" y="{y}" xsi:type="TwoDimensionSpatialCoordinate"/>'
        for i, (x, y) in enumerate(points)
    )
    inner = f"<spatialCoordinateCollection>{xy}</spatialCoordinateCollection>"
    return f'<GeometricShape xsi:type="{kind}" shapeIdentifier="{number}">{inner}</GeometricShape>'


def damaged(document: bytes) -> Iterator[bytes]:
    """Damaged copies of a document, in which most wrong bytes are letters and numbers."""
    return beginnings_and_overwritten(
        document, 80, lambda chance: chance.choice([0, 0xFF, 0x39, chance.randrange(32, 127)])
    )
