"""The space in which lesions are compared: weighted blocks of appearance, context and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

from data_prep.categorize.crops import SCALES
from data_prep.lesion import Lesion

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """How much each block counts; the only place of these numbers. 0 leaves a block out.

    Attributes:
        lesion: the crop of the lesion itself.
        near: its neighbourhood.
        far: its region.
        position: the normalised location in the body, for sources that state it. At 1 it parts left from right where
            organs look the same.
        components: principal components kept of each crop's features.
    """

    lesion: float = 1.0
    near: float = 1.0
    far: float = 1.0
    position: float = 0.7
    components: int = 32

    def __post_init__(self) -> None:
        weights = [getattr(self, f.name) for f in fields(self)]
        if not all(0 <= weight <= 1000 for weight in weights) or not sum(weights[:3]) or self.components < 1:
            raise ValueError("block weights must be 0 to 1000, at least one crop's above 0, components at least 1")


MIN_WITH_POSITION = 0.9
"""Position takes part only where at least this share of the fitted lesions has one: else the lesions would be told
apart by whether their source states it."""


def positions(lesions: Sequence[Lesion]) -> Array:
    """(N, 3) normalised locations (x, y, z; 0 to 1 of the body); NaN rows where the source states none."""
    rows = [(lesion.norm_x, lesion.norm_y, lesion.norm_z) for lesion in lesions]
    table = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64).reshape(-1, 3)
    table[~np.isfinite(table).all(axis=1)] = np.nan
    return table


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """A fitted map from features and positions to points whose Euclidean distance says how alike lesions are.

    Each crop's features are standardised, projected on their principal components and scaled to length 1, so that no
    block outweighs another by its scale; position is standardised and scaled to a mean squared length of 1. Then each
    block is multiplied by its weight. A lesion without a position gets zeros, the mean, there.

    Attributes:
        weights: the block weights.
        mean: (3, width) of the features.
        sd: (3, width); 1 for a feature that is constant.
        projection: (3, components, width).
        position_mean: (3,).
        position_sd: (3,); all zero where position takes no part.
    """

    weights: BlockWeights
    mean: Array
    sd: Array
    projection: Array
    position_mean: Array
    position_sd: Array

    @classmethod
    def fit(cls, features: npt.NDArray[np.floating], position: Array, weights: BlockWeights) -> FeatureSpace:
        """Fit on (N, 3, width) features and (N, 3) positions with NaN rows, N >= 2."""
        if len(features) < 2:
            raise ValueError("a feature space needs at least two lesions")
        means, sds, projections = [], [], []
        count = min(weights.components, len(features) - 1, features.shape[2])
        for block in range(len(SCALES)):
            x = features[:, block].astype(np.float64)
            mean, sd = x.mean(axis=0), x.std(axis=0)
            sd[sd < 1e-6] = 1.0
            # The covariance solver is exact, has no random part, and is fast for many more lesions than features.
            solver = "covariance_eigh" if len(x) > x.shape[1] else "full"
            with np.errstate(invalid="ignore"):  # features that are all constant have no variance to explain
                pca = PCA(n_components=count, svd_solver=solver).fit((x - mean) / sd)
            means.append(mean)
            sds.append(sd)
            projections.append(pca.components_)
        known = position[np.isfinite(position).all(axis=1)]
        position_mean, position_sd = np.zeros(3), np.zeros(3)
        if weights.position and len(known) >= MIN_WITH_POSITION * len(position):
            position_mean, position_sd = known.mean(axis=0), known.std(axis=0)
        return cls(weights, np.stack(means), np.stack(sds), np.stack(projections), position_mean, position_sd)

    @property
    def uses_position(self) -> bool:
        """Whether the position takes part."""
        return bool(self.position_sd.any())

    def transform(self, features: npt.NDArray[np.floating], position: Array) -> Array:
        """(N, 3, width) features and (N, 3) positions -> (N, dimensions) points."""
        blocks: list[Array] = []
        for index, name in enumerate(SCALES):
            x = (features[:, index].astype(np.float64) - self.mean[index]) / self.sd[index]
            x = x @ self.projection[index].T
            x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
            blocks.append(x * getattr(self.weights, name))
        if self.uses_position:
            sd = np.where(self.position_sd > 1e-9, self.position_sd, 1.0)
            z = np.nan_to_num((position - self.position_mean) / sd) / np.sqrt(3)
            blocks.append(z * self.weights.position)
        return np.concatenate(blocks, axis=1)
