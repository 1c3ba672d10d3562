"""The judge of categories, against hand-made tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.categorize.judge import in_half, judge, judge_by_type, judged, planted_kinds, probe, purity
from data_prep.lesion import Lesion


def lesion(number: int, **values: object) -> Lesion:
    return Lesion(lesion_id=str(number), bookmark_ids=(), source="csv", **values)  # type: ignore[arg-type]


def test_purity_of_a_table_from_the_textbook() -> None:
    """Manning et al., Introduction to Information Retrieval, figure 16.4: (5 + 4 + 3) / 17 = 0.71."""
    categories = [0] * 6 + [1] * 6 + [2] * 5
    types = list("xxxxxo") + list("xooood") + list("xxddd")
    assert purity(types, categories) == pytest.approx(12 / 17)
    scores = judge(types, categories, [str(number) for number in range(17)], draws=50)
    assert scores.nmi.value == pytest.approx(0.36, abs=0.005)  # the same book, page 357
    assert scores.ari.value == pytest.approx(0.24, abs=0.005)  # of the same table, by hand
    assert scores.purity.low <= scores.purity.value <= scores.purity.high
    assert (scores.lesions, scores.patients) == (17, 17)


def test_names_of_categories_do_not_matter() -> None:
    types = ["liver"] * 5 + ["lung"] * 5
    scores = judge(types, [7] * 5 + [3] * 5, [str(n) for n in range(10)], draws=20)
    assert scores.nmi.value == scores.purity.value == scores.ari.value == 1.0


def test_intervals_come_from_patients_not_lesions() -> None:
    """Twenty lesions of two patients vary more than twenty patients with a lesion each."""
    types, categories = [0, 1] * 10, [0, 1, 0, 1, 1] * 4
    one_each = judge(types, categories, [str(n) for n in range(20)], draws=300).purity
    few = judge(types, categories, ["a"] * 19 + ["b"], draws=300).purity
    assert few.value == one_each.value
    assert (few.low, few.high) != (one_each.low, one_each.high)
    with pytest.raises(ValueError, match="as many"):
        judge([], [], [])


def test_halves_part_the_patients_and_padding_does_not_matter() -> None:
    patients = [str(number) for number in range(1, 200)]
    choosing = [patient for patient in patients if in_half(patient, "choosing")]
    reporting = [patient for patient in patients if in_half(patient, "reporting")]
    assert sorted(choosing + reporting) == sorted(patients)
    assert 60 < len(choosing) < 140
    assert [in_half(f"{int(p):06d}", "choosing") for p in patients] == [in_half(p, "choosing") for p in patients]


def test_only_validation_lesions_with_a_type_are_judged() -> None:
    lesions = [
        lesion(0, split="train", coarse_type=5, patient_id="1"),
        lesion(1, split="validation", coarse_type=5, patient_id="2"),
        lesion(2, split="validation", patient_id="3"),
        lesion(3, split="test", coarse_type=5, patient_id="4"),
        lesion(4, split="validation", coarse_type=4, patient_id="5"),
    ]
    assert judged(lesions, "all") == [1, 4]
    scores = judge_by_type(lesions, {str(number): number for number in range(5)}, "all", draws=5)
    assert (scores.lesions, scores.nmi.value) == (2, 1.0)


def test_planted_kinds_go_to_the_marked_lesion_under_the_box(tmp_path: Path) -> None:
    item = {
        "image": ["s/001.png", "s/002.png", "s/003.png"],
        "box": [[10, 10, 20, 20], [12, 10, 22, 20], [50, 50, 60, 60]],
        "kind": ["liver metastasis", "spleen lesion", "cyst"],
        "marked": [True, True, False],
    }
    truth = tmp_path / "datalist.json"
    truth.write_text(json.dumps({"training": [item], "tuning": [], "validation": [], "test": []}))

    def box(number: int, x0: float, y0: float, image: str = "s/002.png") -> Lesion:
        return lesion(number, image=image, x0=x0, y0=y0, x1=x0 + 10, y1=y0 + 10)

    lesions = [box(0, 10.5, 10), box(1, 12.5, 10), box(2, 50, 50), box(3, 30, 30), box(4, 10, 10, "s/001.png")]
    assert planted_kinds([*lesions, lesion(5)], truth) == {"0": "liver metastasis", "1": "spleen lesion"}


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_probe_finds_types_that_are_there_and_none_that_are_not(kind: str) -> None:
    generator = np.random.default_rng(0)
    types = np.arange(120) % 3
    patients = [str(number // 2) for number in range(120)]
    noise = generator.normal(size=(120, 6))
    assert probe(noise, types.tolist(), patients, kind=kind) < 0.55  # type: ignore[arg-type]
    signal = noise + 4 * np.eye(6)[types]
    assert probe(signal, types.tolist(), patients, kind=kind) > 0.95  # type: ignore[arg-type]
