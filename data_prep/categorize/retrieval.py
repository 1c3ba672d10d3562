"""Exact nearest neighbours by cosine similarity, how long they take, and how often they are of the same type."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.categorize.judge import Half, Interval, judged
from data_prep.lesion import COARSE_TYPES, Lesion

Points = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.intp]

BLOCK_ENTRIES = 1 << 24
"""Similarities held at a time: 64 MB, or one query's where the archive is larger than that."""


def unit_rows(X: npt.NDArray[np.floating]) -> Points:
    """(N, D) -> float32 rows of length 1, so that a dot product is a cosine; a zero row stays zero."""
    rows = X.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-9))
    return rows


def best(similarity: npt.NDArray[np.floating], count: int, allowed: npt.NDArray[np.bool_] | None = None) -> Numbers:
    """Numbers of the ``count`` highest, best first, equal ones in their order; fewer where fewer are allowed.

    Args:
        similarity: (N,), without NaN.
        count: at least 1.
        allowed: (N,); None allows all.
    """
    numbers = np.arange(len(similarity)) if allowed is None else np.flatnonzero(allowed)
    values = similarity[numbers]
    if count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        numbers = numbers[values >= least]
    order: Numbers = np.argsort(-similarity[numbers], kind="stable")[:count]
    return numbers[order]


def nearest_others(points: Points, groups: Sequence[str], queries: Numbers, count: int) -> Numbers:
    """The nearest neighbours that belong to other groups: for each lesion that asks, lesions of other patients.

    Every pair is compared; nothing is approximate. Similarities are computed for blocks of queries.

    Args:
        points: (N, D) of length 1.
        groups: N, the patients.
        queries: (Q,) numbers of the points that ask.
        count: neighbours wanted.

    Returns:
        (Q, count) numbers, nearest first.

    Raises:
        ValueError: a query has fewer neighbours of other groups than wanted.
    """
    group = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    found = np.empty((len(queries), count), np.intp)
    step = max(1, BLOCK_ENTRIES // max(1, len(points)))
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        for row, similarity in enumerate(points[block] @ points.T, start):
            neighbours = best(similarity, count, group != group[queries[row]])
            if len(neighbours) < count:
                raise ValueError(f"a lesion has {len(neighbours)} neighbours of other patients, {count} are wanted")
            found[row] = neighbours
    return found


def precision_at(
    ranking: Numbers, types: npt.ArrayLike, queries: npt.ArrayLike, k: int = 10
) -> npt.NDArray[np.float64]:
    """Precision at k of each query: the share of its first k hits that have its type.

    Args:
        ranking: (Q, k or more) numbers of the hits, nearest first.
        types: (N,).
        queries: (Q,) numbers of the lesions that ask.

    Returns:
        (Q,).

    Raises:
        ValueError: fewer than k hits, or k below 1.
    """
    if not 1 <= k <= ranking.shape[1]:
        raise ValueError(f"precision at {k} needs that many hits, there are {ranking.shape[1]}")
    kind, asked = np.asarray(types), np.asarray(queries)
    share: npt.NDArray[np.float64] = (kind[ranking[:, :k]] == kind[asked][:, None]).mean(axis=1)
    return share


@dataclass(frozen=True, slots=True)
class Precision:
    """Precision at k over some queries.

    Attributes:
        queries: lesions that asked.
        patients: of these.
        precision: the mean, with its interval over bootstrap samples of the patients that ask; the lesions that may be
            found stay the same.
        chance: the mean when hits are drawn at random.
        ceiling: the mean of a perfect ranking; below 1 where a type has fewer than k lesions of other patients.
    """

    queries: int
    patients: int
    precision: Interval
    chance: float
    ceiling: float


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How often the k nearest lesions of other patients are of the same type.

    Attributes:
        k: hits looked at.
        candidates: lesions that could be found.
        overall: over all queries.
        by_type: over the queries of each type that occurs, by its name.
    """

    k: int
    candidates: int
    overall: Precision
    by_type: dict[str, Precision]


def judge_retrieval(
    lesions: Sequence[Lesion],
    X: npt.NDArray[np.floating],
    half: Half = "reporting",
    *,
    k: int = 10,
    draws: int = 1000,
    seed: int = 0,
) -> Retrieval:
    """Judge the neighbours of N lesions by the official coarse types of validation lesions.

    The validation lesions of ``half`` ask; all validation lesions of other patients may be found, since no other
    lesion has a type to compare with.

    Args:
        lesions: N.
        X: (N, D) their points; compared by cosine similarity.
        half: see :func:`data_prep.categorize.judge.in_half`.
        k: hits looked at.

    Raises:
        ValueError: no judged lesion, or fewer than k of other patients.
    """
    if len(lesions) != len(X):
        raise ValueError(f"{len(lesions)} lesions cannot have {len(X)} points")
    among = judged(lesions, "all")
    asking = set(judged(lesions, half))
    queries = np.array([place for place, number in enumerate(among) if number in asking], dtype=np.intp)
    if not len(queries):
        raise ValueError("no validation lesion has an official type")
    types = np.array([lesions[number].coarse_type or 0 for number in among])
    patients = np.array([lesions[number].patient_id or "" for number in among])
    ranking = nearest_others(unit_rows(X[among]), patients.tolist(), queries, k)
    precision = precision_at(ranking, types, queries, k)
    other = patients[queries][:, None] != patients
    alike = (other & (types[queries][:, None] == types)).sum(axis=1)
    chance, ceiling = alike / other.sum(axis=1), np.minimum(alike, k) / k

    def over(rows: npt.NDArray[np.bool_]) -> Precision:
        whose = patients[queries[rows]]
        interval = mean_by_patient(precision[rows], whose.tolist(), draws=draws, seed=seed)
        return Precision(
            int(rows.sum()), len(set(whose)), interval, float(chance[rows].mean()), float(ceiling[rows].mean())
        )

    asked = types[queries]
    by_type = {COARSE_TYPES.get(kind, str(kind)): over(asked == kind) for kind in np.unique(asked).tolist()}
    return Retrieval(k, len(among), over(np.ones(len(queries), np.bool_)), by_type)


def mean_by_patient(
    values: npt.NDArray[np.floating], patients: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Interval:
    """The mean over lesions, with its 95 % percentile interval over bootstrap samples of the patients."""
    group = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    sums, sizes = np.bincount(group, values), np.bincount(group)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5]) if draws else (np.nan, np.nan)
    return Interval(float(np.mean(values)), float(low), float(high))


@dataclass(frozen=True, slots=True)
class SearchTime:
    """What one exact search takes once the points are in memory.

    Attributes:
        rows: lesions searched.
        features: dimensions of a point.
        megabytes: of the points.
        seconds: the median over queries.
        slowest: the slowest query's seconds.
    """

    rows: int
    features: int
    megabytes: float
    seconds: float
    slowest: float


def time_search(rows: int, features: int, seed: int, *, queries: int = 7, count: int = 20) -> SearchTime:
    """Time searches for the ``count`` nearest of ``rows`` random points with ``features`` dimensions.

    Exact search does the same work whatever the points are.
    """
    generator = np.random.default_rng(seed)
    points = generator.standard_normal((rows, features), dtype=np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    allowed = np.ones(rows, np.bool_)
    seconds = []
    for number in generator.integers(0, rows, queries):
        started = time.perf_counter()
        allowed[number] = False
        best(points @ points[number], count, allowed)
        allowed[number] = True
        seconds.append(time.perf_counter() - started)
    return SearchTime(rows, features, points.nbytes / 1e6, float(np.median(seconds)), max(seconds))
