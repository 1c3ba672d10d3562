"""Crop geometry: centre, physical scale, the image's border."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.categorize.crops import SCALES, CropSettings, crop_boxes_px, cut, stated_spacing_mm, window
from data_prep.lesion import Lesion

GEOMETRY = settings(deadline=None, max_examples=40, derandomize=True)


def lesion(box: tuple[float, ...], spacing: tuple[float | None, float | None] = (0.8, 0.8)) -> Lesion:
    x0, y0, x1, y1 = box
    return Lesion(
        lesion_id="a",
        bookmark_ids=(),
        source="csv",
        x0=x0,
        y0=y0,
        x1=x1,
        y1=y1,
        spacing_x_mm=spacing[0],
        spacing_y_mm=spacing[1],
    )


coordinate = st.floats(-20, 760)
extent = st.floats(2, 150)
spacing_mm = st.floats(0.2, 3)


@GEOMETRY
@given(coordinate, coordinate, extent, extent, spacing_mm, spacing_mm)
def test_crops_are_centred_and_square_in_mm(
    x: float, y: float, width: float, height: float, spacing_x: float, spacing_y: float
) -> None:
    chosen = CropSettings()
    boxes = crop_boxes_px(lesion((x, y, x + width, y + height), (spacing_x, spacing_y)), chosen)
    assert boxes.shape == (len(SCALES), 4)
    np.testing.assert_allclose((boxes[:, :2] + boxes[:, 2:]) / 2, [[x + width / 2, y + height / 2]] * 3, atol=1e-9)
    sides_mm = (boxes[:, 2:] - boxes[:, :2]) * [spacing_x, spacing_y]
    wanted = np.clip(1.5 * max(width * spacing_x, height * spacing_y), chosen.lesion_min_mm, chosen.lesion_max_mm)
    np.testing.assert_allclose(sides_mm, np.repeat([[wanted], [80], [160]], 2, axis=1), rtol=1e-9)


@GEOMETRY
@given(st.floats(-300, 0), st.floats(-200, 200), spacing_mm, spacing_mm)
def test_the_centre_of_a_crop_is_the_centre_of_the_lesion(
    x: float, y: float, spacing_x: float, spacing_y: float
) -> None:
    """On a plane whose value is linear in x and y every crop's mean is the value at its centre, and one step along the
    crop is side_mm / side_px millimetres."""
    columns, rows = 900, 1100
    py, px = np.mgrid[:rows, :columns] + 0.5
    plane = (px * 1e-3 + py * 3e-3).astype(np.float32)
    boxes = crop_boxes_px(lesion((x + 395, y + 295, x + 405, y + 305), (spacing_x, spacing_y)), CropSettings())[:2]
    for (x0, y0, x1, y1), crop in zip(boxes, cut(plane, boxes, 32)[:, 0].numpy().astype(np.float64), strict=True):
        if x0 < 0 or y0 < 0 or x1 > columns or y1 > rows:
            continue
        assert crop.mean() == pytest.approx((x + 400) * 1e-3 + (y + 300) * 3e-3, abs=2e-4)
        across, down = np.diff(crop, axis=1).mean(), np.diff(crop, axis=0).mean()
        assert across == pytest.approx((x1 - x0) / 32 * 1e-3, rel=2e-2)
        assert down == pytest.approx((y1 - y0) / 32 * 3e-3, rel=2e-2)


def test_a_whole_image_at_its_own_size_is_itself() -> None:
    image = np.random.default_rng(0).random((48, 48), dtype=np.float32)
    same = cut(image, np.array([[0.0, 0.0, 48.0, 48.0]]), 48)[0, 0].numpy()
    np.testing.assert_allclose(same, image, atol=1e-6)


def test_halving_averages_two_by_two_pixels() -> None:
    image = np.random.default_rng(1).random((768, 768), dtype=np.float32)
    half = cut(image, np.array([[0.0, 0.0, 768.0, 768.0]]), 384)[0, 0].numpy()
    np.testing.assert_allclose(half, image.reshape(384, 2, 384, 2).mean(axis=(1, 3)), atol=1e-6)


def test_outside_the_image_is_air() -> None:
    image = np.full((64, 64), 0.7, dtype=np.float32)
    crop = cut(image, np.array([[-64.0, 0.0, 64.0, 128.0]]), 32)[0, 0].numpy()
    np.testing.assert_allclose(crop[:15, 17:], 0.7, rtol=1e-6)
    assert (crop[17:] == 0).all()
    assert (crop[:, :15] == 0).all()


def test_a_box_far_larger_than_the_image_is_harmless() -> None:
    huge = lesion((-1e9, -1e9, 1e9, 1e9), (0.05, 0.05))
    boxes = crop_boxes_px(huge, CropSettings())
    assert (boxes[:, 2] - boxes[:, 0]).max() == pytest.approx(320 / 0.05)
    assert cut(np.ones((64, 64), np.float32), boxes, 64).shape == (3, 1, 64, 64)


def test_window() -> None:
    hu = np.array([[-1024, -175, 50, 275, 3000]], dtype=np.float32)
    np.testing.assert_allclose(window(hu, -175, 275), [[0, 0, 0.5, 1, 1]])


@pytest.mark.parametrize(
    ("stated", "used"),
    [
        ((0.7, 0.9), (0.7, 0.9)),
        ((-0.7, 0.9), (0.7, 0.9)),
        ((None, 0.9), (0.9, 0.9)),
        ((0.7, float("nan")), (0.7, 0.7)),
        ((None, None), None),
        ((0.0, 1e-9), None),
        ((1e6, 1e6), None),
    ],
)
def test_stated_spacing(stated: tuple[float | None, float | None], used: tuple[float, float] | None) -> None:
    assert stated_spacing_mm(lesion((0, 0, 9, 9), stated)) == used


def test_unknown_spacing_takes_the_assumed_one() -> None:
    unknown = crop_boxes_px(lesion((10, 10, 90, 60), (None, None)), CropSettings())
    known = crop_boxes_px(lesion((10, 10, 90, 60), (0.8, 0.8)), CropSettings())
    np.testing.assert_array_equal(unknown, known)


def test_a_location_has_no_crop() -> None:
    with pytest.raises(ValueError, match="no box"):
        crop_boxes_px(Lesion(lesion_id="a", bookmark_ids=(), source="csv", centre_x=1.0, centre_y=1.0), CropSettings())


@pytest.mark.parametrize("bad", [{"near_mm": 0}, {"side_px": 9000}, {"window_min_hu": 300}, {"lesion_min_mm": 999}])
def test_settings_refuse_nonsense(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"crop|window"):
        CropSettings(**bad)  # type: ignore[arg-type]
