"""How far one arm of an experiment is ahead of another, over seeds: paired gains, intervals, what could be detected.

Pure functions over the replicates that ``replicates.py`` writes for each run. All runs of an experiment are judged on
the same slices with the same bootstrap draws of patients, so the difference of two runs' replicates is the paired
bootstrap of their difference, and its mean over seeds that of the mean gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

LEVEL, POWER = 0.95, 0.80
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """The figures of one evaluation.

    Attributes:
        keys: (S,) what they are, e.g. ``accuracy_at_iou/0.5``.
        values: (S,) NaN where a figure does not exist.
        samples: (R, S) the same in R draws of patients.
        n: (S,) lesions or images each rests on.
        patients: (S,) patients each rests on.
        judge: hash of slices, patients and lesions: runs with another one cannot be paired.
    """

    keys: tuple[str, ...]
    values: Array
    samples: Array
    n: npt.NDArray[np.int64]
    patients: npt.NDArray[np.int64]
    judge: str

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what ``replicates.py`` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("values", "samples", "n", "patients")}
            return cls(keys=tuple(file["keys"].tolist()), judge=str(file["judge"]), **arrays)

    def value(self, key: str) -> float:
        """A figure.

        Raises:
            ValueError: the run has no such figure.
        """
        return float(self.values[self.keys.index(key)])

    def count(self, key: str) -> int:
        """Lesions or images the figure rests on."""
        return int(self.n[self.keys.index(key)])


@dataclass(frozen=True)
class Gain:
    """The gain in one figure, in the figure's unit.

    Attributes:
        by_seed: second minus first, a seed each.
        mean: of these.
        low, high: 95 % percentile interval of the mean over draws of patients: other patients, these trainings; NaN
            for one patient.
        seed_low, seed_high: 95 % t interval of the mean over seeds: other trainings, these patients; NaN for one seed.
        standard_error: of the mean over draws of patients.
        detectable: the smallest true gain this sample would have found, see :func:`minimal_detectable_effect`.
    """

    by_seed: tuple[float, ...]
    mean: float
    low: float
    high: float
    seed_low: float
    seed_high: float
    standard_error: float
    detectable: float


def minimal_detectable_effect(standard_error: float, power: float = POWER, level: float = LEVEL) -> float:
    """The smallest true difference that a two-sided test finds with this power: (z₁₋α⸝₂ + z_power) · SE.

    For α = 5 % and 80 % power that is 2.80 · SE (Bloom, Evaluation Review 19:547, 1995).

    Args:
        standard_error: of the difference.
        power: chance of a significant result where the difference is true.
        level: 1 - α.
    """
    return float((stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)) * standard_error)


def t_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Student's interval of the mean of independent values; NaN for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    # Not stats.t.interval, which gives NaN where all values are equal.
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def paired_gain(pairs: Sequence[tuple[Run, Run]], key: str) -> Gain:
    """How far the second runs are ahead of the first.

    Args:
        pairs: one a seed.
        key: of the figure.

    Raises:
        ValueError: no pair, or runs that were not judged on the same slices, patients and lesions, or not in the same
            draws.
    """
    if not pairs:
        raise ValueError("no pair of runs")
    if len({(run.judge, len(run.samples)) for pair in pairs for run in pair}) > 1:
        raise ValueError("the runs were judged on other slices, patients or lesions, or in other draws of patients")
    by_seed = tuple(second.value(key) - first.value(key) for first, second in pairs)
    samples = np.mean([_column(second, key) - _column(first, key) for first, second in pairs], axis=0)
    finite = samples[np.isfinite(samples)]  # a draw may hold no lesion of a category
    error = low = high = float("nan")
    first = pairs[0][0]
    if len(finite) > 1 and first.patients[first.keys.index(key)] > 1:  # one patient says nothing about others
        low, high = (float(value) for value in np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        error = float(finite.std(ddof=1))
    return Gain(
        by_seed, float(np.mean(by_seed)), low, high, *t_interval(by_seed), error, minimal_detectable_effect(error)
    )


def _column(run: Run, key: str) -> Array:
    column: Array = run.samples[:, run.keys.index(key)]
    return column
