"""Fit a categoriser on the lesions of training patients, and on no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from data_prep.categorize.backbone import Tail
from data_prep.categorize.categorizer import Categorizer
from data_prep.categorize.clustering import fit_clustering
from data_prep.categorize.crops import CropSettings
from data_prep.categorize.space import BlockWeights, FeatureSpace, positions
from data_prep.categorize.stability import Stability, choose, stability_curve
from data_prep.errors import DataPrepError
from data_prep.lesion import Lesion
from data_prep.splits import Patients


def training_patients(lesions: Sequence[Lesion]) -> dict[str, str]:
    """The lesions of training patients: lesion id -> patient.

    Splits are the sources' own where they state one, else by :mod:`data_prep.splits`; a patient with any lesion in
    validation or test is not in training at all. Give **all** lesions, those without an image too: they may tell whose
    the others are.
    """
    known = Patients()
    identifiers = [(v.patient_id, v.study_uid, v.series_uid, v.image_uid or v.image, v.lesion_id) for v in lesions]
    for stated, lesion in zip(identifiers, lesions, strict=True):
        known.add(stated, lesion.split)
    resolved = [known.of(stated) for stated in identifiers]
    return {v.lesion_id: patient for v, (patient, split) in zip(lesions, resolved, strict=True) if split == "train"}


def may_be_fitted(lesion: Lesion) -> bool:
    """Not possibly noisy, and not a detector's find that nobody accepted."""
    return not lesion.possibly_noisy and not lesion.awaits_review


def require_enough(count: int, categories: int | Literal["auto"]) -> None:
    """Raise DataPrepError where so few training lesions cannot make the categories asked for."""
    if count < 2 or (categories != "auto" and count < categories):
        raise DataPrepError(
            f"{count} lesions of training patients cannot make {categories} categories; harvest more, or ask "
            "for fewer --categories, or label with an earlier categoriser: --model FILE"
        )


def fit_categorizer(
    lesions: Sequence[Lesion],
    features: npt.NDArray[np.floating],
    categories: int | Literal["auto"],
    *,
    patients: Sequence[str],
    crops: CropSettings,
    network: str,
    weights: BlockWeights | None = None,
    method: str = "k-means",
    seed: int = 0,
    tail: Tail | None = None,
    progress: bool = True,
) -> tuple[Categorizer, list[Stability]]:
    """Fit the space and the clustering.

    Args:
        lesions: N training lesions.
        features: (N, 3, width).
        categories: how many, or "auto": the number at which two halves of the patients agree best.
        patients: their N patients.
        crops: what the network saw.
        network: its identity.
        weights: of the blocks.
        method: "k-means" or "spectral".
        seed: of the clustering and of the halves.
        tail: the network's pretrained or fine-tuned weights, kept in the categoriser.

    Returns:
        The categoriser, and the stability curve (empty unless ``categories`` is "auto").

    Raises:
        DataPrepError: too few lesions for so many categories.
    """
    require_enough(len(lesions), categories)
    position = positions(lesions)
    space = FeatureSpace.fit(features, position, weights or BlockWeights())
    X = space.transform(features, position)
    curve: list[Stability] = []
    if categories == "auto":
        curve = stability_curve(X, patients, method=method, seed=seed, progress=progress)
        categories = choose(curve)
    clustering, _ = fit_clustering(X, categories, method=method, seed=seed)
    names = tuple(f"category-{number}" for number in range(categories))
    fitted_on = {"lesions": len(lesions), "patients": len(set(patients)), "seed": seed}
    return Categorizer(crops, network, space, clustering, names, fitted_on, tail), curve
