"""The bundle as MONAI runs it: properties, metadata, training with a kill in the middle, evaluation, inference."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow
from scripts.checkpoint import read
from tiny import BUNDLE_ROOT, SIZE, here, make_hospital, options, run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hospital(tmp_path_factory.mktemp("hospital"))


def weights(output: Path) -> dict[str, torch.Tensor]:
    return read(output / "training_state.pt")["objects"]["network"]  # type: ignore[no-any-return]


EPOCHS = 6  # with fewer the scores stay where the heads begin, and there is nothing to find


@pytest.fixture(scope="module")
def trained(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    run("train", **options(hospital, output, max_epochs=EPOCHS))
    return output


def test_required_properties_are_all_there(hospital: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BUNDLE_ROOT)
    common = {"meta_file": "configs/metadata.json", "logging_file": "configs/logging.conf"}
    train = ConfigWorkflow(
        "configs/train.yaml", workflow_type="train", **common,
        **{k: str(v) if isinstance(v, Path) else v for k, v in options(hospital, trained, max_epochs=EPOCHS).items()},
    )  # type: ignore[arg-type]  # fmt: skip
    train.initialize()
    assert train.check_properties() == []
    ct = trained / "ct.nii.gz"
    write_ct(ct)
    infer = ConfigWorkflow(
        "configs/inference.yaml", workflow_type="infer", **common,
        dataset_dir=str(ct), ckpt_path=str(trained / "model.pt"), output_dir=str(trained / "properties"),
    )  # fmt: skip
    infer.initialize()
    assert infer.check_properties() == []


def test_metadata_is_valid_by_the_official_schema(shared_data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "verify_metadata", "--meta_file", "configs/metadata.json",
         "--filepath", str(shared_data / "zoo" / "meta_schema_20240725.json")],
        cwd=BUNDLE_ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    broken = json.loads((BUNDLE_ROOT / "configs" / "metadata.json").read_text())
    del broken["task"]
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "verify_metadata", "--meta_file", str(tmp_path / "metadata.json"),
         "--filepath", str(shared_data / "zoo" / "meta_schema_20240725.json")],
        cwd=BUNDLE_ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode != 0


def test_resumed_training_ends_with_the_same_weights_in_the_same_run(
    hospital: Path, trained: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    # A time budget of nothing ends the training after its first epoch; a kill between two epochs leaves the same files.
    run("train", **options(hospital, stopped, max_epochs=EPOCHS, max_minutes=0))
    assert read(stopped / "training_state.pt")["epoch"] == 1
    first_run = json.loads((stopped / "mlflow_run.json").read_text())["run_id"]
    run("train", **options(hospital, stopped, max_epochs=EPOCHS))
    assert read(stopped / "training_state.pt")["epoch"] == EPOCHS
    assert json.loads((stopped / "mlflow_run.json").read_text())["run_id"] == first_run
    ours, undisturbed = weights(stopped), weights(trained)
    assert ours.keys() == undisturbed.keys()
    for name, tensor in undisturbed.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0, msg=name)


def test_a_training_that_gains_nothing_stops_and_stays_stopped_until_it_has_more_patience(
    hospital: Path, tmp_path: Path
) -> None:
    # Nothing is learned, so every look at the tuning patients is as good as the first.
    words = options(hospital, tmp_path, max_epochs=5, learning_rate=0.0, body_learning_rate=0.0)
    for patience, epochs in ((1, 2), (1, 2), (3, 4), ("$None", 5)):
        here("train", **words, patience=patience)
        assert read(tmp_path / "training_state.pt")["epoch"] == epochs
    assert (tmp_path / "model.pt").is_file()


def test_another_training_is_not_mixed_into_a_folder(hospital: Path, trained: Path) -> None:
    done = run("train", check=False, **options(hospital, trained, max_epochs=EPOCHS, seed=5))
    assert done.returncode != 0
    assert "choose another --output_dir" in done.stderr


def test_evaluation_writes_metrics_plots_and_mlflow(hospital: Path, trained: Path) -> None:
    done = run("train", "evaluate", **options(hospital, trained), bootstrap=100)
    report = trained / "evaluation" / "validation"
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["images"] == 6
    assert metrics["patients"] == 2
    assert "accuracy at IoU 0.5" in done.stdout
    for name in ("froc.png", "accuracy_over_iou.png", "overlays.png"):
        assert cv2.imread(str(report / name)) is not None
    predictions = json.loads((report / "predictions.json").read_text())
    assert [p["true_box_px"] for p in predictions["images"]] == [
        item["box"] for item in json.loads(hospital.read_text())["validation"]
    ]
    known = json.loads((trained / "mlflow_run.json").read_text())
    assert sorted(known) == ["run_id", "store"]  # not the address, which may hold a password
    client = MlflowClient(f"sqlite:///{trained / 'mlruns.db'}")
    stored = client.get_run(known["run_id"])
    assert stored.info.status == "FINISHED"
    assert stored.data.params["max_epochs"] == str(EPOCHS)
    assert stored.data.params["datalist_sha256"] == stored.data.params["evaluation/validation/datalist_sha256"]
    assert stored.data.metrics["evaluation/validation/average_sensitivity"] == pytest.approx(
        metrics["average_sensitivity"]["value"]
    )
    assert len(client.get_metric_history(known["run_id"], "train/loss")) == EPOCHS
    assert 0 < stored.data.metrics["train/waiting_for_data"] < 1
    assert stored.data.metrics["train/seconds_per_step"] > 0
    assert 100 < stored.data.metrics["train/peak_memory_mib"] < 20_000
    assert {a.path for a in client.list_artifacts(known["run_id"])} >= {"model.pt", "evaluation"}
    assert (trained / "mlartifacts").is_dir()
    logged = json.dumps([stored.data.params, stored.data.tags, list(stored.data.metrics)])
    assert "000010" not in logged  # no patient id in the store


def test_the_report_shows_the_window_the_weights_were_trained_in(hospital: Path, tmp_path: Path) -> None:
    words = options(hospital, tmp_path, bootstrap=0)
    here("train", "untrained", **words, windows_hu=[[-1350, 150], [-175, 275]])
    evaluation = here("train", "evaluate", **words)
    assert evaluation.parser.get_parsed_content("report").window_hu == (-1350, 150)


def write_ct(path: Path) -> None:
    import nibabel as nib

    generator = np.random.default_rng(1)
    hu = generator.normal(40, 12, (SIZE, SIZE, 4))
    hu[60:75, 20:35, 1:3] += 150
    affine = np.diag([-1.0, -1.0, 5.0, 1.0])  # L, P, S axes
    nib.Nifti1Image(hu.astype(np.int16), affine).to_filename(path)


def test_inference_on_a_nifti_file(trained: Path, tmp_path: Path) -> None:
    write_ct(tmp_path / "ct.nii.gz")
    run(
        "inference", dataset_dir=tmp_path / "ct.nii.gz", output_dir=tmp_path / "out", device_name="cpu", amp=False,
        ckpt_path=trained / "model.pt", score_threshold=0.02,
    )  # fmt: skip
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    from data_prep import schemas

    schemas.validate(written, "detections")
    series = written["series"][0]
    assert series["grid"]["slices"] == 4
    assert written["model"]["sha256"]
    findings = series["findings"]
    assert findings
    for finding in findings:
        x0, y0, x1, y1 = finding["box_px"]
        assert finding["centre_lps_mm"][0] == pytest.approx((x0 + x1) / 2 - 0.5, abs=1e-2)
        assert finding["centre_lps_mm"][1] == pytest.approx((y0 + y1) / 2 - 0.5, abs=1e-2)
        assert finding["centre_lps_mm"][2] == pytest.approx(5 * finding["slice_index"])
        assert finding["category"] in ("small", "large")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="compiling needs a C++ compiler")
def test_a_compiled_network_finds_the_same(trained: Path, tmp_path: Path) -> None:
    write_ct(tmp_path / "ct.nii.gz")
    found = []
    for choice in (False, True):
        run(
            "inference", dataset_dir=tmp_path / "ct.nii.gz", output_dir=tmp_path / str(choice), device_name="cpu",
            amp=False, ckpt_path=trained / "model.pt", score_threshold=0.02, compile=choice,
        )  # fmt: skip
        (series,) = json.loads((tmp_path / str(choice) / "detections.json").read_text())["series"]
        found.append(series["findings"])
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        assert one["box_px"] == pytest.approx(other["box_px"], abs=0.05)
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)


def test_a_copied_bundle_works_alone(hospital: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(BUNDLE_ROOT, copy, ignore=shutil.ignore_patterns("__pycache__", "output"))
    write_ct(tmp_path / "ct.nii.gz")
    # -S -E would hide the installed packages too; a blocked import shows that data_prep is not used.
    program = (
        "import sys; sys.modules['data_prep'] = None; sys.path.insert(0, '.'); from monai.bundle import run; "
        f"run(config_file='configs/inference.yaml', dataset_dir={str(tmp_path / 'ct.nii.gz')!r}, "
        f"output_dir={str(tmp_path / 'out')!r}, ckpt_path={str(trained / 'model.pt')!r}, device_name='cpu')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "detections.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_name": "cuda:7"}, "device_name"),
        ({"datalist": "/nowhere/datalist.json"}, "/nowhere/datalist.json"),
        ({"dataset_dir": "/nowhere"}, "/nowhere"),
        ({"slices": 5}, "--slices 5"),
        ({"output_dir": "/dev/null/out"}, "cannot write into this folder"),
        ({"size": 100}, "multiple of 32"),
        ({"patience": 0}, "patience must be 1 or more"),
    ],
)
def test_bad_input_is_said_clearly(hospital: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    if "device_name" in change and torch.cuda.device_count() > 7:
        pytest.skip("this machine has that many GPUs")
    given = {"tracking_uri": f"sqlite:///{tmp_path / 'runs.db'}", **change}
    done = run("train", check=False, **{**options(hospital, tmp_path / "out", max_epochs=1), **given})
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr


def test_a_truncated_slice_met_by_a_worker_is_one_line(hospital: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hospital"
    shutil.copytree(hospital.parent, copy)
    damaged = next(iter(sorted(copy.glob("000009_01_01/*.png"))))  # a tuning slice: read by a worker process
    damaged.write_bytes(damaged.read_bytes()[:500])
    done = run("train", check=False, **options(copy / "datalist.json", tmp_path / "out", max_epochs=1, workers=1))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert damaged.name in errors[0]
    assert "copy it again" in errors[0]
