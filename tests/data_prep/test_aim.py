"""AIM 3 and 4, XML and JSON: real files, the meaning of every shape, the writer read back, and damage."""

from __future__ import annotations

import copy
import datetime
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from data_prep.bookmark import Bookmark
from data_prep.errors import UnreadableError
from data_prep.readers import Rejection, aim_json, aim_xml

CREATED = datetime.datetime(2020, 1, 2, 3, 4, 5)
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


# --- real files ----------------------------------------------------------------------------------------------------


def spatial_coordinates(dataset: Dataset) -> list[Dataset]:
    """Every SCOORD item of a report, without any of our readers."""
    found = [dataset] if dataset.get("ValueType") == "SCOORD" else []
    for child in dataset.get("ContentSequence", []):
        found += spatial_coordinates(child)
    return found


def test_aim_3_and_the_report_of_the_same_mark_agree(shared_data: Path) -> None:
    paths = sorted((shared_data / "bookmarks" / "aim_xml_and_sr" / "annotations").glob("*.xml"))
    assert len(paths) == 10
    for path in paths:
        assert aim_xml.recognise(path.read_bytes()[:4096], path)
        mark = only(list(aim_xml.read(path)))
        (scoord,) = spatial_coordinates(dcmread(path.with_suffix(".dcm")))
        assert mark.form == "length"
        assert mark.points_px == pytest.approx(list(scoord.GraphicData), abs=0.01)
        reference = scoord.ContentSequence[0].ReferencedSOPSequence[0]
        assert mark.image_uid == reference.ReferencedSOPInstanceUID
        assert mark.observer == path.stem[-1]  # two observers, A and B, on every image
        assert mark.frame_number == 1  # 0 in the file
        assert mark.modality == "CT"
        assert mark.source_frame == "assumed"
        assert mark.finding_code == "112041^DCM^Target Lesion Complete Response"
        assert mark.site == "REX0001^RADLEX^LUNG"
        assert "Conspicuity: " in (mark.text or "")


def test_aim_3_stated_millimetres_are_kept_as_they_are(shared_data: Path) -> None:
    path = shared_data / "bookmarks" / "aim_xml_and_sr" / "annotations" / "0022BaselineA.xml"
    mark = only(list(aim_xml.read(path)))
    assert mark.stated_long_mm == 39.5795974731445
    assert mark.study_uid == "1.3.6.1.4.1.9328.50.1.10607"
    assert mark.series_uid == "1.3.6.1.4.1.9328.50.1.10697"


def test_epad_linear_means_centimetres(shared_data: Path) -> None:
    paths = sorted((shared_data / "bookmarks" / "aim_json").glob("*.json"))
    assert len(paths) == 6
    per_px = []
    for path in paths:
        assert aim_json.recognise(path.read_bytes()[:4096], path)
        mark = only(list(aim_json.read(path)))
        assert mark.form == "length"
        assert "'linear' taken as cm" in (mark.note or "")
        assert mark.site in ("RID58^RadLex^liver", "RID170^RadLex^pancreas")
        assert (mark.observer, mark.patient_id, mark.modality) == ("admin", "7", "CT")
        assert (mark.text or "").startswith("Lesion")
        start, end = np.array(mark.points)
        per_px.append((mark.stated_long_mm or 0) / np.hypot(*(end - start)))
    assert max(73.70056105429853, *per_px) == 73.70056105429853
    assert 0.6 < min(per_px) <= max(per_px) < 1.0  # a plausible pixel of a body CT in mm; 0.09 if it were mm


def test_ids_differ_and_do_not_depend_on_the_path(shared_data: Path, tmp_path: Path) -> None:
    ids: set[str] = set()
    for path in (shared_data / "bookmarks").rglob("*.xml"):
        moved = tmp_path / f"{len(ids)}.txt"
        moved.write_bytes(path.read_bytes())
        here, there = only(list(aim_xml.read(path))), only(list(aim_xml.read(moved)))
        assert here == there
        ids.add(here.bookmark_id)
    assert len(ids) == 10


def test_only_aim_is_recognised(shared_data: Path) -> None:
    for path in (p for p in (shared_data / "bookmarks").rglob("*") if p.is_file()):
        head = path.read_bytes()[:4096]
        assert aim_xml.recognise(head, path) == (path.suffix == ".xml")
        assert aim_json.recognise(head, path) == (path.suffix == ".json")


# --- AIM 4: shapes, from trees as ePAD writes them -----------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("kind", "points", "form", "expected"),
    [
        ("TwoDimensionMultiPoint", [(1, 2), (3, 4)], "length", (1, 2, 3, 4)),
        ("TwoDimensionPolyline", [(1, 2), (3, 4)], "length", (1, 2, 3, 4)),
        ("TwoDimensionMultiPoint", [(0, 5), (20, 5), (9, 0), (9, 9)], "bidirectional", (0, 5, 20, 5, 9, 0, 9, 9)),
        ("TwoDimensionMultiPoint", [(9, 0), (9, 9), (0, 5), (20, 5)], "bidirectional", (0, 5, 20, 5, 9, 0, 9, 9)),
        ("TwoDimensionMultiPoint", [(0, 0), (9, 0), (9, 9), (0, 9)], "polyline", (0, 0, 9, 0, 9, 9, 0, 9)),
        ("TwoDimensionMultiPoint", [(0, 0), (9, 0), (9, 9)], "polyline", (0, 0, 9, 0, 9, 9)),
        ("TwoDimensionPolyline", [(0, 0), (9, 0), (9, 9)], "polygon", (0, 0, 9, 0, 9, 9)),
        ("TwoDimensionPolyline", [(0, 0), (9, 0), (9, 9), (0, 0)], "polygon", (0, 0, 9, 0, 9, 9)),
        ("TwoDimensionCircle", [(5, 5), (8, 5)], "circle", (5, 5, 8, 5)),
        ("TwoDimensionEllipse", [(0, 5), (20, 5), (9, 0), (9, 9)], "ellipse", (0, 5, 20, 5, 9, 0, 9, 9)),
        ("TwoDimensionEllipse", [(9, 0), (9, 9), (0, 5), (20, 5)], "ellipse", (0, 5, 20, 5, 9, 0, 9, 9)),
        ("TwoDimensionPoint", [(5, 6)], "point", (5, 6)),
    ],
)
def test_shapes(tmp_path: Path, kind: str, points: Any, form: str, expected: tuple[float, ...]) -> None:
    mark = only(read_json(collection(shape(kind, points)), tmp_path))
    assert (mark.form, mark.points_px) == (form, expected)
    assert (mark.image_uid, mark.series_uid, mark.study_uid, mark.modality) == (IMAGE_UID, "2.25.12", "2.25.13", "MR")


def test_points_are_ordered_by_their_index(tmp_path: Path) -> None:
    made = shape("TwoDimensionMultiPoint", [(1, 2), (3, 4)])
    made["twoDimensionSpatialCoordinateCollection"]["TwoDimensionSpatialCoordinate"].reverse()
    assert only(read_json(collection(made), tmp_path)).points_px == (1, 2, 3, 4)


def test_an_epad_arrow_points_to_its_first_point(tmp_path: Path) -> None:
    made = shape("TwoDimensionMultiPoint", [(1, 2), (3, 4)], lineStyle={"value": "Arrow"})
    mark = only(read_json(collection(made), tmp_path))
    assert (mark.form, mark.points_px) == ("arrow", (3, 4, 1, 2))


def test_an_epad_bidirectional_measurement_is_one_mark(tmp_path: Path) -> None:
    lines = [
        shape("TwoDimensionMultiPoint", [(9, 0), (9, 9)], "2.25.2"),
        shape("TwoDimensionMultiPoint", [(0, 5), (20, 5)], "2.25.1"),
    ]
    numbers = [calculation("LongAxis", 14.2, uid="2.25.8"), calculation("ShortAxis", 0.63, "cm", uid="2.25.9")]
    ties = [tie("2.25.8", "2.25.1"), tie("2.25.9", "2.25.2")]
    mark = only(read_json(collection(*lines, calculations=numbers, ties=ties), tmp_path))
    assert (mark.form, mark.points_px) == ("bidirectional", (0, 5, 20, 5, 9, 0, 9, 9))
    assert mark.stated_long_mm == pytest.approx(14.2)
    assert mark.stated_short_mm == pytest.approx(6.3)
    # all identifiers "0", as old files have them: the longer line is the long axis
    for number in numbers:
        number["uniqueIdentifier"]["root"] = "0"
    mark = only(
        read_json(collection(*lines, calculations=numbers, ties=[tie("0", "2.25.1"), tie("0", "2.25.2")]), tmp_path)
    )
    assert (mark.form, mark.stated_long_mm) == ("bidirectional", 14.2)
    assert mark.stated_short_mm == pytest.approx(6.3)
    mark = only(read_json(collection(*lines, calculations=numbers), tmp_path))
    assert (mark.form, mark.stated_long_mm) == ("bidirectional", 14.2)
    assert mark.stated_short_mm == pytest.approx(6.3)


def test_two_measured_lines_stay_two(tmp_path: Path) -> None:
    lines = [
        shape("TwoDimensionMultiPoint", [(0, 5), (20, 5)], "2.25.1"),
        shape("TwoDimensionMultiPoint", [(9, 0), (9, 9)], "2.25.2"),
    ]
    numbers = [calculation("Length", 20, uid="2.25.8"), calculation("Length", 9, uid="2.25.9")]
    found = read_json(
        collection(*lines, calculations=numbers, ties=[tie("2.25.1", "2.25.8"), tie("2.25.9", "2.25.2")]), tmp_path
    )
    assert [(m.form, m.stated_long_mm) for m in found if isinstance(m, Bookmark)] == [("length", 20), ("length", 9)]


@pytest.mark.parametrize(
    ("unit", "value", "mm", "note"),
    [
        ("mm", "12.5", 12.5, None),
        ("CM", "1.25", 12.5, None),
        ("millimeters", "12.5", 12.5, None),
        ("linear", "1.25", 12.5, "taken as cm"),
        ("pixel", "30", None, "unknown unit 'pixel'"),
        ("mm", "long", None, "not a number"),
        ("mm", "-3", None, "not a number"),
    ],
)
def test_units_of_stated_lengths(tmp_path: Path, unit: str, value: str, mm: float | None, note: str | None) -> None:
    line = shape("TwoDimensionMultiPoint", [(1, 2), (3, 4)])
    mark = only(read_json(collection(line, calculations=[calculation("Length", value, unit)]), tmp_path))
    assert mark.stated_long_mm == (None if mm is None else pytest.approx(mm))
    assert (note or "") in (mark.note or "")


def test_other_calculations_are_not_lengths(tmp_path: Path) -> None:
    line = shape("TwoDimensionMultiPoint", [(1, 2), (3, 4)])
    mark = only(read_json(collection(line, calculations=[calculation("Mean", 40), calculation("Area", 9)]), tmp_path))
    assert mark.stated_long_mm is None


def test_tracking_side_site_and_text(tmp_path: Path) -> None:
    made = collection(
        shape("TwoDimensionPoint", [(5, 6)]),
        trackingUniqueIdentifier={"root": "2.25.77"},
        comment={"value": "CT / ABD / 3~~seen before"},
        imagingPhysicalEntityCollection={
            "ImagingPhysicalEntity": [
                {"typeCode": [{"code": "S83", "codeSystemName": "99EPAD"}], "label": {"value": "Status"}},
                {
                    "typeCode": {"code": "RID58", "codeSystemName": "RadLex", "iso:displayName": {"value": "liver"}},
                    "label": {"value": "Location"},
                },
            ]
        },
    )
    mark = only(read_json(made, tmp_path))
    assert (mark.tracking_uid, mark.site) == ("2.25.77", "RID58^RadLex^liver")
    assert mark.text == "Lesion 1; CT / ABD / 3~~seen before"


def test_a_text_annotation(tmp_path: Path) -> None:
    note = {
        "xsi:type": "TextAnnotationEntity",
        "text": {"value": "hilum"},
        "geometricShapeEntity": shape("TwoDimensionMultiPoint", [(5, 6), (50, 60)]),
    }
    mark = only(read_json(collection(note), tmp_path))
    assert (mark.form, mark.points_px, mark.text) == ("text", (5, 6), "hilum")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (collection(), "without a drawn mark"),
        (collection(shape("TwoDimensionCircle", [(1, 2)])), "Circle with 1 points"),
        (collection(shape("ThreeDimensionPoint", [(1, 2)])), "three-dimensional"),
        (collection(shape("TwoDimensionMultiPoint", [(1, 2), (1, 2)])), "no length"),
        (collection(shape("TwoDimensionPoint", [(1, float("nan"))])), "finite"),
        (
            collection(segmentationEntityCollection={"SegmentationEntity": {"sopInstanceUid": {"root": "2.25.5"}}}),
            "segmentation 2.25.5",
        ),
        ({"ImageAnnotationCollection": {"imageAnnotations": {}}}, "without image annotations"),
    ],
)
def test_what_cannot_be_used_is_listed(tmp_path: Path, made: Any, reason: str) -> None:
    assert reason in refused(read_json(made, tmp_path)).reason


def test_an_image_given_by_its_address_is_not_opened(tmp_path: Path) -> None:
    made = shape("TwoDimensionPoint", [(1, 2)], uri={"value": "file:///etc/passwd"})
    del made["imageReferenceUid"]
    assert only(read_json(collection(made), tmp_path)).image_uid == IMAGE_UID  # the only one there is
    nowhere = collection(made)
    del nowhere["ImageAnnotationCollection"]["imageAnnotations"]["ImageAnnotation"][0]["imageReferenceEntityCollection"]
    assert "never opened" in refused(read_json(nowhere, tmp_path)).reason


def test_a_bare_collection_and_a_list_of_collections(tmp_path: Path) -> None:
    made = collection(shape("TwoDimensionPoint", [(5, 6)]))
    assert len(read_json([made, made], tmp_path)) == 2
    assert len(read_json(made["ImageAnnotationCollection"], tmp_path)) == 1


# --- AIM 3 shapes that the real files do not have ------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("kind", "points", "form"),
    [
        ("MultiPoint", [(1, 2), (3, 4)], "length"),
        ("MultiPoint", [(0, 5), (20, 5), (9, 0), (9, 9)], "bidirectional"),
        ("Circle", [(5, 5), (8, 5)], "circle"),
        ("Ellipse", [(0, 5), (20, 5), (9, 0), (9, 9)], "ellipse"),
        ("Polyline", [(0, 0), (9, 0), (9, 9)], "polygon"),
        ("Point", [(5, 6)], "point"),
    ],
)
def test_aim_3_shapes(tmp_path: Path, kind: str, points: Any, form: str) -> None:
    assert only(read_xml(aim3(shape3(kind, points)), tmp_path)).form == form


def test_aim_3_calculations_are_tied_by_shape_identifier(tmp_path: Path) -> None:
    def number(value: float, to: int) -> str:
        return (
            f'<Calculation codeValue="G-D7FE" codeMeaning="Length" uid="{to}"><referencedGeometricShapeCollection>'
            f'<ReferencedGeometricShape referencedShapeIdentifier="{to}"/></referencedGeometricShapeCollection>'
            f'<calculationResultCollection><CalculationResult unitOfMeasure="mm"><calculationDataCollection>'
            f'<CalculationData value="{value}"/></calculationDataCollection></CalculationResult>'
            f"</calculationResultCollection></Calculation>"
        )

    shapes = shape3("MultiPoint", [(1, 2), (3, 4)], 1) + shape3("MultiPoint", [(1, 2), (30, 40)], 2)
    made = aim3(shapes, f"<calculationCollection>{number(48, 2)}{number(3, 1)}</calculationCollection>")
    assert [m.stated_long_mm for m in read_xml(made, tmp_path) if isinstance(m, Bookmark)] == [3, 48]


def test_aim_3_text(tmp_path: Path) -> None:
    inner = shape3("MultiPoint", [(7, 8)]).replace("GeometricShape", "MultiPoint")
    note = f'<TextAnnotation text="edge"><multiPoint>{inner}</multiPoint></TextAnnotation>'
    made = aim3("", f"<textAnnotationCollection>{note}</textAnnotationCollection>")
    mark = only(read_xml(made, tmp_path))
    assert (mark.form, mark.text, mark.points_px) == ("text", "edge", (7, 8))


# --- damage --------------------------------------------------------------------------------------------------------

BOMB = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">{}]>
<ImageAnnotation xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM" comment="&e9;"/>"""
ENTITIES = "".join(f'<!ENTITY e{i} "{("&a;" if i == 0 else "&e" + str(i - 1) + ";") * 10}">' for i in range(10))
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<ImageAnnotation xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM"><a>&x;</a></ImageAnnotation>"""


@pytest.mark.parametrize("document", [BOMB.format(ENTITIES), OUTSIDE], ids=["bomb", "external"])
def test_entities_are_refused(tmp_path: Path, document: str) -> None:
    with pytest.raises(UnreadableError, match="entities"):
        read_xml(document, tmp_path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    root = '<ImageAnnotation xmlns="gme://caCORE.caCORE/3.2/edu.northwestern.radiology.AIM">'
    with pytest.raises(UnreadableError):
        read_xml(root + "<a>" * 50_000 + "</a>" * 50_000 + "</ImageAnnotation>", tmp_path)
    path = tmp_path / "deep"
    path.write_text('{"ImageAnnotationCollection": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(UnreadableError, match="nested"):
        list(aim_json.read(path))


def test_sizes_and_counts_are_limited(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.write(b'{"ImageAnnotationCollection": ')
        file.truncate(10**9)  # sparse
    for reader in (aim_json, aim_xml):
        with pytest.raises(UnreadableError, match="larger than"):
            list(reader.read(huge))
    crowd = collection(shape("TwoDimensionPolyline", [(0, 0)] * 100_001))
    assert "100001 points" in refused(read_json(crowd, tmp_path)).reason


@pytest.mark.parametrize("content", [b"", b"<", b"{}", b"[]", b"null", b"<a/>", b"\xff\xfe<", b"{" * 9, b"\0" * 99])
def test_what_is_no_aim_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    for reader in (aim_json, aim_xml):
        assert not reader.recognise(content, path)
        with pytest.raises(UnreadableError, match="other"):
            list(reader.read(path))
        with pytest.raises(UnreadableError):
            list(reader.read(tmp_path))


def damaged(data: bytes, count: int) -> list[bytes]:
    chance = random.Random(4)
    made = [data[: len(data) * i // 20] for i in range(20)]
    while len(made) < count:
        copy_ = bytearray(data)
        for _ in range(chance.choice([1, 3, 30])):
            copy_[chance.randrange(len(copy_))] = chance.choice([0, 0xFF, 0x39, chance.randrange(32, 127)])
        made.append(bytes(copy_))
    return made


def assert_tolerant(reader: Any, contents: list[bytes], folder: Path) -> None:
    outcomes = set()
    for index, content in enumerate(contents):
        path = folder / str(index)
        path.write_bytes(content)
        started = time.monotonic()
        reader.recognise(content[:4096], path)
        try:
            found = list(reader.read(path))
        except UnreadableError as error:
            outcomes.add("unreadable")
            said = str(error)
        else:
            outcomes.add("read")
            assert all(isinstance(mark, Bookmark | Rejection) for mark in found)
            said = " ".join(mark.reason for mark in found if isinstance(mark, Rejection))
        assert "Jörg" not in said
        assert time.monotonic() - started < 5
    assert outcomes == {"read", "unreadable"}


def test_damaged_version_3_gives_a_reason_and_no_crash(tmp_path: Path) -> None:
    assert_tolerant(aim_xml, damaged(aim3(shape3("Circle", [(5, 5), (8, 5)])).encode(), 80), tmp_path)


def test_damaged_json_gives_a_reason_and_no_crash(tmp_path: Path) -> None:
    made = collection(
        shape("TwoDimensionMultiPoint", [(0, 5), (20, 5)]),
        calculations=[calculation("Length", 20)],
        ties=[tie("2.25.9", "2.25.1")],
    )
    assert_tolerant(aim_json, damaged(json.dumps(made).encode(), 80), tmp_path)
    assert_tolerant(aim_json, [json.dumps(tree).encode() for tree in _mistyped(made)] + [b"{"], tmp_path)


def _mistyped(tree: Any) -> list[Any]:
    """Copies of a tree with, at every place in turn, a value of another type."""
    made = []

    def walk(node: Any, path: list[Any]) -> None:
        values: list[Any] = [None, 7, "x", [], {}, [[]], True, 10**400]
        for value in values:
            changed = copy.deepcopy(tree)
            place = changed
            for key in path[:-1]:
                place = place[key]
            if path:
                place[path[-1]] = value
                made.append(changed)
        if path and len(made) > 800:
            return
        for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            walk(child, [*path, key])

    walk(tree, [])
    return made
