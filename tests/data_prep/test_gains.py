"""The category experiment: paired gains against closed forms and scipy, its lists, its table."""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_prep.lesion import Lesion

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))  # its programs belong to no package
import experiment_categories
from benchmarks import category_experiment as experiment
from benchmarks import category_report as report
from benchmarks import gains

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "universal_lesion_ct_detection"

# --- statistics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_detectable_effect_is_found_with_the_stated_power(power: float) -> None:
    effect = gains.minimal_detectable_effect(0.017, power)
    limit = stats.norm.ppf(0.975)
    found = stats.norm.sf(limit - effect / 0.017) + stats.norm.cdf(-limit - effect / 0.017)
    assert found == pytest.approx(power, abs=5e-5)


def test_the_usual_detectable_effect_is_2_80_standard_errors() -> None:
    assert gains.minimal_detectable_effect(1.0) == pytest.approx(2.80159, abs=1e-5)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8).filter(lambda v: np.ptp(v) > 1e-6))
@settings(deadline=None, derandomize=True)
def test_the_interval_over_seeds_is_scipys(values: list[float]) -> None:
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert gains.t_interval(values) == pytest.approx(expected)


def test_the_interval_over_seeds_at_its_ends() -> None:
    assert all(map(np.isnan, gains.t_interval([0.1])))
    assert gains.t_interval([0.1, 0.1]) == (0.1, 0.1)


def _run(of_patient: npt.NDArray[np.float64], weights: npt.NDArray[np.int64], judge: str = "same") -> gains.Run:
    """A run whose one figure is the mean over patients."""
    return gains.Run(
        keys=("mean",),
        values=np.array([of_patient.mean()]),
        samples=(weights @ of_patient / weights.sum(axis=1))[:, None],
        n=np.array([len(of_patient)]),
        patients=np.array([len(of_patient)]),
        judge=judge,
    )


def _draws(patients: int, replicates: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).multinomial(patients, np.full(patients, 1 / patients), size=replicates)


def test_a_paired_gain_has_the_standard_error_of_the_paired_differences() -> None:
    rng, patients, seeds = np.random.default_rng(1), 80, 3
    weights = _draws(patients, 4000)
    hard = rng.normal(0.5, 0.4, patients)  # what makes a patient hard for both cancels out
    ends = [(hard + rng.normal(0, 0.1, patients), hard + rng.normal(0.05, 0.1, patients)) for _ in range(seeds)]
    gain = gains.paired_gain([(_run(a, weights), _run(b, weights)) for a, b in ends], "mean")

    by_patient = np.mean([b - a for a, b in ends], axis=0)
    assert gain.by_seed == pytest.approx([float((b - a).mean()) for a, b in ends])
    assert gain.mean == pytest.approx(by_patient.mean())
    assert gain.standard_error == pytest.approx(by_patient.std() / np.sqrt(patients), rel=0.04)
    expected = stats.bootstrap((by_patient,), np.mean, n_resamples=4000, method="percentile", rng=2)
    assert [gain.low, gain.high] == pytest.approx(list(expected.confidence_interval), abs=0.002)
    assert gain.detectable == pytest.approx(gains.minimal_detectable_effect(gain.standard_error))
    assert (gain.seed_low, gain.seed_high) == gains.t_interval(gain.by_seed)


def test_draws_without_a_value_are_left_out_and_one_patient_gives_no_interval() -> None:
    weights = _draws(40, 500)
    one, two = _run(np.zeros(40), weights), _run(np.linspace(0, 1, 40), weights)
    whole = gains.paired_gain([(one, two)], "mean")
    two.samples[::2] = np.nan
    some = gains.paired_gain([(one, two)], "mean")
    assert some.standard_error == pytest.approx(whole.standard_error, rel=0.2)
    two.samples[:] = np.nan
    assert np.isnan(gains.paired_gain([(one, two)], "mean").detectable)

    alone = _run(np.ones(1), _draws(1, 500))
    gain = gains.paired_gain([(alone, alone)], "mean")
    assert gain.mean == 0
    assert np.isnan([gain.low, gain.high, gain.standard_error, gain.detectable]).all()


def test_runs_that_were_not_judged_alike_are_not_paired() -> None:
    one = _run(np.ones(5), _draws(5, 10))
    for other in (_run(np.ones(5), _draws(5, 10), "another"), _run(np.ones(5), _draws(5, 11))):
        with pytest.raises(ValueError, match="judged on other"):
            gains.paired_gain([(one, other)], "mean")
    with pytest.raises(ValueError, match="no pair"):
        gains.paired_gain([], "mean")


# --- replicates, against the bundle's own comparison ---------------------------------------------------------------


def _evaluation(folder: Path, rng: np.random.Generator, chance: float) -> Path:
    """A ``predictions.json`` of 30 patients, two slices each with two lesions."""
    images = []
    for number in range(60):
        true = [[10.0, 10.0, 30.0, 30.0], [60.0, 60.0, 90.0, 80.0]]
        boxes = [box for box in true if rng.random() < chance] + [[100.0, 100.0, 120.0, 120.0 + number]]
        scores = np.round(rng.random(len(boxes)), 6).tolist()
        images.append(
            {
                "image": f"a/{number:03d}.png",
                "patient": number // 2,
                "box_px": boxes,
                "score": scores,
                "true_box_px": true,
            }
        )
    folder.mkdir()
    (folder / "predictions.json").write_text(json.dumps({"schema_version": 1, "images": images}))
    return folder


def test_one_seed_agrees_with_the_bundles_comparison(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    runs = [_evaluation(tmp_path / name, rng, chance) for name, chance in (("one", 0.4), ("two", 0.7))]
    items = [
        {
            "image": [f"a/{n:03d}.png"],
            "box": [[10, 10, 30, 30], [60, 60, 90, 80]],
            "label": [0, 1],
            "patient_id": n // 2,
        }
        for n in range(60)
    ]
    judge = tmp_path / "judge.json"
    judge.write_text(json.dumps({"schema_version": 1, "validation": items, "categories": ["liver", "lung/left", "x"]}))
    program = ROOT / "scripts" / "benchmarks" / "replicates.py"
    calls = [
        [str(program), str(run), str(judge), "validation", str(run / "r.npz"), "--bootstrap", "200"] for run in runs
    ]
    code = f"import runpy, sys\nfor sys.argv in {calls!r}: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "from scripts.compare import main\n"
    code += f"sys.exit(main({[*map(str, runs), '--bootstrap', '200', '--output', str(tmp_path / 'c.json')]!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=BUNDLE, check=True, capture_output=True)

    one, two = (gains.Run.load(run / "r.npz") for run in runs)
    difference = json.loads((tmp_path / "c.json").read_text())["difference"]
    for key, expected in (
        ("average_sensitivity", difference["average_sensitivity"]),
        *((f"accuracy_at_iou/{iou}", difference["accuracy_at_iou"][iou]) for iou in ("0.1", "0.5", "0.9")),
    ):
        gain = gains.paired_gain([(one, two)], key)
        assert (gain.mean, gain.low, gain.high) == pytest.approx((expected["value"], expected["low"], expected["high"]))
    assert one.value("average_sensitivity") < two.value("average_sensitivity")
    category = "by_category/lung/left/average_sensitivity"
    assert (one.count(category), one.patients[one.keys.index(category)]) == (60, 30)
    assert one.count("by_category/x/average_sensitivity") == 0
    assert np.isnan(one.value("by_category/x/average_sensitivity"))


# --- lists ---------------------------------------------------------------------------------------------------------


def _content(patients: int = 40) -> dict[str, Any]:
    def items(section: int) -> list[dict[str, Any]]:
        return [
            {
                "image": [f"{section}_{patient}_{n}.png"],
                "patient_id": f"{section}-{patient}",
                "box": [[0, 0, 5, 5]] * (n + 1),
                "label": [(patient * patient) % 5] * (n + 1),
            }
            for patient in range(patients)
            for n in range(2)
        ]

    return {"training": items(0), "tuning": items(1), "validation": items(2), "categories": list("abcde")}


def _labels(content: dict[str, Any], section: str) -> list[int]:
    return [label for item in content[section] for label in item["label"]]


def test_random_categories_have_the_mined_ones_sizes() -> None:
    content = _content()
    before = copy.deepcopy(content)
    dealt = experiment.shuffled_labels(content, 0)
    for section in ("training", "tuning"):
        assert Counter(_labels(dealt, section)) == Counter(_labels(content, section))
        assert _labels(dealt, section) != _labels(content, section)
    assert dealt["validation"] == content["validation"]
    assert content == before
    assert experiment.same_lesions(dealt, content)
    assert experiment.shuffled_labels(content, 0) == dealt
    assert experiment.shuffled_labels(content, 1) != dealt


def test_a_share_of_the_patients_is_whole_patients_and_nested() -> None:
    content = _content(400)
    shares = {size: experiment.part_of_patients(content, size) for size in (0.25, 0.5, 1.0)}
    patients = {size: Counter(item["patient_id"] for item in part["training"]) for size, part in shares.items()}
    assert set(patients[0.25]) < set(patients[0.5]) < set(patients[1.0])
    assert all(set(counts.values()) == {2} for counts in patients.values())
    for size in (0.25, 0.5):
        assert len(patients[size]) == pytest.approx(400 * size, abs=4 * np.sqrt(400 * size * (1 - size)))
    assert shares[1.0] == content
    assert shares[0.25]["tuning"] == content["tuning"]
    assert not experiment.same_lesions(shares[0.25], content)
    with pytest.raises(SystemExit, match="no training patient"):
        experiment.part_of_patients(content, 1e-9)


def _mark(image: str, x: float, y: float, place: tuple[float, float, float]) -> Lesion:
    box = dict(zip(("x0", "y0", "x1", "y1"), (x - 5, y - 4, x + 5, y + 4), strict=True))
    where = dict(zip(("norm_x", "norm_y", "norm_z"), place, strict=True))
    return Lesion(lesion_id=f"{image}{x}", bookmark_ids=(), source="deeplesion-csv", image=image, **box, **where)


def test_lesions_of_the_truth_get_their_place_from_the_marks_of_their_series() -> None:
    def place(x: float, y: float, z: float) -> tuple[float, float, float]:
        return 0.1 + 0.003 * x, 0.2 + 0.002 * y, z

    marks = [_mark("a/1.png", 50, 60, place(50, 60, 0.3)), _mark("a/2.png", 150, 90, place(150, 90, 0.4))]
    marks.append(_mark("b/1.png", 20, 20, (0.9, 0.9, 0.9)))
    item = {
        "image": ["a/0.png", "a/1.png", "a/2.png"], "patient_id": "7", "spacing_mm": [0.8, 0.8, 5.0],
        "image_size": [256, 200], "slice_index": 1, "box": [[95, 70, 105, 80], [0, 0, 10, 10]],
        "lesion_id": ["m", "n"], "recist_px": [[1.0] * 8] * 2, "coarse_type": [4, 5],
        "long_diameter_mm": [8.0, 9.0], "short_diameter_mm": [6.0, 7.0],
    }  # fmt: skip
    unmarked = {**item, "image": ["c/1.png"], "lesion_id": ["o", "p"]}
    one, two, three, _ = experiment.truth_lesions([item, unmarked], marks, "test")
    assert (one.norm_x, one.norm_y, one.norm_z) == pytest.approx(place(100, 75, 0.3))
    assert (two.norm_x, two.norm_y, two.norm_z) == pytest.approx(place(5, 5, 0.3))
    assert (one.image, one.patient_id, one.split, one.columns, one.rows) == ("a/1.png", "7", "test", 256, 200)
    assert (one.box_px, one.long_diameter_mm, two.coarse_type) == ((95, 70, 105, 80), 8.0, 5)
    assert three.norm_z is None


# --- table and command ---------------------------------------------------------------------------------------------


def _finished(accuracy: float) -> report.Finished:
    figure = {"value": accuracy, "low": None, "high": None, "n": 9}
    metrics = {
        "images": 9, "lesions": 9, "patients": 9, "froc": dict.fromkeys(report.RATES, figure),
        "average_sensitivity": figure, "accuracy_at_iou": {"0.5": figure},
    }  # fmt: skip
    keys = [*report.FIGURES, *(f"by_category/liver/{key}" for key in report.FIGURES)]
    keys += [f"accuracy_at_iou/{iou}" for iou in report.IOUS if iou != "0.5"]
    size, weights = len(keys), _draws(9, 50)
    samples = np.full((50, size), accuracy) + 0.01 * weights[:, :1] * accuracy
    counts = np.full(size, 9)
    return report.Finished(
        metrics, gains.Run(tuple(keys), np.full(size, accuracy), samples, counts, counts, "j"), 70, 8, 60
    )


def test_every_run_that_finished_is_in_the_section_with_its_gain() -> None:
    finished = {
        (1.0, "single", 0): _finished(0.30), (1.0, "mined", 0): _finished(0.34), (1.0, "single", 1): _finished(0.32),
        (1.0, "mined", 1): _finished(0.31), (0.5, "single", 0): _finished(0.123), (1.0, "random", 0): _finished(0.27),
    }  # fmt: skip
    titles = {name: arm.title for name, arm in experiment.ARMS.items()}
    arguments = argparse.Namespace(what="phantom", patients=60, epochs=None, seeds=2, seed=0, rounds=3)
    mining = {"rounds": 3, "round_taken": 2}
    text = report.section(finished, titles, ["liver"], mining, arguments, {"max_epochs": 5}, "Stopped early.")
    rows = [line for line in text.split("Gains in")[0].splitlines() if line.startswith("| ") and " 70 " in line]
    assert len(rows) == len(finished)
    assert any("| 0.5 | 0 | 70 | 8 | 1 |" in row and "12.3" in row for row in rows)
    assert "| 5 mined categories − single class | accuracy at IoU .5 | +4.0, -1.0 | +1.5 |" in text
    assert "| 5 random categories (control) − single class | accuracy at IoU .5 | -3.0 | -3.0 |" in text
    assert "| 5 mined categories − 5 random categories (control) | accuracy at IoU .5 | +7.0 | +7.0 |" in text
    assert "| liver | 9 | accuracy at IoU .5 | 31.0 (30.0 to 32.0) |" in text
    assert "8 mined" not in text
    assert text.endswith("Stopped early.")
    for stated in ("59.45", "64.3", "2.80 · SE", "round 2 was taken", "--sizes 0.5,1"):
        assert stated in text


def _gain(low: float, high: float, seed_low: float, seed_high: float, error: float = 0.01) -> gains.Gain:
    return gains.Gain((0.0,), (low + high) / 2, low, high, seed_low, seed_high, error, 0.028)


def test_the_verdict_says_no_more_than_the_intervals() -> None:
    nan = float("nan")
    assert "below 2.8 points" in report.verdict(_gain(-0.01, 0.03, 0.001, 0.02))
    assert report.verdict(_gain(0.01, 0.03, 0.001, 0.02)) == "a gain, over patients and over seeds"
    assert report.verdict(_gain(-0.03, -0.01, -0.03, -0.01)) == "a loss, over patients and over seeds"
    for over_seeds in ((-0.01, 0.02), (nan, nan)):
        assert "not beyond the spread of the seeds" in report.verdict(_gain(0.01, 0.03, *over_seeds))
    assert "nothing can be said" in report.verdict(_gain(nan, nan, nan, nan, nan))
    assert "same difference" in report.verdict(_gain(0.0, 0.0, 0.0, 0.0, 0.0))


def test_the_command_line() -> None:
    assert experiment_categories.arms("random,mined") == ["single", "mined", "random"]
    assert experiment_categories.sizes("0.25,0.5") == [1.0, 0.5, 0.25]
    for parse, text in (
        (experiment_categories.arms, "mined,best"), (experiment_categories.sizes, "0,1"),
        (experiment_categories.sizes, "2"), (experiment_categories.sizes, "half"),
        (experiment_categories.positive, "0"), (experiment_categories.minutes, "inf"),
        (experiment_categories.minutes, "nan"),
    ):  # fmt: skip
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)
