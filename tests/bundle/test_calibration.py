"""Calibration against torchmetrics, scikit-learn, a plain loop over bins, and answers made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import sklearn.calibration
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.average_precision import matched_iou
from scripts.calibration import BINS, CalibrationTable
from scripts.froc import Array, ImageResult, box_iou
from scripts.metrics import compute, scalars
from scripts.plots import plot_reliability

image_result: Any = ImageResult  # takes lists too

BOX, SHIFTED, FAR = [10.0, 10, 30, 30], [10.0, 14, 30, 34], [100.0, 100, 120, 120]  # IoU of the first two: 2/3


def random_results(seed: int, images: int = 40, decimals: int = 6) -> list[ImageResult]:
    rng = np.random.default_rng(seed)
    results = []
    for index in range(images):
        corner = rng.uniform(0, 300, (int(rng.integers(0, 4)), 2))
        true = np.concatenate([corner, corner + rng.uniform(15, 40, corner.shape)], axis=1)
        near = np.repeat(true, 2, axis=0) + np.tile(rng.normal(0, 3, (2 * len(true), 2)), 2)
        corner = rng.uniform(0, 300, (5, 2))
        boxes = np.concatenate([near, np.concatenate([corner, corner + 20], axis=1)])
        scores = np.round(rng.beta(2, 2, len(boxes)), decimals)
        results.append(image_result(f"{index:03d}", f"p{index % 9}", boxes, scores, true))
    return results


def flat(results: list[ImageResult], iou_threshold: float = 0.5) -> tuple[Array, Array]:
    """All scores, and the IoU of each box with the lesion it takes, 0 for a false positive."""
    return (
        np.concatenate([r.scores for r in results]),
        np.concatenate([matched_iou(r, iou_threshold) for r in results]),
    )


def errors(results: list[ImageResult], kept_score: float | None = None) -> dict[str, float]:
    table = CalibrationTable.build(results, 0.5, kept_score)
    assert table is not None
    weight = np.ones(len(table.sums), np.int64)
    return {key[-1]: float(v) for key, v in zip(table.keys, table.statistics(weight), strict=True) if len(key) == 2}


def test_a_score_that_is_the_chance_of_a_hit_and_one_that_is_the_expected_iou() -> None:
    perfect = [image_result("a", "p", [BOX, FAR], [0.5, 0.5], [BOX])]
    assert errors(perfect)["d_ece"] == errors(perfect)["laece"] == 0
    loose = [image_result("a", "p", [SHIFTED, FAR], [0.5, 0.5], [BOX])]
    assert errors(loose)["d_ece"] == 0
    assert errors(loose)["laece"] == pytest.approx(0.5 - 0.5 * 2 / 3)
    worth = [image_result("a", "p", [SHIFTED], [2 / 3], [BOX])]
    assert errors(worth)["laece"] == pytest.approx(0)
    assert errors(worth)["d_ece"] == pytest.approx(1 / 3)


def test_a_further_hit_is_false() -> None:
    assert errors([image_result("a", "p", [BOX, BOX], [1.0, 1.0], [BOX])])["d_ece"] == pytest.approx(0.5)


def test_over_and_under_confidence_in_two_bins_do_not_cancel() -> None:
    both = [image_result("a", "p", [BOX, FAR], [0.3, 0.7], [BOX])]
    assert errors(both)["d_ece"] == pytest.approx((0.7 + 0.7) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_d_ece_agrees_with_torchmetrics(seed: int) -> None:
    judge = pytest.importorskip("torchmetrics.functional.classification", reason="pip install torchmetrics")
    results = random_results(seed)
    score, iou = flat(results)
    expected = judge.binary_calibration_error(
        torch.tensor(score, dtype=torch.float64), torch.tensor(iou > 0).long(), n_bins=BINS, norm="l1"
    )
    assert 0.05 < float(expected) < 0.6
    assert errors(results)["d_ece"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("kept_score", [None, 0.4])
def test_laece_is_the_published_sum_over_bins(kept_score: float | None) -> None:
    results = random_results(5)
    score, iou = flat(results)
    chosen = score >= (0 if kept_score is None else kept_score)
    expected = 0.0
    for j in range(BINS):
        inside = chosen & (score >= j / BINS) & ((score < (j + 1) / BINS) | (j == BINS - 1))
        if inside.any():
            true = iou[inside] > 0
            mean_iou = iou[inside][true].mean() if true.any() else 0.0
            expected += inside.sum() / chosen.sum() * abs(score[inside].mean() - true.mean() * mean_iou)
    found = errors(results, 0.0 if kept_score is None else kept_score)
    assert found["laece_kept"] == pytest.approx(expected, abs=1e-12)
    if kept_score is None:
        assert found["laece"] == pytest.approx(expected, abs=1e-12)


def test_the_diagram_agrees_with_scikit_learn() -> None:
    results = [
        image_result(r.image, r.patient_id, r.boxes_px, np.minimum(r.scores, 0.999), r.true_boxes_px)
        for r in random_results(2)
    ]
    score, iou = flat(results)
    share, mean = sklearn.calibration.calibration_curve(iou > 0, score, n_bins=BINS)  # leaves out empty bins
    part = compute(results, bootstrap=0)["calibration"]["reliability"]
    assert [v for v in part["precision"] if v is not None] == pytest.approx(share.tolist())
    assert [v for v in part["mean_score"] if v is not None] == pytest.approx(mean.tolist())
    assert sum(part["boxes"]) == len(score)
    assert part["boxes"][0] == (score < 1 / BINS).sum()


def test_intervals_come_from_whole_patients() -> None:
    results = random_results(1)
    table = CalibrationTable.build(results)
    assert table is not None
    weight = np.array([2, 0, 1, 1, 0, 3, 1, 1, 0])
    copies = [
        image_result(f"{r.image}-{copy}", r.patient_id, r.boxes_px, r.scores, r.true_boxes_px)
        for r in results
        for copy in range(weight[int(r.patient_id[1:])])
    ]
    again = CalibrationTable.build(copies)
    assert again is not None
    np.testing.assert_allclose(table.statistics(weight), again.statistics(np.ones(len(again.sums), np.int64)))
    figure = compute(results, bootstrap=100)["calibration"]["laece"]
    assert figure["low"] < figure["high"]
    assert figure["n"] == sum(len(r.scores) for r in results)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(seed=st.integers(0, 10_000), decimals=st.integers(0, 2))
def test_errors_are_shares_and_do_not_depend_on_order(seed: int, decimals: int) -> None:
    results = random_results(seed, images=6, decimals=decimals)
    found = errors(results, 0.5)
    assert all(0 <= value <= 1 for value in found.values() if not np.isnan(value))
    order = np.random.default_rng(seed).permutation(len(results))
    turned = [
        image_result(r.image, r.patient_id, r.boxes_px[::-1], r.scores[::-1], r.true_boxes_px[::-1])
        for r in (results[i] for i in order)
    ]
    assert list(errors(turned, 0.5).values()) == pytest.approx(list(found.values()), abs=1e-12, nan_ok=True)


def test_scores_that_are_no_probabilities_have_no_calibration(tmp_path: Path) -> None:
    metrics = compute([image_result("a", "p", [BOX], [3.5], [BOX])], bootstrap=5)
    assert "calibration" not in metrics
    plot_reliability(metrics, tmp_path / "empty.png")
    assert cv2.imread(str(tmp_path / "empty.png")) is not None


def test_the_file_takes_it_and_the_diagram_is_drawn(tmp_path: Path) -> None:
    for bootstrap in (0, 20):
        metrics = compute(random_results(0), bootstrap=bootstrap)
        assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
        assert metrics["calibration"]["kept_score"] == metrics["score_at_fp_per_image"]["1"]
        assert {"calibration/laece", "calibration/d_ece_kept"} <= set(scalars(metrics))
        plot_reliability(metrics, tmp_path / "reliability.png")
        assert cv2.imread(str(tmp_path / "reliability.png")).std() > 5
    nothing = compute([image_result("a", "p", [], [], [BOX])], bootstrap=5)
    json.dumps(nothing, allow_nan=False)
    assert nothing["calibration"]["laece"] == {"value": None, "low": None, "high": None, "n": 0}
    plot_reliability(nothing, tmp_path / "nothing.png")


def test_matching_takes_each_lesion_once_and_says_how_well() -> None:
    result = image_result("a", "p", [SHIFTED, BOX, FAR], [0.9, 0.8, 0.7], [BOX])
    expected = box_iou(np.array([SHIFTED]), np.array([BOX]))[0, 0]
    assert matched_iou(result, 0.5).tolist() == [expected, 0, 0]
