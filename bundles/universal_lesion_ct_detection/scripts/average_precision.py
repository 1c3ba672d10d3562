"""COCO's matching and average precision, and what calibration takes from the same matching.

Unlike in the FROC protocol (`scripts/froc.py`), a further hit on a found lesion is a false positive, and a box finds
one lesion at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scripts.froc import Array, ImageResult, IntArray, box_iou


def matched_iou(result: ImageResult, iou_threshold: float) -> Array:
    """(n,) IoU of each box with the lesion it takes by COCO's rule, 0 where it takes none.

    From the highest score down, a box takes the lesion it overlaps most among those not yet taken, if their IoU
    reaches the threshold. Of equal scores, the better fitting box chooses first, so the input's order is immaterial.
    """
    iou = box_iou(result.boxes_px, result.true_boxes_px)  # (n, m)
    taken = np.zeros(len(result.scores))
    free = np.ones(iou.shape[1], dtype=np.bool_)
    best = iou.max(axis=1, initial=0.0)
    order = np.lexsort((-best, -result.scores))
    for box in order[best[order] >= iou_threshold]:
        lesion = int(np.argmax(np.where(free, iou[box], -1.0)))
        if free[lesion] and iou[box, lesion] >= iou_threshold:
            free[lesion] = False
            taken[box] = iou[box, lesion]
    return taken


def match_as_coco(result: ImageResult, iou_threshold: float) -> npt.NDArray[np.bool_]:
    """(n,) whether each box is a true positive: whether it takes a lesion, see `matched_iou`."""
    matched: npt.NDArray[np.bool_] = matched_iou(result, iou_threshold) > 0
    return matched


@dataclass(frozen=True, eq=False)
class PrecisionTable:
    """All that average precision needs to know about a set of images, at one IoU threshold.

    ``matched`` (N,) and ``patient`` (N,) are of the boxes in descending order of score; ``last_of_score`` (K,) indexes
    the last box of each distinct score at which something is matched; ``lesion_patient`` (L,).
    """

    matched: npt.NDArray[np.bool_]
    patient: IntArray
    last_of_score: IntArray
    lesion_patient: IntArray

    @classmethod
    def build(cls, results: Sequence[ImageResult], iou_threshold: float = 0.5) -> PrecisionTable:
        """Match boxes and lesions; patients are numbered as in `HitTable`."""
        patient_of = {patient: index for index, patient in enumerate(sorted({r.patient_id for r in results}))}
        image_patient = np.array([patient_of[r.patient_id] for r in results], dtype=np.int64)
        score = np.concatenate([r.scores for r in results] or [np.empty(0)])
        matched = np.concatenate([match_as_coco(r, iou_threshold) for r in results] or [np.empty(0, np.bool_)])
        order = np.argsort(-score, kind="stable")
        score, matched = score[order], matched[order]
        last = np.flatnonzero(np.append(score[1:] != score[:-1], len(score) > 0))
        true_below = np.cumsum(matched)[last]
        return cls(
            matched=matched,
            patient=np.repeat(image_patient, [len(r.scores) for r in results])[order],
            last_of_score=last[np.diff(true_below, prepend=0) > 0],  # elsewhere precision only falls
            lesion_patient=np.repeat(image_patient, [len(r.true_boxes_px) for r in results]),
        )

    def average_precision(self, patient_weight: IntArray | None = None) -> float:
        """COCO's average precision: the mean over recalls 0, 0.01, ..., 1 of the best precision at that recall or more.

        All areas, class-agnostic, no limit on boxes per image. Boxes of equal score enter together. NaN where there
        are no lesions.

        Args:
            patient_weight: (P,) how often each patient is counted (bootstrap); once by default.
        """
        weight = np.ones(len(self.patient), np.int64) if patient_weight is None else patient_weight[self.patient]
        lesions = len(self.lesion_patient) if patient_weight is None else int(patient_weight[self.lesion_patient].sum())
        if lesions == 0:
            return float("nan")
        first = np.append(0, self.last_of_score[:-1] + 1)[: len(self.last_of_score)]
        end = int(self.last_of_score.max(initial=-1)) + 1
        boxes = np.cumsum(np.add.reduceat(weight[:end], first)) if end else first
        true = np.cumsum(np.add.reduceat((weight * self.matched)[:end], first)) if end else first
        precision = true / np.maximum(boxes, 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(true / lesions, np.linspace(0.0, 1.0, 101), side="left")
        return float(np.append(precision, 0.0)[reached].mean())


def average_precision(results: Sequence[ImageResult], iou_threshold: float = 0.5) -> float:
    """COCO's average precision at one IoU threshold; see `PrecisionTable.average_precision`."""
    return PrecisionTable.build(results, iou_threshold).average_precision()
