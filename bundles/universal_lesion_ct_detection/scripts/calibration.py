"""Are scores what they say? Reliability diagram and localisation-aware expected calibration error.

LaECE (Oksuz, Joy & Dokania, CVPR 2023, "Towards Building Self-Aware Object Detectors via Reliable Uncertainty
Quantification and Calibration"): boxes are sorted into J = 25 bins of equal width by score, and

    LaECE = sum_j |D_j| / |D| * | mean score in bin j  -  precision(j) * mean IoU of the true positives of bin j |

so a calibrated score is the box's expected IoU with a lesion, a miss counting 0. D-ECE (Küppers et al., CVPRW 2020) is
the same without the IoU: a calibrated score is then the chance of a hit. A true positive is one by COCO's rule
(`scripts.average_precision.matched_iou`) at the IoU threshold of the evaluation, 0.5; the paper's own experiments take
0.1. The paper averages over classes; here, as everywhere in the evaluation, there is one.

Both are sums of absolute errors, so with few boxes in a bin they are too high, the more so in bootstrap replicates:
the value may lie below the middle of its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.average_precision import matched_iou
from scripts.froc import Array, ImageResult, IntArray

BINS = 25
ERRORS = ("laece", "d_ece", "laece_kept", "d_ece_kept")
CURVES = ("precision", "precision_times_iou")

_BOXES, _SCORE, _MATCHED, _IOU = range(4)


@dataclass(frozen=True, eq=False)
class CalibrationTable:
    """What calibration needs to know about a set of images.

    ``sums`` (P, 2, J, 4): for each patient (numbered in sorted order of the id), all boxes or the kept ones, and bin of
    score: number of boxes, sum of scores, true positives, sum of their IoU.
    """

    sums: Array

    @classmethod
    def build(
        cls, results: Sequence[ImageResult], iou_threshold: float = 0.5, kept_score: float | None = None
    ) -> CalibrationTable | None:
        """Match boxes and lesions; None where a score is not in 0..1, so is no probability.

        Args:
            results: the images.
            iou_threshold: of a true positive.
            kept_score: the boxes of this score or more are "kept"; None: no box is.
        """
        patient_of = {patient: index for index, patient in enumerate(sorted({r.patient_id for r in results}))}
        sums = np.zeros((len(patient_of), 2, BINS, 4))
        edges = np.linspace(0, 1, BINS + 1)[1:-1]
        for result in results:
            if len(result.scores) and not 0 <= result.scores.min() <= result.scores.max() <= 1:
                return None
            iou = matched_iou(result, iou_threshold)
            columns = np.stack([np.ones_like(iou), result.scores, iou > 0, iou], axis=1)
            bins = np.searchsorted(edges, result.scores, side="right")
            kept = result.scores >= (np.inf if kept_score is None else kept_score)
            of_patient = sums[patient_of[result.patient_id]]
            np.add.at(of_patient[0], bins, columns)
            np.add.at(of_patient[1], bins[kept], columns[kept])
        return cls(sums)

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """Names of the statistics: ``ERRORS``, then each of ``CURVES`` bin by bin."""
        curves = [("calibration", "reliability", name, str(j)) for name in CURVES for j in range(BINS)]
        return [*(("calibration", name) for name in ERRORS), *curves]

    @property
    def n(self) -> list[int]:
        """The number of boxes each statistic rests on."""
        return self._spread(self.sums[..., _BOXES].sum(axis=0))

    @property
    def patients(self) -> list[int]:
        """The number of patients each statistic rests on."""
        boxes = self.sums[..., _BOXES]
        both = (boxes.sum(axis=2) > 0).sum(axis=0)
        return [int(both[i]) for i in (0, 0, 1, 1)] + [int(v) for v in (boxes[:, 0] > 0).sum(axis=0)] * len(CURVES)

    @staticmethod
    def _spread(boxes: Array) -> list[int]:
        total = boxes.sum(axis=1)
        return [int(total[i]) for i in (0, 0, 1, 1)] + [int(v) for v in boxes[0]] * len(CURVES)

    def statistics(self, patient_weight: IntArray) -> Array:
        """(S,) the values, in the order of `keys`, when each patient is counted so often; NaN where there is no box."""
        total = np.tensordot(patient_weight, self.sums, 1)  # (2, J, 4)
        boxes = total[..., _BOXES]
        with np.errstate(invalid="ignore", divide="ignore"):
            laece = np.abs(total[..., _SCORE] - total[..., _IOU]).sum(axis=1) / boxes.sum(axis=1)
            d_ece = np.abs(total[..., _SCORE] - total[..., _MATCHED]).sum(axis=1) / boxes.sum(axis=1)
            curves = total[0, :, [_MATCHED, _IOU]] / boxes[0]  # (2, J)
        return np.concatenate([[laece[0], d_ece[0], laece[1], d_ece[1]], curves.ravel()])

    def mean_scores(self) -> Array:
        """(J,) mean score of the boxes of each bin; NaN where there is none."""
        boxes, scores = self.sums[:, 0, :, [_BOXES, _SCORE]].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: Array = scores / boxes
        return mean


def as_lists(figures: Mapping[str, Mapping[str, Mapping[str, Any]]], mean_scores: Array) -> dict[str, Any]:
    """The ``reliability`` of `metrics.json`: lists over the bins, ready for a plot; None where a bin has no box.

    Args:
        figures: each of ``CURVES`` -> bin -> ``{"value", "low", "high", "n"}``.
        mean_scores: (J,).
    """
    lists: dict[str, Any] = {
        "boxes": [figure["n"] for figure in figures[CURVES[0]].values()],
        "mean_score": [None if np.isnan(score) else float(score) for score in mean_scores],
    }
    for name in CURVES:
        for ending, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            lists[name + ending] = [figure[part] for figure in figures[name].values()]
    return lists
