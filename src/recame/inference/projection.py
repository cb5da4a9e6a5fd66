"""Vectors of images reduced for looking at them: components, a map, nearest rows."""

from __future__ import annotations

import numpy as np

from recame.contracts import FloatArray


def standardise(features: FloatArray) -> FloatArray:
    """Mean 0 and deviation 1 a column; a column that never changes becomes 0."""
    deviation = features.std(0)
    centred = features - features.mean(0)
    return np.asarray(centred / np.where(deviation > 1e-6, deviation, 1.0), np.float32)


def principal_components(features: FloatArray, most: int) -> FloatArray:
    """Scores on the first principal components of the standardised features.

    Args:
        features: (N, P).
        most: components wanted; fewer where N or P do not allow them.

    Returns:
        (N, Q) float32, largest variance first; a component's sign makes its largest loading
        positive.
    """
    z = standardise(features)
    values, vectors = np.linalg.eigh((z.T @ z).astype(np.float64) / max(len(z), 1))
    count = max(1, min(most, len(z) - 1, int((values > 1e-6 * values[-1]).sum())))
    vectors = vectors[:, ::-1][:, :count]
    top = vectors[np.abs(vectors).argmax(0), np.arange(count)]
    return np.asarray(z @ (vectors * np.where(top < 0, -1, 1)).astype(np.float32), np.float32)


def project_map(components: FloatArray, seed: int) -> FloatArray:
    """Lay points out in two dimensions so that neighbours stay neighbours.

    t-SNE (van der Maaten and Hinton, JMLR 2008) started from the first two components; for fewer
    than 30 points these two themselves. Distances between far groups mean nothing.

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
    # Its threads spin while they wait, which costs minutes on a machine that has other work.
    with threadpool_limits(1):
        return np.asarray(tsne.fit_transform(components), np.float32)
