"""Every change of coordinates against answers worked out by hand, and there and back."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import frames

TABLE = json.loads((Path(__file__).parents[1] / "known_answers.json").read_text(encoding="utf-8"))
PUBLIC = {
    name
    for name, function in inspect.getmembers(frames, inspect.isfunction)
    if function.__module__ == frames.__name__ and not name.startswith("_")
}
coordinate = st.floats(-5000, 5000)
points = st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=8)
exactly = settings(deadline=None, max_examples=60, derandomize=True)


def test_the_table_has_every_function() -> None:
    assert {case["function"] for case in TABLE["cases"]} == PUBLIC


@pytest.mark.parametrize(
    "case", TABLE["cases"], ids=[f"{i}-{case['function']}" for i, case in enumerate(TABLE["cases"])]
)
def test_known_answer(case: dict[str, Any]) -> None:
    found = getattr(frames, case["function"])(*case["args"], **case.get("kwargs", {}))
    if case["expected"] is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, case["expected"], rtol=0, atol=TABLE["tolerance"])


@exactly
@given(points)
def test_deeplesion_points_come_back(given_points: list[tuple[float, float]]) -> None:
    back = frames.px_to_deeplesion_point(frames.deeplesion_point_to_px(given_points))
    np.testing.assert_allclose(back, given_points, rtol=0, atol=1e-9)


@exactly
@given(points)
def test_indices_come_back(given_points: list[tuple[float, float]]) -> None:
    np.testing.assert_allclose(frames.px_to_index(frames.index_to_px(given_points)), given_points, rtol=0, atol=1e-9)


@exactly
@given(st.tuples(coordinate, coordinate, coordinate, coordinate))
def test_boxes_come_back(box: tuple[float, float, float, float]) -> None:
    there = frames.deeplesion_box_to_px(box)
    np.testing.assert_allclose(frames.px_to_deeplesion_box(there), box, rtol=0, atol=1e-9)


@exactly
@given(points.filter(lambda p: len(p) > 1))
def test_the_box_rule_is_the_official_one_in_its_own_frame(release_points: list[tuple[float, float]]) -> None:
    """Min/max ± 5 px of the release's points, converted, is our rule on the converted points."""
    array = np.array(release_points)
    official = np.concatenate([array.min(axis=0) - 5, array.max(axis=0) + 5])
    ours = frames.box_from_recist(frames.deeplesion_point_to_px(release_points))
    np.testing.assert_allclose(ours, frames.deeplesion_box_to_px(official), rtol=0, atol=1e-9)


@exactly
@given(
    st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=1, max_size=5),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5), st.floats(0.2, 10)),
    st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)),
    st.tuples(coordinate, coordinate, coordinate),
)
def test_patient_space_comes_back(
    voxels: list[tuple[float, ...]],
    spacing: tuple[float, ...],
    turn: tuple[float, ...],
    origin: tuple[float, ...],
) -> None:
    x, y, z = turn  # Rodrigues' formula would do as well; the exponential of a skew matrix is always a rotation
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.linalg.solve(np.eye(3) + skew, np.eye(3) - skew)  # Cayley transform
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = origin
    back = frames.lps_to_px(frames.px_to_lps(voxels, affine), affine)
    np.testing.assert_allclose(back, voxels, rtol=0, atol=1e-7)


@exactly
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5),
    st.sampled_from([0, 90, 180, 270]),
    st.booleans(),
)
def test_display_points_lie_in_the_displayed_area(
    fractions: list[tuple[float, float]], rotation: int, flip: bool
) -> None:
    found = frames.display_to_px(fractions, (11, 21), (40, 90), rotation_deg=rotation, flip=flip)
    assert (found >= np.array([10, 20]) - 1e-9).all()
    assert (found <= np.array([40, 90]) + 1e-9).all()


def test_display_follows_a_turned_picture() -> None:
    """The oracle is NumPy: the pixel under a displayed point is the one shown there."""
    image = np.arange(6 * 4).reshape(4, 6)  # 4 rows, 6 columns
    for rotation in (0, 90, 180, 270):
        for flip in (False, True):
            shown = np.rot90(image, -rotation // 90)
            shown = shown[:, ::-1] if flip else shown
            for row, column in np.ndindex(shown.shape):
                fraction = ((column + 0.5) / shown.shape[1], (row + 0.5) / shown.shape[0])
                x, y = frames.display_to_px([fraction], (1, 1), (6, 4), rotation_deg=rotation, flip=flip)[0]
                assert image[int(y), int(x)] == shown[row, column]


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        frames.box_from_recist([[1.0, 2.0]])
    with pytest.raises(ValueError, match="last axis of 4"):
        frames.deeplesion_box_to_px([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="ImageRotation"):
        frames.display_to_px([[0.0, 0.0]], (1, 1), (2, 2), rotation_deg=45)


def test_units() -> None:
    assert frames.LENGTH_UNIT_MM["cm"] == 10 * frames.LENGTH_UNIT_MM["mm"]
    assert frames.AREA_UNIT_MM2["cm2"] == frames.LENGTH_UNIT_MM["cm"] ** 2
