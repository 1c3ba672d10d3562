"""``categorize --pretrain`` on drawn lesions: what it changes, that it is resumed and used again, no leak."""

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
from mlflow import MlflowClient
from typer.testing import CliRunner

from data_prep import categorize as package
from data_prep.archive.png import write_hu
from data_prep.categorize import CategorizeSummary, MiningSettings, PretrainSettings, mining, pipeline, run, views
from data_prep.categorize import pretrain as module
from data_prep.categorize.backbone import FeatureExtractor, tail_sha256
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.finetune import TrainingSettings
from data_prep.categorize.pretrain import pretrain
from data_prep.cli import app
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion, write_lesions
from tests.data_prep.drawn_lesions import draw_lesions

SMALL = PretrainSettings(epochs=1, batch_size=8, prototypes=4, queue=16)
ONE_ROUND = MiningSettings(rounds=1, views=1)
TWO_ROUNDS = MiningSettings(rounds=2, views=1, training=TrainingSettings(epochs=1, batch_size=8))
RESULTS = ("categories.parquet", "categorizer.safetensors", "summary.json", "rounds.json", "rounds.png")


@dataclass(frozen=True)
class Archive:
    """Slices of 96² with one lesion each, one a patient; every fourth patient is held out."""

    folder: Path
    lesions: list[Lesion]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    lesions, _ = draw_lesions(folder / "images", 24, size=96)
    lesions = [replace(v, split="validation") if n % 4 == 3 else v for n, v in enumerate(lesions)]
    write_lesions(lesions, folder / "lesions.parquet")
    return Archive(folder, lesions)


def categorize(archive: Archive, out: Path, **options: Any) -> CategorizeSummary:
    """Without pictures, which take longer than all the rest."""
    given = {"pretraining": SMALL, "mining": ONE_ROUND, "categories": 3, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "draw_cards", lambda *_: None)
        return run(
            archive.folder / "lesions.parquet",
            archive.folder / "images",
            out,
            progress=False,
            crops=CropSettings(side_px=32),
            device="cpu",
            **given,
        )


@pytest.fixture(scope="module")
def pretrained(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run."""
    out = tmp_path_factory.mktemp("pretrained")
    assert categorize(archive, out).pretrained_epochs == SMALL.epochs
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in RESULTS}


def counted(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return function(*arguments, **options)

    return wrapped


def test_the_result_is_that_of_another_network(archive: Archive, pretrained: Path, tmp_path: Path) -> None:
    assert categorize(archive, tmp_path, pretraining=None).pretrained_epochs == 0
    without, made = (Categorizer.load(folder / "categorizer.safetensors") for folder in (tmp_path, pretrained))
    assert without.tail is None
    assert made.tail is not None
    assert made.network.endswith(tail_sha256(made.tail))
    before = FeatureExtractor("cpu").tail.state_dict()
    assert all(not torch.equal(before[name], v) for name, v in made.tail.items() if name.endswith("conv_pw.weight"))
    distances = [pq.read_table(f / "categories.parquet")["distance"].to_numpy() for f in (tmp_path, pretrained)]
    assert (distances[0] != distances[1]).all()
    said = [json.loads((folder / "rounds.json").read_text()) for folder in (tmp_path, pretrained)]
    assert said[0]["pretraining"] == []
    (epoch,) = said[1]["pretraining"]
    assert epoch["training_loss"] > 0
    assert epoch["holdout_loss"] > 0
    assert 0 <= epoch["holdout_accuracy"] <= 1
    assert said[1]["rounds"][0]["epochs"] == []
    assert json.loads((pretrained / "summary.json").read_text())["pretrained_epochs"] == 1
    assert not list(pretrained.rglob("*.npy"))


def test_a_second_run_pretrains_nothing_and_other_settings_do(
    archive: Archive, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = content(pretrained), list[Any]()
    monkeypatch.setattr(module, "view_activations", counted(module.view_activations, calls))
    (file,) = pretrained.rglob("tail.safetensors")
    at = file.stat().st_mtime_ns
    categorize(archive, pretrained)
    assert not calls
    assert file.stat().st_mtime_ns == at
    assert content(pretrained) == before
    (tmp_path / "mining").mkdir()
    (tmp_path / "mining" / file.parent.name).symlink_to(file.parent)
    categorize(archive, tmp_path, pretraining=replace(SMALL, temperature=0.2))
    assert len(calls) == 1
    assert len(list((tmp_path / "mining").glob("pretrain-*"))) == 2


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_a_damaged_file_is_made_again(
    archive: Archive, pretrained: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that can be read but whose weights are others."""
    before, calls = content(pretrained), list[Any]()
    (file,) = pretrained.rglob("tail.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:1000] if how == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    monkeypatch.setattr(module, "pretrain", counted(pretrain, calls))
    categorize(archive, pretrained)
    assert len(calls) == 1
    assert file.read_bytes() == whole
    assert content(pretrained) == before


def test_a_killed_run_goes_on_and_the_loop_starts_from_the_tail_and_shares_the_views(
    archive: Archive, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in pretraining, then in the loop: each slice is read once for all views, the tail is made once."""
    reads, trained, tuned = list[Any](), list[Any](), list[Any]()
    monkeypatch.setattr(views, "read_hu", counted(views.read_hu, reads))
    with monkeypatch.context() as patch:
        patch.setattr(module, "pretrain", killed)
        with pytest.raises(KeyboardInterrupt):
            categorize(archive, tmp_path, mining=TWO_ROUNDS)
    monkeypatch.setattr(module, "pretrain", counted(pretrain, trained))
    with monkeypatch.context() as patch:
        patch.setattr(mining, "fine_tune", killed)
        with pytest.raises(KeyboardInterrupt):
            categorize(archive, tmp_path, mining=TWO_ROUNDS)
    monkeypatch.setattr(mining, "fine_tune", counted(mining.fine_tune, tuned))
    monkeypatch.setattr(mining, "taken_round", lambda rounds: len(rounds))
    summary = categorize(archive, tmp_path, mining=TWO_ROUNDS)
    assert (summary.rounds, summary.round_taken, summary.pretrained_epochs) == (2, 2, 1)
    assert len(reads) == sum(v.split == "train" for v in archive.lesions)
    assert len(trained) == len(tuned) == 1
    first = Categorizer.load(pretrained / "categorizer.safetensors")
    last = Categorizer.load(tmp_path / "categorizer.safetensors")
    assert tuned[0][3].identity == first.network != last.network
    assert not list(tmp_path.rglob("*.npy"))


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_the_model_labels_as_the_fit_did(archive: Archive, pretrained: Path, tmp_path: Path) -> None:
    model = pretrained / "categorizer.safetensors"
    with pytest.raises(DataPrepError, match="--model is used as it is"):
        categorize(archive, tmp_path, model=model)
    assert categorize(archive, tmp_path, model=model, pretraining=None).pretrained_epochs == 0
    fit, again = (pq.read_table(folder / "categories.parquet") for folder in (pretrained, tmp_path))
    assert again["category"].equals(fit["category"])
    np.testing.assert_allclose(again["distance"].to_numpy(), fit["distance"].to_numpy(), atol=1e-9)
    assert (tmp_path / model.name).read_bytes() == model.read_bytes()


def test_validation_patients_do_not_touch_pretraining(
    archive: Archive, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the held-out slices made unlike all others, the network and its losses stay the same."""
    changed = Archive(tmp_path / "changed", archive.lesions)
    for lesion in archive.lesions:
        target = changed.folder / "images" / (lesion.image or "")
        target.parent.mkdir(parents=True)
        if lesion.split == "train":
            target.symlink_to(archive.folder / "images" / (lesion.image or ""))
        else:
            write_hu(target, np.random.default_rng(1).normal(0, 300, (96, 96)))
    write_lesions(archive.lesions, changed.folder / "lesions.parquet")
    calls: list[Any] = []
    monkeypatch.setattr(module, "view_activations", counted(module.view_activations, calls))
    categorize(changed, tmp_path / "out")
    assert [v.lesion_id for v in calls[0][0]] == [v.lesion_id for v in archive.lesions if v.split == "train"]
    for file in ("rounds.json", "categorizer.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (pretrained / file).read_bytes(), file


def test_too_few_lesions_are_refused_before_pretraining(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "view_activations", lambda *_, **__: pytest.fail("views made"))
    with pytest.raises(DataPrepError, match="18 lesions of training patients cannot make 19"):
        categorize(archive, tmp_path, categories=19)


def test_losses_go_to_mlflow_once(archive: Archive, pretrained: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlruns.db'}"
    for _ in range(2):
        categorize(archive, pretrained, tracking_uri=uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lesion categories")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert "'epochs': 1" in found.data.params["pretraining"]
    (epoch,) = json.loads((pretrained / "rounds.json").read_text())["pretraining"]
    for name, value in epoch.items():
        (metric,) = client.get_metric_history(found.info.run_id, f"pretraining/{name}")
        assert (metric.step, metric.value) == (1, pytest.approx(value))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], PretrainSettings(epochs=3)),
        (["--pretrain", "7"], PretrainSettings(epochs=7)),
        (["--pretrain", "0"], None),
        (["--model", "old.safetensors"], None),
    ],
)
def test_the_command_says_how_many_epochs(
    given: list[str], expected: PretrainSettings | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[Any] = []

    def noted(*_: Any, **options: Any) -> None:
        calls.append(options["pretraining"])
        raise SystemExit(0)

    monkeypatch.setattr(package, "run", noted)
    command = ["categorize", str(tmp_path / "l.parquet"), "--images", str(tmp_path), "--out", str(tmp_path), *given]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert calls == [expected]


def test_fewer_lesions_than_prototypes_are_not_pretrained_on_and_it_is_said(archive: Archive, tmp_path: Path) -> None:
    summary = categorize(archive, tmp_path, pretraining=PretrainSettings(epochs=1, prototypes=19))
    assert summary.pretrained_epochs == 0
    assert "no pretraining: 18 lesions of training patients are too few (19 are needed)" in summary.messages
