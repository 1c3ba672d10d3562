"""`metrics.json`: every number of an evaluation with its interval, overall and by group of lesions.

Pure: `compute(results)` and `compare(first, second)`; stateful: `LesionDetectionMetric`, for a handler. The numbers do
not depend on the order in which images come, so a sharded evaluation that gathers its results gives the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts import bootstrap as resampling
from scripts import calibration
from scripts.average_precision import PrecisionTable
from scripts.calibration import CalibrationTable
from scripts.froc import (
    AVERAGED_FP_PER_IMAGE,
    FP_PER_IMAGE,
    IOU_THRESHOLDS,
    Array,
    HitTable,
    ImageResult,
    IntArray,
    box_iou,
)
from scripts.groups import Grouping, groupings
from scripts.operating import OperatingTable

SCHEMA_VERSION = 1
IOU_THRESHOLD = 0.5
CURVE_FP_PER_IMAGE = tuple(2.0 ** (k / 8) for k in range(-24, 33))
"""Where the plotted curve is read: 0.125 to 16, eight points an octave; they include `FP_PER_IMAGE`."""

Key = tuple[str, ...]

KEPT_FP_PER_IMAGE = "1"
"""Boxes that pass at this rate are the kept ones of the calibration and of the report's galleries."""


class EvaluationTable:
    """Everything matched once; `statistics(patient_weight)` is then cheap enough for a thousand replicates.

    ``keys`` (S) are the paths of the statistics in `metrics.json`, ``n`` (S) the lesions, images, boxes or patients and
    ``patients`` (S) the patients each rests on. Column 0 of the tables is all lesions, the others are the groups.
    """

    def __init__(
        self,
        results: Sequence[ImageResult],
        *,
        type_names: Mapping[int, str] | None = None,
        category_names: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        if not results:
            raise ValueError("no images to evaluate")
        self.results = sorted(results, key=lambda result: result.image)
        for one, other in zip(self.results, self.results[1:], strict=False):
            if one.image == other.image:
                raise ValueError(f"image {one.image!r} is there twice")
        self.hits = HitTable.build(self.results, IOU_THRESHOLD)
        self.precision = [PrecisionTable.build(self.results, iou) for iou in IOU_THRESHOLDS]
        self.score_thresholds = self._score_thresholds()
        self.calibration = CalibrationTable.build(self.results, IOU_THRESHOLD, self.score_thresholds[KEPT_FP_PER_IMAGE])
        self.operating = OperatingTable(self.results, self.hits, thresholds or {})
        self.patient_count = int(self.hits.image_patient.max()) + 1
        self.columns: list[Key] = [()]
        member, self._chance, self._images = self._tabulate(groupings(self.results, type_names, category_names))
        by_score = np.argsort(-self.hits.lesion_score, kind="stable")
        self._negative_score = -self.hits.lesion_score[by_score]  # ascending
        self._lesion_patient = self.hits.lesion_patient[by_score]
        self._member = member[by_score]
        self._describe()

    def _tabulate(self, ways: Sequence[Grouping]) -> tuple[Array, Array, Array]:
        """(L, C) membership of lesions, (P, T, C) summed chances of a hit at each IoU, (P, C) marked images."""
        for way in ways:
            self.columns += [(way.key, group) for group in way.groups]
        column_of = {key: column for column, key in enumerate(self.columns)}
        member = np.zeros((len(self.hits.lesion_score), len(self.columns)))
        member[:, 0] = 1.0
        chance = np.zeros((self.patient_count, len(IOU_THRESHOLDS), len(self.columns)))
        images = np.zeros((self.patient_count, len(self.columns)))
        start = 0
        for result, patient in zip(self.results, self.hits.image_patient, strict=True):
            lesions = len(result.true_boxes_px)
            rows = member[start : start + lesions]
            start += lesions
            for way in ways:
                for row, group in zip(rows, way.group_of(result), strict=False):
                    if group is not None:
                        row[column_of[way.key, group]] = 1.0
            top = result.scores == result.scores.max(initial=-np.inf)  # of ties, the share that hits counts
            iou = box_iou(result.boxes_px[top], result.true_boxes_px)  # (tied, m)
            for column in np.flatnonzero(rows.any(axis=0)):
                images[patient, column] += 1
                if len(iou):
                    best = iou[:, rows[:, column] > 0].max(axis=1)
                    chance[patient, :, column] += (best[:, None] >= np.array(IOU_THRESHOLDS)).mean(axis=0)
        return member, chance, images

    def _describe(self) -> None:
        lesions = self._member.sum(axis=0).astype(int)
        images = self._images.sum(axis=0).astype(int)
        patients = (self._images > 0).sum(axis=0)
        self.keys: list[Key] = []
        self.n: list[int] = []
        self.patients: list[int] = []
        for column, prefix in enumerate(self.columns):
            names: list[tuple[Key, int]] = [(("froc", f"{rate:g}"), lesions[column]) for rate in FP_PER_IMAGE]
            names.append((("average_sensitivity",), lesions[column]))
            names += [(("accuracy_at_iou", f"{iou:g}"), images[column]) for iou in IOU_THRESHOLDS]
            self.keys += [(*prefix, *name) for name, _ in names]
            self.n += [int(n) for _, n in names]
            self.patients += [int(patients[column])] * len(names)
        overall: list[Key] = [("average_precision_at_iou", f"{iou:g}") for iou in IOU_THRESHOLDS]
        overall += [("froc_curve", f"{rate:g}") for rate in CURVE_FP_PER_IMAGE]
        self.keys += overall
        self.n += [int(lesions[0])] * len(overall)
        self.patients += [int(patients[0])] * len(overall)
        for part in (self.operating, self.calibration):
            if part is not None:
                self.keys += part.keys
                self.n += part.n
                self.patients += part.patients

    def _score_thresholds(self) -> dict[str, float | None]:
        """The lowest score of a box that may be kept at each rate of false positives; None where none may."""
        scores = np.sort(np.concatenate([result.scores for result in self.results]))
        first = np.searchsorted(scores, self.hits.cut_scores(FP_PER_IMAGE), side="right")
        kept = [float(scores[i]) if i < len(scores) else None for i in first]
        return {f"{rate:g}": score for rate, score in zip(FP_PER_IMAGE, kept, strict=True)}

    def statistics(self, patient_weight: IntArray) -> Array:
        """(S,) the values when each patient is counted so often; NaN where a group is empty."""
        cuts = self.hits.cut_scores((*FP_PER_IMAGE, *CURVE_FP_PER_IMAGE), patient_weight)
        found = np.searchsorted(self._negative_score, -cuts, side="left")  # lesions above the cut
        weighted = patient_weight[self._lesion_patient][:, None] * self._member
        running = np.concatenate([np.zeros((1, len(self.columns))), weighted.cumsum(axis=0)])  # (1 + L, C)
        rates = len(FP_PER_IMAGE)
        averaged = [FP_PER_IMAGE.index(rate) for rate in AVERAGED_FP_PER_IMAGE]
        with np.errstate(invalid="ignore", divide="ignore"):
            sensitivity = running[found[:rates]] / running[-1]  # (6, C)
            curve = running[found[rates:], 0] / running[-1, 0]
            accuracy = np.tensordot(patient_weight, self._chance, 1) / (patient_weight @ self._images)  # (T, C)
        blocks = np.concatenate([sensitivity, sensitivity[averaged].mean(axis=0, keepdims=True), accuracy])
        precision = [table.average_precision(patient_weight) for table in self.precision]
        parts = [part.statistics(patient_weight) for part in (self.operating, self.calibration) if part is not None]
        return np.concatenate([blocks.T.ravel(), precision, curve, *parts])


def _nest(tree: dict[str, Any], key: Key, value: Any) -> None:
    for part in key[:-1]:
        tree = tree.setdefault(part, {})
    tree[key[-1]] = value


def compute(
    results: Sequence[ImageResult],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    type_names: Mapping[int, str] | None = None,
    category_names: Sequence[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The content of `metrics.json`, ready for ``json.dumps(..., allow_nan=False)``; see docs/evaluation.md.

    Args:
        results: one per image, in any order, each image once.
        bootstrap: replicates; 0 gives no intervals.
        seed: of the bootstrap.
        type_names: names of ``coarse_type``; DeepLesion's where None.
        category_names: names of ``label``, by number.
        thresholds: name -> score thresholds chosen elsewhere, for ``operating_points``.

    Raises:
        ValueError: without images, or where an image is there twice.
    """
    table = EvaluationTable(results, type_names=type_names, category_names=category_names, thresholds=thresholds)
    values = table.statistics(np.ones(table.patient_count, np.int64))
    samples = resampling.replicate(table.statistics, table.patient_count, replicates=bootstrap, seed=seed)
    metrics: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "images": len(table.results),
        "lesions": len(table.hits.lesion_score),
        "patients": table.patient_count,
        "boxes": sum(len(result.scores) for result in table.results),
        "iou_threshold": IOU_THRESHOLD,
        "interval": {"level": resampling.LEVEL, "unit": "patient", "replicates": bootstrap, "seed": seed},
    }
    curve: dict[str, list[float | None]] = {"fp_per_image": list(CURVE_FP_PER_IMAGE)}
    for key, value, column, n, patients in zip(table.keys, values, samples.T, table.n, table.patients, strict=True):
        figure = resampling.estimate(float(value), column, n=n, patients=patients)
        if key[0] == "froc_curve":
            for name, part in (("sensitivity", "value"), ("low", "low"), ("high", "high")):
                curve.setdefault(name, []).append(figure[part])
        else:
            _nest(metrics, key, figure)
    metrics |= {"froc_curve": curve, "score_at_fp_per_image": table.score_thresholds}
    metrics["average_precision"] = metrics["average_precision_at_iou"][f"{IOU_THRESHOLD:g}"]
    for name, score in (thresholds or {}).items():
        metrics["operating_points"][name]["score"] = score
    if table.calibration is not None:
        part = metrics["calibration"]
        part["reliability"] = calibration.as_lists(part["reliability"], table.calibration.mean_scores())
        part["kept_score"] = table.score_thresholds[KEPT_FP_PER_IMAGE]
    return metrics


def compare(
    first: Sequence[ImageResult], second: Sequence[ImageResult], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """How far the second run is ahead of the first on the same images, by paired bootstrap.

    Returns:
        ``froc``, ``average_sensitivity``, ``accuracy_at_iou``, ``average_precision``, ``average_precision_at_iou`` and
        ``calibration`` as in `compute`, each ``{"value", "low", "high", "n", "p"}``: the difference, its interval, and
        the two-sided p of no difference. Without ``calibration`` where a run has scores that are no probabilities.

    Raises:
        ValueError: where the two do not cover the same images, patients and lesions.
    """
    one, two = EvaluationTable(first), EvaluationTable(second)
    for a, b in zip(one.results, two.results, strict=False):
        if a.image != b.image or a.patient_id != b.patient_id or not np.array_equal(a.true_boxes_px, b.true_boxes_px):
            raise ValueError(f"the two runs differ in images or lesions, first at {a.image!r} and {b.image!r}")
    if len(one.results) != len(two.results):
        raise ValueError(f"the two runs have {len(one.results)} and {len(two.results)} images")
    shared = {"froc", "average_sensitivity", "accuracy_at_iou", "average_precision_at_iou", "calibration"}
    overall = [i for i, key in enumerate(one.keys) if key[0] in shared and "reliability" not in key and key in two.keys]
    values, samples = resampling.paired_differences(
        lambda weight: one.statistics(weight)[overall],
        lambda weight: two.statistics(weight)[[two.keys.index(one.keys[i]) for i in overall]],
        one.patient_count,
        replicates=bootstrap,
        seed=seed,
    )
    tree: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for index, value, column in zip(overall, values, samples.T, strict=True):
        figure = resampling.estimate(float(value), column, n=one.n[index], patients=one.patients[index])
        _nest(tree, one.keys[index], figure | {"p": resampling.paired_p_value(column, one.patients[index])})
    return tree | {"average_precision": tree["average_precision_at_iou"][f"{IOU_THRESHOLD:g}"]}


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The plain values of `compute` under flat names such as ``froc/0.5`` and ``by_type/lung/average_sensitivity``.

    For an experiment tracker; what has no value is left out.
    """
    flat: dict[str, float] = {}
    for name, part in metrics.items():
        if isinstance(part, Mapping) and "value" in part:
            if part["value"] is not None:
                flat[name] = part["value"]
        elif isinstance(part, Mapping) and name not in ("interval", "froc_curve", "score_at_fp_per_image"):
            flat |= {f"{name}/{key}": value for key, value in scalars(part).items()}
    return flat


class LesionDetectionMetric:
    """Collects images one by one and computes `metrics.json`; for an ignite handler.

    An image that comes again is kept once, since samplers that even out shards repeat some.
    """

    def __init__(
        self,
        *,
        bootstrap: int = 1000,
        seed: int = 0,
        type_names: Mapping[int, str] | None = None,
        category_names: Sequence[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.bootstrap = bootstrap
        self.seed = seed
        self.type_names = type_names
        self.category_names = category_names
        self.thresholds = thresholds
        self._results: dict[str, ImageResult] = {}

    def add(self, result: ImageResult) -> None:
        """Take one image. The first of two results of one image stays."""
        self._results.setdefault(result.image, result)

    @property
    def results(self) -> list[ImageResult]:
        """What was added, for gathering over processes: `add` each result of each process to one metric."""
        return list(self._results.values())

    def reset(self) -> None:
        """Forget all images."""
        self._results.clear()

    def compute(self, *, bootstrap: int | None = None) -> dict[str, Any]:
        """`compute` over the images so far; ``bootstrap`` overrides the number of replicates."""
        return compute(
            self.results,
            bootstrap=self.bootstrap if bootstrap is None else bootstrap,
            seed=self.seed,
            type_names=self.type_names,
            category_names=self.category_names,
            thresholds=self.thresholds,
        )
