"""Read the marks of DICOM structured reports: TID 1500, and any Enhanced, Comprehensive or CAD report with coordinates.

Every SCOORD and SCOORD3D item of the content tree is a mark or a rejection. What is said about it is looked for in
the items above it (PS3.3 C.17.3: content inherits context), so reports that follow no template are read too. SCOORD is
px: (column, row), corner of the first pixel 0 (PS3.3 C.18.6.1.2).

Two lines that a measurement group names long and short axis are one bidirectional mark, as declared. A closed outline
of four corners along rows and columns is a box. ``text`` is the comments, else a tracking identifier that a person
could have given; ``observer`` is the name the report states. What an algorithm found, with no person as observer, has
the source ``detector``: it is no training data until somebody accepts it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from data_prep.bookmark import DETECTOR, Bookmark, make_id
from data_prep.errors import UnreadableError
from data_prep.quiet import quiet_pydicom
from data_prep.readers import Rejection
from data_prep.readers._planes import ImageLookup, by_frame_of_reference, frames_of, place
from data_prep.readers._sr_context import (
    MEASUREMENT_GROUP,
    SEGMENTATION_CLASSES,
    ImageReference,
    Report,
    describe,
    group_of,
    image_of,
    image_reference,
    made_by_software,
    report_facts,
)
from data_prep.readers._sr_shapes import GRAPHICS, GroupValues, Shape, UnusableError, group_values, shapes_of
from data_prep.readers._sr_tree import Item, Tree, parse, text
from data_prep.readers.dicom_kind import (
    DAMAGE,
    KEY_OBJECT_SELECTION,
    SR_PREFIX,
    load_dataset,
    looks_like_dicom,
    sop_class_uid,
)

SOURCE = "dicom-sr"

MAX_BYTES = 8 * 2**20
"""Some thousand marks, or a thousand outlines of a thousand points. Eight bytes make an element, which costs pydicom a
few microseconds, so a file of this size made up to be slow is still read in seconds."""

USES_IMAGES = True

NEEDS_IMAGES = "patient-space coordinates (SCOORD3D) need the images: harvest with --images"
"""The reason of a mark that could be placed if ``read`` were given the images."""


def recognise(head: bytes, path: Path) -> bool:
    """Any SR storage class but key-object notes."""
    if not looks_like_dicom(head):
        return False
    uid = sop_class_uid(path)
    return uid is not None and uid.startswith(SR_PREFIX) and uid != KEY_OBJECT_SELECTION


def read(path: Path, images: ImageLookup | None = None) -> Iterator[Bookmark | Rejection]:
    """Every mark of a report, or why it is not harvested.

    Args:
        path: the file.
        images: an index to place SCOORD3D marks with; without it they are rejected as :data:`NEEDS_IMAGES`.

    Raises:
        UnreadableError: not DICOM, too large, or damaged so that nothing can be read.
    """
    dataset = load_dataset(path, max_bytes=MAX_BYTES)
    # Values are converted while the tree is walked. pydicom would quote them, names included, in its warnings.
    with quiet_pydicom():
        try:
            found = list(read_dataset(dataset, images=images))
        except DAMAGE as error:
            raise UnreadableError(f"{path}: damaged report ({type(error).__name__})") from None
    yield from found


def read_dataset(dataset: Dataset, *, images: ImageLookup | None = None) -> Iterator[Bookmark | Rejection]:
    """As :func:`read`, of a report already in memory."""
    tree = parse(dataset)
    report = report_facts(dataset, tree)
    for where, reason in tree.faults:
        yield Rejection("", where, reason)
    measured_by = _measurements(tree)
    attached = {item.path for item in measured_by.values()}
    groups: dict[tuple[int, ...], list[Shape]] = defaultdict(list)
    drawn: set[tuple[int, ...]] = set()
    graphics = [item for item in tree.root.walk() if item.value_type in GRAPHICS]
    for graphic in graphics:
        group = group_of(graphic)
        drawn.update(item.path for item in (group, *group.ancestors()))
        try:
            shapes = shapes_of(graphic, measured_by.get(graphic.path))
            for shape in shapes:
                _find_image(tree, report, shape, images)
        except UnusableError as error:
            yield Rejection("", graphic.where, str(error))
        except DAMAGE as error:
            yield Rejection("", graphic.where, f"damaged coordinates ({type(error).__name__})")
        else:
            groups[group.path] += shapes
    for path, shapes in groups.items():
        for shape in _paired(shapes):
            yield _bookmark(report, shape, _loose_values(tree.by_path[path], attached, len(shapes)))
    groups_without = [
        item
        for item in tree.root.walk()
        if item.concept.value == MEASUREMENT_GROUP and item.value_type == "CONTAINER" and item.path not in drawn
    ]
    for item in groups_without:
        yield _without_coordinates(report, item)
    if not graphics and not groups_without and not tree.faults:
        yield Rejection("", "", "a report without coordinates")


# --- coordinates and their measurements ----------------------------------------------------------------------------


def _measurements(tree: Tree) -> dict[tuple[int, ...], Item]:
    """Path of a coordinate item -> the NUM that is inferred from it, as its parent or by reference."""
    found: dict[tuple[int, ...], Item] = {}
    for item in tree.by_path.values():
        if item.value_type == "NUM":
            for target in tree.targets(item):
                if target.value_type in GRAPHICS:
                    found.setdefault(target.path, item)
    return found


def _find_image(tree: Tree, report: Report, shape: Shape, images: ImageLookup | None) -> None:
    """Fill in the image of a shape; patient-space points become px.

    Raises:
        UnusableError: it names no image, or cannot be placed on one.
    """
    image = image_of(tree, shape.item)
    if shape.item.value_type == "SCOORD":
        if image is None:
            raise UnusableError("the coordinates name no image")
        shape.image = image
        if image.note:
            shape.notes.append(image.note)
        return
    if images is None:
        raise UnusableError(NEEDS_IMAGES)
    reference = None if image is None else (image.sop_instance_uid, image.frame_number)
    named = [] if reference is None else [found for _, found in frames_of(images, reference)]
    candidates = named or by_frame_of_reference(images).get(text(shape.item.dataset, 0x30060024), [])
    evidence = {series for _, series in report.evidence.values()}
    try:
        record, points = place(shape.points, candidates, preferred_series=evidence)
    except ValueError as error:
        raise UnusableError(f"patient-space coordinates: {error}") from error
    shape.points = points
    frame = record.frame_number if record.frame_count > 1 else None
    shape.image = ImageReference(record.sop_class_uid or "", record.sop_instance_uid or "", frame)
    shape.notes.append("placed on its slice from patient-space coordinates")


def _loose_values(group: Item, attached: set[tuple[int, ...]], shapes: int) -> GroupValues:
    """Measurements of a group that stand beside its coordinates; empty where it is open which shape they mean."""
    if shapes > 2:
        return GroupValues()
    loose = [item for item in group.walk() if item.value_type == "NUM" and item.path not in attached]
    values = group_values(loose)
    if shapes == 2:  # the two axes of one pair share a certainty, but no lengths
        return GroupValues(score=values.score)
    return values


# --- marks ---------------------------------------------------------------------------------------------------------


def _paired(shapes: list[Shape]) -> Iterator[Shape]:
    """The shapes of one group, each long axis joined with the next short axis on its image, as the group declares."""
    shorts: dict[tuple[str, int], deque[Shape]] = defaultdict(deque)
    for shape in shapes:
        if shape.role == "short":
            shorts[_place(shape)].append(shape)
    for shape in shapes:
        partners = shorts[_place(shape)]
        if shape.role == "long" and partners:
            short_axis = partners.popleft()
            short_axis.role = "paired"
            shape.form, shape.short_mm = "bidirectional", short_axis.stated_mm
            shape.points = np.concatenate([shape.points, short_axis.points])
            shape.notes += short_axis.notes
    for shape in shapes:
        if shape.role == "short":
            shape.notes.append("a short axis without a long axis on the same image")
        if shape.role != "paired":
            yield shape


def _place(shape: Shape) -> tuple[str, int]:
    return (shape.image.sop_instance_uid, shape.image.frame_number or 1) if shape.image is not None else ("", 1)


def _bookmark(report: Report, shape: Shape, loose: GroupValues) -> Bookmark | Rejection:
    frame = shape.image.frame_number if shape.image is not None else None
    rounded = [round(float(value), 3) for value in shape.points.ravel()]
    fields: dict[str, Any] = {
        **describe(report, shape.item, shape.image),
        "stated_long_mm": shape.stated_mm if shape.stated_mm is not None else loose.long_mm,
        "stated_short_mm": shape.short_mm if shape.short_mm is not None else loose.short_mm,
        "score": loose.score,
        "note": "; ".join(dict.fromkeys([*shape.notes, *loose.notes])) or None,
    }
    try:
        return Bookmark(
            bookmark_id=make_id(SOURCE, report.sop_instance_uid, shape.item.where, frame, shape.form, *rounded),
            source=DETECTOR if made_by_software(report, shape.item) else SOURCE,
            form=shape.form,
            points_px=tuple(map(float, shape.points.ravel())),
            **fields,
        )
    except ValueError as error:
        return Rejection("", shape.item.where, str(error))


def _without_coordinates(report: Report, group: Item) -> Bookmark | Rejection:
    """A measurement group that draws nothing: words about an image, or a reference to something else."""
    references = [found for child in group.children if (found := image_reference(child)) is not None]
    segmentation = next((r for r in references if r.sop_class_uid in SEGMENTATION_CLASSES), None)
    if segmentation is not None:
        uid = segmentation.sop_instance_uid
        return Rejection("", group.where, f"the mark is in the segmentation {uid}: harvest that file")
    if len(references) == 1:
        anchor = Item(group.dataset, (*group.path, 0), group)  # so that the context is looked for in the group
        fields: dict[str, Any] = describe(report, anchor, references[0])
        if fields["text"]:
            return Bookmark(
                bookmark_id=make_id(SOURCE, report.sop_instance_uid, group.where, references[0].frame_number, "text"),
                source=DETECTOR if made_by_software(report, anchor) else SOURCE,
                form="text",
                points_px=(),
                **fields,
            )
    return Rejection("", group.where, "a measurement group without coordinates")
