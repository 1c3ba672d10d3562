"""Clustering behind one small interface: points in, categories and a rule for new points out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.neighbors import NearestNeighbors

from data_prep.errors import DataPrepError

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]

NEIGHBOURS = 20
"""Of the graph that spectral clustering cuts, and of the vote that places a new lesion in it."""


def _k_means(X: Array, k: int, seed: int, restarts: int) -> Labels:
    return np.asarray(KMeans(k, n_init=restarts, random_state=seed).fit_predict(X), dtype=np.int32)


def _spectral(X: Array, k: int, seed: int, restarts: int) -> Labels:
    model = SpectralClustering(
        k,
        affinity="nearest_neighbors",
        n_neighbors=min(NEIGHBOURS, len(X)),
        n_init=restarts,
        random_state=seed,
        assign_labels="kmeans",
    )
    with warnings.catch_warnings():
        # Well separated kinds of lesions make a graph in several parts; they are told apart all the same.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        return np.asarray(model.fit_predict(X), dtype=np.int32)


METHODS: dict[str, Callable[[Array, int, int, int], Labels]] = {"k-means": _k_means, "spectral": _spectral}
"""Name -> function of points (N, D), number of clusters, seed and restarts that gives (N,) labels."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """A fitted clustering; category 0 has the most fitted lesions.

    k-means places a point with the nearest centroid. The clusters of a cut graph are not convex, so spectral keeps
    the fitted points and lets the nearest :data:`NEIGHBOURS` of them vote, weighted by 1/distance; a fitted point
    finds itself at distance 0 and so keeps its category.

    Attributes:
        method: a key of :data:`METHODS`.
        centroids: (k, D) mean of each category's fitted points.
        points: (M, D) fitted points; none for k-means.
        labels: (M,) their categories.
    """

    method: str
    centroids: Array
    points: Array
    labels: Labels

    def assign(self, X: Array) -> Labels:
        """(N, D) points -> (N,) categories."""
        if not len(self.points):
            return np.asarray(cdist(X, self.centroids).argmin(axis=1), dtype=np.int32)
        count = min(NEIGHBOURS, len(self.points))
        nearest = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(self.points)
        indices = nearest.kneighbors(X, return_distance=False)
        votes = np.zeros((len(X), len(self.centroids)))
        for column in indices.T:
            # Recomputed, because scikit-learn's fast distances are not exactly 0 from a point to itself.
            distance = np.linalg.norm(X - self.points[column], axis=1)
            np.add.at(votes, (np.arange(len(X)), self.labels[column]), 1 / np.maximum(distance, 1e-9))
        return np.asarray(votes.argmax(axis=1), dtype=np.int32)

    def distance(self, X: Array, labels: Labels) -> Array:
        """(N,) Euclidean distances from points to the centroids of their categories."""
        return np.asarray(np.linalg.norm(X - self.centroids[labels], axis=1), dtype=np.float64)


def fit_clustering(
    X: Array, k: int, *, method: str = "k-means", seed: int = 0, restarts: int = 10
) -> tuple[Clustering, Labels]:
    """Cluster (N, D) points into ``k`` categories, ordered by size.

    Raises:
        DataPrepError: fewer distinct lesions than categories, an unknown method, or an empty category.
    """
    if method not in METHODS:
        raise DataPrepError(f"unknown clustering {method!r}; choose {' or '.join(METHODS)}")
    if k < 1:
        raise DataPrepError(f"the number of categories must be at least 1, got {k}")
    distinct = len(np.unique(X, axis=0))
    if distinct < k:
        raise DataPrepError(f"{distinct} different lesions cannot make {k} categories; ask for fewer --categories")
    raw = METHODS[method](X, k, seed, restarts) if k > 1 else np.zeros(len(X), dtype=np.int32)
    sizes = np.bincount(raw, minlength=k)
    if not sizes.all():
        raise DataPrepError(f"{method} left a category without lesions at k = {k}; ask for fewer --categories")
    # Stable, so that equal sizes do not depend on the machine: the earlier lesion's category comes first.
    first = np.array([np.flatnonzero(raw == label)[0] for label in range(k)])
    order = np.lexsort((first, -sizes))
    labels = np.argsort(order).astype(np.int32)[raw]
    centroids = np.stack([X[labels == label].mean(axis=0) for label in range(k)])
    keep = X if method == "spectral" else X[:0]
    return Clustering(method, centroids, keep, labels[: len(keep)]), labels
