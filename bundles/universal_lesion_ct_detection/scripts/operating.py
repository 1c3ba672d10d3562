"""What a fixed score threshold gives: lesions found, false positives, and the share a patient's lesions missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scripts.froc import Array, HitTable, ImageResult, IntArray

VALUES = ("sensitivity", "fp_per_image", "missed_share")


def missed_share(hits: HitTable, score: float) -> tuple[Array, Array]:
    """The loss of each patient at a threshold: the share of his marked lesions that no box of this score or more hits.

    Returns:
        (P,) losses, 0 for a patient without marked lesions, and (P,) his number of marked lesions.
    """
    patients = int(hits.image_patient.max(initial=-1)) + 1
    lesions = np.bincount(hits.lesion_patient, minlength=patients).astype(np.float64)
    missed = np.bincount(hits.lesion_patient, hits.lesion_score < score, minlength=patients)
    return missed / np.maximum(lesions, 1), lesions


class OperatingTable:
    """Sums by patient at each of some thresholds; `statistics` as in `scripts.metrics.EvaluationTable`.

    ``missed_share`` is the mean over patients with a marked lesion, which is what conformal risk control bounds; a
    patient with many lesions weighs no more in it than one with a single lesion.

    Args:
        results: the images.
        hits: the same images' table.
        thresholds: name -> score.
    """

    def __init__(self, results: Sequence[ImageResult], hits: HitTable, thresholds: Mapping[str, float]) -> None:
        images = np.bincount(hits.image_patient)
        rows = []
        for score in thresholds.values():
            loss, lesions = missed_share(hits, score)
            false = np.bincount(hits.false_positive_patient, hits.false_positive_score >= score, minlength=len(images))
            found = np.bincount(hits.lesion_patient, hits.lesion_score >= score, minlength=len(images))
            rows.append(np.stack([found, lesions, false, images, loss, lesions > 0]))
        self._sums = np.stack(rows) if rows else np.zeros((0, 6, len(images)))  # (T, 6, P)
        self.keys = [("operating_points", name, value) for name in thresholds for value in VALUES]
        marked = int((np.bincount(hits.lesion_patient, minlength=len(images)) > 0).sum())
        self.n = [len(hits.lesion_score), len(results), marked] * len(thresholds)
        self.patients = [marked, len(images), marked] * len(thresholds)

    def statistics(self, patient_weight: IntArray) -> Array:
        """(S,) the values, in the order of ``keys``, when each patient is counted so often; NaN without lesions."""
        total = self._sums @ patient_weight
        with np.errstate(invalid="ignore", divide="ignore"):
            values: Array = (total[:, 0::2] / total[:, 1::2]).ravel()
        return values
