"""How many categories: the number at which two halves of the patients agree best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from data_prep.categorize.balance import Array
from data_prep.categorize.clustering import fit_clustering
from data_prep.errors import DataPrepError

RANGE = (3, 12)
"""The numbers of categories tried, both ends included. Below three there is little to learn; much above ten a
category of a middle-sized archive is too small to train a detector on."""

MAX_LESIONS = 6000
"""More would make the curve no clearer, only slower."""


@dataclass(frozen=True, slots=True)
class Stability:
    """Agreement at one number of categories: mean and standard error of the adjusted Rand index over the splits."""

    categories: int
    agreement: float
    standard_error: float


def stability_curve(
    X: Array,
    patients: Sequence[str],
    *,
    method: str = "k-means",
    seed: int = 0,
    splits: int = 12,
    low: int = RANGE[0],
    high: int = RANGE[1],
    progress: bool = True,
) -> list[Stability]:
    """Agreement of clusterings fitted on random halves of the patients, for each number of categories.

    The patients are split at random into halves; each half's clustering labels every lesion, and the two labellings
    are compared by the adjusted Rand index, which is 0 for chance whatever the number of categories (Ben-Hur et al.,
    2002, with disjoint halves; Lange et al., 2004). The same splits serve every number.

    Args:
        X: (N, D) points.
        patients: their N patients; both halves of a split never share one.

    Raises:
        DataPrepError: too few patients or lesions for two halves.
    """
    generator = np.random.default_rng(seed)
    groups = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    if len(X) > MAX_LESIONS:
        some = np.sort(generator.choice(len(X), MAX_LESIONS, replace=False))
        X, groups = X[some], groups[some]
    count = int(groups.max()) + 1 if len(groups) else 0
    if count < 4:
        raise DataPrepError(f"{count} patients are too few to choose the number of categories; name it: --categories 5")
    halves = [np.isin(groups, generator.permutation(count)[: count // 2]) for _ in range(splits)]
    smallest = min(min(len(np.unique(X[h], axis=0)), len(np.unique(X[~h], axis=0))) for h in halves)
    high = min(high, smallest // 2)
    if high < low:
        raise DataPrepError(f"{len(X)} lesions are too few to choose the number of categories; name it: --categories 5")
    curve = []
    for k in tqdm(range(low, high + 1), desc="how many categories", disable=not progress):
        scores = []
        for number, half in enumerate(halves):
            labellings = [
                fit_clustering(X[part], k, method=method, seed=seed + number, restarts=4)[0].assign(X)
                for part in (half, ~half)
            ]
            scores.append(adjusted_rand_score(*labellings))
        error = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0
        curve.append(Stability(k, float(np.mean(scores)), error))
    return curve


def choose(curve: Sequence[Stability]) -> int:
    """The largest number of categories whose agreement is within one standard error of the best."""
    best = max(curve, key=lambda point: point.agreement)
    good = [p.categories for p in curve if p.agreement >= best.agreement - best.standard_error]
    return max(good)
