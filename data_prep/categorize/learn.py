"""Learn a categoriser from training lesions: pretraining and the mining loop, where asked for, and their record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import numpy.typing as npt

from data_prep.categorize.backbone import FeatureExtractor
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.features import FeatureArray
from data_prep.categorize.fit import fit_categorizer, require_enough
from data_prep.categorize.mining import MiningSettings, Result, mine
from data_prep.categorize.pretrain import Pretrained, PretrainSettings, pretrain_once
from data_prep.categorize.rounds import Round, Rounds, Tracking, write_rounds
from data_prep.categorize.space import BlockWeights
from data_prep.categorize.stability import Stability
from data_prep.lesion import Lesion


class FitOptions(TypedDict):
    """What every clustering of one run shares."""

    patients: list[str]  # of the fitted lesions
    crops: CropSettings
    weights: BlockWeights | None
    method: str
    seed: int
    progress: bool


@dataclass(frozen=True, slots=True)
class Learnt:
    """What was learnt.

    Attributes:
        categorizer: fitted on the features of its own network.
        curve: the stability curve, where the number of categories was chosen by it.
        rounds: what happened.
        features: (N, 3, width) of all lesions by the categoriser's network.
    """

    categorizer: Categorizer
    curve: list[Stability]
    rounds: Rounds
    features: FeatureArray


def learn(
    lesions: Sequence[Lesion],
    fitted: npt.NDArray[np.intp],
    features: FeatureArray,
    categories: int | Literal["auto"],
    *,
    images: Path,
    out: Path,
    extractor: FeatureExtractor,
    features_by: Callable[[FeatureExtractor], FeatureArray],
    options: FitOptions,
    pretraining: PretrainSettings | None = None,
    mining: MiningSettings | None = None,
    tracking_uri: str | None = None,
) -> Learnt:
    """Fit a categoriser, with as much training of the network before it as asked for.

    Writes ``rounds.json`` and ``rounds.png``; keeps the state of the training in ``out/mining``.

    Args:
        lesions: N lesions, to be labelled.
        fitted: numbers of those that may be fitted; nothing is learnt from the others.
        features: (N, 3, width) by the extractor.
        categories: how many, or "auto".
        images: the images folder.
        out: the output folder.
        extractor: ImageNet's network.
        features_by: another network -> its (N, 3, width) features of the lesions.
        options: of the clusterings.
        pretraining: of the network, before all else; None, or fewer lesions than prototypes: it stays ImageNet's.
        mining: the loop.
        tracking_uri: of an MLflow store.

    Raises:
        DataPrepError: too few (different) lesions for so many categories, or the store cannot be used.
    """
    to_fit = [lesions[i] for i in fitted]
    require_enough(len(to_fit), categories)
    mining = mining or MiningSettings()
    before: Pretrained | None = None
    if pretraining is not None and len(to_fit) < pretraining.prototypes:
        pretraining = None
    if pretraining is not None:
        before = pretrain_once(
            to_fit,
            features[fitted],
            patients=options["patients"],
            images=images,
            folder=out / "mining",
            extractor=extractor,
            crops=options["crops"],
            settings=pretraining,
            views=mining.views,
            augmentation=mining.augmentation,
            seed=options["seed"],
            progress=options["progress"],
        )
        extractor = FeatureExtractor(extractor.device, before.tail)
        features = features_by(extractor)
    tail = None if before is None else before.tail
    categorizer, curve = fit_categorizer(
        to_fit, features[fitted], categories, network=extractor.identity, tail=tail, **options
    )
    count = len(categorizer.names)
    result = _mine(
        to_fit, features[fitted], count, images, out, extractor, mining, before, pretraining, tracking_uri, options
    )
    if result.tail is not None:
        extractor = FeatureExtractor(extractor.device, result.tail)
        features = features_by(extractor)
        categorizer, _ = fit_categorizer(
            to_fit, features[fitted], count, network=extractor.identity, tail=result.tail, **options
        )
    return Learnt(categorizer, curve, result.rounds, features)


def _mine(
    lesions: Sequence[Lesion],
    features: FeatureArray,
    categories: int,
    images: Path,
    out: Path,
    extractor: FeatureExtractor,
    settings: MiningSettings,
    before: Pretrained | None,
    pretraining: PretrainSettings | None,
    tracking_uri: str | None,
    options: FitOptions,
) -> Result:
    """Run the loop, with its files and its MLflow run."""
    tracking: Tracking | None = None
    epochs = () if before is None else before.epochs

    def report(mark: str, one: Round) -> None:
        nonlocal tracking
        if tracking_uri is not None and tracking is None:
            params: dict[str, object] = {
                "lesions": len(lesions),
                "patients": len(set(options["patients"])),
                "categories": categories,
                "clustering": options["method"],
                "seed": options["seed"],
                "pretraining": None if pretraining is None else asdict(pretraining),
            }
            tracking = Tracking(tracking_uri, out, mark, params | asdict(settings))
            tracking.log_pretraining(epochs)
        if tracking is not None:
            tracking.log(one)

    result = mine(
        lesions,
        features,
        categories=categories,
        images=images,
        folder=out / "mining",
        extractor=extractor,
        settings=settings,
        scratch=None if before is None else before.scratch,
        report=report,
        **options,
    )
    result = replace(result, rounds=replace(result.rounds, pretraining=epochs))
    written = write_rounds(result.rounds, out)
    if tracking is not None:
        tracking.finish(written, result.rounds)
    return result
