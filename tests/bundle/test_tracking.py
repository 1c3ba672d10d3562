"""What goes into MLflow."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from scripts.tracking import Tracker


def test_names_that_mlflow_refuses_are_changed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    tracker = Tracker(tmp_path / "out", uri, "lesions", "run", prefix="evaluation/")
    tracker.start()
    tracker.log({"by_category/liver (left)/froc/0.5": 0.25, "bone & joint, rechts": 0.5, "lung@0.5": 1.0}, step=1)
    stored = MlflowClient(uri).get_run(tracker.run_id).data.metrics
    assert sorted(stored.values()) == [0.25, 0.5, 1.0]
    assert "evaluation/by_category/liver _left_/froc/0.5" in stored
