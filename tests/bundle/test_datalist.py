"""What the bundle refuses to train on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts.datalist import load, section

ITEM = {"image": ["a/1.png"], "box": [[1.0, 2.0, 30.0, 40.0]], "label": [0], "patient_id": "1"}
GOOD = {
    "schema_version": 1,
    "training": [ITEM],
    "tuning": [{**ITEM, "patient_id": "2"}],
    "validation": [],
    "test": [],
    "categories": ["lesion"],
}


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps(content))
    return path


def test_a_good_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    path = write(tmp_path, GOOD)
    assert load(path).categories == ["lesion"]
    items = section(path, "training", dataset_dir=tmp_path, training=True)
    assert items[0]["box"] == [[1.0, 2.0, 30.0, 40.0]]
    assert items[0]["meta"]["patient_id"] == "1"


def put(keys: list[Any], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        target: Any = content
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(["schema_version"], 2), "schema_version"),
        (put(["training", 0, "label"], [-1]), "label -1"),
        (put(["training", 0, "label"], [1]), "label 1"),
        (put(["training", 0, "label"], [True]), "label True"),
        (put(["training", 0, "label"], []), "same length"),
        (put(["training", 0, "box"], [[5, 5, 5, 9]]), "empty"),
        (put(["training", 0, "box"], [[0, 0, float("nan"), 9]]), "finite"),
        (put(["training", 0, "image"], ["../../etc/passwd"]), "leaves"),
        (put(["training", 0, "image"], ["/etc/passwd"]), "leaves"),
        (put(["training", 0, "image"], ["a", "b"]), "odd"),
        (put(["tuning", 0, "patient_id"], "1"), "patient"),
        (put(["training", 0, "lesion_id"], ["a", "b"]), "lesion_id"),
        (put(["training", 0, "recist_px"], [[1, 2, 3]]), "recist_px"),
        (put(["training", 0, "recist_px"], [[1, 2, 3, 4, 5, 6, 7, float("inf")]]), "recist_px"),
        (put(["categories"], []), "categories"),
        (put(["training"], [ITEM, {**ITEM, "box": [[5.0, 6.0, 7.0, 8.0]]}]), r"a/1\.png is listed twice"),
        (put(["training", 0, "box"], [[0, 0, 10**400, 9]]), "finite"),
        (put(["training", 0, "numbers_lead_to"], "up"), "head or feet"),
        (put(["training"], "x"), "list"),
    ],
)
def test_a_bad_one_names_file_and_place(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    content = copy.deepcopy(GOOD)
    change(content)
    with pytest.raises(ValueError, match=message) as error:
        load(write(tmp_path, content))
    assert "datalist.json" in str(error.value)


def test_empty_truth_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        load(write(tmp_path, {**GOOD, "training": [], "tuning": []}))
    with pytest.raises(ValueError, match="full truth"):
        section(write(tmp_path, {**GOOD, "kind": "truth"}), "training", dataset_dir=tmp_path, training=True)
    with pytest.raises(ValueError, match="section 'validation' is empty"):
        section(write(tmp_path, GOOD), "validation", dataset_dir=tmp_path)
    unmarked = {**ITEM, "patient_id": "2", "box": [], "label": []}
    with pytest.raises(ValueError, match="no slice of 'tuning' has a marked lesion"):
        section(write(tmp_path, {**GOOD, "tuning": [unmarked]}), "tuning", dataset_dir=tmp_path)
    with pytest.raises(ValueError, match=r"1\.png"):
        section(write(tmp_path, GOOD), "training", dataset_dir=tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        load(tmp_path / "broken.json")
