"""Parameters, metrics, plots and weights to MLflow; a resumed training continues its own run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.time import get_current_time_millis

from scripts import distributed
from scripts.evaluation import write_json
from scripts.report import Report

RUN_FILE = "mlflow_run.json"


def default_uri(output_dir: str | PathLike[str]) -> str:
    """``MLFLOW_TRACKING_URI`` where set, else a SQLite store ``mlruns.db`` in the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(output_dir).resolve() / 'mlruns.db'}"


def code_version(bundle_root: str | PathLike[str]) -> str:
    """The bundle's version, and the git commit where the bundle lies in a checkout."""
    root = Path(bundle_root)
    version: str = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{commit}"


def fingerprint(values: Mapping[str, Any]) -> str:
    """A hash of plain values, the same for the same values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


class Tracker:
    """One MLflow run for one output folder.

    MONAI's ``MLFlowHandler`` picks the latest unfinished run of a name, logs to the working folder's ``mlruns`` and
    does not close an evaluation's run; here the run's id is kept in the output folder, so training, its resumption and
    the evaluations afterwards are one run.

    Args:
        output_dir: of the training or evaluation; its ``mlflow_run.json`` names the run.
        uri: tracking URI; see :func:`default_uri`.
        experiment: name of the experiment, made with its artifacts beside a SQLite store.
        run_name: shown in the MLflow page.
        params: logged once; no patient names or IDs.
        prefix: of the metrics' names, e.g. ``evaluation/validation/``.
        artifacts: files to keep, logged at the end where they exist.
        report: its files are kept too.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        uri: str | None,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any] | None = None,
        prefix: str = "",
        artifacts: Sequence[PathLike[str] | str] = (),
        report: Report | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.uri = uri or default_uri(output_dir)
        self.experiment, self.run_name, self.prefix = experiment, run_name, prefix
        self.params = dict(params or {})
        self.artifacts, self.report = artifacts, report
        self.client: MlflowClient | None = None
        self.run_id = ""

    def attach(self, engine: Engine) -> None:
        if not distributed.is_main():
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.COMPLETED, self.complete)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine | None = None) -> None:
        """Open the store and the run: the folder's own where there is one, else a new one."""
        if self.client is not None:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(tracking_uri=self.uri)
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None:
            location = None
            if self.uri.startswith("sqlite:///"):
                # Without this, artifacts of a SQLite store land in ./mlruns of whatever folder one stands in.
                location = (Path(self.uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
            experiment_id = self.client.create_experiment(self.experiment, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        file = self.output_dir / RUN_FILE
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        store = hashlib.sha256(self.uri.encode()).hexdigest()  # an address may hold a password
        if store in (known.get("store"), hashlib.sha256(str(known.get("uri")).encode()).hexdigest()):
            self.run_id = known["run_id"]
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id = self.client.create_run(experiment_id, run_name=self.run_name).info.run_id
            write_json(file, {"store": store, "run_id": self.run_id})
        logged = self.client.get_run(self.run_id).data.params
        new = [Param(self._name(k), str(v)[:6000]) for k, v in self.params.items() if self._name(k) not in logged]
        self.client.log_batch(self.run_id, params=new)

    def _name(self, key: str) -> str:
        # MLflow allows letters, digits and _-.: /
        return re.sub(r"[^\w\-.: /]", "_", (self.prefix + key).replace("@", "_at_"))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics at a step."""
        assert self.client is not None
        now = get_current_time_millis()
        self.client.log_batch(
            self.run_id, metrics=[Metric(self._name(k), float(v), now, step) for k, v in values.items()]
        )

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        assert self.client is not None
        self.client.log_batch(self.run_id, tags=[RunTag(key, value)])

    def complete(self, engine: Engine | None = None) -> None:
        """Log the artifacts and close the run."""
        if self.client is None:
            return
        if engine is not None and engine.state.metrics:
            self.log(engine.state.metrics, getattr(engine.state, "training_epoch", engine.state.epoch))
        for path in (*self.artifacts, *(self.report.files if self.report else ())):
            if Path(path).is_file():
                self.client.log_artifact(self.run_id, str(path), self.prefix.strip("/") or None)
        self.client.set_terminated(self.run_id)
        self.client = None

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Mark the run as failed; a resume opens it again."""
        if self.client is not None:
            self.client.set_terminated(self.run_id, status="FAILED")
            self.client = None
        raise error


def peak_memory_mib() -> float | None:
    """Most memory so far: of the GPU where one is used, else of this process; None where the system does not say."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return None
    import resource  # POSIX alone has it

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


class LogTraining:
    """Training losses, learning rate and time every epoch, and the tuning patients' figures after each validation."""

    def __init__(self, tracker: Tracker, optimizer: Any, evaluator: Engine | None = None) -> None:
        self.tracker, self.optimizer, self.evaluator = tracker, optimizer, evaluator
        self.sums: dict[str, float] = {}
        self.count = 0
        self.epoch, self.waiting = Timer(), Timer()

    def attach(self, engine: Engine) -> None:
        if not distributed.is_main():
            return
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        # They start with the epoch; what the first batch takes, with workers to be started, is waiting too.
        self.epoch.attach(engine, start=Events.EPOCH_STARTED)
        self.waiting.attach(
            engine, start=Events.EPOCH_STARTED, resume=Events.GET_BATCH_STARTED, pause=Events.GET_BATCH_COMPLETED
        )
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._log_validation)

    def _add(self, engine: Engine) -> None:
        for name, value in engine.state.output.items():  # type: ignore[union-attr]
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def _log(self, engine: Engine) -> None:
        values = {f"train/{name}": total / self.count for name, total in self.sums.items()}
        values["train/learning_rate"] = self.optimizer.param_groups[-1]["lr"]
        seconds = self.epoch.value()
        values["train/seconds_per_step"] = seconds / self.count
        values["train/waiting_for_data"] = self.waiting.value() / seconds  # a share of the time
        memory = peak_memory_mib()
        if memory is not None:
            values["train/peak_memory_mib"] = memory
        self.tracker.log(values, engine.state.epoch)
        self.sums, self.count = {}, 0

    def _log_validation(self, engine: Engine) -> None:
        chosen = {
            f"tuning/{k}": v
            for k, v in engine.state.metrics.items()
            if k.startswith(("froc/", "average_sens", "accuracy"))
        }
        self.tracker.log(chosen, engine.state.training_epoch)  # type: ignore[attr-defined]
