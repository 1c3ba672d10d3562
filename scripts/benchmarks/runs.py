"""Detectors that are trained and judged, each in a folder of its own, and their lines in a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import with_interval
from stages import Stages, bundle

HEAD = (
    "| | .5 FP | 1 | 2 | 4 | 8 | 16 | mean of .5 to 4 | accuracy at IoU .5 |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)
NOTES = (
    "Sensitivity at false positives per image, IoU at least .5, categories ignored; accuracy: the highest-scoring box "
    "of a slice hits a lesion. In brackets 95 % bootstrap intervals by patient (1,000 replicates)."
)


def common(work: Path, name: str, images: Path, seed: int, output: Path | None = None) -> dict[str, Any]:
    """The options that training and evaluation share; the weights are in ``output`` (default: ``work / name``)."""
    return {
        "dataset_dir": images, "output_dir": output or work / name, "seed": seed, "run_name": name,
        "tracking_uri": f"sqlite:///{work / 'mlruns.db'}",
    }  # fmt: skip


def arm(
    stages: Stages, work: Path, name: str, *, train: Path, judge: Path, images: Path, seed: int,
    configs: tuple[str, ...] = ("train",), section: str = "validation", **options: object,
) -> dict[str, Any]:  # fmt: skip
    """Train (or only write untrained weights) and evaluate once; returns metrics.json."""
    trained(stages, work, name, train=train, images=images, seed=seed, configs=configs, **options)
    return evaluated(stages, work, name, judge=judge, images=images, seed=seed, section=section)


def trained(
    stages: Stages, work: Path, name: str, *, train: Path, images: Path, seed: int,
    configs: tuple[str, ...] = ("train",), **options: object,
) -> None:  # fmt: skip
    """Train once."""
    shared = common(work, name, images, seed)
    stages.run(f"{name}: train", bundle, *configs, datalist=train, **shared, **options)


def evaluation(name: str, section: str) -> str:
    """The name of the stage that evaluates an arm on a section."""
    return f"{name}: evaluate on {section}"


def evaluated(
    stages: Stages, work: Path, name: str, *, judge: Path, images: Path, seed: int, section: str,
    output: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate the weights in ``output`` (default: ``work / name``) on a section; returns metrics.json."""
    shared = common(work, name, images, seed, output)
    stages.run(evaluation(name, section), bundle, "train", "evaluate", datalist=judge, section=section, **shared)
    report = shared["output_dir"] / "evaluation" / section
    return json.loads((report / "metrics.json").read_text(encoding="utf-8"))


def judged_twice(
    stages: Stages, work: Path, name: str, *, train: Path, judge: Path, images: Path, seed: int, **options: object
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train once; metrics.json of the test and of the tuning patients."""
    judged: dict[str, Any] = {"judge": judge, "images": images, "seed": seed}
    test = arm(stages, work, name, train=train, section="test", **judged, **options)
    return test, evaluated(stages, work, name, section="tuning", **judged)


def row(name: str, metrics: Mapping[str, Any]) -> str:
    """A line of the table: name, sensitivities, their mean, accuracy."""

    cells = [f"{figure['value']:.3f}" for figure in metrics["froc"].values()]
    for figure in (metrics["average_sensitivity"], metrics["accuracy_at_iou"]["0.5"]):
        cells.append(with_interval(figure["value"], figure["low"], figure["high"]))
    return f"| {name} | " + " | ".join(cells) + " |"


def minutes(output: Path) -> str:
    """How long a training took in all, resumptions included."""
    import torch

    seconds = torch.load(output / "training_state.pt", map_location="cpu", weights_only=True)["seconds"]
    return f"{seconds / 60:.0f} minutes"
