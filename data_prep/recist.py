"""Long and short axis of an outline as RECIST 1.1 measures them, and what goes with them; pure functions.

RECIST 1.1 (Eisenhauer et al., Eur J Cancer 2009): the long axis is the longest diameter in the plane of measurement,
the short axis the longest diameter perpendicular to it. "Longest" and "perpendicular" are meant in millimetres, so
every function that needs them takes ``spacing_mm`` = (x step, y step).

Axes are (4, 2) float64 arrays in px: long axis start, long axis end, short axis start, short axis end; the start of
an axis is its end point with the smaller x (on equal x: the smaller y).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.spatial import ConvexHull, QhullError
from skimage.measure import find_contours

from data_prep import frames
from data_prep.frames import Array, ArrayLike

_FLAT = 1e-9
"""Points whose spread across is below this part of their spread along lie on one line."""

_TIE = 1e-9
"""Lengths within this part of the longest are equally long."""

_SAME_PX = 1e-6
"""Coordinates nearer than this are equal when an axis's start is chosen."""

_MAX_CROSSINGS = 20_000_000
"""More crossings than any drawn or segmented outline has with its perpendiculars (a zigzag of thousands of turns)."""


def diameters(outline_px: ArrayLike, spacing_mm: ArrayLike) -> Array:
    """Long and short axis of a closed outline.

    The long axis is the longest distance between two points of the outline. The short axis is the longest segment
    perpendicular to it (in mm) that runs inside the outline with both ends on it; on a concave outline it is
    therefore no wider than the lesion itself, and it need not cross the long axis. Of equally long segments the one
    nearest to the middle of the long axis is taken. Inside and outside follow the even-odd rule where an outline
    crosses itself.

    Args:
        outline_px: (N, 2) points in px, in order; the first may be repeated at the end.
        spacing_mm: (x step, y step).

    Returns:
        (4, 2) px. An outline without width (all points on one line) has a short axis of length 0 in the middle of
        its long axis.

    Raises:
        ValueError: fewer than two different points, a coordinate that is not finite, a spacing that is not positive,
            or a zigzag too dense to be an outline.
    """
    spacing = _spacing(spacing_mm)
    points = np.asarray(outline_px, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"expected (N, 2) finite points, got shape {points.shape}")
    points_mm = points * spacing
    # Work around the outline's own centre: far from it the squares of the hull test would lose digits.
    centre_mm = (points_mm.min(axis=0) + points_mm.max(axis=0)) / 2 if len(points_mm) else np.zeros(2)
    points_mm = points_mm - centre_mm
    long_mm = _longest(points_mm)
    short_mm = _longest_perpendicular(points_mm, long_mm)
    return _oriented((np.concatenate([long_mm, short_mm]) + centre_mm) / spacing)


def longest_mm(outline_px: ArrayLike, spacing_mm: ArrayLike) -> float:
    """The long diameter alone, in mm; for the same input as :func:`diameters`, and far cheaper."""
    points_mm = np.asarray(outline_px, dtype=np.float64) * _spacing(spacing_mm)
    return math.dist(*_longest(points_mm - points_mm.mean(axis=0)))


def _spacing(spacing_mm: ArrayLike) -> Array:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (2,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ValueError(f"the spacing must be two positive numbers (x, y) in mm, got {spacing_mm!r}")
    return spacing


def _oriented(axes_px: Array) -> Array:
    """Both axes from their start (smaller x, then y) to their end."""
    axes = axes_px.reshape(2, 2, 2).copy()
    for axis in axes:
        dx, dy = axis[1] - axis[0]
        if dx < -_SAME_PX or (abs(dx) <= _SAME_PX and dy < 0):
            axis[:] = axis[::-1].copy()
    return axes.reshape(4, 2)


def _hull(points: Array) -> Array | None:
    """Corners of the convex hull, counter-clockwise; None where all points lie on one line."""
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if len(points) < 3 or spread[1] <= _FLAT * spread[0]:
        return None
    try:
        return np.asarray(points[ConvexHull(points).vertices])
    except QhullError:  # flat by Qhull's own measure
        return None


def _longest(points: Array) -> Array:
    """(2, 2): the two points farthest apart; of equally far pairs the first by (x, y)."""
    if len(points) < 2 or np.ptp(points, axis=0).max() <= 0:
        raise ValueError("an outline needs at least two different points")
    hull = _hull(points)
    if hull is None:
        along = points[np.argmax(np.linalg.norm(points - points[0], axis=1))] - points[0]
        order = np.argsort(points @ along)
        return points[order[[0, -1]]]
    # Rotating calipers (Shamos 1978): the farthest pair is antipodal, and the corner antipodal to an edge is where
    # the edges have turned by 180 degrees. Its two neighbours are tried as well, against parallel edges and rounding.
    count = len(hull)
    edges = np.roll(hull, -1, axis=0) - hull
    turned = np.unwrap(np.arctan2(edges[:, 1], edges[:, 0]))
    opposite = np.searchsorted(np.concatenate([turned, turned + 2 * math.pi]), turned + math.pi)
    first = np.tile(np.arange(count), 6)
    first[count * 3 :] = (first[count * 3 :] + 1) % count
    second = np.tile(np.concatenate([opposite - 1, opposite, opposite + 1]), 2) % count
    distance = np.linalg.norm(hull[first] - hull[second], axis=1)
    tied = np.flatnonzero(distance >= distance.max() * (1 - _TIE))
    ends = np.round(np.stack([hull[first[tied]], hull[second[tied]]]), 9)  # (2, ties, 2)
    later = (ends[0, :, 0] > ends[1, :, 0]) | ((ends[0, :, 0] == ends[1, :, 0]) & (ends[0, :, 1] > ends[1, :, 1]))
    ends[:, later] = ends[::-1, later]
    best = tied[np.lexsort((ends[1, :, 1], ends[1, :, 0], ends[0, :, 1], ends[0, :, 0]))[0]]
    return hull[[first[best], second[best]]]


def _longest_perpendicular(points: Array, axis: Array) -> Array:
    """(2, 2): the longest segment inside the closed outline that is perpendicular to ``axis``.

    Between two neighbouring corners (seen along the axis) the width inside the outline changes linearly, so the
    longest segment lies at a corner: cut the outline into strips at its corners, pair the edges that cross each
    strip from bottom to top, and measure every pair at both ends of its strip.
    """
    length = math.dist(axis[0], axis[1])
    along = (axis[1] - axis[0]) / length
    across = np.array([-along[1], along[0]])
    middle = (axis[0] + axis[1]) / 2
    grid = length * 1e-12  # corners nearer than this along the axis are one
    u = np.round((points - middle) @ along / grid) * grid
    v = (points - middle) @ across
    cuts = np.unique(np.append(u, 0.0))
    u_next, v_next = np.roll(u, -1), np.roll(v, -1)
    swap = u > u_next
    u0, u1 = np.where(swap, u_next, u), np.where(swap, u, u_next)
    v0, v1 = np.where(swap, v_next, v), np.where(swap, v, v_next)
    first = np.searchsorted(cuts, u0)
    strips = np.searchsorted(cuts, u1) - first  # how many strips each edge crosses
    total = int(strips.sum())
    if total > _MAX_CROSSINGS:
        raise ValueError("the outline crosses itself or its perpendiculars too often to be measured")
    if total == 0:
        return np.stack([middle, middle])

    edge = np.repeat(np.arange(len(u)), strips)
    strip = np.repeat(first, strips) + np.arange(total) - np.repeat(np.cumsum(strips) - strips, strips)
    slope = (v1 - v0)[edge] / (u1 - u0)[edge]
    at_left = v0[edge] + slope * (cuts[strip] - u0[edge])
    at_right = v0[edge] + slope * (cuts[strip + 1] - u0[edge])
    order = np.lexsort((at_left + at_right, strip))
    # A closed line crosses every strip an even number of times: 0-1, 2-3, ... bound what is inside.
    low, high = order[::2], order[1::2]
    cut = np.concatenate([cuts[strip[low]], cuts[strip[low] + 1]])
    bottom = np.concatenate([at_left[low], at_right[low]])
    top = np.concatenate([at_left[high], at_right[high]])
    widths = np.abs(top - bottom)
    tied = np.flatnonzero(widths >= widths.max() - _TIE * length)
    best = tied[np.lexsort((bottom[tied], cut[tied], np.round(np.abs(cut[tied]) / length, 6)))[0]]
    ends = np.array([bottom[best], top[best]])
    return np.asarray(middle + cut[best] * along + ends[:, None] * across)


# --- drawn shapes --------------------------------------------------------------------------------------------------


def axes_of_ellipse(points_px: ArrayLike, spacing_mm: ArrayLike = (1.0, 1.0)) -> Array:
    """Long and short axis of an ellipse given by the end points of its two axes.

    Args:
        points_px: (4, 2) px, both ends of one axis, then of the other (as SCOORD ELLIPSE: major, then minor).
        spacing_mm: (x step, y step). Axes that are not perpendicular in mm are taken as conjugate diameters, which
            is what an ellipse drawn in pixels becomes where pixels are not square.

    Returns:
        (4, 2) px.

    Raises:
        ValueError: not four finite points, no extent, or a spacing that is not positive.
    """
    spacing = _spacing(spacing_mm)
    centre, first, second = _half_axes(points_px)
    half_mm = np.stack([first, second]) * spacing
    lengths = np.linalg.norm(half_mm, axis=1)
    if lengths.max() <= 0:
        raise ValueError("the ellipse has no extent")
    if abs(half_mm[0] @ half_mm[1]) > 1e-9 * max(lengths[0] * lengths[1], lengths.max() ** 2 * _FLAT):
        # The ellipse is the unit circle's image under [first second]; its axes are the left singular vectors.
        directions, sizes, _ = np.linalg.svd(half_mm.T)
        half_mm = (directions * sizes).T
    elif lengths[1] > lengths[0]:
        half_mm = half_mm[::-1]
    half_px = half_mm / spacing
    ends_px = np.stack([centre - half_px[0], centre + half_px[0], centre - half_px[1], centre + half_px[1]])
    return _oriented(ends_px)


def _half_axes(points_px: ArrayLike) -> tuple[Array, Array, Array]:
    """Centre and the two half axes; four points that do not share a middle are given their common one."""
    points = np.asarray(points_px, dtype=np.float64)
    if points.shape != (4, 2) or not np.isfinite(points).all():
        raise ValueError(f"expected four finite (x, y) points, got shape {points.shape}")
    return points.mean(axis=0), (points[1] - points[0]) / 2, (points[3] - points[2]) / 2


def axes_of_circle(centre_px: ArrayLike, perimeter_px: ArrayLike, spacing_mm: ArrayLike = (1.0, 1.0)) -> Array:
    """Long and short axis of a circle, which is round in mm: two equal, perpendicular diameters.

    Args:
        centre_px: (2,) px.
        perimeter_px: (2,) px, a point on the perimeter; the long axis runs along the x axis all the same, so that
            circles of one centre and size have the same axes.
        spacing_mm: (x step, y step).

    Returns:
        (4, 2) px.

    Raises:
        ValueError: the two points coincide or are not finite, or a spacing that is not positive.
    """
    spacing = _spacing(spacing_mm)
    centre = np.asarray(centre_px, dtype=np.float64)
    radius_mm = frames.length_mm(centre, perimeter_px, spacing)
    if not (math.isfinite(radius_mm) and radius_mm > 0):
        raise ValueError("the circle has no radius")
    x, y = radius_mm / spacing
    return np.asarray(centre + np.array([[-x, 0.0], [x, 0.0], [0.0, -y], [0.0, y]]))


def outline_of_ellipse(points_px: ArrayLike, count: int = 72) -> Array:
    """(count, 2) px points around an ellipse given as for :func:`axes_of_ellipse`; its end points are among them.

    A multiple of 4 keeps the end points in; 72 points stay within 0.1 % of the half axis of the true ellipse.
    """
    if count < 4 or count % 4:
        raise ValueError(f"the number of points must be a multiple of 4, got {count}")
    centre, first, second = _half_axes(points_px)
    angle = 2 * math.pi * np.arange(count) / count
    return np.asarray(centre + np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)


def outline_of_axes(axes_px: ArrayLike, exponent: float = 2.0, count: int = 144) -> Array:
    """A closed outline through the four end points of a RECIST pair: four quarter ellipses about their crossing.

    Where the axes cross in their middles this is the ellipse with these axes. Pairs that do not cross get the
    quarters about the point of the long axis that is nearest to where they would.

    Args:
        axes_px: (4, 2) px, long axis start, end, short axis start, end.
        exponent: 2 draws ellipses, 1 straight lines (the kite with these four corners); between them
            superellipses, |x/a| ** exponent + |y/b| ** exponent = 1.
        count: number of points, a multiple of 4; the four end points are among them.

    Returns:
        (count, 2) px.

    Raises:
        ValueError: not (4, 2), an exponent below 1, or a wrong count.
    """
    _half_axes(axes_px)
    if not exponent >= 1 or count < 4 or count % 4:
        raise ValueError(f"exponent {exponent} must be at least 1, count {count} a multiple of 4")
    p, q, r, s = np.asarray(axes_px, dtype=np.float64)
    long, short = q - p, s - r
    determinant = long[0] * short[1] - long[1] * short[0]
    if abs(determinant) <= _FLAT * float(np.linalg.norm(long) * np.linalg.norm(short)):
        where = 0.5
    else:
        where = float(np.clip(((r - p)[0] * short[1] - (r - p)[1] * short[0]) / determinant, 0.0, 1.0))
    crossing = p + where * long
    angle = 2 * math.pi * np.arange(count) / count
    # Rounded so that a quarter turn is exactly 0 or 1 along the other axis.
    unit = np.round(np.stack([np.cos(angle), np.sin(angle)]), 15)
    u, v = (np.sign(unit) * np.abs(unit) ** (2 / exponent))[:, :, None]
    arm_long = np.where(u > 0, q - crossing, crossing - p)
    arm_short = np.where(v > 0, s - crossing, crossing - r)
    return np.asarray(crossing + u * arm_long + v * arm_short)


# --- how two axes lie to each other --------------------------------------------------------------------------------


def angle_between_axes_deg(axes_px: ArrayLike, spacing_mm: ArrayLike = (1.0, 1.0)) -> float:
    """The angle between two axes in mm space, 0..90 degrees.

    Raises:
        ValueError: not (4, 2), an axis without length, or a spacing that is not positive.
    """
    _, first, second = _half_axes(axes_px)
    spacing = _spacing(spacing_mm)
    a, b = first * spacing, second * spacing
    if not (a.any() and b.any()):
        raise ValueError("an axis without length has no direction")
    return math.degrees(math.atan2(abs(a[0] * b[1] - a[1] * b[0]), abs(float(a @ b))))


def axes_cross(axes_px: ArrayLike) -> bool:
    """Whether the two axes share a point (touching counts); the same for every spacing.

    Raises:
        ValueError: not (4, 2).
    """
    _half_axes(axes_px)
    p, q, r, s = np.asarray(axes_px, dtype=np.float64)

    def side(a: Array, b: Array, c: Array) -> float:
        value = float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))
        return 0.0 if abs(value) <= _FLAT * max(math.dist(a, b) * math.dist(a, c), 1e-300) else value

    if np.any(np.maximum(p, q) < np.minimum(r, s)) or np.any(np.maximum(r, s) < np.minimum(p, q)):
        return False
    return side(p, q, r) * side(p, q, s) <= 0 and side(r, s, p) * side(r, s, q) <= 0


# --- masks ---------------------------------------------------------------------------------------------------------


_SMOOTHING_PX = 0.8
"""Standard deviation of the Gaussian under which :func:`mask_outline` finds the edge between pixel centres."""

_LOST_PX = 0.75
"""An outline whose bounds smoothing moves by more than this has lost a thin part."""


def mask_outline(mask: npt.ArrayLike) -> Array:
    """The outer outline of one connected mask, at sub-pixel precision.

    It is the half-level contour of the mask under a Gaussian of 0.8 px; where that would lose a thin part, of the
    mask itself (half way between the centres of neighbouring pixels). On ellipses whose pixels are set where their
    centre is inside, its diameters come out right on average; pixel edges give diameters about 0.8 px too long, the
    contour of the bare mask 0.5 px too long, and lines through the outermost pixel centres 0.5 px too short
    (``tests/data_prep/test_recist.py`` measures all of them).

    Args:
        mask: (rows, columns), non-zero inside; pixels that touch at a corner belong together. Holes are ignored. Of
            several components the outline of the one that spans most is returned.

    Returns:
        (N, 2) px, closed (the first point is not repeated).

    Raises:
        ValueError: not two axes, or nothing inside.
    """
    inside = np.asarray(mask) != 0
    if inside.ndim != 2 or not inside.any():
        raise ValueError(f"expected a (rows, columns) mask with something inside, got shape {inside.shape}")
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    margin = 4
    crop = np.pad(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], margin).astype(np.float32)
    plain = _outer_contour(crop)
    smooth = _outer_contour(gaussian_filter(crop, _SMOOTHING_PX))
    moved = np.abs(np.concatenate([np.min(plain, 0) - np.min(smooth, 0), np.max(plain, 0) - np.max(smooth, 0)]))
    contour = plain if moved.max() > _LOST_PX else smooth
    return frames.index_to_px(contour[:-1, ::-1] + np.array([columns[0] - margin, rows[0] - margin]))


def _outer_contour(image: npt.NDArray[np.float32]) -> Array:
    """(N, 2) row, column of the closed contour at half level (or half the maximum) that spans most."""
    contours = find_contours(image, min(0.5, float(image.max()) / 2), fully_connected="high")
    return np.asarray(max(contours, key=lambda contour: float(np.prod(np.ptp(contour, axis=0)))))
