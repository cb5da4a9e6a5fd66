"""Reduce feature vectors: principal components, a two-dimensional map, nearest rows."""

from __future__ import annotations

import numpy as np

from recame.contracts import Array, FloatArray, IntArray


def standardise(features: FloatArray) -> FloatArray:
    """Scale each column to mean 0 and standard deviation 1; a constant column becomes 0."""
    deviation = features.std(0)
    centred = features - features.mean(0)
    return np.asarray(centred / np.where(deviation > 1e-6, deviation, 1.0), np.float32)


def principal_components(features: FloatArray, most: int) -> FloatArray:
    """Compute scores on the first principal components of the standardised features.

    Args:
        features: (N, P).
        most: number of components; fewer if N or P is too small.

    Returns:
        (N, Q) float32, largest variance first; a component's sign makes its largest loading
        positive.
    """
    if len(features) < 2:
        return np.zeros((len(features), 1), np.float32)
    from sklearn.decomposition import PCA

    count = min(most, len(features) - 1, features.shape[1])
    z = standardise(features).astype(np.float64)
    pca = PCA(count, svd_solver="covariance_eigh").fit(z)
    variance = pca.explained_variance_
    kept = max(1, int((variance > 1e-6 * variance[0]).sum()))
    return np.asarray(pca.transform(z)[:, :kept], np.float32)


def nearest_rows(vectors: Array, k: int, among: Array | None = None) -> tuple[IntArray, FloatArray]:
    """Find the nearest rows by Euclidean distance, exactly.

    Args:
        vectors: (N, P).
        k: number of rows; fewer if there are fewer.
        among: (M, P) rows to search in; None: the other rows of `vectors`.

    Returns:
        Rows and distances, (N, k) each, nearest first.
    """
    k = min(k, len(vectors) - 1 if among is None else len(among))
    if k < 1:
        return np.empty((len(vectors), 0), np.int64), np.empty((len(vectors), 0))
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, algorithm="brute")
    search.fit(vectors if among is None else among)
    distance, rows = search.kneighbors(None if among is None else vectors)
    return np.asarray(rows, np.int64), distance


def nearest_by_cosine(features: Array, among: Array, k: int) -> tuple[IntArray, FloatArray]:
    """Find the nearest rows by the cosine, averaged over the experts.

    Args:
        features: (N, E, D).
        among: (M, E, D).
        k: number of rows; fewer if M is smaller.

    Returns:
        Rows of `among` and similarities, (N, k) each, nearest first.
    """
    # For vectors of length 1 (each expert's part has length 1 / sqrt(E)), d^2 = 2 - 2 cos.
    one, other = (
        (part / np.maximum(np.linalg.norm(part, axis=-1, keepdims=True), 1e-12)).reshape(
            len(part), -1
        )
        / np.sqrt(part.shape[1])
        for part in (features, among)
    )
    rows, distance = nearest_rows(one, k, other)
    return rows, 1 - distance**2 / 2


def project_map(components: FloatArray, seed: int) -> FloatArray:
    """Project points to two dimensions so that neighbours stay neighbours.

    t-SNE (van der Maaten and Hinton, JMLR 2008), started from the first two components; for fewer
    than 30 points, the first two components. Distances between far groups have no meaning.

    Args:
        components: (N, Q) principal components.
        seed: of the layout.

    Returns:
        (N, 2).
    """
    if components.shape[1] < 2:
        components = np.concatenate([components, np.zeros((len(components), 1), np.float32)], 1)
    start = components[:, :2]
    if len(components) < 30:
        return np.asarray(start, np.float32)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    spread = float(start[:, 0].std()) or 1.0
    tsne = TSNE(
        perplexity=min(30.0, len(components) / 4),
        init=np.asarray(start / spread * 1e-4, np.float32),
        max_iter=600,
        random_state=seed,
    )
    # Waiting threads of t-SNE keep their cores busy, which costs minutes on a busy machine.
    with threadpool_limits(1):
        return np.asarray(tsne.fit_transform(components), np.float32)
