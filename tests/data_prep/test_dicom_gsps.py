"""Presentation states of every kind: what becomes a mark, on which image. Files are made with pydicom by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from data_prep.bookmark import Bookmark
from data_prep.readers import Rejection, dicom_gsps
from tests.data_prep.dicom_objects import item
from tests.data_prep.gsps_objects import (
    SERIES_UID,
    STUDY_UID,
    annotation,
    compound,
    graphic,
    only,
    read,
    reference,
    state,
    words,
)

# --- real files ----------------------------------------------------------------------------------------------------


def test_shared_states_give_the_area_their_own_software_measured(shared_data: Path) -> None:
    found = 0
    for path in sorted((shared_data / "bookmarks" / "gsps").glob("*.pr.dcm")):
        assert dicom_gsps.recognise(path.read_bytes()[:4096], path)
        (mark,) = dicom_gsps.read(path)
        assert isinstance(mark, Bookmark)
        assert mark.form == "polygon"
        assert 34 <= len(mark.points) <= 63
        assert mark.spacing_x_mm is None
        assert mark.patient_id
        stated = re.search(r"A=(\d+)px", mark.text or "")
        assert stated is not None
        x, y = np.array(mark.points).T
        shoelace = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        assert shoelace == pytest.approx(float(stated[1]), rel=0.01)
        image = dcmread(path.with_name(path.name.replace(".pr", "")), stop_before_pixels=True)
        assert (mark.image_uid, mark.series_uid, mark.study_uid) == (
            image.SOPInstanceUID,
            image.SeriesInstanceUID,
            image.StudyInstanceUID,
        )
        found += 1
    assert found == 3


def test_shared_files_of_other_kinds_are_not_recognised(shared_data: Path) -> None:
    others = [p for p in (shared_data / "bookmarks").rglob("*") if p.is_file() and not p.name.endswith(".pr.dcm")]
    assert len(others) > 20
    assert not any(dicom_gsps.recognise(p.read_bytes()[:4096], p) for p in others)


# --- graphics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "points", "form", "expected"),
    [
        ("POLYLINE", [1, 2, 30, 4], "length", [1, 2, 30, 4]),
        ("POLYLINE", [1, 2, 30, 4, 5, 60], "polyline", [1, 2, 30, 4, 5, 60]),
        ("POLYLINE", [1, 2, 30, 4, 5, 60, 1.0005, 2], "polygon", [1, 2, 30, 4, 5, 60]),
        ("INTERPOLATED", [1, 2, 30, 4, 5, 60, 1, 2], "polygon", [1, 2, 30, 4, 5, 60]),
        ("CIRCLE", [10, 10, 15, 10], "circle", [10, 10, 15, 10]),
        ("POINT", [7.5, 8.5], "point", [7.5, 8.5]),
        ("ELLIPSE", [0, 10, 40, 10, 20, 0, 20, 20], "ellipse", [0, 10, 40, 10, 20, 0, 20, 20]),
        # left, right, top, bottom of an upright ellipse, as some viewers write it: the longer axis comes first here
        ("ELLIPSE", [0, 20, 20, 20, 10, 0, 10, 40], "ellipse", [10, 0, 10, 40, 0, 20, 20, 20]),
    ],
)
def test_graphic_types(tmp_path: Path, kind: str, points: Any, form: str, expected: list[float]) -> None:
    mark = only(state(annotation(graphics=[graphic(kind, points)])), tmp_path)
    assert mark.form == form
    assert mark.points_px == pytest.approx(expected, abs=1e-5)
    assert mark.source_frame == "declared"


def test_a_filled_open_line_is_an_outline(tmp_path: Path) -> None:
    shape = graphic("POLYLINE", [1, 2, 30, 4, 5, 60], GraphicFilled="Y")
    assert only(state(annotation(graphics=[shape])), tmp_path).form == "polygon"


@pytest.mark.parametrize(
    ("kind", "points", "expected"),
    [
        ("ARROW", [1, 2, 3, 4], [("arrow", (1, 2, 3, 4))]),
        ("RULER", [1, 2, 3, 4], [("length", (1, 2, 3, 4))]),
        ("RANGELINE", [1, 2, 3, 4], [("length", (1, 2, 3, 4))]),
        ("MULTILINE", [1, 2, 3, 4, 5, 6, 7, 9], [("length", (1, 2, 3, 4)), ("length", (5, 6, 7, 9))]),
        ("CROSSHAIR", [5, 6], [("point", (5, 6))]),
        ("RECTANGLE", [30, 40, 10, 20], [("box", (10, 20, 30, 40))]),
        ("ELLIPSE", [10, 20, 20, 60], [("ellipse", (15, 20, 15, 60, 10, 40, 20, 40))]),
    ],
)
def test_compound_graphics(tmp_path: Path, kind: str, points: Any, expected: list[Any]) -> None:
    marks = read(state(annotation(compounds=[compound(kind, points)])), tmp_path)
    assert [(m.form, m.points_px) for m in marks if isinstance(m, Bookmark)] == expected


@pytest.mark.parametrize("kind", ["INFINITELINE", "CUTLINE", "AXIS", "SOMETHING"])
def test_compound_graphics_that_measure_nothing_are_listed(tmp_path: Path, kind: str) -> None:
    (mark,) = read(state(annotation(compounds=[compound(kind, [1, 2, 3, 4])])), tmp_path)
    assert isinstance(mark, Rejection)
    assert kind in mark.reason
    assert mark.row == "2.25.1 annotation 1 compound graphic 1"


def test_the_plain_version_of_a_compound_graphic_is_not_a_second_mark(tmp_path: Path) -> None:
    plain = graphic("POLYLINE", [1, 2, 3, 4], CompoundGraphicInstanceID=7)
    made = annotation(compounds=[compound("ARROW", [1, 2, 3, 4], 7)], graphics=[plain])
    assert only(state(made), tmp_path).form == "arrow"


def test_the_plain_version_stands_in_for_a_compound_graphic_that_cannot_be_read(tmp_path: Path) -> None:
    plain = graphic("POLYLINE", [0, 5, 5, 0, 10, 5, 5, 10, 0, 5], CompoundGraphicInstanceID=7)
    turned = compound("RECTANGLE", [2, 2, 8, 8], 7, RotationAngle=45.0)
    assert only(state(annotation(compounds=[turned], graphics=[plain])), tmp_path).form == "polygon"
    (rejected,) = read(state(annotation(compounds=[turned])), tmp_path)
    assert isinstance(rejected, Rejection)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (graphic("POLYLINE", [0.1, 0.2, 0.3, 0.4], "MATRIX"), "MATRIX"),
        (graphic("POLYLINE", [0.1, 0.2, 0.3, 0.4], "DISPLAY"), "no displayed area"),
        (graphic("POLYLINE", [0.1, 0.2, 0.3, 0.4], "FURLONG"), "unknown units"),
        (graphic("POLYLINE", [1, 2, 3]), "pairs"),
        (graphic("POLYLINE", [1, 2]), "one point"),
        (graphic("POLYLINE", [1, 2, 1, 2]), "no length"),
        (graphic("POLYLINE", [1, 2, float("nan"), 4]), "finite"),
        (graphic("CIRCLE", [1, 2, 3, 4, 5, 6]), "CIRCLE with 3 points"),
        (item(GraphicAnnotationUnits="PIXEL", GraphicType="POINT"), "0 numbers"),
    ],
)
def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path: Path, shape: Dataset, reason: str) -> None:
    good = graphic("POINT", [1, 2])
    marks = read(state(annotation(graphics=[shape, good])), tmp_path)
    rejected = [m for m in marks if isinstance(m, Rejection)]
    assert len(marks) == 2
    assert len(rejected) == 1
    assert reason in rejected[0].reason
    assert "Canary" not in rejected[0].reason


def test_a_state_without_annotations_is_listed(tmp_path: Path) -> None:
    (mark,) = read(state(), tmp_path)
    assert isinstance(mark, Rejection)
    assert "without graphic annotations" in mark.reason


# --- display units: the oracle is an image array that NumPy turns and flips -------------------------------------------


@settings(deadline=None, max_examples=80, derandomize=True)
@given(data=st.data(), rotation=st.sampled_from([0, 90, 180, 270]), flip=st.booleans())
def test_display_units_with_every_rotation_and_flip(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, rotation: int, flip: bool
) -> None:
    rows, columns = data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9))
    left, top = data.draw(st.integers(0, columns - 1)), data.draw(st.integers(0, rows - 1))
    right, bottom = data.draw(st.integers(left + 1, columns)), data.draw(st.integers(top + 1, rows))
    x, y = data.draw(st.integers(left, right - 1)), data.draw(st.integers(top, bottom - 1))
    image = np.zeros((rows, columns))
    image[y, x] = 1
    shown = np.rot90(image[top:bottom, left:right], k=-rotation // 90)  # ImageRotation is clockwise
    shown = np.fliplr(shown) if flip else shown
    ((row, column),) = np.argwhere(shown)
    point = [(column + 0.5) / shown.shape[1], (row + 0.5) / shown.shape[0]]
    area = item(DisplayedAreaTopLeftHandCorner=[left + 1, top + 1], DisplayedAreaBottomRightHandCorner=[right, bottom])
    made = state(
        annotation(graphics=[graphic("POINT", point, "DISPLAY")]),
        ImageRotation=rotation,
        ImageHorizontalFlip="Y" if flip else "N",
        DisplayedAreaSelectionSequence=[area],
    )
    mark = only(made, tmp_path_factory.mktemp("state"))
    assert mark.points_px == pytest.approx((x + 0.5, y + 0.5), abs=1e-5)


def test_the_displayed_area_is_the_one_of_the_image(tmp_path: Path) -> None:
    images = [reference("2.25.21"), reference("2.25.22")]
    areas = [
        item(
            ReferencedImageSequence=[reference(uid)],
            DisplayedAreaTopLeftHandCorner=[1, 1],
            DisplayedAreaBottomRightHandCorner=[size, size],
        )
        for uid, size in (("2.25.21", 100), ("2.25.22", 200))
    ]
    made = state(
        annotation(graphics=[graphic("POINT", [0.5, 0.25], "DISPLAY")]),
        images=images,
        DisplayedAreaSelectionSequence=areas,
    )
    marks = [m for m in read(made, tmp_path) if isinstance(m, Bookmark)]
    assert [(m.image_uid, m.points_px) for m in marks] == [("2.25.21", (50, 25)), ("2.25.22", (100, 50))]


# --- which images ---------------------------------------------------------------------------------------------------


def test_an_annotation_without_its_own_references_is_on_every_image(tmp_path: Path) -> None:
    images = [reference("2.25.21"), reference("2.25.22")]
    everywhere = annotation(graphics=[graphic("POINT", [1, 2])])
    one = annotation(graphics=[graphic("POINT", [3, 4])], images=[reference("2.25.22")])
    marks = [m for m in read(state(everywhere, one, images=images), tmp_path) if isinstance(m, Bookmark)]
    assert [(m.image_uid, m.series_uid, m.points_px[0]) for m in marks] == [
        ("2.25.21", SERIES_UID, 1),
        ("2.25.22", SERIES_UID, 1),
        ("2.25.22", SERIES_UID, 3),
    ]
    assert len({m.bookmark_id for m in marks}) == 3


def test_one_bookmark_a_frame(tmp_path: Path) -> None:
    made = annotation(graphics=[graphic("POINT", [1, 2])], images=[reference(frames=[3, 5])])
    marks = read(state(made), tmp_path)
    assert [m.frame_number for m in marks if isinstance(m, Bookmark)] == [3, 5]


def test_facts_of_the_state(tmp_path: Path) -> None:
    made = state(
        annotation(graphics=[graphic("POINT", [1, 2])]),
        ContentCreatorName="Roe^Jane",
        PatientAge="006M",
        PatientSex="F",
        SoftcopyVOILUTSequence=[item(WindowCenter="40", WindowWidth="400")],
    )
    mark = only(made, tmp_path)
    assert (mark.observer, mark.patient_sex, mark.patient_age) == ("Roe^Jane", "F", 0.5)
    assert (mark.window_min_hu, mark.window_max_hu, mark.modality) == (-160, 240, "CT")
    assert mark.note == "layer LAYER"


@pytest.mark.parametrize("sop_class", sorted(dicom_gsps.SOP_CLASSES))
def test_grayscale_colour_pseudo_colour_and_blending(tmp_path: Path, sop_class: str) -> None:
    made = state(annotation(graphics=[graphic("POINT", [1, 2])]), sop_class=sop_class)
    if sop_class.endswith(".4"):  # a blending state references its images on two sides
        made.BlendingSequence = [
            item(StudyInstanceUID="2.25.99", ReferencedSeriesSequence=made.ReferencedSeriesSequence)
        ]
        del made.ReferencedSeriesSequence
    mark = only(made, tmp_path)
    assert mark.study_uid == ("2.25.99" if sop_class.endswith(".4") else STUDY_UID)


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "long_mm"),
    [
        ("23.4 mm", 23.4),
        ("L = 2,34 cm", 23.4),
        ("Length: 23.4mm\nMean 40 HU", 23.4),
        ("12 mm2", None),
        ("area 12 mm²", None),
        ("23.4 mm or 25 mm", None),
        ("A1.5mm", None),
    ],
)
def test_a_length_beside_its_line(tmp_path: Path, value: str, long_mm: float | None) -> None:
    made = annotation(graphics=[graphic("POLYLINE", [1, 2, 30, 4])], texts=[words(value, [300, 300])])
    mark = only(state(made), tmp_path)
    assert mark.text == value
    assert mark.stated_long_mm == (None if long_mm is None else pytest.approx(long_mm))


def test_texts_find_their_marks(tmp_path: Path) -> None:
    made = annotation(
        graphics=[
            graphic("POLYLINE", [10, 10, 30, 10]),
            graphic("POLYLINE", [200, 200, 240, 200]),
            graphic("POINT", [100, 100]),
            graphic("CIRCLE", [300, 300, 310, 300], GraphicGroupID=4),
        ],
        texts=[
            words("40 mm", [250, 230]),  # a length: to the nearest line, however far
            words("node", [105, 100]),  # near
            words("cyst", [0, 0], GraphicGroupID=4),  # the file says so
            words("R", [500, 20]),  # about nothing
        ],
    )
    marks = [m for m in read(state(made), tmp_path) if isinstance(m, Bookmark)]
    assert [(m.form, m.text) for m in marks] == [
        ("length", None),
        ("length", "40 mm"),
        ("point", "node"),
        ("circle", "cyst"),
        ("text", "R"),
    ]
    assert [m.stated_long_mm for m in marks] == [None, 40, None, None, None]


def test_a_text_with_a_box_alone_lies_in_its_middle(tmp_path: Path) -> None:
    box = item(
        UnformattedTextValue="nodule",
        BoundingBoxAnnotationUnits="DISPLAY",
        BoundingBoxTopLeftHandCorner=[0.5, 0.5],
        BoundingBoxBottomRightHandCorner=[0.7, 0.6],
    )
    area = item(DisplayedAreaTopLeftHandCorner=[1, 1], DisplayedAreaBottomRightHandCorner=[200, 100])
    mark = only(state(annotation(texts=[box]), DisplayedAreaSelectionSequence=[area]), tmp_path)
    assert mark.form == "text"
    assert mark.points_px == pytest.approx((120, 55), abs=1e-4)
    assert "no anchor" in (mark.note or "")


def test_an_empty_text_is_no_mark(tmp_path: Path) -> None:
    made = annotation(graphics=[graphic("POINT", [1, 2])], texts=[words(" ", [1, 2])])
    assert only(state(made), tmp_path).form == "point"


def test_two_lines_become_a_pair_only_where_the_file_says_so(tmp_path: Path) -> None:
    crossing = [[10, 10, 50, 10], [30, 0, 30, 20]]
    plain = [graphic("POLYLINE", p) for p in crossing]
    assert [m.form for m in read(state(annotation(graphics=plain)), tmp_path) if isinstance(m, Bookmark)] == [
        "length"
    ] * 2
    tracked = [graphic("POLYLINE", p, TrackingUID="2.25.5", TrackingID="T") for p in reversed(crossing)]
    mark = only(state(annotation(graphics=tracked)), tmp_path)
    assert (mark.form, mark.points_px, mark.tracking_uid) == (
        "bidirectional",
        (10, 10, 50, 10, 30, 0, 30, 20),
        "2.25.5",
    )
    grouped = [graphic("POLYLINE", p, GraphicGroupID=1) for p in crossing]
    assert only(state(annotation(graphics=grouped)), tmp_path).form == "bidirectional"
    apart = [graphic("POLYLINE", p, GraphicGroupID=1) for p in ([10, 10, 50, 10], [30, 30, 60, 50])]  # an angle, say
    assert len(read(state(annotation(graphics=apart)), tmp_path)) == 2
