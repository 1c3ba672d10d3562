"""Read and check ``datalist.json``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from scripts.errors import BundleError

SCHEMA_VERSION = 1
SECTIONS = ("training", "tuning", "validation", "test")
LISTS = ("lesion_id", "recist_px", "coarse_type", "long_diameter_mm", "short_diameter_mm")
META = ("patient_id", "spacing_mm", "slice_index", "image_size", "numbers_lead_to", *LISTS)


@dataclass(frozen=True, slots=True)
class Datalist:
    """A checked datalist.

    ``sections`` maps training, tuning, validation and test to their items; ``categories`` names the classes;
    ``sha256`` is the file's own; ``is_truth`` says that it lists every lesion, marked or not.
    """

    path: str
    sections: dict[str, list[dict[str, Any]]]
    categories: list[str]
    sha256: str
    is_truth: bool


def load(path: str | PathLike[str]) -> Datalist:
    """Read a datalist and check everything that would spoil a training in silence.

    Raises:
        BundleError: no such file, not JSON, another schema version, no item at all, a path that leaves the images
            folder, a box that is empty or not finite, a label outside the categories (MONAI silently trains the
            last class on -1), lists of different lengths, or a patient in two sections.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot read the datalist ({error.strerror})") from error
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not a JSON file ({error}); make it with `python -m data_prep datalist`") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(f"{path}: not a datalist of schema_version {SCHEMA_VERSION}")
    categories = content.get("categories")
    if not isinstance(categories, list) or not categories or not all(isinstance(c, str) for c in categories):
        raise BundleError(f"{path}: 'categories' must be a list of names")
    sections: dict[str, list[dict[str, Any]]] = {}
    patients: dict[str, str] = {}
    for section in SECTIONS:
        items = content.get(section, [])
        if not isinstance(items, list):
            raise BundleError(f"{path}: {section!r} must be a list")
        seen: set[str] = set()
        for number, item in enumerate(items):
            problem = _problem(item, len(categories))
            if not problem:
                key = item["image"][len(item["image"]) // 2]
                problem = f"{key} is listed twice; put all its lesions into one item" if key in seen else None
                seen.add(key)
            if problem:
                raise BundleError(f"{path}: {section}[{number}]: {problem}")
            patient = item.get("patient_id")
            if patient is not None and patients.setdefault(str(patient), section) != section:
                raise BundleError(
                    f"{path}: {section}[{number}]: its patient is also in {patients[str(patient)]}; split by patient"
                )
        sections[section] = items
    if not any(sections.values()):
        raise BundleError(f"{path}: the datalist is empty; look at rejected.csv of the harvest for the reasons")
    return Datalist(str(path), sections, categories, hashlib.sha256(data).hexdigest(), content.get("kind") == "truth")


def _problem(item: Any, classes: int) -> str | None:
    if not isinstance(item, dict):
        return "not an object"
    images, boxes, labels = item.get("image"), item.get("box"), item.get("label")
    if not isinstance(images, list) or len(images) % 2 == 0 or not all(isinstance(i, str) for i in images):
        return "'image' must be an odd number of paths, the key slice in the middle"
    for image in images:
        if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts or "\\" in image:
            return "an image path leaves the images folder"
    if not isinstance(boxes, list) or not isinstance(labels, list) or len(boxes) != len(labels):
        return "'box' and 'label' must be lists of the same length"
    for box in boxes:
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
            return f"{box!r} is not a box x0, y0, x1, y1"
        if not all(abs(v) < 1e9 for v in box) or box[0] >= box[2] or box[1] >= box[3]:
            return f"the box {box!r} is empty or not finite"
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
            return f"label {label!r} is not one of the {classes} categories (0 to {classes - 1})"
    if item.get("numbers_lead_to", "head") not in ("head", "feet"):
        return "'numbers_lead_to' must be head or feet"
    for name in LISTS:
        if name in item and (not isinstance(item[name], list) or len(item[name]) != len(boxes)):
            return f"{name!r} must have one entry for each box"
    for ends in item.get("recist_px", []):
        if ends is not None and not (isinstance(ends, list) and len(ends) == 8 and all(map(_finite, ends))):
            return f"'recist_px' {ends!r} is neither null nor the 4 end points x, y of both diameters"
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9


def section(
    datalist: str | PathLike[str],
    name: str,
    *,
    dataset_dir: str | PathLike[str],
    training: bool = False,
    single_class: bool = False,
) -> list[dict[str, Any]]:
    """The items of one section, ready for a MONAI dataset: ``image`` paths, ``box``, ``label`` and what describes them.

    Args:
        datalist: path of the file.
        name: training, tuning, validation or test.
        dataset_dir: the images folder; the images of the first item must be there.
        training: refuse a file that lists the full truth, which only evaluation may see.
        single_class: all labels 0.

    Raises:
        BundleError: see :func:`load`; also an empty section, a truth file for training, or a missing images folder.
    """
    if name not in SECTIONS:
        raise BundleError(f"{name!r} is not a section of a datalist; choose one of {', '.join(SECTIONS)}")
    loaded = load(datalist)
    if training and loaded.is_truth:
        raise BundleError(f"{datalist}: this file lists the full truth; training takes the harvested datalist")
    items = loaded.sections[name]
    if not items:
        raise BundleError(f"{datalist}: the section {name!r} is empty; make a datalist with more patients")
    if name == "tuning" and not any(item["box"] for item in items):
        raise BundleError(f"{datalist}: no slice of 'tuning' has a marked lesion, so no epoch can be chosen on it")
    root = Path(dataset_dir)
    if not root.is_dir():
        raise BundleError(f"{root}: no such images folder (--dataset_dir)")
    first = items[0]["image"][len(items[0]["image"]) // 2]
    if not (root / first).is_file():
        raise BundleError(f"{root}: the image {first} of {datalist} is not there; is --dataset_dir the right folder?")
    return [
        {
            "image": item["image"],
            "box": item["box"],
            "label": [0] * len(item["label"]) if single_class else item["label"],
            "meta": {key: item.get(key) for key in META},
        }
        for item in items
    ]


def class_names(datalist: str | PathLike[str], single_class: bool = False) -> list[str]:
    """The categories of a datalist; only ``lesion`` where ``single_class``."""
    return ["lesion"] if single_class else load(datalist).categories
