"""The second look across neighbouring slices: what it sees, what it learns, and the bundle with and without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_findings import STAGE, findings
from scripts.across_slices import SecondStage, WithNeighbours, describe, log_odds, places, second_stage
from scripts.errors import BundleError
from scripts.fit_across_slices import UNMOVED, FitAcrossSlices, Slice, fit, held_out, logistic_regression
from scripts.froc import HitTable, ImageResult
from sklearn.linear_model import LogisticRegression

from scripts import checkpoint

BOX = [10.0, 10, 30, 30]
LOWEST = float(log_odds(0.0))


# --- what is seen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "steps"),
    [
        (5.0, (1, 4, 6)),
        (2.5, (2, 8, 12)),
        (1.25, (4, 16, 24)),
        (3.0, (2, 7, 10)),  # 6, 21 and 30 mm
        (10.0, (None, 2, 3)),
        (8.0, (None, None, 4)),  # 8, 16 and 24 mm stand for none of them
        (40.0, (None, None, None)),
        (None, (None, None, None)),
    ],
)
def test_places_are_the_nearest_slices_or_none(spacing: float | None, steps: tuple[int | None, ...]) -> None:
    wanted = {mm: n for mm, n in zip((5.0, 20.0, 30.0), steps, strict=True) if n is not None}
    assert places(spacing) == {**wanted, **{-mm: -n for mm, n in wanted.items()}}


@settings(deadline=None, derandomize=True)
@given(spacing=st.floats(0.3, 15))
def test_places_are_never_the_slice_itself_nor_far_off(spacing: float) -> None:
    found = places(spacing)
    assert all(n != 0 and abs(n * spacing - mm) <= 2.5 and found[-mm] == -n for mm, n in found.items())
    assert len(found) == 6 or spacing > 5


def test_of_both_sides_the_higher_score_at_the_same_place_counts() -> None:
    shifted, elsewhere = [12.0, 10, 32, 30], [17.0, 10, 37, 30]  # IoU .82 and .48
    around = {
        5.0: findings([shifted, elsewhere], [0.3, 0.9]),
        -5.0: findings([BOX, BOX], [0.2, 0.6]),
        20.0: findings([BOX], [0.7]),
        -20.0: findings([], []),
        -30.0: findings([elsewhere], [0.9]),
    }
    near, far = describe(np.array([BOX]), around)[0]
    assert near == pytest.approx(np.log(0.6 / 0.4))
    assert far == pytest.approx((np.log(0.7 / 0.3) + LOWEST) / 2)
    del around[-30.0]
    assert describe(np.array([BOX]), around)[0, 1] == pytest.approx(np.log(0.7 / 0.3))


def test_no_slice_is_unknown_and_an_empty_slice_is_not() -> None:
    assert np.isnan(describe(np.array([BOX]), {})).all()
    assert np.isnan(describe(np.array([BOX]), {30.0: findings([], [])})[0]).tolist() == [True, False]
    assert describe(np.array([BOX]), {30.0: findings([], [])})[0, 1] == LOWEST
    assert describe(np.empty((0, 4)), {5.0: findings([BOX], [0.5])}).shape == (0, 2)


boxes = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(1, 30)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
slices = st.lists(st.tuples(boxes, st.integers(1, 99).map(lambda s: s / 100)), max_size=6).map(
    lambda rows: findings([box for box, _ in rows], [score for _, score in rows])
)
neighbourhoods = st.dictionaries(st.sampled_from([5.0, -5.0, 20.0, -20.0, 30.0, -30.0]), slices)


def as_set(found: dict[str, Any]) -> list[tuple[float, ...]]:
    return sorted(map(tuple, np.column_stack([found["box_px"], found["score"]]).tolist()))


@settings(deadline=None, derandomize=True)
@given(found=slices, around=neighbourhoods, seed=st.integers(0, 99))
def test_order_does_not_matter_and_head_and_feet_are_alike(found: Any, around: dict[float, Any], seed: int) -> None:
    rng = np.random.default_rng(seed)

    def shuffled(item: dict[str, Any]) -> dict[str, Any]:
        order = rng.permutation(len(item["score"]))
        return {key: values[order] for key, values in item.items()}

    expected = STAGE.rescore(found, around)
    assert (np.diff(expected["score"]) <= 0).all()
    assert as_set(STAGE.rescore(shuffled(found), {mm: shuffled(item) for mm, item in around.items()})) == as_set(
        expected
    )
    assert as_set(STAGE.rescore(found, {-mm: item for mm, item in around.items()})) == as_set(expected)


def test_boxes_keep_their_class_and_the_model_is_the_formula() -> None:
    found = findings([BOX, [40, 40, 60, 60]], [0.4, 0.3])
    around = {5.0: findings([[40, 40, 60, 60]], [0.8]), 20.0: findings([BOX], [0.9])}
    new = STAGE.rescore(found, around)
    values = {}
    for name, own, near, far in (("first", 0.4, LOWEST, log_odds(0.9)), ("second", 0.3, log_odds(0.8), LOWEST)):
        values[name] = 1 / (1 + np.exp(-(-0.5 + 1.5 * log_odds(own) + 0.7 * near - 0.9 * far)))
    assert new["score"] == pytest.approx([values["second"], values["first"]], abs=1e-6)
    assert new["box_px"][0].tolist() == [40, 40, 60, 60]
    assert new["class"].tolist() == [1, 0]


# --- what is learnt --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10_000), penalty=st.floats(0.05, 20))
def test_the_logistic_regression_is_scikit_learns(seed: int, penalty: float) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(200, 3)) * [1, 2, 0.5]
    labels = (rng.random(200) < 1 / (1 + np.exp(2 - inputs @ [1.5, -1, 0.3]))).astype(int)
    labels[:2] = 0, 1
    weights, intercept = logistic_regression(inputs, labels, penalty)
    oracle = LogisticRegression(C=1 / penalty, solver="newton-cholesky", tol=1e-10, max_iter=500).fit(inputs, labels)
    np.testing.assert_allclose(weights, oracle.coef_[0], atol=1e-5)
    assert intercept == pytest.approx(oracle.intercept_[0], abs=1e-5)


def test_a_second_finding_of_a_lesion_is_left_out() -> None:
    lesions = [BOX, [60.0, 60, 80, 80]]
    boxes = [BOX, [11, 10, 30, 30], [60, 60, 80, 80], [60, 60, 80, 80], [0, 90, 9, 99]]
    result = ImageResult("i", "p", np.array(boxes), np.array([0.5, 0.6, 0.3, 0.3, 0.9]), np.array(lesions))
    assert Slice(result, np.full((5, 2), np.nan)).labels().tolist() == [-1, 1, 1, 1, 0]


@settings(deadline=None, derandomize=True)
@given(found=slices, truth=st.lists(boxes, max_size=3))
def test_labels_agree_with_the_froc(found: Any, truth: list[list[float]]) -> None:
    result = ImageResult("i", "p", found["box_px"], found["score"], np.array(truth, dtype=np.float64).reshape(-1, 4))
    labels = Slice(result, np.full((len(found["score"]), 2), np.nan)).labels()
    table = HitTable.build([result])
    assert sorted(found["score"][labels == 0]) == sorted(table.false_positive_score)
    assert set(found["score"][labels == 1]) == set(table.lesion_score[np.isfinite(table.lesion_score)])


def blobs_and_tubes(patients: int = 8, seed: int = 0, *, informative: bool = True) -> list[Slice]:
    """Slices with a lesion, a vessel that scores alike, and noise; neighbours 5 and 20 mm away."""
    rng, out = np.random.default_rng(seed), []
    lesion, vessel = np.array(BOX), np.array([60.0, 60, 80, 80])
    for patient in range(patients):
        for number in range(4):
            noise = [[5.0 + 25 * k, 100, 20 + 25 * k, 110] for k in range(3)]
            scores = np.round([*rng.uniform(0.2, 0.8, 2), *rng.uniform(0.02, 0.2, 3)], 6)
            beside = {5.0: ([lesion, vessel], rng.uniform(0.3, 0.7, 2)), -20.0: ([vessel], rng.uniform(0.3, 0.7, 1))}
            around = {mm: findings(*value) for mm, value in beside.items()} if informative else {5.0: findings([], [])}
            found = np.array([lesion, vessel, *noise])
            result = ImageResult(f"{patient}/{number}", f"p{patient}", found, scores, lesion[None])
            out.append(Slice(result, describe(found, around)))
    return out


def test_lesions_that_end_are_told_from_vessels_that_go_on() -> None:
    made = blobs_and_tubes()
    before = HitTable.build([one.result for one in made]).sensitivity([0.25])[0]
    after = held_out(made)
    assert sorted(result.image for result in after) == sorted(one.result.image for one in made)
    assert before < 0.8
    assert HitTable.build(after).sensitivity([0.25])[0] == 1.0
    stage = fit(made)
    assert stage.weights[1] > 0 > stage.weights[2]


def test_a_model_never_sees_the_patient_it_scores() -> None:
    made = blobs_and_tubes(4)
    expected = {result.image: result.scores for result in held_out(made)}
    swapped = [
        Slice(ImageResult(r.image, r.patient_id, r.boxes_px, r.scores, r.boxes_px[1:2]), one.seen)
        if (r := one.result).patient_id == "p2"
        else one
        for one in made
    ]
    changed = {result.image: result.scores for result in held_out(swapped)}
    for one in made:  # another truth of a patient changes all scores but his own
        same = np.array_equal(expected[one.result.image], changed[one.result.image])
        assert same == (one.result.patient_id == "p2")


def test_unknown_neighbours_are_no_verdict() -> None:
    """What is taken for the unknown changes the mean of the model's log-odds in no direction, at no own score."""
    made = blobs_and_tubes(20)
    stage = fit(made)
    score = np.concatenate([one.result.scores for one in made])
    seen = np.concatenate([one.seen for one in made])
    blind = np.full_like(seen, np.nan)
    difference = (stage.inputs(score, blind) - stage.inputs(score, seen)) @ stage.weights
    assert difference.mean() == pytest.approx(0, abs=1e-9)
    assert np.corrcoef(difference, log_odds(score))[0, 1] == pytest.approx(0, abs=1e-6)
    # With nothing known at all the order is the detector's own.
    assert (np.diff(stage.scores(np.sort(score), blind)) >= 0).all()
    # And nothing known is better than a vessel's look, worse than a lesion's.
    look = {mm: findings([BOX], [0.6]) for mm in (5.0, 20.0)}
    vessel, unknown = (stage.rescore(findings([BOX], [0.5]), around)["score"][0] for around in (look, {}))
    lesion = stage.rescore(findings([BOX], [0.5]), {5.0: look[5.0], 20.0: findings([], [])})["score"][0]
    assert vessel < unknown < lesion


# --- kept with the weights -------------------------------------------------------------------------------------------


def conclude(path: Path, made: list[Slice]) -> None:
    FitAcrossSlices(path, "tuning", "0" * 64, bootstrap=20).conclude(made)


def test_a_model_that_pays_is_kept_with_a_threshold_of_its_own(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.store_operating_point(weights, 0.2, {"score": 0.4})
    checkpoint.state_sum(weights)
    made = blobs_and_tubes()
    conclude(weights, made)
    said = capsys.readouterr().out
    assert "stored in" in said
    assert "for --risk 0.2 were chosen on other scores and are dropped" in said
    facts = checkpoint.facts(weights)  # also checks the sum beside the file
    assert facts["operating_points"] == {}
    assert second_stage(facts, True) == fit(made)
    assert second_stage(facts, False) is None
    held = HitTable.build(held_out(made))
    score = facts["across_slices"]["score"]
    assert (held.false_positive_score >= score).sum() <= len(made)
    assert checkpoint.thresholds(facts, True) == {"default of inference": score}
    assert checkpoint.thresholds(facts) == {"default of inference": 0.31}
    assert (checkpoint.threshold(facts, across_slices=True), checkpoint.threshold(facts)) == (score, 0.31)
    assert checkpoint.threshold(facts, 0.7, across_slices=True) == 0.7
    assert torch.equal(checkpoint.read(weights)["model"]["x"], torch.arange(3.0))


def test_a_model_that_does_not_pay_is_not_kept_nor_an_earlier_one(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoint.sha256(weights)
    conclude(weights, blobs_and_tubes(informative=False))
    assert "does not pay" in capsys.readouterr().out
    assert checkpoint.sha256(weights) == before
    conclude(weights, blobs_and_tubes())
    assert checkpoint.facts(weights)["across_slices"] is not None
    conclude(weights, blobs_and_tubes(informative=False))
    assert checkpoint.facts(weights)["across_slices"] is None


def test_a_risk_threshold_holds_for_the_scores_it_was_calibrated_on(weights: Path) -> None:
    checkpoint.store_across_slices(weights, {**STAGE.to_dict(), "score": 0.2})
    checkpoint.store_operating_point(weights, 0.2, {"score": 0.4, "across_slices": True})
    checkpoint.store_operating_point(weights, 0.3, {"score": 0.5})
    facts = checkpoint.facts(weights)
    assert checkpoint.threshold(facts, risk=0.2, across_slices=True) == 0.4
    assert checkpoint.threshold(facts, risk=0.3) == 0.5
    assert checkpoint.thresholds(facts, True) == {"default of inference": 0.2, "risk 0.2": 0.4}
    with pytest.raises(BundleError, match="calibrated with the model across slices"):
        checkpoint.threshold(facts, risk=0.2)
    with pytest.raises(BundleError, match="calibrated without the model across slices"):
        checkpoint.threshold(facts, risk=0.3, across_slices=True)


def test_plain_values_are_all_that_is_stored() -> None:
    kept = json.loads(json.dumps(STAGE.to_dict()))
    assert SecondStage.from_dict({**kept, "score": 0.2, "gain": {}}) == STAGE
    for bad in ({"weights": [1.0]}, {"intercept": float("nan")}, {"expected_far": "x"}, {"expected_near": None}):
        with pytest.raises(BundleError, match=f"no usable '{next(iter(bad))}'"):
            SecondStage.from_dict({**kept, **bad})


def test_what_cannot_be_fitted_is_refused(weights: Path) -> None:
    for section in ("training", "validation", "test"):
        with pytest.raises(BundleError, match="fitted on the tuning patients"):
            FitAcrossSlices(weights, section, "0" * 64)
    with pytest.raises(BundleError, match="two tuning patients"):
        conclude(weights, blobs_and_tubes(1))
    blind = [Slice(one.result, np.full_like(one.seen, np.nan)) for one in blobs_and_tubes()]
    with pytest.raises(BundleError, match="no tuning slice has a neighbour"):
        conclude(weights, blind)
    with pytest.raises(BundleError, match=r"fit_across_slices\.yaml fits one"):
        second_stage(checkpoint.facts(weights), True)
    assert UNMOVED.scores(np.array([0.02, 0.5]), np.full((2, 2), np.nan)) == pytest.approx([0.02, 0.5])


# --- neighbours on disk ----------------------------------------------------------------------------------------------


def test_neighbours_are_what_is_stored_beside_the_key_slice(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in (4, 6, 7, 8, 9, 14, 15):
        (tmp_path / "a" / f"{number:03d}.png").touch()

    def beside(spacing: float | None, numbers: Sequence[int]) -> dict[float, list[int]]:
        item = {"image": [f"a/{n:03d}.png" for n in numbers], "meta": {"spacing_mm": [1.0, 1.0, spacing]}}
        found = WithNeighbours(lambda item: item, tmp_path).neighbours(item)
        return {mm: [int(Path(path).stem) for path in paths] for mm, paths in found}

    assert beside(5.0, (7, 8, 9)) == {5.0: [8, 9, 9], -5.0: [6, 7, 8], -20.0: [4, 4, 4], 30.0: [14, 14, 15]}
    assert beside(5.0, (6, 8, 8)) == {5.0: [7, 9, 9], -5.0: [7, 7, 9], -20.0: [4, 4, 6], 30.0: [14, 14, 14]}
    assert beside(5.0, (8,)) == {5.0: [9], -5.0: [7], -20.0: [4], 30.0: [14]}
    assert beside(2.5, (8, 8, 8)) == {-5.0: [6, 6, 7]}
    assert beside(None, (7, 8, 9)) == {}
    named = {"image": ["a/key.png"], "meta": {"spacing_mm": [1, 1, 5.0]}}
    assert WithNeighbours(lambda item: item, tmp_path).neighbours(named) == []
    assert "neighbours" not in WithNeighbours(lambda item: item, tmp_path, wanted=False)(named)
