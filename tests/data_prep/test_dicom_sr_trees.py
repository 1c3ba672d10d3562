"""Structured reports of other shapes than ours: built by hand, and marks in patient space."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes

from data_prep import frames
from data_prep.bookmark import Bookmark
from data_prep.readers import Rejection, dicom_sr
from data_prep.readers._planes import plane_of_image
from data_prep.readers._sr_context import age_years
from tests.data_prep.sr_objects import CT, code, content, image, num, on_image, read_document, scoord

LENGTH, LONG, SHORT = "410668003^SCT^Length", "103339001^SCT^Long Axis", "103340004^SCT^Short Axis"


def test_a_report_after_no_template() -> None:
    line = num(LENGTH, "4.2", "cm", scoord("POLYLINE", 1, 2, 30, 40))
    finding = content(
        "CODE", concept="121071^DCM^Finding", ConceptCodeSequence=[code("4147007^SCT^Mass")],
        children=[scoord("POINT", 7, 8)],
    )  # fmt: skip
    words = content("TEXT", concept="121071^DCM^Finding", TextValue="a node", children=[scoord("CIRCLE", 5, 5, 9, 5)])
    found = read_document(content("CONTAINER", concept="121070^DCM^Findings", children=[line, finding, words]))
    marks = {item.form: item for item in found if isinstance(item, Bookmark)}
    assert len(found) == len(marks) == 3
    assert marks["length"].stated_long_mm == pytest.approx(42.0)
    assert marks["point"].finding_code == "4147007^SCT^Mass"
    assert marks["circle"].text == "a node"


def test_coordinates_and_images_by_reference() -> None:
    reference = content("IMAGE", "SELECTED FROM")
    del reference.ValueType
    reference.ReferencedContentItemIdentifier = [1, 1, 1]
    shape = scoord("POLYLINE", 1, 2, 30, 40, children=[reference])
    to_shape = Dataset()
    to_shape.RelationshipType, to_shape.ReferencedContentItemIdentifier = "INFERRED FROM", [1, 1, 2]
    library = content("CONTAINER", children=[on_image("2.25.555"), shape])
    (found,) = read_document(library, num(LENGTH, "31.5", "mm", to_shape))
    assert isinstance(found, Bookmark)
    assert (found.image_uid, found.stated_long_mm) == ("2.25.555", 31.5)


def test_pairs_are_taken_as_declared_and_only_on_one_image() -> None:
    def group(*items: Dataset) -> Dataset:
        return content("CONTAINER", concept="125007^DCM^Measurement Group", children=items)

    long_axis = num(LONG, "20", "mm", scoord("POLYLINE", 0, 0, 20, 0))
    elsewhere = num(SHORT, "10", "mm", scoord("POLYLINE", 9, 0, 9, 10, children=[on_image("2.25.1002")]))
    here = num(SHORT, "11", "mm", scoord("POLYLINE", 9, 0, 9, 11))
    (pair,) = read_document(group(here, long_axis))  # whichever comes first
    assert isinstance(pair, Bookmark)
    assert pair.points_px == (0, 0, 20, 0, 9, 0, 9, 11)
    assert (pair.stated_long_mm, pair.stated_short_mm) == (20.0, 11.0)
    apart = [item for item in read_document(group(long_axis, elsewhere)) if isinstance(item, Bookmark)]
    assert [item.form for item in apart] == ["length", "length"]
    assert "short axis without" in (apart[1].note or "")


@pytest.mark.parametrize(
    ("item", "form", "points"),
    [
        (scoord("POLYLINE", 1, 1, 9, 1, 9, 5, 1, 5, 1, 1), "box", (1, 1, 9, 5)),
        (scoord("POLYLINE", 9, 5, 9, 1, 1, 1, 1, 5, 9, 5), "box", (1, 1, 9, 5)),
        (scoord("POLYLINE", 1, 1, 9, 2, 9, 5, 1, 5, 1, 1), "polygon", (1, 1, 9, 2, 9, 5, 1, 5)),
        (scoord("POLYLINE", 1, 1, 9, 1, 5, 5), "polyline", (1, 1, 9, 1, 5, 5)),
        (num("42798000^SCT^Area", "8", "mm2", scoord("POLYLINE", 1, 1, 9, 1, 5, 5)), "polygon", (1, 1, 9, 1, 5, 5)),
        (num(LENGTH, "8", "mm", scoord("MULTIPOINT", 1, 1, 9, 1)), "length", (1, 1, 9, 1)),
        (scoord("ELLIPSE", 0, 5, 10, 5, 5, 2, 5, 8), "ellipse", (0, 5, 10, 5, 5, 2, 5, 8)),
    ],
)
def test_forms(item: Dataset, form: str, points: tuple[float, ...]) -> None:
    (found,) = read_document(item)
    assert isinstance(found, Bookmark), found
    assert (found.form, found.points_px) == (form, points)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (scoord("POLYLINE", 1, 1, 9, 1, children=()), "name no image"),
        (scoord("POLYLINE", 1, 1, 1, 1), "without any extent"),
        (scoord("POLYLINE", 1, 1, 9), "3 numbers"),
        (scoord("CIRCLE", 1, 1), "has 1 points"),
        (scoord("ELLIPSOID", 1, 1, 2, 2), "not a flat mark"),
        (scoord("POINT", float("nan"), 1), "not a number"),
        (scoord("POINT", 1e9, 1), "outside any image"),
        (content("SCOORD", children=[on_image()], GraphicType="POINT"), "no GraphicData"),
        (content("CONTAINER", concept="125007^DCM^Measurement Group"), "without coordinates"),
        (num(LENGTH, "5", "mm"), "without coordinates"),
    ],
)
def test_what_is_no_mark_is_rejected_with_its_place(item: Dataset, reason: str) -> None:
    (found,) = read_document(item)
    assert isinstance(found, Rejection)
    assert reason in found.reason
    assert found.row in ("item 1.1", "")


def test_a_group_that_refers_to_a_segmentation() -> None:
    segment = on_image("2.25.88")
    segment.ReferencedSOPSequence[0].ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    (found,) = read_document(content("CONTAINER", concept="125007^DCM^Measurement Group", children=[segment]))
    assert isinstance(found, Rejection)
    assert "2.25.88" in found.reason


def test_ages() -> None:
    assert [age_years(value) for value in ("045Y", "006M", "", "x")] == [45.0, 0.5, None, None]


def slice_at(z_mm: float, **changes: object) -> SimpleNamespace:
    facts = {
        "sop_instance_uid": f"2.25.{int(z_mm) + 5000}", "sop_class_uid": CT, "series_uid": "2.25.2",
        "frame_number": 1, "frame_count": 1, "frame_of_reference_uid": "2.25.3",
        "position_lps_mm": (-120.0, -90.0, z_mm), "orientation": (1, 0, 0, 0, 1, 0),
        "spacing_x_mm": 0.5, "spacing_y_mm": 0.8, "spacing_z_mm": 5.0, "rows": 512, "columns": 512,
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **changes})


class Lookup:
    def __init__(self, *records: SimpleNamespace) -> None:
        self.series = [SimpleNamespace(records=records)]

    def find(self, sop_instance_uid: str, frame_number: int | None = None) -> SimpleNamespace | None:
        return next((r for r in self.series[0].records if r.sop_instance_uid == sop_instance_uid), None)


def spatial_report(points_lps_mm: np.ndarray) -> Dataset:
    region = sr.ImageRegion3D(sr.GraphicTypeValues3D.POLYGON, points_lps_mm, frame_of_reference_uid="2.25.3")
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier("2.25.4", "x1"), referenced_region=region
    )
    person = sr.PersonObserverIdentifyingAttributes(name="A^")
    context = sr.ObservationContext(sr.ObserverContext(codes.DCM.Person, person))
    content = sr.MeasurementReport(context, codes.LN.CTUnspecifiedBodyRegion, [group])
    return sr.Comprehensive3DSR([image()], content[0], "2.25.6", 1, "2.25.7", 1, manufacturer="x")


def test_patient_space_marks_are_placed_on_their_slice() -> None:
    outline_px = np.array([(10.25, 20.5), (40.75, 22.0), (30.5, 60.0)])
    target = slice_at(-35.0)
    affine = frames.dicom_affine(target.position_lps_mm, target.orientation, (0.8, 0.5), (0, 0, 5.0))
    points = frames.px_to_lps(np.column_stack([outline_px, np.full(3, 0.5)]), affine)
    closed = np.concatenate([points, points[:1]])
    dataset = spatial_report(closed)
    (without,) = dicom_sr.read_dataset(dataset)
    assert without == Rejection("", "item 1.5.1.3", dicom_sr.NEEDS_IMAGES)
    images = Lookup(*(slice_at(z) for z in range(-100, 100, 5)))
    (found,) = dicom_sr.read_dataset(dataset, images=images)
    assert isinstance(found, Bookmark)
    assert (found.form, found.image_uid, found.modality) == ("polygon", target.sop_instance_uid, "CT")
    np.testing.assert_allclose(np.reshape(found.points_px, (-1, 2)), outline_px, atol=1e-9)
    tilted = closed + np.array([[0, 0, 0], [0, 0, 4], [0, 0, -4], [0, 0, 0]])
    (apart,) = dicom_sr.read_dataset(spatial_report(closed + np.array([0, 0, 900.0])), images=images)
    assert isinstance(apart, Rejection)
    assert "do not lie on one slice" in apart.reason
    plane = plane_of_image(target)
    assert plane is not None
    np.testing.assert_allclose(np.abs(plane.to_px(tilted)[1]).max(), 4.0)
    (nowhere,) = dicom_sr.read_dataset(dataset, images=Lookup(slice_at(-35.0, frame_of_reference_uid="2.25.9")))
    assert isinstance(nowhere, Rejection)
    assert "no image" in nowhere.reason


def test_evidence_settles_which_series_is_meant() -> None:
    thick = slice_at(-35.0)
    thin = slice_at(-35.0, series_uid="2.25.22", sop_instance_uid="2.25.221", spacing_z_mm=1.0)
    points = np.array([(-110.0, -80, -35), (-100, -80, -35), (-100, -70, -35), (-110, -80, -35)])
    (found,) = dicom_sr.read_dataset(spatial_report(points), images=Lookup(thin, thick))
    assert isinstance(found, Bookmark)
    assert found.image_uid == thick.sop_instance_uid
