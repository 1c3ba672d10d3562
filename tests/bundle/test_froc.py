"""FROC, accuracy and average precision against hand-made answers and programs that nobody here wrote."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.interpolate
import scipy.io
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.average_precision import PrecisionTable, average_precision, match_as_coco
from scripts.froc import (
    FP_PER_IMAGE,
    Array,
    HitTable,
    ImageResult,
    accuracy_at_iou,
    best_of_k,
    box_iou,
    chance_of_hit,
    froc_curve,
    sensitivity_at_fp,
)

NONE = np.empty((0, 4))
BOX = [10.0, 10.0, 30.0, 30.0]
FAR = [100.0, 100.0, 120.0, 120.0]


def result(boxes: Any, scores: Any, true: Any, image: str = "a", patient: str = "p") -> ImageResult:
    return ImageResult(image, patient, np.array(boxes).reshape(-1, 4), np.array(scores), np.array(true).reshape(-1, 4))


def random_results(seed: int, images: int = 40, *, levels: int | None = None, patients: int = 10) -> list[ImageResult]:
    """Lesions with boxes near them and elsewhere; scores distinct, or on so many levels."""
    rng = np.random.default_rng(seed)
    results = []
    for index in range(images):
        true = rng.uniform(0, 400, (rng.integers(0, 4), 2))
        true = np.concatenate([true, true + rng.uniform(12, 60, true.shape)], axis=1)
        near = np.repeat(true, 2, axis=0)
        near = near + rng.normal(0, 5, near.shape)
        away = rng.uniform(0, 400, (rng.integers(0, 8), 2))
        boxes = np.concatenate([near, np.concatenate([away, away + rng.uniform(12, 60, away.shape)], axis=1)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = rng.random(len(boxes)) if levels is None else rng.integers(0, levels, len(boxes)) / levels
        scores = scores if levels else scores + 0.3 * (np.arange(len(boxes)) < len(near))
        results.append(result(boxes, scores, true, f"{index:03d}", f"p{index % patients}"))
    return results


def walk(results: list[ImageResult], iou: float) -> tuple[Array, Array]:
    """The published protocol read literally: one box after the other, from the highest score down."""
    boxes = [(s, i, b) for i, r in enumerate(results) for s, b in zip(r.scores, r.boxes_px, strict=True)]
    found: set[tuple[int, int]] = set()
    false = 0
    points = [(0.0, 0.0)]
    lesions = sum(len(r.true_boxes_px) for r in results)
    for _, i, box in sorted(boxes, key=lambda entry: -entry[0]):
        true = torch.from_numpy(results[i].true_boxes_px.copy())
        overlaps = torchvision.ops.box_iou(torch.from_numpy(box.copy())[None], true)[0].numpy()
        struck = {(i, int(j)) for j in np.flatnonzero(overlaps >= iou)}
        found |= struck
        false += not struck
        points.append((false / len(results), len(found) / lesions))
    fp, sensitivity = np.array(points).T
    return fp, sensitivity


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_sensitivity_agrees_with_walking_down_the_boxes(seed: int, iou: float) -> None:
    results = random_results(seed)
    fp, sensitivity = walk(results, iou)
    # Between two rates a curve without ties is flat, so the published interpolation reads the same value there.
    rates = [(k + 0.5) / len(results) for k in (0, 3, 10, 40, 80)]
    expected = scipy.interpolate.interp1d(fp, sensitivity, bounds_error=False, fill_value=sensitivity[-1])(rates)
    assert list(sensitivity_at_fp(results, rates, iou).values()) == pytest.approx(expected, abs=1e-12)
    curve = froc_curve(results, iou)
    np.testing.assert_allclose(curve.fp_per_image, fp[1:])
    np.testing.assert_allclose(curve.sensitivity, sensitivity[1:])


def test_published_detector_has_its_published_froc(shared_data: Path) -> None:
    path = shared_data / "froc" / "mulan_val_proposals.mat"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the shared data")
    table = scipy.io.loadmat(path)
    inclusive_to_half_open = np.array([0.0, 0.0, 1.0, 1.0])
    results = []
    for name, boxes, true in zip(table["imname"].ravel(), table["boxes"].ravel(), table["gts"].ravel(), strict=True):
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 5)
        results.append(
            result(
                boxes[:, :4] + inclusive_to_half_open,
                boxes[:, 4],
                np.asarray(true, dtype=np.float64) + inclusive_to_half_open,
                image=str(name),
                patient=str(name)[:6],
            )
        )
    assert len(results) == 4791
    values = sensitivity_at_fp(results)
    assert list(values) == list(FP_PER_IMAGE)
    assert list(values.values()) == pytest.approx([0.7049, 0.7952, 0.8574, 0.9051, 0.9302, 0.9435], abs=1e-4)


def test_further_hit_is_neither_true_nor_false() -> None:
    results = [result([BOX, BOX, FAR], [0.9, 0.8, 0.7], [BOX])]
    curve = froc_curve(results)
    assert curve.score.tolist() == [0.9, 0.8, 0.7]
    assert curve.fp_per_image.tolist() == [0, 0, 1]
    assert curve.sensitivity.tolist() == [1, 1, 1]


def test_one_box_may_find_two_lesions() -> None:
    results = [result([[0, 0, 20, 10]], [0.9], [[0, 0, 20, 6], [0, 4, 20, 10]])]
    assert sensitivity_at_fp(results, [0.0]) == {0.0: 1.0}


def test_images_without_boxes_or_lesions_count_as_images() -> None:
    marked = result([FAR, BOX], [0.9, 0.5], [BOX])
    assert sensitivity_at_fp([marked], [0.5]) == {0.5: 0.0}
    assert sensitivity_at_fp([marked, result(NONE, [], NONE, "b")], [0.5]) == {0.5: 1.0}


def test_sensitivity_at_a_rate_includes_the_hits_before_the_next_false_positive() -> None:
    results = [
        result([FAR, BOX, [200, 200, 210, 210], [50, 50, 60, 60]], [0.9, 0.8, 0.7, 0.6], [BOX, [50, 50, 60, 60]])
    ]
    assert sensitivity_at_fp(results, [0.99, 1.0, 1.99, 2.0]) == {0.99: 0.0, 1.0: 0.5, 1.99: 0.5, 2.0: 1.0}


def test_rate_times_images_is_not_spoilt_by_rounding() -> None:
    results = [result([FAR], [0.9], NONE, f"{i}") for i in range(29)]
    results += [result([BOX], [0.1], [BOX], f"{i}") for i in range(29, 100)]
    assert 0.29 * 100 < 29
    assert sensitivity_at_fp(results, [0.29, 0.28]) == {0.29: 1.0, 0.28: 0.0}


def test_equal_scores_enter_together() -> None:
    results = [result([BOX, FAR], [0.5, 0.5], [BOX])]
    assert sensitivity_at_fp(results, [0.5, 1.0]) == {0.5: 0.0, 1.0: 1.0}
    assert froc_curve(results).score.tolist() == [0.5]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(seed=st.integers(0, 10_000), levels=st.integers(1, 4))
def test_nothing_depends_on_the_order_of_boxes_or_images(seed: int, levels: int) -> None:
    results = random_results(seed, images=8, levels=levels)
    rng = np.random.default_rng(seed)
    shuffled = []
    for r in rng.permutation(np.array(results, dtype=object)):
        order, lesions = rng.permutation(len(r.scores)), rng.permutation(len(r.true_boxes_px))
        shuffled.append(result(r.boxes_px[order], r.scores[order], r.true_boxes_px[lesions], r.image, r.patient_id))
    rates = [0.1, 0.5, 1, 4]
    np.testing.assert_equal(sensitivity_at_fp(shuffled, rates), sensitivity_at_fp(results, rates))
    assert average_precision(shuffled) == pytest.approx(average_precision(results), abs=1e-12, nan_ok=True)
    assert accuracy_at_iou(shuffled) == pytest.approx(accuracy_at_iou(results), abs=1e-12, nan_ok=True)
    assert best_of_k(shuffled, 2) == pytest.approx(best_of_k(results, 2), abs=1e-12, nan_ok=True)


def test_weights_count_patients_as_copies_of_their_images_do() -> None:
    results = random_results(5, levels=20)
    weight = np.random.default_rng(0).integers(0, 4, 10)
    copies = [
        result(r.boxes_px, r.scores, r.true_boxes_px, f"{r.image}-{copy}", r.patient_id)
        for r in results
        for copy in range(weight[int(r.patient_id[1:])])
    ]
    table = HitTable.build(results)
    found = table.found(FP_PER_IMAGE, weight)
    per_lesion = weight[table.lesion_patient]
    expected = list(sensitivity_at_fp(copies).values())
    assert ((found * per_lesion).sum(axis=1) / per_lesion.sum()).tolist() == pytest.approx(expected, abs=1e-12)
    weighted = PrecisionTable.build(results).average_precision(weight)
    assert weighted == pytest.approx(average_precision(copies), abs=1e-12)


def test_without_lesions_there_is_no_value() -> None:
    results = [result([BOX], [0.5], NONE)]
    assert np.isnan(list(sensitivity_at_fp(results).values())).all()
    assert np.isnan(average_precision(results))
    assert np.isnan(list(accuracy_at_iou(results).values())).all()


def test_without_boxes_everything_is_missed() -> None:
    results = [result(NONE, [], [BOX])]
    assert set(sensitivity_at_fp(results).values()) == {0.0}
    assert average_precision(results) == 0.0
    assert set(accuracy_at_iou(results).values()) == {0.0}


# --- accuracy ------------------------------------------------------------------------------------------------------


def test_accuracy_takes_the_highest_scoring_box_of_each_marked_image() -> None:
    half = [10, 10, 30, 20]  # IoU 0.5 with BOX
    results = [
        result([FAR, half], [0.4, 0.9], [BOX], "a"),
        result([FAR, BOX], [0.9, 0.4], [BOX], "b"),  # the better box is not the one with the higher score
        result(NONE, [], [BOX], "c"),
        result([FAR], [0.9], NONE, "d"),  # nothing marked: left out
    ]
    values = accuracy_at_iou(results)
    assert values[0.1] == values[0.5] == pytest.approx(1 / 3)
    assert values[0.6] == 0
    assert best_of_k(results, 2) == pytest.approx(2 / 3)


def test_tied_top_boxes_count_by_their_share_of_hits() -> None:
    assert accuracy_at_iou([result([BOX, FAR, FAR, FAR], [0.9, 0.9, 0.9, 0.1], [BOX])])[0.5] == pytest.approx(1 / 3)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5), st.integers(1, 5))
def test_chance_of_hit_is_the_mean_over_all_orders_of_equal_scores(boxes: list[tuple[int, bool]], k: int) -> None:
    orders = [sorted(order, key=lambda box: -box[0]) for order in itertools.permutations(boxes)]
    expected = np.mean([any(hit for _, hit in order[:k]) for order in orders])
    scores, hits = np.array(boxes).T
    assert chance_of_hit(scores.astype(float), hits.astype(bool), k) == pytest.approx(expected)


def test_best_of_k_needs_a_k() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        best_of_k([result([BOX], [1], [BOX])], 0)


# --- average precision ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("iou", [0.5, 0.75])
def test_average_precision_agrees_with_torchmetrics(seed: int, iou: float) -> None:
    detection = pytest.importorskip("torchmetrics.detection", reason="pip install torchmetrics faster-coco-eval")
    pytest.importorskip("faster_coco_eval", reason="pip install torchmetrics faster-coco-eval")
    results = random_results(seed, images=60)
    judge = detection.MeanAveragePrecision(iou_thresholds=[iou], backend="faster_coco_eval")
    judge.warn_on_many_detections = False
    for r in results:
        # The judge keeps float32; 1/64 px is exact there.
        boxes, true = np.round(r.boxes_px * 64) / 64, np.round(r.true_boxes_px * 64) / 64
        judge.update(
            [
                {
                    "boxes": torch.tensor(boxes),
                    "scores": torch.tensor(r.scores),
                    "labels": torch.zeros(len(boxes)).long(),
                }
            ],
            [{"boxes": torch.tensor(true), "labels": torch.zeros(len(true)).long()}],
        )
    rounded = [
        result(np.round(r.boxes_px * 64) / 64, r.scores, np.round(r.true_boxes_px * 64) / 64, r.image) for r in results
    ]
    expected = float(judge.compute()["map"])
    assert 0.02 < expected < 0.99
    assert average_precision(rounded, iou) == pytest.approx(expected, abs=1e-6)


def test_coco_counts_a_further_hit_as_false() -> None:
    assert match_as_coco(result([BOX, BOX], [0.5, 0.9], [BOX]), 0.5).tolist() == [False, True]


def test_coco_gives_a_box_the_next_lesion_when_the_best_is_taken() -> None:
    overlapping = result([[0, 0, 20, 10], [0, 0, 20, 10]], [0.9, 0.8], [[0, 0, 20, 9], [0, 2, 20, 10]])
    assert match_as_coco(overlapping, 0.5).all()


# --- boxes and results ---------------------------------------------------------------------------------------------


def test_iou_agrees_with_torchvision() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.concatenate([c, c + rng.uniform(1, 40, c.shape)], 1) for c in rng.uniform(0, 40, (2, 30, 2)))
    expected = torchvision.ops.box_iou(torch.tensor(first), torch.tensor(second)).numpy()
    np.testing.assert_allclose(box_iou(first, second), expected, atol=1e-12)
    assert box_iou(NONE, second).shape == (0, 30)


def test_half_open_iou_is_the_published_inclusive_one() -> None:
    a, b = np.array([[3, 4, 12, 15]]), np.array([[5, 2, 14, 13]])  # inclusive pixels
    shared = {(x, y) for x in range(5, 13) for y in range(4, 14)}
    union = {(x, y) for x in range(3, 13) for y in range(4, 16)} | {(x, y) for x in range(5, 15) for y in range(2, 14)}
    grow = np.array([0, 0, 1, 1])
    assert box_iou((a + grow).astype(float), (b + grow).astype(float))[0, 0] == pytest.approx(len(shared) / len(union))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_id": ""}, "no patient"),
        ({"scores": [0.1]}, "as many finite scores"),
        ({"scores": [0.1, np.nan]}, "finite scores"),
        ({"boxes_px": [[0, 0, 1]]}, "shape"),
        ({"boxes_px": [[0, 0, np.inf, 1], BOX]}, "finite"),
        ({"boxes_px": [[5, 0, 1, 1], BOX]}, "x0 < x1"),
        ({"true_boxes_px": [[5, 5, 5, 9]]}, "x0 < x1"),
        ({"true_attributes": {"label": [1, 2]}}, "1 lesions but 2 values of 'label'"),
    ],
)
def test_bad_results_are_refused_where_they_are_made(change: Any, message: str) -> None:
    good: dict[str, Any] = {
        "image": "s/1.png",
        "patient_id": "p",
        "boxes_px": [BOX, FAR],
        "scores": [1, 2],
        "true_boxes_px": [BOX],
    }
    ImageResult(**good)
    with pytest.raises(ValueError, match=message) as error:
        ImageResult(**(good | change))
    assert "s/1.png" in str(error.value)


def test_box_without_area_hits_nothing() -> None:
    assert sensitivity_at_fp([result([[10, 10, 10, 30]], [0.9], [BOX])], [16]) == {16.0: 0.0}


def test_a_result_keeps_its_own_copy() -> None:
    boxes = np.array([BOX])
    kept = ImageResult("a", "p", boxes, np.array([1.0]), boxes)
    boxes += 5
    assert kept.boxes_px.tolist() == [BOX]
    with pytest.raises(ValueError, match="read-only"):
        kept.boxes_px[0] = 0
