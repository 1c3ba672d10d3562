"""What inference writes beside the findings."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from ignite.engine import Engine
from scripts.contract import make
from scripts.inference import SeriesDataset, WriteDetections


def test_pictures_of_an_earlier_series_do_not_stay(tmp_path: Path) -> None:
    nib.Nifti1Image(np.zeros((32, 32, 3), np.int16), np.diag([-0.8, -0.8, 2.5, 1])).to_filename(tmp_path / "a.nii")
    dataset = SeriesDataset(tmp_path / "a.nii", make(1, [[0, 255]], 64), progress=False)
    out = tmp_path / "out"
    writer = WriteDetections(out, dataset, ["lesion"], score_threshold=0.5)
    finding = {"box_px": np.array([[4.0, 4, 12, 12]]), "score": np.array([0.9]), "class": np.array([0])}
    nothing = {name: values[:0] for name, values in finding.items()}
    engine = Engine(lambda _engine, _batch: None)
    writer.attach(engine)
    for found, names in ((finding, ["detections.json", "overlays.png"]), (nothing, ["detections.json"])):
        engine.state.output = [{"slice_index": 1, **found}]
        writer._collect(engine)
        writer._write(engine)
        assert sorted(path.name for path in out.iterdir()) == names
