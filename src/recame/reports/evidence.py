"""The parts of a report that need the model and the images: mistakes, embedding map, gates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recame.contracts import Array, IntArray, Predictions
from recame.data.dataset import InspectionSet
from recame.data.sampling import balanced_sample
from recame.inference.gates import GateLayer
from recame.inference.projection import nearest_by_cosine
from recame.inference.run_graph import RunGraph
from recame.models import LoadedModel
from recame.names import by_number, counted
from recame.progress import Progress, silent
from recame.reports.gallery import (
    Mistake,
    choose_mistakes,
    describe_mistakes,
    mistake_maps,
    neighbours_of,
    thumb,
)
from recame.reports.gates import GateExample, read_gates
from recame.reports.sampled_images import Look, cache_rows

#: Images in the embedding map; training images among which neighbours are searched; neighbours
#: shown for a mistake.
MAP_IMAGES, TRAIN_IMAGES, NEIGHBOURS = 1200, 2000, 5

#: Fewest images for an embedding map.
_LEAST_MAP = 5
_COMPONENTS = 50


@dataclass(frozen=True)
class EmbeddingMap:
    """Features of a sample of the split, projected to two dimensions.

    Attributes:
        rows: (n,) rows of the predictions.
        points: (n, 2).
        method: of the projection, in words.
    """

    rows: IntArray
    points: Array
    method: str


@dataclass(frozen=True)
class Evidence:
    """The parts of a report that need the model and the images.

    Attributes:
        mistakes: cards of the gallery; without pictures if the images are not available.
        num_mistakes: number of mistakes in the whole split.
        embedding: None if there are too few images.
        gates: empty without attention.
        gate_examples: for the layer whose gates vary most; empty if no gate varies.
        num_gate_images: images whose gates were read.
        pieces: number of tiles of each image, shown side by side.
        train_searched: training images among which neighbours were searched, and all of them.
        remarks: what is missing and why, in sentences.
    """

    mistakes: tuple[Mistake, ...]
    num_mistakes: int
    embedding: EmbeddingMap | None = None
    gates: tuple[GateLayer, ...] = ()
    gate_examples: tuple[GateExample, ...] = ()
    num_gate_images: int = 0
    pieces: int = 1
    train_searched: tuple[int, int] = (0, 0)
    remarks: tuple[str, ...] = ()


def gather_evidence(
    loaded: LoadedModel,
    data: InspectionSet | None,
    predictions: Predictions,
    split: str,
    *,
    product_column: str = "product",
    batch_size: int = 128,
    seed: int = 0,
    of_the_run: bool = True,
    missing: str = "",
    graph: RunGraph | None = None,
    on_progress: Progress = silent,
) -> Evidence:
    """Collect the worst mistakes, the embedding map and the gates from the split's images.

    Costs one forward pass of at most `MAP_IMAGES + TRAIN_IMAGES` images (fewer if the predictions
    hold features), however large the split is.

    Args:
        loaded: the model, on its device.
        data: the split's images and, if available, the training images; None: no pictures.
        predictions: of the split.
        split: its name.
        product_column: the tables' column of products.
        batch_size: images in a forward pass.
        seed: of the samples.
        of_the_run: whether these data trained the model; else their training split is not used.
        missing: why images are missing in `data`, in sentences.
        graph: the run's exported graph, used instead of the model if given.
        on_progress: called while images are processed.
    """
    space = loaded.label_space
    called, target = predictions.probabilities.argmax(1), predictions.target
    wrong = int(((called != target) & (target >= 0)).sum())
    chosen = choose_mistakes(predictions, space)
    mistakes = describe_mistakes(predictions, chosen, space, product_column)
    rows = None if data is None else cache_rows(data, split, predictions)
    if data is None or rows is None or (rows < 0).all():
        remark = _with_reason(
            "The images of this split are not available: no pictures, no attribution maps, no "
            "embedding map, no gates.",
            missing if data is None else "No image of the data has the name of a predicted one.",
        )
        return Evidence(tuple(mistakes), wrong, remarks=(remark,))
    look = Look(loaded, data, batch_size, on_progress, graph)
    sample = np.sort(balanced_sample(np.where(rows >= 0, target, -2), MAP_IMAGES, seed))
    sample = sample[rows[sample] >= 0]
    shown = np.flatnonzero(rows[chosen] >= 0)
    needed = np.union1d(sample, chosen[shown]).astype(np.int64)
    if predictions.features is not None:
        features = predictions.features[needed]
    else:
        features = look.features(rows[needed], "looking at the split")
    remarks = []
    if absent := int((rows < 0).sum()):
        verb = by_number(absent, "is", "are")
        of = f"{absent} of {counted(len(rows))} of this split"
        remark = f"{of} {verb} not available: no pictures."
        broken = "; ".join(f"{file.path}: {file.reason}" for file in data.cache.broken[:3])
        remarks.append(_with_reason(remark, broken))
    searched = (0, 0)
    if len(shown):
        own = features[np.searchsorted(needed, chosen[shown])]
        drawn, searched = _illustrate(
            look, [mistakes[i] for i in shown], rows[chosen[shown]], own, seed, of_the_run
        )
        for position, mistake in zip(shown.tolist(), drawn, strict=True):
            mistakes[position] = mistake
        if not searched[1]:
            remark = "The training images are not available: no nearest training images."
            remarks.append(_with_reason(remark, missing))
    gates, examples, num_read = read_gates(look, predictions, rows, sample, seed)
    if len(sample) < _LEAST_MAP:
        verb = by_number(len(sample), "is", "are")
        remarks.append(f"{counted(len(sample))} {verb} too few for an embedding map.")
    return Evidence(
        mistakes=tuple(mistakes),
        num_mistakes=wrong,
        embedding=embed(features[np.searchsorted(needed, sample)], sample, seed),
        gates=tuple(gates),
        gate_examples=tuple(examples),
        num_gate_images=num_read,
        pieces=data.spec.pieces,
        train_searched=searched,
        remarks=tuple(remarks),
    )


def _with_reason(remark: str, reason: str) -> str:
    return f"{remark} The reason: {' '.join(reason.split())}" if reason else remark


def _illustrate(
    look: Look,
    mistakes: list[Mistake],
    rows: IntArray,
    features: Array,
    seed: int,
    of_the_run: bool,
) -> tuple[list[Mistake], tuple[int, int]]:
    """Add pictures, attribution maps and nearest training images."""
    maps = mistake_maps(look.loaded, look.pixels(rows), mistakes)
    drawn = [
        replace(m, picture=thumb(image, f"{m.true} called {m.called}"), maps=of)
        for m, image, of in zip(mistakes, look.shown(rows), maps, strict=True)
    ]
    table = look.data.table
    # Otherwise a mistake of the training split would find itself as its neighbour.
    train = table[(table["split"] == "train") & (table["row"] >= 0) & ~table["row"].isin(rows)]
    if train.empty or not of_the_run:
        return drawn, (0, 0)
    target = train["target"].to_numpy(np.int64)
    chosen = train.iloc[np.sort(balanced_sample(target, TRAIN_IMAGES, seed))]
    among = chosen["row"].to_numpy(np.int64)
    named = chosen["image"].astype(str).tolist(), chosen["label"].astype(str).tolist()
    learned = look.features(among, "looking at training images")
    found = [
        replace(m, neighbours=neighbours_of(at, near, *named, look.shown(among[at])))
        for m, at, near in zip(
            drawn, *nearest_by_cosine(features, learned, NEIGHBOURS), strict=True
        )
    ]
    return found, (len(chosen), len(train))


def embed(features: Array, rows: IntArray, seed: int) -> EmbeddingMap | None:
    """Project features to two dimensions.

    Args:
        features: (n, E, D); each expert's features are scaled to length 1 and concatenated.
        rows: (n,) rows of the predictions.
        seed: of t-SNE.

    Returns:
        None for fewer than 5 images; the first two principal components for up to 50 images; t-SNE
        of principal components for more (van der Maaten and Hinton, JMLR 2008).
    """
    if len(features) < _LEAST_MAP:
        return None
    from sklearn.decomposition import PCA

    unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    flat = unit.reshape(len(unit), -1).astype(np.float32)
    parts = min(_COMPONENTS, *flat.shape)
    reduced = PCA(parts, random_state=seed).fit_transform(flat)
    if len(flat) <= _COMPONENTS or reduced.shape[1] < 2:
        points = np.pad(reduced[:, :2], ((0, 0), (0, max(0, 2 - parts)))).astype(np.float64)
        return EmbeddingMap(rows, points, "the first two principal components")
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(flat) - 1) / 4)
    # More iterations move single points, but no groups.
    points = TSNE(
        2, perplexity=perplexity, init="pca", max_iter=500, random_state=seed, n_jobs=1
    ).fit_transform(reduced)
    return EmbeddingMap(rows, points, f"t-SNE of {parts} principal components, seed {seed}")
