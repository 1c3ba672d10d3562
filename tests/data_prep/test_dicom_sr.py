"""DICOM structured reports: foreign software's are read, ours are judged by software nobody here wrote."""

from __future__ import annotations

import datetime
import io
import logging
import random
import shutil
import struct
import subprocess
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from highdicom import sr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data_prep import frames
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError, UnreadableError
from data_prep.readers import Rejection, dicom_kind, dicom_sr
from data_prep.readers._sr_context import age_years
from data_prep.readers._sr_spatial import scoord3d_to_px
from data_prep.writers.dicom_sr import build_report, derive_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
CREATED = datetime.datetime(2020, 1, 2, 3, 4, 5)
CANARY = "Zyxwv^Canary"


def image(number: int = 1, **changes: object) -> Dataset:
    """A CT header."""
    header = Dataset()
    header.SOPClassUID = CT
    header.SOPInstanceUID = f"2.25.100{number}"
    header.StudyInstanceUID, header.SeriesInstanceUID = "2.25.1", "2.25.2"
    header.PatientID, header.PatientName, header.PatientSex = "P1", CANARY, "F"
    header.PatientBirthDate = header.AccessionNumber = header.StudyID = ""
    header.PatientAge = "061Y"
    header.StudyDate, header.StudyTime = "20200101", "120000"
    header.Modality = "CT"
    header.Rows, header.Columns = 512, 512
    header.PixelSpacing = [0.8, 0.5]  # 0.8 mm between rows, 0.5 mm between columns
    for name, value in changes.items():
        setattr(header, name, value)
    return header


def mark(form: str, *points: float, **fields: object) -> Bookmark:
    values = {"bookmark_id": "0123456789abcdef", "source": "csv", "image_uid": "2.25.1001", **fields}
    return Bookmark(form=form, points_px=tuple(points), **values)  # type: ignore[arg-type]


def report(marks: list[Bookmark], *images: Dataset, **options: object) -> Dataset:
    return build_report(
        marks,
        images or [image()],
        sop_instance_uid="2.25.10",
        series_instance_uid="2.25.11",
        created=CREATED,
        **options,  # type: ignore[arg-type]
    )


def saved(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read_bytes(data: bytes, folder: Path) -> list[Bookmark | Rejection]:
    path = folder / "report.dcm"
    path.write_bytes(data)
    return list(dicom_sr.read(path))


def read_back(dataset: Dataset) -> list[Bookmark]:
    found = list(dicom_sr.read_dataset(dcmread(io.BytesIO(saved(dataset)))))
    assert all(isinstance(item, Bookmark) for item in found), found
    return [item for item in found if isinstance(item, Bookmark)]


# --- files of other software ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "long_mm", "short_mm", "site"),
    [
        ("bidirectional_sr.dcm", "bidirectional", 28.27, 14.13, "10200004^SCT^liver"),
        ("dcmjs_bidirectional_sr.dcm", "bidirectional", 64.45, 42.97, None),
        ("ccc2017_length_sr.dcm", "length", 51.87, None, "T-87000^SRT^Ovary"),
    ],
)
def test_stated_diameters_of_foreign_reports(
    shared_data: Path, name: str, form: str, long_mm: float, short_mm: float | None, site: str | None
) -> None:
    path = shared_data / "bookmarks" / "sr" / name
    assert dicom_sr.recognise(path.read_bytes()[:4096], path)
    (found,) = dicom_sr.read(path)
    assert isinstance(found, Bookmark)
    assert found.form == form
    assert found.stated_long_mm == pytest.approx(long_mm, abs=0.01)
    assert found.stated_short_mm == (None if short_mm is None else pytest.approx(short_mm, abs=0.01))
    assert found.site == site
    assert found.modality == "CT"
    assert found.tracking_uid
    assert found.study_uid
    assert found.series_uid
    assert (found.note is not None) == name.startswith("dcmjs")
    if found.note:
        assert "`1`" in found.note


def test_a_circle_with_an_area(shared_data: Path) -> None:
    (found,) = dicom_sr.read(shared_data / "bookmarks" / "sr" / "highdicom_sr_document.dcm")
    assert isinstance(found, Bookmark)
    assert (found.form, found.points_px) == ("circle", (58.0, 52.0, 58.0, 41.0))
    assert found.finding_code == "T-A7010^SRT^Spinal cord"
    assert found.stated_long_mm is None  # 1.7 cm2 is no length


def test_every_tool_of_one_report(shared_data: Path) -> None:
    found = list(dicom_sr.read(shared_data / "bookmarks" / "sr" / "dcmjs_many_tools_sr.dcm"))
    assert [item.form for item in found if isinstance(item, Bookmark)] == [
        "point", "ellipse", "bidirectional", "length", "length", "ellipse",
    ]  # fmt: skip
    first, _, pair, *_ = found
    assert isinstance(first, Bookmark)
    assert first.text == "ExampleText"
    assert isinstance(pair, Bookmark)
    assert (pair.stated_long_mm, pair.stated_short_mm) == (93.9, 47.0)


def test_ten_reports_of_two_observers(shared_data: Path) -> None:
    folder = shared_data / "bookmarks" / "aim_xml_and_sr" / "annotations"
    found = [next(dicom_sr.read(path)) for path in sorted(folder.glob("*.dcm"))]
    marks = [item for item in found if isinstance(item, Bookmark)]
    assert len(marks) == 10
    assert {item.form for item in marks} == {"length"}
    assert [item.observer for item in marks] == ["A", "B"] * 5
    assert [item.text for item in marks[::2]] == ["0022", "0023", "0024", "0025", "0028"]
    assert marks[0].points_px == (143.0, 300.0, 92.0, 326.0)
    assert marks[0].stated_long_mm == pytest.approx(39.579597)
    assert {item.frame_number for item in marks} == {1}  # AIM's frame 0
    assert len({item.image_uid for item in marks}) == 5
    assert len({item.bookmark_id for item in marks}) == 10


# --- round trip ----------------------------------------------------------------------------------------------------

_coordinate = st.integers(0, 511_999).map(lambda value: value / 1000)  # float64: most are no float32


@st.composite
def _marks(draw: st.DrawFn) -> Bookmark:
    form = draw(
        st.sampled_from(["bidirectional", "length", "circle", "ellipse", "polygon", "polyline", "point", "box"])
    )
    count = {"bidirectional": 4, "length": 2, "circle": 2, "ellipse": 4, "point": 1}.get(form)
    if form == "box":
        x, y = (sorted(draw(st.lists(_coordinate, min_size=2, max_size=2, unique=True))) for _ in range(2))
        return mark(form, x[0], y[0], x[1], y[1], score=draw(st.floats(0, 1)))
    size = count or draw(st.integers(3 if form == "polygon" else 2, 12))
    xs = draw(st.lists(_coordinate, min_size=size, max_size=size, unique=True))
    ys = draw(st.lists(_coordinate, min_size=size, max_size=size, unique=True))
    points = [value for pair in zip(xs, ys, strict=True) for value in pair]
    text = draw(st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1))
    return mark(form, *points, text=text, laterality=None)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(_marks(), min_size=1, max_size=4))
def test_written_marks_are_read_back(marks: list[Bookmark]) -> None:
    found = {item.tracking_uid: item for item in read_back(report(marks))}
    assert len(found) == len(marks)
    for number, original in enumerate(marks):
        item = found[derive_uid("tracking", "2.25.10", number)]
        assert (item.form, item.text) == (original.form, original.text)
        assert item.score == (None if original.score is None else pytest.approx(original.score))
        np.testing.assert_allclose(item.points_px, original.points_px, rtol=0, atol=2e-5)


def test_fields_are_read_back() -> None:
    original = mark(
        "bidirectional", 10.1, 20.2, 50.3, 60.4, 20.5, 50.6, 40.7, 30.8,
        text="größer 大 \\ sein", finding_code="52988006^SCT^Lesion", site="10200004^SCT^Liver", laterality="Left",
        tracking_uid="2.25.77", stated_long_mm=12.3456789012345, stated_short_mm=6.5, observer="Reader 7",
    )  # fmt: skip
    (found,) = read_back(report([original]))
    assert found == replace(
        original,
        source="dicom-sr",
        bookmark_id=found.bookmark_id,
        points_px=found.points_px,
        study_uid="2.25.1",
        series_uid="2.25.2",
        patient_id="P1",
        patient_sex="F",
        patient_age=61.0,
        modality="CT",
    )
    assert found.frame_number is None


def test_other_forms_become_what_the_format_has() -> None:
    marks = [
        mark("arrow", 1, 2, 30, 40, text="look"),
        mark("text", 5, 6, text="here"),
        mark("text", text="about the image"),
        mark("segmentation", 1, 1, 9, 1, 5, 8),
    ]
    found = read_back(report(marks))
    assert [(item.form, item.points_px, item.text) for item in found] == [
        ("point", (30.0, 40.0), "look"),
        ("point", (5.0, 6.0), "here"),
        ("polygon", (1.0, 1.0, 9.0, 1.0, 5.0, 8.0), None),
        ("text", (), "about the image"),
    ]


def test_lengths_come_from_the_images_own_spacing() -> None:
    dataset = report([mark("length", 10, 10, 40, 50)])
    (found,) = read_back(dataset)
    assert found.stated_long_mm == pytest.approx(np.hypot(30 * 0.5, 40 * 0.8))  # x by columns, y by rows
    (unknown,) = read_back(report([mark("length", 10, 10, 40, 50)], image(PixelSpacing=None)))
    assert unknown.stated_long_mm is None
    assert "pixels" in (unknown.note or "")


def test_site_in_words_and_two_observers() -> None:
    marks = [
        mark("length", 1, 1, 5, 5, site="behind the spleen", observer="A"),
        mark("length", 1, 1, 5, 5, observer="B"),
    ]
    found = read_back(report(marks))
    assert [item.observer for item in found] == ["A", "B"]
    assert found[0].site == "behind the spleen"
    assert [item.observer for item in read_back(report(marks, observer_name="C"))] == ["C", "C"]


def test_an_outline_longer_than_an_explicit_element_holds() -> None:
    angle = np.linspace(0, 2 * np.pi, 9000, endpoint=False)
    outline = np.stack([250 + 200 * np.cos(angle), 250 + 200 * np.sin(angle)], axis=-1).astype(np.float32)
    (found,) = read_back(report([mark("polygon", *map(float, outline.ravel()))]))
    np.testing.assert_array_equal(np.reshape(found.points_px, (-1, 2)), outline)


def test_frames_of_a_multi_frame_image() -> None:
    enhanced = image(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=7)
    (found,) = read_back(report([mark("length", 1, 1, 5, 5, frame_number=3)], enhanced))
    assert found.frame_number == 3


def test_same_input_same_bytes() -> None:
    marks = [mark("length", 1, 1, 5, 5), mark("circle", 9, 9, 12, 9)]
    first = saved(report(marks))
    time.sleep(0.01)
    assert saved(report(marks)) == first


def test_names_stay_out_of_messages(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        dataset = report([mark("length", 1, 1, 5, 5)], image(PatientName="Zyxwv"))
        read_back(dataset)
    assert dataset.PatientName == "Zyxwv"
    said = " ".join([caplog.text, *capsys.readouterr(), *(str(item.message) for item in caught)])
    assert "Zyxwv" not in said


@pytest.mark.parametrize(
    ("marks", "images", "message"),
    [
        ([], [image()], "at least one bookmark"),
        ([mark("point", 1, 1, image_uid="2.25.999")], [image()], "not among the evidence"),
        ([mark("point", 1, 1)], [image(SeriesInstanceUID="")], "SeriesInstanceUID is empty"),
        (
            [mark("point", 1, 1), mark("point", 1, 1, image_uid="2.25.1002")],
            [image(), image(2, PatientID="P2")],
            "differ in PatientID",
        ),
    ],
)
def test_what_cannot_be_written(marks: list[Bookmark], images: list[Dataset], message: str) -> None:
    with pytest.raises(DataPrepError, match=message):
        report(marks, *images)


# --- judges --------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    marks = [
        mark("bidirectional", 10, 20, 50, 60, 20, 50, 40, 30, text="größer", site="liver", finding_code="a^99X^b c"),
        mark("length", 1, 2, 30, 40, stated_long_mm=12.5),
        mark("circle", 99, 99, 109, 99),
        mark("ellipse", 10, 10, 30, 10, 20, 5, 20, 15),
        mark("polygon", 1, 1, 10, 1, 5, 20),
        mark("polyline", 1, 1, 10, 1, 5, 20),
        mark("arrow", 1, 1, 10, 1),
        mark("text", text="words"),
        mark("box", 1.5, 2.5, 10, 20, score=0.875, observer="R1"),
    ]
    path = tmp_path / "written.dcm"
    report(marks, image(PatientName="Doe^Jane"), algorithm=("detector", "1.0")).save_as(path, enforce_file_format=True)
    return path


def test_dciodvfy_finds_no_error(written: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    result = subprocess.run(["dciodvfy", str(written)], capture_output=True, text=True, timeout=60, check=False)
    assert "ComprehensiveSR" in result.stderr + result.stdout
    assert "Error" not in result.stderr + result.stdout


def test_dsrdump_reads_every_measurement(written: Path) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump (Debian package dcmtk) is not installed")
    result = subprocess.run(["dsrdump", "+Pl", str(written)], capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    printed = result.stdout.decode("utf-8", "replace")
    for words in ("Long axis", "Short axis", '"12.5" (mm', "Path length", "Area", '"87.5" (%', "CIRCLE", "ELLIPSE"):
        assert words in printed, words
    assert printed.count('<contains CONTAINER:(,,"Measurement Group")') == 9


def test_highdicom_reads_our_groups(written: Path) -> None:
    groups: Any = sr.srread(written).content
    assert len(groups.get_planar_roi_measurement_groups()) == 5
    assert len(groups.get_image_measurement_groups()) == 4


# --- other shapes of report ----------------------------------------------------------------------------------------


def content(
    value_type: str, relationship: str = "CONTAINS", concept: str = "", children: object = (), **more: object
) -> Dataset:
    """A content item by hand; ``concept`` is ``value^scheme^meaning``."""
    item = Dataset()
    item.ValueType, item.RelationshipType = value_type, relationship
    if concept:
        item.ConceptNameCodeSequence = [code(concept)]
    for name, value in more.items():
        setattr(item, name, value)
    if children:
        item.ContentSequence = list(children)  # type: ignore[call-overload]
    return item


def code(stated: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = stated.split("^")
    return item


def on_image(uid: str = "2.25.1001") -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CT, uid
    return content("IMAGE", "SELECTED FROM", ReferencedSOPSequence=[reference])


def scoord(kind: str, *points: float, children: object = None, **more: Any) -> Dataset:
    below = [on_image()] if children is None else children
    return content("SCOORD", "INFERRED FROM", children=below, GraphicType=kind, GraphicData=list(points), **more)


def num(concept: str, value: object, unit: str, *children: Dataset) -> Dataset:
    measured = Dataset()
    measured.NumericValue = value
    measured.MeasurementUnitsCodeSequence = [code(f"{unit}^UCUM^{unit}")]
    return content("NUM", concept=concept, children=children, MeasuredValueSequence=[measured])


def document(*children: Dataset) -> Dataset:
    root = content("CONTAINER", concept="121111^DCM^Summary", children=children)
    root.SOPClassUID, root.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", "2.25.5"
    return root


def read_document(*children: Dataset) -> list[Bookmark | Rejection]:
    return list(dicom_sr.read_dataset(document(*children)))


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


# --- patient space -------------------------------------------------------------------------------------------------


def slice_at(z_mm: float, **changes: object) -> SimpleNamespace:
    facts = {
        "sop_instance_uid": f"2.25.{int(z_mm) + 5000}", "sop_class_uid": CT, "series_uid": "2.25.2",
        "frame_number": 1, "frame_count": 1, "frame_of_reference_uid": "2.25.3",
        "position_lps_mm": (-120.0, -90.0, z_mm), "orientation": (1, 0, 0, 0, 1, 0),
        "spacing_x_mm": 0.5, "spacing_y_mm": 0.8, "spacing_z_mm": 5.0,
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
    np.testing.assert_allclose(scoord3d_to_px(tilted, target)[1], 4.0)
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


# --- damage --------------------------------------------------------------------------------------------------------


def damaged(original: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Truncations, bit flips, overwritten bytes, wrong VRs and absurd lengths."""
    chance = random.Random(seed)
    for number in range(count):
        data = bytearray(original)
        kind = number % 5
        if kind == 0:
            del data[chance.randrange(140, len(data)) :]
        elif kind == 1:
            for _ in range(chance.randrange(1, 30)):
                data[chance.randrange(128, len(data))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            start = chance.randrange(128, len(data) - 8)
            data[start : start + 8] = chance.randbytes(8)
        elif kind == 3:
            vrs = [
                i for i in range(140, len(data) - 4) if bytes(data[i : i + 2]) in (b"CS", b"SQ", b"FL", b"DS", b"UI")
            ]
            for place in chance.sample(vrs, min(4, len(vrs))):
                data[place : place + 2] = chance.choice([b"UN", b"SQ", b"FL", b"US", b"PN", b"ZZ"])
        else:
            place = chance.randrange(140, len(data) - 4)
            data[place : place + 4] = struct.pack("<I", chance.choice([0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF]))
        yield bytes(data)


def survives(data: bytes, folder: Path) -> None:
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = read_bytes(data, folder)
        except UnreadableError:
            found = [Rejection("", "", "unreadable")]
    assert found
    assert time.process_time() - began < 10


def test_damaged_reports_of_ours(tmp_path: Path) -> None:
    marks = [mark("bidirectional", 10, 20, 50, 60, 20, 50, 40, 30, text="x"), mark("circle", 9, 9, 12, 9)]
    for data in damaged(saved(report(marks)), 40, seed=1):
        survives(data, tmp_path)


def test_damaged_reports_of_others(shared_data: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((shared_data / "bookmarks").glob("sr/*.dcm"))):
        for data in damaged(path.read_bytes(), 10, seed=number):
            survives(data, tmp_path)


@pytest.mark.parametrize("depth", [200, 5000])
def test_deep_nesting(tmp_path: Path, depth: int) -> None:
    header = saved(report([mark("point", 1, 1)]))[:400]
    meta = header[: 144 + int.from_bytes(header[140:144], "little")]
    level = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    close = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    data = meta + level * depth + close * depth
    try:
        (found,) = read_bytes(data, tmp_path)
    except UnreadableError as error:
        assert "nested" in str(error)  # noqa: PT017 - either way of saying so is right
    else:
        assert isinstance(found, Rejection)
        assert "nested deeper" in found.reason


def test_too_many_items_and_an_absurd_length(tmp_path: Path) -> None:
    data = saved(report([mark("point", 1, 1)]))
    with pytest.raises(UnreadableError, match="sequence items"):
        read_bytes(data + b"\xfe\xff\x00\xe0\0\0\0\0" * (dicom_kind.MAX_ITEMS + 1), tmp_path)
    path = tmp_path / "large.dcm"
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="larger than"):
        dicom_kind.load_dataset(path, max_bytes=1024 * 2 if len(data) > 2048 else len(data) - 1)


def test_many_marks_in_one_container_take_linear_time() -> None:
    items = [content("TEXT", concept="121106^DCM^Comment", TextValue="x") for _ in range(1500)]
    shapes = [scoord("POINT", i, 1) for i in range(700)]
    began = time.process_time()
    found = read_document(content("CONTAINER", concept="125007^DCM^Measurement Group", children=[*items, *shapes]))
    assert len(found) == 700
    assert time.process_time() - began < 10


def test_a_deflated_report_and_a_deflate_bomb(tmp_path: Path) -> None:
    dataset = report([mark("length", 1, 2, 30, 40)])
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    data = saved(dataset)
    (found,) = read_bytes(data, tmp_path)
    assert isinstance(found, Bookmark)
    assert found.points_px == (1.0, 2.0, 30.0, 40.0)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(bytes(100 * 2**20)) + packer.flush()  # 100 MiB in 100 KiB
    start = 144 + int.from_bytes(data[140:144], "little")
    survives(data[:start] + bomb, tmp_path)


# --- what kind of file ---------------------------------------------------------------------------------------------


def test_sop_class_of_every_sort_of_file(tmp_path: Path) -> None:
    dataset = report([mark("point", 1, 1)])
    path = tmp_path / "no-suffix"
    path.write_bytes(saved(dataset))
    assert dicom_kind.sop_class_uid(path) == "1.2.840.10008.5.1.4.1.1.88.33"
    assert dicom_sr.recognise(path.read_bytes()[:4096], path)
    del dataset.file_meta.MediaStorageSOPClassUID
    dataset.save_as(path, enforce_file_format=False)
    assert dicom_kind.sop_class_uid(path) == "1.2.840.10008.5.1.4.1.1.88.33"  # from the data set
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[144 + int.from_bytes(path.read_bytes()[140:144], "little") :])
    assert dicom_kind.sop_class_uid(bare) == "1.2.840.10008.5.1.4.1.1.88.33"  # no preamble, no file meta
    assert isinstance(next(dicom_sr.read(bare)), Bookmark)
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM at all")
    assert dicom_kind.sop_class_uid(text) is None
    assert not dicom_sr.recognise(b"no DICOM", text)
    assert dicom_kind.sop_class_uid(tmp_path / "missing") is None
    assert dicom_kind.sop_class_uid(tmp_path) is None
    with pytest.raises(UnreadableError, match="not a DICOM file"):
        next(dicom_sr.read(text))
