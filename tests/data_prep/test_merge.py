"""Which marks become one lesion, with which box and which millimetres."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import frames
from data_prep.bookmark import BOOKMARK_SCHEMA, Bookmark, make_id, records_to_table, table_to_records
from data_prep.lesion import Lesion
from data_prep.merge import disagrees, merge
from data_prep.readers import deeplesion_csv
from data_prep.release_lesions import is_release_row, release_lesions

PAIR = (100.0, 100.0, 140.0, 100.0, 120.0, 85.0, 120.0, 115.0)
_count = itertools.count()


def mark(form: str, *points: float, **fields: object) -> Bookmark:
    values: dict[str, object] = {
        "bookmark_id": make_id(next(_count)),
        "source": "dicom-sr",
        "image_uid": "1.2.3",
        "patient_id": "P",
        "spacing_x_mm": 0.5,
        "spacing_y_mm": 0.5,
    }
    return Bookmark(form=form, points_px=points, **(values | fields))  # type: ignore[arg-type]


def only(lesions: list[Lesion]) -> Lesion:
    assert len(lesions) == 1, lesions
    return lesions[0]


# --- forms -----------------------------------------------------------------------------------------------------------


def test_a_declared_pair_is_taken_as_it_is() -> None:
    lesion = only(merge([mark("bidirectional", *PAIR)]))
    assert lesion.box_px == pytest.approx((94.5, 79.5, 145.5, 120.5))
    assert lesion.recist_px == PAIR
    assert (lesion.long_diameter_mm, lesion.short_diameter_mm) == (20.0, 15.0)
    assert lesion.note is None


def test_odd_declared_pairs_are_kept_and_flagged() -> None:
    slanted = only(merge([mark("bidirectional", 0, 0, 100, 0, 30, -20, 70, 20)]))
    assert slanted.note == "the axes of the declared pair meet at 45°"
    apart = only(merge([mark("bidirectional", 0, 0, 100, 0, 50, 10, 50, 40)]))
    assert apart.note == "the axes of the declared pair do not cross"
    swapped = only(merge([mark("bidirectional", 0, 0, 10, 0, 5, -20, 5, 20)]))
    assert swapped.note == "the declared short axis is longer than the long axis"
    assert swapped.box_px is not None


def test_ellipse_circle_polygon_and_mask_get_recist_axes() -> None:
    ellipse = only(merge([mark("ellipse", 100, 100, 140, 100, 120, 90, 120, 110)]))
    assert ellipse.box_px == pytest.approx((94.5, 84.5, 145.5, 115.5))
    assert (ellipse.long_diameter_mm, ellipse.short_diameter_mm) == pytest.approx((20, 10))
    circle = only(merge([mark("circle", 100, 100, 100, 110)]))
    assert circle.box_px == pytest.approx((84.5, 84.5, 115.5, 115.5))
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    outline = np.stack([120 + 20 * np.cos(angles), 100 + 10 * np.sin(angles)], axis=1).ravel()
    for form in ("polygon", "segmentation"):
        lesion = only(merge([mark(form, *outline)]))
        assert lesion.box_px == pytest.approx((94.5, 84.5, 145.5, 115.5), abs=0.02)
        assert (lesion.long_diameter_mm, lesion.short_diameter_mm) == pytest.approx((20, 10), abs=0.02)


def test_one_circle_drawn_through_two_points_is_one_box() -> None:
    """Circles of one centre and size have one box, wherever on the perimeter the user clicked."""
    for angle in (0.0, 1.0, 2.5):
        lesion = only(merge([mark("circle", 100, 100, 100 + 10 * math.cos(angle), 100 + 10 * math.sin(angle))]))
        assert lesion.box_px == pytest.approx((84.5, 84.5, 115.5, 115.5), abs=1e-9)


def test_a_single_line_gets_an_assumed_short_axis_for_its_box_alone() -> None:
    lesion = only(merge([mark("length", 100, 100, 140, 100)]))
    assert lesion.box_px == pytest.approx((94.5, 100 - 15 - 5.5, 145.5, 100 + 15 + 5.5))
    assert lesion.recist_px == (100, 100, 140, 100)
    assert (lesion.long_diameter_mm, lesion.short_diameter_mm) == (20.0, None)


def test_the_assumed_axis_is_perpendicular_in_mm() -> None:
    lesion = only(merge([mark("length", 100, 100, 140, 100, spacing_x_mm=1.0, spacing_y_mm=0.5)]))
    assert lesion.box_px == pytest.approx((94.5, 100 - 30 - 5.5, 145.5, 100 + 30 + 5.5))


def test_a_line_of_two_points_is_a_line_whatever_it_is_called() -> None:
    line = only(merge([mark("polyline", 100, 100, 140, 100)]))
    assert line.box_px == only(merge([mark("length", 100, 100, 140, 100)])).box_px


def test_arrow_point_and_text_are_locations() -> None:
    for form, points, centre in [
        ("arrow", (0, 0, 30, 40), (30, 40)),
        ("point", (30, 40), (30, 40)),
        ("text", (30, 40), (30, 40)),
        ("text", (), (None, None)),
        ("polyline", (0, 0, 30, 0, 60, 60), (30, 20)),
    ]:
        lesion = only(merge([mark(form, *points, text="here")]))
        assert lesion.box_px is None
        assert (lesion.centre_x, lesion.centre_y) == centre


def test_shapes_without_extent_are_locations() -> None:
    for bad in (
        mark("length", 5, 5, 5, 5),
        mark("circle", 5, 5, 5, 5),
        mark("polygon", 5, 5, 5, 5, 5, 5),
        mark("box", 9, 9, 5, 5),
    ):
        lesion = only(merge([bad]))
        assert lesion.box_px is None
        assert lesion.note is not None


def test_a_drawn_box_is_not_padded() -> None:
    assert only(merge([mark("box", 10, 20, 30, 50, source="csv")])).box_px == (10, 20, 30, 50)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_two_crossing_lines_are_one_measurement() -> None:
    a, b = mark("length", *PAIR[4:], stated_long_mm=15.0), mark("length", *PAIR[:4], stated_long_mm=20.0)
    lesion = only(merge([a, b]))
    assert lesion.recist_px == PAIR
    assert (lesion.stated_long_mm, lesion.stated_short_mm) == (20.0, 15.0)
    assert lesion.bookmark_ids == tuple(sorted((a.bookmark_id, b.bookmark_id)))
    assert lesion.note is not None
    assert "two crossing lines" in lesion.note


def crossing(angle_deg: float, **fields: object) -> list[Bookmark]:
    x, y = 15 * math.cos(math.radians(angle_deg)), 15 * math.sin(math.radians(angle_deg))
    second = {key: value for key, value in fields.items() if key.startswith("second_")}
    first = {key: value for key, value in fields.items() if key not in second}
    others = first | {key.removeprefix("second_"): value for key, value in second.items()}
    return [mark("length", 100, 100, 140, 100, **first), mark("length", 120 - x, 100 - y, 120 + x, 100 + y, **others)]


@pytest.mark.parametrize(("angle", "pair"), [(75.5, True), (104.5, True), (74.5, False), (105.5, False)])
def test_the_angle_decides(angle: float, pair: bool) -> None:
    lesions = merge(crossing(angle))
    assert any(len(lesion.recist_px or ()) == 8 for lesion in lesions) is pair


@pytest.mark.parametrize(
    ("first", "second", "pair"),
    [("A", "A", True), (None, "A", True), (None, None, True), ("A", "B", False)],
)
def test_two_named_observers_are_never_paired(first: str | None, second: str | None, pair: bool) -> None:
    lesions = merge(crossing(90, observer=first, second_observer=second))
    assert any(len(lesion.recist_px or ()) == 8 for lesion in lesions) is pair


def test_lines_that_do_not_cross_or_lie_on_other_images_are_not_paired() -> None:
    apart = [mark("length", 0, 0, 40, 0), mark("length", 20, 5, 20, 45)]
    assert all(len(lesion.recist_px or ()) == 4 for lesion in merge(apart))
    other = crossing(90, second_image_uid="9")
    assert [len(lesion.recist_px or ()) for lesion in merge(other)] == [4, 4]
    frames_apart = crossing(90, frame_number=1, second_frame_number=2)
    assert [len(lesion.recist_px or ()) for lesion in merge(frames_apart)] == [4, 4]


def test_each_line_is_in_one_pair_the_squarest_first() -> None:
    lines = [*crossing(90), mark("length", 117, 86, 123, 114)]
    lesion = only(merge(lines))  # the third lies on the same spot: another reading of the target
    assert lesion.recist_px is not None
    assert np.reshape(lesion.recist_px, (4, 2))[2:, 0] == pytest.approx([120, 120])


# --- one target, several marks ---------------------------------------------------------------------------------------


def test_the_same_mark_saved_twice_is_one_lesion() -> None:
    aim = mark("bidirectional", *PAIR, source="aim-xml")
    saved_again = mark("bidirectional", *(value + 2e-5 for value in PAIR))
    turned = mark("bidirectional", *PAIR[2:4], *PAIR[:2], *PAIR[4:])
    lesion = only(merge([aim, saved_again, turned]))
    assert lesion.bookmark_ids == tuple(sorted(b.bookmark_id for b in (aim, saved_again, turned)))


def test_a_line_saved_twice_and_its_partner_are_one_pair() -> None:
    long_aim, short_aim = crossing(90, observer="A", source="aim-xml")
    long_sr, short_sr = crossing(90)  # the reports do not say who drew them
    lesion = only(merge([long_aim, short_aim, long_sr, short_sr]))
    assert len(lesion.bookmark_ids) == 4
    assert len(lesion.recist_px or ()) == 8


def test_readings_of_one_target_the_longest_gives_the_box() -> None:
    a = mark("length", 100, 100, 140, 100, observer="A")
    b = mark("length", 103, 90, 130, 115, observer="B")
    lesion = only(merge([a, b]))
    assert lesion.recist_px == (100, 100, 140, 100)
    assert set(lesion.bookmark_ids) == {a.bookmark_id, b.bookmark_id}


def test_tracking_joins_what_does_not_overlap() -> None:
    a = mark("length", 100, 100, 140, 100, tracking_uid="t")
    b = mark("length", 105, 130, 120, 135, tracking_uid="t")
    assert len(merge([a, b])) == 1
    assert len(merge([a, dataclasses.replace(b, tracking_uid="u")])) == 2


def test_neighbouring_lesions_stay_two() -> None:
    assert len(merge([mark("circle", 100, 100, 110, 100), mark("circle", 120, 100, 130, 100)])) == 2


def test_a_pair_goes_before_the_lone_copy_of_its_long_axis() -> None:
    line, pair = mark("length", *PAIR[:4]), mark("bidirectional", *PAIR)
    assert only(merge([line, pair])).recist_px == PAIR


def test_words_and_arrows_join_the_lesion_they_lie_in() -> None:
    pair = mark("bidirectional", *PAIR)
    arrow = mark("arrow", 10, 10, 121, 101)
    words = mark("text", 110, 95, text="new")
    tracked = mark("point", 400, 400, tracking_uid="t")
    lesion, alone = sorted(merge([pair, arrow, words, tracked]), key=lambda found: found.box_px is None)
    assert set(lesion.bookmark_ids) == {pair.bookmark_id, arrow.bookmark_id, words.bookmark_id}
    assert lesion.text == "new"
    assert alone.bookmark_ids == (tracked.bookmark_id,)
    followed = dataclasses.replace(pair, tracking_uid="t")
    assert len(only(merge([followed, tracked])).bookmark_ids) == 2


def test_words_about_the_whole_image_join_its_lesions() -> None:
    first, second = mark("bidirectional", *PAIR), mark("circle", 300, 300, 310, 300)
    words = mark("text", text="key image")
    lesions = merge([first, second, words])
    assert [lesion.text for lesion in lesions] == ["key image", "key image"]
    assert len(merge([words])) == 1


# --- rows of the release and detections ------------------------------------------------------------------------------


def release_row(**fields: object) -> Bookmark:
    values = {
        "source": "deeplesion-csv",
        "image_uid": None,
        "series_uid": "s",
        "slice_index": 7,
        "stated_box_px": (94.5, 79.5, 145.5, 120.5),
    }
    return mark("bidirectional", *PAIR, **(values | fields))


def test_rows_of_the_release_are_never_merged() -> None:
    assert len(merge([release_row(), release_row()])) == 2


def test_a_row_keeps_the_release_s_own_box() -> None:
    assert only(merge([release_row(stated_box_px=(1.0, 2.0, 3.0, 4.0))])).box_px == (1.0, 2.0, 3.0, 4.0)


def test_detections_stay_apart_and_unreviewed() -> None:
    box = (94.5, 79.5, 145.5, 120.5)
    found = mark("box", *box, source="detector", score=0.75, stated_box_px=box)
    lesions = {lesion.source: lesion for lesion in merge([found, mark("bidirectional", *PAIR)])}
    assert len(lesions) == 2
    assert (lesions["detector"].score, lesions["detector"].review) == (0.75, "unreviewed")
    assert lesions["detector"].box_px == box
    assert lesions["dicom-sr"].bookmark_ids != lesions["detector"].bookmark_ids


# --- millimetres -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "drawn", "flag"),
    [(10.19, 10.0, False), (10.21, 10.0, True), (100.49, 100.0, False), (100.51, 100.0, True), (None, 10.0, False)],
)
def test_disagreement_is_more_than_2_percent_or_half_a_millimetre(
    stated: float | None, drawn: float, flag: bool
) -> None:
    assert disagrees(stated, drawn) is flag


def test_stated_and_drawn_are_both_kept() -> None:
    lesion = only(merge([mark("bidirectional", *PAIR, stated_long_mm=28.0, stated_short_mm=15.0)]))
    assert (lesion.long_diameter_mm, lesion.stated_long_mm, lesion.measurement_disagrees) == (20.0, 28.0, True)
    agreeing = only(merge([mark("bidirectional", *PAIR, stated_long_mm=20.1, stated_short_mm=15.0)]))
    assert not agreeing.measurement_disagrees


def test_no_spacing_no_millimetres() -> None:
    lesion = only(merge([mark("bidirectional", *PAIR, spacing_x_mm=None, stated_long_mm=20.0)]))
    assert (lesion.long_diameter_mm, lesion.stated_long_mm, lesion.measurement_disagrees) == (None, 20.0, False)


# --- whatever the order ----------------------------------------------------------------------------------------------

spot = st.integers(0, 12).map(lambda value: value * 10.0)


@st.composite
def some_mark(draw: st.DrawFn) -> Bookmark:
    form, count = draw(st.sampled_from([("length", 2), ("bidirectional", 4), ("circle", 2), ("point", 1), ("text", 1)]))
    points = draw(st.lists(spot, min_size=2 * count, max_size=2 * count))
    fields = {
        "observer": draw(st.sampled_from([None, "A", "B"])),
        "tracking_uid": draw(st.sampled_from([None, None, None, "t"])),
        "source": draw(st.sampled_from(["dicom-sr", "aim-xml", "detector", "deeplesion-csv"])),
        "image_uid": draw(st.sampled_from(["1", "2"])),
    }
    return mark(form, *points, **fields)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.lists(some_mark(), max_size=12), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_no_mark_is_lost(marks: list[Bookmark], shuffle: random.Random) -> None:
    lesions = merge(marks)
    assert {mark_id for lesion in lesions for mark_id in lesion.bookmark_ids} == {one.bookmark_id for one in marks}
    assert len({lesion.lesion_id for lesion in lesions}) == len(lesions)
    turned = list(marks)
    shuffle.shuffle(turned)
    assert merge(turned) == lesions
    assert merge(marks + turned) == lesions  # the same bookmark given twice counts once


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release(shared_data: Path) -> list[Bookmark]:
    """Every row of the release."""
    return [m for m in deeplesion_csv.read(shared_data / "deeplesion" / "DL_info.csv") if isinstance(m, Bookmark)]


def test_columns_and_rows_agree_on_the_release(release: list[Bookmark]) -> None:
    marks = release[::20]
    marks = [*marks, dataclasses.replace(marks[0], bookmark_id="no spacing", spacing_x_mm=None)]
    table = records_to_table(marks, Bookmark, BOOKMARK_SCHEMA)
    assert all(is_release_row(table).to_pylist())
    by_column = {lesion.lesion_id: lesion for lesion in table_to_records(release_lesions(table), Lesion)}
    by_row = {lesion.lesion_id: lesion for lesion in merge(marks)}
    assert by_column.keys() == by_row.keys()
    for key, expected in by_row.items():
        for field in dataclasses.fields(Lesion):
            ours, theirs = getattr(by_column[key], field.name), getattr(expected, field.name)
            assert ours == (pytest.approx(theirs, rel=1e-12) if isinstance(theirs, float) else theirs), field.name


def test_the_rule_for_single_lines_on_the_release(release: list[Bookmark]) -> None:
    """The figures in ``data_prep.readings``: from the long axis alone, mean IoU with the official boxes .89."""
    some = release[::20]
    lines = [
        dataclasses.replace(m, form="length", points_px=m.points_px[:4], stated_box_px=None, source="csv") for m in some
    ]
    boxes = {lesion.bookmark_ids[0]: lesion.box_px for line in lines for lesion in merge([line])}
    ours = np.array([boxes[m.bookmark_id] for m in some])
    theirs = np.array([m.stated_box_px for m in some])
    overlap = np.clip(np.minimum(ours[:, 2:], theirs[:, 2:]) - np.maximum(ours[:, :2], theirs[:, :2]), 0, None)
    area = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (ours, theirs)]
    iou = overlap.prod(axis=1) / (area[0] + area[1] - overlap.prod(axis=1))
    assert iou.mean() == pytest.approx(0.89, abs=0.01)
    assert (iou < 0.5).mean() < 0.01
    ratios = [
        frames.length_mm(m.points[2], m.points[3], (1, 1)) / frames.length_mm(m.points[0], m.points[1], (1, 1))
        for m in release
    ]
    assert np.median(ratios) == pytest.approx(0.746, abs=0.001)
