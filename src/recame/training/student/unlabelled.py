"""Unlabelled images for a student: decoded, classified by the teacher, mixed into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset, Sampler

from recame.config import DistillConfig
from recame.contracts import Array, Batch, FloatArray, IntArray
from recame.data.cache import BrokenImage, ImageCache
from recame.data.dataset import BatchDataset
from recame.data.listing import list_images
from recame.data.proposal import decoded_as
from recame.data.samplers import EpochBatches, SamplerKind
from recame.errors import CheckpointError, DataError
from recame.inference.predict import predict_cached
from recame.progress import Progress, relabelled
from recame.runs.tables import read_table
from recame.training.ongoing_run import OngoingRun


@dataclass(frozen=True)
class UnlabelledImages:
    """Readable unlabelled images, without those that the run has already.

    Attributes:
        cache: their pixels.
        rows: (N,) of the cache.
        paths: N files.
        predicted: (N,) class that the teacher predicts.
        confidence: (N,) its probability.
        share: of each batch.
        kind: the sampler, by predicted class.
        broken: files that could not be decoded.
        num_known: number of images left out because the run's own data have them.
    """

    cache: ImageCache
    rows: IntArray
    paths: tuple[str, ...]
    predicted: IntArray
    confidence: FloatArray
    share: float
    kind: SamplerKind
    broken: tuple[BrokenImage, ...]
    num_known: int

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels, in order; 32 hex digits."""
        whole = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            whole.update(_digest(self.cache.images[row]))
        return whole.hexdigest()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def dataset(self) -> BatchDataset:
        """A dataset that gives batches of them, with target -1."""
        unknown = np.full(len(self), -1, dtype=np.int64)
        return BatchDataset(self.cache.images, self.rows, unknown, np.arange(len(self)))


def load_unlabelled(
    run: OngoingRun, settings: DistillConfig, teacher: nn.Module, report: Progress
) -> UnlabelledImages:
    """Find, sample, decode and classify the images of `settings.unlabelled`.

    Exact duplicates of the run's own images are left out, whatever their names: otherwise the
    student would learn the teacher's answers for test images.

    Args:
        run: of the student; its specification decides the decoding.
        settings: folders, sampler, share.
        teacher: takes images of the student's size.
        report: called with the progress.

    Raises:
        DataError: a folder does not exist, or no image in them can be used.
    """
    paths = list_images(settings.unlabelled)
    if len(paths) > settings.unlabelled_most:
        rng = np.random.default_rng(run.config.run.seed)
        chosen = rng.choice(len(paths), settings.unlabelled_most, replace=False)
        paths = [paths[i] for i in np.sort(chosen)]
    cache = decoded_as(
        run.data.spec,
        paths,
        run.config.data,
        on_progress=relabelled(report, "decoding unlabelled images"),
    )
    known = {_digest(image) for image in run.data.cache.images}
    new = np.array(
        [row >= 0 and _digest(cache.images[row]) not in known for row in cache.row_of], dtype=bool
    )
    rows = cache.row_of[new]
    num_known = int((~new).sum()) - int((cache.row_of < 0).sum())
    if not len(rows):
        first = "; ".join(f"{b.path}: {b.reason}" for b in cache.broken[:3])
        raise DataError(
            f"None of {len(paths)} unlabelled images can be used: {num_known} are among the run's "
            f"own images, {len(cache.broken)} cannot be read{f' ({first})' if first else ''}. Name "
            "folders of other images, or leave --unlabelled out."
        )
    _, probabilities, _ = predict_cached(
        teacher,
        cache.images,
        rows,
        spec=run.data.spec,
        num_views=1,
        batch_size=run.config.evaluation.batch_size,
        device=run.device,
        precision=run.precision,
        on_progress=relabelled(report, "teacher on unlabelled images"),
    )
    if silent := int((~np.isfinite(probabilities)).any(1).sum()):
        raise DataError(
            f"The teacher's answers for {silent:,} of {len(rows):,} unlabelled images are not "
            "finite (NaN or infinite), so they would all be taken for one class: check its weights."
        )
    return UnlabelledImages(
        cache,
        rows,
        tuple(str(path) for path, keep in zip(paths, new, strict=True) if keep),
        probabilities.argmax(1),
        probabilities.max(1),
        settings.unlabelled_share,
        settings.unlabelled_sampler,
        cache.broken,
        num_known,
    )


def save_unlabelled(run: OngoingRun, found: UnlabelledImages) -> None:
    """Write `unlabelled.csv`: the used images, in order, and the teacher's predictions."""
    names = run.data.label_space.names
    table = pd.DataFrame(
        {
            "image": found.paths,
            "teacher": [names[i] for i in found.predicted],
            "confidence": found.confidence.astype(np.float64).round(4),
        }
    )
    run.folder.save_table(_record(run), table)
    facts = {"images": len(found), "fingerprint": found.fingerprint}
    run.folder.mark(run.folder.state, unlabelled=facts)


def _recorded(run: OngoingRun) -> tuple[pd.DataFrame, IntArray, FloatArray]:
    """Read the file of `save_unlabelled`: the table, the teacher's classes and confidences."""
    path, names = _record(run), list(run.data.label_space.names)
    way_out = "Take it from a copy of the run, or start a new run with another --out."
    columns = ("image", "teacher", "confidence")
    table = read_table(path, run.folder.digests(path), columns, way_out)
    try:
        predicted = np.array([names.index(name) for name in table["teacher"]], dtype=np.int64)
        confidence = table["confidence"].to_numpy(np.float64)
    except ValueError as error:
        raise CheckpointError(
            f"{path} holds an invalid class or confidence ({error}): it was edited or "
            f"damaged. {way_out}"
        ) from error
    return table, predicted, confidence


def reload_unlabelled(run: OngoingRun, report: Progress) -> UnlabelledImages | None:
    """The unlabelled images of an interrupted run; None if it had not listed them yet.

    Raises:
        CheckpointError: their list is damaged.
        DataError: one of them is missing or has changed, so batches would differ.
    """
    if not _record(run).exists():
        return None
    table, predicted, confidence = _recorded(run)
    paths = [Path(path) for path in table["image"]]
    cache = decoded_as(
        run.data.spec,
        paths,
        run.config.data,
        on_progress=relabelled(report, "decoding unlabelled images"),
    )
    settings = run.config.distill
    found = UnlabelledImages(
        cache,
        cache.row_of,
        tuple(table["image"]),
        predicted,
        confidence,
        settings.unlabelled_share,
        settings.unlabelled_sampler,
        (),
        0,
    )
    # An older version kept no fingerprint.
    recorded = run.folder.info().get("unlabelled", {}).get("fingerprint")
    reason = "; ".join(f"{b.path}: {b.reason}" for b in cache.broken[:3])
    if not reason and recorded not in (None, found.fingerprint):
        reason = f"fingerprint {recorded}, now {found.fingerprint}"
    if reason:
        raise DataError(
            f"The unlabelled images that {run.folder.path} began with ({_record(run).name}) have "
            f"changed since ({reason}), so the run cannot be continued as it was. Restore them, or "
            "start a new run with another --out."
        )
    return found


def _record(run: OngoingRun) -> Path:
    return run.folder.path / "unlabelled.csv"


def _digest(pixels: Array) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


class JoinedDataset(Dataset[Batch]):
    """Batches from two sets of images of the same size; the second's positions follow the first's.

    Args:
        first: the labelled images.
        second: the unlabelled images.
    """

    def __init__(self, first: BatchDataset, second: BatchDataset) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        """Number of images of both sets."""
        return len(self._first) + len(self._second)

    def __getitem__(self, batch: Sequence[int]) -> Batch:
        """Gather a batch: images of the first set, then of the second."""
        positions = np.asarray(batch, dtype=np.int64)
        inside = positions < len(self._first)
        parts = (
            self._first[positions[inside].tolist()],
            self._second[(positions[~inside] - len(self._first)).tolist()],
        )
        return Batch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


class PairedBatches(Sampler[list[int]]):
    """Batches with a fixed share of unlabelled images.

    `EpochBatches` draws both parts: labelled images by their class, the others by the class that
    the teacher predicts. Most production images are of the normal class; with instance-balanced
    sampling they would teach little about other classes.

    Args:
        batches: arguments of `EpochBatches` for the labelled images, for full batches.
        unlabelled: the other images; their positions follow those of the labelled ones.
        rank: number of this device.
        world_size: number of devices.
    """

    def __init__(
        self,
        batches: dict[str, Any],
        unlabelled: UnlabelledImages,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        size, targets = batches["batch_size"], batches["targets"]
        second = min(size - 1, max(1, round(size * unlabelled.share)))
        num_images = batches["epoch_size"] or len(targets)
        places: dict[str, Any] = {"rank": rank, "world_size": world_size}
        first = {
            **batches,
            "batch_size": size - second,
            "epoch_size": max(1, round(num_images * (size - second) / size)),
        }
        self._labelled = EpochBatches(**first, **places)
        self._unlabelled = EpochBatches(
            unlabelled.predicted,
            kind=unlabelled.kind,
            batch_size=second,
            epoch_size=len(EpochBatches(**first)) * second,
            seed=batches["seed"] + 1,
            **places,
        )
        self._offset = len(targets)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self._labelled.set_epoch(epoch)
        self._unlabelled.set_epoch(epoch)

    def __len__(self) -> int:
        """Number of batches per epoch and device."""
        return len(self._labelled)

    def __iter__(self) -> Iterator[list[int]]:
        """The epoch's batches: labelled positions, then the others."""
        for labelled, others in zip(self._labelled, self._unlabelled, strict=True):
            yield [*labelled, *(self._offset + position for position in others)]
