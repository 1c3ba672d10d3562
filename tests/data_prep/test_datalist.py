"""``datalist.json``: what is in it, what is left out, and that nothing leaks between splits."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.archive.png import read_hu, write_hu
from data_prep.errors import DataPrepError
from data_prep.harvest import harvest
from data_prep.lesion import Lesion, read_lesions
from data_prep.schemas import validate, validator
from data_prep.writers.datalist import SECTIONS, DatalistSummary, write_datalist
from data_prep.writers.select import Categories, read_categories

BOX = {"x0": 10.0, "y0": 20.0, "x1": 30.0, "y1": 50.0}


def lesion(name: str, **fields: Any) -> Lesion:
    values: dict[str, Any] = {
        "bookmark_ids": (name,),
        "source": "csv",
        "image": "A/005.png",
        "patient_id": "P1",
        "split": "train",
        "slice_index": 5,
        "spacing_x_mm": 0.5,
        "spacing_y_mm": 0.6,
        "spacing_z_mm": -2.0,
        "recist_px": (15.5, 25.5, 24.5, 44.5, 15.0, 35.0, 25.0, 35.0),
        "long_diameter_mm": 10.0,
        **BOX,
    }
    return Lesion(lesion_id=name, **(values | fields))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two series of 11 slices of 100 columns and 80 rows; B lacks slice 6."""
    for series in "AB":
        for number in range(11):
            if (series, number) != ("B", 6):
                write_hu(tmp_path / "images" / series / f"{number:03d}.png", np.zeros((80, 100)))
    return tmp_path / "images"


def write(lesions: list[Lesion], images: Path, **options: Any) -> tuple[dict[str, Any], DatalistSummary]:
    out = images.parent / "datalist.json"
    summary = write_datalist(lesions, images, out, **options)
    value = json.loads(out.read_text())
    validate(value, "datalist")
    return value, summary


def test_an_item(images: Path) -> None:
    value, summary = write([lesion("a"), lesion("b", coarse_type=4, recist_px=(1.0, 2.0, 3.0, 4.0))], images)
    assert value["schema_version"] == 1
    assert value["kind"] == "bookmarks"
    assert value["categories"] == ["lesion"]
    (item,) = value["training"]
    assert item == {
        "image": ["A/004.png", "A/005.png", "A/006.png"],
        "box": [[10, 20, 30, 50]] * 2,
        "label": [0, 0],
        "spacing_mm": [0.5, 0.6, 2.0],
        "patient_id": "P1",
        "lesion_id": ["a", "b"],
        "recist_px": [[15.5, 25.5, 24.5, 44.5, 15, 35, 25, 35], None],
        "coarse_type": [None, 4],
        "long_diameter_mm": [10, 10],
        "short_diameter_mm": [None, None],
        "image_size": [100, 80],
        "slice_index": 5,
        "numbers_lead_to": "head",
    }
    assert summary.sections["training"] == (1, 2, 1)


@pytest.mark.parametrize(
    ("source", "spacing_z_mm", "leads_to"),
    [("deeplesion-csv", 5.0, "feet"), ("deeplesion-csv", -5.0, "head"), ("deeplesion-csv", None, "head"),
     ("csv", 5.0, "head")],
)  # fmt: skip
def test_where_the_slice_numbers_lead(images: Path, source: str, spacing_z_mm: float | None, leads_to: str) -> None:
    value, _ = write([lesion("a", source=source, spacing_z_mm=spacing_z_mm)], images)
    assert value["training"][0]["numbers_lead_to"] == leads_to


def test_boxes_are_clipped_to_the_slice(images: Path) -> None:
    value, summary = write([lesion("a", x0=-3.0, y1=90.0), lesion("b", x0=200.0, x1=220.0)], images)
    assert value["training"][0]["box"] == [[0, 20, 30, 80]]
    assert summary.clipped == 1
    assert summary.left_out == {"the box lies outside the image": 1}


def test_what_is_left_out_is_counted(images: Path) -> None:
    location = dict.fromkeys(BOX)
    lesions = [
        lesion("good"),
        lesion("location", **location),
        lesion("noisy", possibly_noisy=True),
        lesion("rejected", review="rejected"),
        lesion("no image", image=None),
        lesion("gone", image="C/001.png"),
        lesion("outside", image="../images/A/005.png"),
        lesion("found", source="detector"),
        lesion("found and accepted", source="detector", review="accepted"),
        lesion("found and rejected", source="detector", review="rejected"),
    ]
    value, summary = write(lesions, images)
    assert value["training"][0]["lesion_id"] == ["found and accepted", "good"]
    assert summary.left_out == {
        "a location without a box": 1,
        "possibly noisy": 1,
        "rejected in review": 2,
        "no image": 1,
        "no image in the folder": 2,
        "detection that nobody accepted": 1,
    }
    assert any("possibly noisy" in line for line in summary.lines())


def test_splits_and_tuning_share_no_patient(images: Path) -> None:
    lesions = []
    for i in range(40):
        name = f"A/{i % 11:03d}.png"
        folder = images / f"P{i}"
        folder.symlink_to(images / "A")
        split = ("train", "train", "train", "validation", "test")[i % 5]
        lesions.append(lesion(f"l{i}", image=name.replace("A", f"P{i}"), patient_id=f"P{i}", split=split))
    value, _ = write(lesions, images)
    patients = {section: {item["patient_id"] for item in value[section]} for section in SECTIONS}
    assert sum(map(len, patients.values())) == 40
    assert len(set().union(*patients.values())) == 40
    assert {len(patients["validation"]), len(patients["test"])} == {8}
    assert 0 < len(patients["tuning"]) < 12
    again, _ = write(lesions[::-1], images)
    assert again == value


@pytest.mark.parametrize(
    ("slices", "distance", "expected"),
    [
        (1, None, ["005"]),
        (3, None, ["004", "005", "005"]),  # 006 is missing in B
        (5, None, ["003", "004", "005", "005", "007"]),
        (3, 4.0, ["003", "005", "007"]),  # |-2 mm| between slices
        (3, 2.5, ["003", "005", "007"]),  # at least
        (3, 0.1, ["004", "005", "005"]),
    ],
)
def test_neighbours(images: Path, slices: int, distance: float | None, expected: list[str]) -> None:
    value, _ = write([lesion("a", image="B/005.png")], images, slices=slices, slice_distance_mm=distance)
    assert value["training"][0]["image"] == [f"B/{number}.png" for number in expected]


def test_unknown_spacing_is_null(images: Path) -> None:
    value, _ = write([lesion("a", spacing_x_mm=None, spacing_z_mm=float("nan"))], images, slice_distance_mm=4.0)
    assert value["training"][0]["spacing_mm"] == [None, 0.6, None]
    assert value["training"][0]["image"] == ["A/004.png", "A/005.png", "A/006.png"]


def write_categories(path: Path, rows: list[tuple[str, int | None, str]]) -> Path:
    ids, labels, names = zip(*rows, strict=True)
    table = {"lesion_id": ids, "category": labels, "category_name": names, "distance": [0.0] * len(rows)}
    pq.write_table(pa.table({key: list(values) for key, values in table.items()}), path)
    return path


def test_categories(images: Path, tmp_path: Path) -> None:
    path = write_categories(tmp_path / "c.parquet", [("a", 2, "liver"), ("b", 0, "lung")])
    categories = read_categories(path)
    value, summary = write([lesion("a"), lesion("b"), lesion("c")], images, categories=categories)
    assert value["categories"] == ["lung", "category-1", "liver"]
    assert value["training"][0]["label"] == [2, 0]
    assert summary.left_out == {"no category": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", -1, "x")], "label -1"),
        ([("a", None, "x")], "label None"),
        ([("a", 0, "x"), ("b", 0, "y")], "two names"),
    ],
)
def test_bad_categories(tmp_path: Path, rows: list[tuple[str, int | None, str]], message: str) -> None:
    with pytest.raises(DataPrepError, match=message):
        read_categories(write_categories(tmp_path / "c.parquet", rows))


def test_nothing_to_use(images: Path, tmp_path: Path) -> None:
    for lesions in ([], [lesion("a", image=None)]):
        with pytest.raises(DataPrepError, match="no lesion can be used"):
            write_datalist(lesions, images, tmp_path / "d.json")
    with pytest.raises(DataPrepError, match="no such images folder"):
        write_datalist([lesion("a")], tmp_path / "none", tmp_path / "d.json")
    with pytest.raises(DataPrepError, match="odd"):
        write_datalist([lesion("a")], images, tmp_path / "d.json", slices=2)
    with pytest.raises(DataPrepError, match="more than 0 mm"):
        write_datalist([lesion("a")], images, tmp_path / "d.json", slice_distance_mm=0)
    assert not (tmp_path / "d.json").exists()


def test_a_slice_that_is_no_png(images: Path, tmp_path: Path) -> None:
    (images / "A" / "005.png").write_bytes(b"not a picture")
    with pytest.raises(DataPrepError, match=r"A/005\.png: not a PNG"):
        write_datalist([lesion("a")], images, tmp_path / "d.json")


def test_one_slice_of_two_patients_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match="several patients"):
        write_datalist([lesion("a"), lesion("b", patient_id="P2")], images, tmp_path / "d.json")


def test_the_schema_refuses_what_trainers_would_choke_on(images: Path) -> None:
    value, _ = write([lesion("a")], images)
    for change in (
        lambda v: v["training"][0].update(label=[-1]),
        lambda v: v["training"][0].update(box=[[1, 2, 3]]),
        lambda v: v["training"][0].update(spacing_mm=[0.5, 0.5, -1]),
        lambda v: v.update(kind="guess"),
        lambda v: v.update(schema_version=2),
        lambda v: v.pop("tuning"),
        lambda v: v.update(categories=[]),
    ):
        broken = copy.deepcopy(value)
        change(broken)
        with pytest.raises(DataPrepError, match="not a datalist file"):
            validate(broken, "datalist")
    truth = copy.deepcopy(value) | {"kind": "truth"}
    validate(truth, "datalist")


def test_schemas_are_schemas() -> None:
    assert validator("datalist")
    assert validator("detections")


def is_of_use(row: list[str], images: Path) -> bool:
    x1, y1, x2, y2 = map(float, row[6].split(","))
    columns, rows = map(int, row[13].split(","))
    folder, _, number = row[0].rpartition("_")
    return min(x1, y1) < 1 or x2 > columns or y2 > rows or row[10] == "1" or (images / folder / number).is_file()


def test_real_slices(shared_data: Path, tmp_path: Path) -> None:
    release = shared_data / "deeplesion"
    images = release / "soft_tissue" / "Images_png"
    with (release / "DL_info.csv").open(newline="") as file:  # rows with a slice, or whose box sticks out, or noisy
        rows = [row for row in csv.reader(file) if row[0] == "File_name" or is_of_use(row, images)]
    with (tmp_path / "DL_info.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    harvest([tmp_path / "DL_info.csv"], tmp_path, images=images, progress=False)
    lesions = read_lesions(tmp_path / "lesions.parquet")
    summary = write_datalist(lesions, images, tmp_path / "datalist.json")
    value = json.loads((tmp_path / "datalist.json").read_text())
    assert summary.sections["validation"][:2] == (298, 303)
    assert summary.sections["training"][0] + summary.sections["tuning"][0] == 1_821
    assert summary.sections["test"] == (0, 0, 0)
    assert sum(summary.left_out.values()) + sum(lesions for _, lesions, _ in summary.sections.values()) == len(lesions)
    assert summary.left_out["possibly noisy"] == 31
    sizes = {item["image"][0]: item["image_size"] for section in SECTIONS for item in value[section]}
    assert {tuple(size) for size in sizes.values()} == {(512, 512), (768, 768), (1024, 1024)}
    some = value["validation"][0]
    assert read_hu(images / some["image"][1]).shape == tuple(some["image_size"][::-1])
    # All 8 official boxes that stick out are clipped, given their slices.
    out = [b for b in lesions if b.box_px and (min(b.box_px) < 0 or b.x1 > b.columns or b.y1 > b.rows)]  # type: ignore[operator]
    assert len(out) == 8
    made = tmp_path / "made"
    for one in out:
        name = f"{one.series_uid}/{one.slice_index:03d}.png"
        write_hu(made / name, np.zeros((one.rows or 0, one.columns or 0)))
    whole = [dataclasses.replace(b, image=f"{b.series_uid}/{b.slice_index:03d}.png", possibly_noisy=False) for b in out]
    clipped = write_datalist(whole, made, tmp_path / "clipped.json")
    assert clipped.clipped == 8
    for section in SECTIONS:
        for item in json.loads((tmp_path / "clipped.json").read_text())[section]:
            boxes, (columns, rows) = np.array(item["box"]), item["image_size"]
            assert (boxes >= 0).all()
            assert (boxes[:, 2] <= columns).all()
            assert (boxes[:, 3] <= rows).all()


def test_categories_are_made_by_hand_too() -> None:
    assert Categories().names == ("lesion",)
