"""RECIST axes on outlines: against brute force, scikit-image, ellipses with known axes, and masks of them."""

from __future__ import annotations

import math
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist
from skimage.draw import polygon
from skimage.measure import regionprops

from data_prep import frames, recist
from data_prep.frames import Array

SETTINGS = settings(deadline=None, max_examples=40, derandomize=True)

coordinate = st.floats(-300, 300, allow_nan=False).map(lambda value: round(value, 3))
spacing_pair = st.tuples(st.floats(0.3, 3), st.floats(0.3, 3))
outlines = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=40).filter(
    lambda points: float(np.ptp(np.array(points), axis=0).max()) > 0.5
)


@st.composite
def stars(draw: st.DrawFn) -> Array:
    """Outlines that do not cross themselves, concave ones among them."""
    radii = draw(st.lists(st.floats(3, 60), min_size=5, max_size=40))
    angle = 2 * math.pi * np.arange(len(radii)) / len(radii)
    return np.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.array(radii)[:, None])


def lengths_mm(axes_px: Array, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> tuple[float, float]:
    return (
        frames.length_mm(axes_px[0], axes_px[1], spacing_mm),
        frames.length_mm(axes_px[2], axes_px[3], spacing_mm),
    )


def ellipse_axes(a: float, b: float, turn: float, centre: tuple[float, float] = (0.0, 0.0)) -> Array:
    along, across = np.array([math.cos(turn), math.sin(turn)]), np.array([-math.sin(turn), math.cos(turn)])
    return np.asarray(centre + np.stack([-a * along, a * along, -b * across, b * across]))


# --- diameters -----------------------------------------------------------------------------------------------------


def test_rectangle_by_hand() -> None:
    # 40 x 30: the diagonal is 50; perpendicular to it through its middle the sides are 50 * 30 / 40 apart.
    axes = recist.diameters([(0, 0), (40, 0), (40, 30), (0, 30)], (1, 1))
    assert lengths_mm(axes) == pytest.approx((50.0, 37.5))
    np.testing.assert_allclose(axes[:2], [(0, 0), (40, 30)])


def test_spacing_decides_which_axis_is_long() -> None:
    square = [(0, 0), (10, 0), (10, 10), (0, 10), (5, 12)]
    upright = recist.diameters([(0, 5), (2, 0), (4, 5), (2, 10)], (1, 1))
    wide = recist.diameters([(0, 5), (2, 0), (4, 5), (2, 10)], (5, 1))
    np.testing.assert_allclose(upright, [(2, 0), (2, 10), (0, 5), (4, 5)])
    np.testing.assert_allclose(wide, [(0, 5), (4, 5), (2, 0), (2, 10)])
    assert lengths_mm(recist.diameters(square, (2, 2)), (2, 2))[0] == pytest.approx(
        2 * lengths_mm(recist.diameters(square, (1, 1)))[0]
    )


@SETTINGS
@given(outlines, spacing_pair)
def test_long_axis_is_the_longest_distance_by_brute_force(
    points: list[tuple[float, float]], spacing: tuple[float, float]
) -> None:
    axes = recist.diameters(points, spacing)
    in_mm = np.array(points) * spacing
    assert lengths_mm(axes, spacing)[0] == pytest.approx(cdist(in_mm, in_mm).max(), rel=1e-9)
    assert recist.longest_mm(points, spacing) == pytest.approx(lengths_mm(axes, spacing)[0], rel=1e-9)
    for end in axes[:2]:
        assert np.linalg.norm(np.array(points) - end, axis=1).min() < 1e-6


def widest_by_brute_force(outline: Array, axes: Array) -> float:
    """The longest inside run on perpendiculars beside every corner and between, by the even-odd rule on each."""
    along = (axes[1] - axes[0]) / np.linalg.norm(axes[1] - axes[0])
    u, v = outline @ along, outline @ np.array([-along[1], along[0]])
    best = 0.0
    for level in np.concatenate([u - 1e-9, u + 1e-9, np.linspace(u.min(), u.max(), 101)]):
        crossings = []
        for i in range(len(u)):
            u0, u1, v0, v1 = u[i - 1], u[i], v[i - 1], v[i]
            if (u0 > level) != (u1 > level):
                crossings.append(v0 + (level - u0) / (u1 - u0) * (v1 - v0))
        crossings.sort()
        best = max([best, *(high - low for low, high in zip(crossings[::2], crossings[1::2], strict=True))])
    return best


@SETTINGS
@given(stars())
def test_short_axis_is_the_longest_perpendicular_inside_the_outline(outline: Array) -> None:
    axes = recist.diameters(outline, (1, 1))
    expected = widest_by_brute_force(outline, axes)
    assert lengths_mm(axes)[1] == pytest.approx(expected, abs=1e-5)


@SETTINGS
@given(outlines, spacing_pair)
def test_axes_are_perpendicular_in_mm_and_short_is_not_longer(
    points: list[tuple[float, float]], spacing: tuple[float, float]
) -> None:
    axes = recist.diameters(points, spacing)
    long, short = (axes[1] - axes[0]) * spacing, (axes[3] - axes[2]) * spacing
    assert abs(float(long @ short)) / float(long @ long) < 1e-6
    assert np.linalg.norm(short) <= np.linalg.norm(long) * (1 + 1e-9)
    for axis in axes.reshape(2, 2, 2):
        assert axis[0, 0] < axis[1, 0] + 2e-6


@SETTINGS
@given(stars(), st.floats(0, 2 * math.pi), st.tuples(coordinate, coordinate), st.floats(0.2, 5))
def test_lengths_move_turn_and_scale_with_the_outline(
    outline: Array, turn: float, shift: tuple[float, float], scale: float
) -> None:
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    moved = scale * outline @ rotation.T + shift
    before, after = lengths_mm(recist.diameters(outline, (1, 1))), lengths_mm(recist.diameters(moved, (1, 1)))
    assert after[0] == pytest.approx(scale * before[0], rel=1e-9)
    if _sure_of_long_axis(outline):
        assert after[1] == pytest.approx(scale * before[1], rel=1e-6)


def _sure_of_long_axis(outline: Array) -> bool:
    distances = np.sort(cdist(outline, outline)[np.triu_indices(len(outline), 1)])
    return bool(distances[-1] - distances[-2] > 1e-6)


@SETTINGS
@given(stars(), st.integers(0, 39), st.booleans())
def test_neither_the_first_point_nor_the_direction_matters(outline: Array, start: int, back: bool) -> None:
    other = np.roll(outline, start % len(outline), axis=0)[:: -1 if back else 1]
    np.testing.assert_allclose(recist.diameters(other, (1, 1)), recist.diameters(outline, (1, 1)), atol=1e-6)


@SETTINGS
@given(st.floats(4, 80), st.floats(0.2, 0.97), st.floats(0, math.pi), spacing_pair)
def test_ellipse_with_known_axes(a: float, ratio: float, turn: float, spacing: tuple[float, float]) -> None:
    in_mm = ellipse_axes(a, a * ratio, turn, (100, 50))
    outline = recist.outline_of_ellipse(in_mm / spacing, 720)
    axes = recist.diameters(outline, spacing)
    assert lengths_mm(axes, spacing) == pytest.approx((2 * a, 2 * a * ratio), rel=2e-3)
    np.testing.assert_allclose(axes, recist.axes_of_ellipse(in_mm / spacing, spacing), atol=0.05 * a / min(spacing))


def test_feret_diameter_of_scikit_image() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        mask = np.zeros((80, 80), dtype=bool)
        points = ellipse_axes(rng.uniform(5, 30), rng.uniform(4, 15), rng.uniform(0, 3), (40, 40))
        outline = recist.outline_of_ellipse(points)
        mask[polygon(outline[:, 1], outline[:, 0], mask.shape)] = True
        (region,) = regionprops(mask.astype(np.uint8))
        contour = recist._outer_contour(np.pad(region.image_convex, 1).astype(np.float32))
        assert recist.longest_mm(contour, (1, 1)) == pytest.approx(region.feret_diameter_max, abs=1e-9)


def test_concave_outline_is_measured_inside() -> None:
    # A U: 30 wide, 40 high, with a slit 10 wide and 30 deep from above; a chord across the slit would not be inside.
    u_shape = [(0, 0), (10, 0), (10, 30), (20, 30), (20, 0), (30, 0), (30, 40), (0, 40)]
    axes = recist.diameters(u_shape, (1, 1))
    assert lengths_mm(axes)[0] == pytest.approx(50)
    assert lengths_mm(axes)[1] == pytest.approx(widest_by_brute_force(np.array(u_shape, float), axes), abs=1e-6)
    middle = (axes[2] + axes[3]) / 2
    assert cv2.pointPolygonTest(np.array(u_shape, np.float32), tuple(map(float, middle)), False) > 0


@pytest.mark.parametrize(
    "points",
    [[(0, 0), (3, 4)], [(0, 0), (3, 4), (0, 0)], [(0, 0), (1.5, 2), (3, 4), (1.5, 2)], [(3, 4), (0, 0), (0, 0)]],
)
def test_outline_without_width(points: list[tuple[float, float]]) -> None:
    np.testing.assert_allclose(recist.diameters(points, (1, 1)), [(0, 0), (3, 4), (1.5, 2), (1.5, 2)], atol=1e-9)


def test_nearly_flat_outlines_are_measured() -> None:
    for width in (1e-6, 1e-9, 1e-12, 1e-15):
        axes = recist.diameters([(0, 0), (50, width), (100, 0), (50, -width)], (1, 1))
        assert lengths_mm(axes) == pytest.approx((100, 2 * width), abs=1e-7)


@pytest.mark.parametrize(
    "points", [[], [(1, 1)], [(2, 3)] * 5, [(0, 0), (1, math.nan), (2, 2)], [(0, 0, 0), (1, 1, 1)], [(0, math.inf)] * 3]
)
def test_no_outline(points: list[tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match=r"points|outline"):
        recist.diameters(points, (1, 1))


@pytest.mark.parametrize("spacing", [(0, 1), (1, -1), (math.nan, 1), (1,), (1, 1, 1), (math.inf, 1)])
def test_no_spacing(spacing: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="spacing"):
        recist.diameters([(0, 0), (1, 0), (0, 1)], spacing)


def test_large_and_hostile_outlines_take_no_time() -> None:
    started = time.monotonic()
    angle = np.linspace(0, 2 * math.pi, 100_000, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 200
    assert lengths_mm(recist.diameters(circle, (1, 1))) == pytest.approx((400, 400), rel=1e-6)
    zigzag = np.stack([np.arange(100_000) % 2 * 500 + np.arange(100_000) * 1e-3, np.arange(100_000) * 1e-3], axis=1)
    with pytest.raises(ValueError, match="too often"):
        recist.diameters(zigzag, (1, 1))
    assert time.monotonic() - started < 10


# --- drawn shapes --------------------------------------------------------------------------------------------------


def test_axes_of_ellipse_are_ordered_by_millimetres() -> None:
    points = [(10, 5), (10, 25), (4, 15), (16, 15)]
    np.testing.assert_allclose(recist.axes_of_ellipse(points), [(10, 5), (10, 25), (4, 15), (16, 15)])
    np.testing.assert_allclose(recist.axes_of_ellipse(points, (2, 1)), [(4, 15), (16, 15), (10, 5), (10, 25)])


@SETTINGS
@given(st.floats(2, 50), st.floats(2, 50), st.floats(0, math.pi), spacing_pair)
def test_axes_of_an_ellipse_drawn_in_anisotropic_pixels(
    a: float, b: float, turn: float, spacing: tuple[float, float]
) -> None:
    drawn = ellipse_axes(a, b, turn, (60, 60))
    axes = recist.axes_of_ellipse(drawn, spacing)
    expected = recist.diameters(recist.outline_of_ellipse(drawn, 2000), spacing)
    assert lengths_mm(axes, spacing) == pytest.approx(lengths_mm(expected, spacing), rel=2e-3)
    assert recist.angle_between_axes_deg(axes, spacing) == pytest.approx(90, abs=1e-5)


def test_axes_of_circle_is_round_in_mm() -> None:
    axes = recist.axes_of_circle((10, 20), (14, 20), (0.5, 1.0))  # radius 2 mm
    np.testing.assert_allclose(axes, [(6, 20), (14, 20), (10, 18), (10, 22)])
    with pytest.raises(ValueError, match="radius"):
        recist.axes_of_circle((1, 1), (1, 1))


def test_ellipse_without_extent() -> None:
    with pytest.raises(ValueError, match="extent"):
        recist.axes_of_ellipse([(1, 1)] * 4)


@SETTINGS
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(5, 40), st.floats(0.1, 1), st.floats(1, 2))
def test_outline_of_axes_passes_through_the_four_ends(
    where: float, across: float, length: float, ratio: float, exponent: float
) -> None:
    x, y = where * length, across * ratio * length
    axes = np.array([(0, 0), (length, 0), (x, -y), (x, ratio * length - y)], dtype=float)
    outline = recist.outline_of_axes(axes, exponent)
    assert cdist(axes, outline).min(axis=1).max() < 1e-9
    np.testing.assert_allclose(outline.min(axis=0), axes.min(axis=0), atol=1e-9)
    np.testing.assert_allclose(outline.max(axis=0), axes.max(axis=0), atol=1e-9)


def test_outline_of_bisecting_axes_is_the_ellipse() -> None:
    axes = ellipse_axes(20, 9, 0.7, (40, 30))
    outline, ellipse = recist.outline_of_axes(axes, count=72), recist.outline_of_ellipse(axes, 72)
    assert cdist(outline, ellipse).min(axis=1).max() < 1e-9


def test_angle_and_crossing() -> None:
    crossing = [(0, 0), (10, 0), (5, -5), (5, 5)]
    assert recist.angle_between_axes_deg(crossing) == pytest.approx(90)
    assert recist.axes_cross(crossing)
    slanted = [(0, 0), (10, 0), (0, 0), (10, 10)]
    assert recist.angle_between_axes_deg(slanted) == pytest.approx(45)
    assert recist.angle_between_axes_deg(slanted, (1, 2)) == pytest.approx(math.degrees(math.atan(2)))
    assert recist.axes_cross(slanted)  # they touch at an end
    assert not recist.axes_cross([(0, 0), (10, 0), (12, -5), (12, 5)])
    assert not recist.axes_cross([(0, 0), (10, 0), (0, 1), (10, 1)])
    assert not recist.axes_cross([(0, 0), (10, 10), (6, 5), (9, 1)])
    with pytest.raises(ValueError, match="length"):
        recist.angle_between_axes_deg([(0, 0), (0, 0), (1, 1), (2, 2)])


# --- masks ---------------------------------------------------------------------------------------------------------


def _pixel_edges(mask: np.ndarray) -> Array:
    rows, columns = np.nonzero(mask)
    corners = np.concatenate([np.stack([columns + i, rows + j], axis=1) for i in (0, 1) for j in (0, 1)]).astype(float)
    return np.asarray(corners[ConvexHull(corners).vertices])


def _pixel_centres(mask: np.ndarray) -> Array:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return frames.index_to_px(contours[0][:, 0])


def _bare_contour(mask: np.ndarray) -> Array:
    return frames.index_to_px(recist._outer_contour(np.pad(mask, 1).astype(np.float32))[:, ::-1] - 1)


def test_mask_outline_measures_better_than_the_usual_outlines() -> None:
    rng = np.random.default_rng(0)
    kinds = {
        "ours": recist.mask_outline,
        "edges": _pixel_edges,
        "centres": _pixel_centres,
        "bare": _bare_contour,
    }
    errors: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(150):
        a = rng.uniform(4, 25)
        b = a * rng.uniform(0.5, 0.9)
        axes = ellipse_axes(a, b, rng.uniform(0, math.pi), tuple(rng.uniform(40, 41, 2)))
        outline = frames.px_to_index(recist.outline_of_ellipse(axes, 360))
        mask = np.zeros((81, 81), dtype=bool)
        mask[polygon(outline[:, 1], outline[:, 0], mask.shape)] = True
        for kind, function in kinds.items():
            long, short = lengths_mm(recist.diameters(function(mask), (1, 1)))
            errors[kind].append((long - 2 * a, short - 2 * b))
    bias = {kind: np.mean(values, axis=0) for kind, values in errors.items()}
    assert np.abs(bias["ours"]).max() < 0.2
    assert bias["edges"].min() > 0.5
    assert bias["centres"].max() < -0.3
    assert bias["bare"][0] > 0.3
    assert np.std(errors["ours"], axis=0).max() < 0.35


def test_mask_outline_of_pixels() -> None:
    single = np.zeros((9, 12), dtype=bool)
    single[4, 7] = True
    outline = recist.mask_outline(single)
    np.testing.assert_allclose((outline.min(axis=0) + outline.max(axis=0)) / 2, (7.5, 4.5), atol=1e-6)
    assert 0.9 < recist.longest_mm(outline, (1, 1)) < 2.5
    corner = np.zeros((5, 5), dtype=bool)
    corner[0, 0] = corner[4, 4] = corner[3, 3] = corner[2, 2] = corner[1, 1] = True
    diagonal = recist.diameters(recist.mask_outline(corner), (1, 1))
    assert lengths_mm(diagonal)[0] == pytest.approx(4 * math.sqrt(2) + 0.75, abs=0.5)


def test_mask_outline_keeps_thin_parts_and_forgets_holes() -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 5:25] = True
    mask[20, 25:55] = True  # a spicule one pixel wide
    outline = recist.mask_outline(mask)
    assert outline[:, 0].max() == pytest.approx(55, abs=0.76)
    mask[15:22, 10:18] = False
    np.testing.assert_allclose(recist.mask_outline(mask), outline, atol=1e-6)


def test_mask_outline_at_the_border_and_anywhere() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[0:8, 0:6] = True
    at_origin = recist.mask_outline(mask)
    moved = recist.mask_outline(np.roll(mask, (12, 24), axis=(0, 1)))
    np.testing.assert_allclose(moved, at_origin + np.array([24, 12]), atol=1e-9)
    np.testing.assert_allclose(np.r_[at_origin.min(axis=0), at_origin.max(axis=0)], (0, 0, 6, 8), atol=0.05)


@pytest.mark.parametrize("mask", [np.zeros((4, 4)), np.ones(4), np.ones((2, 2, 2)), np.zeros((0, 0))])
def test_no_mask(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="mask"):
        recist.mask_outline(mask)
