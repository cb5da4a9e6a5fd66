"""CIFAR-10-LT and CIFAR-100-LT, as Cao et al. (NeurIPS 2019) and all after them make them."""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from recame.contracts import IntArray
from recame.data.listing import walk_images
from recame.datasets.public.inert_pickle import PickledArray, as_text, read_inert
from recame.datasets.public.prepared_folder import (
    fingerprint,
    found_below,
    make_folders,
    prepare_folder,
    save_manifest,
    write_images,
)
from recame.errors import ConfigError, DataError
from recame.progress import Progress, silent

_SIDE = 32


class _Edition(NamedTuple):
    """The files of one CIFAR with their MD5, as its publisher and torchvision give them."""

    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    labels: str
    names: str


_EDITIONS = {
    10: _Edition(
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
        {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        "labels",
        "label_names",
    ),
    100: _Edition(
        "cifar-100-python",
        {"train": "16019d7e3df5f24257cddd939b257f8d"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        {"meta": "7973b15100ade9c7d40fb424638fde48"},
        "fine_labels",
        "fine_label_names",
    ),
}


def long_tailed_counts(num_classes: int, max_count: int, imbalance: float) -> IntArray:
    """Images a class under the exponential profile of Cao et al. (NeurIPS 2019).

    n_c = floor(max_count * imbalance ** (-c / (C - 1))), so that the first class has `max_count`
    and the last one `max_count / imbalance` images.

    Args:
        num_classes: C, at least 2.
        max_count: images of the first class.
        imbalance: largest count over smallest, at least 1.

    Returns:
        (C,) counts, descending.

    Raises:
        ConfigError: an argument is out of range.

    Examples:
        >>> long_tailed_counts(10, 5000, 100).tolist()
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    if num_classes < 2 or max_count < 1 or imbalance < 1:
        raise ConfigError(
            f"A long tail needs at least 2 classes, 1 image and an imbalance of 1, got "
            f"{num_classes}, {max_count} and {imbalance}: correct them."
        )
    share = np.arange(num_classes) / (num_classes - 1)
    # The small term keeps 5000 / 100 from becoming 49.
    return np.floor(max_count * float(imbalance) ** -share + 1e-9).astype(np.int64)


def long_tailed_rows(
    target: IntArray, imbalance: float, seed: int = 0, val_per_class: int = 0
) -> tuple[IntArray, IntArray]:
    """Choose the training rows that the published code chooses.

    Class c of C keeps floor(n_max * imbalance ** (-c / (C - 1))) images: numpy's legacy generator,
    seeded once, shuffles each class's rows in order of the classes, and the first so many are
    taken (`imbalance_cifar.py` of LDAM-DRW, with seed 0). The published protocol has no `val`;
    where one is asked for it is made of the rows that follow, which training never used. Only a
    class that uses (nearly) all its rows, as the first one does, gives up some.

    Args:
        target: (N,) class indices of a balanced set.
        imbalance: largest count over smallest.
        seed: of the shuffles.
        val_per_class: images of each class for `val`.

    Returns:
        Row numbers for `train` and for `val`, class by class in the shuffled order.

    Raises:
        ConfigError: `imbalance` or `val_per_class` is out of range.
    """
    available = np.bincount(target)
    counts = long_tailed_counts(len(available), len(target) // len(available), imbalance)
    if not 0 <= val_per_class < int(available.min()):
        raise ConfigError(
            f"val_per_class = {val_per_class} with {int(available.min())} images of the smallest "
            "class: choose fewer, 0 for the published protocol."
        )
    legacy, train, val = np.random.RandomState(seed), [], []
    for label, count in enumerate(counts):
        rows = np.flatnonzero(target == label)
        legacy.shuffle(rows)
        kept = min(int(count), len(rows) - val_per_class)
        train.append(rows[:kept])
        val.append(rows[kept : kept + val_per_class])
    return np.concatenate(train), np.concatenate(val)


def prepare(
    raw: Path,
    out: Path,
    *,
    num_classes: int = 10,
    imbalance: float = 100,
    seed: int = 0,
    val_per_class: int = 0,
    verify: bool = True,
    on_progress: Progress = silent,
) -> Path:
    """Make a long-tailed CIFAR from the python files that torchvision downloads.

    Nothing that the files name is run (`inert_pickle`).

    Args:
        raw: `cifar-10-batches-py` or `cifar-100-python`, or the folder that holds it.
        out: a new or empty folder, or one that holds this set already.
        num_classes: 10 or 100.
        imbalance: largest count over smallest; 10, 50, 100 or 200 in the literature.
        seed: of the choice; 0 as published.
        val_per_class: images of each class for `val`; 0 as published.
        verify: compare the files' MD5 with the published ones.
        on_progress: told of the progress while images are written.

    Returns:
        The manifest: `image, label, split, source_row` (of the batches in order).

    Raises:
        DataError: a file is missing or is not the published one, or `out` holds something else.
        ConfigError: an option is out of range.
    """
    if num_classes not in _EDITIONS:
        raise ConfigError(f"num_classes = {num_classes}: there are CIFAR-10 and CIFAR-100.")
    edition = _EDITIONS[num_classes]
    folder = raw / edition.folder if (raw / edition.folder).is_dir() else raw
    published = {**edition.train, **edition.test, **edition.meta}
    absent = [name for name in published if not (folder / name).is_file()]
    if absent:
        raise DataError(
            f"{raw} lacks {', '.join(absent)} of {edition.folder}: give that folder, as "
            "torchvision unpacks it. A copy of JPEG files that is long-tailed already is the set "
            "'cifar10_lt_jpeg'."
        )
    recipe = {
        "set": f"CIFAR-{num_classes}-LT",
        "imbalance": float(imbalance),
        "seed": seed,
        "val_per_class": val_per_class,
        "raw": fingerprint(folder / name for name in published),
    }

    def build(partial: Path) -> None:
        if verify:
            _check_md5(folder, published)
        meta = _read_batch(folder / next(iter(edition.meta)))
        names = [as_text(name) for name in meta[edition.names]]
        train, train_target = _read_images(folder, edition.train, edition.labels, len(names))
        test, test_target = _read_images(folder, edition.test, edition.labels, len(names))
        rows, val_rows = long_tailed_rows(train_target, imbalance, seed, val_per_class)
        table = pd.concat(
            [
                _describe("train", np.sort(rows), train_target, names),
                _describe("val", np.sort(val_rows), train_target, names),
                _describe("test", np.arange(len(test)), test_target, names),
            ],
            ignore_index=True,
        )
        source, held_out = table["source_row"].to_numpy(), (table["split"] == "test").to_numpy()
        write_images(
            partial,
            table["image"].tolist(),
            lambda n: (test if held_out[n] else train)[source[n]].transpose(1, 2, 0),
            on_progress,
        )
        save_manifest(partial, table)

    return prepare_folder(out, recipe, build)


def _describe(split: str, rows: IntArray, target: IntArray, names: list[str]) -> pd.DataFrame:
    label = pd.Series([names[c] for c in target[rows]], dtype=object)
    image = f"images/{split}/" + label + "/" + pd.Series(rows).map("{:05d}.png".format)
    return pd.DataFrame({"image": image, "label": label, "split": split, "source_row": rows})


def _check_md5(folder: Path, published: dict[str, str]) -> None:
    for name, md5 in published.items():
        found = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        if found != md5:
            raise DataError(
                f"{folder / name} has MD5 {found} and the published file {md5}: it is damaged or "
                "another file, and figures on it would not compare. Download it again."
            )


def _read_batch(path: Path) -> dict[str, Any]:
    content = read_inert(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no dictionary, as a CIFAR batch does: check the file.")
    return {as_text(key): value for key, value in content.items()}


def _read_images(
    folder: Path, files: dict[str, str], labels: str, num_classes: int
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], IntArray]:
    """(N, 3, 32, 32) pixels and (N,) class indices of some batches."""
    pixels, target = [], []
    for name in files:
        batch = _read_batch(folder / name)
        data = batch.get("data")
        if not isinstance(data, PickledArray) or not isinstance(batch.get(labels), list):
            raise DataError(f"{folder / name} lacks 'data' or {labels!r}: it is no CIFAR batch.")
        pixels.append(data.array.astype(np.uint8, copy=False).reshape(-1, 3, _SIDE, _SIDE))
        target.append(np.asarray(batch[labels], np.int64))
    images, indices = np.concatenate(pixels), np.concatenate(target)
    if len(images) != len(indices) or not set(np.unique(indices)) <= set(range(num_classes)):
        raise DataError(f"{folder}: labels and images of {', '.join(files)} do not fit together.")
    return images, indices


_MEMBER = re.compile(r"(train|test)/([^/\\.][^/\\]*)/[^/\\]+\.(?:jpe?g|png)", re.IGNORECASE)


def prepare_jpeg(
    raw: Path,
    out: Path,
    *,
    seed: int = 0,
    val_per_class: int = 0,
    on_progress: Progress = silent,
) -> Path:
    """Use a copy that is long-tailed already: `train/<class>/*.jpg`, `test/<class>/*.jpg`.

    A zip file's images are extracted byte by byte; a folder's are used where they lie. JPEG costs
    some sharpness, so figures lie a little below those on the original pixels, and the copy's own
    subset is used: a protocol of its own.

    Args:
        raw: the zip file or the folder.
        out: a new or empty folder, or one that holds this set already.
        seed: of the choice of `val`.
        val_per_class: training images of each class that become `val`; 0 leaves train as it is.
        on_progress: told of the progress while images are extracted.

    Returns:
        The manifest: `image, label, split`.

    Raises:
        DataError: there are no such images, or `out` holds something else.
        ConfigError: a class has no more than `val_per_class` training images.
    """
    is_zip = raw.is_file()
    members = _zip_members(raw) if is_zip else sorted(walk_images(raw)) if raw.is_dir() else []
    found = pd.Series(members, dtype=object).str.extract(
        f"^({_MEMBER.pattern})$", flags=_MEMBER.flags
    )
    table = found.dropna().set_axis(["image", "split", "label"], axis=1).reset_index(drop=True)
    table["split"] = table["split"].str.lower()
    if set(table["split"]) != {"train", "test"}:
        raise DataError(
            f"{raw} holds no images as train/<class>/NAME.jpg and test/<class>/NAME.jpg: give the "
            "zip file, or the folder that holds train and test."
        )
    recipe = {
        "set": "CIFAR-10-LT, JPEG copy",
        "seed": seed,
        "val_per_class": val_per_class,
        "raw": fingerprint([raw])
        if is_zip
        else hashlib.sha256("\n".join(table["image"]).encode()).hexdigest()[:16],
        **({} if is_zip else {"images_in": str(raw.resolve())}),
    }

    def build(partial: Path) -> None:
        if is_zip:
            _extract(raw, table["image"].tolist(), partial / "images", on_progress)
            table["image"] = "images/" + table["image"]
        else:
            table["image"] = found_below(raw, table["image"], str(raw), on_progress)
        table.loc[_val_rows(table, val_per_class, seed), "split"] = "val"
        save_manifest(partial, table[["image", "label", "split"]])

    return prepare_folder(out, recipe, build)


def _zip_members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no readable zip file ({error}): download it again.") from error


def _extract(path: Path, members: list[str], folder: Path, on_progress: Progress) -> None:
    make_folders(folder, members)
    try:
        with zipfile.ZipFile(path) as archive:
            for done, name in enumerate(members, start=1):
                (folder / name).write_bytes(archive.read(name))
                if done % 500 == 0 or done == len(members):
                    on_progress("extracting images", done, len(members))
    except (zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): download it again.") from error


def _val_rows(table: pd.DataFrame, per_class: int, seed: int) -> IntArray:
    train = table[table["split"] == "train"]
    fewest = train["label"].value_counts().min()
    if not 0 <= per_class < fewest:
        raise ConfigError(
            f"val_per_class = {per_class} with {fewest} training images of the smallest class "
            "would leave it none: choose fewer, 0 for none."
        )
    mixed = train.iloc[np.random.default_rng(seed).permutation(len(train))]
    return np.sort(mixed.index[mixed.groupby("label").cumcount() < per_class])
