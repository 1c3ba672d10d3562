"""Annotation and Image Markup (AIM), whatever its encoding: annotations as plain objects, and from them bookmarks.

Coordinates are taken as DICOM SCOORD's ((0, 0) at the
corner of the first pixel) by custom: AIM does not say, hence ``source_frame`` "assumed".

Meaning of the shapes, as their writers (the AIM workstation plug-in and ePAD) use them: MultiPoint of two points is a
line; of four, whose first and second pair cross, a RECIST pair; else an open line. Polyline is a closed outline,
whether or not its first point is repeated; with two points it is a line.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.bookmark import Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.frames import LENGTH_UNIT_MM, Array, aim_frame_number
from data_prep.readers import Rejection
from data_prep.readers._lines import cross, length_px, longer_first, open_outline

NAMESPACE = "edu.northwestern.radiology.AIM"

MAX_BYTES = 16 * 2**20
"""Larger than any AIM file; a parsed tree takes some ten times as much memory."""

WORDS_SCHEME = "99WORDS"
"""Coding scheme that our writer gives to a site or finding that is words, not a code."""

UNIT_MM = {**LENGTH_UNIT_MM, "millimeters": 1.0, "millimetre": 1.0, "centimeters": 10.0, "centimetre": 10.0}
EPAD_LINEAR_UNIT = "linear"
"""ePAD's unit of a line, meaning cm: its own files hold 7.37 for 80.3 px of a CT of about 0.92 mm a pixel."""

_MODALITY = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
}

_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)

_LENGTH_CODES = {"G-D7FE", "G-A22A", "410668003"}  # SRT (two in use), SCT
_LONG_CODES = {"G-A185", "103339001"}
_SHORT_CODES = {"G-A186", "103340004"}


@dataclass(frozen=True)
class ImageReference:
    """A referenced DICOM image."""

    study_uid: str | None = None
    series_uid: str | None = None
    modality: str | None = None


@dataclass(frozen=True, eq=False)
class Markup:
    """One drawn shape: ``kind`` without "TwoDimension", (N, 2) points as stored, ordered by coordinate index."""

    where: str
    uid: str | None
    kind: str
    points: Array
    image_uid: str | None
    frame: int | None = None
    label: str | None = None
    line_style: str | None = None
    words: str | None = None  # of a text annotation


@dataclass(frozen=True, eq=False)
class Calculation:
    """A stated length; ``name`` is "long", "short" or "length"."""

    name: str
    value_mm: float | None
    note: str | None
    markups: frozenset[str]  # uids of the markups it refers to; empty: it does not say


@dataclass
class Annotation:
    """One ImageAnnotation with what its collection says about person and user."""

    uid: str  # of the annotation, else made from what the file says
    facts: dict[str, Any]  # Bookmark fields: observer, patient_id, patient_sex, site, laterality, tracking_uid, ...
    texts: list[str] = field(default_factory=list)
    markups: list[Markup] = field(default_factory=list)
    calculations: list[Calculation] = field(default_factory=list)
    images: dict[str, ImageReference] = field(default_factory=dict)
    rejected: list[tuple[str, str]] = field(default_factory=list)  # item path, reason


class _Measured:
    """The calculations of one annotation by name and by the markup they are about.

    Made once an annotation: a search through all calculations for every markup would take time by their product.
    """

    def __init__(self, annotation: Annotation) -> None:
        drawn = [markup for markup in annotation.markups if markup.words is None]
        only = (drawn[0].uid,) if len(drawn) == 1 else ()  # what a calculation that names no markup is about
        self._about: defaultdict[tuple[str, str | None], list[Calculation]] = defaultdict(list)
        self.names = Counter(calculation.name for calculation in annotation.calculations)
        self.unlinked: defaultdict[str, list[Calculation]] = defaultdict(list)
        """By name, those that name no markup."""
        for calculation in annotation.calculations:
            if not calculation.markups:
                self.unlinked[calculation.name].append(calculation)
            for uid in calculation.markups or only:
                self._about[calculation.name, uid].append(calculation)

    def about(self, markup: Markup, name: str) -> list[Calculation]:
        """The calculations of that name about a drawn markup, in the file's order."""
        return self._about.get((name, markup.uid), [])


class UnusableError(Exception):
    """A markup that cannot be used; the message is the reason."""


def load(path: Path) -> bytes:
    """The bytes of a file of at most :data:`MAX_BYTES`; raises UnreadableError."""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise UnreadableError(f"{path}: not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no AIM file is")
    return data


# --- values --------------------------------------------------------------------------------------------------------


def clean(words: str | None) -> str | None:
    """Without surrounding blanks; None where nothing is left."""
    return words.strip() or None if words else None


def modality_of(sop_class_uid: str | None) -> str | None:
    """The modality of an image's SOP class, where there is no doubt."""
    return _MODALITY.get(sop_class_uid or "")


def number(value: object) -> float:
    """A stated number; NaN where it is none (a Bookmark then refuses it)."""
    try:
        return float(value) if isinstance(value, str | int | float) else float("nan")
    except (ValueError, OverflowError):
        return float("nan")


def frame_number(value: object) -> int | None:
    """1-based; AIM's 0 is the only frame; None where it is missing or no number."""
    frame = number(value)
    return aim_frame_number(frame) if abs(frame) < 2**31 else None


def measurement(
    codes: set[str], names: list[str | None], unit: str | None, value: object
) -> tuple[str, float | None, str | None] | None:
    """Name, mm and note of a calculation of a length; None where it measures something else.

    Args:
        codes: its type codes.
        names: its description and the meanings of its codes; compared without case, blanks and signs.
        unit: as stated.
        value: the number as stated.
    """
    plain = {re.sub("[^a-z]", "", (name or "").lower()) for name in names}
    if codes & _LONG_CODES or plain & {"longaxis", "longdiameter", "longestdiameter", "majoraxis"}:
        name = "long"
    elif codes & _SHORT_CODES or plain & {"shortaxis", "shortdiameter", "perpendiculardiameter", "minoraxis"}:
        name = "short"
    elif codes & _LENGTH_CODES or plain & {"length", "linearmeasurement", "distance", "linelength"}:
        name = "length"
    else:
        return None
    stated, plain_unit = number(value), (unit or "").strip().lower()
    if value is None:
        return name, None, None
    if not np.isfinite(stated) or stated < 0:
        return name, None, "the stated length is not a number"
    if plain_unit == EPAD_LINEAR_UNIT:
        return name, stated * LENGTH_UNIT_MM["cm"], f"unit {EPAD_LINEAR_UNIT!r} taken as cm"
    if plain_unit not in UNIT_MM:
        return name, None, f"stated length in unknown unit {plain_unit[:20]!r}"
    return name, stated * UNIT_MM[plain_unit], None


# --- from annotation to bookmarks ----------------------------------------------------------------------------------


def bookmarks(annotation: Annotation, source: str) -> Iterator[Bookmark | Rejection]:
    """The marks of one annotation, each with the calculations that refer to it."""
    for where, reason in annotation.rejected:
        yield Rejection("", f"{annotation.uid} {where}".strip(), reason)
    measured = _Measured(annotation)
    partners = _declared_pairs(annotation, measured)
    short_axes = {id(short) for short in partners.values()}
    for markup in annotation.markups:
        if id(markup) in short_axes:
            continue
        try:
            yield _bookmark(annotation, measured, markup, partners.get(id(markup)), source)
        except (UnusableError, ValueError) as error:
            yield Rejection("", f"{annotation.uid} {markup.where}", str(error))


def _declared_pairs(annotation: Annotation, measured: _Measured) -> dict[int, Markup]:
    """id of the markup with the long axis -> the markup with the short axis, of bidirectional measurements.

    ePAD stores such a measurement as two lines with a LongAxis and a ShortAxis calculation. Where those do not tell
    the lines apart (identifiers that are all "0"), the only two lines are taken, the longer one first.
    """
    lines = [
        m for m in annotation.markups if m.words is None and len(m.points) == 2 and m.kind in ("MultiPoint", "Polyline")
    ]
    has_long = [m for m in lines if measured.about(m, "long") and not measured.about(m, "short")]
    has_short = [m for m in lines if measured.about(m, "short") and not measured.about(m, "long")]
    names = measured.names
    if not has_long and not has_short and len(lines) == 2 and names["long"] == names["short"] == 1:
        by_length = sorted(lines, key=lambda m: length_px(*m.points), reverse=True)
        has_long, has_short = by_length[:1], by_length[1:]
    short_axes: defaultdict[tuple[str | None, int | None], deque[Markup]] = defaultdict(deque)
    for line in has_short:
        short_axes[line.image_uid, line.frame].append(line)
    pairs: dict[int, Markup] = {}
    for line in has_long:
        if on_same_image := short_axes[line.image_uid, line.frame]:
            pairs[id(line)] = on_same_image.popleft()
    return pairs


def _form(markup: Markup) -> tuple[str, Array, str | None]:
    """Form, points in Bookmark's order and note of a markup; raises UnusableError with the reason."""
    points, count = markup.points, len(markup.points)
    if markup.words is not None:
        return "text", points[:1], None
    arrow = "arrow" in (markup.line_style or "").lower()
    match markup.kind, count:
        case (("Point" | "MultiPoint"), 1):
            return "point", points, None
        case "Circle", 2:
            return "circle", points, None
        case "Ellipse", 4:
            return "ellipse", longer_first(points), None
        case "MultiPoint", 2 if arrow:
            return "arrow", points[::-1], "arrow: its first point is the head, as in ePAD"
        case (("MultiPoint" | "Polyline"), 2):
            if length_px(*points) == 0:
                raise UnusableError("a line of no length")
            return "length", points, None
        case "MultiPoint", 4 if markup.label != "polyline" and cross(points):
            return "bidirectional", longer_first(points), "four points whose two lines cross"
        case (("MultiPoint" | "Polyline" | "Spline"), _) if count > 2:
            outline, closed = open_outline(points)
            if markup.kind == "MultiPoint" and not closed:
                return "polyline", points, None
            if markup.label == "box" and len(outline) == 4:
                return "box", np.stack([outline.min(axis=0), outline.max(axis=0)]), None
            if len(outline) > 2:
                return "polygon", outline, None if closed else f"{markup.kind} taken as closed, as its writers mean it"
    raise UnusableError(f"a {markup.kind or 'shape without a type'} with {count} points is not known")


def _bookmark(
    annotation: Annotation, measured: _Measured, markup: Markup, short: Markup | None, source: str
) -> Bookmark:
    notes: list[str | None] = []
    image_uid = markup.image_uid
    if image_uid is None and len(annotation.images) == 1:
        image_uid = next(iter(annotation.images))
        notes.append("the shape names no image; the only image of the annotation taken")
    if image_uid is None:
        raise UnusableError("it names no DICOM image (addresses of other images are never opened)")
    if not _UID.fullmatch(image_uid):
        raise UnusableError("the image it names is no DICOM UID (addresses of images are never opened)")
    if short is not None:
        form, points, note = "bidirectional", np.concatenate([markup.points, short.points]), None
    else:
        form, points, note = _form(markup)
    long_mm, short_mm = _stated(measured, markup, short, notes)
    reference = annotation.images.get(image_uid, ImageReference())
    flat = tuple(map(float, points.reshape(-1)))
    rounded = [round(value, 3) for value in flat]
    texts = [markup.words] if markup.words is not None else annotation.texts
    return Bookmark(
        bookmark_id=make_id(source, annotation.uid, markup.where, image_uid, markup.frame, form, rounded),
        source=source,
        source_frame="assumed",
        form=form,
        points_px=flat,
        text="; ".join(texts) or None,
        image_uid=image_uid,
        frame_number=markup.frame,
        study_uid=reference.study_uid,
        series_uid=reference.series_uid,
        modality=reference.modality,
        stated_long_mm=long_mm,
        stated_short_mm=short_mm,
        note="; ".join(dict.fromkeys(filter(None, [note, *notes]))) or None,
        **annotation.facts,
    )


def _stated(
    measured: _Measured, markup: Markup, short: Markup | None, notes: list[str | None]
) -> tuple[float | None, float | None]:
    """Stated long and short diameter in mm; adds to ``notes`` what had to be assumed."""
    if markup.words is not None:
        return None, None

    def one(owner: Markup, name: str) -> float | None:
        found = measured.about(owner, name)
        notes.extend(c.note for c in found)
        values = sorted({c.value_mm for c in found if c.value_mm is not None})
        if len(values) > 1:
            notes.append(f"{len(values)} different values for one {name}; none taken")
        return values[0] if len(values) == 1 else None

    if short is None:
        long_mm = one(markup, "long")
        return (one(markup, "length") if long_mm is None else long_mm), one(markup, "short")
    axes = {"long": one(markup, "long"), "short": one(short, "short")}
    for name in axes:  # calculations that refer to nothing: there is one of each, or the lines were not a pair
        unlinked = measured.unlinked[name]
        if axes[name] is None and len(unlinked) == 1:
            axes[name] = unlinked[0].value_mm
            notes.append(unlinked[0].note)
    return axes["long"], axes["short"]
