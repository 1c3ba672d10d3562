"""Findings without a mark: listed, shown in the gallery, reviewed, and back in the data list."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scripts.checkpoint import read, save, save_model
from scripts.contract import make
from scripts.evaluation import write_json
from scripts.find_unmarked import by_series, findings_of
from scripts.network import LesionNet
from tiny import SIZE, here, make_hospital
from torchvision.ops import box_iou

from data_prep.harvest import harvest
from data_prep.lesion import Lesion, read_lesions
from data_prep.readers import detections_json
from data_prep.review import review
from data_prep.writers.datalist import write_datalist
from data_prep.writers.deeplesion import write_dl_info

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def found(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a random detector finds."""
    torch.manual_seed(0)
    output = tmp_path_factory.mktemp("found")
    anchors = [[16.0], [24.0], [32.0], [48.0]]
    network = LesionNet(num_classes=2, num_anchors=1, pretrained=False, channels=32)
    contract = make(3, [[-175, 275]], SIZE)
    point = {"score": 0.0, "fp_per_image": "1"}
    save_model(output / "model.pt", network, contract, ["small", "large"], anchors, operating_point=point)
    words = {"datalist": hospital, "dataset_dir": hospital.parent, "output_dir": output, "workers": 0}
    here("train", "find_unmarked", device_name="cpu", amp=False, batch_size=4, **words)
    return output / "unmarked"


def test_no_finding_overlaps_a_mark_and_the_gallery_shows_each(hospital: Path, found: Path) -> None:
    content = json.loads((found / "detections.json").read_text())
    items = {item["image"][1]: item for item in json.loads(hospital.read_text())["training"]}
    findings = [finding for series in content["series"] for finding in series["findings"]]
    assert len(findings) > 50
    assert {finding["image"] for finding in findings} == set(items)
    for finding in findings:
        marks = torch.tensor(items[finding["image"]]["box"])
        assert box_iou(torch.tensor([finding["box_px"]]), marks).max() < 0.3
        assert finding["slice_index"] == items[finding["image"]]["slice_index"]
    page = (found / "gallery.html").read_text()
    assert sorted(re.findall(r'value="(\w+)"', page)) == sorted(finding["lesion_id"] for finding in findings)
    pictures = re.findall(r'src="(slices/\d+\.jpg)"', page)
    assert len(pictures) == len(items)
    assert all(cv2.imread(str(found / name)) is not None for name in pictures)
    assert not re.search(r"https?://", page)


def test_findings_are_looked_for_as_the_weights_were_chosen(hospital: Path, found: Path, tmp_path: Path) -> None:
    content = read(found.parent / "model.pt")
    save(tmp_path / "model.pt", content | {"flip_average": True, "scale_average": [1.5]})
    words = {"datalist": hospital, "dataset_dir": hospital.parent, "output_dir": tmp_path, "workers": 0}
    shown = {}
    for name, given in (
        ("stored", {}),
        ("given", {"flip_average": True, "scale_average": [1.5]}),
        ("flip alone", {"scale_average": []}),
        ("scale alone", {"flip_average": False}),
    ):
        here("train", "find_unmarked", device_name="cpu", amp=False, batch_size=4, **words, **given)
        series = json.loads((tmp_path / "unmarked" / "detections.json").read_text())["series"]
        shown[name] = [finding["score"] for one in series for finding in one["findings"]]
    assert shown["stored"] == shown["given"]
    assert len({tuple(scores) for scores in shown.values()}) == 3


def test_accepted_findings_train_with_the_marks_and_others_do_not(hospital: Path, found: Path, tmp_path: Path) -> None:
    images = hospital.parent
    before = {i["image"][1]: i for i in json.loads(hospital.read_text())["training"]}
    marks = []
    for name, item in before.items():
        x0, y0, x1, y1 = item["box"][0]
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        axes = (x0 + 5.5, y, x1 - 5.5, y, x, y0 + 5.5, x, y1 - 5.5)
        marks.append(
            Lesion(
                lesion_id=name, bookmark_ids=(name,), source="dicom-sr", image=name, patient_id=item["patient_id"],
                slice_index=item["slice_index"], rows=SIZE, columns=SIZE, spacing_x_mm=1.0, spacing_y_mm=1.0,
                spacing_z_mm=5.0, x0=x0, y0=y0, x1=x1, y1=y1, recist_px=axes, split="train",
                long_diameter_mm=x1 - x0 - 11, short_diameter_mm=y1 - y0 - 11,
            )
        )  # fmt: skip
    write_dl_info(marks, tmp_path / "DL_info.csv")
    sources = [tmp_path / "DL_info.csv", found / "detections.json"]
    summary = harvest(sources, tmp_path / "H", images=images, progress=False)
    table = tmp_path / "H" / "lesions.parquet"
    lesions = read_lesions(table)
    detected = {lesion.lesion_id: lesion for lesion in lesions if lesion.source == "detector"}
    written = [f for s in json.loads((found / "detections.json").read_text())["series"] for f in s["findings"]]
    assert summary.duplicates == 0
    assert set(detected) == {finding["lesion_id"] for finding in written}
    assert {(lesion.patient_id, lesion.split) for lesion in lesions} == {(f"{n:06d}", "train") for n in range(8)}
    assert all(detected[f["lesion_id"]].score == f["score"] for f in written)
    assert detected[written[0]["lesion_id"]].spacing_z_mm == 5.0

    chosen = [finding for finding in written if finding["image"] in ("000003_01_01/001.png", "000004_01_01/002.png")][
        ::9
    ]
    review(table, accept=[finding["lesion_id"] for finding in chosen])
    write_datalist(read_lesions(table), images, tmp_path / "datalist.json")
    after = json.loads((tmp_path / "datalist.json").read_text())
    for item in after["training"] + after["tuning"]:
        name = item["image"][1]
        accepted = [finding["box_px"] for finding in chosen if finding["image"] == name]
        expected = torch.tensor(sorted([*before[name]["box"], *accepted]))
        torch.testing.assert_close(torch.tensor(sorted(item["box"])), expected, rtol=0, atol=1e-3)
    assert sum(len(i["box"]) for i in after["training"] + after["tuning"]) == len(before) + len(chosen)


def test_findings_lie_where_their_slices_do() -> None:
    meta = {"spacing_mm": [0.5, 0.5, 5.0], "slice_index": 10}
    item = {"image_path": "s/010.png", "stored_box": [], "spatial_size": (64, 64),
            "box_px": np.array([[8.0, 8, 16, 16]]), "score": np.array([0.5]), "class": np.array([0])}  # fmt: skip
    for leads_to, z_mm in (("head", 50.0), ("feet", -50.0)):
        found = findings_of({**item, "meta": {**meta, "numbers_lead_to": leads_to}}, [0], ["lesion"])
        assert found["findings"][0]["centre_lps_mm"] == pytest.approx([5.75, 5.75, z_mm])


def test_slices_without_a_folder_or_number_keep_their_own_identity(tmp_path: Path) -> None:
    slices = []
    for image, index in (("a.png", 3), ("b.png", 3), ("S/c.png", None), ("S/d.png", None)):
        meta = {"slice_index": index, "spacing_mm": [0.5, 0.5, None]}
        box = np.array([[1.0, 2.0, 9.0, 8.0]])
        item = {"image_path": image, "meta": meta, "box_px": box, "score": np.array([0.5]), "class": np.array([0])}
        slices.append(findings_of(item | {"stored_box": [], "spatial_size": (32, 16)}, [0], ["lesion"]))
    write_json(tmp_path / "detections.json", {"schema_version": 1, "series": by_series(slices)})
    marks: list[Any] = list(detections_json.read(tmp_path / "detections.json"))
    assert [mark.image for mark in marks] == ["S/c.png", "S/d.png", "a.png", "b.png"]
    assert len({mark.bookmark_id for mark in marks}) == 4
    assert {(mark.columns, mark.rows, mark.spacing_y_mm, mark.spacing_z_mm) for mark in marks} == {(32, 16, 0.5, None)}
