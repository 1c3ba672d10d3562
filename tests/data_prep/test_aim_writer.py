"""Writing AIM 4 XML: read back by our reader, wrong arguments, and damage."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.readers import aim_xml
from data_prep.writers.aim_xml import build_annotations
from tests.data_prep.aim_objects import IMAGE_UID, damaged, only, read_xml
from tests.data_prep.dicom_objects import item
from tests.data_prep.tolerance import assert_tolerant

CREATED = datetime.datetime(2020, 1, 2, 3, 4, 5)


def ct_image(uid: str = IMAGE_UID, **more: Any) -> Dataset:
    facts = {
        "SOPInstanceUID": uid,
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "SeriesInstanceUID": "2.25.12",
        "StudyInstanceUID": "2.25.13",
        "StudyDate": "20190203",
        "PatientID": "P1",
        "PatientName": "Müller^Jörg",
        "PatientSex": "M",
        "Modality": "CT",
    }
    return item(**{**facts, **more})


def bookmark(form: str, points: Any, **more: Any) -> Bookmark:
    facts: Any = {"bookmark_id": "b1", "source": "csv", "image_uid": IMAGE_UID, **more}
    return Bookmark(form=form, points_px=tuple(map(float, points)), **facts)


finite = st.floats(-1e4, 1e4)
COUNTS = {"bidirectional": 4, "length": 2, "ellipse": 4, "circle": 2, "arrow": 2, "point": 1, "box": 2, "text": 1}


@st.composite
def marks(draw: st.DrawFn) -> Bookmark:
    form = draw(st.sampled_from([*COUNTS, "polygon", "polyline"]))
    count = COUNTS.get(form) or draw(st.integers(3, 12))
    points = np.array(draw(st.lists(st.tuples(finite, finite), min_size=count, max_size=count, unique=True)))
    if form == "ellipse" and np.hypot(*(points[1] - points[0])) < np.hypot(*(points[3] - points[2])):
        points = points[[2, 3, 0, 1]]
    if form == "box":
        points = np.stack([np.minimum(*points), np.maximum(*points) + 1])
    if form in ("polygon", "polyline") and np.hypot(*(points[0] - points[-1])) < 1:
        points[0] = points[-1] + 2
    positive = st.none() | st.floats(0.001, 1e4)
    words = st.text(max_size=40).map(str.strip)
    return bookmark(
        form,
        points.reshape(-1),
        stated_long_mm=None if form == "text" else draw(positive),
        stated_short_mm=draw(positive) if form in ("bidirectional", "polygon") else None,
        tracking_uid=draw(st.none() | st.integers(1, 10**9).map(lambda n: f"2.25.{n}")),
        text=draw(words) or ("x" if form == "text" else None),
        site=draw(st.sampled_from([None, "liver", "10200004^SCT^Liver"])),
        laterality=draw(st.sampled_from([None, "24028007^SCT^Right"])),
        finding_code=draw(st.sampled_from([None, "52988006^SCT^Lesion"])),
        frame_number=draw(st.integers(1, 99)),
        bookmark_id=f"b{draw(st.integers(0, 10**9))}",
    )


@settings(deadline=None, max_examples=60, derandomize=True)
@given(drawn=st.lists(marks(), min_size=1, max_size=5))
def test_written_marks_read_back(tmp_path_factory: pytest.TempPathFactory, drawn: list[Bookmark]) -> None:
    document = build_annotations(drawn, [ct_image()], created=CREATED, uid="2.25.9", observer_name="Roe")
    back = read_xml(document, tmp_path_factory.mktemp("aim"))
    assert len(back) == len(drawn)
    for before, after in zip(drawn, back, strict=True):
        assert isinstance(after, Bookmark), after
        for name in ("points_px", "form", "stated_long_mm", "stated_short_mm", "tracking_uid", "site", "laterality"):
            assert getattr(after, name) == getattr(before, name), name
        assert (after.finding_code, after.frame_number) == (before.finding_code, before.frame_number)
        assert (after.image_uid, after.series_uid, after.study_uid) == (IMAGE_UID, "2.25.12", "2.25.13")
        assert (after.observer, after.patient_id, after.modality) == ("Roe", "P1", "CT")


def test_written_text_survives(tmp_path: Path) -> None:
    mark = bookmark("length", (1, 2, 3, 4), text='größer <als> "5" & \x00\x1f 𝛼')
    document = build_annotations([mark], [ct_image()], created=CREATED, uid="2.25.9")
    assert only(read_xml(document, tmp_path)).text == 'größer <als> "5" &  𝛼'
    assert fromstring(document).tag.endswith("ImageAnnotationCollection")


def test_same_arguments_same_bytes() -> None:
    one = [bookmark("length", (1, 2, 3, 4), text="x", observer="A")]
    first = build_annotations(one, [ct_image()], created=CREATED, uid="2.25.9")
    assert build_annotations(one, [ct_image()], created=CREATED, uid="2.25.9") == first
    assert b"20200102030405" in first
    assert b'<name value="A" />' in first


@pytest.mark.parametrize(
    ("wrong", "images", "message"),
    [
        ([], [ct_image()], "no bookmark"),
        ([bookmark("point", (1, 2), image_uid="2.25.404")], [ct_image()], "2.25.404"),
        ([bookmark("point", (1, 2), image_uid=None)], [ct_image()], "None"),
        ([bookmark("text", (), text="x")], [ct_image()], "without words or place"),
        (
            [bookmark("point", (1, 2), observer="A"), bookmark("point", (1, 2), observer="B")],
            [ct_image()],
            "one observer",
        ),
        (
            [bookmark("point", (1, 2)), bookmark("point", (1, 2), image_uid="2.25.41")],
            [ct_image(), ct_image("2.25.41", PatientID="P2")],
            "one patient",
        ),
    ],
)
def test_what_cannot_be_written_is_said(wrong: Any, images: Any, message: str) -> None:
    with pytest.raises(DataPrepError, match=message) as caught:
        build_annotations(wrong, images, created=CREATED, uid="2.25.9")
    assert "Jörg" not in str(caught.value)


def test_damaged_xml_gives_a_reason_and_no_crash(tmp_path: Path) -> None:
    document = build_annotations(
        [bookmark("bidirectional", (0, 5, 20, 5, 9, 0, 9, 9), stated_long_mm=1.0, text="x" * 20)],
        [ct_image()],
        created=CREATED,
        uid="2.25.9",
    )
    assert_tolerant(aim_xml, damaged(document), tmp_path / "aim", secret="Jörg")
