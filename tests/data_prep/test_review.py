"""Accepting and rejecting lesions."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import DataPrepError
from data_prep.harvest import harvest
from data_prep.lesion import Lesion, read_lesions, write_lesions
from data_prep.review import Reviews, read_ids, review


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "lesions.parquet"
    write_lesions([Lesion(lesion_id=name, bookmark_ids=(name,), source="detector") for name in "abcd"], path)
    return path


def states(path: Path) -> dict[str, str]:
    return {lesion.lesion_id: lesion.review for lesion in read_lesions(path)}


def test_states_are_set_and_may_change(table: Path) -> None:
    assert review(table, accept=["a", "b"], reject=["c"]) == (2, 1)
    assert states(table) == {"a": "accepted", "b": "accepted", "c": "rejected", "d": "unreviewed"}
    assert review(table, reject=["b"]) == (1, 2)
    assert states(table) == {"a": "accepted", "b": "rejected", "c": "rejected", "d": "unreviewed"}


def test_unknown_ids_change_nothing(table: Path) -> None:
    before = table.read_bytes()
    with pytest.raises(DataPrepError, match=r"holds no lesion x, y$"):
        review(table, accept=["a", "y"], reject=["x"])
    with pytest.raises(DataPrepError, match=r"at once: a$"):
        review(table, accept=["a", "b"], reject=["a"])
    assert table.read_bytes() == before


def test_another_harvest_keeps_the_states_of_what_is_still_there(tmp_path: Path) -> None:
    source, out = tmp_path / "marks.csv", tmp_path / "out"
    rows = [f"ellipse,{x} 10 {x + 20} 10 {x + 10} 5 {x + 10} 15,s/{x:03d}.png,p{x}" for x in (10, 40, 70)]
    source.write_text("\n".join(["form,points_px,image,patient_id", *rows, ""]), encoding="utf-8")
    first = harvest([source], out, progress=False)
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o600}  # they name patients
    assert (first.lesions, first.reviews_kept, first.reviews_gone) == (3, 0, 0)
    ids = {lesion.image: lesion.lesion_id for lesion in read_lesions(out / "lesions.parquet")}
    review(out / "lesions.parquet", accept=[ids["s/010.png"]], reject=[ids["s/070.png"]])
    source.write_text("\n".join(["form,points_px,image,patient_id", *rows[:2], ""]), encoding="utf-8")
    second = harvest([source], out, progress=False)
    assert (second.lesions, second.reviews_kept, second.reviews_gone) == (2, 1, 1)
    assert any("1 review states" in line and "1 were of lesions" in line for line in second.lines())
    assert states(out / "lesions.parquet") == {ids["s/010.png"]: "accepted", ids["s/040.png"]: "unreviewed"}


def test_a_mark_that_joins_a_reviewed_lesion_does_not_undo_the_review(tmp_path: Path) -> None:
    source, out = tmp_path / "marks.csv", tmp_path / "out"
    head = "form,points_px,image,patient_id,text"
    rows = [f"ellipse,{x} 10 {x + 20} 10 {x + 10} 5 {x + 10} 15,s/000.png,p," for x in (10, 100)]
    source.write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    harvest([source], out, progress=False)
    first, second = (lesion.lesion_id for lesion in read_lesions(out / "lesions.parquet"))
    review(out / "lesions.parquet", accept=[first], reject=[second])
    texts = [f"text,{x} 10,s/000.png,p,seen again" for x in (20, 110)]
    source.write_text("\n".join([head, *rows, *texts, ""]), encoding="utf-8")
    summary = harvest([source], out, progress=False)
    assert (summary.lesions, summary.reviews_kept, summary.reviews_gone) == (2, 2, 0)
    found = read_lesions(out / "lesions.parquet")
    assert {lesion.lesion_id for lesion in found}.isdisjoint({first, second})
    assert sorted(lesion.review for lesion in found) == ["accepted", "rejected"]


def test_of_two_reviewed_lesions_that_become_one_the_rejection_holds(tmp_path: Path) -> None:
    path = tmp_path / "lesions.parquet"
    write_lesions(
        [Lesion(lesion_id=name, bookmark_ids=(name,), source="csv", review=state)
         for name, state in (("a", "accepted"), ("b", "rejected"), ("c", "accepted"))],
        path,
    )  # fmt: skip
    reviews = Reviews(path)
    assert (reviews.of(["a", "b", "x"]), reviews.of(["x"]), len(reviews), reviews.gone) == ("rejected", None, 3, 1)


def test_lists_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("\ufeffa\n\n  b  # seen on the next scan\n# c\r\nd", encoding="utf-8")
    assert read_ids(path) == ["a", "b", "d"]
    with pytest.raises(DataPrepError, match="cannot be read"):
        read_ids(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataPrepError, match="cannot be read"):
        read_ids(path)
