"""A source of images, made ready: table, label space, splits, decoded pixels, batches."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recame.config import DataConfig, height_width
from recame.contracts import Array, Batch, IntArray, PreprocessSpec
from recame.data.cache import ImageCache
from recame.data.copies import tell_copies
from recame.data.corrections import CHANGES, corrected
from recame.data.decode import PLAIN, Loss, losses
from recame.data.file_groups import groups_of
from recame.data.image_folder import Labels
from recame.data.manifest import ManifestColumns, read_manifest
from recame.data.proposal import decoded_as, native_size, propose_spec, settled
from recame.data.splits import complete_splits, in_order
from recame.data.transforms import to_unit
from recame.data.unreadable import drop_broken, keep_classes
from recame.errors import DataError
from recame.label_space import LabelSpace
from recame.names import by_number, counted, quoted
from recame.progress import Progress, silent


@dataclass(frozen=True)
class SplitView:
    """The rows of one split.

    Attributes:
        name: the split.
        indices: (N,) rows of the set's table.
        targets: (N,) class indices, -1 where the label is unknown.
        rows: (N,) rows of the cache's images.
    """

    name: str
    indices: IntArray
    targets: IntArray
    rows: IntArray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def counts(self, num_classes: int) -> IntArray:
        """(C,) images of each class, zeros kept."""
        return np.bincount(self.targets[self.targets >= 0], minlength=num_classes)


@dataclass(frozen=True)
class InspectionSet:
    """All readable images of a source.

    Attributes:
        table: one row a readable image: the manifest's columns, `split`, `target` (class index, -1
            where the label is unknown) and `row` (in the cache's images).
        classes: the label space; None where images need no label and name no two classes.
        spec: how the files were decoded.
        cache: the pixels, and which files are broken.
        native_size: median (height, width) of the files.
        corrections: labels that `data.corrections` changed, of `corrected`.
    """

    table: pd.DataFrame
    classes: LabelSpace | None
    spec: PreprocessSpec
    cache: ImageCache
    native_size: tuple[int, int]
    corrections: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(CHANGES)))

    @property
    def label_space(self) -> LabelSpace:
        """The classes with their training counts.

        Raises:
            DataError: no labels are known.
        """
        if self.classes is None:
            raise DataError(
                f"None of {counted(len(self.table))} has a label ({self.table['path'][0]}, "
                "...), or all have the same label, so there are no classes to train or evaluate "
                "on. Give labels: a folder for each class, or a table with image and label."
            )
        return self.classes

    @property
    def fingerprint(self) -> str:
        """Hash of the images' contents, decoding, labels and splits; 32 hex digits."""
        label = self.table.get("label", pd.Series("", self.table.index)).fillna("")
        facts = self.table["image"] + "\t" + label + "\t" + self.table["split"]
        text = "\n".join([self.cache.fingerprint, *sorted(facts)])
        return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: train, val and test first, then the others by name."""
        return in_order(self.table["split"])

    def view(self, split: str) -> SplitView:
        """The rows of one split, in the table's order.

        Raises:
            DataError: there is no such split.
        """
        indices = np.flatnonzero((self.table["split"] == split).to_numpy())
        if not len(indices):
            raise DataError(
                f"There is no image in the split {split!r}; the splits are "
                f"{', '.join(map(quoted, self.splits))}. Choose one of them."
            )
        part = self.table.iloc[indices]
        return SplitView(split, indices, part["target"].to_numpy(), part["row"].to_numpy())

    def lost(self, paths: Iterable[str]) -> list[dict[Loss, str]]:
        """What images have lost on their way to the model, by kind and in words."""
        facts = dict(self.cache.facts)
        return [losses(facts.get(str(Path(path)), PLAIN), self.spec) for path in paths]

    def images(self, rows: IntArray) -> Tensor:
        """Images as a model takes them: (B, C, H, W) float32 in [0, 1], channels last.

        Args:
            rows: (B,) rows of the cache's images.
        """
        return to_unit(_as_tensor(self.cache.images[rows]), self.spec.scale)


def load_inspection_set(
    source: Path | pd.DataFrame,
    config: DataConfig,
    *,
    seed: int,
    spec: PreprocessSpec | None = None,
    label_space: LabelSpace | None = None,
    split_if_absent: str | None = None,
    labels: Labels = "required",
    on_progress: Progress = silent,
) -> InspectionSet:
    """Read a source, split it, decode it, and leave out what cannot be read.

    Splits are made before unreadable files are dropped, so that a repaired file moves no other,
    unless it was a copy of one. Where every training image of a class is unreadable, one whose
    split was drawn moves to `train`.

    Args:
        source: see `read_manifest`; or a table of the form that it returns, which stays as it is.
        config: the settings of the data.
        seed: of the splits.
        spec: how to decode; None: chosen from the files and the settings.
        label_space: of a trained model; None: made from the training split.
        split_if_absent: with no split in the source, all images get this one; None: splits are
            made.
        labels: whether images need one, as of `read_manifest`. Where they do not, targets are -1,
            and without `label_space` classes that no training image shows have a count of 0.
        on_progress: told of the decoding.

    Raises:
        ConfigError: the settings contradict each other or the data.
        DataError: the source cannot be used; the message says why and what to do.
        UnreadableError: more images cannot be read than the settings put up with.
    """
    trained = label_space is not None
    table = _read(source, config, labels, min_classes=1 if trained else 2)
    fixed = _fixed(table, config)
    table, changes = _labelled_table(table, config, seed, label_space, split_if_absent, labels)
    paths = [Path(path) for path in table["path"]]
    spec, cache, native = _decoded(paths, config, spec, on_progress)
    learns = not trained and labels == "required"
    every = table.assign(row=cache.row_of)
    table = drop_broken(every, cache, config.max_broken_fraction)
    if learns:
        table = keep_classes(table, every, cache, fixed)
        tell_copies(table, cache)
    label = table.get("label", pd.Series(None, table.index, dtype=object))
    if label_space is None and (learns or len(set(label.dropna())) > 1):
        label_space = _learnt(table.assign(label=label), config)
    names = [] if label_space is None else list(label_space.names)
    codes = pd.Categorical(label, categories=names).codes
    if learns and label_space is not None:
        _tell_unjudged(table, label_space)
    return InspectionSet(
        table.assign(target=codes.astype(np.int64)), label_space, spec, cache, native, changes
    )


def check_classes(table: pd.DataFrame, config: DataConfig, *, seed: int) -> None:
    """Refuse, before an image is decoded, a table whose classes cannot be learnt.

    Args:
        table: of `read_manifest`.
        config: the settings of the data.
        seed: of the splits.

    Raises:
        ConfigError: the normal class or a critical one is not there.
        DataError: an image has no label, or a class no training image.
    """
    split, _ = _labelled_table(table, config, seed, None, None, "required")
    _learnt(split, config)


def _learnt(table: pd.DataFrame, config: DataConfig) -> LabelSpace:
    """The classes that a table with splits teaches."""
    label = table["label"]
    return LabelSpace.from_labels(
        label[table["split"] == "train"].dropna(),
        normal=config.normal_class,
        critical=config.critical_classes,
        known=set(label.dropna()),
    )


def _read(
    source: Path | pd.DataFrame, config: DataConfig, labels: Labels, min_classes: int
) -> pd.DataFrame:
    """The table of a source, as it is given."""
    if isinstance(source, pd.DataFrame):
        if labels == "required":
            _check_labelled(source)
        return source.drop(columns="label", errors="ignore") if labels == "ignored" else source
    columns = ManifestColumns.of(config)
    return read_manifest(
        source, columns, min_classes=min_classes, labels=labels, pages=config.pages
    )


def _fixed(table: pd.DataFrame, config: DataConfig) -> set[str] | None:
    """Images whose splits are given; None: all stay where they are, since groups stay whole."""
    if config.group_by is not None or groups_of(table, None) is not None:
        return None
    return set(table.loc[table["split"] != "train", "image"]) if "split" in table else set()


def _labelled_table(
    table: pd.DataFrame,
    config: DataConfig,
    seed: int,
    label_space: LabelSpace | None,
    split_if_absent: str | None,
    labels: Labels,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table with splits and corrected labels; the second table lists the corrections."""
    trained = label_space is not None
    if "split" not in table and split_if_absent is not None:
        table = table.assign(split=split_if_absent)
    if not trained or "split" not in table or (table["split"] == "train").any():
        table = complete_splits(
            table,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            group_by=config.group_by,
            seed=seed,
            calibrate_fraction=0.0 if config.calibrate == "auto" else config.calibrate,
        )
    changes = pd.DataFrame(columns=list(CHANGES))
    if labels != "ignored":
        table, changes = corrected(table, config)
    if label_space is not None:
        _check_labels(table, set(label_space.names), trained=True)
    elif labels == "required":
        _check_labels(table, set(table.loc[table["split"] == "train", "label"]), trained=False)
    return table, changes


def _decoded(
    paths: list[Path], config: DataConfig, spec: PreprocessSpec | None, on_progress: Progress
) -> tuple[PreprocessSpec, ImageCache, tuple[int, int]]:
    """Decode images, as `spec` says or as proposed; also the files' median height and width."""
    if spec is not None:
        native = native_size(paths, context=spec.context)
        return spec, decoded_as(spec, paths, config, on_progress=on_progress), native
    proposed, native = propose_spec(
        paths,
        size=None if config.size == "auto" else height_width(config.size),
        channels=config.channels,
        bit_depth=config.bit_depth,
        resize=config.resize,
        max_pixels=config.max_pixels,
        float_range=config.float_range,
        context=config.context,
        tiles=0 if config.tiles == "auto" else config.tiles,
    )
    return *settled(proposed, paths, config, on_progress=on_progress), native


def _check_labelled(table: pd.DataFrame) -> None:
    missing = len(table) if "label" not in table else int(table["label"].isna().sum())
    if missing:
        raise DataError(
            f"{missing} of {counted(len(table))} {by_number(missing, 'has', 'have')} no label, so "
            "a model can be neither trained nor evaluated on them. Add a column 'label', or leave "
            "out these images."
        )


def _check_labels(table: pd.DataFrame, known: set[str], *, trained: bool) -> None:
    if "label" not in table:
        return
    unknown = table[~(table["label"].isin(known) | table["label"].isna())]
    if unknown.empty:
        return
    names = ", ".join(
        f"{label!r} ({counted(count)})" for label, count in unknown["label"].value_counts().items()
    )
    if trained:
        raise DataError(
            f"The model was not trained on {names}, so it can never predict this correctly. "
            "Correct these labels, leave out the images, or train again with them."
        )
    where = ", ".join(map(quoted, sorted(set(unknown["split"]))))
    raise DataError(
        f"Training never sees {names}, found only in the split {where}, so no model can learn to "
        "predict it. Add training images of it, or remove the rows."
    )


def _tell_unjudged(table: pd.DataFrame, label_space: LabelSpace) -> None:
    """Warn of classes that `val`, which chooses what is kept, has no image of."""
    judged = set(table.loc[table["split"] == "val", "label"])
    unjudged = [
        f"{name!r} ({count})"
        for name, count in zip(label_space.names, label_space.counts, strict=True)
        if name not in judged
    ]
    if judged and unjudged:
        warnings.warn(
            f"val has no image of {', '.join(unjudged)} (training images in brackets), so the "
            "model is chosen without these classes. Put images of each class into val if there "
            "are enough.",
            stacklevel=3,
        )


class BatchDataset(Dataset[Batch]):
    """Whole batches by the positions of their images within a view.

    Args:
        images: (N, H, W, C) pixels, uint8 or uint16.
        rows: (n,) row of each position in `images`.
        targets: (n,) class indices.
        indices: (n,) rows of the set's table.
    """

    def __init__(self, images: Array, rows: IntArray, targets: IntArray, indices: IntArray) -> None:
        self._images, self._rows = images, rows
        self._targets, self._indices = targets, indices

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, batch: Sequence[int]) -> Batch:
        """Gather a batch; images are (B, C, H, W) uint8, or int32 for 16-bit pixels."""
        chosen = np.asarray(batch, dtype=np.int64)
        return Batch(
            images=_as_tensor(self._images[self._rows[chosen]]),
            target=torch.from_numpy(self._targets[chosen]),
            index=torch.from_numpy(self._indices[chosen]),
        )


def _as_tensor(pixels: Array) -> Tensor:
    """(B, H, W, C) pixels -> (B, C, H, W), uint8 or int32, without another copy."""
    if pixels.dtype == np.uint16:  # torch computes little with uint16
        pixels = pixels.astype(np.int32)
    return torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2)


def make_loader(
    view: SplitView,
    cache: ImageCache,
    batches: Iterable[list[int]] | int,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A loader of `Batch`es from the cache.

    Args:
        view: the split.
        cache: the pixels.
        batches: a sampler of lists of positions, as `EpochBatches`; or a batch size, for all
            images in order.
        num_workers: loading processes; 0 is fastest for a cache that fits into memory.
        pin_memory: for copies to a GPU.
    """
    if isinstance(batches, int):
        positions = range(len(view))
        batches = [list(positions[i : i + batches]) for i in positions[::batches]]
    return DataLoader(
        BatchDataset(cache.images, view.rows, view.targets, view.indices),
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
