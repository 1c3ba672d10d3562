"""Fine-tune the network's last stages so that they predict the categories of the clustering."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from data_prep.categorize.backbone import FeatureExtractor, Tail
from data_prep.categorize.crops import SCALES
from data_prep.errors import DataPrepError
from data_prep.splits import tuning_patients

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How the network is fine-tuned in one round.

    Attributes:
        epochs: passes over the lesions.
        batch_size: lesions a step.
        learning_rate: of the network's last stages, highest of a cosine with a warm-up over a tenth of the steps.
        head_learning_rate: of the new classifiers.
        weight_decay: of AdamW.
        dropout: before the classifiers.
        label_smoothing: the labels of a clustering are not certain.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 3e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.02
    dropout: float = 0.3
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if (
            self.epochs < 1
            or self.batch_size < 2
            or not all(0 <= value < 1 for name, value in asdict(self).items() if name not in ("epochs", "batch_size"))
        ):
            raise ValueError("fine-tuning needs at least one epoch, batches of two or more, and rates from 0 below 1")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch: mean training loss, and loss and accuracy on the held-out patients (None where there are none)."""

    training_loss: float
    holdout_loss: float | None
    holdout_accuracy: float | None


def class_weights(labels: Labels, size: int) -> torch.Tensor:
    """(size,) inverse square root of each category's frequency, mean 1 over the lesions: no category is given up."""
    counts = np.bincount(labels, minlength=size).clip(1)
    weights = 1 / np.sqrt(counts)
    return torch.from_numpy(weights * len(labels) / (weights * counts).sum()).float()


class _Network(nn.Module):
    """The tail on each scale, the scales' features side by side, one linear classifier a labelling."""

    def __init__(self, tail: nn.Module, width: int, sizes: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.tail = tail
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Linear(len(SCALES) * width, size) for size in sizes)

    def forward(self, activations: torch.Tensor) -> list[torch.Tensor]:
        """(N, 3, channels, height, width) of the trunk -> logits (N, size) of each classifier."""
        x = activations.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.dropout(self.tail(x).reshape(len(activations), -1))
        return [head(features) for head in self.heads]


def _batch(
    activations: npt.NDArray[np.float16],
    views: npt.NDArray[np.int64] | int,
    rows: npt.NDArray[np.int64],
    device: torch.device,
) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(activations[views, rows])).to(device).float()


def fine_tune(
    activations: npt.NDArray[np.float16],
    labellings: Sequence[Labels],
    patients: Sequence[str],
    extractor: FeatureExtractor,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Tail, list[Epoch]]:
    """Train the tail, from the extractor's weights, to tell the categories of all labellings apart.

    Patients that :func:`data_prep.splits.tuning_patients` picks are not trained on; the weights of the epoch with the
    lowest loss on them are taken.

    Args:
        activations: (views, N, 3, channels, height, width) of the trunk; view 0 is the plain one.
        labellings: each (N,), categories from 0; the first is the one whose accuracy is reported.
        patients: of the N lesions.
        extractor: where the tail starts.
        settings: how.
        seed: of order, views, dropout and classifiers.

    Returns:
        The tail's weights on the CPU, and the epochs.

    Raises:
        DataPrepError: the loss is not finite.
    """
    device = extractor.device
    held = tuning_patients(patients)
    is_held = np.array([patient in held for patient in patients])
    train, holdout = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    targets = [torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device) for labels in labellings]
    sizes = [int(labels.max()) + 1 for labels in labellings]
    weights = [class_weights(labels[train], size).to(device) for labels, size in zip(labellings, sizes, strict=True)]
    # The seeds are set for this block only: callers keep their own random state.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        start = copy.deepcopy(extractor.tail)  # before the seed is set: building the network draws random numbers
        torch.manual_seed(seed)
        order = np.random.default_rng(seed)
        network = _Network(
            start,
            extractor.width,
            sizes,
            settings.dropout,
        ).to(device)
        optimizer = torch.optim.AdamW(
            [
                {"params": network.tail.parameters(), "lr": settings.learning_rate},
                {"params": network.heads.parameters(), "lr": settings.head_learning_rate},
            ],
            weight_decay=settings.weight_decay,
        )
        size = settings.batch_size
        steps = max(1, len(train) // size) * settings.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        epochs: list[Epoch] = []
        best, lowest = network.tail.state_dict(), math.inf

        def loss_of(
            rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64] | int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            logits = network(_batch(activations, views, rows, device))
            index = torch.from_numpy(rows).to(device)
            losses = [
                cross_entropy(out, target[index], weight=weight, label_smoothing=settings.label_smoothing)
                for out, target, weight in zip(logits, targets, weights, strict=True)
            ]
            return torch.stack(losses).mean(), (logits[0].argmax(1) == targets[0][index]).float().mean()

        with tqdm(total=steps, desc="fine-tuning", unit="step", disable=not progress) as bar:
            for _ in range(settings.epochs):
                network.train()
                shuffled = order.permutation(train)
                # The last, smaller batch joins the one before: batch norm needs more than a few lesions.
                batches = np.array_split(shuffled, max(1, len(shuffled) // size))
                total = 0.0
                for rows in batches:
                    views = order.integers(0, len(activations), len(rows))
                    loss, _ = loss_of(rows, views)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                    total += float(loss.detach()) * len(rows)
                    bar.update()
                if not math.isfinite(total):
                    raise DataPrepError("fine-tuning the network diverged (its loss is not finite); use --rounds 1")
                network.eval()
                loss_held, right = None, None
                if len(holdout):
                    with torch.inference_mode():
                        parts = [
                            (len(rows), *loss_of(rows, 0)) for rows in np.array_split(holdout, -(-len(holdout) // 64))
                        ]
                    loss_held = sum(count * float(loss) for count, loss, _ in parts) / len(holdout)
                    right = sum(count * float(hit) for count, _, hit in parts) / len(holdout)
                epochs.append(Epoch(total / len(train), loss_held, right))
                if loss_held is None or loss_held < lowest:
                    lowest = math.inf if loss_held is None else loss_held
                    best = {name: value.detach().cpu().clone() for name, value in network.tail.state_dict().items()}
    return {name: value.detach().cpu().contiguous() for name, value in best.items()}, epochs


def _rate(step: int, steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine to 0."""
    warm = max(1, steps // 10)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.inference_mode()
def tail_features(
    activations: npt.NDArray[np.float16], extractor: FeatureExtractor, tail: Tail, *, lesions_per_batch: int = 64
) -> npt.NDArray[np.float16]:
    """(N, 3, width) features of the plain views by a fine-tuned tail."""
    network = copy.deepcopy(extractor.tail)
    network.load_state_dict(tail)
    network.eval()
    rows = np.arange(activations.shape[1])
    out = []
    for part in np.array_split(rows, -(-len(rows) // lesions_per_batch)):
        x = _batch(activations, 0, part, extractor.device).flatten(0, 1)
        values = network(x.contiguous(memory_format=torch.channels_last))
        out.append(values.reshape(len(part), len(SCALES), -1).half().cpu().numpy())
    return np.concatenate(out)
