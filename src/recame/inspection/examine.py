"""`inspect_set`: checks a data set before training, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from recame.config import Config, DataConfig, as_config, height_width
from recame.contracts import AnyPath, PreprocessSpec
from recame.data.audit import audit_manifest
from recame.data.cache import ImageCache, PickedRows
from recame.data.contents import pixel_statistics, read_headers
from recame.data.corrections import corrected
from recame.data.manifest import ManifestColumns, read_manifest
from recame.data.proposal import (
    candidate_sizes,
    decoded_as,
    native_size,
    propose_spec,
    settled,
)
from recame.data.sampling import balanced_sample
from recame.datasets.given import Given, given_path
from recame.errors import ConfigError, DataError
from recame.inference.embedding import embed_images
from recame.inference.projection import nearest_rows, principal_components
from recame.inspection.check import Clock, EmbeddedImages, Inspection
from recame.inspection.checks import CHECKS
from recame.inspection.checks.duplicates import equal_images
from recame.inspection.printing import print_inspection
from recame.inspection.saving import check_nothing_filled_in, save_inspection
from recame.models import LoadedModel, load_checkpoint
from recame.names import counted
from recame.progress import Progress, progress_bars, silent
from recame.short_names import SHORT, in_full

#: Most images that are embedded; if there are more, frequent classes are sampled.
MOST_EMBEDDED = 20_000
_COMPONENTS = 64
_NEIGHBOURS = 10


def inspect_set(
    source: Given,
    *,
    data: DataConfig | Config | Mapping[str, Any] | None = None,
    model: LoadedModel | AnyPath | None = None,
    decode: bool = True,
    seed: int = 0,
    size: int | str | tuple[int, int] | None = None,
    normal: str | None = None,
    out: AnyPath | None = None,
    console: Console | None = None,
) -> Inspection:
    """Inspect a data set: counts, images, clusters, duplicates, leaks, likely label errors.

    Without a split column the data set has no splits, although training would make them. Faults
    for which training stops (one class, a class only in the test split, many unreadable files) are
    findings here, not errors.

    Args:
        source: a folder or a table, see `read_manifest`, or the table that it returned; a DataFrame
            or a list of (image path, label); or a run, for its images.
        data: names of the columns and size of the images: settings of the section `data`, all
            settings, or a dictionary of settings (`{"data.group_by": "lot"}`); None: the defaults.
        model: a model, or the folder of a finished run; it embeds the images in place of the
            packaged network, and decides their size.
        decode: false: only the manifest is read, in seconds for a million rows.
        seed: seed of every sample.
        size: size of the images in pixels, in place of `data.size`.
        normal: the class without a defect, in place of `data.normal_class`.
        out: folder for the page, the JSON and the tables; None: nothing is written.
        console: for progress and summary; None: nothing is printed.

    Raises:
        DataError: the source cannot be read, none of its images can be read, or `out` cannot be
            written or holds corrections that would be lost.
        ConfigError: a setting is unknown or ill-typed.
    """
    settings = _settings(data, {"size": size, "normal": normal})
    if out is not None:
        check_nothing_filled_in(Path(out))
    loaded = model if model is None or isinstance(model, LoadedModel) else load_checkpoint(model)
    with ExitStack() as opened:
        quiet = nullcontext(silent) if console is None else progress_bars(console)
        report, known = opened.enter_context(quiet), None
        described: Path | pd.DataFrame
        if isinstance(source, pd.DataFrame) and "path" in source:  # of `read_manifest`
            described = source
        else:
            folder = Path(opened.enter_context(TemporaryDirectory()))
            given = given_path(source, folder, settings.image_column)
            described = opened.enter_context(given)
            known = None if described.parent != folder else "table"
        inspection = _examine(described, settings, loaded, report, decode=decode, seed=seed)
    inspection.source = known or inspection.source
    if console is not None:
        print_inspection(inspection, console)
    if out is not None:
        save_inspection(inspection, Path(out))
    return inspection


def _settings(
    given: DataConfig | Config | Mapping[str, Any] | None, short: dict[str, Any]
) -> DataConfig:
    """The section `data` of settings in any form; short names override it.

    Raises:
        ConfigError: a setting is wrong, or does not belong to the data.
    """
    if isinstance(given, DataConfig):
        given = Config(data=given)
    if isinstance(given, Mapping):
        named = set(given) - set(SHORT)
        if foreign := [name for name in named if str(name).partition(".")[0] != "data"]:
            raise ConfigError(
                f"{foreign[0]} has no effect on an inspection: leave it out; only settings "
                "data.key count here."
            )
    return as_config(given).updated(in_full(short)).data


def _examine(
    source: Path | pd.DataFrame,
    data: DataConfig,
    model: LoadedModel | None,
    report: Progress,
    *,
    decode: bool,
    seed: int,
) -> Inspection:
    """Read, decode and embed the images; then run every check."""
    clock = Clock(report)
    with clock("reading the manifest"):
        if isinstance(source, pd.DataFrame):
            name, table = "table", source.reset_index(drop=True)
        else:
            name = str(source)
            table = read_manifest(source, ManifestColumns.of(data), min_classes=1, pages=data.pages)
        table, changes = corrected(table, data)
        audit = audit_manifest(table, product_column=data.product_column, group_by=data.group_by)
    inspection = Inspection(name, table, audit, seed, clock)
    inspection.corrections = None if data.corrections is None else changes
    if decode:
        with clock("reading headers"):
            inspection.headers = read_headers(table["path"].tolist(), context=data.context)
        inspection.spec, inspection.cache = spec, cache = _decode(table, data, model, clock)
        inspection.table = table.assign(row=cache.row_of)
        with clock("measuring pixels") as step:
            inspection.pixels = pixel_statistics(cache.images, spec.scale, step)
        with clock("comparing files"):
            inspection.equal = equal_images(inspection.table, inspection.pixels["digest"].tolist())
        inspection.embedded = _embed(inspection, spec, cache, model)
    for check in CHECKS:
        inspection.checks.append(check(inspection))
    return inspection


def _embed(
    inspection: Inspection, spec: PreprocessSpec, cache: ImageCache, model: LoadedModel | None
) -> EmbeddedImages:
    """Embed one image of each group of exact duplicates, and a sample of frequent classes."""
    table, equal = inspection.table, inspection.equal
    target = pd.Index(inspection.names).get_indexer(pd.Index(table["label"])).astype(np.int64)
    trained = np.zeros(len(table), bool)
    if "split" in table:
        trained = (table["split"] == "train").to_numpy()
    # One image represents each group of exact duplicates, as copies would be nearest neighbours.
    # It is a training image if there is one, as the clusters describe the training split.
    copies = equal.iloc[np.argsort(~trained[equal["table_row"].to_numpy(np.int64)], kind="stable")]
    usable = (table["row"] >= 0).to_numpy(copy=True)
    usable[copies[copies.duplicated("group")]["table_row"].to_numpy(np.int64)] = False
    candidates = np.flatnonzero(usable)
    rows = candidates[np.sort(balanced_sample(target[candidates], MOST_EMBEDDED, inspection.seed))]
    images = PickedRows(cache.images, table["row"].to_numpy()[rows])
    with inspection.clock("embedding") as step:
        embedding = embed_images(images, spec, model=model, on_progress=step)
        components = principal_components(embedding.details, _COMPONENTS)
        neighbours, _ = nearest_rows(components, _NEIGHBOURS)
    basis = candidates[trained[candidates]] if trained[rows].any() else candidates
    return EmbeddedImages(
        rows=rows,
        num_candidates=len(candidates),
        source=embedding.source,
        looks=embedding.looks,
        details=embedding.details,
        components=components,
        neighbours=neighbours,
        target=target[rows],
        basis="train" if trained[rows].any() else "all images",
        counted=np.isin(rows, basis),
        present=np.bincount(target[basis], minlength=len(inspection.names)),
    )


def _decode(
    table: pd.DataFrame, data: DataConfig, model: LoadedModel | None, clock: Clock
) -> tuple[PreprocessSpec, ImageCache]:
    paths = [Path(path) for path in table["path"]]
    with clock("decoding") as step:
        if model is None:
            spec, cache = settled(_propose(paths, data), paths, data, on_progress=step)
        else:
            spec, cache = model.spec, decoded_as(model.spec, paths, data, on_progress=step)
    if not len(cache.images):
        first = cache.broken[0]
        raise DataError(
            f"None of {counted(len(table))} can be read ({first.path}: {first.reason}), so "
            "there is nothing to inspect. Check the paths and the files, or inspect only the "
            "manifest with --no-decode."
        )
    return spec, cache


def _propose(paths: list[Path], data: DataConfig) -> PreprocessSpec:
    propose = partial(
        propose_spec,
        paths,
        size=None if data.size == "auto" else height_width(data.size),
        channels=data.channels,
        bit_depth=data.bit_depth,
        resize=data.resize,
        max_pixels=data.max_pixels,
        float_range=data.float_range,
        context=data.context,
    )
    try:
        spec, native = propose(sample=64)
    except DataError:
        # The few readable files may have been missed.
        native_size(paths, sample=len(paths), context=data.context)
        spec, native = propose(sample=len(paths))
    height, width = candidate_sizes(native)[0]  # as training does, so that both share one cache
    return replace(spec, height=height, width=width) if data.size == "auto" else spec
