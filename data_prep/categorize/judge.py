"""Judge categories by labels that took no part in making them: official lesion types, or a phantom's planted kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.lesion import Lesion
from data_prep.merge import box_iou
from data_prep.splits import unit_interval

Values = npt.NDArray[np.int64]
Half = Literal["choosing", "reporting", "all"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % percentile interval over bootstrap samples of the patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Scores:
    """How well categories follow types.

    Attributes:
        lesions: judged.
        patients: of these.
        nmi: normalised mutual information (arithmetic mean).
        purity: part of the lesions that have the commonest type of their category.
        ari: adjusted Rand index.
    """

    lesions: int
    patients: int
    nmi: Interval
    purity: Interval
    ari: Interval


def purity(types: npt.ArrayLike, categories: npt.ArrayLike) -> float:
    """Part of the lesions that have the commonest type of their category (Manning et al., 2008, section 16.3)."""
    table = contingency_matrix(types, categories)
    return float(table.max(axis=0).sum() / table.sum())


FIGURES: dict[str, Callable[[Any, Any], float]] = {
    "nmi": normalized_mutual_info_score,
    "purity": purity,
    "ari": adjusted_rand_score,
}


def judge(
    types: Sequence[int] | Sequence[str],
    categories: Sequence[int],
    patients: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Scores:
    """Compare N categories with N types, with intervals from bootstrap samples of the patients.

    Raises:
        ValueError: no lesions, or the lengths differ.
    """
    if not len(types) or not len(types) == len(categories) == len(patients):
        raise ValueError("types, categories and patients must be as many, and at least one")
    truth = np.unique(np.asarray(types), return_inverse=True)[1]
    found = np.asarray(categories)
    names, groups = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    members = [np.flatnonzero(groups == group) for group in range(len(names))]
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(draws):
        rows = np.concatenate([members[group] for group in generator.integers(0, len(names), len(names))])
        samples.append([figure(truth[rows], found[rows]) for figure in FIGURES.values()])
    table = np.array(samples).reshape(-1, len(FIGURES))
    intervals = {}
    for column, (name, figure) in enumerate(FIGURES.items()):
        low, high = np.percentile(table[:, column], [2.5, 97.5]) if draws else (np.nan, np.nan)
        intervals[name] = Interval(float(figure(truth, found)), float(low), float(high))
    return Scores(len(truth), len(names), **intervals)


def in_half(patient: str, half: Half) -> bool:
    """Whether a validation patient is in the half by which settings are chosen, or in the half that is reported.

    DeepLesion's patient index counts without its leading zeros, as in the release's table.
    """
    return half == "all" or (unit_interval(patient.lstrip("0"), "choose") < 0.5) == (half == "choosing")


def judged(lesions: Sequence[Lesion], half: Half) -> list[int]:
    """Numbers of the validation lesions of a half that have an official type."""
    return [
        number
        for number, lesion in enumerate(lesions)
        if lesion.split == "validation"
        and (lesion.coarse_type or 0) > 0
        and lesion.patient_id is not None
        and in_half(lesion.patient_id, half)
    ]


def judge_by_type(
    lesions: Sequence[Lesion], category_of: Mapping[str, int], half: Half = "reporting", *, draws: int = 1000
) -> Scores:
    """Judge ``lesion_id -> category`` by the official coarse types of validation lesions.

    Raises:
        ValueError: no judged lesion has a category.
    """
    rows = [lesions[i] for i in judged(lesions, half) if lesions[i].lesion_id in category_of]
    return judge(
        [lesion.coarse_type or 0 for lesion in rows],
        [category_of[lesion.lesion_id] for lesion in rows],
        [lesion.patient_id or "" for lesion in rows],
        draws=draws,
    )


def planted_kinds(lesions: Sequence[Lesion], truth: Path) -> dict[str, str]:
    """``lesion_id -> kind`` from a phantom's ``truth/datalist.json``: the marked lesion of the slice whose box overlaps
    a lesion's own best, by an IoU of at least .5. Random boxes thus have none."""
    planted: dict[str, list[tuple[tuple[float, ...], str]]] = {}
    content = json.loads(truth.read_text(encoding="utf-8"))
    for split in ("training", "tuning", "validation", "test"):
        for item in content[split]:
            key = item["image"][len(item["image"]) // 2]
            for box, kind, marked in zip(item["box"], item["kind"], item["marked"], strict=True):
                if marked:
                    planted.setdefault(key, []).append((tuple(box), kind))
    found = {}
    for lesion in lesions:
        there = planted.get(lesion.image or "", [])
        if lesion.box_px is None or not there:
            continue
        overlap = box_iou(np.array(lesion.box_px), np.array([box for box, _ in there]))
        best = int(overlap.argmax())
        if overlap[best] >= 0.5:
            found[lesion.lesion_id] = there[best][1]
    return found


def linear_classifier() -> Any:
    """An unfitted logistic regression on standardised points, with scikit-learn's ``fit`` and ``predict``."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))


def probe(
    X: npt.NDArray[np.floating], types: Sequence[int], patients: Sequence[str], *, kind: Literal["linear", "knn"]
) -> float:
    """Accuracy of a classifier of types on (N, D) points, cross-validated over five groups of patients.

    It tells how good the features are, whatever the clustering: "linear" is :func:`linear_classifier`, "knn" the vote
    of the 10 nearest.
    """
    model = linear_classifier() if kind == "linear" else KNeighborsClassifier(10)
    truth = np.asarray(types)
    folds = GroupKFold(min(5, len(set(patients))))
    guess = cross_val_predict(model, X, truth, groups=list(patients), cv=folds)
    return float((guess == truth).mean())
