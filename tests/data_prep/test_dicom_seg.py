"""Segmentations we write: measured again, judged by other software, read back."""

from __future__ import annotations

import csv
import datetime
import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import highdicom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from data_prep import frames, recist
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError
from data_prep.frames import Array
from data_prep.readers import dicom_seg
from data_prep.writers.dicom_seg import build_segmentation, mask_of
from tests.data_prep.dicom_objects import encoded
from tests.data_prep.seg_objects import (
    COLUMNS,
    EVIDENCE,
    ROWS,
    SPACING,
    UIDS,
    bookmarks_in,
    ct_slice,
    fake_images,
    mark,
    save,
)

if TYPE_CHECKING:
    from tests.conftest import Judges


def pair(long: float, ratio: float, where: float, across: float, turn: float, centre: tuple[float, float]) -> Array:
    """A RECIST pair: perpendicular, crossing at ``where`` of the long and ``across`` of the short axis."""
    short = long * ratio
    x = (where - 0.5) * long
    points = np.array([(-long / 2, 0), (long / 2, 0), (x, -across * short), (x, (1 - across) * short)])
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return np.asarray(points @ rotation.T + centre)


def box_of(bookmark: Bookmark) -> Array:
    outline = np.array(bookmark.points)
    spacing = (bookmark.spacing_x_mm or 1.0, bookmark.spacing_y_mm or 1.0)
    return frames.box_from_recist(recist.diameters(outline, spacing))


# --- RECIST pair -> segmentation -> RECIST pair --------------------------------------------------------------------


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.floats(6, 60),
    st.floats(0.3, 0.97),
    st.floats(0.35, 0.65),
    st.floats(0.35, 0.65),
    st.floats(0, math.pi),
    st.tuples(st.floats(45, 55), st.floats(45, 55)),
)
def test_mask_of_a_pair_measures_as_the_pair(
    long: float, ratio: float, where: float, across: float, turn: float, centre: tuple[float, float]
) -> None:
    axes = pair(long, ratio, where, across, turn, centre)
    mask = mask_of(mark("bidirectional", axes), ROWS, COLUMNS)
    measured = recist.diameters(recist.mask_outline(mask), (SPACING, SPACING))
    difference = np.abs(frames.box_from_recist(measured) - frames.box_from_recist(axes)).max()
    assert difference < 1.5


def test_pairs_through_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    marks = [
        mark(
            "bidirectional",
            pair(
                rng.uniform(8, 50), rng.uniform(0.4, 0.95), 0.5, 0.5, rng.uniform(0, 3), tuple(rng.uniform(45, 60, 2))
            ),
            image=number % 8,
            text=f"lesion {number}",
        )
        for number in range(24)
    ]
    path = save(build_segmentation(marks, EVIDENCE, **UIDS), tmp_path)
    assert dicom_seg.recognise(path.read_bytes()[:4096], path)
    for images, frame in ((None, "assumed"), (fake_images(), "declared")):
        found = {bookmark.text: bookmark for bookmark in bookmarks_in(path, images)}
        assert len(found) == len(marks)
        for before in marks:
            after = found[before.text]
            assert after.image_uid == before.image_uid
            assert (after.series_uid, after.study_uid, after.patient_id) == ("1.2.8", "1.2.9", "P1")
            assert (after.rows, after.columns) == (ROWS, COLUMNS)
            assert after.spacing_x_mm == pytest.approx(SPACING)
            assert after.source_frame == frame
            box = frames.box_from_recist(np.array(before.points))
            np.testing.assert_allclose(box_of(after), box, atol=1.5)


def test_real_pairs(shared_data: Path) -> None:
    """Radiologists' own pairs: all that are pairs by definition agree, and nearly all of the others."""
    with (shared_data / "deeplesion" / "DL_info.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Possibly_noisy"] == "0"]
    worst = []
    for row in random.Random(2).sample(rows, 80):
        points = np.array(row["Measurement_coordinates"].split(","), float).reshape(4, 2)
        axes = frames.deeplesion_point_to_px(points)
        axes -= np.floor(axes.min(axis=0)) - 10
        size = np.ceil(axes.max(axis=0)).astype(int) + 10
        bookmark = mark("bidirectional", axes, spacing_x_mm=1.0, spacing_y_mm=1.0)
        measured = recist.diameters(recist.mask_outline(mask_of(bookmark, int(size[1]), int(size[0]))), (1, 1))
        worst.append(np.abs(frames.box_from_recist(measured) - frames.box_from_recist(axes)).max())
    assert np.mean(np.array(worst) < 1.5) > 0.96
    assert np.median(worst) < 0.8


# --- the other forms, and what is written --------------------------------------------------------------------------


def test_each_form_becomes_its_own_area(tmp_path: Path) -> None:
    circle = mark("circle", [(40, 50), (52, 50)], text="circle")
    ellipse = mark("ellipse", recist.axes_of_ellipse([(20, 60), (60, 60), (40, 45), (40, 75)]), image=3, text="ellipse")
    square = mark("polygon", [(10, 10), (30, 10), (30, 25), (10, 25)], text="polygon")
    outline = mark("segmentation", [(80, 80), (100, 80), (90, 110)], image=5, text="segmentation")
    path = save(build_segmentation([circle, ellipse, square, outline], EVIDENCE, **UIDS), tmp_path)
    found = {bookmark.text: np.array(bookmark.points) for bookmark in bookmarks_in(path)}
    for before, area, low, high in (
        (circle, math.pi * 12**2, (28, 38), (52, 62)),
        (ellipse, math.pi * 20 * 15, (20, 45), (60, 75)),
        (square, 20 * 15, (10, 10), (30, 25)),
        (outline, 20 * 30 / 2, (80, 80), (100, 110)),
    ):
        assert mask_of(before, ROWS, COLUMNS).sum() == pytest.approx(area, rel=0.05)
        x, y = found[before.text].T
        assert abs(float(np.sum(x * np.roll(y, 1) - np.roll(x, 1) * y)) / 2) == pytest.approx(area, rel=0.06)
        np.testing.assert_allclose(found[before.text].min(axis=0), low, atol=1.6)
        np.testing.assert_allclose(found[before.text].max(axis=0), high, atol=1.6)


def test_codes_text_and_tracking_survive(tmp_path: Path) -> None:
    before = mark(
        "circle",
        [(40, 50), (52, 50)],
        text="Läsion é",
        finding_code="108369006^SCT^Neoplasm",
        site="10200004^SCT^Liver",
        tracking_uid="1.2.99.1",
    )
    path = save(build_segmentation([before], EVIDENCE, observer_name="Doe^Jane", **UIDS), tmp_path)
    (after,) = bookmarks_in(path)
    for name in ("text", "finding_code", "site", "tracking_uid"):
        assert getattr(after, name) == getattr(before, name)
    assert after.observer == "Doe^Jane"


def test_same_arguments_give_the_same_bytes() -> None:
    def written() -> bytes:
        marks = [mark("circle", [(40, 50), (52, 50)]), mark("polygon", [(10, 10), (30, 10), (30, 25)], image=4)]
        return encoded(build_segmentation(marks, EVIDENCE, **UIDS))

    first = written()
    time.sleep(0.01)
    assert written() == first
    today = datetime.date.today().strftime("%Y%m%d").encode()
    assert today not in first


def test_highdicom_reads_the_masks(tmp_path: Path) -> None:
    marks = [mark("circle", [(40, 50), (52, 50)]), mark("polygon", [(10, 10), (60, 12), (30, 55)], image=4)]
    path = save(build_segmentation(marks, EVIDENCE, **UIDS), tmp_path)
    segmentation = highdicom.seg.segread(path)
    pixels = segmentation.get_pixels_by_source_instance(["1.2.3.3", "1.2.3.5"])
    np.testing.assert_array_equal(pixels[0, :, :, 0], mask_of(marks[0], ROWS, COLUMNS))
    np.testing.assert_array_equal(pixels[1, :, :, 1], mask_of(marks[1], ROWS, COLUMNS))
    assert pixels[0, :, :, 1].sum() == pixels[1, :, :, 0].sum() == 0


def test_dciodvfy_finds_no_error(tmp_path: Path, judges: Judges) -> None:
    marks = [
        mark("circle", [(40, 50), (52, 50)], site="10200004^SCT^Liver"),
        mark("polygon", [(9, 9), (60, 12), (30, 55)]),
    ]
    path = save(build_segmentation(marks, EVIDENCE, observer_name="Doe^Jane", **UIDS), tmp_path)
    assert judges.dciodvfy(path, "Segmentation") == []


@pytest.mark.parametrize(
    ("marks", "evidence", "match"),
    [
        ([], EVIDENCE, "at least one"),
        ([mark("length", [(1, 1), (5, 5)])], EVIDENCE, "has no area"),
        ([mark("circle", [(900, 900), (910, 900)])], EVIDENCE, "outside its image"),
        ([mark("circle", [(40, 40), (50, 40)], image=30)], EVIDENCE, "not among the images"),
        (
            [mark("circle", [(40, 40), (50, 40)], image=0), mark("circle", [(40, 40), (50, 40)], image=9)],
            [*EVIDENCE, ct_slice(9, SeriesInstanceUID="1.2.88")],
            "several series",
        ),
        ([mark("circle", [(40, 40), (50, 40)], image=0)], [ct_slice(0, NumberOfFrames=3)], "multi-frame"),
    ],
)
def test_what_cannot_be_written(marks: list[Bookmark], evidence: list[Dataset], match: str) -> None:
    with pytest.raises(DataPrepError, match=match):
        build_segmentation(marks, evidence, **UIDS)
