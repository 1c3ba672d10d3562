"""`metrics.json`: contents, groups, independence of order, and the intervals against resampling images by hand."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import torch
from scripts.average_precision import average_precision
from scripts.bootstrap import draws
from scripts.froc import ImageResult, accuracy_at_iou, sensitivity_at_fp
from scripts.groups import DEEPLESION_TYPES
from scripts.metrics import (
    CURVE_FP_PER_IMAGE,
    LesionDetectionMetric,
    compare,
    compute,
    scalars,
)

image_result: Any = ImageResult  # takes lists too


def simulated(
    seed: int, images: int = 60, boxes: int = 6, patients: int = 15, skill: float = 0.3, decimals: int = 2
) -> list[ImageResult]:
    rng = np.random.default_rng(0)  # the lesions are the same for every seed
    noise = np.random.default_rng(seed + 1)
    results = []
    for index in range(images):
        lesions = rng.integers(0, 3) if index % 5 else 1
        corner = rng.uniform(20, 400, (lesions, 2))
        true = np.concatenate([corner, corner + rng.uniform(12, 40, (lesions, 2))], axis=1)
        attributes = {
            "coarse_type": rng.choice([4, 5, -1], lesions).tolist(),
            "label": rng.integers(0, 2, lesions).tolist(),
            "long_diameter_mm": [None if size < 2 else float(size) for size in rng.uniform(0, 45, lesions)],
            "slice_spacing_mm": [[5.0, 1.0, -1.0][index % 3]] * lesions,
        }
        near = true + np.tile(noise.normal(0, 3, (lesions, 2)), 2)
        corner = noise.uniform(0, 400, (boxes, 2))
        away = np.concatenate([corner, corner + noise.uniform(12, 40, corner.shape)], axis=1)
        scores = np.round(noise.random(lesions + boxes) + skill * (np.arange(lesions + boxes) < lesions), decimals)
        everything = np.concatenate([near, away])
        results.append(image_result(f"{index:04d}", f"p{index % patients:03d}", everything, scores, true, attributes))
    return results


def test_values_are_those_of_the_pure_functions_and_json_takes_them() -> None:
    results = simulated(0, decimals=1)  # with many ties
    metrics = compute(results, bootstrap=50)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert metrics["schema_version"] == 1
    assert metrics["images"] == 60
    assert metrics["patients"] == 15
    assert metrics["lesions"] == sum(len(r.true_boxes_px) for r in results)
    for rate, value in sensitivity_at_fp(results).items():
        figure = metrics["froc"][f"{rate:g}"]
        assert figure["value"] == pytest.approx(value, abs=1e-12)
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["n"] == metrics["lesions"]
    assert list(metrics["froc"]) == ["0.5", "1", "2", "4", "8", "16"]
    first_four = [metrics["froc"][rate]["value"] for rate in ("0.5", "1", "2", "4")]
    assert metrics["average_sensitivity"]["value"] == pytest.approx(np.mean(first_four))
    for iou, value in accuracy_at_iou(results).items():
        assert metrics["accuracy_at_iou"][f"{iou:g}"]["value"] == pytest.approx(value)
    marked = sum(len(r.true_boxes_px) > 0 for r in results)
    assert metrics["accuracy_at_iou"]["0.5"]["n"] == marked < 60
    assert metrics["average_precision"]["value"] == pytest.approx(average_precision(results))
    assert metrics["interval"] == {"level": 0.95, "unit": "patient", "replicates": 50, "seed": 0}


def test_intervals_are_those_of_resampling_patients_with_their_images() -> None:
    results = simulated(0)
    by_patient = [[r for r in results if r.patient_id == p] for p in sorted({r.patient_id for r in results})]
    samples: list[list[Any]] = []
    for weight in draws(len(by_patient), 60, seed=3):
        copies = [
            image_result(f"{r.image}-{copy}", r.patient_id, r.boxes_px, r.scores, r.true_boxes_px)
            for count, images in zip(weight, by_patient, strict=True)
            for copy in range(count)
            for r in images
        ]
        values = sensitivity_at_fp(copies)
        samples.append([values[1.0], np.mean([values[r] for r in (0.5, 1, 2, 4)]), accuracy_at_iou(copies)[0.5],
                        average_precision(copies)])  # fmt: skip
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    metrics = compute(results, bootstrap=60, seed=3)
    figures = [metrics["froc"]["1"], metrics["average_sensitivity"], metrics["accuracy_at_iou"]["0.5"],
               metrics["average_precision"]]  # fmt: skip
    assert [figure["low"] for figure in figures] == pytest.approx(low.tolist(), abs=1e-12)
    assert [figure["high"] for figure in figures] == pytest.approx(high.tolist(), abs=1e-12)


def test_groups_share_the_thresholds_of_the_whole_and_add_up_to_it() -> None:
    results = simulated(0)
    metrics = compute(results, bootstrap=0)
    # Every lesion is in one of these groups.
    for key in ("by_category", "by_size_px", "by_root_area_px", "by_slice_spacing"):
        groups = metrics[key].values()
        assert sum(group["froc"]["2"]["n"] for group in groups) == metrics["lesions"]
        total = sum((group["froc"]["2"]["value"] or 0) * group["froc"]["2"]["n"] for group in groups)
        assert total / metrics["lesions"] == pytest.approx(metrics["froc"]["2"]["value"])
    assert list(metrics["by_category"]) == ["category 0", "category 1"]
    assert list(metrics["by_slice_spacing"]) == ["up to 2.5 mm", "over 2.5 mm"]
    assert list(metrics["by_type"]) == list(DEEPLESION_TYPES.values())
    known = sum(t in (4, 5) for r in results for t in r.true_attributes["coarse_type"])
    assert sum(group["froc"]["1"]["n"] for group in metrics["by_type"].values()) == known < metrics["lesions"]
    assert metrics["by_type"]["bone"]["froc"]["1"] == {"value": None, "low": None, "high": None, "n": 0}
    sizes = [s for r in results for s in r.true_attributes["long_diameter_mm"] if s is not None]
    assert metrics["by_size_mm"]["under 10 mm"]["froc"]["1"]["n"] == sum(s < 10 for s in sizes) > 0


def test_a_group_is_judged_by_its_own_lesions() -> None:
    liver, lung = [10.0, 10, 40, 40], [100.0, 100, 120, 120]
    results = [
        image_result("a", "p", [lung], [0.9], [liver, lung], {"coarse_type": [4, 5]}),
        image_result("b", "q", [liver], [0.8], [liver], {"coarse_type": [4]}),
    ]
    by_type = compute(results, bootstrap=20)["by_type"]
    assert by_type["lung"]["froc"]["0.5"]["value"] == 1
    assert by_type["liver"]["froc"]["0.5"]["value"] == 0.5
    assert by_type["liver"]["accuracy_at_iou"]["0.5"] | {"low": 0, "high": 0} == {
        "value": 0.5,
        "low": 0,
        "high": 0,
        "n": 2,
    }
    assert by_type["lung"]["accuracy_at_iou"]["0.5"] == {"value": 1.0, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize(
    ("size", "group"),
    [(9.99, "under 10 mm"), (10, "10 to 30 mm"), (30, "10 to 30 mm"), (30.1, "over 30 mm")],
)
def test_size_bins(size: float, group: str) -> None:
    box = [[0, 0, 20, 8]]
    metrics = compute([image_result("a", "p", box, [1], box, {"long_diameter_mm": [size]})], bootstrap=0)
    assert {name for name, part in metrics["by_size_mm"].items() if part["froc"]["1"]["n"]} == {group}
    assert metrics["by_size_px"]["20 px or more"]["froc"]["1"]["n"] == 1
    assert "by_type" not in metrics
    assert "by_category" not in metrics


@pytest.mark.parametrize(
    ("x1", "x2", "y2", "long_side", "root_area"),
    # As DL_info.csv writes boxes; the root of the area is 19.98 and 20.
    [(10, 47, 20.79, "20 px or more", "under 20 px"), (10, 35, 26, "20 px or more", "20 px or more"),
     (10, 28.5, 28.5, "under 20 px", "under 20 px"), (10, 29.5, 29.5, "20 px or more", "under 20 px")],
)  # fmt: skip
def test_the_two_sizes_of_a_box(x1: float, x2: float, y2: float, long_side: str, root_area: str) -> None:
    box = [[x1 - 1, 9, x2, y2]]
    metrics = compute([image_result("a", "p", box, [1], box)], bootstrap=0)
    for key, group in (("by_size_px", long_side), ("by_root_area_px", root_area)):
        assert {name for name, part in metrics[key].items() if part["froc"]["1"]["n"]} == {group}


def test_names_of_types_and_categories_can_be_given() -> None:
    metrics = compute(simulated(0), bootstrap=0, type_names={5: "thorax"}, category_names=["small", "large"])
    assert list(metrics["by_type"]) == ["thorax"]
    assert list(metrics["by_category"]) == ["small", "large"]


def test_order_of_images_and_shards_do_not_matter() -> None:
    results = simulated(0)
    whole = compute(results, bootstrap=30)
    assert compute(results[::-1], bootstrap=30) == whole
    shards = [LesionDetectionMetric(bootstrap=30) for _ in range(2)]
    for index, result in enumerate([*results, results[0]]):  # a sampler evens out the shards by repeating an image
        shards[index % 2 if index < 50 else 0].add(result)
    gathered = LesionDetectionMetric(bootstrap=30)
    for shard in shards[::-1]:
        for result in shard.results:
            gathered.add(result)
    assert gathered.compute() == whole
    assert gathered.compute(bootstrap=0)["froc"]["1"]["low"] is None
    gathered.reset()
    with pytest.raises(ValueError, match="no images"):
        gathered.compute()


def test_an_image_given_twice_is_refused() -> None:
    results = simulated(0, images=3)
    with pytest.raises(ValueError, match="'0001' is there twice"):
        compute([*results, results[1]])


def test_nothing_marked_gives_nulls() -> None:
    metrics = compute([image_result(f"{i}", f"p{i}", [[0, 0, 5, 5]], [0.5], []) for i in range(3)], bootstrap=10)
    json.dumps(metrics, allow_nan=False)
    assert metrics["froc"]["1"] == {"value": None, "low": None, "high": None, "n": 0}
    assert metrics["average_precision"]["value"] is None
    assert metrics["accuracy_at_iou"]["0.5"]["value"] is None


def test_score_thresholds_give_the_sensitivity_they_stand_for() -> None:
    results = simulated(0)
    metrics = compute(results, bootstrap=0)
    for rate, threshold in metrics["score_at_fp_per_image"].items():
        kept = [
            image_result(r.image, r.patient_id, r.boxes_px[r.scores >= threshold], r.scores[r.scores >= threshold],
                        r.true_boxes_px)
            for r in results
        ]  # fmt: skip
        value = metrics["froc"][rate]["value"]
        assert sensitivity_at_fp(kept, [float(rate)])[float(rate)] == pytest.approx(value)
        assert sensitivity_at_fp(kept, [1000])[1000] == pytest.approx(value)  # nothing more is among the boxes kept
    nothing_fits = [image_result("a", "p", [[0, 0, 5, 5]] * 3, [0.5] * 3, [[50, 50, 60, 60]])]
    assert compute(nothing_fits, bootstrap=0)["score_at_fp_per_image"]["2"] is None


def test_curve_passes_through_the_six_points() -> None:
    metrics = compute(simulated(0), bootstrap=20)
    curve = metrics["froc_curve"]
    assert curve["fp_per_image"] == list(CURVE_FP_PER_IMAGE)
    assert all(len(values) == len(CURVE_FP_PER_IMAGE) for values in curve.values())
    for rate, figure in metrics["froc"].items():
        at = curve["fp_per_image"].index(float(rate))
        assert (curve["sensitivity"][at], curve["low"][at]) == pytest.approx((figure["value"], figure["low"]))
    assert np.all(np.diff(curve["sensitivity"]) >= 0)


def test_scalars_are_flat_numbers_with_names_a_tracker_takes() -> None:
    flat = scalars(compute(simulated(0), bootstrap=0))
    assert flat["froc/0.5"] <= flat["froc/16"]
    assert "average_sensitivity" in flat
    assert "by_type/liver/accuracy_at_iou/0.5" in flat
    assert not any(name.startswith(("by_type/bone", "interval", "froc_curve")) for name in flat)
    assert all(isinstance(value, float) for value in flat.values())
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_/. ") for name in flat)


# --- two runs ------------------------------------------------------------------------------------------------------


def test_a_better_run_is_ahead_with_a_small_p() -> None:
    worse, better = simulated(0, skill=0.0), simulated(1, skill=0.6)
    difference = compare(worse, better, bootstrap=200)
    json.dumps(difference, allow_nan=False)
    for key in ("average_sensitivity", "average_precision"):
        expected = compute(better, bootstrap=0)[key]["value"] - compute(worse, bootstrap=0)[key]["value"]
        assert difference[key]["value"] == pytest.approx(expected)
        assert difference[key]["low"] > 0
        assert difference[key]["p"] < 0.05
    assert set(difference) == {
        "schema_version", "froc", "average_sensitivity", "accuracy_at_iou", "average_precision",
        "average_precision_at_iou",
    }  # fmt: skip


def test_a_run_does_not_differ_from_itself() -> None:
    figure = compare(simulated(0), simulated(0)[::-1], bootstrap=30)["froc"]["1"]
    assert (figure["value"], figure["low"], figure["high"], figure["p"]) == (0, 0, 0, 1)


def test_runs_over_other_images_are_not_compared() -> None:
    results = simulated(0, images=5)
    with pytest.raises(ValueError, match="5 and 4 images"):
        compare(results, results[:-1], bootstrap=1)
    with pytest.raises(ValueError, match="differ in images or lesions, first at '0000' and '0001'"):
        compare(results, results[1:], bootstrap=1)
    r = results[0]
    moved = image_result(r.image, r.patient_id, r.boxes_px, r.scores, r.true_boxes_px + 1)
    with pytest.raises(ValueError, match="differ"):
        compare(results, [moved, *results[1:]], bootstrap=1)


@pytest.mark.slow
def test_a_thousand_replicates_of_five_thousand_images_take_seconds() -> None:
    results = simulated(0, images=5000, boxes=100, patients=800)
    start = time.perf_counter()
    compute(results, bootstrap=1000)
    assert time.perf_counter() - start < 60


# --- average precision over IoU ---------------------------------------------------------------------------------------


def test_average_precision_at_each_iou_agrees_with_torchmetrics() -> None:
    detection = pytest.importorskip("torchmetrics.detection", reason="pip install torchmetrics faster-coco-eval")
    pytest.importorskip("faster_coco_eval", reason="pip install torchmetrics faster-coco-eval")
    results = [
        image_result(
            r.image, r.patient_id, np.round(r.boxes_px * 64) / 64, r.scores, np.round(r.true_boxes_px * 64) / 64
        )
        for r in simulated(0, decimals=6)
    ]  # the judge keeps float32; 1/64 px is exact there
    found = compute(results, bootstrap=0)
    for iou, figure in found["average_precision_at_iou"].items():
        judge = detection.MeanAveragePrecision(iou_thresholds=[float(iou)], backend="faster_coco_eval")
        judge.warn_on_many_detections = False
        for r in results:
            judge.update(
                [{"boxes": torch.tensor(r.boxes_px), "scores": torch.tensor(r.scores),
                  "labels": torch.zeros(len(r.scores)).long()}],
                [{"boxes": torch.tensor(r.true_boxes_px), "labels": torch.zeros(len(r.true_boxes_px)).long()}],
            )  # fmt: skip
        assert figure["value"] == pytest.approx(float(judge.compute()["map"]), abs=1e-6)
    assert found["average_precision_at_iou"]["0.1"]["value"] > found["average_precision_at_iou"]["0.9"]["value"]
    assert found["average_precision"] == found["average_precision_at_iou"]["0.5"]
