"""The mining loop: cluster, teach the network the categories, cluster its new features, until the categories stay.

After Wang et al. (Unsupervised joint mining of deep features and image labels for large-scale radiology image
categorization and scene recognition, WACV 2017). Every round starts from the same weights again, ImageNet's or
pretrained ones, so a round depends on the labels of the one before and on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from data_prep.atomic import atomic_path, make_folder
from data_prep.categorize.backbone import FeatureExtractor, Tail
from data_prep.categorize.balance import Array, Labels
from data_prep.categorize.clustering import fit_clustering
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.finetune import Epoch, TrainingSettings, fine_tune, tail_features
from data_prep.categorize.rounds import Round, Rounds
from data_prep.categorize.space import BlockWeights, FeatureSpace, positions
from data_prep.categorize.views import Augmentation, view_activations
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion

FORMAT = 1
"""Of the rounds' files, and of whatever in this code changes what a round gives: part of the fingerprint."""


@dataclass(frozen=True, slots=True)
class MiningSettings:
    """How the loop runs.

    Attributes:
        rounds: at most; 1 clusters the features as they are and trains nothing.
        agreement: the loop stops when two rounds' categories share this normalised mutual information.
        finer: the network also learns a finer k-means clustering, of so many times more categories, where the
            lesions suffice (10 a category); 1 leaves it out.
        views: moved views of a lesion kept for training.
        augmentation: how they are moved.
        training: how the network learns.
    """

    rounds: int = 1
    agreement: float = 0.9
    finer: int = 10
    views: int = 2
    augmentation: Augmentation = field(default_factory=Augmentation)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.agreement <= 1 or self.finer < 1 or self.views < 0:
            raise ValueError("mining needs at least one round, an agreement in (0, 1], finer from 1, views from 0")


@dataclass(frozen=True, slots=True)
class Result:
    """What the loop found.

    Attributes:
        tails: fine-tuned weights of each round; None for round 1, whose network is the one the loop started from.
        labels: (N,) categories of each round.
        rounds: what happened.
    """

    tails: tuple[Tail | None, ...]
    labels: tuple[Labels, ...]
    rounds: Rounds

    @property
    def tail(self) -> Tail | None:
        """The weights of the round taken; None where it is the first."""
        return self.tails[self.rounds.taken - 1]


def fingerprint(
    features: npt.NDArray[np.float16],
    lesions: Sequence[Lesion],
    patients: Sequence[str],
    extractor: FeatureExtractor,
    settings: dict[str, object],
) -> str:
    """A hash of all that decides the result; the features stand for slices, boxes, crops and network."""
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **settings}, sort_keys=True).encode())
    digest.update(f"{extractor.identity}:{extractor.device.type}:{features.shape}".encode())
    digest.update(np.ascontiguousarray(features).tobytes())
    digest.update(positions(lesions).tobytes())
    ids = [lesion.lesion_id for lesion in lesions]
    digest.update(json.dumps([ids, list(patients)]).encode())
    return digest.hexdigest()


def mine(
    lesions: Sequence[Lesion],
    features: npt.NDArray[np.float16],
    categories: int,
    *,
    patients: Sequence[str],
    images: Path,
    folder: Path,
    extractor: FeatureExtractor,
    crops: CropSettings,
    weights: BlockWeights | None = None,
    method: str = "k-means",
    settings: MiningSettings | None = None,
    seed: int = 0,
    activations: npt.NDArray[np.float16] | None = None,
    scratch: Path | None = None,
    report: Callable[[str, Round], None] | None = None,
    progress: bool = True,
) -> Result:
    """Run the loop, or go on with it.

    Args:
        lesions: N lesions of training patients, all with readable slices.
        features: (N, 3, width) by the extractor.
        categories: how many.
        patients: of the lesions.
        images: the images folder.
        folder: for the state: one subfolder a fingerprint, in it one file a round.
        extractor: the network that every round starts from.
        crops: what it sees.
        weights: of the blocks.
        method: of the clustering.
        settings: of the loop.
        seed: of clustering and training, and of the views.
        activations: the lesions' :func:`~.views.view_activations` where the caller keeps them (several seeds may share
            them); None: made when first needed, in ``scratch``, and removed at the end.
        scratch: a file of views that pretraining made of the same lesions, in the same way; None: one in ``folder``.
        report: called with the fingerprint after every round, also after one found in the folder.

    Raises:
        DataPrepError: too few different lesions for so many categories.
    """
    settings, weights = settings or MiningSettings(), weights or BlockWeights()
    # How many rounds and when to stop is left out: more rounds go on with the ones there are.
    decides = {key: value for key, value in asdict(settings).items() if key not in ("rounds", "agreement")}
    decides |= {"categories": categories, "method": method, "seed": seed}
    decides |= {"weights": asdict(weights), "crops": asdict(crops)}
    mark = fingerprint(features, lesions, patients, extractor, decides)
    state = make_folder(folder / mark[:16])
    scratch = scratch or state / "views.npy"
    place = positions(lesions)
    done: list[_Done] = []
    stopped = f"{settings.rounds} rounds"
    for number in range(1, settings.rounds + 1):
        path = state / f"round-{number:02d}.safetensors"
        one = _read(path, len(lesions))
        if one is None:
            tail: Tail | None = None
            found, epochs = features, tuple[Epoch, ...]()
            if done:
                if activations is None:
                    activations = view_activations(
                        lesions,
                        images,
                        extractor,
                        crops,
                        scratch,
                        views=settings.views,
                        augmentation=settings.augmentation,
                        seed=seed,
                        progress=progress,
                    )
                tail, history = fine_tune(
                    activations,
                    list(done[-1].labels),
                    patients,
                    extractor,
                    settings.training,
                    seed=seed * 1000 + number,
                    progress=progress,
                )
                found, epochs = tail_features(activations, extractor, tail), tuple(history)
            X = FeatureSpace.fit(found, place, weights).transform(found, place)
            try:
                labels, repairs = _cluster(X, categories, method, seed, settings.finer)
            except DataPrepError:
                if not done:
                    raise
                stopped = f"the features of round {number} collapsed"
                break
            before = done[-1].labels[0] if done else None
            record = Round(
                number,
                None if before is None else float(normalized_mutual_info_score(before, labels[0])),
                None if before is None else float(adjusted_rand_score(before, labels[0])),
                _silhouette(X, labels[0], seed),
                tuple(np.bincount(labels[0], minlength=categories).tolist()),
                repairs,
                epochs,
            )
            one = _Done(record, labels, tail)
            _write(path, one)
        done.append(one)
        if report is not None:
            report(mark, one.record)
        reason = _why_stop([d.record for d in done], settings.agreement)
        if reason:
            stopped = reason
            break
    scratch.unlink(missing_ok=True)
    taken = taken_round([d.record for d in done])
    rounds = Rounds(taken, stopped, tuple(d.record for d in done))
    return Result(tuple(d.tail for d in done), tuple(d.labels[0] for d in done), rounds)


def taken_round(rounds: Sequence[Round]) -> int:
    """The round that agrees best with the one before, the later of equals; round 1 where it is the only one."""
    return max(rounds, key=lambda r: (-1.0 if r.agreement is None else r.agreement, r.number)).number


def _why_stop(rounds: Sequence[Round], enough: float) -> str | None:
    last = rounds[-1].agreement
    if last is None:
        return None
    if last >= enough:
        return f"rounds {len(rounds) - 1} and {len(rounds)} agree"
    earlier = rounds[-2].agreement
    return "the agreement stopped rising" if earlier is not None and last <= earlier else None


def _cluster(X: Array, k: int, method: str, seed: int, finer: int) -> tuple[npt.NDArray[np.int32], int]:
    """(1 or 2, N) labels: the categories, and the finer clusters that are learnt beside them."""
    fitted, labels = fit_clustering(X, k, method=method, seed=seed)
    fine = min(finer * k, len(X) // 10)
    if fine <= k or len(np.unique(X, axis=0)) < fine:
        return labels[None], fitted.repairs
    return np.stack([labels, fit_clustering(X, fine, seed=seed, restarts=4)[1]]), fitted.repairs


def _silhouette(X: Array, labels: Labels, seed: int) -> float:
    if not 1 < len(np.unique(labels)) < len(X):
        return 0.0
    some = np.sort(np.random.default_rng(seed).permutation(len(X))[:2000])
    if not 1 < len(np.unique(labels[some])) < len(some):
        return 0.0
    return float(silhouette_score(X[some], labels[some]))


# --- a round's file ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Done:
    record: Round
    labels: npt.NDArray[np.int32]  # (1 or 2, N)
    tail: Tail | None


def _write(path: Path, one: _Done) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in (one.tail or {}).items()}
    tensors["labels"] = torch.from_numpy(np.ascontiguousarray(one.labels))
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"round": json.dumps(asdict(one.record))})


def _read(path: Path, count: int) -> _Done | None:
    """A round that was finished; None where there is none, or a damaged one, which is then made again."""
    try:
        with safe_open(path, framework="pt") as file:
            record = Round.from_json(json.loads((file.metadata() or {})["round"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        labels = tensors.pop("labels").numpy()
        if labels.ndim != 2 or labels.shape[1] != count:
            return None
        tail = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
        return _Done(record, labels, tail or None)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError):
        return None
