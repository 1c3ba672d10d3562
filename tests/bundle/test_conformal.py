"""Conformal risk control against a search by hand, and its promise over many draws of calibration patients."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.conformal import Calibrate, check, choose
from scripts.errors import BundleError
from scripts.froc import HitTable, ImageResult, box_iou
from scripts.metrics import compute
from scripts.operating import missed_share

from scripts import checkpoint

image_result: Any = ImageResult  # takes lists too


def population(seed: int, patients: int, *, unfound: float = 0.02, decimals: int = 2) -> list[list[ImageResult]]:
    """The images of each patient: easy and hard patients, few and many lesions, ties, lesions that no box hits."""
    rng = np.random.default_rng(seed)
    everyone = []
    for patient in range(patients):
        ease, images = rng.beta(3, 2), []
        for number in range(int(rng.integers(1, 4))):
            lesions = int(rng.integers(0 if number else 1, 4))
            true = np.array([[60.0 * k, 10, 60 * k + 30, 40] for k in range(lesions)]).reshape(-1, 4)
            hit = rng.random(lesions) >= unfound
            boxes = np.where(hit[:, None], true + rng.normal(0, 0.5, (lesions, 1)), true + 500)
            scores = np.round(np.clip(ease + rng.normal(0, 0.2, lesions), 0.01, 1), decimals)
            images.append(image_result(f"{patient:04d}/{number}", f"p{patient:04d}", boxes, scores, true))
        everyone.append(images)
    return everyone


def joined(patients: list[list[ImageResult]]) -> list[ImageResult]:
    return [image for images in patients for image in images]


def loss_by_hand(images: list[ImageResult], score: float) -> float:
    missed = total = 0
    for image in images:
        for box in image.true_boxes_px:
            total += 1
            overlap = box_iou(image.boxes_px, box[None])[:, 0]
            missed += not any(o >= 0.5 and s >= score for o, s in zip(overlap, image.scores, strict=True))
    return missed / total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5])
def test_the_threshold_is_the_highest_that_satisfies_the_inequality(seed: int, alpha: float) -> None:
    patients = population(seed, 25)
    n = len(patients)
    # Every score, and the points between and beyond, so that no threshold is left out.
    scores = np.unique(np.concatenate([image.scores for image in joined(patients)]))
    candidates = np.concatenate([scores, scores + 1e-4, scores - 1e-4])
    bound = {t: n / (n + 1) * np.mean([loss_by_hand(p, t) for p in patients]) + 1 / (n + 1) for t in candidates}
    good = [t for t in candidates if bound[t] <= alpha + 1e-12]
    found = choose(joined(patients), alpha)
    if not good:
        assert found.score is None
        assert found.bound == pytest.approx(min(bound.values()))
    else:
        assert found.score == pytest.approx(max(good), abs=1e-9)
        assert found.bound == pytest.approx(bound[max(good)])
        assert found.mean_loss == pytest.approx(np.mean([loss_by_hand(p, max(good)) for p in patients]))
    assert found.patients == n
    assert found.lesions == sum(len(image.true_boxes_px) for image in joined(patients))


@pytest.mark.parametrize(("alpha", "decimals"), [(0.1, 6), (0.2, 2), (0.4, 1)])
def test_the_promise_holds_over_two_hundred_splits(alpha: float, decimals: int) -> None:
    everyone = population(7, 400, decimals=decimals)
    hits = HitTable.build(joined(everyone))  # numbers the patients in their order here
    rng = np.random.default_rng(0)
    risks = []
    for _ in range(200):
        order = rng.permutation(len(everyone))
        found = choose(joined([everyone[i] for i in order[:60]]), alpha)
        assert found.score is not None
        risks.append(missed_share(hits, found.score)[0][order[60:]].mean())
    standard_error = np.std(risks, ddof=1) / np.sqrt(len(risks))
    assert np.mean(risks) <= alpha + 2 * standard_error
    assert np.mean(risks) >= alpha - 0.04 - (0.1 if decimals == 1 else 0)  # and it is not needlessly low


def test_without_the_correction_the_promise_would_be_broken() -> None:
    """What the correction for n buys: the plug-in threshold misses too many on average over small calibration sets."""
    everyone = population(3, 400, unfound=0.0, decimals=6)
    everyone_hits = HitTable.build(joined(everyone))
    rng = np.random.default_rng(1)
    plain, corrected = [], []
    for _ in range(200):
        order = rng.permutation(len(everyone))
        calibration = joined([everyone[i] for i in order[:12]])
        found = choose(calibration, 0.2)
        hits = HitTable.build(calibration)
        plug_in = max(t for t in hits.lesion_score if missed_share(hits, t)[0].mean() <= 0.2)
        rest = order[12:]
        plain.append(missed_share(everyone_hits, plug_in)[0][rest].mean())
        corrected.append(0.0 if found.score is None else missed_share(everyone_hits, found.score)[0][rest].mean())
    assert np.mean(plain) > 0.2
    assert np.mean(corrected) <= 0.2 + 2 * np.std(corrected, ddof=1) / np.sqrt(200)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10_000), alphas=st.tuples(*[st.floats(0.02, 0.98)] * 2), decimals=st.integers(0, 2))
def test_a_stricter_target_never_has_a_higher_threshold(seed: int, alphas: tuple[float, float], decimals: int) -> None:
    results = joined(population(seed, 12, unfound=0.2, decimals=decimals))
    strict, loose = (choose(results, alpha) for alpha in sorted(alphas))
    if strict.score is not None:
        assert loose.score is not None
        assert strict.score <= loose.score
        assert strict.bound <= strict.alpha + 1e-9
    hits = HitTable.build(results)
    losses = [missed_share(hits, t)[0].mean() for t in np.linspace(0, 1.1, 23)]
    assert np.all(np.diff(losses) >= 0)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_order_and_patients_without_a_marked_lesion_do_not_matter(seed: int) -> None:
    results = joined(population(seed, 10))
    empty = image_result("z", "nobody", [[0, 0, 9, 9]], [0.99], [])
    shuffled = [*results[::-1], empty]
    assert choose(shuffled, 0.3) == choose(results, 0.3)


def test_the_unit_is_the_patient() -> None:
    box = [0.0, 0, 20, 20]
    many = [image_result(f"a{i}", "many", [box], [0.9], [box]) for i in range(50)]
    one = [image_result(f"b{i}", f"p{i}", [box], [0.2], [box]) for i in range(9)]
    # 50 of 59 lesions score 0.9, but those are one of ten patients: at 0.9 the mean loss is 0.9.
    assert choose(many + one, 0.5).score == 0.2
    assert choose(many + one, 0.5).mean_loss == 0
    assert choose(many + one, 0.5).bound == pytest.approx(1 / 11)


def test_not_attainable_with_few_patients_or_lesions_that_no_box_hits() -> None:
    box, far = [0.0, 0, 20, 20], [100.0, 100, 120, 120]
    few = [image_result(f"{i}", f"p{i}", [box], [0.9], [box]) for i in range(3)]
    assert choose(few, 0.2).score is None  # 1 / (3 + 1)
    assert choose(few, 0.25).score == 0.9
    unseen = [image_result(f"{i}", f"p{i}", [far], [0.9], [box]) for i in range(99)]
    assert (choose(unseen, 0.9).score, choose(unseen, 0.9).bound) == (None, 1.0)
    with pytest.raises(BundleError, match="no lesion is marked"):
        choose([image_result("a", "p", [box], [0.9], [])], 0.5)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, "0.2", True, None])
def test_alpha_is_a_share(alpha: Any) -> None:
    with pytest.raises(BundleError, match="between 0 and 1"):
        choose(joined(population(0, 5)), alpha)


def test_who_may_calibrate() -> None:
    known: list[dict[str, Any]] = [{"meta": {"patient_id": "p"}}]
    for section in ("validation", "test"):
        check(0.2, section, known)
    for section in ("training", "tuning"):
        with pytest.raises(BundleError, match="tuning patients chose the epoch"):
            check(0.2, section, known)
    with pytest.raises(BundleError, match="1 slices of section 'test' name no patient_id"):
        check(0.2, "test", [*known, {"meta": {"patient_id": None}}])


# --- stored with the weights -----------------------------------------------------------------------------------------


def calibrate(path: Path, results: list[ImageResult], alpha: float) -> None:
    metrics: Any = SimpleNamespace(metric=SimpleNamespace(results=results))
    Calibrate(path, metrics, alpha, "validation", "0" * 64)(None)  # type: ignore[arg-type]


def test_a_threshold_is_stored_beside_the_one_of_training(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = joined(population(0, 40))
    for alpha in (0.2, 0.4, 0.2):
        calibrate(weights, results, alpha)
    facts = checkpoint.facts(weights)
    points = facts["operating_points"]
    assert sorted(points) == ["0.2", "0.4"]
    expected = choose(results, 0.2)
    assert points["0.2"]["score"] == expected.score
    assert points["0.2"]["patients"] == 40
    assert points["0.2"]["chosen_on"] == "validation patients"
    assert "at most 0.2" in points["0.2"]["statement"]
    assert f"{expected.score:.3f}" in capsys.readouterr().out
    assert checkpoint.threshold(facts) == 0.31
    assert checkpoint.threshold(facts, score=0.5) == 0.5
    assert checkpoint.threshold(facts, risk=0.2) == expected.score
    assert checkpoint.thresholds(facts) == {
        "default of inference": 0.31,
        "risk 0.2": expected.score,
        "risk 0.4": points["0.4"]["score"],
    }
    assert torch.equal(checkpoint.read(weights)["model"]["x"], torch.arange(3.0))
    assert [p.name for p in weights.parent.iterdir()] == ["model.pt"]  # no half-written file is left


def test_where_it_is_not_attainable_none_is_shipped_not_even_an_older_one(weights: Path) -> None:
    calibrate(weights, joined(population(0, 40)), 0.2)
    with pytest.raises(BundleError, match="not attainable: on 3 validation patients"):
        calibrate(weights, joined(population(0, 3)), 0.2)
    facts = checkpoint.facts(weights)
    assert facts["operating_points"] == {}
    with pytest.raises(BundleError, match=r"no threshold is stored for --risk 0.2 \(for none\); configs/calibrate"):
        checkpoint.threshold(facts, risk=0.2)


def test_a_risk_that_is_not_stored_and_two_thresholds_at_once_are_refused(weights: Path) -> None:
    calibrate(weights, joined(population(0, 40)), 0.2)
    facts = checkpoint.facts(weights)
    with pytest.raises(BundleError, match=r"--risk 0.1 \(only for 0.2\)"):
        checkpoint.threshold(facts, risk=0.1)
    assert checkpoint.threshold(facts, risk=0.2, looks={"flip_average": False, "scale_average": []}) > 0
    for other in ({"flip_average": True}, {"scale_average": [1.5]}):
        with pytest.raises(BundleError, match=r"with flip_average False, scale_average \[\] and does not hold"):
            checkpoint.threshold(facts, risk=0.2, looks=other)
    with pytest.raises(BundleError, match="no model across slices"):
        checkpoint.threshold(facts, across_slices=True)
    with pytest.raises(BundleError, match="not both"):
        checkpoint.threshold(facts, score=0.5, risk=0.2)


def test_what_a_threshold_gives_is_judged_with_an_interval() -> None:
    patients = population(4, 30)
    results = joined(patients)
    points = compute(results, bootstrap=50, thresholds={"risk 0.3": 0.6})["operating_points"]
    point = points["risk 0.3"]
    assert point["score"] == 0.6
    assert point["missed_share"]["value"] == pytest.approx(np.mean([loss_by_hand(p, 0.6) for p in patients]))
    assert point["missed_share"]["low"] < point["missed_share"]["value"] < point["missed_share"]["high"]
    lesions = sum(len(r.true_boxes_px) for r in results)
    missed = sum(loss_by_hand([r], 0.6) * len(r.true_boxes_px) for r in results if len(r.true_boxes_px))
    assert point["sensitivity"]["value"] == pytest.approx(1 - missed / lesions)
    false = sum(
        s >= 0.6 and not (box_iou(b[None], r.true_boxes_px) >= 0.5).any()
        for r in results
        for b, s in zip(r.boxes_px, r.scores, strict=True)
    )
    assert point["fp_per_image"]["value"] == pytest.approx(false / len(results))
    assert "operating_points" not in compute(results, bootstrap=0)
