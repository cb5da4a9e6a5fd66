"""The user's own sampler in place of `EpochBatches`: it chooses the images of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from recame.contracts import FloatArray, IntArray
from recame.errors import PluginError
from recame.plugins import Plugin

_SETTING = "finetune.sampler"


class OwnBatches(Sampler[list[int]]):
    """Batches of positions, chosen by a plug-in.

    The plug-in is called with the (N,) class indices and the keywords `batch_size`, `epoch_size`,
    `seed`, `rank` and `world_size`, beside its `init_args`. It returns an object whose length is
    the number of batches in an epoch, and which yields them as lists of positions. If the object
    has them, `set_epoch(number)` is called before each epoch, and `weight(number)` is used as that
    of `EpochBatches`.

    Args:
        plugin: makes the sampler.
        targets: (N,) class indices.
        words: the keywords.

    Raises:
        PluginError: the sampler cannot be made, has no length or cannot be iterated.
    """

    def __init__(self, plugin: Plugin, targets: IntArray, **words: Any) -> None:
        super().__init__()
        self._plugin, self._num_images = plugin, len(targets)
        self._made = plugin.make(_SETTING, targets, **words)
        lacking = [name for name in ("__len__", "__iter__") if not hasattr(self._made, name)]
        if lacking:
            raise PluginError(
                f"{_SETTING} names {plugin.class_path}, which makes a {type(self._made).__name__} "
                f"without {' and '.join(lacking)}, but an epoch needs batches and their number: "
                "define them."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        if hasattr(self._made, "set_epoch"):
            self._made.set_epoch(epoch)

    def __len__(self) -> int:
        """Number of batches an epoch and process."""
        return len(self._made)

    def __iter__(self) -> Iterator[list[int]]:
        """The epoch's batches of this process, as lists of positions.

        Raises:
            PluginError: a batch is empty, or a position is not that of an image.
        """
        for batch in self._made:
            positions = [int(position) for position in batch]
            if not positions or min(positions) < 0 or max(positions) >= self._num_images:
                raise PluginError(
                    f"{_SETTING} ({self._plugin.class_path}) gives the batch {positions[:5]}, but "
                    f"the images are numbered 0 to {self._num_images - 1}: give positions in the "
                    "targets that it was made with, at least one in each batch."
                )
            yield positions

    def weight(self, number: int) -> float:
        """This process's share of a step's images, times the number of processes."""
        return float(self._made.weight(number)) if hasattr(self._made, "weight") else 1.0


def shown_prior(batches: Sampler[list[int]], targets: IntArray, num_classes: int) -> FloatArray:
    """Share of each class among the images of one epoch, for losses that need the prior.

    Args:
        batches: of all processes.
        targets: (N,) class indices in [0, C).
        num_classes: C.

    Returns:
        (C,), sums to 1.
    """
    shown = np.concatenate([np.asarray(batch, np.int64) for batch in batches])
    counts = np.bincount(targets[shown], minlength=num_classes).astype(np.float64)
    return np.asarray(counts / counts.sum())
