"""`report.html`: an evaluation as one page that needs no server, no network and no scripts."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt

from scripts.atomic import atomic_path
from scripts.errors import BundleError
from scripts.froc import Array, ImageResult, box_iou
from scripts.metrics import KEPT_FP_PER_IMAGE

GALLERY = 12
"""Pictures in each gallery."""

PER_PATIENT = 2
"""Pictures of one patient in each gallery, so that no single patient fills it."""

SIDE_PX = 192
JPEG_QUALITY = 82

GROUPS = {
    "by_category": "Category",
    "by_type": "Official type",
    "by_size_mm": "Long diameter",
    "by_size_px": "Long side of the box",
    "by_root_area_px": "Square root of the box's area",
    "by_slice_spacing": "Slice spacing",
}


@dataclass(frozen=True, eq=False)
class Example:
    """A box or a lesion of one image that a gallery shows: its own box, and the number that ranks it."""

    result: ImageResult
    box_px: Array
    rank: float
    caption: str


def galleries(
    results: Iterable[ImageResult], kept_score: float, iou_threshold: float = 0.5
) -> dict[str, list[Example]]:
    """Hits, misses and false positives by a stated rule; the same whatever the order of the results.

    Boxes of ``kept_score`` or more are kept. **hits**: lesions that a kept box hits, highest score first; **misses**:
    lesions that none hits, longest box first; **false positives**: kept boxes that hit nothing, highest score first.
    At most ``GALLERY`` of each, and ``PER_PATIENT`` of one patient.
    """
    hits, misses, false = [], [], []
    for result in sorted(results, key=lambda r: r.image):
        kept = result.scores >= kept_score
        boxes, scores = result.boxes_px[kept], result.scores[kept]
        over = box_iou(boxes, result.true_boxes_px) >= iou_threshold  # (n, m)
        for lesion, box in enumerate(result.true_boxes_px):
            if over[:, lesion].any():
                best = float(scores[over[:, lesion]].max())
                hits.append(Example(result, box, best, f"score {best:.2f}"))
            else:
                side = float((box[2:] - box[:2]).max())
                below = result.scores[box_iou(result.boxes_px, box[None])[:, 0] >= iou_threshold]
                words = f"best hit {below.max():.2f}" if len(below) else "no box hits it"
                misses.append(Example(result, box, side, f"{side:.0f} px, {words}"))
        for box, score in zip(boxes[~over.any(axis=1)], scores[~over.any(axis=1)], strict=True):
            false.append(Example(result, box, float(score), f"score {score:.2f}"))
    return {"hits": _first(hits), "misses": _first(misses), "false_positives": _first(false)}


def _first(examples: list[Example]) -> list[Example]:
    chosen: list[Example] = []
    seen: dict[str, int] = {}
    for example in sorted(examples, key=lambda e: (-e.rank, e.result.image, *e.box_px)):
        patient = example.result.patient_id
        if len(chosen) < GALLERY and seen.get(patient, 0) < PER_PATIENT:
            seen[patient] = seen.get(patient, 0) + 1
            chosen.append(example)
    return chosen


def write_page(
    path: Path,
    metrics: Mapping[str, Any],
    results: Sequence[ImageResult],
    *,
    read: Callable[[str], npt.NDArray[Any]],
    window_hu: tuple[float, float],
    figures: Sequence[Path] = (),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the page; atomic. It has no patient IDs; slices go by their path below the images folder.

    Args:
        path: the file to write.
        metrics: content of `metrics.json`.
        results: what it was computed from.
        read: name of an image -> (rows, columns) HU. One that it refuses (`BundleError`) leaves its frame empty.
        window_hu: HU shown as black and as white.
        figures: PNG plots to embed; their names are ``froc.png``, ...
        about: name -> value, what was evaluated on what.
    """
    iou, kept_score = metrics["iou_threshold"], metrics["score_at_fp_per_image"][KEPT_FP_PER_IMAGE]
    shown = galleries(results, np.inf if kept_score is None else kept_score, iou)
    text = _template().render(
        metrics=metrics,
        about=about or {},
        headline=_headline(metrics),
        groups={title: _rows(metrics[key]) for key, title in GROUPS.items() if key in metrics},
        figures={figure.stem: _data("png", figure.read_bytes()) for figure in figures if figure.is_file()},
        galleries={
            name: [
                _view(example, read, window_hu, np.inf if kept_score is None else kept_score, iou) for example in one
            ]
            for name, one in shown.items()
        },
        kept_score=kept_score,
        kept_rate=KEPT_FP_PER_IMAGE,
        most=GALLERY,
        per_patient=PER_PATIENT,
        side_px=SIDE_PX,
        window_hu=window_hu,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _headline(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    rows = [("Mean sensitivity at ½, 1, 2 and 4 FP per image", metrics["average_sensitivity"])]
    rows += [(f"Sensitivity at {rate} FP per image", figure) for rate, figure in metrics["froc"].items()]
    rows.append(("Accuracy of the highest-scoring box, IoU ≥ 0.5", metrics["accuracy_at_iou"]["0.5"]))
    rows.append(("Average precision, IoU ≥ 0.5", metrics["average_precision"]))
    if "calibration" in metrics:
        rows.append(("LaECE (0: calibrated)", metrics["calibration"]["laece"]))
    return rows


def _rows(groups: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "average": group["average_sensitivity"],
            "at_one": group["froc"]["1"],
            "accuracy": group["accuracy_at_iou"]["0.5"],
        }
        for name, group in groups.items()
        if group["average_sensitivity"]["n"]
    ]


def _view(
    example: Example, read: Callable[[str], npt.NDArray[Any]], window_hu: tuple[float, float], kept_score: float,
    iou_threshold: float,
) -> dict[str, Any]:  # fmt: skip
    """A square crop around the example's box as base64 JPEG, with every marked and kept box in it, in crop px."""
    result, box = example.result, example.box_px
    view: dict[str, Any] = {"image": result.image, "caption": example.caption, "source": "", "boxes": []}
    try:
        hu = read(result.image)
    except BundleError:
        return view
    rows, columns = hu.shape
    # A file of findings may hold boxes of any size.
    side = int(np.ceil(min(max(96.0, 2.5 * float((box[2:] - box[:2]).max())), 2.0 * max(rows, columns))))
    x, y = (int(np.floor(centre - side / 2)) for centre in (box[:2] + box[2:]) / 2)
    crop = np.full((side, side), window_hu[0], dtype=np.float32)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, columns), min(y + side, rows)
    if x0 < x1 and y0 < y1:
        crop[y0 - y : y1 - y, x0 - x : x1 - x] = hu[y0:y1, x0:x1]
    grey = np.clip((crop - window_hu[0]) / (window_hu[1] - window_hu[0]), 0, 1)
    small = cv2.resize(grey, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA if side > SIDE_PX else cv2.INTER_LINEAR)
    _, data = cv2.imencode(".jpg", np.rint(255 * small).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    kept = result.scores >= kept_score
    boxes, scores = result.boxes_px[kept], result.scores[kept]
    over = box_iou(boxes, result.true_boxes_px) >= iou_threshold
    found = np.asarray(over.any(axis=0))
    hits = np.asarray(over.any(axis=1))
    drawn = [("found" if f else "missed", b, None) for b, f in zip(result.true_boxes_px, found, strict=True)]
    drawn += [("hit" if h else "false", b, s) for b, s, h in zip(boxes, scores, hits, strict=True)]
    scale = SIDE_PX / side
    for kind, (left, top, right, bottom), score in drawn:
        if right > x and left < x + side and bottom > y and top < y + side:
            place = [round(float(v) * scale, 1) for v in (left - x, top - y, right - left, bottom - top)]
            view["boxes"].append({"kind": kind, "place": place, "score": score})
    return {**view, "source": _data("jpeg", data.tobytes())}


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8"))
