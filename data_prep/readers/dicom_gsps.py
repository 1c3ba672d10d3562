"""DICOM softcopy presentation states (PS3.3 A.33): what was drawn over which images.

Read: Graphic Objects, Compound Graphics and Text Objects of the Graphic Annotation module (PS3.3 C.10.5), in PIXEL
units (already px, see :mod:`data_prep.frames`) and DISPLAY units (fractions of the displayed area, after rotation and
flip). A mark that is drawn on several images or frames becomes one bookmark for each of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from data_prep import frames
from data_prep.bookmark import Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.quiet import quiet_pydicom
from data_prep.readers import Rejection
from data_prep.readers._gsps import (
    Shape,
    Text,
    UnusableError,
    compound,
    graphic,
    integer,
    items,
    join_texts,
    numbers,
    pair_lines,
    stated_mm,
    text,
)
from data_prep.readers.dicom_kind import load_dataset, sop_class_uid

SOURCE = "dicom-gsps"

SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.11.1": "Grayscale Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.2": "Color Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.3": "Pseudo-Color Softcopy Presentation State",
    "1.2.840.10008.5.1.4.1.1.11.4": "Blending Softcopy Presentation State",
}

MAX_MARKS = 20_000
MAX_COORDINATE_COUNT = 2_000_000
"""Limits for one file: marks times images multiply, so that a small damaged file could ask for any amount of memory."""

_ANY = 0  # some frame or other, as a key

_CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")


def recognise(head: bytes, path: Path) -> bool:
    """Is this a softcopy presentation state? Told by its SOP Class UID."""
    return sop_class_uid(path) in SOP_CLASSES


def read(path: Path) -> Iterator[Bookmark | Rejection]:
    """Every mark of one presentation state.

    Yields:
        Bookmarks in px with the referenced image's UIDs, and a Rejection for each graphic that cannot be used.

    Raises:
        UnreadableError: not a DICOM file, too damaged to walk, or an absurd number of marks.
    """
    marks: list[Bookmark | Rejection] = []
    with quiet_pydicom():
        dataset = load_dataset(path)
        coordinates = 0
        try:
            for mark in _State(dataset).marks():
                marks.append(mark)
                coordinates += len(mark.points_px) if isinstance(mark, Bookmark) else 0
                if len(marks) > MAX_MARKS or coordinates > MAX_COORDINATE_COUNT:
                    raise UnreadableError(f"{path}: more marks than any presentation state holds; it is damaged")
        except UnusableError as error:
            raise UnreadableError(f"{path}: a damaged presentation state ({error})") from error
    yield from marks


@dataclass(frozen=True)
class _Image:
    """One referenced image, or one frame of it (1-based; None: the file does not say)."""

    image_uid: str
    frame: int | None = None
    sop_class: str | None = None
    series_uid: str | None = None
    study_uid: str | None = None


class _ByImage:
    """Which of several sequence items is about an image: the first that references it, or references nothing."""

    def __init__(self, references: list[list[_Image]]) -> None:
        self._first: dict[tuple[str, int | None] | None, int] = {}
        for index, images in enumerate(references):
            for image in images:
                self._first.setdefault((image.image_uid, image.frame), index)
                self._first.setdefault((image.image_uid, _ANY), index)
            if not images:
                self._first.setdefault(None, index)

    def find(self, image: _Image) -> int | None:
        """The index of that item; None where there is none."""
        frame = _ANY if image.frame is None else image.frame
        keys: tuple[tuple[str, int | None] | None, ...] = ((image.image_uid, frame), (image.image_uid, None), None)
        return min((self._first[key] for key in keys if key in self._first), default=None)


def _references(dataset: Dataset) -> list[_Image]:
    """The items of a Referenced Image Sequence, one for each frame that is named."""
    found: list[_Image] = []
    for item in items(dataset, "ReferencedImageSequence"):
        uid = text(item, "ReferencedSOPInstanceUID")
        if uid is None:
            raise UnusableError("an image reference without its SOP Instance UID")
        named = [int(number) for number in numbers(item, "ReferencedFrameNumber") if 1 <= number < 2**31]
        sop_class = text(item, "ReferencedSOPClassUID")
        if len(found) + len(named) > MAX_MARKS:
            raise UnusableError("more image references than any presentation state has")
        found += [_Image(uid, frame, sop_class) for frame in named] or [_Image(uid, None, sop_class)]
    return found


_Refused = tuple[str, str]  # item path, reason


class _State:
    """One presentation state; ``marks`` walks its annotation items."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.uid = text(dataset, "SOPInstanceUID") or ""
        self.images = self._images()
        self.rotation_deg = integer(dataset, "ImageRotation") or 0
        self.flip = text(dataset, "ImageHorizontalFlip") == "Y"
        areas = items(dataset, "DisplayedAreaSelectionSequence")
        corners = ("DisplayedAreaTopLeftHandCorner", "DisplayedAreaBottomRightHandCorner")
        self.areas = [[numbers(item, corner) for corner in corners] for item in areas]
        self.area_of = _ByImage([_references(item) for item in areas])
        windows = items(dataset, "SoftcopyVOILUTSequence")
        self.windows_hu = [_window(numbers(item, "WindowCenter"), numbers(item, "WindowWidth")) for item in windows]
        self.window_of = _ByImage([_references(item) for item in windows])
        self.group_labels = {
            group: text(item, "GraphicGroupLabel") or ""
            for item in items(dataset, "GraphicGroupSequence")
            if (group := integer(item, "GraphicGroupID")) is not None
        }
        self.common: dict[str, Any] = {
            "source": SOURCE,
            "patient_id": text(dataset, "PatientID"),
            "patient_sex": text(dataset, "PatientSex"),
            "patient_age": _years(text(dataset, "PatientAge")),
            "observer": text(dataset, "ContentCreatorName"),
        }

    def _images(self) -> list[_Image]:
        """All images of the state (PS3.3 C.11.11), of both sides where it is a blending state (C.11.14)."""
        return [
            replace(
                image,
                series_uid=text(series, "SeriesInstanceUID"),
                study_uid=text(side, "StudyInstanceUID") or text(self.dataset, "StudyInstanceUID"),
            )
            for side in [self.dataset, *items(self.dataset, "BlendingSequence")]
            for series in items(side, "ReferencedSeriesSequence")
            for image in _references(series)
        ]

    def marks(self) -> Iterator[Bookmark | Rejection]:
        """Every mark on every image it is drawn on; a reason for each that cannot be used, once."""
        annotations = items(self.dataset, "GraphicAnnotationSequence")
        if not annotations:
            yield Rejection("", self.uid, "a presentation state without graphic annotations")
        for number, annotation in enumerate(annotations, start=1):
            where = f"{self.uid} annotation {number}"
            try:
                targets = self._targets(annotation)
                if not targets:
                    raise UnusableError("it references no image")
                drawn = {area: self._drawn(annotation, area) for area in dict.fromkeys(map(self.area_of.find, targets))}
                layer = text(annotation, "GraphicLayer")
            except UnusableError as error:
                yield Rejection("", where, str(error))
                continue
            refused: dict[tuple[str, str], None] = {}
            for image in targets:
                shapes, reasons = drawn[self.area_of.find(image)]
                refused |= dict.fromkeys(reasons)
                for shape, words in shapes:
                    try:
                        yield self._bookmark(shape, words, image, number, layer)
                    except ValueError as error:  # a Bookmark that cannot be
                        refused[shape.where, str(error)] = None
            for path, reason in refused:
                yield Rejection("", f"{where} {path}", reason)

    def _targets(self, annotation: Dataset) -> list[_Image]:
        """The images an annotation item is drawn on: those it names, or all of the state."""
        named = _references(annotation)
        if not named:
            return self.images
        known = {image.image_uid: image for image in self.images}
        return [replace(known.get(image.image_uid, image), frame=image.frame) for image in named]

    def _drawn(self, annotation: Dataset, area: int | None) -> tuple[list[tuple[Shape, str | None]], list[_Refused]]:
        """The shapes of an annotation item with their texts, in px of the images that are shown with this area."""
        refused: list[_Refused] = []
        shapes = self._shapes(annotation, area, refused)
        words, alone = join_texts(shapes, self._texts(annotation, area, refused))
        drawn = [(shape, "\n".join(said) or None) for shape, said in zip(shapes, words, strict=True)]
        for item in alone:
            shape = Shape(item.where, "text", item.anchor[None], item.note, tracking_uid=item.tracking_uid)
            drawn.append((shape, item.words))
        return drawn, refused

    def _to_px(self, dataset: Dataset, data: str, units: str, area: int | None) -> frames.Array:
        """The (N, 2) points of element ``data`` in px of images shown with this area.

        Raises:
            UnusableError: not (x, y) pairs of finite numbers, or units that cannot be converted.
        """
        values = numbers(dataset, data)
        if not values or len(values) % 2:
            raise UnusableError(f"{data} holds {len(values)} numbers, not (x, y) pairs")
        points = np.array(values, dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise UnusableError(f"{data} holds numbers that are not finite")
        stated = text(dataset, units)
        if stated == "PIXEL":
            return points
        if stated != "DISPLAY":
            raise UnusableError(
                "MATRIX units (tiled images) are not supported" if stated == "MATRIX" else "unknown units"
            )
        if area is None:
            raise UnusableError("DISPLAY units, but no displayed area is stated for this image")
        try:
            return frames.display_to_px(points, *self.areas[area], rotation_deg=self.rotation_deg, flip=self.flip)
        except ValueError as error:
            raise UnusableError(f"the displayed area cannot be used: {error}") from error

    def _shapes(self, annotation: Dataset, area: int | None, refused: list[_Refused]) -> list[Shape]:
        """The graphics of one annotation item in px; those that cannot be used are added to ``refused``."""
        shapes: list[Shape] = []
        failed: dict[int, _Refused] = {}  # compound graphics; a plain version of the same one may follow
        both = [(True, *g) for g in enumerate(items(annotation, "CompoundGraphicSequence"), start=1)]
        both += [(False, *g) for g in enumerate(items(annotation, "GraphicObjectSequence"), start=1)]
        for is_compound, index, item in both:
            where = f"{'compound graphic' if is_compound else 'graphic'} {index}"
            instance = None
            try:
                instance = integer(item, "CompoundGraphicInstanceID")
                tracking_uid = text(item, "TrackingUID")
                if not is_compound and instance is not None:
                    same = [n for n, shape in enumerate(shapes) if shape.instance == instance and shape.is_compound]
                    for n in same:  # drawn already; only this plain version can have a tracking identifier
                        shapes[n] = replace(shapes[n], tracking_uid=tracking_uid or shapes[n].tracking_uid)
                    if same:
                        continue
                    failed.pop(instance, None)
                units = "CompoundGraphicUnits" if is_compound else "GraphicAnnotationUnits"
                points = self._to_px(item, "GraphicData", units, area)
                if is_compound:
                    turned = (numbers(item, "RotationAngle") or [0.0])[0]
                    drawn = compound(text(item, "CompoundGraphicType"), points, rotation_deg=turned)
                else:
                    drawn = graphic(text(item, "GraphicType"), points, filled=text(item, "GraphicFilled") == "Y")
                group = integer(item, "GraphicGroupID")
                shapes += [Shape(where, *mark, instance, group, tracking_uid, is_compound) for mark in drawn]
            except UnusableError as error:
                if is_compound and instance is not None:
                    failed[instance] = (where, str(error))
                else:
                    refused.append((where, str(error)))
        refused += failed.values()
        return pair_lines(shapes, self.group_labels)

    def _texts(self, annotation: Dataset, area: int | None, refused: list[_Refused]) -> list[Text]:
        """The text objects of one annotation item with their anchor, or the middle of their box, in px."""
        texts: list[Text] = []
        for index, item in enumerate(items(annotation, "TextObjectSequence"), start=1):
            where, note = f"text {index}", None
            try:
                words = text(item, "UnformattedTextValue")
                if words is None:  # some software adds an empty text to every arrow
                    continue
                if numbers(item, "AnchorPoint"):
                    anchor = self._to_px(item, "AnchorPoint", "AnchorPointAnnotationUnits", area)[0]
                else:
                    corners = [
                        self._to_px(item, f"BoundingBox{corner}HandCorner", "BoundingBoxAnnotationUnits", area)[0]
                        for corner in ("TopLeft", "BottomRight")
                    ]
                    anchor, note = np.mean(corners, axis=0), "the middle of the text's box; it has no anchor"
                instance, group = integer(item, "CompoundGraphicInstanceID"), integer(item, "GraphicGroupID")
                texts.append(Text(where, words, anchor, note, instance, group, text(item, "TrackingUID")))
            except UnusableError as error:
                refused.append((where, str(error)))
        return texts

    def _bookmark(self, shape: Shape, words: str | None, image: _Image, number: int, layer: str | None) -> Bookmark:
        points = tuple(map(float, shape.points.reshape(-1)))
        long_mm, short_mm = stated_mm(shape.form, words or "")
        is_ct = image.sop_class in _CT_CLASSES
        window = self.window_of.find(image) if is_ct else None  # elsewhere a window is not in HU
        low, high = (None, None) if window is None else self.windows_hu[window]
        rounded = [round(value, 3) for value in points]
        path = f"{number}/{shape.where}"
        return Bookmark(
            bookmark_id=make_id(SOURCE, self.uid, path, image.image_uid, image.frame, shape.form, rounded),
            form=shape.form,
            points_px=points,
            text=words,
            tracking_uid=shape.tracking_uid,
            study_uid=image.study_uid,
            series_uid=image.series_uid,
            image_uid=image.image_uid,
            frame_number=image.frame,
            modality="CT" if is_ct else None,
            stated_long_mm=long_mm,
            stated_short_mm=short_mm,
            window_min_hu=low,
            window_max_hu=high,
            note="; ".join(filter(None, [shape.note, layer and f"layer {layer}"])) or None,
            **self.common,
        )


def _window(centre: list[float], width: list[float]) -> tuple[float | None, float | None]:
    """The ends of the first window."""
    if not (centre and width and math.isfinite(centre[0]) and math.isfinite(width[0])):
        return None, None
    return centre[0] - width[0] / 2, centre[0] + width[0] / 2


def _years(age: str | None) -> float | None:
    """A DICOM age string such as 063Y or 018M in years."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", age or "")
    if not match:
        return None
    return int(match[1]) * {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}[match[2]]
