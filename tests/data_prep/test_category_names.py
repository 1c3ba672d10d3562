"""``categories.yaml``: read, refused, kept where it was edited, and honoured by the datalist and COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from data_prep.archive.png import write_hu
from data_prep.categorize.pipeline import MODEL_FILE, _write_categories
from data_prep.category_names import (
    NAMES_FILE,
    PROPOSED_FILE,
    fingerprint,
    name_problem,
    read_names,
    settle_names,
    unique,
    write_names,
)
from data_prep.cli import app
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion, read_lesions, write_lesions
from data_prep.writers.select import read_categories

REASONS = ["seen in 9 of 10", "said by 4 of 5"]


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# --- the file ------------------------------------------------------------------------------------------------------


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / NAMES_FILE
    write_names(path, ["lung", "Niere (rechts)"], "abc", REASONS)
    found = read_names(path)
    assert found.names == {0: "lung", 1: "Niere (rechts)"}
    assert (found.categorizer, found.edited) == ("abc", False)
    assert yaml.safe_load(path.read_text())[0] == "lung"  # any YAML program can read it
    path.write_text(path.read_text().replace('"lung"', "pulmonary nodules"))
    assert read_names(path).names[0] == "pulmonary nodules"
    assert read_names(path).edited


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.text(max_size=70), max_size=4))
def test_what_is_a_name_survives_the_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    names = unique(text for text in texts if name_problem(text) is None and len(text) < 50)
    path = tmp_path_factory.mktemp("names") / NAMES_FILE
    write_names(path, names, "abc", texts[: len(names)])  # whatever stands in a reason
    assert list(read_names(path).names.values()) == names
    assert not read_names(path).edited


@pytest.mark.parametrize(
    "name",
    [
        *("$import os", "@network", "%train.yaml::x", "a $b", "x@y", "5 %", "#1"),
        *("<script>", 'a"b', "a,b", "a;b", "a\\b", "lu\nng", "lu\x00ng", "lung\u202egnul", "\u200blung"),
        *("", "   ", " lung", "lung ", "-lung", "x" * 61, None, ["lung"], True, 12, 0.5),
    ],
)
def test_hostile_and_useless_names_are_refused(tmp_path: Path, name: object) -> None:
    assert name_problem(name) is not None
    path = put(tmp_path / NAMES_FILE, yaml.safe_dump({0: "lung", 1: name}))
    with pytest.raises(DataPrepError, match="name of category 1") as caught:
        read_names(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lung", "left lung 2", "肺", "Nœud (5-6 mm)", "T1/T2", "फेफड़ा", "3 mm"])
def test_good_names(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0: lung\n1: Lung\n", "0 and 1 have the same name"),
        ("0: lung\n0: liver\n", "line 2: 0 is there twice"),
        ("-1: lung\n", "'-1' is not the number"),
        ("1.5: lung\n", "'1.5' is not the number"),
        ("yes: lung\n", "'True' is not the number"),
        ("liver: lung\n", "'liver' is not the number"),
        ("99999999999: lung\n", "is not the number"),
        ("1: no\n", "is False, which YAML does not take for a word"),
        ("1:\n", "name of category 1 is empty"),
        ("- lung\n", "not a list of names"),
        ("lung", "not a list of names"),
        ("", "not a list of names"),
        ("0: 'lung\n", "line"),
        ("0: !!python/object/apply:os.system ['echo']\n", "line 1"),
        ("[a]: lung\n", "not a list of names"),
        ("0: &a [*a]\n", "is not a word"),
        ("\x07: 1", "not a list of names"),
        ("[" * 3000, "not a list of names"),
    ],
)
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = put(tmp_path / NAMES_FILE, text)
    with pytest.raises(DataPrepError, match=message) as caught:
        read_names(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / NAMES_FILE
    with pytest.raises(DataPrepError, match="cannot be read"):
        read_names(path)
    path.write_bytes(b"0: \xff\xfe")
    with pytest.raises(DataPrepError, match="not a list of names"):
        read_names(path)
    path.write_bytes(b"#" * 4_000_001)
    with pytest.raises(DataPrepError, match="too large"):
        read_names(path)


def test_unique() -> None:
    assert unique(["lung", "Lung", "lung 2", "lung", "liver"]) == ["lung", "Lung 2", "lung 2 2", "lung 3", "liver"]
    assert unique(["lung"], taken=["LUNG"]) == ["lung 2"]


# --- kept or written -----------------------------------------------------------------------------------------------


def settle(folder: Path, names: list[str], categorizer: str, model: Path | None = None) -> tuple[tuple[str, ...], bool]:
    found, message = settle_names(folder, names, ["why"] * len(names), categorizer, model=model)
    assert (message is not None) == (folder / PROPOSED_FILE).exists()
    return found, message is not None


def test_an_untouched_file_follows_the_proposal(tmp_path: Path) -> None:
    assert settle(tmp_path, ["lung", "liver"], "a") == (("lung", "liver"), False)
    assert settle(tmp_path, ["lung", "liver", "bone"], "b") == (("lung", "liver", "bone"), False)
    assert read_names(tmp_path / NAMES_FILE).names == {0: "lung", 1: "liver", 2: "bone"}
    assert read_names(tmp_path / NAMES_FILE).categorizer == "b"


def test_an_edited_file_is_kept(tmp_path: Path) -> None:
    settle(tmp_path, ["lung", "liver"], "a")
    path = tmp_path / NAMES_FILE
    edited = put(path, path.read_text().replace('"liver"', "spleen")).read_bytes()
    assert settle(tmp_path, ["lung", "liver"], "a") == (("lung", "spleen"), False)
    assert path.read_bytes() == edited
    # Another number of categories, or as many others: the proposal lies beside it.
    for names, mark in ((["x", "y", "z"], "b"), (["x", "y"], "b")):
        assert settle(tmp_path, names, mark) == (tuple(names), True)
        assert path.read_bytes() == edited
        assert list(read_names(tmp_path / PROPOSED_FILE).names.values()) == names
    # The proposal, renamed as the message says, is taken; the old one is gone.
    (tmp_path / PROPOSED_FILE).replace(path)
    assert settle(tmp_path, ["x", "y"], "b") == (("x", "y"), False)


def test_a_plain_file_of_ones_own(tmp_path: Path) -> None:
    path = put(tmp_path / NAMES_FILE, "1: liver\n")
    assert settle(tmp_path, ["lung", "bone"], "a") == (("lung", "liver"), False)
    assert settle(tmp_path, ["liver", "bone"], "a") == (("liver 2", "liver"), False)
    assert settle(tmp_path, ["lung"], "a") == (("lung",), True)
    assert path.read_text() == "1: liver\n"


def test_names_of_the_model_come_along(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    settle(old, ["lung", "liver"], "a")
    path = old / NAMES_FILE
    put(path, path.read_text().replace('"liver"', "spleen"))
    assert settle(new, ["x", "y"], "a", old / "model") == (("lung", "spleen"), False)
    assert settle(new, ["x", "y"], "b", old / "model") == (("x", "y"), False)  # another model lies there by now


# --- honoured ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two lesions in two categories of three, as `categorize` writes them."""
    images, lesions = tmp_path / "images", []
    for number in range(2):
        (images / f"S{number}").mkdir(parents=True)
        write_hu(images / f"S{number}/001.png", np.zeros((64, 64)))
        lesions.append(
            Lesion(
                lesion_id=f"l{number}",
                bookmark_ids=(),
                source="csv",
                image=f"S{number}/001.png",
                patient_id=f"p{number}",
                rows=64,
                columns=64,
                x0=10.0,
                y0=10.0,
                x1=30.0,
                y1=30.0,
                split="train",
            )
        )
    write_lesions(lesions, tmp_path / "lesions.parquet")
    columns = {"lesion_id": ["l0", "l1"], "category": [0, 1], "category_name": ["category-0", "category-1"]}
    table = pa.table(columns).replace_schema_metadata({"categorizer": "abc", "categories": "3"})
    pq.write_table(table, tmp_path / "categories.parquet")
    return tmp_path


def command(folder: Path, name: str, out: str) -> tuple[int, str]:
    arguments = [name, str(folder / "lesions.parquet"), "--images", str(folder / "images"), "--out", str(folder / out)]
    result = CliRunner().invoke(app, [*arguments, "--categories", str(folder / "categories.parquet")])
    return result.exit_code, str(result.exception)


def test_datalist_and_coco_take_the_edited_names(folder: Path) -> None:
    write_names(folder / NAMES_FILE, ["lung", "liver", "bone"], "abc", ["why"] * 3)
    path = folder / NAMES_FILE
    put(path, path.read_text().replace('"liver"', "Leber links"))
    assert command(folder, "datalist", "d.json")[0] == 0
    value = json.loads((folder / "d.json").read_text())
    assert value["categories"] == ["lung", "Leber links", "bone"]
    labels = {item["lesion_id"][0]: item["label"] for part in ("training", "tuning") for item in value[part]}
    assert labels == {"l0": [0], "l1": [1]}
    assert command(folder, "coco", "c.json")[0] == 0
    coco = json.loads((folder / "c.json").read_text())
    assert [category["name"] for category in coco["categories"]] == ["lung", "Leber links", "bone"]


def test_without_a_names_file_the_table_has_them(folder: Path) -> None:
    assert read_categories(folder / "categories.parquet").names == ("category-0", "category-1", "category-2")
    put(folder / NAMES_FILE, "1: liver\n")
    assert read_categories(folder / "categories.parquet").names == ("category-0", "liver", "category-2")
    put(folder / NAMES_FILE, "1: category-0\n")
    assert read_categories(folder / "categories.parquet").names == ("category-0 2", "category-0", "category-2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3: liver\n", "there is no category 3; they are 0 to 2"),
        ('0: lung\ncategorizer: "def"\n', "another run's categories"),
        ('0: "$import os"\n', "name of category 0"),
        ("0: lung\n1: lung\n", "same name"),
    ],
)
def test_bad_names_stop_the_datalist(folder: Path, text: str, message: str) -> None:
    put(folder / NAMES_FILE, text)
    code, said = command(folder, "datalist", "d.json")
    assert code != 0
    assert message in said
    assert not (folder / "d.json").exists()


def test_hostile_names_and_numbers_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "categories.parquet"
    for label, name, message in ((0, "$x", "name of category 0"), (2_000_000_000, "x", "label 2000000000")):
        pq.write_table(pa.table({"lesion_id": ["a"], "category": [label], "category_name": [name]}), path)
        with pytest.raises(DataPrepError, match=message):
            read_categories(path)
    table = pa.table({"lesion_id": ["a"], "category": [0], "category_name": ["x"]})
    for stated in ("1" * 5000, "999999999", "-1", "x", "0"):
        pq.write_table(table.replace_schema_metadata({"categories": stated}), path)
        assert read_categories(path).names == ("x",)


def test_categorize_says_whose_names_they_are(folder: Path) -> None:
    """What `categorize` writes into the table is what the names file is compared with."""
    put(folder / MODEL_FILE, "a categoriser")
    lesions = read_lesions(folder / "lesions.parquet")
    _write_categories(lesions, [0, 1], [0.0, 0.0], ["category-0", "category-1", "category-2"], folder)
    settle_names(folder, ["lung", "liver", "bone"], ["why"] * 3, fingerprint(folder / MODEL_FILE))
    assert read_categories(folder / "categories.parquet").names == ("lung", "liver", "bone")
    put(folder / MODEL_FILE, "another")
    settle_names(folder, ["lung", "liver", "bone"], ["why"] * 3, fingerprint(folder / MODEL_FILE))
    with pytest.raises(DataPrepError, match="another run's categories"):
        read_categories(folder / "categories.parquet")


def test_fingerprint(tmp_path: Path) -> None:
    one, other = put(tmp_path / "a", "1"), put(tmp_path / "b", "2")
    assert fingerprint(one) != fingerprint(other)
    assert len(fingerprint(one)) == 16
