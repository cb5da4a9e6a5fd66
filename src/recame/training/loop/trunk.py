"""The frozen shared trunk's output for each image and view, computed once and kept on disk."""

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
    """Trunk outputs of N images under V views, float16 on disk, memory-mapped.

    Attributes:
        maps: (N, V, c, h, w) the last shared stage's maps.
        pooled: (N, V, Q) the pooled outputs of shared stages that feed the heads; Q may be 0.
    """

    maps: np.ndarray[Any, np.dtype[np.float16]]
    pooled: np.ndarray[Any, np.dtype[np.float16]]

    def take(
        self, index: Tensor, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Outputs of some images, each under a view drawn at random.

        Args:
            index: (B,) images.
            generator: on the CPU.
            device: where the outputs go.

        Returns:
            Maps (B, c, h, w) and pooled (B, Q), float32.
        """
        view = torch.randint(self.maps.shape[1], (len(index),), generator=generator).numpy()
        chosen = index.cpu().numpy()
        maps = torch.from_numpy(self.maps[chosen, view]).to(device).float()
        pooled = torch.from_numpy(self.pooled[chosen, view]).to(device).float()
        return maps.contiguous(memory_format=torch.channels_last), pooled

    def __deepcopy__(self, memo: dict[int, Any]) -> TrunkCache:
        """Itself: a copy of what uses it, as the moving average makes, would fill the memory."""
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
    """Compute the cache, or take up the whole one that an interrupted run left.

    Args:
        model: its trunk must not change any more.
        data: holds the decoded images.
        view: which images; their positions index the cache.
        paths: the three files: maps, pooled, and whose they are.
        of_run: the run's identity, to which what is taken up must belong.
        num_views: 1 to 8 of the square's symmetries.
        batch_size: images a forward.
        precision: of the eager forward.
        on_progress: told of the images.

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
    paths[2].unlink(missing_ok=True)  # until both are written, they are nobody's
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
    """The identity of the run that wrote the trunk's outputs; the version before kept none."""
    try:
        return read_json(note).get("run") if note.exists() else None
    except CheckpointError:
        return "damaged"
