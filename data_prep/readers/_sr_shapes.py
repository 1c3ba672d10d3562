"""From coordinate items (SCOORD, SCOORD3D) and their measurements to forms, points and stated millimetres."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from data_prep import frames
from data_prep.bookmark import MAX_COORDINATE_PX, MAX_POINTS
from data_prep.frames import Array
from data_prep.readers._sr_context import ImageReference
from data_prep.readers._sr_tree import Code, Item, code, raw_bytes, sequence, text

GRAPHICS = ("SCOORD", "SCOORD3D")
_GRAPHIC_DATA = 0x00700022

_MAX_LONE_POINTS = 100

# By value, and by meaning (lower case) for private codes.
_LONG = frozenset({"103339001", "G-A185", "131187", "long axis", "long diameter", "longest diameter", "major axis"})
_SHORT = frozenset(
    {"103340004", "G-A186", "131188", "short axis", "short diameter", "longest perpendicular diameter", "minor axis"}
)
_PATH = frozenset({"121211", "path length"})
_REGION = frozenset({"111030", "111041"})  # Image Region, Outline
_CERTAINTY = "111012"
_PIXEL_UNITS = ("{pixels}", "{pixel}", "px", "pixel", "pixels")


class UnusableError(ValueError):
    """A coordinate item that is no mark; the message is the reason."""


@dataclass(slots=True, eq=False)
class Shape:
    """One coordinate item, understood."""

    item: Item
    form: str
    points: Array  # (N, 2) px, or (N, 3) LPS mm until it is placed
    role: str = ""  # "long", "short" or ""
    image: ImageReference | None = None
    stated_mm: float | None = None
    short_mm: float | None = None  # of a pair
    notes: list[str] = field(default_factory=list)


def shapes_of(graphic: Item, measured: Item | None) -> list[Shape]:
    """What a coordinate item draws: one shape, or one point each for a MULTIPOINT.

    Args:
        graphic: an SCOORD or SCOORD3D item.
        measured: the NUM item that is inferred from it, if any.

    Raises:
        UnusableError: no such graphic type, a wrong number of points, or coordinates that cannot be.
    """
    kind = text(graphic.dataset, 0x00700023).upper()
    points = _points(graphic)
    concept = measured.concept if measured is not None else graphic.concept
    role = "long" if _is(concept, _LONG) else "short" if _is(concept, _SHORT) else ""
    stated_mm, notes = stated_length_mm(measured) if measured is not None else (None, [])
    if kind == "POINT":
        _expect(kind, points, 1)
        return [Shape(graphic, "point", points, notes=notes)]
    if kind == "CIRCLE":
        _expect(kind, points, 2)
        _extent(kind, points)
        return [Shape(graphic, "circle", points, notes=notes)]
    if kind == "ELLIPSE":
        _expect(kind, points, 4)
        _extent(kind, points[:2])
        return [Shape(graphic, "ellipse", points, notes=notes)]
    if kind == "MULTIPOINT" and (len(points) != 2 or stated_mm is None):
        if len(points) > _MAX_LONE_POINTS:
            raise UnusableError(f"a MULTIPOINT of {len(points)} points is no mark")
        return [
            Shape(graphic, "point", point[np.newaxis]) for point in np.array(list(dict.fromkeys(map(tuple, points))))
        ]
    if kind not in ("POLYLINE", "POLYGON", "MULTIPOINT"):
        raise UnusableError(f"graphic type {kind or '(none)'} is not a flat mark")
    return [_line_or_outline(Shape(graphic, "", points, role, stated_mm=stated_mm, notes=notes), kind, measured)]


def _line_or_outline(shape: Shape, kind: str, measured: Item | None) -> Shape:
    points = shape.points
    _extent(kind, points)
    if measured is not None and _is(measured.concept, _PATH):
        shape.form = "polyline"
        return shape
    if len(points) == 2:
        shape.form = "length"
        return shape
    shape.role, shape.stated_mm = (
        "",
        None,
    )  # only two points are an axis; a stated diameter of an outline is attached by its group
    closed = bool(np.array_equal(points[0], points[-1]))
    corners = points[:-1] if closed else points
    outline = closed or kind == "POLYGON" or _is(shape.item.concept, _REGION) or _measures_area(measured)
    if not outline or len(corners) < 3:
        shape.form = "polyline"
        return shape
    if not closed and kind != "POLYGON":
        shape.notes.append("an outline that was not closed")
    shape.form, shape.points = "polygon", corners
    if corners.shape[1] == 2 and _is_rectangle(corners):
        shape.form = "box"
        shape.points = np.stack([corners.min(axis=0), corners.max(axis=0)])
    return shape


def _is_rectangle(corners: Array) -> bool:
    """Four corners whose sides follow the rows and columns in turn."""
    if len(corners) != 4:
        return False
    along_x = np.roll(corners, -1, axis=0)[:, 1] == corners[:, 1]
    along_y = np.roll(corners, -1, axis=0)[:, 0] == corners[:, 0]
    return bool(np.array_equal(along_x, ~along_y) and along_x[0] != along_x[1] and along_x[0] == along_x[2])


def _is(concept: Code, wanted: frozenset[str]) -> bool:
    return concept.value in wanted or concept.meaning.lower() in wanted


def _points(graphic: Item) -> Array:
    width = 3 if graphic.value_type == "SCOORD3D" else 2
    raw = raw_bytes(graphic.dataset, _GRAPHIC_DATA)
    if raw is None:
        element = graphic.dataset.get(_GRAPHIC_DATA)
        stored = None if element is None else element.value
        raw = (stored, True) if isinstance(stored, bytes) else None  # VR UN: over 64 KiB in an explicit syntax
    if raw is not None:
        if len(raw[0]) % 4:
            raise UnusableError("GraphicData is cut off")
        values = np.frombuffer(raw[0], dtype="<f4" if raw[1] else ">f4").astype(np.float64)
    elif stored is None or isinstance(stored, str):
        raise UnusableError("no GraphicData")
    else:
        values = np.atleast_1d(np.asarray(stored, dtype=np.float64))
    if not values.size or values.size % width:
        raise UnusableError(f"GraphicData has {values.size} numbers, not {'pairs' if width == 2 else 'triplets'}")
    if values.size > width * MAX_POINTS:
        raise UnusableError(f"GraphicData has {values.size // width} points; that is damage")
    if not np.isfinite(values).all() or np.abs(values).max() > MAX_COORDINATE_PX:
        raise UnusableError("a coordinate is not a number or lies outside any image")
    return values.reshape(-1, width)


def _expect(kind: str, points: Array, count: int) -> None:
    if len(points) != count:
        raise UnusableError(f"a {kind} has {len(points)} points, not {count}")


def _extent(kind: str, points: Array) -> None:
    if len(points) < 2 or not np.ptp(points, axis=0).any():
        raise UnusableError(f"a {kind} without any extent")


# --- measurements --------------------------------------------------------------------------------------------------


def _value(measured: Item) -> tuple[float | None, str]:
    """The number and the code of its unit."""
    values = sequence(measured.dataset, 0x0040A300)
    if not values:
        return None, ""
    unit = code(values[0], 0x004008EA).value
    for tag in (0x0040A161, 0x0040A30A):  # FloatingPointValue, NumericValue
        element = values[0].get(tag)
        if element is not None and element.value not in (None, "", b""):
            value = float(element.value if element.VM == 1 else element.value[0])
            return (value if math.isfinite(value) else None), unit
    return None, unit


def stated_length_mm(measured: Item) -> tuple[float | None, list[str]]:
    """A NUM's value in mm where it is a length, and what had to be assumed.

    dcmjs wrote lengths with the unit ``1`` (no unit) and meant mm; where the name is not one of an area, that is taken.
    """
    value, unit = _value(measured)
    if value is None or value < 0:
        return None, []
    if unit in frames.LENGTH_UNIT_MM:
        return value * frames.LENGTH_UNIT_MM[unit], []
    if unit in ("1", "") and _is_length(measured.concept):
        return value, [f"the stated length has the unit `{unit}`: read as mm"]
    if unit in _PIXEL_UNITS:
        return None, ["the stated length is in pixels"]
    return None, []


def _is_length(concept: Code) -> bool:
    words = concept.meaning.lower()
    return _is(concept, _LONG | _SHORT) or any(word in words for word in ("length", "diameter", "axis", "distance"))


def _measures_area(measured: Item | None) -> bool:
    if measured is None:
        return False
    words = measured.concept.meaning.lower()
    return _value(measured)[1] in frames.AREA_UNIT_MM2 or any(word in words for word in ("area", "perimeter"))


@dataclass(frozen=True, slots=True)
class GroupValues:
    """What the measurements of a group say that are inferred from no coordinates of their own."""

    long_mm: float | None = None
    short_mm: float | None = None
    score: float | None = None
    notes: tuple[str, ...] = ()


def group_values(measurements: Iterable[Item]) -> GroupValues:
    """Long and short diameter (or the only length) and the certainty, 0..1."""
    long_mm = short_mm = score = None
    others: list[float] = []
    notes: list[str] = []
    for measured in measurements:
        if measured.concept.value == _CERTAINTY:
            value, unit = _value(measured)
            if value is not None:
                score = value / 100.0 if unit == "%" else value
            continue
        value, assumed = stated_length_mm(measured)
        if value is None:
            continue
        notes += assumed
        if _is(measured.concept, _LONG):
            long_mm = value if long_mm is None else long_mm
        elif _is(measured.concept, _SHORT):
            short_mm = value if short_mm is None else short_mm
        else:
            others.append(value)
    if long_mm is None and len(others) == 1:
        long_mm = others[0]
    return GroupValues(long_mm, short_mm, score, tuple(dict.fromkeys(notes)))
