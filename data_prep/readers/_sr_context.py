"""What a report says about a mark besides its coordinates: images, finding, site, tracking, words, observer."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pydicom import Dataset

from data_prep import frames
from data_prep.readers._sr_tree import Code, Item, Tree, code, sequence, text

MEASUREMENT_GROUP = "125007"
SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.66.5")

CAD_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.88.50",  # mammography
    "1.2.840.10008.5.1.4.1.1.88.65",  # chest
    "1.2.840.10008.5.1.4.1.1.88.69",  # colon
)
"""Reports of detectors (computer-aided detection)."""

LOCAL_SCHEME = "99LESIONBM"
"""Coding scheme of words that :mod:`data_prep.writers.dicom_sr` had no code for; only the words are read back."""

MAX_TEXT = 4000
"""Characters of free text that are kept of one mark."""

MODALITIES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
    "1.2.840.10008.5.1.4.1.1.130": "PT",
}
"""SOP class of the marked image -> its modality, where the class settles it."""

# Concepts by code value, which no two of the schemes in question (DCM, SCT, SRT, 99NCIAIM) use differently.
_TRACKING_ID, _TRACKING_UID = "112039", "112040"
_FINDINGS = ("121071", "111059", "zzz005")  # Finding, Single Image Finding (CAD), AIM's annotation type
_SITES = ("363698007", "G-C0E3", "zzz008")  # Finding Site in SNOMED CT and SRT, AIM's anatomic entity
_LATERALITIES = ("272741003", "G-C171")
_COMMENT = "121106"
_OBSERVER_NAME, _OBSERVER_TYPE, _LOGIN_NAME = "121008", "121005", "zzz026"
_PERSON = "121006"  # Observer Type: Person
_ALGORITHM_NAME = "111001"
_STUDY_UID, _SERIES_UID = "110180", "112002"
_FREE_TEXT_FINDING = "CORNERSTONEFREETEXT"  # dcmjs puts words a person typed into a code of this value

_MACHINE_NAME = re.compile(
    r"lesion-bookmarks:.*|[\w.-]+@\^?[\d.]+[\w.-]*:.*|[0-9a-fA-F-]{16,}|[0-9.]{16,}|-?\d", re.ASCII | re.DOTALL
)
"""Tracking identifiers that software makes up: our own, dcmjs's ``tool@version:kind``, hashes, UIDs, counters."""

_NOBODY = re.compile(r"((unknown|anonymous|anon)\^?)*", re.IGNORECASE)

_MOST_REPEATS = 16  # of one concept in one container; more say nothing about a mark
_MOST_IMAGES = 64

_AGE = re.compile(r"(\d{1,3})([DWMY])", re.ASCII)
_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12.0, "Y": 365.25}


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image (or frame) a mark is on."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The facts of the whole report."""

    sop_instance_uid: str
    is_cad: bool
    patient_id: str | None
    patient_sex: str | None
    patient_age: float | None
    study_uid: str | None
    evidence: dict[str, tuple[str | None, str | None]]  # image UID -> study UID, series UID


def report_facts(dataset: Dataset, tree: Tree) -> Report:
    """Collect what the header and the image library say; '' (present but empty) is treated as missing."""
    meta = getattr(dataset, "file_meta", None)
    uid = text(dataset, 0x00080018) or (text(meta, 0x00020003) if meta is not None else "")
    sex = text(dataset, 0x00100040)
    return Report(
        sop_instance_uid=uid,
        is_cad=text(dataset, 0x00080016) in CAD_CLASSES,
        patient_id=text(dataset, 0x00100020) or None,
        patient_sex=sex if sex in ("M", "F", "O") else None,
        patient_age=age_years(text(dataset, 0x00101010)),
        study_uid=text(dataset, 0x0020000D) or None,
        evidence={**_library(tree), **_evidence(dataset)},
    )


def age_years(stated: str) -> float | None:
    """An AS value (``045Y``, ``018M``) in years, or None."""
    match = _AGE.fullmatch(stated)
    return round(int(match[1]) * _DAYS[match[2]] / 365.25, 3) if match else None


def _evidence(dataset: Dataset) -> dict[str, tuple[str | None, str | None]]:
    found: dict[str, tuple[str | None, str | None]] = {}
    for tag in (0x0040A375, 0x0040A385):  # CurrentRequestedProcedureEvidence-, PertinentOtherEvidenceSequence
        for study in sequence(dataset, tag):
            for series in sequence(study, 0x00081115):
                for instance in sequence(series, 0x00081199):
                    place = (text(study, 0x0020000D) or None, text(series, 0x0020000E) or None)
                    found.setdefault(text(instance, 0x00081155), place)
    return found


def _library(tree: Tree) -> dict[str, tuple[str | None, str | None]]:
    found: dict[str, tuple[str | None, str | None]] = {}
    for item in tree.by_path.values():
        if item.value_type == "IMAGE":
            uids = {child.concept.value: text(child.dataset, 0x0040A124) for child in item.children}
            if _SERIES_UID in uids or _STUDY_UID in uids:
                reference = image_reference(item)
                if reference is not None:
                    place = (uids.get(_STUDY_UID) or None, uids.get(_SERIES_UID) or None)
                    found.setdefault(reference.sop_instance_uid, place)
    return found


def image_reference(item: Item) -> ImageReference | None:
    """What an IMAGE item refers to; frame 0 (AIM) means 1. None where it names nothing."""
    references = sequence(item.dataset, 0x00081199)
    if not references or not text(references[0], 0x00081155):
        return None
    element = references[0].get(0x00081160)
    numbers: list[object] = []
    if element is not None and element.value not in (None, ""):
        numbers = [element.value] if element.VM == 1 else list(element.value)
    note = None
    if len(numbers) > 1:
        note = f"drawn on {len(numbers)} frames; the first is taken"
    return ImageReference(
        text(references[0], 0x00081150),
        text(references[0], 0x00081155),
        frames.aim_frame_number(numbers[0]) if numbers else None,
        note,
    )


def image_of(tree: Tree, graphic: Item) -> ImageReference | None:
    """The image a coordinate item is selected from: its own, else the only one its measurement or group names."""
    own = _marked_images(tree, graphic)
    if own:
        if len(set(own)) > 1:
            return replace(own[0], note=f"drawn on {len(set(own))} images; the first is taken")
        return own[0]
    group = group_of(graphic)
    for holder in graphic.ancestors():
        named = set(_marked_images(tree, holder)) if len(tree.images(holder)) <= _MOST_IMAGES else set()
        if len(named) == 1:
            return named.pop()
        if tree.images(holder) or holder is group:
            break
    return None


def _marked_images(tree: Tree, item: Item) -> list[ImageReference]:
    references = [image_reference(image) for image in tree.images(item)]
    return [found for found in references if found is not None and found.sop_class_uid not in SEGMENTATION_CLASSES]


def group_of(graphic: Item) -> Item:
    """The item that holds all about one mark: its measurement group, or else the nearest container."""
    container = None
    for item in graphic.ancestors():
        if item.value_type == "CONTAINER":
            container = container or item
        elif item.value_type != "CODE":
            continue
        if item.named(_TRACKING_ID, _TRACKING_UID) or item.concept.value == MEASUREMENT_GROUP:
            return item
    return container or graphic


def _up_to_group(graphic: Item, group: Item) -> list[Item]:
    above: list[Item] = []
    for item in graphic.ancestors():
        above.append(item)
        if item is group:
            break
    return above


def _coded(item: Item) -> Code:
    return code(item.dataset, 0x0040A168)


def _words(item: Item) -> str:
    return text(item.dataset, 0x0040A160)[:MAX_TEXT]


def describe(report: Report, graphic: Item, image: ImageReference | None) -> dict[str, object]:
    """The fields of a Bookmark that do not depend on its coordinates."""
    group = group_of(graphic)
    above = _up_to_group(graphic, group)
    finding, words = _finding_and_words(above)
    site, laterality = _site(above)
    tracking_id = _first(above, _TRACKING_ID, 0x0040A160)
    if not words and tracking_id and not _MACHINE_NAME.fullmatch(tracking_id):
        words = [tracking_id[:MAX_TEXT]]
    fields: dict[str, object] = {
        "text": "; ".join(words)[:MAX_TEXT] or None,
        "finding_code": finding,
        "site": site,
        "laterality": laterality,
        "tracking_uid": _first(above, _TRACKING_UID, 0x0040A124) or None,
        "observer": _observer(graphic),
        "patient_id": report.patient_id,
        "patient_sex": report.patient_sex,
        "patient_age": report.patient_age,
    }
    if image is not None:
        study, series = report.evidence.get(image.sop_instance_uid, (report.study_uid, None))
        fields |= {
            "image_uid": image.sop_instance_uid,
            "frame_number": image.frame_number,
            "study_uid": study or report.study_uid,
            "series_uid": series,
            "modality": MODALITIES.get(image.sop_class_uid),
        }
    return fields


def _first(above: list[Item], concept: str, tag: int) -> str:
    """The nearest value of a concept; of containers and findings only, as a single shape may be numbered too."""
    for item in above:
        if item.value_type not in ("CONTAINER", "CODE"):
            continue
        for child in item.named(concept)[:_MOST_REPEATS]:
            if value := text(child.dataset, tag):
                return value
    return ""


def _finding_and_words(above: list[Item]) -> tuple[str | None, list[str]]:
    findings: list[Code] = []
    words: list[str] = []
    for item in above:
        if item.value_type == "CODE":
            findings.append(_coded(item))
        elif item.value_type == "TEXT" and _words(item) not in ("", item.concept.meaning):
            words.append(_words(item))
        for child in item.named(_COMMENT, *_FINDINGS)[:_MOST_REPEATS]:
            if child.value_type == "CODE":
                findings.append(_coded(child))
            elif child.value_type == "TEXT":
                words.append(_words(child))
    words += [finding.meaning for finding in findings if finding.value == _FREE_TEXT_FINDING]
    coded = [finding for finding in findings if finding.value not in ("", _FREE_TEXT_FINDING)]
    words += [finding.meaning for finding in coded[1:]]
    return (str(coded[0]) if coded else None), [word for word in dict.fromkeys(words) if word]


def _site(above: list[Item]) -> tuple[str | None, str | None]:
    for item in above:
        for child in item.named(*_SITES)[:1]:
            site = _coded(child)
            side = [*child.named(*_LATERALITIES), *item.named(*_LATERALITIES)]
            laterality = _coded(side[0]).meaning or None if side else None
            return (site.meaning if site.scheme == LOCAL_SCHEME else str(site)), laterality
    return None, None


def made_by_software(report: Report, graphic: Item) -> bool:
    """Whether an algorithm found this, not a person with its help.

    So in a report of computer-aided detection, and where the group or the report names an algorithm (PS3.16 TID 4019)
    and no person as observer. An algorithm of a single measurement only says how that was computed.
    """
    if report.is_cad:
        return True
    holders = [item for item in graphic.ancestors() if item.value_type in ("CONTAINER", "CODE")]
    if not any(item.named(_ALGORITHM_NAME) for item in holders):
        return False
    kinds = [_coded(kind).value for item in holders for kind in item.named(_OBSERVER_TYPE)[:_MOST_REPEATS]]
    return _PERSON not in kinds and _observer(graphic) is None


def _observer(graphic: Item) -> str | None:
    """The observer's name as stated (the nearest wins), else the login name; an empty name counts as none."""
    for item in graphic.ancestors():
        holders = [item, *item.named(_OBSERVER_TYPE)[:_MOST_REPEATS]]
        for concept, tags in ((_OBSERVER_NAME, (0x0040A123, 0x0040A160)), (_LOGIN_NAME, (0x0040A160,))):
            for found in [found for holder in holders for found in holder.named(concept)[:_MOST_REPEATS]]:
                for tag in tags:
                    name = text(found.dataset, tag).split("=")[0].strip("^ ")
                    if not _NOBODY.fullmatch(name):
                        return name[:64]
    return None
