"""Sets by which settings of the default are chosen; `contest.py` judges by other images.

Each draw has its own images, of the same kinds as those of the contest:

- boards: of `train` and `val` of DeepPCB-LT (the contest judges by its `test`);
- natural: of the training part of CIFAR-10-LT (the contest judges by its test part);
- defects, large defects: generated with other seeds;
- cells: four fifths of `train` and `val` of ELPV to learn from, one fifth to be judged by; the
  contest cuts its small set from the same images;
- digits: the one pool that there is, cut anew, so some images are judged in both.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from run import Labelled
from sklearn.datasets import load_digits

from recame.datasets.generated import SyntheticSpec, generate

#: Which flips and turns the images of each set bear.
SYMMETRY = {
    "boards": "square",
    "natural": "mirror",
    "defects": "square",
    "large defects": "square",
    "cells": "square",
    "digits": "none",
}


def tuning_sets(data: dict[str, Path], draw: int) -> dict[str, Callable[[], Labelled]]:
    """The sets that can be made here.

    Args:
        data: paths by `deeppcb`, `cifar`, `cells`; sets whose path is missing are left out.
        draw: of the images, 0 or more.
    """
    found: dict[str, Callable[[], Labelled]] = {
        "digits": partial(_digits, draw),
        "defects": partial(_defects, draw),
        "large defects": partial(_large_defects, draw),
    }
    given = {"boards": ("deeppcb", _boards), "natural": ("cifar", _natural)}
    for name, (key, make) in {**given, "cells": ("cells", _cells)}.items():
        if key in data:
            found[name] = partial(make, data[key], draw)
    return found


def _cut(
    labels: np.ndarray, train: dict[str, int], val: int, test: int, draw: int
) -> Iterator[tuple[int, str]]:
    """Positions and splits of each class: at most `test`, `val`, and the number in `train`."""
    rng = np.random.default_rng(1000 + draw)
    for name, count in train.items():
        order = rng.permutation(np.flatnonzero(labels == name))
        judged = min(test, len(order) - val - count)
        bounds = np.cumsum([judged, val, count])
        for split, part in zip(("test", "val", "train"), np.split(order, bounds)[:3], strict=True):
            yield from ((int(position), split) for position in part)


def _boards(manifest: Path, draw: int) -> Labelled:
    table = pd.read_csv(manifest)
    table = table[table["split"].isin(["train", "val"])].reset_index(drop=True)
    train = {"false_call": 600, "mousebite": 200, "open": 100, "spur": 50}
    train |= {"pin_hole": 20, "short": 5, "copper": 2}
    for position, split in _cut(table["label"].to_numpy(), train, 12, 90, draw):
        path = manifest.parent / table["image"][position]
        yield np.asarray(Image.open(path)), table["label"][position], split


def _natural(archive: Path, draw: int) -> Labelled:
    with zipfile.ZipFile(archive) as files:
        names = sorted(n for n in files.namelist() if n.startswith("train/") and n.endswith("jpg"))
        labels = np.array([name.split("/")[1] for name in names])
        kinds, counts = np.unique(labels, return_counts=True)
        frequent = kinds[np.argsort(-counts, kind="stable")]
        sizes = [500, 300, 180, 107, 64, 38, 23, 14, 8, 5]
        train = dict(zip(map(str, frequent), sizes, strict=True))
        for position, split in _cut(labels, train, 12, 100, draw):
            pixels = np.asarray(Image.open(io.BytesIO(files.read(names[position]))))
            yield pixels, str(labels[position]), split


def _defects(draw: int) -> Labelled:
    spec = SyntheticSpec(
        num_images=2620,
        num_classes=10,
        num_products=8,
        imbalance=100,
        val_per_class=12,
        test_per_class=100,
        seed=1000 + draw,
    )
    pixels, table = generate(spec)
    yield from zip(pixels, table["label"], table["split"], strict=True)


def _large_defects(draw: int) -> Labelled:
    spec = SyntheticSpec(
        num_images=1006,
        num_classes=10,
        num_products=8,
        imbalance=50,
        size=192,
        val_per_class=10,
        test_per_class=60,
        seed=1000 + draw,
    )
    pixels, table = generate(spec)
    yield from zip(pixels, table["label"], table["split"], strict=True)


def _cells(manifest: Path, draw: int) -> Labelled:
    table = pd.read_csv(manifest)
    table = table[table["split"].isin(["train", "val"])].reset_index(drop=True)
    labels = table["label"].to_numpy()
    kinds, counts = np.unique(labels, return_counts=True)
    for name, count in zip(map(str, kinds), counts, strict=True):
        val, test = max(4, count // 8), count // 5
        only = {name: int(count - val - test)}
        for position, split in _cut(labels, only, val, test, draw):
            yield np.asarray(Image.open(manifest.parent / table["image"][position])), name, split


def _digits(draw: int) -> Labelled:
    data = load_digits()
    train = dict(
        zip([f"d{n}" for n in range(10)], [90, 60, 40, 26, 17, 11, 8, 5, 3, 2], strict=True)
    )
    labels = np.array([f"d{target}" for target in data.target])
    for position, split in _cut(labels, train, 8, 70, draw):
        pixels = np.kron(data.images[position] * 15.9, np.ones((4, 4))).astype(np.uint8)
        yield pixels, str(labels[position]), split
