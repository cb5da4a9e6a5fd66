"""Everything about a set of images before any training, in one call."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recame.config import DataConfig
from recame.contracts import FloatArray, IntArray, PreprocessSpec
from recame.data.audit import ManifestAudit, audit_manifest, category_columns
from recame.data.cache import ImageCache, PickedRows, build_cache
from recame.data.contents import pixel_statistics, read_headers
from recame.data.decode import native_size, propose_spec, working_side
from recame.data.manifest import ManifestColumns, read_manifest
from recame.errors import DataError
from recame.inference.embedding import embed_images
from recame.inference.projection import nearest_rows, principal_components, project_map
from recame.inspection.clusters import (
    class_structure,
    cluster_agreement,
    cluster_classes,
    find_looks,
    mixing,
)
from recame.inspection.duplicates import near_duplicates, scene_groups
from recame.inspection.issues import (
    Hygiene,
    equal_images,
    named_pairs,
    named_suspects,
    no_duplicates,
    no_pairs,
    no_suspects,
)
from recame.inspection.label_errors import label_suspects
from recame.models import LoadedModel
from recame.progress import Progress, relabelled, silent

INSPECTION_SCHEMA = 1

#: Images that are embedded; of more, the frequent classes give a sample.
MOST_EMBEDDED = 20_000
#: Points on the map.
MOST_MAPPED = 2500
_COMPONENTS = 64
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Structure:
    """What the embedded images show.

    Attributes:
        rows: (N,) rows of the table that were embedded.
        source: which network embedded them.
        num_looks: dense looks in the whole set.
        dense_share: images that lie in one.
        basis: the split whose images the classes' clusters are counted on, or "all images".
        classes: see `class_structure`; None for classes without an embedded image is left out.
        agreement: see `cluster_agreement`.
        cluster: (N,) cluster within the class.
        target: (N,) index of the class among the manifest's classes.
        neighbours: (N, 10) positions (not table rows) of the nearest images.
        mixing: (C, C) shares of classes among the neighbours.
        map_rows: (M,) positions shown on the map.
        map_points: (M, 2).
    """

    rows: IntArray
    source: str
    num_looks: int
    dense_share: float
    basis: str
    classes: pd.DataFrame
    agreement: pd.DataFrame
    cluster: IntArray
    target: IntArray
    neighbours: IntArray
    mixing: FloatArray
    map_rows: IntArray
    map_points: FloatArray


@dataclass(frozen=True)
class Inspection:
    """A set, inspected.

    Attributes:
        source: the data as the user named it.
        table: the manifest; with decoded images also `row` (of the cache; -1: unreadable).
        audit: what the manifest says.
        headers: what the files' headers say (a sample); empty without decoding.
        pixels: brightness and contrast of each cached image; empty without decoding.
        spec: how the images were decoded, or None.
        cache: the decoded images, or None.
        structure: clusters, or None without decoding.
        hygiene: what should be put right.
        normal: the class that means "no defect", if named.
        seconds: time of each step.
    """

    source: str
    table: pd.DataFrame
    audit: ManifestAudit
    headers: pd.DataFrame
    pixels: pd.DataFrame
    spec: PreprocessSpec | None
    cache: ImageCache | None
    structure: Structure | None
    hygiene: Hygiene
    normal: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def image(self, table_row: int) -> Any:
        """Decoded pixels of a row of the table: (H, W, C)."""
        assert self.cache is not None
        return self.cache.images[int(self.table["row"].iloc[table_row])]


def examine_set(
    source: Path | pd.DataFrame,
    *,
    data: DataConfig | None = None,
    model: LoadedModel | None = None,
    decode: bool = True,
    seed: int = 0,
    report: Progress = silent,
) -> Inspection:
    """Inspect a set: counts, images, clusters, duplicates, leaks, likely label errors.

    Nothing is invented: without a split column there are no splits, whatever training would make.
    What training would refuse (one class, a class that only the test split has, many unreadable
    files) is told, not refused.

    Args:
        source: a folder or a table, see `read_manifest`; or what that returned.
        data: names of the columns, size of the images; None: the defaults.
        model: embeds instead of the packaged network, and decides the images' size.
        decode: false: only what the manifest says; seconds for a million rows.
        seed: of every sample.
        report: told of the progress.

    Raises:
        DataError: the source cannot be read, or not one of its images can.
    """
    data = data or DataConfig()
    clock = _Clock(report)
    with clock("reading the manifest"):
        if isinstance(source, pd.DataFrame):
            table = source.reset_index(drop=True)
        else:
            table = read_manifest(source, ManifestColumns.of(data), min_classes=1)
        audit = audit_manifest(table, product_column=data.product_column, group_by=data.group_by)
    name = "table" if isinstance(source, pd.DataFrame) else str(source)
    if not decode:
        hygiene = Hygiene(no_duplicates(), no_pairs(), no_suspects(), 0, ())
        blank = pd.DataFrame()
        return Inspection(
            name, table, audit, blank, blank, None, None, None, hygiene, data.normal_class,
            clock.seconds,
        )  # fmt: skip
    with clock("reading headers"):
        headers = read_headers(table["path"].tolist())
    spec, cache = _decode(table, data, model, clock)
    table = table.assign(row=cache.row_of)
    with clock("measuring pixels") as step:
        pixels = pixel_statistics(cache.images, spec.scale, step)
    with clock("comparing files"):
        duplicates = equal_images(table, pixels["digest"].tolist())
    structure, near, suspects, judged = _analyse(
        table, audit, cache, spec, model, duplicates, seed, clock
    )
    hygiene = Hygiene(duplicates, near, suspects, judged, cache.broken)
    return Inspection(
        name, table, audit, headers, pixels, spec, cache, structure, hygiene, data.normal_class,
        clock.seconds,
    )  # fmt: skip


class _Clock:
    """Times the steps and passes their progress on."""

    def __init__(self, report: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._label = ""
        self._start = 0.0

    def __call__(self, label: str) -> _Clock:
        self._label = label
        return self

    def __enter__(self) -> Progress:
        self._start = time.perf_counter()
        return relabelled(self._report, self._label)

    def __exit__(self, *_: object) -> None:
        self.seconds[self._label] = round(time.perf_counter() - self._start, 3)
        self._report(self._label, 1, 1)


def _decode(
    table: pd.DataFrame, data: DataConfig, model: LoadedModel | None, clock: _Clock
) -> tuple[PreprocessSpec, ImageCache]:
    paths = [Path(path) for path in table["path"]]
    if model is not None:
        spec = model.spec
    else:
        spec, native = _propose(paths, data)
        if data.size == "auto":
            side = working_side(native)  # as training does, so that both share one cache
            spec = replace(spec, height=side, width=side)
    with clock("decoding") as step:
        cache = build_cache(
            paths,
            spec,
            cache_dir=data.cache_dir,
            max_pixels=data.max_pixels,
            on_progress=step,
        )
    if not len(cache.images):
        first = cache.broken[0]
        raise DataError(
            f"None of the {len(table):,} images can be read ({first.path}: {first.reason}), so "
            "there is nothing to inspect. Check the paths and the files, or look at the manifest "
            "alone with --no-images."
        )
    return spec, cache


def _propose(paths: list[Path], data: DataConfig) -> tuple[PreprocessSpec, tuple[int, int]]:
    def propose(sample: int) -> tuple[PreprocessSpec, tuple[int, int]]:
        return propose_spec(
            paths,
            size=None if data.size == "auto" else data.size,
            channels=data.channels,
            bit_depth=data.bit_depth,
            resize=data.resize,
            max_pixels=data.max_pixels,
            sample=sample,
        )

    try:
        return propose(64)
    except DataError:
        # The few readable files may have been missed.
        native_size(paths, sample=len(paths))
        return propose(len(paths))


def _sample(target: IntArray, most: int, seed: int) -> IntArray:
    """At most `most` positions, the same number of each class as far as it has them, ascending."""
    if len(target) <= most:
        return np.arange(len(target))
    counts = np.sort(np.bincount(target))
    counts = counts[counts > 0]
    caps = np.cumsum(counts) + counts * np.arange(len(counts) - 1, -1, -1)
    fits = int(np.searchsorted(caps, most, side="right"))
    spent = int(counts[:fits].sum())
    cap = max(1, (most - spent) // max(len(counts) - fits, 1))
    order = np.random.default_rng(seed).permutation(len(target))
    rank = pd.Series(target[order]).groupby(target[order]).cumcount().to_numpy()
    return np.sort(order[rank < cap])[:most]


def _analyse(
    table: pd.DataFrame,
    audit: ManifestAudit,
    cache: ImageCache,
    spec: PreprocessSpec,
    model: LoadedModel | None,
    duplicates: pd.DataFrame,
    seed: int,
    clock: _Clock,
) -> tuple[Structure, pd.DataFrame, pd.DataFrame, int]:
    """Embed, cluster, and look for near-duplicates and label errors."""
    names = audit.classes["class"].tolist()
    target = pd.Index(names).get_indexer(table["label"]).astype(np.int64)
    # One image of each equal group stands for all: the others would be its own neighbours.
    # A training image where there is one, since the training split is what is described.
    trained = np.zeros(len(table), bool)
    if "split" in table:
        trained = (table["split"] == "train").to_numpy()
    rank = ~trained[duplicates["table_row"].to_numpy(np.int64)]
    ordered = duplicates.iloc[np.argsort(rank, kind="stable")]
    repeats = ordered[ordered.duplicated("group")]["table_row"].to_numpy(np.int64)
    usable = (table["row"] >= 0).to_numpy(copy=True)
    usable[repeats] = False
    candidates = np.flatnonzero(usable)
    rows = candidates[_sample(target[candidates], MOST_EMBEDDED, seed)]
    images = PickedRows(cache.images, table["row"].to_numpy()[rows])
    with clock("embedding") as step:
        embedding = embed_images(images, spec, model=model, on_progress=step)
    own = target[rows]
    with clock("clustering"):
        looks = find_looks(embedding.looks, seed)
        cluster = cluster_classes(looks, own, seed)
        components = principal_components(embedding.details, _COMPONENTS)
        neighbours = nearest_rows(components, _NEIGHBOURS)[0]
        part = table.iloc[rows]
        in_train = trained[rows]
        basis = trained if in_train.any() else np.ones(len(table), bool)
        present = np.bincount(target[candidates[basis[candidates]]], minlength=len(names))
        scores = principal_components(embedding.looks, 16)
        classes = class_structure(
            names, own, cluster, scores, neighbours, basis[rows], present=present
        )
        agreement = cluster_agreement(part, own, cluster, category_columns(part))
    with clock("looking for near-duplicates"):
        pairs = near_duplicates(images, spec.scale, components)
        near = named_pairs(table, rows, pairs)
    with clock("testing labels") as step:
        scenes = scene_groups(len(rows), pairs[["first", "second"]].to_numpy(np.int64))
        found = label_suspects(
            embedding.details, own, scenes, len(names), seed=seed, on_progress=step
        )
        suspects = named_suspects(table, rows, found, names)
    with clock("drawing the map"):
        shown = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST_MAPPED])
        points = project_map(looks.space[shown], seed)
    structure = Structure(
        rows=rows,
        source=embedding.source,
        num_looks=looks.num_looks,
        dense_share=looks.dense_share,
        basis="train" if basis is trained else "all images",
        classes=classes,
        agreement=agreement,
        cluster=cluster,
        target=own,
        neighbours=neighbours,
        mixing=mixing(own, neighbours, len(names)),
        map_rows=shown,
        map_points=points,
    )
    return structure, near, suspects, int(found["judged"].sum())
