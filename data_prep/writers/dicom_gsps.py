"""Bookmarks as a DICOM Grayscale Softcopy Presentation State (PS3.3 A.33.1), drawn in PIXEL units.

One annotation item a bookmark. What belongs together (the two lines of a bidirectional measurement, a mark and its
text) shares a Graphic Group and, where the bookmark has one, a Tracking UID. A presentation state has no field for
a measured length, so stated diameters are written as text, "Long axis 28.27 mm", as viewers do.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sequence import Sequence as Items

import data_prep
from data_prep.bookmark import Bookmark
from data_prep.errors import DataPrepError

_LAYER = hd.pr.GraphicLayer("MEASUREMENTS", order=1, description="Lesion measurements")

_GRAPHIC_TYPES = {"ellipse": "ELLIPSE", "circle": "CIRCLE", "point": "POINT"}
_COMPOUND_TYPES = {"arrow": "ARROW", "box": "RECTANGLE"}
_CLOSED = ("polygon", "segmentation")

_MAX_TEXT_BYTES = 1024  # VR ST
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


def build_presentation_state(
    bookmarks: Sequence[Bookmark],
    evidence: Sequence[Dataset],
    *,
    sop_instance_uid: str,
    series_instance_uid: str,
    created: datetime.datetime,
    creator_name: str | None = None,
    series_number: int = 100,
    instance_number: int = 1,
    content_label: str = "MEASUREMENTS",
) -> Dataset:
    """The presentation state that draws ``bookmarks`` over the images they were made on.

    Same arguments, same bytes: nothing is taken from the clock or from chance.

    Args:
        bookmarks: marks with ``image_uid`` and points in px, inside their image. A ``segmentation`` is drawn as its
            outline and reads back as a polygon; a ``box`` and an ``arrow`` are compound graphics with a plain
            version for software that cannot draw those.
        evidence: the images (their headers are enough), all of one study and size, with one sample a pixel.
        created: date and time of creation.
        creator_name: DICOM person name; None: the observer that all bookmarks share, if there is one.
        content_label: a DICOM code string.

    Returns:
        A data set with file meta, ready for ``save_as``.

    Raises:
        DataPrepError: no bookmarks, an image that is not in ``evidence``, a point outside its image, images that one
            presentation state cannot hold together, or a text without a place.
    """
    if not bookmarks:
        raise DataPrepError("there is no bookmark to write into the presentation state")
    by_uid = {str(image.SOPInstanceUID): image for image in evidence}
    images: dict[str, Dataset] = {}
    for mark in bookmarks:
        if mark.image_uid not in by_uid:
            raise DataPrepError(f"the image {mark.image_uid} of a bookmark is not among the given images")
        if mark.image_uid not in images:
            images[mark.image_uid] = _header(by_uid[mark.image_uid])
    if len({image.get("StudyInstanceUID") for image in images.values()}) > 1:
        raise DataPrepError("one presentation state is about one study; write one for each study")
    observers = {mark.observer for mark in bookmarks}
    if creator_name is None and len(observers) == 1:
        creator_name = observers.pop()
    groups = [hd.pr.GraphicGroup(number, mark.form) for number, mark in enumerate(bookmarks, start=1)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom asks for "^" in person names and quotes the name
            state = hd.pr.GrayscaleSoftcopyPresentationState(
                referenced_images=list(images.values()),
                series_instance_uid=series_instance_uid,
                series_number=series_number,
                sop_instance_uid=sop_instance_uid,
                instance_number=instance_number,
                manufacturer="lesion-bookmarks",
                manufacturer_model_name="lesion-bookmarks",
                software_versions=data_prep.__version__,
                device_serial_number="1",
                content_label=content_label,
                content_creator_name=creator_name,
                graphic_groups=groups,
                graphic_layers=[_LAYER],
                graphic_annotations=[
                    _annotation(mark, images[str(mark.image_uid)], group)
                    for mark, group in zip(bookmarks, groups, strict=True)
                ],
                specific_character_set="ISO_IR 192",
            )
    except (AttributeError, TypeError, ValueError) as error:
        raise DataPrepError(f"these marks cannot be written as a presentation state: {error}") from error
    # highdicom writes the time of the call into these.
    for kind in ("Presentation", "Instance"):
        setattr(state, f"{kind}CreationDate", created.strftime("%Y%m%d"))
        setattr(state, f"{kind}CreationTime", created.strftime("%H%M%S"))
    for equipment in state.get("ContributingEquipmentSequence", []):
        equipment.ContributionDateTime = created.strftime("%Y%m%d%H%M%S")
    state.Laterality = None
    state.ImageHorizontalFlip, state.ImageRotation = "N", 0
    return state


def _header(image: Dataset) -> Dataset:
    """A copy of an image's elements without its pixels; elements that real images lack are empty, as type 2 allows."""
    header = Dataset()
    header.update({element.tag: element for element in image if element.tag.group != 0x7FE0})
    for keyword in _TYPE_2:
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def _annotation(mark: Bookmark, image: Dataset, group: hd.pr.GraphicGroup) -> hd.pr.GraphicAnnotation:
    points = np.array(mark.points_px, dtype=np.float64).reshape(-1, 2)
    size = (float(image.Columns), float(image.Rows))
    if points.size and not ((points >= 0) & (points <= size)).all():
        raise DataPrepError(f"a {mark.form} has a point outside its image, where a presentation state cannot draw")
    # The standard wants both or neither; the bookmark's id is unique where the identifier is used.
    tracking: dict[str, Any] = {"graphic_group": group}
    if mark.tracking_uid:
        tracking |= {"tracking_id": mark.bookmark_id, "tracking_uid": mark.tracking_uid}
    graphics = [hd.pr.GraphicObject(kind, part, "PIXEL", **tracking) for kind, part in _parts(mark.form, points)]
    words = _words(mark)
    if not graphics and not (words and len(points)):
        raise DataPrepError("a text without a place on the image cannot be written into a presentation state")
    texts = [hd.pr.TextObject(words, "PIXEL", anchor_point=tuple(points[0]), **tracking)] if words else []
    multi_frame = int(image.get("NumberOfFrames") or 1) > 1
    annotation = hd.pr.GraphicAnnotation(
        referenced_images=[image],
        graphic_layer=_LAYER,
        referenced_frame_number=mark.frame_number if multi_frame else None,
        graphic_objects=graphics,
        text_objects=texts,
    )
    if mark.form in _COMPOUND_TYPES:
        annotation.CompoundGraphicSequence = Items([_compound(mark.form, points, group)])
        for item in [*graphics, *texts]:
            item.CompoundGraphicInstanceID = group.graphic_group_id
    return annotation


def _parts(form: str, points: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Graphic Type and (N, 2) points of the plain graphics of a form."""
    if form == "text":
        return []
    if form == "bidirectional":
        return [("POLYLINE", points[:2]), ("POLYLINE", points[2:])]
    if form in _CLOSED:
        return [("POLYLINE", np.concatenate([points, points[:1]]))]
    if form == "box":
        (left, top), (right, bottom) = points
        return [("POLYLINE", np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]))]
    return [(_GRAPHIC_TYPES.get(form, "POLYLINE"), points)]


def _compound(form: str, points: np.ndarray, group: hd.pr.GraphicGroup) -> Dataset:
    """A Compound Graphic (PS3.3 C.10.5, (0070,0209)), which highdicom has no class for."""
    item = Dataset()
    item.CompoundGraphicInstanceID = group.graphic_group_id
    item.CompoundGraphicUnits = "PIXEL"
    item.GraphicDimensions = 2
    item.NumberOfGraphicPoints = len(points)
    item.GraphicData = points.reshape(-1).tolist()
    item.CompoundGraphicType = _COMPOUND_TYPES[form]
    if form == "box":  # wanted for closed types only
        item.GraphicFilled = "N"
    item.GraphicGroupID = group.graphic_group_id
    return item


def _words(mark: Bookmark) -> str | None:
    """The bookmark's text and its stated diameters, cut to what the standard allows."""
    stated = {"Long": mark.stated_long_mm, "Short": mark.stated_short_mm}
    lines = [
        f"{axis} axis {f'{value:.6f}'.rstrip('0').rstrip('.')} mm"
        for axis, value in stated.items()
        if value is not None
    ]
    own = (mark.text or "").encode()
    measured = "\n".join(line for line in lines if line not in (mark.text or ""))
    room = _MAX_TEXT_BYTES - len(measured) - 1
    return "\n".join(filter(None, [own[:room].decode(errors="ignore").strip(), measured])) or None
