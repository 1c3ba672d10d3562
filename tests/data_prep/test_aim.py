"""AIM 3 and 4, XML and JSON: real files, and the meaning of every shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from data_prep.bookmark import Bookmark
from data_prep.readers import aim_json, aim_xml
from tests.data_prep.aim_objects import (
    IMAGE_UID,
    aim3,
    calculation,
    collection,
    only,
    read_json,
    read_xml,
    refused,
    shape,
    shape3,
    tie,
)

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
