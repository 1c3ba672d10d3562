"""Probable lesions without a mark, on slices that have been read: ``detections.json`` and a gallery to review."""

from __future__ import annotations

import hashlib
import html
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, Events
from matplotlib.colors import to_rgb

from scripts import distributed
from scripts.atomic import atomic_path
from scripts.evaluation import write_json
from scripts.frames import px_to_lps
from scripts.froc import box_iou
from scripts.inference import SCHEMA_VERSION
from scripts.plots import FALSE_POSITIVE, HIT
from scripts.transforms import read_slice
from scripts.unmarked import APART_IOU

PICTURE_PX = 640


def lesion_id(series_uid: str | None, image: str, label: int, box_px: Sequence[float]) -> str:
    """The id that a finding on a PNG slice has in ``lesions.parquet`` once it is harvested, 16 hexadecimal digits.

    It is part of the file format, so that a reader of the gallery can write down what to accept: the hash of
    ``lesion`` and the bookmark's id, which is the hash of ``detector``, series, image, label and box.
    """

    def identifier(*parts: object) -> str:
        return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:16]

    return identifier("lesion", identifier("detector", series_uid, image, label, *(f"{v:.3f}" for v in box_px)))


def series_of(image: str) -> str | None:
    """The folder of a slice is its series, as in a DeepLesion-format release; None for a slice without a folder."""
    folder = PurePosixPath(image).parent.as_posix()
    return None if folder == "." else folder


def unmarked(item: Mapping[str, Any], score_threshold: float) -> npt.NDArray[np.intp]:
    """Which detections of a slice (an output of :class:`scripts.evaluation.DetectStep`) overlap no mark."""
    marks = np.asarray(item["stored_box"], dtype=np.float64).reshape(-1, 4)
    apart = box_iou(item["box_px"], marks).max(axis=1, initial=0.0) < APART_IOU
    return np.flatnonzero(apart & (item["score"] >= score_threshold))


def findings_of(item: Mapping[str, Any], chosen: Iterable[int], categories: Sequence[str]) -> dict[str, Any]:
    """One slice with the chosen of its detections: its place in a series, and entries of ``detections.json``.

    A PNG slice has neither a SOP instance UID nor a place in the patient: ``image`` names it, and
    ``centre_lps_mm`` counts from the centre of the first pixel of slice 0. An unknown spacing is 0.
    """
    meta = item.get("meta") or {}
    image, index = item["image_path"], meta.get("slice_index")
    spacing_mm = [abs(float(step or 0)) for step in (meta.get("spacing_mm") or (0, 0, 0))]
    upwards = -1.0 if meta.get("numbers_lead_to") == "feet" else 1.0
    affine = np.diag([*spacing_mm[:2], upwards * spacing_mm[2], 1.0])
    series = None if index is None else series_of(image)
    findings = []
    for number in chosen:
        box_px = [round(float(v), 3) for v in item["box_px"][number]]
        x0, y0, x1, y1 = box_px
        centre = px_to_lps([[(x0 + x1) / 2, (y0 + y1) / 2, (index or 0) + 0.5]], affine)[0]
        label = int(item["class"][number])
        findings.append(
            {
                "image": image,
                "image_uid": None,
                "slice_index": index or 0,
                "box_px": box_px,
                "score": round(float(item["score"][number]), 6),
                "label": label,
                "category": categories[label],
                "centre_lps_mm": [round(float(v), 3) for v in centre],
                "size_mm": [round((x1 - x0) * spacing_mm[0], 3), round((y1 - y0) * spacing_mm[1], 3)],
                "lesion_id": lesion_id(series, image, label, box_px),
            }
        )
    columns, rows = item["spatial_size"]
    grid = {"rows": int(rows), "columns": int(columns), "affine_lps": affine.tolist()}
    return {"image": image, "series": series, "grid": grid, "marks": item["stored_box"], "findings": findings}


def by_series(slices: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ``series`` of a ``detections.json``; slices of one series that differ in their grid are listed apart."""
    groups: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for found in slices:
        # Without a slice number a slice is a series of its own: nothing says which neighbours it has.
        name = found["series"] or found["image"]
        groups[f"{name}\x1f{found['grid']}"].append(found)
    series = []
    for _, members in sorted(groups.items()):
        findings = [finding for found in members for finding in found["findings"]]
        last = max(finding["slice_index"] for finding in findings)
        series.append(
            {
                "series_uid": members[0]["series"],
                "study_uid": None,
                "patient_id": None,  # never written; the image leads whoever may know to the patient
                "source": {"origin": members[0]["series"] or members[0]["image"]},
                "grid": {**members[0]["grid"], "slices": last + 1},
                "findings": findings,
            }
        )
    return series


class WriteUnmarked:
    """Collect the detections that overlap no mark; at the end write ``detections.json`` and ``gallery.html``.

    Args:
        output_dir: where.
        dataset_dir: the images folder.
        categories: names of the classes.
        score_threshold: detections below it are not listed.
        model: facts about the weights (file, hash), written along.
        windows_hu: HU shown as black and white; each window gives a picture of its own.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        dataset_dir: str | PathLike[str],
        categories: Sequence[str],
        score_threshold: float,
        model: Mapping[str, Any] | None = None,
        windows_hu: Sequence[Sequence[float]] = ((-175.0, 275.0),),
    ) -> None:
        self.output_dir, self.dataset_dir, self.categories = Path(output_dir), Path(dataset_dir), list(categories)
        self.score_threshold, self.model = score_threshold, dict(model or {})
        self.windows_hu = windows_hu
        self.found: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.found.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:  # type: ignore[union-attr]
            self.found.append(findings_of(item, unmarked(item, self.score_threshold), self.categories))

    def _write(self, engine: Engine) -> None:
        every = distributed.gather(self.found)
        if not distributed.is_main():
            return
        found = [slice_ for slice_ in every if slice_["findings"]]
        model = {**self.model, "score_threshold": self.score_threshold}
        series = by_series(found)
        write_json(
            self.output_dir / "detections.json", {"schema_version": SCHEMA_VERSION, "model": model, "series": series}
        )
        found.sort(key=lambda slice_: (-max(finding["score"] for finding in slice_["findings"]), slice_["image"]))
        write_gallery(found, self.output_dir, self.dataset_dir, self.windows_hu)
        count = sum(len(slice_["findings"]) for slice_ in found)
        print(
            f"{count} probable lesions without a mark, with a score of at least {self.score_threshold:.3f}, on "
            f"{len(found)} of {len(every)} slices; wrote detections.json and gallery.html to {self.output_dir}"
        )


# --- the gallery ---------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Probable lesions without a mark</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; background: #16181b; color: #e8e8e8; margin: 1.5rem; }}
figure {{ display: inline-block; vertical-align: top; width: {width}rem; margin: 0 1.2rem 1.6rem 0; }}
img {{ width: 100%; }}
label {{ display: block; }} code {{ color: #9ecbff; }}
textarea {{ width: 22rem; height: 8rem; }} b.marked {{ color: {marked}; }} b.found {{ color: {found}; }}
</style></head><body>
<h1>Probable lesions without a mark</h1>
<p>{count} findings on {slices} slices, the highest scores first. <b class="marked">Thin: marked.</b>
<b class="found">Thick, numbered: found by the detector, without a mark.</b> Tick those that are lesions, save the list
below as <code>ids.txt</code>, harvest <code>detections.json</code> together with the marks, and accept them with
<code>python -m data_prep review lesions.parquet --accept ids.txt</code>.</p>
<textarea id="ids" readonly aria-label="accepted ids"></textarea>
<main>
{figures}
</main>
<script>
document.querySelector("main").addEventListener("change", () => {{
  const ticked = [...document.querySelectorAll("input:checked")].map((box) => box.value);
  document.getElementById("ids").value = ticked.join("\\n");
}});
</script></body></html>
"""


def write_gallery(
    found: Sequence[Mapping[str, Any]],
    output_dir: str | PathLike[str],
    dataset_dir: str | PathLike[str],
    windows_hu: Sequence[Sequence[float]],
) -> None:
    """``gallery.html`` and its pictures in ``slices/``.

    Args:
        found: outputs of :func:`findings_of`, in the order of the page.
        output_dir: where; pictures of an earlier gallery are replaced.
        dataset_dir: the images folder.
        windows_hu: as in :class:`WriteUnmarked`.
    """
    output_dir, dataset_dir = Path(output_dir), Path(dataset_dir)
    folder = output_dir / "slices"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9]*.jpg"):
        old.unlink()
    figures = []
    for number, slice_ in enumerate(found, 1):
        name = f"{number:05d}.jpg"
        hu = read_slice(dataset_dir / slice_["image"]).T
        views = [picture(hu, slice_["marks"], slice_["findings"], low, high) for low, high in windows_hu]
        cv2.imwrite(str(folder / name), np.hstack(views))
        rows = [
            f'<label><input type="checkbox" value="{f["lesion_id"]}"> {k}: score {f["score"]:.2f}, '
            f"{html.escape(f['category'])} <code>{f['lesion_id']}</code></label>"
            for k, f in enumerate(slice_["findings"], 1)
        ]
        title = html.escape(slice_["image"])
        figures.append(
            f'<figure><img loading="lazy" src="slices/{name}" alt="{title}"><figcaption>{title}{"".join(rows)}'
            "</figcaption></figure>"
        )
    count = sum(len(slice_["findings"]) for slice_ in found)
    page = PAGE.format(
        width=22 * len(windows_hu),
        marked=HIT,
        found=FALSE_POSITIVE,
        count=count,
        slices=len(found),
        figures="\n".join(figures),
    )
    with atomic_path(output_dir / "gallery.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def picture(
    hu: npt.NDArray[np.float32],
    marks: Iterable[Sequence[float]],
    findings: Iterable[Mapping[str, Any]],
    low: float,
    high: float,
) -> npt.NDArray[np.uint8]:
    """(rows, columns, 3) BGR of a slice (rows, columns): marked boxes thin, found ones thick and numbered."""
    grey = (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    zoom = max(1, round(PICTURE_PX / max(grey.shape)))
    large = cv2.resize(grey, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    image: npt.NDArray[np.uint8] = np.repeat(large[..., None], 3, axis=2)

    def draw(box_px: Sequence[float], colour: str, width: int) -> tuple[int, int, tuple[int, ...]]:
        bgr = tuple(round(255 * c) for c in reversed(to_rgb(colour)))
        x0, y0, x1, y1 = (round(v * zoom) for v in box_px)
        cv2.rectangle(image, (x0, y0), (x1, y1), bgr, width)
        return x0, y0, bgr

    for box in marks:
        draw(box, HIT, 1)
    for number, finding in enumerate(findings, 1):
        x0, y0, bgr = draw(finding["box_px"], FALSE_POSITIVE, 2)
        cv2.putText(image, str(number), (x0, max(y0 - 5, 16)), cv2.FONT_HERSHEY_SIMPLEX, 0.6, bgr, 2, cv2.LINE_AA)
    return image
