"""Graphics and texts of one presentation-state annotation item: tolerant access, shapes in px, which text says what."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pydicom
import pydicom.config
from pydicom import Dataset
from pydicom.multival import MultiValue

from data_prep.frames import LENGTH_UNIT_MM, Array
from data_prep.readers._lines import cross, length_px, longer_first, open_outline
from data_prep.readers.dicom_kind import DAMAGE

_FLOATS = ("GraphicData", "AnchorPoint")


class UnusableError(Exception):
    """A part of the file that cannot be used; the message is the reason, without any patient data."""


def _value(dataset: Dataset, keyword: str) -> object:
    try:
        return dataset.get(keyword)
    except DAMAGE as error:
        raise UnusableError(f"{keyword} cannot be decoded") from error


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is missing or empty. Raises UnusableError where it is no sequence."""
    value = _value(dataset, keyword)
    if value is None or value == "" or value == b"":
        return []
    if not isinstance(value, pydicom.Sequence):
        raise UnusableError(f"{keyword} is not a sequence")
    return list(value)


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The numbers of an element; none where it is missing or empty. Raises UnusableError where they are not numbers."""
    value: Any = _value(dataset, keyword)
    if value is None or (isinstance(value, str | bytes) and not value.strip()):
        return []
    try:
        if isinstance(value, bytes) and keyword in _FLOATS:
            # More than 64 KiB do not fit an explicit VR of FL and are stored as UN (PS3.5 6.2.2), little endian.
            return [float(number) for number in np.frombuffer(value, "<f4")]
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            value = [value]
        return [float(number) for number in value]
    except DAMAGE as error:
        raise UnusableError(f"{keyword} does not hold numbers") from error


def integer(dataset: Dataset, keyword: str) -> int | None:
    """The first number of an element as an integer; None where it is missing."""
    try:
        return next((int(number) for number in numbers(dataset, keyword)), None)
    except (OverflowError, ValueError) as error:  # inf, nan
        raise UnusableError(f"{keyword} is not an integer") from error


def text(dataset: Dataset, keyword: str) -> str | None:
    """The text of an element without surrounding blanks and NULs; None where it is missing or empty."""
    value = _value(dataset, keyword)
    if value is None:
        return None
    if isinstance(value, pydicom.Sequence | bytes):
        raise UnusableError(f"{keyword} is not text")
    try:
        words = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
    except DAMAGE as error:
        raise UnusableError(f"{keyword} cannot be decoded") from error
    return words.replace("\r\n", "\n").strip(" \t\n\r\0") or None


@dataclass(frozen=True, eq=False)
class Shape:
    """One drawn mark on one image; ``points`` are (N, 2) px, ordered as :data:`data_prep.bookmark.POINTS_PER_FORM`."""

    where: str  # item path within the annotation item
    form: str
    points: Array
    note: str | None = None
    instance: int | None = None  # Compound Graphic Instance ID
    group: int | None = None  # Graphic Group ID
    tracking_uid: str | None = None
    is_compound: bool = False


@dataclass(frozen=True, eq=False)
class Text:
    """One text object; ``anchor`` is (2,) px."""

    where: str
    words: str
    anchor: Array
    note: str | None = None
    instance: int | None = None
    group: int | None = None
    tracking_uid: str | None = None


# --- graphics ------------------------------------------------------------------------------------------------------

_Drawn = list[tuple[str, Array, str | None]]  # form, points, note


def _line(points: Array, *, filled: bool = False) -> tuple[str, Array]:
    """A polyline: two points are a length; a closed or filled one is a polygon without the repeated point."""
    points, closed = open_outline(points)
    if len(points) == 2:
        if length_px(*points) == 0:
            raise UnusableError("a line of no length")
        return "length", points
    if len(points) < 2:
        raise UnusableError("a line of one point")
    return ("polygon" if closed or filled else "polyline"), points


def graphic(kind: str | None, points: Array, *, filled: bool) -> _Drawn:
    """What a Graphic Object of this Graphic Type draws (PS3.3 C.10.5.1.2); raises UnusableError with the reason."""
    match kind, len(points):
        case "POLYLINE", _:
            return [(*_line(points, filled=filled), None)]
        case "INTERPOLATED", _:
            return [(*_line(points, filled=filled), "a curve through these points")]
        case "ELLIPSE", 4:
            return [("ellipse", longer_first(points), None)]
        case "CIRCLE", 2:
            return [("circle", points, None)]
        case "POINT", 1:
            return [("point", points, None)]
    raise UnusableError(f"a graphic of type {kind or 'missing'} with {len(points)} points is not known")


def compound(kind: str | None, points: Array, *, rotation_deg: float) -> _Drawn:
    """What a Compound Graphic of this type (0070,0294) draws; raises UnusableError with the reason.

    Lines have two ends, an ARROW tail and head, a RECTANGLE and an ELLIPSE two opposite corners of the box around
    them, a CROSSHAIR its middle.
    """
    note = f"compound graphic {kind}"
    match kind, len(points):
        case "ARROW", 2:
            return [("arrow", points, note)]
        case "RULER" | "RANGELINE" | "LINE", 2:
            return [(*_line(points), note)]
        case "MULTILINE", count if count % 2 == 0:
            return [(*_line(pair), note) for pair in points.reshape(-1, 2, 2)]
        case "CROSSHAIR", 1:
            return [("point", points, note)]
        case (("RECTANGLE" | "ELLIPSE"), 2):
            low, high = points.min(axis=0), points.max(axis=0)
            if rotation_deg % 360 or not (low < high).all():
                raise UnusableError(f"an empty or turned compound {kind} is not supported")
            if kind == "RECTANGLE":
                return [("box", np.stack([low, high]), note)]
            (x, y), (left, top), (right, bottom) = (low + high) / 2, low, high
            return [("ellipse", longer_first(np.array([(left, y), (right, y), (x, top), (x, bottom)])), note)]
        case (("INFINITELINE" | "CUTLINE" | "AXIS"), _):
            raise UnusableError(f"a compound {kind} measures nothing")
    raise UnusableError(f"a compound graphic of type {kind or 'missing'} with {len(points)} points is not known")


def pair_lines(shapes: list[Shape], group_labels: dict[int, str]) -> list[Shape]:
    """Join two lines that the file itself puts together to one bidirectional measurement.

    They share a Tracking UID, or a Graphic Group that is labelled as one measurement or whose two lines cross. Lines
    that merely cross stay single: whether they belong together is judged when bookmarks become lesions.
    """
    lines: defaultdict[tuple[str, object], list[Shape]] = defaultdict(list)
    for shape in shapes:
        if shape.form == "length" and shape.tracking_uid:
            lines["uid", shape.tracking_uid].append(shape)
        elif shape.form == "length" and shape.group is not None:
            lines["group", shape.group].append(shape)
    replaced: dict[int, Shape | None] = {}
    for (by, key), pair in lines.items():
        if len(pair) != 2:
            continue
        points = np.concatenate([pair[0].points, pair[1].points])
        labelled = by == "group" and re.search("bidirectional|recist", group_labels.get(key, ""), re.I)  # type: ignore[call-overload]
        if by == "uid" or labelled or cross(points):
            replaced[id(pair[0])] = replace(pair[0], form="bidirectional", points=longer_first(points))
            replaced[id(pair[1])] = None
    kept = (replaced.get(id(shape), shape) for shape in shapes)
    return [shape for shape in kept if shape is not None]


# --- texts ---------------------------------------------------------------------------------------------------------

_UNITS = r"(mm|cm)(?![\w²³^/])"
_NUMBER = r"(\d{1,4}(?:[.,]\d+)?)"
_LENGTH = re.compile(rf"(?<![\w.,]){_NUMBER}\s*{_UNITS}", re.IGNORECASE)
_AXIS = {
    name: re.compile(rf"\b{name}(?:est)?[ -]*(?:axis|diameter)\s*[:=]?\s*{_NUMBER}\s*{_UNITS}", re.IGNORECASE)
    for name in ("long", "short")
}

NEAR_PX = 20.0
"""A text anchored nearer than this to one of several marks is taken to be about it."""

_MEASURED = ("length", "bidirectional")


def _millimetres(number: str, unit: str) -> float:
    return float(number.replace(",", ".")) * LENGTH_UNIT_MM[unit.lower()]


def stated_mm(form: str, words: str) -> tuple[float | None, float | None]:
    """Long and short diameter in mm that a text states for a mark of this form; None where it is not unambiguous.

    "Long axis 28.27 mm" counts for every form; a bare length only for a line, two of them for a bidirectional
    measurement (the greater is the long one).
    """
    found = {name: pattern.search(words) for name, pattern in _AXIS.items()}
    if any(found.values()):
        long_mm, short_mm = (_millimetres(*match.groups()) if match else None for match in found.values())
        return long_mm, short_mm
    values = sorted({_millimetres(*match) for match in _LENGTH.findall(words)}, reverse=True)
    if form == "length" and len(values) == 1:
        return values[0], None
    if form == "bidirectional" and len(values) == 2:
        return values[0], values[1]
    return None, None


def join_texts(shapes: list[Shape], texts: list[Text]) -> tuple[list[list[str]], list[Text]]:
    """Which text is about which shape, and the texts that stand alone.

    A text belongs to the shape with its compound graphic, its tracking UID or its graphic group; to the only shape
    of the item; if it states a length, to the nearest line; else to the nearest shape within :data:`NEAR_PX`.
    """
    words: list[list[str]] = [[] for _ in shapes]
    alone: list[Text] = []
    for item in texts:
        owners = [
            index
            for index, shape in enumerate(shapes)
            if (item.instance is not None and item.instance == shape.instance)
            or (item.tracking_uid is not None and item.tracking_uid == shape.tracking_uid)
            or (item.group is not None and item.group == shape.group)
        ]
        if not owners and len(shapes) == 1:
            owners = [0]
        if not owners and shapes:
            distance = [float(np.hypot(*(shape.points - item.anchor).T).min()) for shape in shapes]
            measured = [i for i, shape in enumerate(shapes) if shape.form in _MEASURED]
            if _LENGTH.search(item.words) and measured:
                owners = [min(measured, key=distance.__getitem__)]
            elif min(distance) <= NEAR_PX:
                owners = [int(np.argmin(distance))]
        if owners:
            words[owners[0]].append(item.words)
        else:
            alone.append(item)
    return words, alone
