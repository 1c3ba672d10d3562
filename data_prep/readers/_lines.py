"""What readers of drawn lines share: is it closed, which axis is the longer, do two lines cross. Points are in px."""

from __future__ import annotations

import numpy as np

from data_prep.frames import Array

CLOSED_PX = 0.01
"""A line whose ends are nearer than this is an outline; writers repeat the first point only to float precision."""


def length_px(start: Array, end: Array) -> float:
    """The distance between two (x, y) points."""
    return float(np.hypot(*(end - start)))


def open_outline(points: Array) -> tuple[Array, bool]:
    """(N, 2) points -> the points without a repeated first one at the end, and whether there was one."""
    closed = len(points) > 2 and length_px(points[0], points[-1]) < CLOSED_PX
    return (points[:-1] if closed else points), closed


def longer_first(points: Array) -> Array:
    """(4, 2): two axes, start and end of each -> the longer one first; equal ones stay as they are."""
    first, second = length_px(points[0], points[1]), length_px(points[2], points[3])
    return points[[2, 3, 0, 1]] if second > first * (1 + 1e-6) else points


def cross(points: Array) -> bool:
    """(4, 2): do the segments 0-1 and 2-3 have an inner point in common?"""

    def side(start: Array, end: Array, point: Array) -> float:
        (ax, ay), (bx, by) = end - start, point - start
        return float(ax * by - ay * bx)

    a, b, c, d = points
    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
