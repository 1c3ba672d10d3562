"""What happens in one training iteration, and in what order the learning rate goes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, ProgressBar
from monai.engines.trainer import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scripts import distributed
from scripts.dense import MARGIN_PX
from scripts.device import autocast_dtype, choose
from scripts.errors import BundleError
from scripts.unmarked import Remedy


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Images stacked to (B, C, X, Y); boxes, labels and everything else as lists, because their lengths differ."""
    return {
        "image": torch.stack([item["image"] for item in items]),
        **{key: [item[key] for item in items] for key in items[0] if key != "image"},
    }


def no_loss(*_: Any) -> None:
    """What the trainer is given as loss function: the losses are the detector's own."""


def parameter_groups(network: nn.Module, body_rate: float, rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Pretrained body with its own learning rate; no weight decay on biases and norms (they are vectors)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((".body." in f".{name}", parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": body_rate if body else rate,
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (body, matrix), parameters in groups.items()
    ]


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: int, final_share: float = 0.01) -> LambdaLR:
    """Learning rate: linear over ``warmup`` steps, then a cosine to ``final_share`` of it at ``steps``.

    Raises:
        BundleError: ``final_share`` is not in 0..1 (1: no decay).
    """
    if not 0 <= final_share <= 1:
        raise BundleError(f"final_rate_share must be in 0..1, got {final_share}")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def average_of(network: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a network's weights (and buffers)."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


class TrainStep:
    """``iteration_update`` of the trainer.

    MONAI's own iteration cannot take a detector's dict of losses and hard-codes ``autocast("cuda")``.

    Args:
        detector: :class:`scripts.detector.LesionDetector`.
        optimizer, scheduler: stepped each iteration.
        average: the moving average to update.
        device: where to compute.
        amp: see :func:`scripts.device.autocast_dtype`.
        clip: greatest norm of the gradient; None: as it is.
        unmarked: what to do about lesions without a mark; the detector gets it.

    Raises:
        BundleError: ``clip`` is not positive.
    """

    def __init__(
        self,
        detector: nn.Module,
        optimizer: Optimizer,
        scheduler: LambdaLR,
        average: AveragedModel,
        device: str | torch.device,
        amp: bool | str = "auto",
        clip: float | None = 10.0,
        unmarked: Remedy | None = None,
    ) -> None:
        if clip is not None and not clip > 0:
            raise BundleError(f"clip_gradient must be more than 0, or null, got {clip}")
        self.detector, self.optimizer, self.scheduler, self.average = detector, optimizer, scheduler, average
        self.unmarked = Remedy() if unmarked is None else unmarked
        self.device = choose(device)
        self.dtype = autocast_dtype(amp, self.device)
        self.clip = clip
        inner: Any = getattr(detector, "module", detector)  # inside DistributedDataParallel
        inner.unmarked = self.unmarked
        self.dense: bool = inner.dense_weight > 0
        self.network: nn.Module = inner.network
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # GroupNorm and depthwise convolutions are far faster this way round on CPU and GPU alike.
        detector.to(memory_format=torch.channels_last)

    def __call__(self, engine: Engine, batch: dict[str, Any]) -> dict[str, float]:
        self.detector.train()
        images = batch["image"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        targets = [
            {"box": box.to(self.device), "label": label.to(self.device)}
            for box, label in zip(batch["box"], batch["label"], strict=True)
        ]
        if self.dense:
            for target, ends, factor in zip(targets, batch["recist_px"], batch["resize_factor"], strict=True):
                target["recist_px"] = ends.to(self.device)
                target["margin_px"] = (MARGIN_PX * factor[:2]).to(self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            self.unmarked.begin(images, targets)
            losses: dict[str, Tensor] = self.detector(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {float(loss)} at iteration {engine.state.iteration}; "
                "lower --learning_rate or set --amp False"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.network)
        return {"loss": float(loss.detach()), **{name: float(value.detach()) for name, value in losses.items()}}


class SeedEpochs:
    """Seed shuffling and augmentation from (seed, epoch), so that a resumed training sees what it would have seen."""

    def __init__(self, loader: Any, seed: int) -> None:
        self.loader, self.seed = loader, seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        # An epoch after the first takes its data anew only here, when the old iterator has drawn once more to end.
        engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, self)

    def __call__(self, engine: Engine) -> None:
        if hasattr(self.loader.sampler, "set_epoch"):
            self.loader.sampler.set_epoch(engine.state.epoch)
        # Each process augments in its own way.
        seed = self.seed * 100_003 + engine.state.epoch + 7_919 * idist.get_rank()
        torch.manual_seed(seed)
        if self.loader.generator is not None:
            self.loader.generator.manual_seed(seed)
        transform: Any = getattr(self.loader.dataset, "transform", None)
        if hasattr(transform, "set_random_state"):
            transform.set_random_state(seed=seed % 2**32)


class TimeBudget:
    """End the training in good order when its wall-clock time is used up; time before a resume counts."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self.used_before = 0.0
        self.started = time.monotonic()

    @property
    def used(self) -> float:
        """Seconds of training so far, earlier runs included."""
        return self.used_before + time.monotonic() - self.started

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self.started = time.monotonic()

    def __call__(self, engine: Engine) -> None:
        if self.minutes is not None and distributed.agree(self.used > 60 * self.minutes):
            engine.logger.warning("the time budget of %g minutes is used up; stopping here", self.minutes)
            engine.terminate()


class StopEarly:
    """End the training when the tuning patients' figure no longer rises: ignite's ``EarlyStopping``, resumable.

    Attached to the evaluator of the tuning patients and to the trainer, there after the resumable state, which it
    belongs into: a training that has stopped does not go on when it is started again, unless with more patience.

    Args:
        patience: looks at the tuning patients without a better figure; None: never.
        key: the metric, of which more is better.

    Raises:
        BundleError: ``patience`` is below 1.
    """

    def __init__(self, patience: int | None, key: str = "average_sensitivity") -> None:
        if patience is not None and patience < 1:
            raise BundleError(f"patience must be 1 or more, or null for no early stopping; got {patience}")
        # Looks are counted without patience too, so that a resumption may ask for some.
        nobody = Engine(lambda *_: None)  # until the trainer is known
        self.rule = EarlyStopping(patience or sys.maxsize, lambda engine: engine.state.metrics.get(key, 0.0), nobody)

    def attach(self, engine: Engine) -> None:
        if isinstance(engine, Trainer):
            self.rule.trainer = engine
            engine.add_event_handler(Events.STARTED, self._stay_stopped)
        else:
            # Not by the rule's own `attach`, which makes it forget at every start of the evaluator.
            engine.add_event_handler(Events.COMPLETED, self.rule)

    def _stay_stopped(self, engine: Engine) -> None:
        if self.rule.counter >= self.rule.patience:
            engine.logger.info("stopped early before; a larger --patience goes on")
            engine.terminate()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.rule.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rule.load_state_dict(state)


class Progress:
    """A progress bar an epoch, with the running loss."""

    def attach(self, engine: Engine) -> None:
        if not distributed.is_main():
            return
        ProgressBar(persist=False, desc="training" if isinstance(engine, Trainer) else "detecting").attach(
            engine, output_transform=lambda out: {"loss": out["loss"]} if isinstance(out, dict) else {}
        )


class Use:
    """Attach a handler that is defined elsewhere in the config.

    MONAI's property check wants every entry of a handler list to be a ``_target_``, not a reference.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def attach(self, engine: Engine) -> None:
        self.handler.attach(engine)
