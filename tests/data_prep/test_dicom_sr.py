"""DICOM structured reports: foreign software's are read, ours are judged by software nobody here wrote."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from highdicom import sr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.readers import dicom_sr
from data_prep.writers.dicom_sr import derive_uid
from tests.data_prep.dicom_objects import encoded
from tests.data_prep.sr_objects import image, mark, read_back, report

if TYPE_CHECKING:
    from tests.conftest import Judges


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
    first = encoded(report(marks))
    time.sleep(0.01)
    assert encoded(report(marks)) == first


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


# --- who found it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "changes", "source"),
    [
        ({}, {}, "dicom-sr"),  # a device as observer, as of a workstation that names nobody
        ({"algorithm": ("detector", "1.0")}, {}, "detector"),
        ({"algorithm": ("caliper", "2"), "observer_name": "R1"}, {}, "dicom-sr"),  # a person with a tool
        ({}, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.65"}, "detector"),  # Chest CAD SR
    ],
)
def test_what_software_found_is_a_detection(options: dict[str, Any], changes: dict[str, str], source: str) -> None:
    dataset = report([mark("box", 1, 2, 30, 40, score=0.5), mark("text", text="nodule?")], **options)
    for name, value in changes.items():
        setattr(dataset, name, value)
    assert [found.source for found in dicom_sr.read_dataset(dataset) if isinstance(found, Bookmark)] == [source] * 2


def test_a_person_without_a_name_is_no_software() -> None:
    dataset = report([mark("box", 1, 2, 30, 40)], algorithm=("caliper", "2"), observer_name="R1")
    for item in dataset.ContentSequence:
        if item.ValueType == "PNAME":
            item.PersonName = ""
    (found,) = dicom_sr.read_dataset(dataset)
    assert isinstance(found, Bookmark)
    assert (found.source, found.observer) == ("dicom-sr", None)


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


def test_dciodvfy_finds_no_error(written: Path, judges: Judges) -> None:
    assert judges.dciodvfy(written, "ComprehensiveSR") == []


def test_dsrdump_reads_every_form(written: Path, judges: Judges) -> None:
    printed = judges.dsrdump(written)
    for words in ("Long axis", "Short axis", '"12.5" (mm', "Path length", "Area", '"87.5" (%', "CIRCLE", "ELLIPSE"):
        assert words in printed, words
    assert printed.count('<contains CONTAINER:(,,"Measurement Group")') == 9


def test_highdicom_reads_our_groups(written: Path) -> None:
    groups: Any = sr.srread(written).content
    assert len(groups.get_planar_roi_measurement_groups()) == 5
    assert len(groups.get_image_measurement_groups()) == 4
