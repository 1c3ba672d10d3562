"""Writing presentation states: read back by our reader, judged by dciodvfy and dcmpschk, and damaged in every way."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.readers import dicom_gsps
from data_prep.writers.dicom_gsps import build_presentation_state
from tests.data_prep.damage import beginnings_and_overwritten
from tests.data_prep.dicom_objects import item
from tests.data_prep.gsps_objects import CT, IMAGE_UID, SERIES_UID, STUDY_UID
from tests.data_prep.tolerance import assert_tolerant

if TYPE_CHECKING:
    from tests.conftest import Judges

CREATED = datetime.datetime(2020, 1, 2, 3, 4, 5)


def ct_image(uid: str = IMAGE_UID, rows: int = 512, columns: int = 512) -> Dataset:
    return item(
        SOPClassUID=CT,
        SOPInstanceUID=uid,
        SeriesInstanceUID=SERIES_UID,
        StudyInstanceUID=STUDY_UID,
        PatientID="P1",
        PatientName="Müller^Jörg",
        Modality="CT",
        Rows=rows,
        Columns=columns,
        SamplesPerPixel=1,
        RescaleSlope="1",
        RescaleIntercept="-1024",
        WindowCenter="40",
        WindowWidth="400",
        SpecificCharacterSet="ISO_IR 100",
    )


def bookmark(form: str, points: Any, **more: Any) -> Bookmark:
    facts: Any = {"bookmark_id": "b1", "source": "csv", "image_uid": IMAGE_UID, **more}
    return Bookmark(form=form, points_px=tuple(map(float, points)), **facts)


def write(marks: list[Bookmark], images: list[Dataset], path: Path, **more: Any) -> Path:
    uids: Any = {"sop_instance_uid": "2.25.31", "series_instance_uid": "2.25.32"}
    made = build_presentation_state(marks, images, **uids, created=CREATED, **more)
    made.save_as(path, enforce_file_format=True)
    return path


ONE_OF_EACH = [
    bookmark("bidirectional", (100, 100, 160, 102, 130, 85, 131, 120), stated_long_mm=28.27, stated_short_mm=14.13),
    bookmark("length", (10, 20, 60, 70), stated_long_mm=51.87, tracking_uid="2.25.7", text="lésion"),
    bookmark("ellipse", (10, 10, 60, 10, 35, 0, 35, 20)),
    bookmark("circle", (50, 50, 60, 50)),
    bookmark("polygon", (1, 1, 50, 1, 50, 50)),
    bookmark("polyline", (1, 1, 50, 1, 50, 50)),
    bookmark("arrow", (1, 1, 50, 50), text="here"),
    bookmark("point", (1, 1)),
    bookmark("text", (3, 4), text="hello"),
    bookmark("box", (3, 4, 10, 11)),
]

inside = st.floats(0, 512, width=32)
lengths_mm = st.none() | st.floats(0.1, 999).map(lambda v: round(v, 4))
COUNTS = {"bidirectional": 4, "length": 2, "ellipse": 4, "circle": 2, "arrow": 2, "point": 1, "box": 2}


@st.composite
def marks(draw: st.DrawFn) -> Bookmark:
    form = draw(st.sampled_from([*COUNTS, "polygon", "polyline"]))
    count = COUNTS.get(form) or draw(st.integers(3, 12))
    points = np.array(draw(st.lists(st.tuples(inside, inside), min_size=count, max_size=count, unique=True)))
    if form in ("bidirectional", "ellipse") and np.hypot(*(points[1] - points[0])) < np.hypot(*(points[3] - points[2])):
        points = points[[2, 3, 0, 1]]
    if form == "box":
        points = np.stack([np.minimum(*points), np.maximum(*points) + 1e-3]).clip(0, 512)
        points[0] = np.minimum(points[0], points[1] - 1e-3)
    if form in ("polygon", "polyline") and np.hypot(*(points[0] - points[-1])) < 1:
        points[0] = points[-1] - 2 if points[-1].min() > 4 else points[-1] + 2
    stated = form in ("bidirectional", "length", "polygon")
    long_mm = draw(lengths_mm) if stated else None
    short_mm = draw(lengths_mm) if form == "bidirectional" and long_mm is not None else None
    tracking = draw(st.none() | st.integers(1, 10**9).map(lambda n: f"2.25.{n}"))
    return bookmark(form, points.reshape(-1), stated_long_mm=long_mm, stated_short_mm=short_mm, tracking_uid=tracking)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(drawn=st.lists(marks(), min_size=1, max_size=6))
def test_written_marks_read_back(tmp_path_factory: pytest.TempPathFactory, drawn: list[Bookmark]) -> None:
    path = write(drawn, [ct_image()], tmp_path_factory.mktemp("pr") / "pr.dcm")
    back = list(dicom_gsps.read(path))
    assert len(back) == len(drawn)
    for before, after in zip(drawn, back, strict=True):
        assert isinstance(after, Bookmark), after
        assert after.form == before.form
        assert after.points_px == pytest.approx(before.points_px, abs=1e-4)  # float32 in the file
        assert after.stated_long_mm == before.stated_long_mm
        assert after.stated_short_mm == before.stated_short_mm
        assert after.tracking_uid == before.tracking_uid
        assert (after.image_uid, after.series_uid, after.study_uid) == (IMAGE_UID, SERIES_UID, STUDY_UID)


def test_one_of_each_form(tmp_path: Path) -> None:
    back = list(dicom_gsps.read(write(ONE_OF_EACH, [ct_image()], tmp_path / "pr.dcm", creator_name="Roe^Jane")))
    assert [m.form for m in back if isinstance(m, Bookmark)] == [m.form for m in ONE_OF_EACH]
    assert {m.observer for m in back if isinstance(m, Bookmark)} == {"Roe^Jane"}
    length = back[1]
    assert isinstance(length, Bookmark)
    assert length.text == "lésion\nLong axis 51.87 mm"
    assert dcmread(tmp_path / "pr.dcm").PatientName == "Müller^Jörg"


def test_several_images_and_frames(tmp_path: Path) -> None:
    second = ct_image("2.25.41")
    pair = [bookmark("point", (1, 2)), bookmark("point", (3, 4), image_uid="2.25.41")]
    back = [
        m for m in dicom_gsps.read(write(pair, [ct_image(), second], tmp_path / "pr.dcm")) if isinstance(m, Bookmark)
    ]
    assert [(m.image_uid, m.points_px) for m in back] == [(IMAGE_UID, (1, 2)), ("2.25.41", (3, 4))]


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    first = write(ONE_OF_EACH, [ct_image()], tmp_path / "1").read_bytes()
    time.sleep(0.01)
    assert write(ONE_OF_EACH, [ct_image()], tmp_path / "2").read_bytes() == first
    today = datetime.datetime.now().strftime("%Y%m%d").encode()
    assert today not in first


def test_long_texts_are_cut_but_never_the_measurement(tmp_path: Path) -> None:
    mark = bookmark("length", (1, 2, 3, 4), text="é" * 2000, stated_long_mm=12.5)
    back = next(iter(dicom_gsps.read(write([mark], [ct_image()], tmp_path / "pr.dcm"))))
    assert isinstance(back, Bookmark)
    assert back.stated_long_mm == 12.5
    assert len((back.text or "").encode()) <= 1024


@pytest.mark.parametrize(
    ("wrong", "images", "message"),
    [
        ([], [ct_image()], "no bookmark"),
        ([bookmark("point", (1, 2), image_uid="2.25.404")], [ct_image()], "2.25.404"),
        ([bookmark("point", (-1, 2))], [ct_image()], "outside its image"),
        ([bookmark("point", (1, 513))], [ct_image()], "outside its image"),
        ([bookmark("text", (), text="x")], [ct_image()], "without a place"),
        (
            [bookmark("point", (1, 2)), bookmark("point", (1, 2), image_uid="2.25.41")],
            [ct_image(), ct_image("2.25.41", rows=256)],
            "same dimensions",
        ),
    ],
)
def test_what_cannot_be_written_is_said(wrong: Any, images: Any, message: str) -> None:
    with pytest.raises(DataPrepError, match=message):
        build_presentation_state(
            wrong, images, sop_instance_uid="2.25.1", series_instance_uid="2.25.2", created=CREATED
        )


def test_dciodvfy_finds_no_error(tmp_path: Path, judges: Judges) -> None:
    path = write(ONE_OF_EACH, [ct_image()], tmp_path / "pr.dcm")
    assert judges.dciodvfy(path, "GrayscaleSoftcopyPresentationState") == []


def test_dcmpschk_passes(tmp_path: Path, judges: Judges) -> None:
    assert judges.dcmpschk(write(ONE_OF_EACH, [ct_image()], tmp_path / "pr.dcm")) == []


def test_real_image_as_evidence(tmp_path: Path, shared_data: Path) -> None:
    image = dcmread(shared_data / "bookmarks" / "aim_xml_and_sr" / "images" / "0022Baseline.dcm")
    marks_ = [bookmark("length", (143, 300, 92, 326), image_uid=str(image.SOPInstanceUID))]
    (back,) = dicom_gsps.read(write(marks_, [image], tmp_path / "pr.dcm"))
    assert isinstance(back, Bookmark)
    assert back.points_px == (143, 300, 92, 326)
    assert back.patient_id == image.PatientID


# --- damage ----------------------------------------------------------------------------------------------------------


def test_damaged_files_give_a_reason_and_no_crash(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    data = write(ONE_OF_EACH, [ct_image()], tmp_path / "pr.dcm").read_bytes()
    contents = beginnings_and_overwritten(data, 80, lambda chance: chance.choice([0, 0xFF, chance.randrange(256)]))
    assert_tolerant(dicom_gsps, contents, tmp_path / "damaged", secret="Jörg")
    assert not list(recwarn)  # pydicom's warnings quote values, names among them
