"""Run the detector over slices inside an ignite engine, turn its boxes into metrics, and keep the best weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts import distributed
from scripts import metrics as lesion_metrics
from scripts.atomic import atomic_path
from scripts.checkpoint import save_model, store_default
from scripts.contract import InputContract
from scripts.detector import LesionDetector
from scripts.device import autocast_dtype, choose
from scripts.froc import ImageResult
from scripts.scale_average import ScaleAverage, check_scales


class DetectStep:
    """``iteration_update`` of an evaluator: a batch -> one dict a slice, boxes in px of the slice as it is stored.

    Boxes and scores are rounded as the files have them, so that figures, thresholds and files agree to the last digit.

    Args:
        detector: :class:`scripts.detector.LesionDetector`.
        device, amp: as in :class:`scripts.training.TrainStep`.
        scale_average: further scales, see :class:`scripts.scale_average.ScaleAverage`.
    """

    def __init__(
        self,
        detector: LesionDetector,
        device: str | torch.device,
        amp: bool | str = "auto",
        scale_average: Sequence[float] = (),
    ) -> None:
        self.detector, self.look = detector, ScaleAverage(detector, scale_average)
        self.device = choose(device)
        self.dtype = autocast_dtype(amp, self.device)
        detector.to(memory_format=torch.channels_last)

    def __call__(self, engine: Engine, batch: dict[str, Any]) -> list[dict[str, Any]]:
        self.detector.eval()
        images = batch["image"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            found = self.look(images)
        rest = [key for key in batch if key != "image"]
        out = []
        for index, prediction in enumerate(found):
            item = {key: batch[key][index] for key in rest}
            boxes = prediction["box"].float().cpu() / item["resize_factor"]
            size_x, size_y = item["spatial_size"]
            boxes = boxes.minimum(boxes.new_tensor([size_x, size_y, size_x, size_y]))
            item["box_px"] = np.round(boxes.numpy().astype(np.float64), 3)
            item["score"] = np.round(prediction["label_scores"].float().cpu().numpy().astype(np.float64), 6)
            item["class"] = prediction["label"].cpu().numpy()
            out.append(item)
        return out


def image_result(item: dict[str, Any]) -> ImageResult:
    """One output of :class:`DetectStep` -> what the metrics take; marked boxes as the datalist has them."""
    truth = np.array(item["stored_box"], dtype=np.float64).reshape(-1, 4)
    count = len(truth)
    meta = item.get("meta") or {}
    attributes: dict[str, Sequence[Any]] = {
        name: meta[name] for name in ("coarse_type", "long_diameter_mm", "lesion_id") if meta.get(name) is not None
    }
    attributes["label"] = [int(v) for v in item["label"]]
    spacing = meta.get("spacing_mm")
    if spacing:
        attributes["slice_spacing_mm"] = [spacing[2]] * count
    patient = meta.get("patient_id")
    return ImageResult(
        image=item["image_path"],
        # Without a patient the slice's series folder is the unit of resampling.
        patient_id=str(patient) if patient else str(Path(item["image_path"]).parent),
        boxes_px=item["box_px"],
        scores=item["score"],
        true_boxes_px=truth,
        true_attributes=attributes,
    )


class DetectionMetrics:
    """Collect an evaluator's outputs; at the end of the epoch put the figures into ``engine.state.metrics``.

    ``details`` is the content of ``metrics.json``; ``engine.state.metrics`` its plain values.

    Args:
        category_names: names of the lesions' labels.
        bootstrap, seed: replicates of the intervals, and their seed.
        thresholds: name -> score thresholds chosen elsewhere, judged here.
        facts: what else ``metrics.json`` is to say, e.g. about the file that was read.
    """

    def __init__(
        self,
        category_names: Sequence[str] | None = None,
        bootstrap: int = 1000,
        seed: int = 0,
        thresholds: Mapping[str, float] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.metric = lesion_metrics.LesionDetectionMetric(
            bootstrap=bootstrap, seed=seed, category_names=category_names, thresholds=thresholds
        )
        self.facts = dict(facts or {})

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.metric.reset())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:  # type: ignore[union-attr]
            self.metric.add(image_result(item))

    def _finish(self, engine: Engine) -> None:
        results = distributed.gather(self.metric.results)
        self.metric.reset()
        for result in results:
            self.metric.add(result)
        details = self.metric.compute()
        engine.state.metrics = lesion_metrics.scalars(details)
        self.details = {**details, **self.facts}


def default_point(metrics: DetectionMetrics, fp_per_image: str) -> dict[str, Any]:
    """The score threshold that gives so many false positives per tuning image, as it is kept in ``model.pt``."""
    score = metrics.details["score_at_fp_per_image"].get(fp_per_image)
    return {"score": score, "fp_per_image": fp_per_image, "chosen_on": "tuning patients"}


class KeepBest:
    """Write ``model.pt`` whenever the validation on the tuning patients is better than all before.

    Args:
        path: of ``model.pt``.
        metrics: the handler that collected the results.
        state: :class:`scripts.training_state.ResumableState`, which remembers the best value over resumes.
        network: the (averaged) network that was validated.
        contract, categories, anchor_sizes, scale_average: stored with the weights.
        key: the metric that decides.
        fp_per_image: the score threshold stored with the weights gives this many false positives per tuning image.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        metrics: DetectionMetrics,
        state: Any,
        network: nn.Module,
        contract: InputContract,
        categories: list[str],
        anchor_sizes: list[list[float]],
        scale_average: Sequence[float] = (),
        key: str = "average_sensitivity",
        fp_per_image: str = "1",
    ) -> None:
        self.path, self.metrics, self.state, self.network = Path(path), metrics, state, network
        self.contract, self.categories, self.anchor_sizes = contract, categories, anchor_sizes
        self.scale_average = check_scales(scale_average)
        self.key, self.fp_per_image = key, fp_per_image

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        value = engine.state.metrics.get(self.key, 0.0)
        if self.state.best is not None and value <= self.state.best:
            return
        self.state.best = value
        if not distributed.is_main():
            return
        save_model(
            self.path,
            self.network,
            self.contract,
            self.categories,
            self.anchor_sizes,
            operating_point=default_point(self.metrics, self.fp_per_image),
            tuning={self.key: float(value)},
            scale_average=list(self.scale_average),
        )


class SetThreshold:
    """At the end of an evaluation of the tuning patients, put threshold and ways of looking into ``model.pt``.

    Args:
        path: of the weights that were evaluated.
        metrics: the handler that collected the results.
        flip_average, scale_average: how the slices were looked at.
        fp_per_image: as in :class:`KeepBest`.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        metrics: DetectionMetrics,
        flip_average: bool,
        scale_average: Sequence[float],
        fp_per_image: str = "1",
    ) -> None:
        self.path, self.metrics, self.fp_per_image = path, metrics, fp_per_image
        self.flip_average, self.scale_average = bool(flip_average), check_scales(scale_average)

    def attach(self, engine: Engine) -> None:
        if distributed.is_main():
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        point = default_point(self.metrics, self.fp_per_image)
        dropped = store_default(self.path, point, self.flip_average, self.scale_average)
        said = "none gives" if point["score"] is None else f"{point['score']:.3f} gives"
        print(
            f"score threshold: {said} {self.fp_per_image} false positive(s) per tuning slice; stored in {self.path} "
            f"with flip_average {self.flip_average} and scale_average {list(self.scale_average)}"
        )
        for what in dropped:
            print(f"dropped from it: {what}, made for scores of other looks; make it anew")


class Validate:
    """Run the evaluator every ``interval`` epochs and after the last, on the averaged weights.

    Args:
        evaluator: of the tuning patients.
        interval: in epochs.
        network: the one it evaluates; made the same in all processes before.
    """

    def __init__(self, evaluator: Engine, interval: int, network: nn.Module) -> None:
        self.evaluator, self.interval, self.network = evaluator, interval, network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        last = engine.state.epoch == engine.state.max_epochs or engine.should_terminate
        if engine.state.epoch % self.interval == 0 or last:
            distributed.same_weights(self.network)
            self.evaluator.state.epoch = 0
            self.evaluator.state.training_epoch = engine.state.epoch  # type: ignore[attr-defined]
            self.evaluator.run()


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")


def table(details: dict[str, Any]) -> str:
    """The headline figures with their intervals, as text."""

    def show(figure: dict[str, Any]) -> str:
        if figure["value"] is None:
            return "-"
        interval = "" if figure["low"] is None else f"  ({figure['low']:.3f} to {figure['high']:.3f})"
        return f"{figure['value']:.3f}{interval}"

    counts = f"{details['images']} images, {details['lesions']} lesions, {details['patients']} patients"
    lines = [f"{counts}; 95 % intervals by patient"]
    lines += [f"  sensitivity at {rate:>3} FP per image  {show(f)}" for rate, f in details["froc"].items()]
    lines.append(f"  mean of 0.5, 1, 2 and 4           {show(details['average_sensitivity'])}")
    lines.append(f"  accuracy at IoU 0.5               {show(details['accuracy_at_iou']['0.5'])}")
    return "\n".join(lines)
