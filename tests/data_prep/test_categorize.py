"""The categorize stage, from lesions.parquet and PNG slices to its files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from data_prep.categorize import CategorizeSummary, MiningSettings, features, pipeline, run
from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.crops import CropSettings
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion, write_lesions
from tests.data_prep.drawn_lesions import KINDS, draw_lesions

SMALL = CropSettings(side_px=64)


def make_archive(folder: Path, *, count: int = 30, seed: int = 0, size: int = 256) -> tuple[list[Lesion], list[int]]:
    """One slice and one lesion a patient; every third patient is held out."""
    lesions, kinds = draw_lesions(folder, count, size, seed)
    splits = ("train", "train", "validation")
    return [replace(v, split=splits[n // len(KINDS) % 3]) for n, v in enumerate(lesions)], kinds


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Lesion], list[int]]:
    folder = tmp_path_factory.mktemp("archive")
    lesions, kinds = make_archive(folder / "images")
    write_lesions(lesions, folder / "lesions.parquet")
    return folder, lesions, kinds


@pytest.fixture(scope="module")
def result(
    archive: tuple[Path, list[Lesion], list[int]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CategorizeSummary]:
    folder = archive[0]
    out = tmp_path_factory.mktemp("out")
    return out, categorize(folder / "lesions.parquet", folder / "images", out, categories=3)


@pytest.fixture
def quick(result: tuple[Path, CategorizeSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder that has the archive's features already, and a stage that draws no cards."""
    shutil.copytree(result[0] / "features", tmp_path / "out" / "features")
    monkeypatch.setattr(pipeline, "draw_cards", lambda *_: None)
    return tmp_path / "out"


def categorize(lesions: Path, images: Path, out: Path, **options: object) -> CategorizeSummary:
    single = MiningSettings(rounds=1)  # the loop has its own tests
    return run(lesions, images, out, progress=False, crops=SMALL, device="cpu", mining=single, **options)  # type: ignore[arg-type]


def test_finds_the_planted_kinds(
    archive: tuple[Path, list[Lesion], list[int]], result: tuple[Path, CategorizeSummary]
) -> None:
    _, lesions, kinds = archive
    out, summary = result
    table = pq.read_table(out / "categories.parquet")
    assert table.column_names == ["lesion_id", "schema_version", "category", "category_name", "distance"]
    assert table["lesion_id"].to_pylist() == [lesion.lesion_id for lesion in lesions]
    assert table["category_name"].to_pylist() == [f"category-{c}" for c in table["category"].to_pylist()]
    assert adjusted_rand_score(kinds, table["category"].to_pylist()) >= 0.9
    assert summary.labelled == len(lesions) == sum(summary.categories.values())
    assert summary.left_out == {}
    train = [lesion for lesion in lesions if lesion.split == "train"]
    assert summary.fitted_on == {"lesions": len(train), "patients": len(train), "seed": 0}
    assert json.loads((out / "summary.json").read_text())["categories"] == summary.categories
    cards = cv2.imread(str(out / "cards.png"))
    assert cards is not None
    assert cards.std() > 10


def test_held_out_lesions_do_not_touch_the_fit(
    archive: tuple[Path, list[Lesion], list[int]],
    result: tuple[Path, CategorizeSummary],
    quick: Path,
    tmp_path: Path,
) -> None:
    folder, lesions, _ = archive
    write_lesions([lesion for lesion in lesions if lesion.split == "train"], tmp_path / "train.parquet")
    categorize(tmp_path / "train.parquet", folder / "images", quick, categories=3)
    model = "categorizer.safetensors"
    assert (quick / model).read_bytes() == (result[0] / model).read_bytes()


def test_a_patient_with_a_held_out_lesion_is_not_fitted(
    archive: tuple[Path, list[Lesion], list[int]], quick: Path, tmp_path: Path
) -> None:
    folder, lesions, _ = archive
    marked = [replace(v, patient_id="p6") if v.patient_id == "p0" else v for v in lesions]
    assert {v.split for v in marked if v.patient_id == "p6"} == {"train", "validation"}
    write_lesions(marked, tmp_path / "lesions.parquet")
    summary = categorize(tmp_path / "lesions.parquet", folder / "images", quick, categories=3)
    assert summary.fitted_on["lesions"] == sum(v.split == "train" for v in lesions) - 1
    assert summary.labelled == len(lesions)


@pytest.mark.parametrize("doubt", [{"possibly_noisy": True}, {"source": "detector"}])
def test_doubtful_lesions_are_labelled_but_not_fitted(
    archive: tuple[Path, list[Lesion], list[int]], doubt: dict[str, Any], quick: Path, tmp_path: Path
) -> None:
    folder, lesions, _ = archive
    assert lesions[1].split == "train"
    write_lesions([lesions[0], replace(lesions[1], **doubt), *lesions[2:]], tmp_path / "lesions.parquet")
    summary = categorize(tmp_path / "lesions.parquet", folder / "images", quick, categories=3)
    assert summary.fitted_on["lesions"] == sum(v.split == "train" for v in lesions) - 1
    assert summary.labelled == len(lesions)


def test_without_a_split_some_patients_are_held_out(
    archive: tuple[Path, list[Lesion], list[int]], quick: Path, tmp_path: Path
) -> None:
    folder, lesions, _ = archive
    write_lesions([replace(v, split=None) for v in lesions], tmp_path / "lesions.parquet")
    summary = categorize(tmp_path / "lesions.parquet", folder / "images", quick, categories=3)
    assert 3 <= summary.fitted_on["lesions"] < len(lesions) == summary.labelled


def test_same_seed_same_files(
    archive: tuple[Path, list[Lesion], list[int]], result: tuple[Path, CategorizeSummary], tmp_path: Path
) -> None:
    folder = archive[0]
    categorize(folder / "lesions.parquet", folder / "images", tmp_path, categories=3)
    for name in (
        "categories.parquet",
        "categorizer.safetensors",
        "summary.json",
        "cards.png",
        "categories.html",
        "categories.yaml",
    ):
        assert (tmp_path / name).read_bytes() == (result[0] / name).read_bytes(), name


def test_model_labels_new_lesions_without_fitting(
    archive: tuple[Path, list[Lesion], list[int]], result: tuple[Path, CategorizeSummary], tmp_path: Path
) -> None:
    """New lesions of other patients, without any training patient among them, get the categories of the old kinds."""
    _, lesions, kinds = archive
    old = dict(zip(kinds, pq.read_table(result[0] / "categories.parquet")["category"].to_pylist(), strict=True))
    new, new_kinds = make_archive(tmp_path / "images", count=9, seed=5)
    write_lesions([replace(v, split="test") for v in new], tmp_path / "new.parquet")
    model = result[0] / "categorizer.safetensors"
    summary = categorize(tmp_path / "new.parquet", tmp_path / "images", tmp_path / "out", model=model)
    table = pq.read_table(tmp_path / "out" / "categories.parquet")
    assert table["category"].to_pylist() == [old[kind] for kind in new_kinds]
    assert summary.fitted_on == result[1].fitted_on
    assert (tmp_path / "out" / model.name).read_bytes() == model.read_bytes()
    assert len(lesions) != len(new)


def test_goes_on_from_the_cache(
    archive: tuple[Path, list[Lesion], list[int]],
    result: tuple[Path, CategorizeSummary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that dies after some shards loses at most one shard, and ends as an undisturbed one does."""
    folder, lesions, _ = archive
    monkeypatch.setattr(pipeline, "draw_cards", lambda *_: None)
    monkeypatch.setattr(features, "SHARD_LESIONS", 8)
    whole = FeatureExtractor.__call__
    calls = []

    def dies(self: FeatureExtractor, crops: torch.Tensor) -> npt.NDArray[np.float32]:
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return whole(self, crops)

    monkeypatch.setattr(FeatureExtractor, "__call__", dies)
    arguments = (folder / "lesions.parquet", folder / "images", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        categorize(*arguments, categories=3, batch_size=12)
    assert not (tmp_path / "categories.parquet").exists()
    monkeypatch.setattr(FeatureExtractor, "__call__", whole)
    summary = categorize(*arguments, categories=3, batch_size=12)
    assert summary.computed == len(lesions) - 16  # two shards of 8 were written
    name = "categories.parquet"
    assert pq.read_table(tmp_path / name)["category"].equals(pq.read_table(result[0] / name)["category"])
    assert categorize(*arguments, categories=3).computed == 0

    next((tmp_path / "features").rglob("*.safetensors")).write_bytes(b"damaged")
    assert 0 < categorize(*arguments, categories=3).computed < len(lesions)


def test_what_cannot_be_used_is_left_out_and_counted(
    archive: tuple[Path, list[Lesion], list[int]], quick: Path, tmp_path: Path
) -> None:
    folder, lesions, _ = archive
    images = tmp_path / "images"
    images.mkdir()
    for path in (folder / "images").iterdir():
        (images / path.name).symlink_to(path)
    (images / "broken").mkdir()
    whole = (folder / "images" / (lesions[0].image or "")).read_bytes()
    (images / "broken" / "001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "secret.png").write_bytes(whole)
    base = lesions[0]
    bad = [
        replace(base, lesion_id="x1", image=None),
        replace(base, lesion_id="x2", x0=None, y0=None, x1=None, y1=None, centre_x=3.0, centre_y=4.0),
        replace(base, lesion_id="x3", review="rejected"),
        replace(base, lesion_id="x4", modality="MR"),
        replace(base, lesion_id="x5", image="no_such/001.png"),
        replace(base, lesion_id="x6", image="../secret.png"),
        replace(base, lesion_id="x7", image="broken/001.png"),
        replace(base, lesion_id="x8", x0=900.0, x1=950.0),
        replace(base, lesion_id="x9", rows=999),
    ]
    write_lesions([*lesions, *bad], tmp_path / "lesions.parquet")
    summary = categorize(tmp_path / "lesions.parquet", images, quick, categories=3)
    assert summary.left_out == {
        "no image": 1,
        "no box": 1,
        "rejected in review": 1,
        "not CT": 1,
        "image missing": 2,
        "image unreadable": 1,
        "box outside the image": 1,
        "image has another size than stated": 1,
    }
    assert summary.labelled + sum(summary.left_out.values()) == summary.lesions
    ids = pq.read_table(quick / "categories.parquet")["lesion_id"].to_pylist()
    assert ids == [lesion.lesion_id for lesion in lesions]


def test_bad_input_is_one_clear_error(
    archive: tuple[Path, list[Lesion], list[int]], quick: Path, tmp_path: Path
) -> None:
    folder, lesions, _ = archive
    images, out = folder / "images", quick
    truth = tmp_path / "datalist.json"
    truth.write_text(json.dumps({"schema_version": 1, "kind": "truth", "training": []}))
    with pytest.raises(DataPrepError, match="full truth"):
        categorize(truth, images, out)
    truth.write_text(json.dumps({"schema_version": 1, "training": []}))
    with pytest.raises(DataPrepError, match="JSON"):
        categorize(truth, images, out)
    good = folder / "lesions.parquet"
    with pytest.raises(DataPrepError, match="no such file"):
        categorize(tmp_path / "none.parquet", images, out)
    with pytest.raises(DataPrepError, match="images folder"):
        categorize(good, tmp_path / "none", out)
    with pytest.raises(DataPrepError, match="at least 1"):
        categorize(good, images, out, categories=0)
    with pytest.raises(DataPrepError, match="unknown clustering"):
        categorize(good, images, out, clustering="magic")
    with pytest.raises(DataPrepError, match="no such categoriser"):
        categorize(good, images, out, model=tmp_path / "none.safetensors")
    with pytest.raises(DataPrepError, match="fewer --categories"):
        categorize(good, images, out, categories=100)
    write_lesions([replace(v, image=None) for v in lesions], tmp_path / "imageless.parquet")
    with pytest.raises(DataPrepError, match="30 no image"):
        categorize(tmp_path / "imageless.parquet", images, out)
    write_lesions([replace(v, split="test") for v in lesions], tmp_path / "test.parquet")
    with pytest.raises(DataPrepError, match="0 lesions of training patients"):
        categorize(tmp_path / "test.parquet", images, out)
    assert not (out / "categories.parquet").exists()


def test_on_real_slices(shared_data: Path, tmp_path: Path) -> None:
    """Real 16-bit slices, one of 768²: read, cropped and labelled."""
    images = shared_data / "deeplesion" / "soft_tissue" / "Images_png"
    chosen = sorted(images.glob("*/*.png"))[:14]
    lesions = []
    for number, path in enumerate(chosen):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None
        rows, columns = image.shape
        lesions.append(
            Lesion(
                lesion_id=str(number),
                bookmark_ids=(),
                source="deeplesion-csv",
                image=str(path.relative_to(images)),
                patient_id=path.parent.name[:6],
                rows=rows,
                columns=columns,
                x0=columns / 2 - 20,
                y0=rows / 2 - 20,
                x1=columns / 2 + 20,
                y1=rows / 2 + 20,
                split="train",
            )
        )
    write_lesions(lesions, tmp_path / "lesions.parquet")
    summary = categorize(tmp_path / "lesions.parquet", images, tmp_path / "out", categories=2, clustering="spectral")
    assert summary.labelled == len(lesions) == summary.assumed_spacing
    assert sum(summary.categories.values()) == len(lesions)
