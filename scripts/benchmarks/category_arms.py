"""What is clustered, one arm at a time, and how its categories of the validation lesions follow their official types.

Every arm is fitted on the official training lesions alone and labels the validation lesions afterwards, as
``categorize`` does. An arm and a seed make one JSON file, so a killed benchmark goes on with the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.metrics import adjusted_rand_score

from data_prep.archive.png import read_hu
from data_prep.atomic import make_folder, write_json
from data_prep.categorize.backbone import FeatureExtractor, Tail
from data_prep.categorize.clustering import fit_clustering
from data_prep.categorize.crops import CropSettings, crop_boxes_px, cut, window
from data_prep.categorize.features import extract, file_in_folder
from data_prep.categorize.finetune import tail_features
from data_prep.categorize.fit import may_be_fitted, training_patients
from data_prep.categorize.judge import FIGURES, in_half, judged, probe
from data_prep.categorize.mining import MiningSettings, mine
from data_prep.categorize.pipeline import select
from data_prep.categorize.pretrain import PretrainSettings, pretrain_once
from data_prep.categorize.retrieval import judge_retrieval
from data_prep.categorize.space import BlockWeights, FeatureSpace, positions
from data_prep.categorize.stability import choose, stability_curve
from data_prep.categorize.views import Augmentation, view_activations
from data_prep.lesion import Lesion, read_lesions

KS = (5, 8, 20)
LEARNT = 8
"""Categories that the loop's network learns; its features are then clustered into each number of :data:`KS`."""
PIXELS = 32
"""Side of the crops whose raw pixels are clustered."""
HALVES: tuple[Literal["reporting", "all"], ...] = ("reporting", "all")

Points = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Data:
    """The lesions, training ones first, and what the network's frozen stages make of them.

    Attributes:
        lesions: N of training, then M of validation with an official type.
        fitted: N.
        patients: of the N.
        position: (N + M, 3).
        views: (views, N, ...) activations of the training lesions; the first view is the plain one.
        plain: (1, M, ...) of the validation lesions.
    """

    lesions: list[Lesion]
    fitted: int
    patients: list[str]
    position: Points
    views: npt.NDArray[np.float16]
    plain: npt.NDArray[np.float16]
    extractor: FeatureExtractor
    images: Path
    work: Path

    def features(self, tail: Tail | None) -> npt.NDArray[np.float16]:
        """(N + M, 3, width) by a fine-tuned tail or, for None, ImageNet's; all by the same path."""
        weights = self.extractor.tail.state_dict() if tail is None else tail
        return np.concatenate([tail_features(part, self.extractor, weights) for part in (self.views, self.plain)])


def load(lesions: Path, images: Path, work: Path, device: str | None) -> Data:
    """Lesions with readable slices, and their activations, which are kept in ``work``."""
    everything = read_lesions(lesions)
    usable, _ = select(everything)
    extractor, crops = FeatureExtractor(device or "cpu"), CropSettings()
    kept = [usable[i] for i in extract(usable, images, extractor, crops, work / "features").kept]
    patient_of = training_patients(everything)
    train = [lesion for lesion in kept if lesion.lesion_id in patient_of and may_be_fitted(lesion)]
    judge = [kept[i] for i in judged(kept, "all")]
    views = view_activations(train, images, extractor, crops, work / "views.npy", views=2, augmentation=Augmentation())
    plain = view_activations(judge, images, extractor, crops, work / "plain.npy", views=0, augmentation=Augmentation())
    both = train + judge
    patients = [patient_of[lesion.lesion_id] for lesion in train]
    return Data(both, len(train), patients, positions(both), views, plain, extractor, images, work)


# --- arms: a seed -> points, and what to keep about them -----------------------------------------------------------


def points(data: Data, features: Features, position: float) -> Points:
    """(N + M, D): the product's space, fitted on the training lesions, with this weight of the position."""
    weights = BlockWeights(position=position)
    n = data.fitted
    return FeatureSpace.fit(features[:n], data.position[:n], weights).transform(features, data.position)


def raw_pixels(data: Data) -> Features:
    """(N + M, 3, PIXELS * PIXELS) intensities of the three crops."""
    crops, rows = CropSettings(), []
    for lesion in data.lesions:
        hu = read_hu(file_in_folder(data.images, lesion.image or ""))
        intensity = window(hu, crops.window_min_hu, crops.window_max_hu)
        rows.append(cut(intensity, crop_boxes_px(lesion, crops), PIXELS).reshape(3, -1).numpy())
    return np.stack(rows)


def position_alone(data: Data) -> Points:
    """(N + M, 3) standardised places in the body; a lesion without one gets the mean."""
    known = data.position[: data.fitted]
    return np.nan_to_num((data.position - np.nanmean(known, axis=0)) / np.nanstd(known, axis=0))


def pretrained(data: Data, seed: int) -> Tail:
    """The product's pretraining, from ImageNet's weights; made once for all arms that start from it."""
    n = data.fitted
    made = pretrain_once(
        data.lesions[:n],
        data.features(None)[:n],
        patients=data.patients,
        images=data.images,
        folder=data.work / "mining",
        extractor=data.extractor,
        crops=CropSettings(),
        settings=PretrainSettings(),
        views=len(data.views) - 1,
        augmentation=Augmentation(),
        seed=seed,
        activations=data.views,
    )
    return made.tail


def loop(
    data: Data, seed: int, position: float, rounds: int, start: Tail | None = None
) -> tuple[list[Tail | None], dict[str, Any]]:
    """The product's mining loop, from ImageNet's weights or ``start``: the networks of its rounds, and what it says."""
    n = data.fitted
    result = mine(
        data.lesions[:n],
        data.features(start)[:n],
        LEARNT,
        patients=data.patients,
        images=data.images,
        folder=data.work / "mining",
        extractor=data.extractor if start is None else FeatureExtractor(data.extractor.device, start),
        crops=CropSettings(),
        weights=BlockWeights(position=position),
        method="spectral",
        settings=MiningSettings(rounds=rounds),
        seed=seed,
        activations=data.views,
    )
    said = {
        "taken": result.rounds.taken,
        "stopped": result.rounds.stopped,
        "agreement": [r.agreement for r in result.rounds.rounds],
        "sizes": [r.sizes for r in result.rounds.rounds],
    }
    return [start if tail is None else tail for tail in result.tails], said


DEFAULT_POSITION = BlockWeights().position


def run_arm(name: str, data: Data, seed: int, rounds: int) -> dict[str, Any]:
    """One arm with one seed; read from its file where it was finished."""
    path = make_folder(data.work / "figures") / f"{name.replace(' ', '-')}-{rounds}-{seed}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    done = ARMS[name](data, seed, rounds)
    X = done.pop("points")
    # The number of categories that "auto" takes costs a hundred clusterings, so it is that of the first seed.
    auto = automatic(data, X) if seed == 0 else run_arm(name, data, 0, rounds)["auto"]
    done |= {"auto": auto, **judge_points(data, X, seed, auto)}
    write_json(path, done)
    return done


def _of_loop(data: Data, seed: int, rounds: int, position: float, start: Tail | None = None) -> dict[str, Any]:
    tails, said = loop(data, seed, position, rounds, start)
    X = [points(data, data.features(tail), position) for tail in tails]
    return {"points": X[said["taken"] - 1], "rounds": [judge_points(data, one, seed) for one in X], "loop": said}


ARMS: dict[str, Callable[[Data, int, int], dict[str, Any]]] = {
    "raw pixels": lambda data, seed, rounds: {"points": points(data, raw_pixels(data), 0)},
    "position alone": lambda data, seed, rounds: {"points": position_alone(data)},
    "ImageNet, single shot": lambda data, seed, rounds: {"points": points(data, data.features(None), 0)},
    "ImageNet + position, single shot": lambda data, seed, rounds: {
        "points": points(data, data.features(None), DEFAULT_POSITION)
    },
    "loop": lambda data, seed, rounds: _of_loop(data, seed, rounds, 0),
    "loop + position": lambda data, seed, rounds: _of_loop(data, seed, rounds, DEFAULT_POSITION),
    "rival (SwAV) + position": lambda data, seed, rounds: {
        "points": points(data, data.features(pretrained(data, seed)), DEFAULT_POSITION)
    },
    "SwAV, loop + position": lambda data, seed, rounds: _of_loop(
        data, seed, rounds, DEFAULT_POSITION, pretrained(data, seed)
    ),
}


# --- judging -------------------------------------------------------------------------------------------------------


def automatic(data: Data, X: Points) -> int:
    """How many categories ``--categories auto`` takes."""
    n = data.fitted
    return choose(stability_curve(X[:n], data.patients, method="spectral", splits=6))


def judge_points(data: Data, X: Points, seed: int, auto: int | None = None) -> dict[str, Any]:
    """Clusterings of the points judged on the reporting half and on all, a probe, and what was labelled how."""
    n = data.fitted
    fit, new = X[:n], X[n:]
    judge = data.lesions[n:]
    types = np.array([lesion.coarse_type or 0 for lesion in judge])
    whose = [lesion.patient_id or "" for lesion in judge]
    in_part = {half: np.array([in_half(patient, half) for patient in whose]) for half in HALVES}
    found: dict[str, Any] = {"labels": {}, "scores": {}}
    numbers = {str(k): k for k in KS} | ({} if auto is None else {"auto": auto})
    for name, k in numbers.items():
        labels = fit_clustering(fit, k, method="spectral", seed=seed)[0].assign(new)
        found["labels"][name] = labels.tolist()
        found["scores"][name] = {
            half: {figure: float(score(types[rows], labels[rows])) for figure, score in FIGURES.items()}
            for half, rows in in_part.items()
        }
    found["probe"] = {kind: probe(new, types.tolist(), whose, kind=kind) for kind in ("linear", "knn")}
    retrieval = judge_retrieval(judge, new, "reporting").overall
    found["precision_at_10"] = asdict(retrieval)
    return found


def stability_on_a_third_set(data: Data, X: Points, k: int, splits: int = 5) -> list[float]:
    """ARI of two categorisers, fitted on two halves of the training patients, on the validation lesions."""
    n = data.fitted
    names, groups = np.unique(np.asarray(data.patients), return_inverse=True)
    scores = []
    for seed in range(splits):
        half = np.isin(groups, np.random.default_rng(seed).permutation(len(names))[: len(names) // 2])
        one, two = (fit_clustering(X[:n][part], k, method="spectral", seed=seed)[0].assign(X[n:])
                    for part in (half, ~half))  # fmt: skip
        scores.append(float(adjusted_rand_score(one, two)))
    return scores
