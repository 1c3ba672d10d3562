"""No empty and no giant categories: the too small ones are dissolved and the widest ones split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]

SMALLEST = 0.1
"""A category has at least this part of the mean number of lesions, N / k: 2 % of all at k = 5."""

LARGEST = 0.6
"""No category has more than this part of all lesions, or at k < 4 more than 2 / k of them: DeepLesion's largest coarse
type, the lung, has 31 %."""


def limits(count: int, k: int) -> tuple[int, int]:
    """The least and the greatest number of lesions of a category."""
    return max(1, int(SMALLEST * count / k)), max(1, int(max(LARGEST, min(1.0, 2 / k)) * count))


def balance(X: Array, labels: Labels, k: int, seed: int) -> tuple[Labels, int]:
    """Repair a clustering that has collapsed; a sound one comes back as it is.

    A category under the least size goes to the nearest centroids of the others, or, where one is over the greatest
    size and none is too small, the smallest goes; the largest category is then split by 2-means, and where that too
    would leave a side under the least size, at the median of its first principal component.

    Args:
        X: (N, D) points, at least ``k`` of them different.
        labels: (N,) from 0 to k - 1; some may not occur.
        k: the number of categories.
        seed: of 2-means.

    Returns:
        (N,) labels and the number of repairs.
    """
    labels = labels.copy()
    least, greatest = limits(len(X), k)
    repairs = 0
    for _ in range(3 * k):
        sizes = np.bincount(labels, minlength=k)
        if k < 2 or (sizes.min() >= least and sizes.max() <= greatest):
            break
        small, large = int(sizes.argmin()), int(sizes.argmax())
        others = np.array([label for label in range(k) if label != small and sizes[label]])
        moved = labels == small
        if moved.any():
            centroids = np.stack([X[labels == label].mean(axis=0) for label in others])
            labels[moved] = others[cdist(X[moved], centroids).argmin(axis=1)]
        members = np.flatnonzero(labels == large)
        labels[members[_half(X[members], least, seed)]] = small
        repairs += 1
    return labels, repairs


def _half(X: Array, least: int, seed: int) -> npt.NDArray[np.bool_]:
    """One side of a category split in two."""
    if len(np.unique(X[:1000], axis=0)) > 1:
        side: npt.NDArray[np.bool_] = KMeans(2, n_init=4, random_state=seed).fit_predict(X) == 1
        if least <= side.sum() <= len(X) - least:
            return side
    centred = X - X.mean(axis=0)
    along = centred @ np.linalg.svd(centred.T @ centred)[0][:, 0]
    half = np.zeros(len(X), dtype=bool)
    half[np.argsort(along, kind="stable")[len(X) // 2 :]] = True
    return half
