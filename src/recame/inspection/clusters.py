"""Appearance clusters of each class: their number, their density, and what they follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.inference.projection import principal_components

#: Principal components that describe appearance; more only add noise (docs/inspect.md).
LOOK_COMPONENTS = 12
#: The cut-off distance of clusters: this quantile of the distances within dense clusters.
LOOK_QUANTILE = 0.95
#: If a smaller share of the images lies in dense clusters, these clusters count as chance.
LEAST_DENSE = 0.2
#: Most images in which dense clusters are searched, and most images of a class linked exactly.
_MOST_SEARCHED, _MOST_LINKED = 6000, 3000
_PAIRS = 200_000
#: Images per effective cluster from which a class is "many in few", below which "few in many".
DENSE, SCATTERED = 10.0, 4.0
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Looks:
    """A space in which the images of one appearance cluster lie close together.

    Attributes:
        space: (N, Q) principal components, whitened by the spread within a cluster.
        threshold: distance up to which images count as one cluster.
        num_looks: number of dense clusters in the whole data set; 0: one continuous cloud.
        dense_share: share of the searched images that lie in a dense cluster.
    """

    space: FloatArray
    threshold: float
    num_looks: int
    dense_share: float


def find_looks(features: FloatArray, seed: int) -> Looks:
    """Learn from the data set how far apart images of one appearance cluster are.

    1. Principal components of the standardised features, brought to unit variance.
    2. HDBSCAN (Campello et al., PAKDD 2013) over the images of all classes together finds the
       dense clusters; it chooses their number and leaves scattered images out.
    3. The covariance within clusters (pooled, shrunk by 5 % to a multiple of the identity) whitens
       the space: directions in which images of one cluster differ count little.
    4. The threshold is the 95th percentile of the distances between two images of one cluster.

    All classes share the scale, because five images of a class are too few to estimate it. If there
    are fewer than two dense clusters, or they hold less than a fifth of the images, the data set
    counts as one cloud, and its covariance is used instead.

    Args:
        features: (N, P) `Embedding.looks`.
        seed: seed of the sampling.
    """
    from sklearn.cluster import HDBSCAN

    scores = principal_components(features, LOOK_COMPONENTS)
    scores = scores / np.maximum(scores.std(0), 1e-6)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(scores))[:_MOST_SEARCHED])
    sample = scores[chosen]
    look = np.full(len(sample), -1)
    if len(sample) >= 20:
        smallest = int(np.clip(len(sample) // 150, 5, 10))
        look = HDBSCAN(
            min_cluster_size=smallest, min_samples=(smallest + 1) // 2, copy=True
        ).fit_predict(sample.astype(np.float64))
    num_looks = int(look.max()) + 1
    if num_looks < 2 or (look >= 0).mean() < LEAST_DENSE:
        look, num_looks = np.zeros(len(sample), np.int64), 0
    inside = np.flatnonzero(look >= 0)
    centres = np.stack([sample[look == k].mean(0) for k in range(max(num_looks, 1))])
    rest = sample[inside] - centres[look[inside]]
    covariance = rest.T.astype(np.float64) @ rest / max(len(inside) - len(centres), 1)
    covariance += (0.05 * np.trace(covariance) / len(covariance) + 1e-6) * np.eye(len(covariance))
    space = np.asarray(scores @ np.linalg.cholesky(np.linalg.inv(covariance)), np.float32)
    pairs = rng.choice(inside, (2, _PAIRS))
    same = (look[pairs[0]] == look[pairs[1]]) & (pairs[0] != pairs[1])
    pairs = chosen[pairs[:, same]]
    distances = np.linalg.norm(space[pairs[0]] - space[pairs[1]], axis=1)
    threshold = float(np.quantile(distances, LOOK_QUANTILE)) if len(distances) else 1.0
    share = len(inside) / len(sample) if num_looks else 0.0
    return Looks(space, max(threshold, 1e-6), num_looks, share)


def cluster_classes(looks: Looks, target: IntArray, seed: int) -> IntArray:
    """Cluster each class by itself: average linkage (Sokal and Michener, 1958), cut at the
    threshold of `find_looks`.

    In a class with more than 3,000 images a sample is linked, and the other images join the cluster
    with the nearest centre.

    Args:
        looks: of all images.
        target: (N,) class of each image.
        seed: of the sampling.

    Returns:
        (N,) cluster within the class, 0 for the largest, then by size.
    """  # noqa: D205
    from scipy.cluster.hierarchy import fcluster, linkage

    rng = np.random.default_rng(seed)
    cluster = np.zeros(len(target), np.int64)
    for c in np.unique(target):
        rows = np.flatnonzero(target == c)
        chosen = rng.permutation(rows)[:_MOST_LINKED] if len(rows) > _MOST_LINKED else rows
        if len(chosen) < 2:
            continue
        found = fcluster(linkage(looks.space[chosen], "average"), looks.threshold, "distance") - 1
        if len(chosen) < len(rows):
            sums = np.zeros((found.max() + 1, looks.space.shape[1]))
            np.add.at(sums, found, looks.space[chosen])
            centres = (sums / np.bincount(found)[:, None]).astype(np.float32)
            found = ((centres**2).sum(1)[None] - 2 * looks.space[rows] @ centres.T).argmin(1)
        order = np.argsort(-np.bincount(found), kind="stable")
        cluster[rows] = np.argsort(order)[found]
    return cluster


def effective_number(counts: IntArray) -> float:
    """exp(entropy): the number of equally large clusters that would be as mixed.

    Examples:
        >>> round(effective_number(np.array([10, 10])), 2), effective_number(np.array([5]))
        (2.0, 1.0)
    """
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def class_structure(
    names: list[str],
    target: IntArray,
    cluster: IntArray,
    scores: FloatArray,
    neighbours: IntArray,
    basis: BoolArray,
    *,
    present: IntArray | None = None,
) -> pd.DataFrame:
    """Describe the clusters of each class.

    With n images of class c in `basis`, in clusters of shares p_k:

    - `effective` = exp(-sum p_k log p_k), the number of clusters weighted by size;
    - `images_per_cluster` = n / effective;
    - `singletons` = share of the images that are alone in their cluster;
    - `diversity` = mean squared distance of two images of the class / of two images of the data set
      (1: as varied as the whole data set; near 0: all alike), over all images of the class;
    - `similarity` = mean share of other classes among an image's 10 nearest neighbours, divided
      by the share expected by chance, (N - n) / (N - 1), at most 1 (1: as if the classes did not
      exist; 0: fully separate), over all images.

    `kind`: "many in few" for `images_per_cluster` >= 10, "few in many" for <= 4 with at least 2
    effective clusters, else empty.

    Args:
        names: C names.
        target: (N,) class indices.
        cluster: (N,) cluster within the class.
        scores: (N, Q) principal components.
        neighbours: (N, k) nearest rows.
        basis: (N,) the images to count: those of the training split, if there is one.
        present: (C,) number of images of each class in the basis, if the N images are a sample:
            `images` and `images_per_cluster` then refer to all, sizes of clusters to the sample.
    """
    total = 2 * float(scores.var(0).sum()) * len(scores) / max(len(scores) - 1, 1)
    rows = []
    for c, name in enumerate(names):
        own = target == c
        sizes = np.bincount(cluster[own & basis])
        sizes = np.sort(sizes[sizes > 0])[::-1]
        num, count = int(own.sum()), int(sizes.sum())
        images = count if present is None else int(present[c])
        effective = effective_number(sizes) if count else 0.0
        diversity = similarity = None
        if num > 1 and total > 0:
            diversity = 2 * float(scores[own].var(0).sum()) * num / (num - 1) / total
        if num and neighbours.shape[1] and num < len(target):
            other = float((target[neighbours[own]] != c).mean())
            similarity = min(1.0, other / ((len(target) - num) / (len(target) - 1)))
        per_cluster = images / effective if count else 0.0
        kind = "many in few" if per_cluster >= DENSE else ""
        if count and per_cluster <= SCATTERED and effective > 1.9:
            kind = "few in many"
        rows.append(
            {
                "class": name,
                "images": images,
                "clusters": len(sizes),
                "effective": effective,
                "images_per_cluster": per_cluster,
                "largest": int(sizes[0]) if count else 0,
                "singletons": float((sizes == 1).sum() / count) if count else None,
                "diversity": diversity,
                "similarity": similarity,
                "kind": kind,
                "sizes": [int(size) for size in sizes[:12]],
            }
        )
    return pd.DataFrame(rows)


def cluster_agreement(
    table: pd.DataFrame, target: IntArray, cluster: IntArray, columns: list[str]
) -> pd.DataFrame:
    """Adjusted mutual information of the clusters with each column, within classes.

    1: the clusters of a class are the values of the column; 0: no more than chance (Vinh et al.,
    JMLR 2010). Classes with fewer than 5 images or only one value are left out; the mean is
    weighted by images.

    Returns:
        One row for each column: `column`, `ami` (None if all classes are left out), `images`;
        largest first.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    rows = []
    for column in columns:
        codes = pd.factorize(table[column])[0]
        values, weights = [], []
        for c in np.unique(target):
            own = np.flatnonzero((target == c) & (codes >= 0))
            if len(own) >= 5 and len(np.unique(codes[own])) > 1:
                values.append(adjusted_mutual_info_score(codes[own], cluster[own]))
                weights.append(len(own))
        ami = float(np.average(values, weights=weights)) if values else None
        rows.append({"column": column, "ami": ami, "images": int(sum(weights))})
    return pd.DataFrame(rows, columns=["column", "ami", "images"]).sort_values(
        "ami", ascending=False, na_position="last", ignore_index=True
    )


def mixing(target: IntArray, neighbours: IntArray, num_classes: int) -> FloatArray:
    """Mean share of each class (columns) among the nearest neighbours of each class (rows)."""
    width = neighbours.shape[1]
    flat = np.repeat(target, width) * num_classes + target[neighbours].ravel()
    counts = np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)
    return np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1), np.float32)
