"""Inference on a whole CT series: slices in, ``detections.json`` and overlays out."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch.utils.data import Dataset

from scripts.across_slices import SecondStage, rescore_series
from scripts.contract import InputContract, bracket
from scripts.evaluation import write_json
from scripts.frames import px_to_lps
from scripts.plots import Panel, overlay_sheet
from scripts.transforms import resize_factor, window_and_resize
from scripts.volume import Volume, load

SCHEMA_VERSION = 1


class SeriesDataset(Dataset[dict[str, Any]]):
    """Every slice of a CT series, prepared by the same contract as in training.

    Args:
        dataset_dir: a folder with a DICOM series, or a NIfTI file.
        contract: what the weights were trained on.
        progress: show progress bars while reading.
    """

    def __init__(self, dataset_dir: str | PathLike[str], contract: InputContract, progress: bool = True) -> None:
        self.volume = load(dataset_dir, progress)
        self.contract = contract

    @property
    def data(self) -> list[int]:
        """Slice numbers; MONAI's bundle tools look for this name."""
        return list(range(len(self)))

    def __len__(self) -> int:
        return int(self.volume.hu.shape[2])

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns, rows, count = self.volume.hu.shape
        spacing_mm, half = self.volume.spacing_mm, self.contract.slices // 2
        step_mm = self.contract.slice_step_mm or spacing_mm[2]
        planes = bracket(np.arange(count) * spacing_mm[2], index * spacing_mm[2] + np.arange(-half, half + 1) * step_mm)
        hu = torch.empty(len(planes), rows, columns).transpose(1, 2)  # row by row, as the volume is
        for plane, (first, second, weight) in zip(hu, planes, strict=True):
            plane.copy_(torch.from_numpy(self.volume.hu[:, :, first]))
            if weight:
                plane.lerp_(torch.from_numpy(self.volume.hu[:, :, second].astype(np.float32)), weight)
        return {
            "image": window_and_resize(hu, self.contract, spacing_mm).float().div_(255),
            "slice_index": index,
            "resize_factor": resize_factor((columns, rows), self.contract, spacing_mm),
            "spatial_size": (columns, rows),
        }


class WriteDetections:
    """Collect the findings of a series; at the end write ``detections.json`` and overlay pictures.

    Args:
        output_dir: where.
        dataset: the series.
        categories: names of the classes.
        score_threshold: findings below it are not written.
        model: facts about the weights (file, hash), written along.
        window_hu: HU shown as black and white in the overlays.
        pictures: overlay pictures of at most this many slices, those with the highest scores.
        second_stage: gives the findings new scores by the slices around them; None: they keep theirs.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        dataset: SeriesDataset,
        categories: Sequence[str],
        score_threshold: float,
        model: dict[str, Any] | None = None,
        window_hu: Sequence[float] = (-175.0, 275.0),
        pictures: int = 12,
        second_stage: SecondStage | None = None,
    ) -> None:
        self.output_dir, self.dataset, self.categories = Path(output_dir), dataset, list(categories)
        self.score_threshold, self.model, self.pictures = score_threshold, model or {}, pictures
        self.window_hu = (float(window_hu[0]), float(window_hu[1]))
        self.second_stage = second_stage
        self.found: dict[int, dict[str, Any]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.found.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:  # type: ignore[union-attr]
            self.found[item["slice_index"]] = {key: item[key] for key in ("box_px", "score", "class")}

    def _kept(self) -> dict[int, dict[str, Any]]:
        """Slice number -> the findings that are written."""
        found = self.found
        if self.second_stage is not None:
            found = rescore_series(found, self.dataset.volume.spacing_mm[2], self.second_stage)
        return {
            index: {key: values[item["score"] >= self.score_threshold] for key, values in item.items()}
            for index, item in found.items()
        }

    def finding(self, volume: Volume, index: int, box_px: Any, score: float, label: int) -> dict[str, Any]:
        """One entry of ``detections.json``; boxes and slice numbers in the file's own grid."""
        x0, y0, x1, y1 = map(float, box_px)
        centre = px_to_lps(np.array([[(x0 + x1) / 2, (y0 + y1) / 2, index + 0.5]]), volume.affine_lps)[0]
        in_file, slice_in_file = volume.box_in_file((x0, y0, x1, y1), index)
        spacing = volume.spacing_mm
        return {
            "image_uid": volume.image_uids[index] or None,
            "slice_index": slice_in_file,
            "box_px": [round(v, 3) for v in in_file],
            "score": round(float(score), 6),
            "label": int(label),
            "category": self.categories[int(label)],
            "centre_lps_mm": [round(float(v), 3) for v in centre],
            "size_mm": [round((x1 - x0) * spacing[0], 3), round((y1 - y0) * spacing[1], 3)],
        }

    def _write(self, engine: Engine) -> None:
        volume, kept = self.dataset.volume, self._kept()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        findings = [
            self.finding(volume, index, box, score, label)
            for index, found in sorted(kept.items())
            for box, score, label in zip(found["box_px"], found["score"], found["class"], strict=True)
        ]
        columns, rows, slices = volume.file_shape
        write_json(
            self.output_dir / "detections.json",
            {
                "schema_version": SCHEMA_VERSION,
                "model": {**self.model, "score_threshold": self.score_threshold},
                "series": [
                    {
                        "series_uid": volume.series_uid,
                        "study_uid": volume.study_uid,
                        "patient_id": None,  # never written; the UIDs lead whoever may know to the patient
                        "source": {"origin": volume.source},
                        "grid": {
                            "columns": columns,
                            "rows": rows,
                            "slices": slices,
                            "affine_lps": (volume.affine_lps @ np.linalg.inv(volume.to_file)).round(6).tolist(),
                        },
                        "findings": findings,
                    }
                ],
            },
        )
        best = sorted((i for i in kept if len(kept[i]["score"])), key=lambda i: -kept[i]["score"].max())
        panels = [
            Panel(
                volume.hu[:, :, i].T,
                None,
                kept[i]["box_px"],
                kept[i]["score"],
                f"slice {i + 1} of {len(self.dataset)}",
            )
            for i in sorted(best[: self.pictures])
        ]
        written = "detections.json"
        (self.output_dir / "overlays.png").unlink(missing_ok=True)  # of another series
        if panels:
            overlay_sheet(panels, self.output_dir / "overlays.png", window_hu=self.window_hu)
            written += " and overlays.png"
        print(
            f"{len(findings)} findings with a score of at least {self.score_threshold:.3f} on {len(best)} of "
            f"{len(self.dataset)} slices; wrote {written} to {self.output_dir}"
        )
