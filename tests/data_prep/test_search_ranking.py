"""What a search ranks by: neighbours against scikit-learn and torchmetrics, words by example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torchmetrics.functional.retrieval import retrieval_precision

from data_prep.categorize import retrieval
from data_prep.categorize.retrieval import (
    best,
    judge_retrieval,
    mean_by_patient,
    nearest_others,
    precision_at,
    time_search,
    unit_rows,
)
from data_prep.categorize.words import meaning, normalise, text_similarity, words
from data_prep.lesion import Lesion


def typed(number: int, kind: int, patient: str, split: str = "validation") -> Lesion:
    return Lesion(
        lesion_id=str(number), bookmark_ids=(), source="csv", coarse_type=kind, patient_id=patient, split=split
    )


# --- ranking -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 35),
)
def test_best_is_the_head_of_a_full_sort(values: list[tuple[int, bool]], count: int) -> None:
    similarity = np.array([value for value, _ in values], np.float32)
    allowed = np.array([flag for _, flag in values])
    numbers = [n for n in sorted(range(len(values)), key=lambda n: (-similarity[n], n)) if allowed[n]]
    assert best(similarity, count, allowed).tolist() == numbers[:count]
    assert set(best(similarity, count)) >= {int(np.argmax(similarity))}


def test_neighbours_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One patient a lesion: the nearest others are the brute-force neighbours without the point itself."""
    generator = np.random.default_rng(3)
    X = generator.normal(size=(83, 7)) * generator.uniform(0.1, 10, (83, 1))
    monkeypatch.setattr(retrieval, "BLOCK_ENTRIES", 83 * 10)  # so that the last block is a smaller one
    found = nearest_others(unit_rows(X), [str(n) for n in range(83)], np.arange(83), 9)
    oracle = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(X)
    assert found.tolist() == oracle.kneighbors(X, return_distance=False)[:, 1:].tolist()


def test_lesions_of_the_same_patient_are_passed_over() -> None:
    generator = np.random.default_rng(4)
    X = generator.normal(size=(60, 5))
    patients = [str(n // 4) for n in range(60)]
    queries = np.array([0, 17, 59])
    found = nearest_others(unit_rows(X), patients, queries, 12)
    for query, row in zip(queries, found, strict=True):
        others = [n for n in range(60) if patients[n] != patients[query]]
        oracle = NearestNeighbors(n_neighbors=12, metric="cosine", algorithm="brute").fit(X[others])
        expected = oracle.kneighbors(X[[query]], return_distance=False)[0]
        assert row.tolist() == [others[n] for n in expected]
    with pytest.raises(ValueError, match="56 neighbours of other patients, 57"):
        nearest_others(unit_rows(X), patients, queries, 57)


def test_a_zero_row_is_like_nothing() -> None:
    rows = unit_rows(np.array([[0.0, 0.0], [3.0, 4.0]]))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows @ rows.T, [[0, 0], [0, 1]], atol=1e-6)


# --- precision -----------------------------------------------------------------------------------------------------


def test_precision_at_k_is_that_of_torchmetrics() -> None:
    generator = np.random.default_rng(5)
    types = generator.integers(0, 4, 50)
    X = generator.normal(size=(50, 6)) + 1.5 * np.eye(6)[types]
    points = unit_rows(X)
    queries = np.arange(50)
    ranking = nearest_others(points, [str(n) for n in range(50)], queries, 12)
    for k in (1, 10, 12):
        found = precision_at(ranking, types, queries, k)
        for query in queries:
            others = np.delete(queries, query)
            score = torch.from_numpy(2 + points[others] @ points[query])  # torchmetrics skips what scores 0 or less
            expected = retrieval_precision(score, torch.from_numpy(types[others] == types[query]), top_k=k)
            assert found[query] == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="precision at 13"):
        precision_at(ranking, types, queries, 13)


def test_points_that_follow_the_types_reach_the_ceiling() -> None:
    """Types 4 and 5 with 12 patients each, one lesion a patient: 10 of 11 others are hit; type 8 has but 3 lesions."""
    kinds = [4] * 12 + [5] * 12 + [8] * 3
    lesions = [typed(number, kind, str(number)) for number, kind in enumerate(kinds)]
    lesions += [typed(100, 4, "900", "train"), typed(101, 4, "901", "test")]  # neither asks nor is found
    X = np.array([[1.0 * (kind == 4), 1.0 * (kind == 5), 1.0 * (kind == 8)] for kind in [*kinds, 8, 8]])
    judged = judge_retrieval(lesions, X, "all", draws=200)
    assert (judged.k, judged.candidates, judged.overall.queries, judged.overall.patients) == (10, 27, 27, 27)
    assert sorted(judged.by_type) == ["liver", "lung", "pelvis"]
    liver, pelvis = judged.by_type["liver"], judged.by_type["pelvis"]
    assert liver.precision.value == liver.ceiling == 1.0
    assert liver.chance == pytest.approx(11 / 26)
    assert pelvis.precision.value == pelvis.ceiling == pytest.approx(0.2)
    assert judged.overall.precision.value == pytest.approx((24 + 3 * 0.2) / 27)
    assert judged.overall.precision.low < judged.overall.precision.value < judged.overall.precision.high <= 1
    halves = [judge_retrieval(lesions, X, half, draws=5) for half in ("choosing", "reporting")]  # type: ignore[arg-type]
    assert sum(half.overall.queries for half in halves) == 27
    assert {half.candidates for half in halves} == {27}


def test_points_without_meaning_are_at_chance() -> None:
    generator = np.random.default_rng(6)
    lesions = [typed(number, 1 + number % 2, str(number // 2)) for number in range(400)]
    judged = judge_retrieval(lesions, generator.normal(size=(400, 8)), "all", draws=0)
    assert judged.overall.precision.value == pytest.approx(judged.overall.chance, abs=0.03)
    assert judged.overall.chance == pytest.approx(199 / 398)
    with pytest.raises(ValueError, match="official type"):
        judge_retrieval(lesions[:0], np.empty((0, 8)))
    with pytest.raises(ValueError, match="cannot have"):
        judge_retrieval(lesions, np.empty((0, 8)))


def test_the_interval_is_over_patients() -> None:
    """A patient with many lesions counts as one draw: against a bootstrap written out patient by patient."""
    values = np.array([0.0] * 10 + [1.0, 0.5, 0.5, 1.0])
    patients = ["a"] * 10 + ["b", "c", "d", "e"]
    interval = mean_by_patient(values, patients, draws=4000)
    assert interval.value == pytest.approx(values.mean())
    generator = np.random.default_rng(9)
    members = [np.flatnonzero(np.array(patients) == name) for name in "abcde"]
    means = [values[np.concatenate([members[i] for i in generator.integers(0, 5, 5)])].mean() for _ in range(4000)]
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.05)


def test_timing_says_what_was_searched() -> None:
    measured = time_search(5000, 16, 0, queries=3)
    assert (measured.rows, measured.features, measured.megabytes) == (5000, 16, 0.32)
    assert 0 < measured.seconds <= measured.slowest < 5


# --- words ---------------------------------------------------------------------------------------------------------


def test_words_of_a_lesion_are_meanings_not_codes() -> None:
    lesion = Lesion(
        lesion_id="1",
        bookmark_ids=(),
        source="csv",
        text="Target 1",
        site="10200004^SCT^Liver",
        finding_code="108369006^SCT^Neoplasm",
        laterality="Left",
    )
    assert words(lesion) == "Target 1 Liver Neoplasm Left"
    assert words(Lesion(lesion_id="2", bookmark_ids=(), source="csv")) == ""
    assert [meaning(stated) for stated in ("T-62000^SRT^", "a^b", "a^b^c^d", None)] == ["T-62000", "a^b", "c^d", ""]


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("Metastases", "metastasis"),
        ("masses", "mass"),
        ("biopsies", "biopsy"),
        ("lesions", "lesion"),
        ("diseases", "disease"),
        ("abscesses", "abscess"),
        ("Läsionen", "lasionen"),
    ],
)
def test_plurals_are_singulars(plural: str, singular: str) -> None:
    assert normalise(plural) == normalise(singular)


def test_other_words_stay_apart() -> None:
    apart = ["pelvis", "thrombus", "gas", "mass", "renal", "adrenal", "hilus", "hila"]
    assert len({normalise(word) for word in apart}) == len(apart)
    assert normalise("pelvis gas thrombus mass") == "pelvis gas thrombus mass"


def test_text_ranks_whole_words_and_their_order() -> None:
    documents = [
        "adrenal nodule left",
        "renal cyst",
        "liver lesions, segment 7",
        "lesion",
        "",
        "lesion of the liver",
        "lung lesion",
    ]
    renal = text_similarity(documents, "Renal")
    assert np.flatnonzero(renal).tolist() == [1]
    liver = text_similarity(documents, "liver lesion")
    assert best(liver, 7)[0] == 2
    assert set(np.flatnonzero(liver)) == {2, 3, 5, 6}
    assert liver[5] > liver[6]  # "lesion" is commoner than "liver"
    assert text_similarity(documents, "lung lesions")[6] == pytest.approx(1, abs=1e-6)
    assert text_similarity(documents, "segment 7")[2] > 0
    assert not text_similarity(documents, "spleen").any()
    with pytest.raises(ValueError, match="no document"):
        text_similarity(["", " -- "], "liver")
