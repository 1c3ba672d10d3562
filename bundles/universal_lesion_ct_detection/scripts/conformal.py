"""Conformal risk control: a score threshold with a promise about the lesions it misses.

Angelopoulos, Bates, Fisch, Lei & Schuster, "Conformal Risk Control" (2022; ICLR 2024), Theorem 1. The loss of patient i
at threshold t is the share of his marked lesions that no box of score t or more hits at IoU 0.5. It lies in [0, B] with
B = 1 and only grows with t. From n calibration patients with mean loss R(t), the highest threshold with

    n / (n + 1) * R(t) + B / (n + 1) <= alpha

misses, of a further patient exchangeable with them, at most the share alpha in expectation. The expectation is over the
draw of the calibration patients and of the new one. It speaks of patients with a marked lesion, of key slices, and of
marked lesions; it is no promise for one patient.

Where no threshold satisfies it (few patients, or lesions that no box hits at any score) there is none to ship. Counting
no threshold as no loss the theorem still holds, so a target just within reach is not quite kept on average over the
draws that reach it; more patients are the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from scripts import checkpoint, distributed
from scripts.errors import BundleError
from scripts.evaluation import DetectionMetrics
from scripts.froc import HitTable, ImageResult

BOUND = 1.0
SECTIONS = ("validation", "test")


@dataclass(frozen=True)
class RiskThreshold:
    """What conformal risk control found.

    ``score`` is the highest threshold that keeps the promise, None where none does. ``mean_loss`` and ``bound`` are R
    and the left side of the inequality there, or at the lowest threshold that finds anything where ``score`` is None.
    ``patients`` (n) have a marked lesion; ``lesions`` are theirs.
    """

    alpha: float
    score: float | None
    mean_loss: float
    bound: float
    patients: int
    lesions: int
    iou_threshold: float


def choose(results: Sequence[ImageResult], alpha: float, iou_threshold: float = 0.5) -> RiskThreshold:
    """The highest score threshold whose expected share of missed marked lesions is at most alpha.

    Args:
        results: all images of the calibration patients; those without a marked lesion have no say.
        alpha: between 0 and 1.
        iou_threshold: from which a box hits a lesion.

    Raises:
        BundleError: alpha is not between 0 and 1, or nothing is marked.
    """
    _check_alpha(alpha)
    hits = HitTable.build(results, iou_threshold)
    if not len(hits.lesion_score):
        raise BundleError("no lesion is marked on the calibration slices; conformal risk control needs some")
    per_patient = np.bincount(hits.lesion_patient)
    patients = int((per_patient > 0).sum())
    order = np.argsort(hits.lesion_score, kind="stable")
    score = hits.lesion_score[order]
    # The mean loss is a step function that jumps just above each lesion's score: the highest is one of these scores.
    below = np.concatenate([[0.0], np.cumsum((1 / per_patient[hits.lesion_patient])[order])])
    thresholds = np.unique(score[np.isfinite(score)])
    mean_loss = below[np.searchsorted(score, thresholds, side="left")] / patients
    bound = (patients * mean_loss + BOUND) / (patients + 1)
    kept = np.flatnonzero(bound <= alpha + 1e-12)  # 1/3 + 1/3 + 1/3 is not quite 1
    at = int(kept[-1]) if len(kept) else 0
    nothing_found = len(thresholds) == 0
    return RiskThreshold(
        alpha=alpha,
        score=float(thresholds[at]) if len(kept) else None,
        mean_loss=1.0 if nothing_found else float(mean_loss[at]),
        bound=1.0 if nothing_found else float(bound[at]),
        patients=patients,
        lesions=len(score),
        iou_threshold=iou_threshold,
    )


def _check_alpha(alpha: Any) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1:
        raise BundleError(f"alpha must be between 0 and 1 (0.2: a fifth of the lesions), got {alpha!r}")


def check(alpha: Any, section: str, items: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what would break the promise before any slice is looked at.

    Args:
        alpha: the share of lesions that may be missed.
        section: of the datalist, to calibrate on. Not the training patients, which the weights know, nor the tuning
            patients, on whose figures the epoch was chosen: both score higher than a new patient's slices would.
        items: of that section.

    Raises:
        BundleError: for such a section, another alpha, or slices of an unknown patient.
    """
    _check_alpha(alpha)
    if section not in SECTIONS:
        raise BundleError(
            f"--calibrate_on {section}: training patients made the weights and tuning patients chose the epoch, so "
            f"neither is like a new patient; choose {' or '.join(SECTIONS)}, and report the threshold on the other one"
        )
    unknown = sum(not (item.get("meta") or {}).get("patient_id") for item in items)
    if unknown:
        raise BundleError(
            f"{unknown} slices of section {section!r} name no patient_id; the promise is by patient, so each needs one"
        )


class Calibrate:
    """At the end of an evaluation of the calibration patients, put the threshold into ``model.pt``.

    Args:
        path: of the weights that were evaluated.
        metrics: the handler that collected the results.
        alpha: the share of lesions that may be missed.
        section: of the datalist the results are of, see `check`.
        datalist_sha256: of the datalist, kept along.
        across_slices: whether the scores are those of the model across slices, kept along.
        flip_average, scale_average: how the slices were looked at, kept along.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        metrics: DetectionMetrics,
        alpha: float,
        section: str,
        datalist_sha256: str,
        across_slices: bool = False,
        flip_average: bool = False,
        scale_average: Sequence[float] = (),
    ) -> None:
        self.path, self.metrics, self.alpha = path, metrics, alpha
        self.looks = {"flip_average": bool(flip_average), "scale_average": list(map(float, scale_average))}
        self.section, self.datalist_sha256, self.across_slices = section, datalist_sha256, across_slices

    def attach(self, engine: Engine) -> None:
        if distributed.is_main():
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        found = choose(self.metrics.metric.results, self.alpha)
        who = f"{found.patients} {self.section} patients with {found.lesions} marked lesions"
        if found.score is None:
            # A threshold of an earlier calibration would be one that this one does not grant.
            checkpoint.store_operating_point(self.path, self.alpha, None)
            raise BundleError(
                f"not attainable: on {who} the lowest threshold bounds the share of missed lesions by "
                f"{found.bound:.3f}, above alpha = {self.alpha:g}; {self.path} has no threshold for it. Take a higher "
                "alpha, more patients, or better weights"
            )
        statement = (
            f"expected share of missed marked lesions at most {self.alpha:g} for a patient like the {self.section} "
            f"patients, by conformal risk control; report it on patients of another section than {self.section}"
        )
        point = {
            **asdict(found),
            "chosen_on": f"{self.section} patients",
            "datalist_sha256": self.datalist_sha256,
            "across_slices": self.across_slices,
            "looks": self.looks,
            "statement": statement,
        }
        checkpoint.store_operating_point(self.path, self.alpha, point)
        print(
            f"score threshold {found.score:.3f} for alpha = {self.alpha:g}, from {who}. They miss "
            f"{found.mean_loss:.3f} on average, {found.bound:.3f} when corrected for their number; stored in "
            f"{self.path}. Use it with inference.yaml --risk {self.alpha:g}, and report it on other patients than these"
        )
