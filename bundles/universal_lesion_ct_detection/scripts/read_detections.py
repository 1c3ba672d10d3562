"""Findings from a file, this bundle's or another program's, put on the slices of a datalist to be evaluated.

Two forms are read: `detections.json` (findings by series, the schema that inference writes) and `predictions.json`
(boxes by slice, what an evaluation writes). Boxes are half-open px of the stored slice, (0, 0) at the corner of the
first pixel. Nothing in the file is opened or run; it only names slices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from ignite.engine import Engine

from scripts.errors import BundleError
from scripts.froc import Array

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Placed:
    """The findings of a file on the slices of a section.

    ``boxes_px`` and ``scores`` map each slice's path to its (n, 4) boxes and (n,) scores; ``facts`` is what
    `metrics.json` says about the file, with everything that was left out counted.
    """

    boxes_px: dict[str, Array]
    scores: dict[str, Array]
    facts: dict[str, Any]


def place(path: str | PathLike[str], items: Sequence[Mapping[str, Any]], missing: str = "error") -> Placed:
    """Read findings and put them on the slices of a section.

    A finding of a `detections.json` is on the slice its ``image`` names (the path below the images folder); without
    one, on the slice with its ``slice_index`` in the folder that its series' ``source.origin`` names. Findings on
    slices that are not in the section, as a search of whole series gives, are counted. A slice without a finding counts
    as searched where its folder is named anywhere in the file.

    Args:
        path: the file.
        items: of a section, see `scripts.datalist.section`.
        missing: what to do where the file does not say that a slice of the section was searched: ``error``, or
            ``empty`` to count the slice as one without findings.

    Raises:
        BundleError: no such file or not of a form that is read, a box or score that is none, findings none of which is
            on a slice of the section, a series of another size than its slices, or slices that were not searched.
    """
    if missing not in ("error", "empty"):
        raise BundleError(f"--missing_slices must be error or empty, got {missing!r}")
    path = Path(path)
    data, content = _load(path)
    slices = {item["image"][len(item["image"]) // 2]: item for item in items}
    found: dict[str, list[tuple[list[float], float]]] = {}
    if isinstance(content.get("images"), list):
        elsewhere, searched = _by_slice(path, content["images"], slices, found)
    elif isinstance(content.get("series"), list):
        elsewhere, searched = _by_series(path, content["series"], slices, found)
    else:
        raise BundleError(f"{path}: neither a detections.json ('series') nor a predictions.json ('images')")
    count = sum(map(len, found.values())) + elsewhere
    if elsewhere and not found:
        raise BundleError(
            f"{path}: none of its {count} findings is on a slice of this section; a finding's 'image' must be the "
            "slice's path in the datalist, or its series' 'origin' the slice's folder"
        )
    left = [image for image in slices if image not in searched]
    if left and missing == "error":
        raise BundleError(
            f"{path}: says nothing of {len(left)} of the {len(slices)} slices of this section, first {left[0]}; to "
            "count them as slices without findings, give --missing_slices empty"
        )
    facts = {
        "file": path.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "findings": count,
        "findings_on_other_slices": elsewhere,
        "slices_not_mentioned": len(left),
    }
    return Placed(
        {image: np.array([box for box, _ in found.get(image, [])]).reshape(-1, 4) for image in slices},
        {image: np.array([score for _, score in found.get(image, [])], dtype=np.float64) for image in slices},
        facts,
    )


class FromFile:
    """``iteration_update`` of an evaluator: items of the section -> what `scripts.evaluation.DetectStep` gives."""

    def __init__(self, placed: Placed) -> None:
        self.placed = placed

    def __call__(self, engine: Engine, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        out = []
        for item in batch:
            image = item["image"][len(item["image"]) // 2]
            out.append(
                {
                    "image_path": image,
                    "stored_box": item["box"],
                    "label": item["label"],
                    "meta": item.get("meta"),
                    "box_px": self.placed.boxes_px[image],
                    "score": self.placed.scores[image],
                }
            )
        return out


def load_predictions(path: str | PathLike[str]) -> list[dict[str, Any]]:
    """The ``images`` of a `predictions.json`, checked.

    Raises:
        BundleError: no such file, another kind of file, or an image that is there twice.
    """
    path = Path(path)
    images = _load(path)[1].get("images")
    if not isinstance(images, list):
        raise BundleError(f"{path}: not a predictions.json (no 'images' in it)")
    _by_slice(path, images, {}, {})
    return images


def _load(path: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        data = path.read_bytes()
        content = json.loads(data)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(f"{path}: not a file of findings of schema_version {SCHEMA_VERSION}")
    return data, content


def _by_slice(
    path: Path, images: list[Any], slices: Mapping[str, Any], found: dict[str, list[tuple[list[float], float]]]
) -> tuple[int, set[str]]:
    """Fill ``found`` from a `predictions.json`; the number of boxes elsewhere, and the slices that were searched."""
    elsewhere, searched = 0, set[str]()
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        if not isinstance(image, dict) or not isinstance(image.get("image"), str):
            raise BundleError(f"{where}: 'image' must be the path of a slice")
        boxes, scores = image.get("box_px"), image.get("score")
        if not isinstance(boxes, list) or not isinstance(scores, list) or len(boxes) != len(scores):
            raise BundleError(f"{where}: 'box_px' and 'score' must be lists of the same length")
        if image["image"] in searched:
            raise BundleError(f"{where}: {image['image']} is there twice")
        searched.add(image["image"])
        pairs = [_finding(where, box, score) for box, score in zip(boxes, scores, strict=True)]
        if image["image"] in slices:
            found[image["image"]] = pairs
        else:
            elsewhere += len(pairs)
    return elsewhere, searched


def _by_series(
    path: Path, series: list[Any], slices: Mapping[str, Any], found: dict[str, list[tuple[list[float], float]]]
) -> tuple[int, set[str]]:
    """Fill ``found`` from a `detections.json`; returns as `_by_slice`."""
    in_folder: dict[str, dict[int, str]] = {}
    for image, item in slices.items():
        index = (item.get("meta") or {}).get("slice_index")
        in_folder.setdefault(_folder(image), {})[-1 if index is None else index] = image
    elsewhere, folders, searched = 0, set[str](), set[str]()
    for number, one in enumerate(series):
        where = f"{path}: series[{number}]"
        findings = one.get("findings") if isinstance(one, dict) else None
        if not isinstance(findings, list):
            raise BundleError(f"{where}: 'findings' must be a list")
        source, grid = one.get("source"), one.get("grid")
        origin = source.get("origin") if isinstance(source, dict) else None
        size = [grid.get("columns"), grid.get("rows")] if isinstance(grid, dict) else [None, None]
        if isinstance(origin, str):
            folders.add(origin)
        for position, finding in enumerate(findings):
            at = f"{where}.findings[{position}]"
            if not isinstance(finding, dict):
                raise BundleError(f"{at}: not an object")
            pair = _finding(at, finding.get("box_px"), finding.get("score"))
            name, index = finding.get("image"), finding.get("slice_index")
            if isinstance(name, str):
                folders.add(_folder(name))
                searched.add(name)
            elif isinstance(origin, str) and isinstance(index, int) and index >= 0:
                name = in_folder.get(origin, {}).get(index)
            if name is None or name not in slices:
                elsewhere += 1
                continue
            expected = (slices[name].get("meta") or {}).get("image_size")
            if expected and None not in size and list(expected) != size:
                raise BundleError(
                    f"{at}: its series has {size[0]} x {size[1]} px, the slice {name} {expected[0]} x {expected[1]}; "
                    "boxes must be in px of the stored slice"
                )
            found.setdefault(name, []).append(pair)
    return elsewhere, searched | {image for image in slices if _folder(image) in folders}


def _folder(image: str) -> str:
    return str(PurePosixPath(image).parent)


def _finding(where: str, box: Any, score: Any) -> tuple[list[float], float]:
    numbers = [*box, score] if isinstance(box, list) and len(box) == 4 else []
    if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise BundleError(f"{where}: a finding needs a box x0, y0, x1, y1 and a score")
    if not all(abs(v) < 1e9 for v in numbers) or box[0] > box[2] or box[1] > box[3]:
        raise BundleError(f"{where}: the box {box!r} is turned round or not finite")
    if not 0 <= score <= 1:
        raise BundleError(f"{where}: the score {score!r} is not between 0 and 1")
    return [float(v) for v in box], float(score)
