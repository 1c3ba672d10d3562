"""Readings: what one mark, or a pair of lines that belong together, says about a lesion's axes and box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep import frames
from data_prep.bookmark import Bookmark, positive_or_none

ASSUMED_SHORT_TO_LONG = 0.75
"""The short axis assumed for a lesion of which only the long axis was drawn, as a part of the long axis.

Over 29,280 rows of DeepLesion the median of short/long is 0.746. A box from the long axis alone, by the
rule for RECIST end points, is thin where the line lies along a row or column: against the release's own boxes its mean
IoU is 0.73 and 18 % of the boxes fall under IoU 0.5. With a perpendicular of 0.75 of the length through the middle
the mean is 0.89 and 0.3 % fall under 0.5 (a circle about the line: 0.74 and 2 %).
"""

RIGHT_ANGLE_TOLERANCE_DEG = 15.0
"""Two lines whose angle is further from 90° are not inferred to be one bidirectional measurement."""

SAME_MARK_PX = 0.05
"""Marks whose coordinates all agree to this are one mark saved twice (SR stores 32-bit floats, AIM decimal text)."""

OUTLINE_FORMS = ("ellipse", "circle", "polygon", "segmentation")
_CLOSED_GAP = 0.1  # an open line whose ends are nearer than this part of its length was meant as an outline


@dataclass(slots=True)
class Reading:
    """What one observer's mark says; all coordinates in px.

    ``axes_px`` has 8 numbers (long axis start, end, short axis start, end), 4 (the long axis alone) or is None.
    ``rank`` orders readings of equal length: 0 declared pair, 1 outline, 2 inferred pair, 3 single line or box.
    """

    bookmarks: tuple[Bookmark, ...]
    axes_px: tuple[float, ...] | None = None
    box_px: tuple[float, float, float, float] | None = None
    centre_px: tuple[float, float] | None = None
    rank: int = 3
    stated_long_mm: float | None = None
    stated_short_mm: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def observers(self) -> set[str]:
        """The named observers."""
        return {bookmark.observer for bookmark in self.bookmarks if bookmark.observer}

    @property
    def spacing_mm(self) -> tuple[float, float] | None:
        """(x step, y step) of the image, None where it is not known."""
        for bookmark in self.bookmarks:
            x, y = positive_or_none(bookmark.spacing_x_mm), positive_or_none(bookmark.spacing_y_mm)
            if x and y:
                return x, y
        return None

    @property
    def long_px(self) -> float:
        """Length of the long axis in px (the longer side of the box where there is no axis, 0 for a location)."""
        if self.axes_px is not None:
            return math.dist(self.axes_px[:2], self.axes_px[2:4])
        if self.box_px is not None:
            return max(self.box_px[2] - self.box_px[0], self.box_px[3] - self.box_px[1])
        return 0.0

    @property
    def diameters_mm(self) -> tuple[float | None, float | None]:
        """Long and short diameter by the image's own spacing."""
        spacing = self.spacing_mm
        if self.axes_px is None or spacing is None:
            return None, None
        long_mm = frames.length_mm(self.axes_px[:2], self.axes_px[2:4], spacing)
        short_mm = frames.length_mm(self.axes_px[4:6], self.axes_px[6:8], spacing) if len(self.axes_px) == 8 else None
        return long_mm, short_mm


def line_of(bookmark: Bookmark) -> tuple[float, ...] | None:
    """The end points of a mark that is a single line, else None."""
    if bookmark.form in ("length", "polyline") and len(bookmark.points_px) == 4:
        return bookmark.points_px
    return None


def read_mark(bookmarks: Sequence[Bookmark]) -> Reading:
    """The reading of one mark (saved one or more times; the first bookmark's coordinates count)."""
    bookmark = bookmarks[0]
    reading = Reading(tuple(bookmarks))
    reading.stated_long_mm = _first(b.stated_long_mm for b in bookmarks)
    reading.stated_short_mm = _first(b.stated_short_mm for b in bookmarks)
    points = np.array(bookmark.points_px, dtype=np.float64).reshape(-1, 2)
    if bookmark.form == "box":
        reading.box_px = (points[0, 0], points[0, 1], points[1, 0], points[1, 1])
        _check_box(reading)
    elif bookmark.form == "bidirectional":
        reading.rank = 0
        reading.notes += odd_pair(points)
        _set_axes(reading, points)
    elif line_of(bookmark) is not None:
        _set_axes(reading, points)
    elif bookmark.form in OUTLINE_FORMS or (bookmark.form == "polyline" and _nearly_closed(points)):
        reading.rank = 1
        _measure_outline(reading, bookmark.form, points)
    elif bookmark.form == "polyline":
        reading.centre_px = (float(points[:, 0].mean()), float(points[:, 1].mean()))
        reading.notes.append("an open line of more than two points has no diameters: a location")
    elif len(points):
        reading.centre_px = (float(points[-1, 0]), float(points[-1, 1]))  # an arrow points with its last point
    if bookmark.stated_box_px is not None and bookmark.form not in ("arrow", "point", "text"):
        x0, y0, x1, y1 = bookmark.stated_box_px
        reading.box_px = (x0, y0, x1, y1)
    if reading.box_px is not None:
        x0, y0, x1, y1 = reading.box_px
        reading.centre_px = ((x0 + x1) / 2, (y0 + y1) / 2)
    return reading


def read_pair(first: Sequence[Bookmark], second: Sequence[Bookmark]) -> Reading:
    """The reading of two single lines that are inferred to be one bidirectional measurement."""
    longer, shorter = read_mark(first), read_mark(second)
    if _compare_mm(shorter) > _compare_mm(longer):
        longer, shorter = shorter, longer
    assert longer.axes_px is not None
    assert shorter.axes_px is not None
    reading = Reading(longer.bookmarks + shorter.bookmarks, rank=2)
    reading.stated_long_mm, reading.stated_short_mm = longer.stated_long_mm, shorter.stated_long_mm
    reading.notes.append("two crossing lines were taken as one bidirectional measurement")
    _set_axes(reading, np.reshape(longer.axes_px + shorter.axes_px, (-1, 2)))
    return reading


def odd_pair(points_px: frames.Array) -> list[str]:
    """What is unusual about a declared bidirectional measurement: (4, 2) points, words."""
    from data_prep import recist

    long_px, short_px = (math.dist(points_px[i], points_px[i + 1]) for i in (0, 2))
    if not long_px or not short_px:
        return ["an axis of the declared pair has no length"]
    found = []
    angle = recist.angle_between_axes_deg(points_px)
    if abs(angle - 90.0) > RIGHT_ANGLE_TOLERANCE_DEG:
        found.append(f"the axes of the declared pair meet at {angle:.0f}°")
    if not recist.axes_cross(points_px):
        found.append("the axes of the declared pair do not cross")
    if short_px > long_px * 1.001:
        found.append("the declared short axis is longer than the long axis")
    return found


def may_pair(first: Reading, second: Reading) -> float | None:
    """Whether two single lines may be one bidirectional measurement: how far from a right angle, or None for no.

    They must cross within 90° ± 15° and must not come from two differently named observers: each of two readers draws
    one line, and the two lines may well cross at a right angle.
    """
    from data_prep import recist

    if len(first.observers | second.observers) > 1 or first.axes_px is None or second.axes_px is None:
        return None
    if not first.long_px or not second.long_px:
        return None
    points = np.reshape(first.axes_px + second.axes_px, (-1, 2))
    if not recist.axes_cross(points):
        return None
    off = 90.0 - recist.angle_between_axes_deg(points, first.spacing_mm or second.spacing_mm or (1.0, 1.0))
    return off if off <= RIGHT_ANGLE_TOLERANCE_DEG else None


def _set_axes(reading: Reading, points: frames.Array) -> None:
    """Axes, and the box by DeepLesion's rule; a lone long axis gets the assumed short axis for its box only."""
    if not (points[0] != points[1]).any():
        reading.centre_px = (float(points[0, 0]), float(points[0, 1]))
        reading.notes.append("a line without length: a location")
        return
    reading.axes_px = tuple(points.ravel().tolist())
    if len(points) == 2:
        points = np.concatenate([points, assumed_short_axis(points, reading.spacing_mm or (1.0, 1.0))])
    x0, y0, x1, y1 = frames.box_from_recist(points).tolist()
    reading.box_px = (x0, y0, x1, y1)


def assumed_short_axis(line_px: frames.Array, spacing_mm: tuple[float, float]) -> frames.Array:
    """(2, 2) px: the perpendicular (in mm) through the middle of a line, 0.75 of its length."""
    spacing = np.array(spacing_mm)
    half_mm = (line_px[1] - line_px[0]) * spacing / 2
    across = np.array([-half_mm[1], half_mm[0]]) * ASSUMED_SHORT_TO_LONG / spacing
    middle = line_px.mean(axis=0)
    return np.stack([middle - across, middle + across])


def _measure_outline(reading: Reading, form: str, points: frames.Array) -> None:
    from data_prep import recist

    spacing = reading.spacing_mm or (1.0, 1.0)
    try:
        if form == "ellipse":
            axes = recist.axes_of_ellipse(points, spacing)
        elif form == "circle":
            axes = recist.axes_of_circle(points[0], points[1], spacing)
        else:
            axes = recist.diameters(points, spacing)
    except ValueError as error:
        reading.centre_px = (float(points[:, 0].mean()), float(points[:, 1].mean()))
        reading.notes.append(f"the outline cannot be measured ({error}): a location")
        return
    _set_axes(reading, axes)


def _check_box(reading: Reading) -> None:
    assert reading.box_px is not None
    x0, y0, x1, y1 = reading.box_px
    if not (x0 < x1 and y0 < y1):
        reading.box_px, reading.centre_px = None, ((x0 + x1) / 2, (y0 + y1) / 2)
        reading.notes.append("a box without extent: a location")


def _nearly_closed(points: frames.Array) -> bool:
    length = float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
    return len(points) > 3 and math.dist(points[0], points[-1]) <= _CLOSED_GAP * length


def _compare_mm(reading: Reading) -> float:
    long_mm, _ = reading.diameters_mm
    return reading.long_px if long_mm is None else long_mm


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)
