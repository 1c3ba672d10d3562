"""Fit the model of :mod:`scripts.across_slices` on the tuning patients, and keep it with the weights if it pays there.

A finding that hits a lesion (IoU 0.5) is one to learn as true, any other as false; one that only hits lesions which a
higher-scoring finding hits is left out, as in the FROC. On training patients the detector is surer than on new ones, so
they cannot teach this. Where marks are incomplete, findings of unmarked lesions count as false: they look like true
ones, so they pull the model towards no change, not in a wrong direction. A datalist of the full truth avoids it.

Whether it pays is measured on patients the model was not fitted on: the tuning patients are split into folds by
patient, each fold is scored by the model of the others, and the mean sensitivity at 0.5, 1, 2 and 4 false positives an
image is compared with that of the plain scores. The score threshold is chosen on the same held-out scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everyone uses
from ignite.engine import Engine, Events

from scripts import checkpoint, distributed, metrics
from scripts.across_slices import SecondStage, log_odds
from scripts.errors import BundleError
from scripts.evaluation import image_result
from scripts.froc import Array, ImageResult, IntArray, box_iou

PENALTY = 1.0  # of the squared standardised weights, as scikit-learn's LogisticRegression has it by default
FOLDS = 10  # at most; each has a patient
HIT_IOU = 0.5
SECTION = "tuning"
UNMOVED = SecondStage(0.0, (1.0, 0.0, 0.0), (0.0, 0.0), (0.0, 0.0))


@dataclass(frozen=True)
class Slice:
    """A key slice: its plain findings with what is marked, and what its neighbours say of them.

    ``seen`` is (n, 2) of :func:`scripts.across_slices.describe`, in the order of the findings.
    """

    result: ImageResult
    seen: Array

    def labels(self) -> IntArray:
        """(n,) 1 for a finding to learn as true, 0 for a false one, -1 for one that is left out."""
        hits = box_iou(self.result.boxes_px, self.result.true_boxes_px) >= HIT_IOU  # (n, m)
        best = np.where(hits, self.result.scores[:, None], -np.inf).max(axis=0, initial=-np.inf)
        first = hits & (self.result.scores[:, None] == best)
        labels: IntArray = np.where(first.any(axis=1), 1, np.where(hits.any(axis=1), -1, 0)).astype(np.int64)
        return labels


def logistic_regression(inputs: Array, labels: Array, penalty: float) -> tuple[Array, float]:
    """Minimise the summed log loss plus ``penalty`` / 2 times the sum of the squared weights, by L-BFGS.

    Args:
        inputs: (n, k).
        labels: (n,) 0 or 1.
        penalty: above 0; the intercept has none.

    Returns:
        (k,) weights and the intercept.
    """
    x = torch.from_numpy(np.column_stack([inputs, np.ones(len(inputs))]))
    y = torch.from_numpy(np.asarray(labels, dtype=np.float64))
    with torch.enable_grad():
        parameters = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
        )

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = F.binary_cross_entropy_with_logits(x @ parameters, y, reduction="sum")
            value = value + penalty / 2 * parameters[:-1].square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    weights: Array = parameters.detach().numpy()
    return weights[:-1], float(weights[-1])


def _line(x: Array, y: Array) -> tuple[float, float]:
    """Intercept and slope of y over x by least squares, where y is known; flat where x does not vary."""
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if not len(x):
        return 0.0, 0.0
    spread = float(np.var(x))
    slope = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread if spread > 0 else 0.0
    return float(y.mean() - slope * x.mean()), slope


def fit(slices: Sequence[Slice], penalty: float = PENALTY) -> SecondStage:
    """The model of some slices.

    Raises:
        BundleError: no finding hits a lesion, or no finding misses.
    """
    labels = np.concatenate([one.labels() for one in slices])
    score = np.concatenate([one.result.scores for one in slices])[labels >= 0]
    seen = np.concatenate([one.seen for one in slices])[labels >= 0]
    labels = labels[labels >= 0]
    if not 0 < labels.sum() < len(labels):
        raise BundleError("to fit a model across slices, some findings must hit a lesion and some must miss")
    lines = [_line(log_odds(score), column) for column in seen.T]
    stage = replace(UNMOVED, expected_near=lines[0], expected_far=lines[1])
    inputs = stage.inputs(score, seen)
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
    spread[spread == 0] = 1.0
    weights, intercept = logistic_regression((inputs - mean) / spread, labels, penalty)
    weights = weights / spread
    own, near, far = map(float, weights)
    return replace(stage, intercept=float(intercept - weights @ mean), weights=(own, near, far))


def held_out(slices: Sequence[Slice]) -> list[ImageResult]:
    """The slices with new scores, each by a model that was fitted without its patient's fold.

    Raises:
        BundleError: findings of fewer than two patients hit a lesion.
    """
    hits: dict[str, int] = {}
    for one in slices:
        hits[one.result.patient_id] = hits.get(one.result.patient_id, 0) + int((one.labels() == 1).sum())
    if sum(count > 0 for count in hits.values()) < 2:
        raise BundleError(
            f"to judge a model across slices, lesions of two {SECTION} patients at least must be found; "
            "make a datalist with more patients"
        )
    # Those with most hits are dealt out first, so that no fold has all of them.
    patients = sorted(hits, key=lambda patient: (-hits[patient], patient))
    fold_of = {patient: number % min(FOLDS, len(patients)) for number, patient in enumerate(patients)}
    out = []
    for fold in sorted(set(fold_of.values())):
        stage = fit([one for one in slices if fold_of[one.result.patient_id] != fold])
        for one in slices:
            if fold_of[one.result.patient_id] == fold:
                out.append(replace(one.result, scores=stage.scores(one.result.scores, one.seen)))
    return out


class FitAcrossSlices:
    """At the end of an evaluation with :class:`scripts.across_slices.DetectAcrossSlices` without a model, fit one.

    It is kept in ``model.pt`` where the held-out gain is above 0; otherwise an earlier one is taken out.

    Args:
        path: of the weights that were evaluated.
        section: of the datalist; must be the tuning patients.
        datalist_sha256: of the datalist, kept along.
        bootstrap, seed: replicates of the gain's interval, and their seed.
        fp_per_image: the score threshold kept with the model gives so many false positives a slice.

    Raises:
        BundleError: another section.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        section: str,
        datalist_sha256: str,
        bootstrap: int = 1000,
        seed: int = 0,
        fp_per_image: str = "1",
    ) -> None:
        if section != SECTION:
            raise BundleError(
                f"--section {section}: a model across slices is fitted on the {SECTION} patients; the training "
                "patients' scores are too sure, and the others are to report on"
            )
        self.path, self.datalist_sha256 = path, datalist_sha256
        self.bootstrap, self.seed, self.fp_per_image = bootstrap, seed, fp_per_image
        self.slices: list[Slice] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.slices.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:  # type: ignore[union-attr]
            self.slices.append(Slice(image_result(item), item["seen"]))

    def _finish(self, engine: Engine) -> None:
        slices = distributed.gather(self.slices)
        if distributed.is_main():
            self.conclude(slices)

    def conclude(self, slices: Sequence[Slice]) -> None:
        """Fit, judge, keep or take out, and say so.

        Raises:
            BundleError: nothing to learn from.
        """
        if all(np.isnan(one.seen).all() for one in slices):
            raise BundleError(
                f"no {SECTION} slice has a neighbour in the images folder at a known distance, so there is nothing to "
                "fit: export whole series, with their slice spacing"
            )
        plain, new = [one.result for one in slices], held_out(slices)
        gain = metrics.compare(plain, new, bootstrap=self.bootstrap, seed=self.seed)["average_sensitivity"]
        before, after = metrics.compute(plain, bootstrap=0), metrics.compute(new, bootstrap=0)
        pays = gain["value"] is not None and gain["value"] > 0
        kept: dict[str, Any] | None = None
        if pays:
            score = after["score_at_fp_per_image"][self.fp_per_image]
            kept = {
                **fit(slices).to_dict(),
                "score": 1.0 if score is None else score,  # None: not one finding may be kept at this rate
                "fp_per_image": self.fp_per_image,
                "chosen_on": f"{SECTION} patients, held out",
                "gain": gain,
                "datalist_sha256": self.datalist_sha256,
            }
        dropped = checkpoint.store_across_slices(self.path, kept)
        print(self.statement(before, after, gain, kept, dropped))

    def statement(
        self,
        before: dict[str, Any],
        after: dict[str, Any],
        gain: dict[str, Any],
        kept: dict[str, Any] | None,
        dropped: Sequence[str],
    ) -> str:
        """What was found and done, in words."""
        interval = (
            "" if gain["low"] is None else f", 95 % interval by patient {gain['low']:+.3f} to {gain['high']:+.3f}"
        )
        lines = [
            f"{before['images']} slices, {before['lesions']} lesions, {before['patients']} {SECTION} patients; mean "
            f"sensitivity at 0.5, 1, 2 and 4 false positives per image: {before['average_sensitivity']['value']:.3f} "
            f"alone, {after['average_sensitivity']['value']:.3f} across slices on patients held out "
            f"({gain['value']:+.3f}{interval})"
        ]
        if kept is None:
            lines.append(f"it does not pay here; {self.path} has no model across slices")
        else:
            lines.append(
                f"stored in {self.path}, with the score threshold {kept['score']:.3f} ({self.fp_per_image} false "
                "positives per slice); evaluation and inference use it unless --across_slices False"
            )
        if dropped:
            lines.append(
                f"the thresholds for --risk {', '.join(dropped)} were chosen on other scores and are dropped; make "
                "them anew with configs/calibrate.yaml"
            )
        return "\n".join(lines)
