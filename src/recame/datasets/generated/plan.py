"""Who gets how many images of which class, product, cluster and split; no pixels yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recame.contracts import BoolArray
from recame.datasets.generated.defects import CLASSES, DefectClass
from recame.datasets.generated.fine_classes import FINE_CLASSES
from recame.datasets.generated.hashing import I64, below, make_keys, shuffled
from recame.datasets.generated.products import VARIANTS
from recame.errors import ConfigError

SPLITS = ("train", "val", "test")
#: A class whose clusters would hold fewer training images each is a tail class.
DENSE = 10
_IMAGES_A_BOARD, _BOARDS_A_LOT = 12, 4
_MAX_PRODUCTS = 960
_MAX_SIDE = 8192


@dataclass(frozen=True)
class SyntheticSpec:
    """What to generate.

    Attributes:
        num_images: of all splits together.
        num_classes: 2 to 14, or to 30 where they are fine: `normal` and the first defects of
            `CLASSES`, or of `FINE_CLASSES`.
        num_products: the first 12 have a design each; later ones are its further generations.
        size: side, pixels, 32 to 256; where there is a canvas, of the window in it.
        canvas: height and width, pixels, of images that are larger than what a defect spoils: that
            lies in one window somewhere on them.
        defects: the defects' names; default the first ones.
        fine: finer classes: most defects in two kinds that look alike, and three more.
        imbalance: images of the largest over the smallest class in the train split. No class has
            less than one image, so that small sets may end below it.
        clusters_per_class: clusters (product x region) that a head class fills; default 6, or all
            there are.
        cluster_skew: how unevenly a head class fills them: the k-th has a share of train as
            k ** -skew; 0: all have the same.
        permuted: whether the seed decides which defects are frequent and which are rare; else
            they come in the order of their list, or of `defects`.
        unseen: share of the val and test images of each class that are of clusters where train
            lacks it.
        tail_products: products that a tail class's images are scattered over; default all.
        label_noise: share of the train labels that are wrong, drawn like the labels themselves.
        exact_duplicates: share of the train images that repeat another bit by bit.
        near_duplicates: share of the train images that show another's scene again: up to a pixel
            beside it, in other light, with other noise.
        leaks: share of the val and test images that show a train image's scene again.
        val_per_class: images of each class; default 5 % of all images, shared equally.
        test_per_class: images of each class; default 15 % of all images, shared equally.
        bit_depth: 8 or 16.
        colour: red, green and blue instead of grey.
        seed: another seed gives other images of the same products.

    Raises:
        ConfigError: a value is out of its range, or two contradict each other.
    """

    num_images: int = 8000
    num_classes: int = len(CLASSES)
    num_products: int = 12
    size: int = 64
    imbalance: float = 1000.0
    clusters_per_class: int | None = None
    tail_products: int | None = None
    label_noise: float = 0.0
    exact_duplicates: float = 0.0
    near_duplicates: float = 0.0
    leaks: float = 0.0
    val_per_class: int | None = None
    test_per_class: int | None = None
    bit_depth: int = 8
    colour: bool = False
    seed: int = 0
    canvas: tuple[int, int] | None = None
    defects: tuple[str, ...] | None = None
    cluster_skew: float = 0.0
    permuted: bool = False
    unseen: float = 0.2
    fine: bool = False

    def __post_init__(self) -> None:
        """Check what no plan could meet."""
        for name, value, low, high in (
            ("num_classes", self.num_classes, 2, len(self.catalogue)),
            ("num_products", self.num_products, 1, _MAX_PRODUCTS),
            ("size", self.size, 32, 256),
            ("imbalance", self.imbalance, 1, 1e9),
            ("seed", self.seed, 0, 2**63 - 1),
            ("label_noise", self.label_noise, 0, 1),
            ("leaks", self.leaks, 0, 1),
            ("exact_duplicates", self.exact_duplicates, 0, 0.5),
            ("near_duplicates", self.near_duplicates, 0, 0.5),
            ("cluster_skew", self.cluster_skew, 0, 10),
            ("unseen", self.unseen, 0, 1),
            ("clusters_per_class", self.clusters, 1, self.num_products * len(VARIANTS)),
            ("tail_products", self.scattered_over, 1, self.num_products),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} = {value} is out of range: choose {low:g} to {high:g}.")
        if self.canvas and not all(self.size <= side <= _MAX_SIDE for side in self.canvas):
            raise ConfigError(
                f"canvas = {self.canvas} is out of range: choose sides from {self.size} (the side "
                f"of the window) to {_MAX_SIDE}."
            )
        known = [c.name for c in self.catalogue[1:]]
        if self.defects is not None and (
            len(self.defects) != self.num_classes - 1
            or len({*self.defects} & {*known}) < len(self.defects)
        ):
            raise ConfigError(
                f"defects = {self.defects} does not name {self.num_classes - 1} different known "
                f"defects, but num_classes = {self.num_classes} needs them: choose from "
                f"{', '.join(known)}."
            )
        if self.bit_depth not in (8, 16):
            raise ConfigError(f"bit_depth = {self.bit_depth} is not supported: choose 8 or 16.")
        val, test = self.num_held_out
        if min(val, test) < 0:
            raise ConfigError("val_per_class and test_per_class must be 0 or more.")
        if self.clusters > self.num_images:
            raise ConfigError(
                f"clusters_per_class = {self.clusters} with {self.num_images} images leaves "
                "clusters empty: raise num_images or lower clusters_per_class."
            )
        if self.num_train < self.num_classes:
            raise ConfigError(
                f"num_images = {self.num_images} leaves {max(self.num_train, 0)} for training "
                f"after {val} val and {test} test images of each of {self.num_classes} classes, "
                "but every class needs one: raise num_images, or lower val_per_class and "
                "test_per_class."
            )

    @property
    def clusters(self) -> int:
        """Clusters that a head class fills."""
        limit = self.num_products * len(VARIANTS)
        return min(6, limit) if self.clusters_per_class is None else self.clusters_per_class

    @property
    def scattered_over(self) -> int:
        """Products that a tail class is scattered over."""
        return self.num_products if self.tail_products is None else self.tail_products

    @property
    def num_held_out(self) -> tuple[int, int]:
        """Images of each class in val and test."""
        val, test = (max(1, self.num_images * p // (100 * self.num_classes)) for p in (5, 15))
        return (
            val if self.val_per_class is None else self.val_per_class,
            test if self.test_per_class is None else self.test_per_class,
        )

    @property
    def num_train(self) -> int:
        """Images in the train split."""
        return self.num_images - self.num_classes * sum(self.num_held_out)

    @property
    def catalogue(self) -> tuple[DefectClass, ...]:
        """What the classes are taken from."""
        return FINE_CLASSES if self.fine else CLASSES

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, the most frequent first."""
        normal, *first = (c.name for c in self.catalogue[: self.num_classes])
        defects = tuple(first) if self.defects is None else self.defects
        if self.permuted:
            keys = make_keys(make_keys(self.seed, 6_000_011), np.arange(len(defects)))
            defects = tuple(defects[i] for i in shuffled(keys, "defects"))
        return (normal, *defects)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        return self.canvas or (self.size, self.size)


def train_counts(spec: SyntheticSpec) -> I64:
    """Train images of each class: an exponential profile that adds up to `spec.num_train`.

    Returns:
        (C,) counts, descending, none below 1.
    """
    share = np.arange(spec.num_classes) / (spec.num_classes - 1)
    # Rounded, because the last bit of a power is not the same on every machine.
    weight = np.round(float(spec.imbalance) ** -share, 9)
    low, high = 0.0, float(spec.num_train)
    for _ in range(60):
        middle = 0.5 * (low + high)
        fits = np.maximum(np.rint(middle * weight), 1).sum() <= spec.num_train
        low, high = (middle, high) if fits else (low, middle)
    counts = np.maximum(np.rint(low * weight), 1).astype(np.int64)
    counts[0] += spec.num_train - counts.sum()
    return counts


def is_head(spec: SyntheticSpec) -> BoolArray:
    """(C,) whether a class has `DENSE` train images for each of `spec.clusters` clusters."""
    return train_counts(spec) >= DENSE * spec.clusters


def plan(spec: SyntheticSpec) -> pd.DataFrame:
    """Plan the set.

    In train, a head class (see `is_head`) fills `spec.clusters` clusters, equally unless there is a
    skew: the main region of one product after another, so that a product's normal and defective
    images look alike: many in few. A tail class's images go to one product after another of
    `spec.scattered_over`, half of them to its main region: few in many. In val and test every class
    has the same number of images; most are of clusters where train has that class, in train's
    proportions, and the share `spec.unseen`, one in five, is of any other cluster. Splits share no
    board and no lot.

    Returns:
        One row an image: `image` (name of the file), `label`, `product`, `board`, `lot`, `split`,
        and the truth: `cluster` ("bridge/P03/b": class, product, region), `true_label`,
        `duplicate_of` (name of the image it repeats, or empty), `duplicate_kind` ("exact", "near"
        or empty).
    """
    label, split, cell = _members(spec)
    order = shuffled(make_keys(spec.seed, np.arange(len(label))), "number")
    label, split, cell = label[order], split[order], cell[order]
    source, kind = _duplicates(spec, label, split)
    cell = cell[source]
    product, variant = cell // len(VARIANTS), cell % len(VARIANTS)
    board, lot = _boards(product, split)
    together = split == split[source]
    board[together], lot[together] = board[source[together]], lot[source[together]]

    on = np.asarray([f"P{p + 1:02d}" for p in range(spec.num_products)], object)[product]
    classes = np.asarray(spec.classes, object)
    number = [f"/{n:06d}.png" for n in range(len(label))]
    image = "images/" + on + np.asarray(number, object)
    return pd.DataFrame(
        {
            "image": image,
            "label": classes[_noisy(spec, label, split)],
            "product": on,
            "board": on + _numbered("-B", board),
            "lot": on + _numbered("-L", lot),
            "split": np.asarray(SPLITS, object)[split],
            "cluster": classes[label] + "/" + on + "/" + np.asarray(VARIANTS, object)[variant],
            "true_label": classes[label],
            "duplicate_of": np.where(kind == "", "", image[source]),
            "duplicate_kind": kind,
        }
    )


def _numbered(prefix: str, number: I64) -> Any:
    return np.asarray([f"{prefix}{n + 1:04d}" for n in range(number.max() + 1)], object)[number]


def _members(spec: SyntheticSpec) -> tuple[I64, I64, I64]:
    """Class, split and cell (product and region) of each image, class by class."""
    products = np.arange(spec.num_products)
    # Slots of a product: its main region twice, then the others once.
    main = below(make_keys(make_keys(spec.seed, 5_000_011), products), "region", len(VARIANTS))
    turn = np.asarray([0, 0, *range(1, len(VARIANTS))])
    slots = products[:, None] * len(VARIANTS) + (main[:, None] + turn) % len(VARIANTS)
    parts = []
    for c, (count, head) in enumerate(zip(train_counts(spec), is_head(spec), strict=True)):
        keys = make_keys(make_keys(spec.seed, 1_000_003), c)
        order = slots[shuffled(make_keys(keys, products), "products")]
        rank = np.arange(count)
        if head:
            # The main region of each product, then the second region of each, ...
            clusters = order[:, 1:].T.ravel()[: spec.clusters]
            train = clusters[_filled(spec, count)]
        else:
            region = below(make_keys(keys, rank), "region", slots.shape[1])
            train = order[rank % spec.scattered_over, region]
        parts.append((np.full(count, c), np.zeros(count, np.int64), train))
        elsewhere = slots.ravel()[~np.isin(slots.ravel(), train)]
        for part, held_out in enumerate(spec.num_held_out, start=1):
            rank = np.arange(held_out)
            own = make_keys(make_keys(keys, part), rank)
            cell = train[below(own, "familiar", count)]
            if len(elsewhere):
                other = elsewhere[below(own, "elsewhere", len(elsewhere))]
                cell = np.where(_nth(rank, spec.unseen), other, cell)
            parts.append((np.full(held_out, c), np.full(held_out, part), cell))
    label, split, cell = (np.concatenate(column) for column in zip(*parts, strict=True))
    return label, split, cell


def _filled(spec: SyntheticSpec, count: int) -> I64:
    """(count,) which of its clusters each of a head class's training images is of."""
    rank = np.arange(count)
    if spec.cluster_skew == 0:
        return rank % spec.clusters
    # Rounded, because the last bit of a power is not the same on every machine.
    weight = np.round((1.0 + np.arange(spec.clusters)) ** -spec.cluster_skew, 9)
    ends = np.rint(np.cumsum(weight) / weight.sum() * (count - spec.clusters))
    # Each has one at least.
    return np.searchsorted(ends + 1 + np.arange(spec.clusters), rank, side="right")


def _nth(rank: I64, share: float) -> BoolArray:
    """Which of the numbers, spread evenly, make up a share of all: the last of five for 0.2."""
    up_to = np.floor(np.arange(len(rank) + 1) * share + 1e-9)
    chosen: BoolArray = np.diff(up_to) > 0
    return chosen


def _duplicates(spec: SyntheticSpec, label: I64, split: I64) -> tuple[I64, Any]:
    """The row whose scene each image shows (its own, or another's), and the kind of repetition."""
    rows = np.arange(len(label))
    keys = make_keys(make_keys(spec.seed, 2_000_003), rows)
    kind = np.full(len(label), "", object)
    order = shuffled(keys, "duplicate")
    order = order[split[order] == 0]
    # The first of each class stays an original, so that every copy finds one.
    copies = order[pd.Series(label[order]).duplicated().to_numpy()]
    num_exact = round(spec.exact_duplicates * len(order))
    num_near = round(spec.near_duplicates * len(order))
    kind[copies[:num_exact]] = "exact"
    kind[copies[num_exact : num_exact + num_near]] = "near"
    held_out = shuffled(keys, "leak")
    held_out = held_out[split[held_out] > 0]
    kind[held_out[: round(spec.leaks * len(held_out))]] = "near"

    originals = rows[(kind == "") & (split == 0)]
    originals = originals[np.argsort(label[originals], kind="stable")]
    available = np.bincount(label[originals], minlength=spec.num_classes)
    start = np.cumsum(available) - available
    copied, source = rows[kind != ""], rows.copy()
    of = label[copied]
    source[copied] = originals[start[of] + below(keys[copied], "original", available[of])]
    return source, kind


def _boards(product: I64, split: I64) -> tuple[I64, I64]:
    """Numbers of the board and the lot of each image within its product; splits share none."""
    frame = pd.DataFrame({"product": product, "split": split})
    rank = frame.groupby(["product", "split"]).cumcount().to_numpy()
    board, lot = rank // _IMAGES_A_BOARD, rank // (_IMAGES_A_BOARD * _BOARDS_A_LOT)
    num = np.zeros((int(product.max()) + 1, len(SPLITS) + 1), np.int64)
    np.maximum.at(num, (product, split + 1), lot + 1)
    lot = lot + np.cumsum(num, 1)[product, split]
    return board + np.cumsum(num * _BOARDS_A_LOT, 1)[product, split], lot


def _noisy(spec: SyntheticSpec, label: I64, split: I64) -> I64:
    """The labels as written: a share of train's replaced by another class, by its frequency."""
    rows = np.flatnonzero(split == 0)
    counts = np.bincount(label[rows], minlength=spec.num_classes)
    keys = make_keys(make_keys(spec.seed, 3_000_017), rows)
    wrong = shuffled(keys, "wrong")[: round(spec.label_noise * len(rows))]
    true = label[rows[wrong]]
    drawn = below(keys[wrong], "label", len(rows) - counts[true])
    start = (np.cumsum(counts) - counts)[true]
    drawn += np.where(drawn >= start, counts[true], 0)
    written = label.copy()
    written[rows[wrong]] = np.searchsorted(np.cumsum(counts), drawn, side="right")
    return written
