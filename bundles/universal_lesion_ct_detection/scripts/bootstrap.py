"""Percentile bootstrap with the patient as the unit.

Slices of one patient resemble each other, so patients are drawn with replacement, each with all of its images (Efron &
Tibshirani, 1993, ch. 13). A statistic takes how often each patient was drawn, an integer (P,) vector, and returns its
(S,) values: what is costly (matching boxes with lesions) is done once, before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Statistic = Callable[[IntArray], Array]

LEVEL = 0.95


def draws(patients: int, replicates: int, seed: int) -> Iterator[IntArray]:
    """How often each patient is drawn, (P,) counts that sum to P, for each replicate; the same for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(replicates):
        yield np.bincount(rng.integers(patients, size=patients), minlength=patients)


def replicate(statistic: Statistic, patients: int, *, replicates: int = 1000, seed: int = 0) -> Array:
    """(replicates, S) values of a statistic. NaN marks a replicate in which a value does not exist."""
    rows = [statistic(weight) for weight in draws(patients, replicates, seed)]
    return np.stack(rows) if rows else np.empty((0, len(statistic(np.ones(patients, np.int64)))))


def interval(samples: Array, patients: int) -> tuple[float | None, float | None]:
    """The central 95 % of the replicates that have a value.

    Args:
        samples: (replicates,) values.
        patients: the number of patients that the statistic rests on. Below two, resampling says nothing about
            other patients, so there is no interval.
    """
    finite = samples[np.isfinite(samples)]
    if patients < 2 or len(finite) == 0:
        return None, None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def estimate(value: float, samples: Array, *, n: int, patients: int) -> dict[str, Any]:
    """``{"value", "low", "high", "n"}`` for JSON: None where there is no value or no interval.

    Args:
        value: the statistic of the patients themselves.
        samples: (replicates,) its values in the replicates.
        n: the number of lesions or images it rests on.
        patients: the number of patients it rests on.
    """
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "n": int(n)}
    low, high = interval(samples, patients)
    return {"value": float(value), "low": low, "high": high, "n": int(n)}


def paired_p_value(differences: Array, patients: int) -> float | None:
    """Two-sided p of "no difference" from replicated paired differences.

    Twice the share of replicates on the other side of zero, or on it; one is added to both counts so that p is never 0
    (Davison & Hinkley, 1997, eq. 4.11). None where no replicate has a value, or with fewer than two patients, as in
    :func:`interval`.
    """
    finite = differences[np.isfinite(differences)]
    if patients < 2 or len(finite) == 0:
        return None
    smaller = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2.0 * (smaller + 1) / (len(finite) + 1))


def paired_differences(
    first: Statistic, second: Statistic, patients: int, *, replicates: int = 1000, seed: int = 0
) -> tuple[Array, Array]:
    """How far the second of two runs on the same patients is ahead of the first.

    Both see the same draws, so what makes a patient hard for both cancels out.

    Returns:
        (S,) differences second - first, and (replicates, S) the same in the replicates.
    """
    once = np.ones(patients, np.int64)

    def difference(weight: IntArray) -> Array:
        return second(weight) - first(weight)

    return difference(once), replicate(difference, patients, replicates=replicates, seed=seed)
