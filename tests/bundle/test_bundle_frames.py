"""Corner pixels ↔ LPS mm: hand-made answers, nibabel as the judge, and the answers shared with data_prep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel.affines
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.frames import lps_to_px, px_to_lps

TABLE = json.loads((Path(__file__).parents[1] / "known_answers.json").read_text(encoding="utf-8"))
FUNCTIONS = {"px_to_lps": px_to_lps, "lps_to_px": lps_to_px}
CASES = [case for case in TABLE["cases"] if case["function"] in FUNCTIONS]
AFFINE = np.array([[0.8, 0, 0, -200.0], [0, 0.8, 0, -180.0], [0, 0, 5.0, 1000.0], [0, 0, 0, 1]])


@pytest.mark.parametrize("case", CASES, ids=[f"{case['function']}: {case['why']}" for case in CASES])
def test_known_answers(case: dict[str, Any]) -> None:
    answer = FUNCTIONS[case["function"]](*case["args"])
    np.testing.assert_allclose(answer, case["expected"], rtol=0, atol=TABLE["tolerance"])


def test_every_function_has_a_known_answer() -> None:
    assert {case["function"] for case in CASES} == set(FUNCTIONS)


def test_centre_of_the_first_voxel_is_image_position_patient() -> None:
    np.testing.assert_allclose(px_to_lps([[0.5, 0.5, 0.5]], AFFINE), [[-200, -180, 1000]])


def test_corner_lies_half_a_voxel_before_the_centre() -> None:
    np.testing.assert_allclose(px_to_lps([0, 0, 0.5], AFFINE), [-200.4, -180.4, 1000])
    np.testing.assert_allclose(px_to_lps([10, 20, 3.5], AFFINE), [-192.4, -164.4, 1015])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.floats(-3, 3), min_size=9, max_size=9),
    st.lists(st.floats(-500, 500), min_size=3, max_size=3),
    st.lists(st.tuples(*[st.floats(-600, 600)] * 3), min_size=1, max_size=4),
)
def test_nibabel_agrees_and_the_way_back_leads_home(
    matrix: list[float], offset: list[float], points: list[tuple[float, float, float]]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(matrix, (3, 3)) + 8 * np.eye(3)  # well conditioned, oblique
    if np.linalg.cond(affine[:3, :3]) > 100:
        return
    affine[:3, 3] = offset
    world = px_to_lps(points, affine)
    np.testing.assert_allclose(world, nibabel.affines.apply_affine(affine, np.array(points) - 0.5), atol=1e-9)
    np.testing.assert_allclose(lps_to_px(world, affine), points, atol=1e-8)


def test_shapes_are_kept() -> None:
    for shape in [(3,), (0, 3), (2, 3), (2, 5, 3)]:
        assert px_to_lps(np.ones(shape), AFFINE).shape == shape
        assert lps_to_px(np.ones(shape), AFFINE).shape == shape


def test_bad_shapes_and_flat_affines_are_refused() -> None:
    for change in (px_to_lps, lps_to_px):
        with pytest.raises(ValueError, match="last axis of 3"):
            change([[1, 2]], AFFINE)
        with pytest.raises(ValueError, match="4×4"):
            change([[1, 2, 3]], np.eye(3))
    with pytest.raises(np.linalg.LinAlgError):
        lps_to_px([[1, 2, 3]], np.zeros((4, 4)))
