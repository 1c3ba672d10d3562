"""What happened in pretraining and the rounds of mining: a JSON file, a plot, and on demand an MLflow run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from data_prep.atomic import atomic_path, write_json
from data_prep.categorize.finetune import Epoch
from data_prep.errors import DataPrepError

ROUNDS_VERSION = 1
EXPERIMENT = "lesion categories"
RUN_FILE = "mlflow_run.json"


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the clustering of one network's features.

    Attributes:
        number: from 1; round 1 has ImageNet's weights, or the pretrained ones.
        agreement: normalised mutual information with the round before; None in round 1.
        rand_index: adjusted Rand index with the round before.
        silhouette: mean silhouette of (at most 2,000 of) the fitted lesions.
        sizes: fitted lesions a category, falling.
        repairs: categories that were too small or too large and made anew.
        epochs: of the fine-tuning that made this round's network; none in round 1.
    """

    number: int
    agreement: float | None
    rand_index: float | None
    silhouette: float
    sizes: tuple[int, ...]
    repairs: int
    epochs: tuple[Epoch, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Round:
        """What ``asdict`` made, after a round trip through JSON."""
        epochs = tuple(Epoch(**epoch) for epoch in values["epochs"])
        return cls(**{**values, "sizes": tuple(map(int, values["sizes"])), "epochs": epochs})


@dataclass(frozen=True, slots=True)
class Rounds:
    """All rounds.

    Attributes:
        taken: number of the round whose network is used.
        stopped: why no round followed, in words.
        rounds: each of them.
        pretraining: the epochs before round 1, if any; their accuracy is the part of the held-out crops of which two
            views fall to the same prototype.
    """

    taken: int
    stopped: str
    rounds: tuple[Round, ...] = field(default_factory=tuple)
    pretraining: tuple[Epoch, ...] = ()


def write_rounds(rounds: Rounds, folder: Path) -> list[Path]:
    """Write ``rounds.json`` and ``rounds.png``."""
    write_json(folder / "rounds.json", {"schema_version": ROUNDS_VERSION, **asdict(rounds)})
    _plot(rounds, folder / "rounds.png")
    return [folder / "rounds.json", folder / "rounds.png"]


def _plot(rounds: Rounds, path: Path) -> None:
    figure = Figure(figsize=(11, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    agreement, sizes, losses = figure.subplots(1, 3)
    numbers = [r.number for r in rounds.rounds]
    agreement.plot(
        numbers,
        [float("nan") if r.agreement is None else r.agreement for r in rounds.rounds],
        marker="o",
        label="NMI with the round before",
    )
    agreement.plot(numbers, [r.silhouette for r in rounds.rounds], marker="s", label="silhouette")
    agreement.axvline(rounds.taken, color="0.8", zorder=0)
    agreement.set(xlabel=f"round (the line: round {rounds.taken}, taken)", ylim=(min(0, *agreement.get_ylim()), 1))
    agreement.xaxis.set_major_locator(MaxNLocator(integer=True))
    agreement.legend(fontsize=7)
    below = [0] * len(numbers)
    for category in range(len(rounds.rounds[0].sizes)):
        heights = [r.sizes[category] for r in rounds.rounds]
        sizes.bar(numbers, heights, bottom=below, edgecolor="white")
        below = [a + b for a, b in zip(below, heights, strict=True)]
    sizes.set(xlabel="round", ylabel="fitted lesions a category")
    sizes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _draw_losses(losses, [(r.number, r.epochs) for r in rounds.rounds], ("training", "hold-out"), "hold-out accuracy")
    _draw_losses(losses, [(1, rounds.pretraining)], ("pretraining", "its hold-out"), "its views that agree")
    losses.set(xlabel="round, by epoch", ylim=(0, None))
    if losses.lines:
        losses.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_losses(
    axis: Axes, trainings: Sequence[tuple[int, Sequence[Epoch]]], names: tuple[str, str], accuracy: str
) -> None:
    """The epochs that made each round's network, in the unit of the axis that ends at the round's number."""
    at, train, at_held, held, right = [], [], [], [], []
    for number, epochs in trainings:
        for index, epoch in enumerate(epochs, start=1):
            at.append(number - 1 + index / len(epochs))
            train.append(epoch.training_loss)
            if epoch.holdout_loss is not None and epoch.holdout_accuracy is not None:
                at_held.append(at[-1])
                held.append(epoch.holdout_loss)
                right.append(epoch.holdout_accuracy)
    if at:
        axis.plot(at, train, ".-", label=f"{names[0]} loss")
        axis.plot(at_held, held, ".-", label=f"{names[1]} loss")
        axis.plot(at_held, right, ".--", label=accuracy)


class Tracking:
    """One MLflow run for one output folder and one making; a resumed run goes on with its own.

    Args:
        uri: of the tracking store, e.g. ``sqlite:////home/me/mlruns.db``.
        folder: the output folder; its ``mlflow_run.json`` names the run.
        fingerprint: of inputs and settings; another one gets a new run.
        params: logged once; nothing that names a patient.

    Raises:
        DataPrepError: the store cannot be used.
    """

    def __init__(self, uri: str, folder: Path, fingerprint: str, params: Mapping[str, object]) -> None:
        # MLflow would report its use to its makers; an archive's machine talks to nobody unless its owner says so.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.exceptions import MlflowException  # here, because it takes seconds to import

        try:
            self._open(uri, folder, fingerprint, params)
        except MlflowException as error:
            raise DataPrepError(
                f"--tracking-uri {uri}: not an MLflow store that can be used; give e.g. sqlite:////folder/mlruns.db"
            ) from error

    def _open(self, uri: str, folder: Path, fingerprint: str, params: Mapping[str, object]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self.client = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # Without this, the artifacts of a SQLite store land in whatever folder one stands in.
            where = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
            location = where.as_uri() if uri.startswith("sqlite:///") else None
            experiment_id = self.client.create_experiment(EXPERIMENT, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        file = folder / RUN_FILE
        key = {"uri": uri, "fingerprint": fingerprint}
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
            if {name: known[name] for name in key} != key:
                raise LookupError("another run")
            self.run_id = self.client.get_run(known["run_id"]).info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
        except (OSError, ValueError, LookupError, TypeError, MlflowException):
            self.run_id = self.client.create_run(experiment_id, run_name=folder.resolve().name).info.run_id
            self.client.log_batch(self.run_id, params=[Param(k, str(v)[:6000]) for k, v in params.items()])
            write_json(file, {**key, "run_id": self.run_id})
        logged = self.client.get_metric_history(self.run_id, "silhouette")
        self.logged = {metric.step for metric in logged}

    def log(self, one: Round) -> None:
        """Log a round's figures, at the step of its number; losses by epoch over all rounds."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        if one.number in self.logged:
            return
        now = get_current_time_millis()
        values: dict[str, float | None] = {
            "agreement_nmi": one.agreement,
            "agreement_ari": one.rand_index,
            "silhouette": one.silhouette,
            "repairs": one.repairs,
            **{f"size/category-{number}": size for number, size in enumerate(one.sizes)},
        }
        metrics = [Metric(name, float(v), now, one.number) for name, v in values.items() if v is not None]
        for index, epoch in enumerate(one.epochs):
            step = (one.number - 2) * len(one.epochs) + index + 1
            metrics += [Metric(name, float(v), now, step) for name, v in asdict(epoch).items() if v is not None]
        self.client.log_batch(self.run_id, metrics=metrics)
        self.logged.add(one.number)

    def log_pretraining(self, epochs: Sequence[Epoch]) -> None:
        """Log the epochs before round 1, from step 1, where that was not done yet."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        if not epochs or self.client.get_metric_history(self.run_id, "pretraining/training_loss"):
            return
        now = get_current_time_millis()
        metrics = [
            Metric(f"pretraining/{name}", float(v), now, step)
            for step, epoch in enumerate(epochs, start=1)
            for name, v in asdict(epoch).items()
            if v is not None
        ]
        self.client.log_batch(self.run_id, metrics=metrics)

    def finish(self, artifacts: Sequence[Path], rounds: Rounds) -> None:
        """Log the files and close the run."""
        for path in artifacts:
            self.client.log_artifact(self.run_id, str(path))
        self.client.set_tag(self.run_id, "taken", str(rounds.taken))
        self.client.set_tag(self.run_id, "stopped", rounds.stopped)
        self.client.set_terminated(self.run_id)
