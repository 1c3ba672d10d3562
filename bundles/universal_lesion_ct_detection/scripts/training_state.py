"""The whole state of a training on disk, to go on from after a kill."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from scripts import distributed
from scripts.checkpoint import read, save
from scripts.errors import BundleError


class ResumableState:
    """Save the whole training state after every epoch; on start go on from it where there is one.

    Args:
        path: of the state file.
        objects: name -> object with ``state_dict`` and ``load_state_dict``.
        fingerprint: what must be the same for a resume (datalist hash, configuration); a different one is an error,
            because mixing two trainings in one folder would spoil both.
        budget: :class:`scripts.training.TimeBudget`, whose used time is kept.
    """

    def __init__(self, path: str | PathLike[str], objects: dict[str, Any], fingerprint: str, budget: Any) -> None:
        self.path, self.objects, self.fingerprint, self.budget = Path(path), objects, fingerprint, budget
        self.best: float | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.store)

    def restore(self, engine: Engine) -> None:
        if not self.path.is_file():
            return
        content = read(self.path)
        if content.get("fingerprint") != self.fingerprint:
            raise BundleError(
                f"{self.path}: belongs to a training with other data or settings; choose another --output_dir, or "
                "delete this one to start anew"
            )
        for name, target in self.objects.items():
            target.load_state_dict(content["objects"][name])
        engine.state.epoch = content["epoch"]
        engine.state.iteration = content["iteration"]
        self.best = content["best"]
        self.budget.used_before = content["seconds"]
        engine.logger.info("going on after epoch %d", content["epoch"])

    def store(self, engine: Engine) -> None:
        if not distributed.is_main():
            return
        save(
            self.path,
            {
                "fingerprint": self.fingerprint,
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "best": self.best,
                "seconds": self.budget.used,
                "objects": {name: target.state_dict() for name, target in self.objects.items()},
            },
        )
