"""How detectors are compared on DeepLesion: FROC and accuracy, as pure functions.

The published protocol (Yan et al., JMI 2018; 3DCE, MICCAI 2018; MULAN, MICCAI 2019), on key slices, class-agnostic:

- A box **hits** every lesion of its image whose IoU with it is at least the threshold. One box may hit several lesions.
- A lesion is found once the first box hits it; further hits on it are neither true nor false positives.
- A box that hits no lesion of its image is a false positive. Images without boxes or without lesions count as images.

Since every hit counts, no matching is needed: a lesion's score is the highest score of the boxes that hit it, and the
curve is two counts against one score threshold. Nothing depends on the order of boxes or images, ties included.

Boxes are half-open px (``x0, y0, x1, y1``; (0, 0) at the corner of the first pixel): their plain IoU equals the
published IoU of inclusive pixels, ``w = x2 - x1 + 1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FP_PER_IMAGE = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
AVERAGED_FP_PER_IMAGE = (0.5, 1.0, 2.0, 4.0)
"""The headline number is the mean sensitivity at these false positives per image."""
IOU_THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(1, 10))

NOT_FOUND = -np.inf
"""The score of a lesion that no box hits."""


def _boxes(values: Any, what: str, *, may_be_empty: bool = False) -> Array:
    array = np.array(values, dtype=np.float64)
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{what} must have shape (n, 4), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite")
    side = array[:, 2:] - array[:, :2]
    if not (side >= 0 if may_be_empty else side > 0).all():
        raise ValueError(f"{what} must be x0, y0, x1, y1 with x0 < x1 and y0 < y1")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What a detector said about one image, and what is marked on it.

    Args:
        image: the image's name, unique in one evaluation.
        patient_id: the patient, the unit of resampling. Images whose patient is unknown need a name of their own here.
        boxes_px: (n, 4) predicted boxes, half-open px; n may be 0. A box without area (clipped away) hits nothing.
        scores: (n,) their scores; only their order matters here.
        true_boxes_px: (m, 4) marked lesions, half-open px; m may be 0.
        true_attributes: per name a list of m values, one a lesion (``coarse_type``, ``long_diameter_mm``, ``label``,
            ``lesion_id``, ...); None where unknown.

    Raises:
        ValueError: for shapes that disagree, lesions without area, values that are not finite, or an empty patient.
    """

    image: str
    patient_id: str
    boxes_px: Array
    scores: Array
    true_boxes_px: Array
    true_attributes: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"image {self.image!r}"
        if not self.patient_id:
            raise ValueError(f"{where} has no patient: intervals are by patient, give the image a patient of its own")
        object.__setattr__(self, "boxes_px", _boxes(self.boxes_px, f"{where}: predicted boxes", may_be_empty=True))
        object.__setattr__(self, "true_boxes_px", _boxes(self.true_boxes_px, f"{where}: true boxes"))
        scores = np.array(self.scores, dtype=np.float64).reshape(-1)
        if len(scores) != len(self.boxes_px) or not np.isfinite(scores).all():
            raise ValueError(f"{where}: {len(self.boxes_px)} boxes need as many finite scores, got {len(scores)}")
        scores.setflags(write=False)
        object.__setattr__(self, "scores", scores)
        for name, values in self.true_attributes.items():
            if len(values) != len(self.true_boxes_px):
                raise ValueError(f"{where}: {len(self.true_boxes_px)} lesions but {len(values)} values of {name!r}")


def box_iou(boxes_px: Array, other_px: Array) -> Array:
    """(n, m) intersection over union of half-open boxes (n, 4) and (m, 4)."""
    lower = np.maximum(boxes_px[:, None, :2], other_px[None, :, :2])
    upper = np.minimum(boxes_px[:, None, 2:], other_px[None, :, 2:])
    intersection = np.clip(upper - lower, 0.0, None).prod(axis=-1)
    area = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(axis=-1)
    other_area = (other_px[:, 2:] - other_px[:, :2]).prod(axis=-1)
    iou: Array = intersection / (area[:, None] + other_area[None, :] - intersection)
    return iou


@dataclass(frozen=True, eq=False)
class HitTable:
    """All that FROC needs to know about a set of images, at one IoU threshold.

    ``image_patient`` (I,), ``lesion_patient`` (L,) and ``false_positive_patient`` (F,) index the patients, 0-based.
    ``lesion_score`` (L,) is the highest score of the boxes that hit the lesion, ``NOT_FOUND`` where none does; lesions
    are in the order of the results. ``false_positive_score`` (F,) is descending.
    """

    image_patient: IntArray
    lesion_score: Array
    lesion_patient: IntArray
    false_positive_score: Array
    false_positive_patient: IntArray

    @classmethod
    def build(cls, results: Sequence[ImageResult], iou_threshold: float = 0.5) -> HitTable:
        """Match boxes and lesions; patients are numbered in sorted order of their id."""
        patient_of = {patient: index for index, patient in enumerate(sorted({r.patient_id for r in results}))}
        image_patient = np.array([patient_of[r.patient_id] for r in results], dtype=np.int64)
        lesion_scores: list[Array] = []
        false_scores: list[Array] = []
        for result in results:
            hits = box_iou(result.boxes_px, result.true_boxes_px) >= iou_threshold  # (n, m)
            lesion_scores.append(np.where(hits, result.scores[:, None], NOT_FOUND).max(axis=0, initial=NOT_FOUND))
            false_scores.append(result.scores[~hits.any(axis=1)])
        false_patient = np.repeat(image_patient, [len(scores) for scores in false_scores])
        false_score = np.concatenate(false_scores or [np.empty(0)])
        descending = np.argsort(-false_score, kind="stable")
        return cls(
            image_patient=image_patient,
            lesion_score=np.concatenate(lesion_scores or [np.empty(0)]),
            lesion_patient=np.repeat(image_patient, [len(scores) for scores in lesion_scores]),
            false_positive_score=false_score[descending],
            false_positive_patient=false_patient[descending],
        )

    def cut_scores(self, fp_per_image: Sequence[float], patient_weight: IntArray | None = None) -> Array:
        """The score a lesion must exceed to be found at each rate of false positives per image.

        With I images and a rate r, at most floor(r · I) false positives are allowed. The cut is the score of the
        highest false positive beyond that number, minus infinity where there is none. Equal scores are
        indistinguishable, so a threshold that lets one of them in lets in all: a lesion must score strictly higher.

        Args:
            fp_per_image: (R,) rates.
            patient_weight: (P,) how often each patient is counted (bootstrap); once by default.

        Returns:
            (R,) scores, the same order.
        """
        if patient_weight is None:
            patient_weight = np.ones(int(self.image_patient.max(initial=-1)) + 1, np.int64)
        images = int(patient_weight[self.image_patient].sum())
        allowed = np.floor(np.asarray(fp_per_image, dtype=np.float64) * images + 1e-9)  # 0.29 * 100 is 28.999...
        # The head of the list nearly always holds enough false positives; where it does not, all are counted.
        head = 2 * int(allowed.max(initial=0)) + 1
        running = np.cumsum(patient_weight[self.false_positive_patient[:head]])
        if running.max(initial=0) <= allowed.max(initial=0):
            running = np.cumsum(patient_weight[self.false_positive_patient])
        first_beyond = np.searchsorted(running, allowed, side="right")
        cut: Array = np.append(self.false_positive_score, NOT_FOUND)[first_beyond]
        return cut

    def found(self, fp_per_image: Sequence[float], patient_weight: IntArray | None = None) -> npt.NDArray[np.bool_]:
        """(R, L): is the lesion found at this rate?"""
        found: npt.NDArray[np.bool_] = (
            self.lesion_score[None, :] > self.cut_scores(fp_per_image, patient_weight)[:, None]
        )
        return found

    def sensitivity(self, fp_per_image: Sequence[float]) -> Array:
        """(R,) share of lesions found at each rate; NaN where there are no lesions."""
        if len(self.lesion_score) == 0:
            return np.full(len(fp_per_image), np.nan)
        sensitivity: Array = self.found(fp_per_image).mean(axis=1)
        return sensitivity


@dataclass(frozen=True, eq=False)
class FrocCurve:
    """The operating points of a detector, one for each distinct score, from the highest score down.

    At ``score`` (K,), all boxes of that score or higher give ``fp_per_image`` (K,) and ``sensitivity`` (K,).
    """

    score: Array
    fp_per_image: Array
    sensitivity: Array


def froc_curve(results: Sequence[ImageResult], iou_threshold: float = 0.5) -> FrocCurve:
    """The whole curve. For sensitivities at given rates use `HitTable.sensitivity`, which reads the same points."""
    table = HitTable.build(results, iou_threshold)
    score = np.unique(np.concatenate([result.scores for result in results] or [np.empty(0)]))[::-1]
    false_positives = len(table.false_positive_score) - np.searchsorted(table.false_positive_score[::-1], score)
    found = len(table.lesion_score) - np.searchsorted(np.sort(table.lesion_score), score)
    lesions = len(table.lesion_score) or np.nan
    return FrocCurve(score=score, fp_per_image=false_positives / len(results), sensitivity=found / lesions)


def sensitivity_at_fp(
    results: Sequence[ImageResult], fp_per_image: Sequence[float] = FP_PER_IMAGE, iou_threshold: float = 0.5
) -> dict[float, float]:
    """Sensitivity at each rate: the highest one among the score thresholds whose false positives do not exceed it.

    Equals the published code's linear interpolation of the curve where scores are distinct: there the curve is flat
    from one false positive to the next. Among equal scores that code interpolates; here they are taken or left
    together, since no threshold tells them apart.
    """
    values = HitTable.build(results, iou_threshold).sensitivity(fp_per_image)
    return {float(rate): float(value) for rate, value in zip(fp_per_image, values, strict=True)}


# --- accuracy ------------------------------------------------------------------------------------------------------


def chance_of_hit(scores: Array, hits: npt.NDArray[np.bool_], k: int = 1) -> float:
    """The chance that the k highest-scoring boxes of one image hold a hit when equal scores are ordered at random.

    Without ties it is 0 or 1. For k = 1 it is the share of hits among the boxes that tie at the top score.

    Args:
        scores: (n,) scores; no box gives 0.
        hits: (n,) whether the box hits a lesion.
        k: how many boxes are looked at, at least 1.
    """
    if len(scores) == 0 or not hits.any():
        return 0.0
    if k >= len(scores):
        return 1.0
    kth = np.partition(scores, -k)[-k]
    if hits[scores > kth].any():
        return 1.0
    tied = hits[scores == kth]
    drawn = k - int((scores > kth).sum())
    size, misses = len(tied), len(tied) - int(tied.sum())
    missed = 1.0  # chance that all boxes drawn, without replacement, are misses
    for i in range(drawn):
        missed *= max(misses - i, 0) / (size - i)
    return 1.0 - missed


def _mean_over_marked_images(results: Sequence[ImageResult], iou_threshold: float, k: int) -> float:
    chances = []
    for result in results:
        if len(result.true_boxes_px):
            best = box_iou(result.boxes_px, result.true_boxes_px).max(axis=1)
            chances.append(chance_of_hit(result.scores, best >= iou_threshold, k))
    return float(np.mean(chances)) if chances else float("nan")


def accuracy_at_iou(
    results: Sequence[ImageResult], iou_thresholds: Sequence[float] = IOU_THRESHOLDS
) -> dict[float, float]:
    """Detection accuracy (Yan et al., 2017): share of images whose highest-**scoring** box hits a lesion.

    Class-agnostic. Images without a lesion are left out; an image without a box is a miss. Of boxes that tie at the
    top score, the share that hits counts. NaN where no image has a lesion.
    """
    return {float(iou): _mean_over_marked_images(results, iou, 1) for iou in iou_thresholds}


def best_of_k(results: Sequence[ImageResult], k: int, iou_threshold: float = 0.5) -> float:
    """Share of marked images on which any of the k highest-scoring boxes hits a lesion.

    Not accuracy: here the truth picks among k boxes. Ties at the k-th place as in `chance_of_hit`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return _mean_over_marked_images(results, iou_threshold, k)
