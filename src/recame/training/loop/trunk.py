"""Cache on disk of the frozen shared backbone's output for each image and view."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recame.data.dataset import InspectionSet, SplitView
from recame.data.transforms import dihedral_view
from recame.errors import CheckpointError
from recame.files import read_json, reserve, write_json, write_whole
from recame.models import FrozenForward, MultiExpertClassifier
from recame.progress import Progress, silent


@dataclass(frozen=True)
class TrunkCache:
    """Outputs of the shared backbone for N images under V views, float16, memory-mapped files.

    Attributes:
        maps: (N, V, c, h, w) the last shared stage's maps.
        pooled: (N, V, Q) the pooled outputs of shared stages that feed the heads; Q may be 0.
    """

    maps: np.ndarray[Any, np.dtype[np.float16]]
    pooled: np.ndarray[Any, np.dtype[np.float16]]

    def take(
        self, index: Tensor, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Outputs for some images, each under a view drawn at random.

        Args:
            index: (B,) positions of the images.
            generator: on the CPU.
            device: device of the outputs.

        Returns:
            Maps (B, c, h, w) and pooled (B, Q), float32.
        """
        view = torch.randint(self.maps.shape[1], (len(index),), generator=generator).numpy()
        chosen = index.cpu().numpy()
        maps = torch.from_numpy(self.maps[chosen, view]).to(device).float()
        pooled = torch.from_numpy(self.pooled[chosen, view]).to(device).float()
        return maps.contiguous(memory_format=torch.channels_last), pooled

    def __deepcopy__(self, memo: dict[int, Any]) -> TrunkCache:
        """Return itself: a copy (for the moving average) would fill the memory."""
        return self


def build_trunk_cache(
    model: MultiExpertClassifier,
    data: InspectionSet,
    view: SplitView,
    paths: tuple[Path, Path, Path],
    *,
    of_run: str | None = None,
    num_views: int,
    batch_size: int,
    precision: str,
    on_progress: Progress = silent,
) -> TrunkCache:
    """Compute the cache, or reuse the complete one of an interrupted run.

    Args:
        model: its shared backbone must not change any more.
        data: holds the decoded images.
        view: the images; their positions index the cache.
        paths: the three files: maps, pooled outputs, and their owner.
        of_run: the run's identity; only a cache of this run is reused.
        num_views: number of flips and rotations, 1 to 8.
        batch_size: images per forward pass.
        precision: of an eager forward pass.
        on_progress: called with the progress.

    Raises:
        DataError: the disk is full.
    """
    device = next(model.parameters()).device
    if all(path.exists() for path in paths[:2]) and _owner(paths[2]) == of_run:
        return TrunkCache(*(np.load(path, mmap_mode="r") for path in paths[:2]))
    was_training, pieces = model.training, data.spec.pieces
    first = data.images(view.rows[:2]).to(device)
    forward = FrozenForward(
        model,
        first,
        function=model.trunk_features,
        num_images=len(view) * num_views,
        precision=precision,
    )
    shapes = [tuple(output.shape[1:]) for output in forward(first)]
    paths[2].unlink(missing_ok=True)  # until both are written, they have no owner
    with write_whole(paths[0]) as maps_path, write_whole(paths[1]) as pooled_path:
        files = [
            np.lib.format.open_memmap(
                path, mode="w+", dtype=np.float16, shape=(len(view), num_views, *shape)
            )
            for path, shape in zip((maps_path, pooled_path), shapes, strict=True)
        ]
        for path in (maps_path, pooled_path):
            reserve(path, path.stat().st_size)
        for start in range(0, len(view), batch_size):
            images = data.images(view.rows[start : start + batch_size]).to(device)
            for v in range(num_views):
                for file, output in zip(
                    files, forward(dihedral_view(images, v, pieces)), strict=True
                ):
                    file[start : start + len(images), v] = output.cpu().numpy()
            on_progress("fine-tune: embedding", min(start + batch_size, len(view)), len(view))
        for file in files:
            file.flush()
    write_json(paths[2], {"run": of_run})
    model.train(was_training)
    return TrunkCache(*(np.load(path, mmap_mode="r") for path in paths[:2]))


def _owner(note: Path) -> str | None:
    """Identity of the run that wrote the cache; an older version kept none."""
    try:
        return read_json(note).get("run") if note.exists() else None
    except CheckpointError:
        return "damaged"
