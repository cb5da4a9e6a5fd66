"""Which images an epoch shows, in which batches: equal for equal seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from torch.utils.data import Sampler

from recame.contracts import FloatArray, IntArray
from recame.errors import ConfigError

SamplerKind = Literal["instance", "class_balanced", "square_root", "m_per_class"]

_GOLDEN = (5**0.5 - 1) / 2


def class_prior(counts: IntArray, kind: SamplerKind) -> FloatArray:
    """Share of each class among the images that a sampler shows, for losses that need the prior.

    `instance` shows classes by count, `square_root` by its root (Mahajan et al., ECCV 2018),
    `class_balanced` and `m_per_class` equally.

    Args:
        counts: (C,) training images; 0 is allowed and stays 0.
        kind: the sampler.

    Returns:
        (C,), sums to 1.

    Examples:
        >>> class_prior(np.array([81, 9, 0]), "square_root").tolist()
        [0.75, 0.25, 0.0]
    """
    power = {"instance": 1.0, "square_root": 0.5}.get(kind, 0.0)
    weight = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** power, 0.0)
    return np.asarray(weight / weight.sum())


class EpochBatches(Sampler[list[int]]):
    """Batches of positions for one epoch after another.

    An epoch depends on `(seed, epoch)` only. Within a class, images come from an endless chain of
    random permutations, of which each epoch takes the next piece: none is shown twice before
    every other was, over epochs too (with `m_per_class`, within an epoch).

    - `instance`: every image alike.
    - `class_balanced`, `square_root`: each class has its fixed quota an epoch, see `class_prior`.
    - `m_per_class`: a batch has `samples_per_class` images of each of `batch_size /
      samples_per_class` random classes; with fewer classes than that, as many images of every
      class as fit.

    The last batch may be short; a last batch of one image joins the one before, since batch norm
    cannot train on one. Several processes share what one process with `world_size` times the
    batch would show in a step: the same images in the same order of steps, each process its own
    part, of equal size but for the last step (`weight`). With `m_per_class` each process has
    batches of its own instead, and an epoch is rounded to whole steps.

    Args:
        targets: (N,) class indices, none negative.
        kind: see above.
        batch_size: images a batch and process.
        epoch_size: images an epoch over all processes; default: N.
        samples_per_class: for `m_per_class`.
        seed: of every random choice.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ConfigError: the batch size does not fit the samples per class, or the epoch the processes.
    """

    def __init__(
        self,
        targets: IntArray,
        *,
        kind: SamplerKind,
        batch_size: int,
        epoch_size: int | None = None,
        samples_per_class: int = 4,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        targets = np.asarray(targets)
        assert len(targets)
        assert kind == "instance" or targets.min() >= 0
        assert 0 <= rank < world_size
        self._kind, self._batch_size = kind, batch_size
        self._epoch_size, self._epoch = epoch_size or len(targets), 0
        self._seed, self._rank, self._world_size = seed, rank, world_size
        # `instance` is the same chain with all images in one class.
        alike = np.zeros_like(targets) if kind == "instance" else targets
        classes = np.unique(alike, return_inverse=True)[1]
        self._members = np.argsort(classes, kind="stable")
        self._counts = np.bincount(classes)
        self._share = class_prior(self._counts, kind)
        self._classes_per_batch = min(max(1, batch_size // samples_per_class), len(self._counts))
        self._per_class = batch_size // self._classes_per_batch
        if kind == "m_per_class" and batch_size % samples_per_class:
            raise ConfigError(
                f"finetune.batch_size={batch_size} is not a multiple of "
                f"finetune.samples_per_class={samples_per_class}, so batches cannot hold that many "
                "images of each class. Change one of them."
            )
        if world_size > 1 and self._epoch_size < 2 * world_size:
            raise ConfigError(
                f"An epoch of {self._epoch_size} images has fewer than two for each of "
                f"{world_size} processes, but batch norms cannot train on one image. Use fewer "
                "run.devices or run.num_nodes, or a larger finetune.epoch_size."
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Number of batches an epoch and process, which is the number of steps."""
        together = self._world_size * self._batch_size
        if self._kind == "m_per_class":
            together = self._world_size * self._classes_per_batch * self._per_class
            return max(1, round(self._epoch_size / together))
        full, rest = divmod(self._epoch_size, together)
        return full + (rest >= 2 * self._world_size or full == 0)

    def __iter__(self) -> Iterator[list[int]]:
        """The epoch's batches of this process, as lists of positions in `targets`."""
        # A generator: a resumed trainer makes the iterator first and sets the epoch afterwards.
        batches = self._class_batches() if self._kind == "m_per_class" else self._mixed_batches()
        yield from (batch.tolist() for batch in batches)

    def weight(self, number: int) -> float:
        """This process's share of a step's images, times the number of processes.

        By it a mean over a batch has to be multiplied for the mean over all processes to be the
        one over all images of the step: 1 but where the last step's images do not share out.

        Args:
            number: of the batch in the epoch, from 0.
        """
        if self._kind == "m_per_class" or number < len(self) - 1:
            return 1.0
        rest = self._epoch_size - number * self._batch_size * self._world_size
        own = rest // self._world_size + (self._rank < rest % self._world_size)
        return own * self._world_size / rest

    def _mixed_batches(self) -> list[IntArray]:
        first, number = _links(self._share, self._epoch_size, self._epoch)
        drawn = _draw(self._members, self._counts, first, number, self._seed)
        mixed = np.random.default_rng([self._seed, self._epoch]).permutation(drawn)
        steps = np.split(mixed, np.arange(1, len(self)) * self._batch_size * self._world_size)
        return [np.array_split(step, self._world_size)[self._rank] for step in steps]

    def _class_batches(self) -> list[IntArray]:
        rng = np.random.default_rng([self._seed, self._epoch])
        num_batches, per_class = len(self) * self._world_size, self._per_class
        keys = rng.random((num_batches, len(self._counts)))
        classes = np.argsort(keys, axis=1)[:, : self._classes_per_batch].reshape(-1)
        needed = np.bincount(classes, minlength=len(self._counts)) * per_class
        first, seed = np.zeros_like(needed), int(rng.integers(2**62))
        drawn = _draw(self._members, self._counts, first, needed, seed)
        # `drawn` is sorted by class: hand each class's images out to its batches in order.
        places = np.argsort(np.repeat(classes, per_class), kind="stable")
        batches = np.empty_like(drawn)
        batches[places] = drawn
        return list(batches.reshape(num_batches, -1)[self._rank :: self._world_size])


def _links(share: FloatArray, total: int, epoch: int) -> tuple[IntArray, IntArray]:
    """Where an epoch begins in each class's chain, and how many links it takes.

    Args:
        share: (C,) of the images.
        total: images an epoch.
        epoch: counted from 0.

    Returns:
        (C,) and (C,); the second adds up to `total`.
    """
    if total >= len(share):
        quota = _quota(share, total)
        return epoch * quota, quota
    # Not all classes fit, and the same ones must not be left out each time: points spread evenly
    # (multiples of the golden ratio) over a line that the classes share go on from epoch to epoch.
    points = np.arange((epoch + 1) * total) * _GOLDEN % 1.0
    classes = np.searchsorted(np.cumsum(share)[:-1], points, side="right")
    before, now = np.split(classes, [epoch * total])
    return np.bincount(before, minlength=len(share)), np.bincount(now, minlength=len(share))


def _quota(share: FloatArray, total: int) -> IntArray:
    """Whole numbers near `share * total` that add up to `total` (largest remainder).

    A class whose share is less than one gets one; `total` has room for all classes.
    """
    exact = share * total
    rare = np.zeros(len(share), bool)
    while (exact[~rare] < 1.0).any():  # what the rare ones are given makes others rare
        rare |= exact < 1.0
        if rare.all():
            exact = np.full(len(share), total / len(share))
        else:
            exact = np.where(rare, 1.0, share * (total - rare.sum()) / share[~rare].sum())
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: total - quota.sum()]] += 1
    return np.asarray(quota)


def _draw(
    members: IntArray, counts: IntArray, first: IntArray, number: IntArray, seed: int
) -> IntArray:
    """Links `first` to `first + number` of each class's endless chain of permutations.

    Args:
        members: (N,) positions, sorted by class.
        counts: (C,) members of each class, none 0.
        first: (C,) where to start in each chain.
        number: (C,) how many to take.
        seed: of the chains.

    Returns:
        (sum of `number`,) positions, sorted by class.
    """
    cycle = first // counts
    num_cycles = np.where(number > 0, (first + number - 1) // counts - cycle + 1, 0)
    # One entry for each member in each cycle that is touched, put in the cycle's random order.
    size = num_cycles * counts
    of_class = np.repeat(np.arange(len(counts)), size)
    offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    in_cycle, member = np.divmod(offset, counts[of_class])
    key = _mix(_mix(_mix(np.uint64(seed), of_class), cycle[of_class] + in_cycle), member)
    order = np.lexsort((key, in_cycle, of_class))
    # Sorting within (class, cycle) leaves `offset` the link's number after the first cycle's start.
    skipped = first - cycle * counts
    taken = (offset >= skipped[of_class]) & (offset < (skipped + number)[of_class])
    start = np.cumsum(counts) - counts
    return np.asarray(members[(start[of_class] + member)[order]][taken])


def _mix(state: Any, value: IntArray) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Hash a number into a 64-bit state (finaliser of SplitMix64, Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = state + (value.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))
