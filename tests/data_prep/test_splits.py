"""No patient in two splits, whatever is known of the patient and in whatever order it comes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.splits import SPLITS, Patients, split_of, tuning_patients

modest = settings(deadline=None, max_examples=60, derandomize=True)


def test_parts() -> None:
    counts = Counter(split_of(f"patient {i}") for i in range(20_000))
    assert {split: round(counts[split] / 20_000, 2) for split in SPLITS} == {
        "train": 0.70,
        "validation": 0.15,
        "test": 0.15,
    }


def test_a_split_never_changes() -> None:
    """These are part of the data format: if one changes, every archive's split changes."""
    known = ["train", "validation", "train", "train", "test", "train", "test", "train"]
    assert [split_of(patient) for patient in ("1", "2", "3", "4", "5", "6", "7", "8")] == known


def test_tuning_is_15_percent_and_independent_of_the_rest() -> None:
    train = [f"p{i}" for i in range(10_000)]
    tuning = tuning_patients(train)
    assert abs(len(tuning) - 1500) < 150
    assert tuning_patients(train[:5000]) == tuning.intersection(train[:5000])
    within = Counter(split_of(patient) for patient in tuning)  # another salt: not one end of the split's own order
    assert within["train"] / len(tuning) == pytest.approx(0.70, abs=0.05)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_few_patients_still_leave_some_for_both(count: int) -> None:
    for start in range(200):
        train = [f"q{start}-{i}" for i in range(count)]
        assert 0 < len(tuning_patients(train)) < count


def test_one_patient_trains() -> None:
    assert tuning_patients(["a"]) == set()
    assert tuning_patients([]) == set()


def test_a_mark_without_a_patient_goes_with_its_image() -> None:
    patients = Patients()
    patients.add(("P1", "study", "series", "image", "a.dcm"))
    patients.add((None, None, None, "image", "b.xml"))
    patients.add((None, "study", None, "other image", "c.xml"))
    patients.add((None, None, None, "third image", "d.xml"))
    assert patients.of((None, None, None, "image", "b.xml")) == ("P1", split_of("P1"))
    assert patients.of((None, "study", None, "other image", "c.xml")) == ("P1", split_of("P1"))
    assert patients.of((None, None, None, "third image", "d.xml")) == (
        "image:third image",
        split_of("image:third image"),
    )


def test_a_file_counts_only_where_nothing_else_is_known() -> None:
    patients = Patients()
    patients.add(("P1", None, None, None, "all.csv"))
    patients.add(("P2", None, None, None, "all.csv"))
    patients.add(("", None, None, "", "all.csv"))
    assert patients.of(("P1", None, None, None, "all.csv"))[0] == "P1"
    assert patients.of(("P2", None, None, None, "all.csv"))[0] == "P2"
    assert patients.of((None, None, None, None, "all.csv"))[0] == "file:all.csv"


def test_stated_splits() -> None:
    patients = Patients()
    patients.add(("P1", None, None, "a", ""), "train")
    patients.add(("P1", None, None, "b", ""), None)
    patients.add(("P2", None, None, "c", ""), "train")
    patients.add(("P2", None, None, "d", ""), "test")
    assert patients.of(("P1", None, None, "b", ""))[1] == "train"
    assert {patients.of(("P2", None, None, image, ""))[1] for image in "cd"} == {"test"}
    assert patients.in_two_splits == 1


name = st.one_of(st.none(), st.sampled_from("abcde"))
record = st.tuples(name, name, name, name, st.sampled_from("xy"))


@modest
@given(st.lists(record, min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_records_that_share_anything_share_a_split_in_any_order(records: list[tuple], random: object) -> None:  # type: ignore[type-arg]
    def resolve(order: list[tuple]) -> dict[tuple, tuple[str, str]]:  # type: ignore[type-arg]
        patients = Patients()
        for one in order:
            patients.add(one)
        return {one: patients.of(one) for one in order}

    first = resolve(records)
    shuffled = list(records)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert resolve(shuffled) == first
    for a in records:
        for b in records:
            if any(x is not None and x == y for x, y in zip(a[:4], b[:4], strict=True)):
                assert first[a] == first[b]
