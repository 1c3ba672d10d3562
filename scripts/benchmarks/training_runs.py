"""What MLflow has kept of a training: how fast it was, and its learning curve."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run_of(store: Path, run: str) -> Any:
    """The MLflow run of a name, and the client that reads it."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (found,) = client.search_runs(experiments, f"attributes.run_name = '{run}'")
    return client, found


def pace(store: Path, run: str, batch_size: int = 8) -> str:
    """How fast the training was, in words; the median epoch."""
    client, found = run_of(store, run)
    medians = {}
    for key in ("seconds_per_step", "waiting_for_data", "peak_memory_mib"):
        medians[key] = statistics.median(
            metric.value for metric in client.get_metric_history(found.info.run_id, f"train/{key}")
        )
    return (
        f"Training: {batch_size / medians['seconds_per_step']:.1f} images/s, of which waiting for data takes "
        f"{medians['waiting_for_data']:.1%} of the time (aim: under 5 %), in {medians['peak_memory_mib']:,.0f} MiB; "
        "the median epoch."
    )


def learning_curve(store: Path, runs: Mapping[str, Sequence[str]], target: Path) -> None:
    """Training loss and the tuning patients' mean sensitivity over the epochs of all cycles, from MLflow.

    Args:
        store: MLflow's.
        runs: recipe -> names of its trainings, cycle by cycle; one line each.
        target: PNG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for key, label, side, colour in (
        ("train/loss", "training loss", axes, "C0"),
        ("tuning/average_sensitivity", "tuning patients: mean sensitivity at .5 to 4 FP", axes.twinx(), "C1"),
    ):
        for recipe, style in zip(runs, itertools.cycle(("-", "--", ":", "-.")), strict=False):
            done = 0
            for run in runs[recipe]:
                client, found = run_of(store, run)
                history = sorted(client.get_metric_history(found.info.run_id, key), key=lambda metric: metric.step)
                steps, values = [done + metric.step for metric in history], [metric.value for metric in history]
                side.plot(steps, values, color=colour, linestyle=style, marker=".")
                done += history[-1].step
        side.set_ylabel(label, color=colour, fontsize=8)
        low, high = side.get_ylim()
        room = max(0.0, 0.1 - (high - low)) / 2  # a hundredth shall not look like a leap
        side.set_ylim(low - room, high + room)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(target, dpi=120)
    plt.close(figure)
