"""ImageNet-LT and Places-LT: published lists of "path label" for a local copy of the images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from recame.datasets.public.prepared_folder import (
    fingerprint,
    found_below,
    prepare_folder,
    save_manifest,
)
from recame.errors import DataError
from recame.progress import Progress, silent

SPLITS = ("train", "val", "test")


def read_list(path: Path) -> pd.DataFrame:
    """Read a list with one line "relative/path.jpg index" for each image.

    Returns:
        `image` as in the list, with forward slashes, and `index`; one row for each line, in order.

    Raises:
        DataError: the file is missing or empty, or a line has another form.
    """
    try:
        lines = pd.Series(path.read_text(encoding="utf-8").splitlines(), dtype=object).str.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): check the list's path.") from error
    parts = lines.str.extract(r"^(.*\S)\s+(\d+)$")
    wrong = parts[0].isna() & (lines != "")
    if wrong.any() or (lines == "").all():
        line = int(wrong.to_numpy().argmax())
        what = f"line {line + 1} reads {lines[line]!r}" if wrong.any() else "it is empty"
        raise DataError(
            f"{path} is not a list of images: {what}, but each line should be a path and a class "
            "number ('train/n01440764/n01440764_190.JPEG 0'). Get the list again."
        )
    parts = parts.dropna().reset_index(drop=True)
    image = parts[0].str.replace("\\", "/", regex=False).str.removeprefix("./")
    return pd.DataFrame({"image": image, "index": parts[1].astype("int64")})


def prepare(
    raw: Path,
    out: Path,
    *,
    name: str = "ImageNet_LT",
    lists: Path | str | None = None,
    on_progress: Progress = silent,
) -> Path:
    """Make a manifest of a set whose lists are `<name>_train.txt`, `<name>_val.txt`, `_test.txt`.

    The images stay where they are. A class is called after its folder in the training list
    ("n01440764", "airfield", "apartment_building-outdoor").

    Args:
        raw: the folder that the lists' paths start from.
        out: a new or empty folder, or one that holds this set already.
        name: what the lists' names start with: `ImageNet_LT` or `Places_LT`.
        lists: the folder of the lists; by default `raw`, or a folder `<name>` in it.
        on_progress: told of the progress.

    Returns:
        The manifest: `image, label, split, index` (of the class in the lists).

    Raises:
        DataError: a list or an image is missing, or `out` holds something else.
    """
    folder = Path(lists) if lists is not None else raw
    if not (folder / f"{name}_train.txt").is_file() and (folder / name).is_dir():
        folder /= name
    files = {split: folder / f"{name}_{split}.txt" for split in SPLITS}
    title = name.replace("_", "-")
    recipe = {"set": title, "images_in": str(raw.resolve()), "raw": fingerprint(files.values())}

    def build(partial: Path) -> None:
        table = pd.concat(
            [read_list(path).assign(split=split) for split, path in files.items()],
            ignore_index=True,
        )
        names = class_names(table[table["split"] == "train"])
        unknown = table[~table["index"].isin(names.index)]
        if len(unknown):
            raise DataError(
                f"Class {unknown['index'].iloc[0]} of {unknown['image'].iloc[0]} has no image in "
                f"{files['train']}, so its name is unknown: the lists do not belong together. Get "
                "all lists again."
            )
        table["label"] = table["index"].map(names)
        table["image"] = found_below(raw, table["image"], f"{title}'s lists", on_progress)
        save_manifest(partial, table[["image", "label", "split", "index"]])

    return prepare_folder(out, recipe, build)


def class_names(train: pd.DataFrame) -> pd.Series:
    """Name the classes after their folders, or by their numbers if the folders are ambiguous.

    The first folder of a path is the split's; a single letter after it is Places' index.

    Args:
        train: `image` and `index` of the training list.

    Returns:
        Class number -> name.
    """
    folder = train["image"].str.rpartition("/")[0]
    named = folder.str.replace(r"^[^/]*/(?:[a-z]/)?", "", regex=True).str.replace("/", "-")
    pairs = pd.DataFrame({"index": train["index"], "name": named}).drop_duplicates()
    if pairs["index"].is_unique and pairs["name"].is_unique:
        return pairs.set_index("index")["name"]
    numbers = train["index"].drop_duplicates()
    width = len(str(numbers.max()))
    return numbers.astype(str).str.zfill(width).set_axis(numbers.to_numpy())
