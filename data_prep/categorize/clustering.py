"""Clustering behind one small interface: points in, categories and a rule for new points out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import ArpackNoConvergence, eigsh
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.neighbors import NearestNeighbors, kneighbors_graph

from data_prep.categorize.balance import Array, Labels, balance
from data_prep.errors import DataPrepError

NEIGHBOURS = 20
"""Of the graph that spectral clustering cuts, and of the vote that places a new lesion; see :func:`neighbours`."""

MANY = 100_000
"""From so many points on k-means works in mini-batches."""

LANDMARKS = 20_000
"""Of more lesions, so many drawn at random make the graph; the others are placed by the vote."""

DENSE = 400
"""Up to so many points all eigenvectors are computed; beyond, Lanczos finds the few that are needed."""


def _k_means(X: Array, k: int, seed: int, restarts: int) -> Labels:
    if len(X) >= MANY:
        model = MiniBatchKMeans(k, n_init=restarts, batch_size=8192, random_state=seed)
    else:
        model = KMeans(k, n_init=restarts, random_state=seed)
    return np.asarray(model.fit_predict(X), dtype=np.int32)


def neighbours(count: int, k: int) -> int:
    """:data:`NEIGHBOURS`, or fewer where half a category has not as many: a graph of all pairs has no parts."""
    return min(NEIGHBOURS, max(3, count // (2 * k)), count)


def spectral_map(X: Array, dimensions: int, seed: int) -> Array:
    """(N, dimensions) coordinates in which the parts of the neighbour graph lie apart.

    The eigenvectors of the random walk on the graph that joins each point with its :func:`neighbours` nearest ones
    (itself counted; made symmetric by its mean with its transpose) with the greatest eigenvalues, as in
    ``sklearn.cluster.SpectralClustering`` (Shi and Malik, 2000; von Luxburg, 2007). scikit-learn factorises the graph's
    Laplacian, which fills up to gigabytes for ten thousands of points; Lanczos on the matrix itself does not.
    """
    graph = kneighbors_graph(X, n_neighbors=neighbours(len(X), dimensions), include_self=True)
    graph = scipy.sparse.csr_matrix(0.5 * (graph + graph.T))
    graph.setdiag(0)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    root = np.sqrt(np.where(degree > 0, degree, 1.0))
    scaled = scipy.sparse.diags(1 / root) @ graph @ scipy.sparse.diags(1 / root)
    count = len(X)
    if count <= DENSE or dimensions >= count - 1:
        _, vectors = scipy.linalg.eigh(scaled.toarray(), subset_by_index=(max(0, count - dimensions), count - 1))
    else:
        start = np.random.default_rng(seed).uniform(-1, 1, count)
        try:
            # Many more Lanczos vectors than wanted: a graph in several parts has the eigenvalue 1 several times.
            wide = min(count - 1, max(2 * dimensions + 1, 64))
            _, vectors = eigsh(scaled, dimensions, which="LA", v0=start, ncv=wide, maxiter=2000, tol=1e-6)
        except ArpackNoConvergence as error:
            raise DataPrepError("spectral clustering did not converge; use --clustering k-means") from error
    return np.asarray(vectors / root[:, None], dtype=np.float64)


def _spectral(X: Array, k: int, seed: int, restarts: int) -> Labels:
    return _k_means(spectral_map(X, k, seed), k, seed, restarts)


METHODS: dict[str, Callable[[Array, int, int, int], Labels]] = {"k-means": _k_means, "spectral": _spectral}
"""Name -> function of points (N, D), number of clusters, seed and restarts that gives (N,) labels."""


@dataclass(frozen=True, slots=True)
class Clustering:
    """A fitted clustering; category 0 has the most fitted lesions.

    k-means places a point with the nearest centroid. The clusters of a cut graph are not convex, so spectral keeps
    the fitted points and lets the nearest :func:`neighbours` of them vote, weighted by 1/distance; a fitted point
    finds itself at distance 0 and so keeps its category.

    Attributes:
        method: a key of :data:`METHODS`.
        centroids: (k, D) mean of each category's fitted points.
        points: (M, D) fitted points; none for k-means, unless it had to be repaired.
        labels: (M,) their categories.
        repairs: how many categories were too small or too large and made anew (see :mod:`.balance`).
    """

    method: str
    centroids: Array
    points: Array
    labels: Labels
    repairs: int = 0

    def assign(self, X: Array) -> Labels:
        """(N, D) points -> (N,) categories."""
        if not len(self.points):
            return np.asarray(cdist(X, self.centroids).argmin(axis=1), dtype=np.int32)
        count = neighbours(len(self.points), len(self.centroids))
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
        DataPrepError: fewer distinct lesions than categories, or an unknown method.
    """
    if method not in METHODS:
        raise DataPrepError(f"unknown clustering {method!r}; choose {' or '.join(METHODS)}")
    if k < 1:
        raise DataPrepError(f"the number of categories must be at least 1, got {k}")
    distinct = len(np.unique(X[:MANY], axis=0))
    if distinct < k:
        raise DataPrepError(f"{distinct} different lesions cannot make {k} categories; ask for fewer --categories")
    some = X
    if method == "spectral" and len(X) > LANDMARKS:
        some = X[np.sort(np.random.default_rng(seed).choice(len(X), LANDMARKS, replace=False))]
    raw = METHODS[method](some, k, seed, restarts) if k > 1 else np.zeros(len(some), dtype=np.int32)
    raw, repairs = balance(some, raw, k, seed)
    sizes = np.bincount(raw, minlength=k)
    # Stable, so that equal sizes do not depend on the machine: the earlier lesion's category comes first.
    first = np.array([np.flatnonzero(raw == label)[0] for label in range(k)])
    order = np.lexsort((first, -sizes))
    labels = np.argsort(order).astype(np.int32)[raw]
    centroids = np.stack([some[labels == label].mean(axis=0) for label in range(k)])
    # The labels of a repaired k-means are not those of the nearest centroids, so it keeps its points too.
    keep = some[:LANDMARKS] if method == "spectral" or repairs else some[:0]
    fitted = Clustering(method, centroids, keep, labels[: len(keep)], repairs)
    return fitted, labels if len(some) == len(X) else fitted.assign(X)
