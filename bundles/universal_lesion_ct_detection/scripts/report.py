"""What an evaluation leaves behind: `metrics.json`, `predictions.json`, plots, an overlay sheet and the HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from scripts import distributed
from scripts.evaluation import DetectionMetrics, table, write_json
from scripts.froc import ImageResult
from scripts.plots import Panel, overlay_sheet, plot_accuracy_over_iou, plot_froc, plot_reliability
from scripts.report_html import write_page
from scripts.transforms import read_slice

FIGURES = {
    "froc.png": plot_froc,
    "accuracy_over_iou.png": plot_accuracy_over_iou,
    "reliability.png": plot_reliability,
}


class Report:
    """Write the files of an evaluation when it ends.

    Args:
        output_dir: where.
        dataset_dir: the images folder, for the pictures.
        metrics: the handler that collected the results.
        window_hu: HU shown as black and white.
        pictures: slices on the overlay sheet, evenly spread over the evaluated ones.
        about: name -> value, shown at the head of the page: what was evaluated on what. No patient names or IDs.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        dataset_dir: str | PathLike[str],
        metrics: DetectionMetrics,
        window_hu: Sequence[float] = (-175.0, 275.0),
        pictures: int = 12,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir, self.dataset_dir, self.metrics = Path(output_dir), Path(dataset_dir), metrics
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.pictures, self.about = pictures, dict(about or {})

    @property
    def files(self) -> list[Path]:
        """What was written."""
        names = ("metrics.json", "predictions.json", "report.html", *FIGURES, "overlays.png")
        return [self.output_dir / name for name in names if (self.output_dir / name).is_file()]

    def attach(self, engine: Engine) -> None:
        if distributed.is_main():
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        details, results = self.metrics.details, self.metrics.metric.results
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.output_dir / "metrics.json", details)
        write_json(self.output_dir / "predictions.json", predictions(results))
        for name, plot in FIGURES.items():
            plot(details, self.output_dir / name)
        chosen = [results[i] for i in sorted({*np.linspace(0, len(results) - 1, self.pictures).astype(int).tolist()})]
        threshold = details["score_at_fp_per_image"]["0.5"]
        panels = [
            Panel(read_slice(self.dataset_dir / r.image).T, r.true_boxes_px, r.boxes_px, r.scores, r.image)
            for r in chosen
        ]
        overlay_sheet(
            panels,
            self.output_dir / "overlays.png",
            score_threshold=math.inf if threshold is None else threshold,  # None: no box may be kept
            window_hu=self.window_hu,
        )
        write_page(
            self.output_dir / "report.html",
            details,
            results,
            read=lambda image: read_slice(self.dataset_dir / image).T,
            window_hu=self.window_hu,
            figures=[self.output_dir / name for name in FIGURES],
            about=self.about,
        )
        print(table(details))


def predictions(results: Sequence[ImageResult]) -> dict[str, Any]:
    """The content of `predictions.json`: every box and every marked lesion of every slice, half-open px.

    ``patient`` tells the slices of one patient apart, in this file alone: 0-based, in order of the image names. It is
    no identifier, and is what the paired comparison resamples.
    """
    number: dict[str, int] = {}
    for result in sorted(results, key=lambda r: r.image):
        number.setdefault(result.patient_id, len(number))
    return {
        "schema_version": 1,
        "images": [
            {
                "image": r.image,
                "patient": number[r.patient_id],
                "box_px": r.boxes_px.tolist(),
                "score": r.scores.tolist(),
                "true_box_px": r.true_boxes_px.tolist(),
            }
            for r in results
        ],
    }
