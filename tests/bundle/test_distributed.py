"""Two processes with gloo on the CPU: the same figures as one, and a training that survives shards without a lesion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from scripts.checkpoint import read
from scripts.distributed import Shard, gather
from tiny import make_hospital, options, run

pytestmark = pytest.mark.filterwarnings("ignore")

# With everything that only training does: the heads and losses of all of it must agree between the processes.
TRAINING = {"max_epochs": 2, "batch_size": 2, "dense_weight": 0.5, "copy_paste": 0.5, "unmarked": "complete"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An odd number of slices to evaluate; every second of them, so one process's whole shard, has no lesion."""
    path = make_hospital(tmp_path_factory.mktemp("hospital"), patients=13)
    content = json.loads(path.read_text())
    assert len(content["validation"]) == 9
    for name in ("validation", "training"):
        for item in content[name][1::2]:
            item["box"] = []
            for key in ("label", "lesion_id", "recist_px", "coarse_type", "long_diameter_mm", "short_diameter_mm"):
                item[key] = []
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def trained(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    run("train", "multi_gpu_train", processes=2, **options(hospital, output, **TRAINING))
    return output


def test_two_processes_train_one_model_in_one_run(trained: Path) -> None:
    state = read(trained / "training_state.pt")
    assert state["epoch"] == 2
    assert state["iteration"] == 2 * 6  # 24 slices, 2 processes, 2 slices each
    assert all(torch.isfinite(tensor).all() for tensor in state["objects"]["network"].values())
    client = MlflowClient(f"sqlite:///{trained / 'mlruns.db'}")
    (experiment,) = (e for e in client.search_experiments() if e.name != "Default")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.status == "FINISHED"
    assert "tuning/average_sensitivity" in one.data.metrics


def test_a_killed_training_goes_on(hospital: Path, trained: Path, tmp_path: Path) -> None:
    words = options(hospital, tmp_path, **TRAINING)
    run("train", "multi_gpu_train", processes=2, **{**words, "max_minutes": 0})
    assert read(tmp_path / "training_state.pt")["epoch"] == 1
    run("train", "multi_gpu_train", processes=2, **words)
    expected = read(trained / "training_state.pt")["objects"]["network"]
    found = read(tmp_path / "training_state.pt")["objects"]["network"]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_evaluation_does_not_depend_on_the_number_of_processes(hospital: Path, trained: Path, tmp_path: Path) -> None:
    found = {}
    for processes in (1, 2):
        overlay = [] if processes == 1 else ["multi_gpu_train"]
        report = tmp_path / str(processes)
        more = {"report_dir": report, "ckpt_path": trained / "model.pt", "bootstrap": 50}
        run("train", "evaluate", *overlay, processes=processes, **options(hospital, tmp_path / "out", **more))
        found[processes] = [(report / name).read_text() for name in ("metrics.json", "predictions.json")]
    assert found[1] == found[2]
    metrics = json.loads(found[1][0])
    assert (metrics["images"], metrics["lesions"]) == (9, 5)


def test_the_overlay_without_torchrun_says_what_to_do(hospital: Path, tmp_path: Path) -> None:
    done = run("train", "multi_gpu_train", check=False, **options(hospital, tmp_path, max_epochs=1))
    assert done.returncode != 0
    assert "torchrun" in done.stderr.splitlines()[-1]


def test_one_process_has_everything_in_order() -> None:
    assert list(Shard(range(5))) == [0, 1, 2, 3, 4]
    assert gather([3, 1, 2]) == [3, 1, 2]
