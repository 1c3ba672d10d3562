"""Self-supervised pretraining of the network's last stages on the training patients' crops: contrastive clustering.

SwAV (Caron et al., Unsupervised learning of visual features by contrasting cluster assignments, NeurIPS 2020): two
views of one crop are softly assigned to prototypes that share the crops evenly, and the features of either view learn
to predict the assignment of the other. Library versions (lightly's ``SwaVLoss``) come with Lightning and Hydra for
training whole networks on images, whereas here only the last stages learn, on the activations that
:mod:`data_prep.categorize.views` has stored, so that little more than the Sinkhorn-Knopp steps below could be shared.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from torch import nn
from torch.nn.functional import log_softmax, normalize
from tqdm import tqdm

from data_prep.atomic import atomic_path, make_folder
from data_prep.categorize.backbone import FeatureExtractor, Tail, tail_sha256
from data_prep.categorize.crops import SCALES, CropSettings
from data_prep.categorize.finetune import Epoch, tail_features
from data_prep.categorize.mining import fingerprint
from data_prep.categorize.space import BlockWeights, FeatureSpace
from data_prep.categorize.views import Augmentation, view_activations
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion
from data_prep.splits import tuning_patients

FORMAT = 1
"""Of the pretrained tail's file, and of whatever in this code changes the tail: part of the fingerprint."""

TAIL_FILE = "tail.safetensors"


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """How the network is pretrained; the paper's values, but for what must suit 1,500 lesions and a few epochs.

    Attributes:
        epochs: passes over the crops.
        batch_size: crops a step, each in two views.
        prototypes: how many; fewer where there are fewer crops.
        temperature: of the predictions.
        epsilon: of the assignments, the entropy's weight; smaller is harder.
        iterations: of Sinkhorn-Knopp.
        queue: crops of earlier steps that the even sharing also counts, since a batch is smaller than the prototypes.
        learning_rate: of the network's last stages, highest of a cosine with a warm-up over a tenth of the steps.
        head_learning_rate: of projections and prototypes.
        weight_decay: of AdamW.
    """

    epochs: int = 3
    batch_size: int = 32
    prototypes: int = 64
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    queue: int = 512
    learning_rate: float = 3e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.02

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch_size - 1, self.prototypes - 1, self.iterations, self.queue + 1)
        if min(counts) < 1 or min(self.temperature, self.epsilon, self.learning_rate, self.head_learning_rate) <= 0:
            raise ValueError(
                "pretraining needs an epoch, two crops a step, two prototypes, and positive rates and temperatures"
            )


def sinkhorn(scores: torch.Tensor, iterations: int) -> torch.Tensor:
    """Soft assignments that share N rows evenly among K prototypes (Cuturi, Sinkhorn distances, NeurIPS 2013).

    Args:
        scores: (..., N, K) logarithms of positive weights: similarities over epsilon.
        iterations: of scaling columns, then rows.

    Returns:
        (..., N, K): each row sums to 1, each column to about N / K, the closer the more iterations.
    """
    for _ in range(iterations):
        scores = scores - scores.logsumexp(-2, keepdim=True)
        scores = scores - scores.logsumexp(-1, keepdim=True)
    return scores.exp()


def swapped_loss(cosines: torch.Tensor, assignments: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross entropy of each view's prediction with the other view's assignment; both (2, N, K)."""
    return -(assignments.flip(0) * log_softmax(cosines / temperature, -1)).sum(-1).mean()


class _Network(nn.Module):
    """The tail on each scale, a projection to length 1 of each, side by side; and prototypes among these.

    Projections begin as the principal components by which lesions are compared (:class:`FeatureSpace`) and prototypes
    as k-means centres, since some hundred steps are too few to find both from random ones.
    """

    def __init__(self, tail: nn.Module, features: npt.NDArray[np.float16], prototypes: int, seed: int) -> None:
        """``features``: (N, 3, width) of the plain views of the crops trained on."""
        super().__init__()
        self.tail = tail
        nowhere = np.full((len(features), 3), np.nan)
        space = FeatureSpace.fit(features, nowhere, replace(BlockWeights(), position=0.0))
        self.projections = nn.ModuleList()
        for mean, sd, components in zip(space.mean, space.sd, space.projection, strict=True):
            projection = nn.Linear(components.shape[1], components.shape[0])
            with torch.no_grad():
                projection.weight.copy_(torch.from_numpy(components / sd))
                projection.bias.copy_(torch.from_numpy(-components @ (mean / sd)))
            self.projections.append(projection)
        X = space.transform(features, nowhere)
        centres = KMeans(min(prototypes, len(X)), n_init=4, random_state=seed).fit(X).cluster_centers_
        self.prototypes = nn.Parameter(torch.from_numpy(centres).float())

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """(N, 3, channels, height, width) of the trunk -> (N, D) of length 1."""
        x = activations.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.tail(x).unflatten(0, (-1, len(SCALES))).unbind(1)
        blocks = [normalize(project(f), dim=-1) for project, f in zip(self.projections, features, strict=True)]
        return torch.cat(blocks, -1) / math.sqrt(len(SCALES))

    def cosines(self, points: torch.Tensor) -> torch.Tensor:
        """(..., N, D) points of length 1 -> (..., N, K) cosines with the prototypes."""
        return points @ normalize(self.prototypes, dim=-1).T


def pretrain(
    activations: npt.NDArray[np.float16],
    patients: Sequence[str],
    extractor: FeatureExtractor,
    settings: PretrainSettings,
    *,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Tail, list[Epoch]]:
    """Train the tail, from the extractor's weights, by SwAV on stored views of crops of training patients.

    As in :func:`data_prep.categorize.finetune.fine_tune`, patients that ``tuning_patients`` picks are not trained on,
    and the weights of the epoch with the lowest loss on them are taken. No category or type takes part.

    Args:
        activations: (views, N, 3, channels, height, width) of the trunk, two views or more; view 0 is the plain one.
        patients: of the N crops.
        extractor: where the tail starts.
        settings: how.
        seed: of order, views and the first prototypes.

    Returns:
        The tail's weights on the CPU, and the epochs; an epoch's accuracy is the part of the held-out crops whose
        two last views have the same nearest prototype.

    Raises:
        DataPrepError: fewer than two views, or than two crops to train on, or the loss is not finite.
    """
    count = len(activations)
    if count < 2:
        raise DataPrepError("contrastive clustering needs two views or more of each crop; ask for one moved view")
    device = extractor.device
    held = tuning_patients(patients)
    is_held = np.array([patient in held for patient in patients])
    train, holdout = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    if len(train) < 2:
        raise DataPrepError(f"{len(train)} lesion is not enough to pretrain on; harvest more, or leave --pretrain out")
    plain = tail_features(activations, extractor, extractor.tail.state_dict())
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = _Network(copy.deepcopy(extractor.tail), plain[train], settings.prototypes, seed).to(device)
    order = np.random.default_rng(seed)
    heads = [*network.projections.parameters(), network.prototypes]
    rates = [settings.learning_rate, settings.head_learning_rate]
    optimizer = torch.optim.AdamW(
        [{"params": part} for part in (network.tail.parameters(), heads)], weight_decay=settings.weight_decay
    )
    batches = max(1, len(train) // settings.batch_size)
    steps = batches * settings.epochs
    # A warm-up of less than two steps would divide by zero.
    warm = max(0.1, 2 / (steps + 1))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=steps + 1, pct_start=warm, cycle_momentum=False
    )

    def both(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """(2, n, D) points of two views of the rows."""
        views = np.concatenate([activations[first, rows], activations[second, rows]])
        points: torch.Tensor = network(torch.from_numpy(views).to(device).float()).unflatten(0, (2, -1))
        return points

    def assign(points: torch.Tensor) -> torch.Tensor:
        return sinkhorn(network.cosines(points) / settings.epsilon, settings.iterations)

    @torch.inference_mode()
    def judge_holdout() -> tuple[float | None, float | None]:
        if not len(holdout):
            return None, None
        parts = np.array_split(holdout, -(-len(holdout) // 64))
        last = [(np.full(len(rows), count - 2), np.full(len(rows), count - 1), rows) for rows in parts]
        points = torch.cat([both(*views) for views in last], dim=1)
        cosines = network.cosines(points)
        nearest = cosines.argmax(-1)
        loss = swapped_loss(cosines, assign(points), settings.temperature)
        return float(loss), float((nearest[0] == nearest[1]).float().mean())

    epochs: list[Epoch] = []
    best, lowest = network.tail.state_dict(), math.inf
    with tqdm(total=steps, desc="pretraining", unit="step", disable=not progress) as bar:
        queue = torch.empty(2, 0, network.prototypes.shape[1], device=device)
        for _ in range(settings.epochs):
            network.train()
            total = torch.zeros((), device=device)
            for rows in np.array_split(order.permutation(train), batches):
                first = order.integers(0, count, len(rows))
                points = both(first, (first + order.integers(1, count, len(rows))) % count, rows)
                with torch.no_grad():
                    assignments = assign(torch.cat([points, queue], dim=1))[:, : len(rows)]
                loss = swapped_loss(network.cosines(points), assignments, settings.temperature)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                queue = torch.cat([points.detach(), queue], dim=1)[:, : settings.queue]
                total += loss.detach() * len(rows)
                bar.update()
            training_loss = float(total) / len(train)
            if not math.isfinite(training_loss):
                raise DataPrepError("pretraining diverged (its loss is not finite); leave --pretrain out")
            network.eval()
            loss_held, agreeing = judge_holdout()
            epochs.append(Epoch(training_loss, loss_held, agreeing))
            if loss_held is None or loss_held < lowest:
                lowest = math.inf if loss_held is None else loss_held
                best = {name: value.detach().cpu().clone() for name, value in network.tail.state_dict().items()}
    return {name: value.detach().cpu().contiguous() for name, value in best.items()}, epochs


# --- once for all runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A pretrained network.

    Attributes:
        tail: its last stages.
        epochs: of the training, see :func:`pretrain`.
        scratch: where the views of the lesions lie while they are needed; whoever used them last removes the file.
    """

    tail: Tail
    epochs: tuple[Epoch, ...]
    scratch: Path


def pretrain_once(
    lesions: Sequence[Lesion],
    features: npt.NDArray[np.float16],
    *,
    patients: Sequence[str],
    images: Path,
    folder: Path,
    extractor: FeatureExtractor,
    crops: CropSettings,
    settings: PretrainSettings,
    views: int,
    augmentation: Augmentation,
    seed: int = 0,
    activations: npt.NDArray[np.float16] | None = None,
    progress: bool = True,
) -> Pretrained:
    """Pretrain on lesions' crops, or take what an earlier run with the same input and settings made.

    Args:
        lesions: N lesions of training patients, all with readable slices.
        features: (N, 3, width) by the extractor.
        patients: of the lesions.
        images: the images folder.
        folder: for the state: one subfolder a fingerprint, in it the tail's file and, for a while, the views.
        extractor: where the tail starts.
        crops: what it sees.
        settings: of the training.
        views: moved views of a lesion, 1 or more.
        augmentation: how they are moved.
        seed: of training and views.
        activations: as for :func:`~.mining.mine`: the views where the caller keeps them.

    Raises:
        DataPrepError: see :func:`pretrain`.
    """
    decides: dict[str, object] = {"pretraining_format": FORMAT, "pretraining": asdict(settings)}
    decides |= {"crops": asdict(crops), "views": views, "augmentation": asdict(augmentation), "seed": seed}
    mark = fingerprint(features, lesions, patients, extractor, decides)
    state = make_folder(folder / f"pretrain-{mark[:16]}")
    path, scratch = state / TAIL_FILE, state / "views.npy"
    found = _read(path)
    if found is None:
        if activations is None:
            activations = view_activations(
                lesions,
                images,
                extractor,
                crops,
                scratch,
                views=views,
                augmentation=augmentation,
                seed=seed,
                progress=progress,
            )
        tail, epochs = pretrain(activations, patients, extractor, settings, seed=seed, progress=progress)
        found = tail, tuple(epochs)
        _write(path, *found)
    return Pretrained(*found, scratch)


def _write(path: Path, tail: Tail, epochs: Sequence[Epoch]) -> None:
    said = {"sha256": tail_sha256(tail), "epochs": [asdict(epoch) for epoch in epochs]}
    with atomic_path(path) as temporary:
        save_file(dict(tail), temporary, metadata={"pretraining": json.dumps(said)})


def _read(path: Path) -> tuple[Tail, tuple[Epoch, ...]] | None:
    """A tail that was finished; None where there is none, or a damaged one, which is then made again."""
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})["pretraining"])
            tail = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        whole = said["sha256"] == tail_sha256(tail)
        return (tail, tuple(Epoch(**epoch) for epoch in said["epochs"])) if whole else None
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError):
        return None
