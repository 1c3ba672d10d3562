"""The second look across slices through MONAI: fitted, evaluated, and used on a series."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from made_findings import STAGE, findings
from scripts.across_slices import rescore_series
from tiny import SIZE, here, make_hospital, options, run

from scripts import checkpoint


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each series has three slices, 5 mm apart; all are key slices, which list the true neighbours."""
    path = make_hospital(tmp_path_factory.mktemp("hospital"))
    content = json.loads(path.read_text())
    for name in ("training", "tuning", "validation"):
        for item in content[name]:
            series, number = item["image"][1].split("/")[0], item["slice_index"]
            item["image"] = [f"{series}/{min(max(n, 0), 2):03d}.png" for n in (number - 1, number, number + 1)]
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def words(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Options of a training that has ended."""
    words = options(hospital, tmp_path_factory.mktemp("trained"), max_epochs=2, bootstrap=20)
    here("train", **words)
    return words


def predicted(folder: Path) -> dict[str, dict[str, Any]]:
    images = json.loads((folder / "predictions.json").read_text())["images"]
    return {one["image"]: findings(one["box_px"], one["score"]) for one in images}


@pytest.mark.filterwarnings("ignore")
def test_fit_then_evaluate(words: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = words["output_dir"] / "model.pt"
    here("train", "evaluate", "fit_across_slices", **words)
    said = capsys.readouterr().out
    assert "6 slices, 6 lesions, 2 tuning patients" in said
    kept = checkpoint.facts(model)["across_slices"]
    assert ("stored in" in said, "does not pay" in said) == (kept is not None, kept is None)

    checkpoint.store_across_slices(model, {**STAGE.to_dict(), "score": 0.05})
    here("train", "evaluate", **words, across_slices=False, report_dir=tmp_path / "plain")
    here("train", "evaluate", **words, report_dir=tmp_path / "second")
    plain, second = predicted(tmp_path / "plain"), predicted(tmp_path / "second")
    assert sum(len(found["score"]) for found in plain.values()) > 20
    for image, found in plain.items():  # all neighbours are key slices, so the plain evaluation has theirs
        series, number = image.split("/")
        names = {mm: f"{series}/{int(number[:3]) + step:03d}.png" for mm, step in ((5.0, 1), (-5.0, -1))}
        by_hand = STAGE.rescore(found, {mm: plain[name] for mm, name in names.items() if name in plain})
        np.testing.assert_allclose(second[image]["score"], by_hand["score"], atol=2e-5)
    points = json.loads((tmp_path / "second" / "metrics.json").read_text())["operating_points"]
    assert points["default of inference"]["score"] == 0.05


@pytest.mark.filterwarnings("ignore")
def test_inference_uses_it_on_the_whole_series(words: dict[str, Any], tmp_path: Path) -> None:
    hu = np.random.default_rng(1).normal(40, 12, (SIZE, SIZE, 9))
    hu[60:75, 20:35, 3:5] += 150
    nib.Nifti1Image(hu.astype(np.int16), np.diag([-1.0, -1.0, 5.0, 1.0])).to_filename(tmp_path / "ct.nii.gz")  # LPS
    model = words["output_dir"] / "model.pt"
    common = {"dataset_dir": tmp_path / "ct.nii.gz", "ckpt_path": model, "device_name": "cpu", "amp": False}

    def found(name: str, **more: Any) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
        here("inference", **common, output_dir=tmp_path / name, pictures=0, **more)
        written = json.loads((tmp_path / name / "detections.json").read_text())
        rows = written["series"][0]["findings"]
        slices = {n: [row for row in rows if row["slice_index"] == n] for n in range(9)}
        return written["model"], {
            n: findings([row["box_px"] for row in some], [row["score"] for row in some]) for n, some in slices.items()
        }

    checkpoint.store_across_slices(model, None)
    facts, plain = found("plain", score_threshold=0.0)
    assert facts["across_slices"] is False
    expected = rescore_series(plain, 5.0, STAGE)
    score = float(np.median(np.concatenate([item["score"] for item in expected.values()])))
    checkpoint.store_across_slices(model, {**STAGE.to_dict(), "score": score})
    facts, second = found("second")
    assert facts["across_slices"] is True
    assert facts["score_threshold"] == score
    kept = {n: item["score"] >= score for n, item in expected.items()}
    assert 0 < sum(map(sum, kept.values())) < sum(map(len, kept.values()))
    for n, item in expected.items():
        np.testing.assert_allclose(second[n]["score"], item["score"][kept[n]], atol=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(words: dict[str, Any], tmp_path: Path) -> None:
    checkpoint.store_across_slices(words["output_dir"] / "model.pt", {**STAGE.to_dict(), "score": 0.05})
    written = []
    for processes in (1, 2):
        overlay = [] if processes == 1 else ["multi_gpu_train"]
        report = tmp_path / str(processes)
        run("train", "evaluate", *overlay, processes=processes, **words, report_dir=report)
        written.append([(report / name).read_text() for name in ("metrics.json", "predictions.json")])
    assert written[0] == written[1]
