"""A hospital of a few slices, and the bundle run on it as its users run it; shared by the end-to-end tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

BUNDLE_ROOT = Path(__file__).resolve().parents[2] / "bundles" / "universal_lesion_ct_detection"
SIZE = 96


def make_hospital(folder: Path, patients: int = 12) -> Path:
    """Slices with one bright disc in noise each; a datalist of two categories; its path."""
    generator = np.random.default_rng(0)
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "tuning": [], "validation": [], "test": []}
    for patient in range(patients):
        for number in range(3):
            x, y, r = generator.integers(25, 70), generator.integers(25, 70), generator.integers(5, 9)
            yy, xx = np.mgrid[:SIZE, :SIZE] + 0.5
            hu = generator.normal(40, 12, (SIZE, SIZE)) + 150 * ((xx - x) ** 2 + (yy - y) ** 2 < r * r)
            name = f"{patient:06d}_01_01/{number:03d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name), (np.rint(hu) + 32768).astype(np.uint16))
            pad = r + 5
            box = [float(v) for v in (x - pad, y - pad, x + pad, y + pad)]
            section = "training" if patient < 8 else "tuning" if patient < 10 else "validation"
            sections[section].append(
                {
                    "image": [name] * 3, "box": [box], "label": [int(r > 6)], "patient_id": f"{patient:06d}",
                    "spacing_mm": [1.0, 1.0, 5.0], "lesion_id": [name], "recist_px": [None], "coarse_type": [5],
                    "long_diameter_mm": [2.0 * float(r)], "short_diameter_mm": [2.0 * float(r)],
                    "image_size": [SIZE, SIZE], "slice_index": number,
                }
            )  # fmt: skip
    path = folder / "datalist.json"
    path.write_text(
        json.dumps({"schema_version": 1, "kind": "bookmarks", **sections, "categories": ["small", "large"]})
    )
    return path


def run(*configs: str, check: bool = True, processes: int = 1, **options: object) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle run``, or the same under torchrun."""
    names = [f"configs/{c}.yaml" for c in configs]
    config_file = names[0] if len(names) == 1 else repr(names)
    words = [str(w) for key, value in options.items() for w in (f"--{key}", value)]
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    )
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "monai.bundle", "run", "--config_file", config_file, *words],
        cwd=BUNDLE_ROOT, capture_output=True, text=True, timeout=400,
        env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


def here(*configs: str, **words: object) -> ConfigWorkflow:
    """The same in this process, which has everything imported: the workflow that has run. Errors are raised."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in words.items()}
    files = {"meta_file": "configs/metadata.json", "logging_file": "configs/logging.conf"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(BUNDLE_ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        workflow = ConfigWorkflow([f"configs/{name}.yaml" for name in configs], workflow_type=None, **files, **given)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    return workflow


def options(hospital: Path, output: Path, **more: object) -> dict[str, object]:
    return {
        "datalist": hospital, "dataset_dir": hospital.parent, "output_dir": output, "size": SIZE, "channels": 32,
        "workers": 0, "device_name": "cpu", "amp": False, "val_interval": 1, "ema_decay": 0.9, "batch_size": 4, **more,
    }  # fmt: skip
