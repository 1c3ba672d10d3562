"""The mining loop on drawn lesions with a tiny schedule: what it writes, that it goes on where it died, no leak."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors import safe_open
from sklearn.metrics import adjusted_rand_score

from data_prep.archive.png import write_hu
from data_prep.categorize import MiningSettings, mining, pipeline, run
from data_prep.categorize.backbone import FeatureExtractor, tail_sha256
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.finetune import TrainingSettings
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion, write_lesions
from tests.data_prep.drawn_lesions import draw_lesions

CROPS = CropSettings(side_px=32)
QUICK = MiningSettings(rounds=3, agreement=1.0, views=1, training=TrainingSettings(epochs=1, batch_size=8))


@dataclass(frozen=True)
class Archive:
    """Slices of 96² with one lesion of three kinds each, one a patient; every fourth patient is held out."""

    folder: Path
    lesions: list[Lesion]
    kinds: list[int]

    @property
    def images(self) -> Path:
        return self.folder / "images"


def make_archive(folder: Path, count: int = 32, seed: int = 0) -> Archive:
    lesions, kinds = draw_lesions(folder / "images", count, size=96, seed=seed)
    lesions = [replace(v, split="validation") if n % 4 == 3 else v for n, v in enumerate(lesions)]
    write_lesions(lesions, folder / "lesions.parquet")
    return Archive(folder, lesions, kinds)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return make_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(autouse=True)
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "draw_cards", lambda *_: None)


def categorize(archive: Archive, out: Path, **options: Any) -> pipeline.CategorizeSummary:
    options = {"categories": 3, "mining": QUICK, **options}
    return run(
        archive.folder / "lesions.parquet", archive.images, out, progress=False, crops=CROPS, device="cpu", **options
    )


@pytest.fixture(scope="module")
def mined(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run of three rounds."""
    out = tmp_path_factory.mktemp("mined")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "draw_cards", lambda *_: None)
        # The best agreement may be that of round 1's labels with themselves on such easy lesions: take the last round.
        patch.setattr(mining, "_why_stop", lambda *_: None)
        summary = categorize(archive, out)
    assert (summary.rounds, summary.repairs) == (3, 0)
    return out


RESULTS = ("categories.parquet", "categorizer.safetensors", "summary.json", "rounds.json", "rounds.png")


def test_the_loop_writes_its_rounds_and_keeps_the_kinds(archive: Archive, mined: Path) -> None:
    content = json.loads((mined / "rounds.json").read_text())
    first, *later = content["rounds"]
    assert (first["number"], first["agreement"], first["epochs"]) == (1, None, [])
    assert [r["number"] for r in later] == [2, 3]
    for r in content["rounds"]:
        assert sum(r["sizes"]) == sum(v.split == "train" for v in archive.lesions)
        assert -1 <= r["silhouette"] <= 1
    for r in later:
        assert 0 <= r["agreement"] <= 1
        (epoch,) = r["epochs"]
        assert epoch["training_loss"] > 0
        assert epoch["holdout_loss"] > 0
        assert 0 <= epoch["holdout_accuracy"] <= 1
    assert content["taken"] > 1
    labels = pq.read_table(mined / "categories.parquet")["category"].to_pylist()
    assert adjusted_rand_score(archive.kinds, labels) >= 0.8
    model = Categorizer.load(mined / "categorizer.safetensors")
    assert model.tail is not None
    assert model.network.endswith(tail_sha256(model.tail))
    ours, imagenet = model.tail, FeatureExtractor("cpu").tail.state_dict()
    assert ours.keys() == imagenet.keys()
    assert any(not torch.equal(ours[name], imagenet[name]) for name in ours)


def test_no_file_can_run_code(mined: Path) -> None:
    """Data formats only, and a page without scripts; the scratch file of views is gone."""
    files = [path for path in mined.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".parquet", ".png", ".html", ".yaml"}
    assert "<script" not in (mined / "categories.html").read_text()
    assert yaml.safe_load((mined / "categories.yaml").read_text())
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                assert list(file.keys())


@pytest.mark.parametrize("dies_in", ["views", "round 2", "round 3", "writing round 3"])
def test_a_killed_run_goes_on_and_ends_the_same(
    archive: Archive, mined: Path, dies_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "_why_stop", lambda *_: None)
    calls: list[int] = []

    def dying(function: Callable[..., Any], at: int) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return wrapped

    name, at = {
        "views": ("view_activations", 1),
        "round 2": ("fine_tune", 1),
        "round 3": ("fine_tune", 2),
        "writing round 3": ("_write", 3),
    }[dies_in]
    with monkeypatch.context() as patch:
        patch.setattr(mining, name, dying(getattr(mining, name), at))
        with pytest.raises(KeyboardInterrupt):
            categorize(archive, tmp_path)
    assert not (tmp_path / "categories.parquet").exists()
    calls.clear()
    monkeypatch.setattr(mining, "fine_tune", dying(mining.fine_tune, -1))
    categorize(archive, tmp_path)
    assert len(calls) == {"views": 2, "round 2": 2, "round 3": 1, "writing round 3": 1}[dies_in]
    for file in RESULTS:
        assert (tmp_path / file).read_bytes() == (mined / file).read_bytes(), file


def test_a_finished_run_is_not_done_again_and_a_damaged_round_is(
    archive: Archive, mined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "_why_stop", lambda *_: None)
    before = {file: (mined / file).read_bytes() for file in RESULTS}
    calls: list[int] = []
    whole = mining.fine_tune

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return whole(*arguments, **options)

    monkeypatch.setattr(mining, "fine_tune", counted)
    categorize(archive, mined)
    assert not calls
    (last,) = mined.rglob("round-03.safetensors")
    last.write_bytes(last.read_bytes()[:1000])
    categorize(archive, mined)
    assert len(calls) == 1
    assert {file: (mined / file).read_bytes() for file in RESULTS} == before
    categorize(archive, mined, seed=1)  # other settings find nothing of the old rounds
    assert len(calls) == 3
    categorize(archive, mined)


def test_the_model_labels_as_the_fit_did(archive: Archive, mined: Path, tmp_path: Path) -> None:
    """All lesions again, from their slices, by the file alone; and new ones of the same kinds."""
    summary = categorize(archive, tmp_path / "same", model=mined / "categorizer.safetensors")
    assert (summary.rounds, summary.round_taken) == (0, 0)
    fit, again = (pq.read_table(folder / "categories.parquet") for folder in (mined, tmp_path / "same"))
    assert again["category"].equals(fit["category"])
    np.testing.assert_allclose(again["distance"].to_numpy(), fit["distance"].to_numpy(), atol=1e-9)
    assert (tmp_path / "same" / "categorizer.safetensors").read_bytes() == (
        mined / "categorizer.safetensors"
    ).read_bytes()
    new = make_archive(tmp_path / "new", count=9, seed=7)
    write_lesions([replace(v, split="test") for v in new.lesions], new.folder / "lesions.parquet")
    categorize(new, tmp_path / "labelled", model=mined / "categorizer.safetensors")
    labels = pq.read_table(tmp_path / "labelled" / "categories.parquet")["category"].to_pylist()
    assert adjusted_rand_score(new.kinds, labels) >= 0.7


def test_validation_and_test_patients_do_not_touch_the_loop(
    archive: Archive, mined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the held-out slices made unlike all others, network and rounds stay the same bytes."""
    monkeypatch.setattr(mining, "_why_stop", lambda *_: None)
    changed = Archive(tmp_path / "changed", archive.lesions, archive.kinds)
    held = {v.image for v in archive.lesions if v.split != "train"}
    for lesion in archive.lesions:
        target = changed.images / (lesion.image or "")
        target.parent.mkdir(parents=True)
        if lesion.image in held:
            write_hu(target, np.random.default_rng(1).normal(0, 300, (96, 96)))
        else:
            target.write_bytes((archive.images / (lesion.image or "")).read_bytes())
    write_lesions(archive.lesions, changed.folder / "lesions.parquet")
    seen: list[str] = []
    whole = mining.view_activations

    def watched(lesions: list[Lesion], *arguments: Any, **options: Any) -> Any:
        seen.extend(lesion.split or "" for lesion in lesions)
        return whole(lesions, *arguments, **options)

    monkeypatch.setattr(mining, "view_activations", watched)
    categorize(changed, tmp_path / "out")
    assert set(seen) == {"train"}
    for file in ("rounds.json", "categorizer.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (mined / file).read_bytes(), file


def test_rounds_go_to_mlflow_once(archive: Archive, mined: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
    out = tmp_path / "out"
    (out / "mining").parent.mkdir()
    for folder in ("mining", "features"):
        (out / folder).symlink_to(mined / folder)
    for _ in range(2):
        categorize(archive, out, tracking_uri=uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lesion categories")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    content = json.loads((out / "rounds.json").read_text())

    def history(name: str) -> list[tuple[int, float]]:
        return sorted((metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name))

    rounds = content["rounds"]
    assert history("silhouette") == [(r["number"], pytest.approx(r["silhouette"])) for r in rounds]
    assert history("agreement_nmi") == [(r["number"], pytest.approx(r["agreement"])) for r in rounds[1:]]
    assert history("size/category-0") == [(r["number"], r["sizes"][0]) for r in rounds]
    losses = [epoch["training_loss"] for r in rounds for epoch in r["epochs"]]
    assert history("training_loss") == [(step, pytest.approx(loss)) for step, loss in enumerate(losses, start=1)]
    assert len(history("holdout_accuracy")) == len(losses)
    assert {file.path for file in client.list_artifacts(found.info.run_id)} == {"rounds.json", "rounds.png"}
    assert found.data.params["categories"] == "3"


def test_a_store_that_cannot_be_used_is_one_clear_error(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(DataPrepError, match="tracking-uri"):
        categorize(archive, tmp_path, mining=MiningSettings(rounds=1), tracking_uri="nonsense://nowhere")


def test_one_round_trains_nothing(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "fine_tune", lambda *_, **__: pytest.fail("fine-tuned"))
    summary = categorize(archive, tmp_path, mining=MiningSettings(rounds=1))
    assert (summary.rounds, summary.round_taken) == (1, 1)
    assert Categorizer.load(tmp_path / "categorizer.safetensors").tail is None


def test_a_model_whose_network_was_changed_is_refused(mined: Path, tmp_path: Path) -> None:
    path = tmp_path / "categorizer.safetensors"
    content = bytearray((mined / "categorizer.safetensors").read_bytes())
    with safe_open(mined / "categorizer.safetensors", framework="np") as file:
        values = next(file.get_tensor(name) for name in file.keys() if name.endswith("conv_pw.weight"))  # noqa: SIM118
    content[content.index(values.tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataPrepError, match="damaged"):
        Categorizer.load(path)
