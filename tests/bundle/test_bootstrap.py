"""The patient bootstrap against scipy's and against textbook errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scripts.bootstrap import Array, Statistic, draws, estimate, interval, paired_differences, paired_p_value, replicate


def mean_of(values: Array) -> Statistic:
    return lambda weight: np.array([(weight * values).sum() / weight.sum()])


def bounds(samples: Array, patients: int) -> tuple[float, float]:
    low, high = interval(samples[:, 0], patients)
    assert low is not None
    assert high is not None
    return low, high


def test_draws_are_counts_of_as_many_patients_and_follow_the_seed() -> None:
    first, again, other = (np.stack(list(draws(50, 200, seed))) for seed in (1, 1, 2))
    assert first.shape == (200, 50)
    assert (first.sum(axis=1) == 50).all()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.mean(axis=0) == pytest.approx(np.ones(50), abs=0.35)
    assert (first == 0).mean() == pytest.approx((1 - 1 / 50) ** 50, abs=0.02)


def test_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=80)
    low, high = bounds(replicate(mean_of(values), 80, replicates=6000), 80)
    expected = scipy.stats.bootstrap((values,), np.mean, n_resamples=6000, method="percentile", rng=1)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        low, high = bounds(replicate(mean_of(rng.normal(size=60)), 60, replicates=200, seed=trial), 60)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 100 <= 0.99


def test_one_patient_gives_no_interval() -> None:
    assert interval(np.ones(10), 1) == (None, None)
    assert interval(np.full(10, np.nan), 5) == (None, None)


def test_estimate_is_free_of_nan() -> None:
    assert estimate(np.nan, np.full(5, np.nan), n=0, patients=0) == {"value": None, "low": None, "high": None, "n": 0}
    assert estimate(0.5, np.empty(0), n=7, patients=3) == {"value": 0.5, "low": None, "high": None, "n": 7}
    some = estimate(0.5, np.array([0.4, np.nan, 0.6]), n=7, patients=3)
    assert 0.4 <= some["low"] < 0.5 < some["high"] <= 0.6


def test_no_replicates_give_no_rows() -> None:
    assert replicate(mean_of(np.arange(4.0)), 4, replicates=0).shape == (0, 1)


def test_pairing_removes_what_both_runs_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 100)
    first, second = hard + rng.normal(0, 0.1, 100), hard + 0.1 + rng.normal(0, 0.1, 100)
    value, samples = paired_differences(mean_of(first), mean_of(second), 100)
    low, high = bounds(samples, 100)
    assert value[0] == pytest.approx(second.mean() - first.mean())
    assert 0 < low < value[0] < high < 0.2
    standard_error = np.std(second - first, ddof=1) / 10
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.15)


def test_p_is_one_for_a_run_against_itself_and_never_zero() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert paired_p_value(paired_differences(mean_of(values), mean_of(values), 30)[1][:, 0], 30) == 1.0
    ahead = paired_differences(mean_of(values), mean_of(values + 1), 30, replicates=999)[1][:, 0]
    assert paired_p_value(ahead, 30) == pytest.approx(2 / 1000)
    assert paired_p_value(-ahead, 30) == pytest.approx(2 / 1000)
    assert paired_p_value(np.full(3, np.nan), 30) is None
    assert paired_p_value(ahead, 1) is None  # one patient says nothing about others


def test_p_rejects_a_true_null_about_as_often_as_it_should() -> None:
    rng = np.random.default_rng(1)
    rejected = 0
    for trial in range(120):
        first, second = rng.normal(size=(2, 60))
        _, samples = paired_differences(mean_of(first), mean_of(second), 60, replicates=199, seed=trial)
        rejected += (paired_p_value(samples[:, 0], 60) or 0.0) < 0.05
    assert 0.01 <= rejected / 120 <= 0.11
