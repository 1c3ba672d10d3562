"""The COCO file, judged by a COCO library that nobody here wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from data_prep import frames
from data_prep.archive.png import write_hu
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion
from data_prep.writers.coco import write_coco
from data_prep.writers.select import Categories


@pytest.fixture
def lesions(tmp_path: Path) -> list[Lesion]:
    found = []
    for i in range(6):
        image = f"S{i // 2}/{i:03d}.png"
        write_hu(tmp_path / "images" / image, np.zeros((80, 100)))
        found.append(
            Lesion(
                lesion_id=f"l{i}",
                bookmark_ids=(f"b{i}",),
                source="csv",
                image=image,
                patient_id=f"P{i // 2}",
                split=("train", "validation", "test")[i // 2],
                x0=10.0 + i,
                y0=20.25,
                x1=30.0 + i,
                y1=95.0 if i == 5 else 50.5,
                coarse_type=4,
            )
        )
    return found


def test_the_library_reads_our_boxes(lesions: list[Lesion], tmp_path: Path) -> None:
    categories = Categories(("a", "b"), {f"l{i}": i % 2 for i in range(6)})
    summary = write_coco(lesions, tmp_path / "images", tmp_path / "coco.json", categories=categories)
    assert (summary.images, summary.annotations) == (6, 6)
    coco = COCO(str(tmp_path / "coco.json"))
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == {1: "a", 2: "b"}
    by_id = {lesion.lesion_id: lesion for lesion in lesions}
    for annotation in coco.loadAnns(coco.getAnnIds()):
        lesion = by_id[annotation["lesion_id"]]
        (image,) = coco.loadImgs([annotation["image_id"]])
        assert image["file_name"] == lesion.image
        assert (image["width"], image["height"]) == (100, 80)
        x, y, width, height = annotation["bbox"]
        clipped = frames.clip_box(lesion.box_px or (), 100, 80)
        assert clipped is not None
        assert [x, y, x + width, y + height] == pytest.approx(clipped.tolist())
        assert annotation["area"] == pytest.approx(width * height)
        assert annotation["coarse_type"] == "liver"
        assert annotation["category_id"] == 1 + int(lesion.lesion_id[1:]) % 2


def test_our_own_boxes_score_one_and_shifted_ones_do_not(lesions: list[Lesion], tmp_path: Path) -> None:
    write_coco(lesions, tmp_path / "images", tmp_path / "coco.json")

    def average_precision(shift: float) -> float:
        truth = COCO(str(tmp_path / "coco.json"))
        found = [
            {
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "bbox": [a["bbox"][0] + shift, *a["bbox"][1:]],
                "score": 0.9,
            }
            for a in truth.loadAnns(truth.getAnnIds())
        ]
        judge = COCOeval_faster(truth, truth.loadRes(found), "bbox", print_function=lambda *_: None)
        judge.run()
        return float(judge.stats[0])

    assert average_precision(0.0) == pytest.approx(1.0)
    assert average_precision(10.0) < 0.1


def test_one_split(lesions: list[Lesion], tmp_path: Path) -> None:
    write_coco(lesions, tmp_path / "images", tmp_path / "coco.json", split="validation")
    images = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["S1/002.png", "S1/003.png"]
    assert {image["split"] for image in images} == {"validation"}


def test_nothing_to_use(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataPrepError, match="no lesion can be used"):
        write_coco([], tmp_path / "images", tmp_path / "coco.json")
    assert not (tmp_path / "coco.json").exists()
