"""AIM 4 as a tree of dicts and lists -> annotations. XML and ePAD's JSON have the same tree, so both readers end here.

A node is a dict; its attributes and child elements are keys without namespace prefix (but ``xsi:type``). A child that
may occur once is a dict, else a list of dicts; both are accepted everywhere, as converters differ.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_prep.bookmark import MAX_POINTS, Bookmark, make_id
from data_prep.readers import Rejection
from data_prep.readers._aim import (
    WORDS_SCHEME,
    Annotation,
    Calculation,
    ImageReference,
    Markup,
    bookmarks,
    clean,
    frame_number,
    measurement,
    number,
)

Node = dict[str, Any]

_MOST_ALIKE = 16
"""Stated lengths with one identifier (old files: "0" for all) that are tied to several markups nevertheless.

More say nothing about any of them, and tying each to each would take time and memory by the product of their numbers.
"""

_LOCATION_LABELS = ("location", "anatomic location", "anatomic site", "anatomic entity", "organ", "site")


def children(node: Any, *path: str) -> list[Node]:
    """The dicts at the end of a path of keys; through lists, every element is followed."""
    found = [node]
    for key in path:
        step: list[Any] = []
        for item in found:
            value = item.get(key) if isinstance(item, dict) else None
            step += value if isinstance(value, list) else [value]
        found = step
    return [item for item in found if isinstance(item, dict)]


def leaf(node: Any, *path: str, key: str = "value") -> str | None:
    """The text of the first element at a path: its ``value`` (``root`` for identifiers); None where empty."""
    for item in children(node, *path):
        value = item.get(key)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return clean(str(value))
    plain = children(node, *path[:-1])[:1]
    value = plain[0].get(path[-1]) if plain and path else None
    return clean(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def meaning(code: Node) -> str | None:
    """The display name of a coded concept."""
    return leaf(code, "displayName") or leaf(code, "iso:displayName")


def coded(code: Node) -> str | None:
    """A coded concept as "value^scheme^meaning", or the words that our writer wrapped into one."""
    value, scheme = leaf(code, "code"), leaf(code, "codeSystemName") or leaf(code, "codeSystem") or ""
    name = meaning(code) or ""
    if scheme == WORDS_SCHEME:
        return name or value
    return "^".join(part.replace("^", " ") for part in (value, scheme, name)) if value else name or None


def read_collection(collection: Node, source: str) -> Iterator[Bookmark | Rejection]:
    """The marks of an ImageAnnotationCollection."""
    document = leaf(collection, "uniqueIdentifier", key="root")
    found = children(collection, "imageAnnotations", "ImageAnnotation")
    if not found:
        yield Rejection("", document or "", "an AIM collection without image annotations")
    for index, node in enumerate(found, start=1):
        yield from bookmarks(_annotation(collection, node, document, index), source)


def _annotation(collection: Node, node: Node, document: str | None, index: int) -> Annotation:
    person, user = children(collection, "person")[:1], children(collection, "user")[:1]
    lesion = children(node, "lesionObservationEntityCollection", "LesionObservationEntity")[:1]
    types = [code for code in map(coded, children(node, "typeCode")) if code]
    facts = {
        "observer": leaf(user[0], "name") or leaf(user[0], "loginName") if user else None,
        "patient_id": leaf(person[0], "id") if person else None,
        "patient_sex": leaf(person[0], "sex") if person else None,
        "finding_code": types[0] if types else None,
        "site": _site(node),
        "laterality": next(filter(None, map(coded, children(lesion[0], "laterality"))), None) if lesion else None,
        "tracking_uid": leaf(node, "trackingUniqueIdentifier", key="root")
        or (leaf(lesion[0], "lesionUniqueIdentifier", key="root") if lesion else None),
    }
    when = leaf(node, "dateTime") or leaf(collection, "dateTime")
    uid = leaf(node, "uniqueIdentifier", key="root")
    annotation = Annotation(uid or make_id(document, index, when, facts["observer"], facts["patient_id"]), facts)
    annotation.texts = _texts(node)
    for study in children(node, "imageReferenceEntityCollection", "ImageReferenceEntity", "imageStudy"):
        for series in children(study, "imageSeries"):
            modality = leaf(children(series, "modality")[0], "code") if children(series, "modality") else None
            reference = ImageReference(
                leaf(study, "instanceUid", key="root"), leaf(series, "instanceUid", key="root"), modality
            )
            for image in children(series, "imageCollection", "Image"):
                if image_uid := leaf(image, "sopInstanceUid", key="root"):
                    annotation.images[image_uid] = reference
    for number_, markup in enumerate(children(node, "markupEntityCollection", "MarkupEntity"), start=1):
        _add_markup(annotation, markup, f"markup {number_}")
    _add_calculations(annotation, node)
    for segmentation in children(node, "segmentationEntityCollection", "SegmentationEntity"):
        uid = leaf(segmentation, "sopInstanceUid", key="root") or ""
        annotation.rejected.append(("segmentation", f"it refers to the DICOM segmentation {uid}: harvest that object"))
    if not annotation.markups and not annotation.rejected:
        annotation.rejected.append(("", "an annotation without a drawn mark"))
    return annotation


def _site(node: Node) -> str | None:
    """The anatomical entity: the one labelled as a location, else the first."""
    entities = children(node, "imagingPhysicalEntityCollection", "ImagingPhysicalEntity")
    entities.sort(key=lambda entity: (leaf(entity, "label") or "").lower() not in _LOCATION_LABELS)
    return next(filter(None, (coded(code) for entity in entities for code in children(entity, "typeCode"))), None)


def _texts(node: Node) -> list[str]:
    """Name, comment, observations with their characteristics, and inferences, each once."""
    name = (leaf(node, "name") or "").split("~")[0].strip()  # ePAD appends "~sp1~" and colours
    comment = leaf(node, "comment") or ""
    said: list[str | None] = [None if comment.startswith(name) else name, comment]
    for observation in children(node, "imagingObservationEntityCollection", "ImagingObservationEntity"):
        words = [meaning(code) for code in children(observation, "typeCode")]
        characteristics = children(
            observation, "imagingObservationCharacteristicCollection", "ImagingObservationCharacteristic", "typeCode"
        )
        said.append(
            ": ".join(
                filter(None, [" ".join(filter(None, words)), ", ".join(filter(None, map(meaning, characteristics)))])
            )
        )
        said.append(leaf(observation, "comment"))
    said += [meaning(code) for code in children(node, "inferenceEntityCollection", "InferenceEntity", "typeCode")]
    return list(dict.fromkeys(filter(None, said)))


def _add_markup(annotation: Annotation, node: Node, where: str) -> None:
    """Add one MarkupEntity, or the reason why it is not one for us."""
    kind, shape, words = leaf(node, "xsi:type") or "", node, None
    if kind.endswith("TextAnnotationEntity"):
        words = leaf(node, "text")
        shape = next(iter(children(node, "geometricShapeEntity")), {})
        if words is None:
            annotation.rejected.append((where, "a text annotation without text"))
            return
    kind = kind.rsplit(":", 1)[-1]
    coordinates = children(shape, "twoDimensionSpatialCoordinateCollection", "TwoDimensionSpatialCoordinate")
    if "ThreeDimension" in kind or children(shape, "threeDimensionSpatialCoordinateCollection"):
        annotation.rejected.append((where, "three-dimensional coordinates are not supported"))
        return
    if len(coordinates) > MAX_POINTS:
        annotation.rejected.append((where, f"{len(coordinates)} points are more than any outline has"))
        return
    coordinates.sort(key=lambda point: _order(leaf(point, "coordinateIndex")))
    points = [(number(leaf(point, "x")), number(leaf(point, "y"))) for point in coordinates]
    annotation.markups.append(
        Markup(
            where,
            leaf(node, "uniqueIdentifier", key="root"),
            kind.removeprefix("TwoDimension"),
            np.array(points, dtype=np.float64).reshape(-1, 2),
            leaf(shape, "imageReferenceUid", key="root"),
            frame_number(leaf(shape, "referencedFrameNumber")),
            leaf(node, "label"),
            leaf(node, "lineStyle"),
            words,
        )
    )


def _order(index: str | None) -> float:
    value = number(index)
    return value if value == value else 0.0


def _add_calculations(annotation: Annotation, node: Node) -> None:
    """Add the stated lengths, with the markups that a statement ties them to."""
    ties: defaultdict[str, set[str]] = defaultdict(set)
    for statement in children(node, "imageAnnotationStatementCollection", "ImageAnnotationStatement"):
        ends = [leaf(statement, f"{end}UniqueIdentifier", key="root") for end in ("subject", "object")]
        if ends[0] and ends[1]:  # either way round: writers differ
            ties[ends[0]].add(ends[1])
            ties[ends[1]].add(ends[0])
    markups = {
        leaf(m, "uniqueIdentifier", key="root") for m in children(node, "markupEntityCollection", "MarkupEntity")
    }
    stated: list[tuple[str, tuple[str, float | None, str | None]]] = []  # identifier; name, mm and note
    for entity in children(node, "calculationEntityCollection", "CalculationEntity"):
        codes = children(entity, "typeCode")
        result = next(iter(children(entity, "calculationResultCollection", "CalculationResult")), {})
        value = leaf(result, "calculationDataCollection", "CalculationData", "value") or leaf(result, "value")
        measured = measurement(
            {code for code in (leaf(c, "code") for c in codes) if code},
            [leaf(entity, "description"), *map(meaning, codes)],
            leaf(result, "unitOfMeasure"),
            value,
        )
        if measured:
            stated.append((leaf(entity, "uniqueIdentifier", key="root") or "", measured))
    alike = Counter(uid for uid, _ in stated)
    tied = {uid: frozenset(m for m in ties[uid] if m in markups) for uid in alike}
    for uid, count in alike.items():
        if count > _MOST_ALIKE and len(tied[uid]) > 1:
            tied[uid] = frozenset()
            reason = f"{count} stated lengths share one identifier: which mark each is about is not known"
            annotation.rejected.append(("calculations", reason))
    annotation.calculations = [Calculation(*measured, tied[uid]) for uid, measured in stated]
