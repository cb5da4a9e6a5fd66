"""iNaturalist 2018: its COCO-style JSON files, or the lists made of them, over a local copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from recame.datasets.public.lists import read_list
from recame.datasets.public.prepared_folder import (
    fingerprint,
    found_below,
    prepare_folder,
    save_manifest,
)
from recame.errors import DataError
from recame.progress import Progress, silent

_JSON = {"train": "train2018.json", "test": "val2018.json"}
_LISTS = {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}


def prepare(
    raw: Path,
    out: Path,
    *,
    annotations: Path | str | None = None,
    on_progress: Progress = silent,
) -> Path:
    """Make a manifest of iNaturalist 2018: 437,513 training images of 8,142 species.

    The competition's `val2018` is what papers report on, so it is the split `test` here, and there
    is no `val`. The images stay where they are. A class is called by its number of four digits,
    the same from either form.

    Args:
        raw: the folder that holds `train_val2018`.
        out: a new or empty folder, or one that holds this set already.
        annotations: the folder of `train2018.json` and `val2018.json`, or of
            `iNaturalist18_train.txt` and `iNaturalist18_val.txt`; by default `raw`.
        on_progress: told of the progress.

    Returns:
        The manifest: `image, label, split, supercategory`, and `species` where the JSON files
        tell it (the first release hides the names).

    Raises:
        DataError: a file or an image is missing or reads otherwise, or `out` holds something else.
    """
    folder = Path(annotations) if annotations is not None else raw
    is_json = (folder / _JSON["train"]).is_file()
    files = {split: folder / name for split, name in (_JSON if is_json else _LISTS).items()}
    absent = [path.name for path in files.values() if not path.is_file()]
    if absent:
        raise DataError(
            f"{folder} lacks {' and '.join(absent)}: give the folder of "
            f"{' and '.join(_JSON.values())}, or of {' and '.join(_LISTS.values())}."
        )
    recipe = {
        "set": "iNaturalist 2018",
        "images_in": str(raw.resolve()),
        "raw": fingerprint(files.values()),
    }

    def build(partial: Path) -> None:
        read = _read_json if is_json else _read_numbers
        table = pd.concat(
            [read(path).assign(split=split) for split, path in files.items()], ignore_index=True
        )
        table["image"] = found_below(raw, table["image"], "iNaturalist 2018", on_progress)
        table["label"] = table["index"].map("{:04d}".format)
        front = ["image", "label", "split", "supercategory"]
        save_manifest(partial, table[[*front, *(["species"] if "species" in table else [])]])

    return prepare_folder(out, recipe, build)


def _read_numbers(path: Path) -> pd.DataFrame:
    table = read_list(path)
    # train_val2018/Plantae/7477/NAME.jpg
    return table.assign(supercategory=table["image"].str.split("/").str[-3].fillna(""))


def _read_json(path: Path) -> pd.DataFrame:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        images = pd.DataFrame(content["images"])[["id", "file_name"]]
        marks = pd.DataFrame(content["annotations"])[["image_id", "category_id"]]
        kinds = pd.DataFrame(content["categories"])[["id", "name", "supercategory"]]
        table = marks.merge(images, left_on="image_id", right_on="id", validate="1:1").merge(
            kinds, left_on="category_id", right_on="id", validate="m:1", suffixes=("", "_kind")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:  # pandas' MergeError too
        raise DataError(
            f"{path} does not read as iNaturalist's JSON with images, annotations and categories "
            f"({type(error).__name__}: {error}). Download it again."
        ) from error
    if len(table) != len(images):
        raise DataError(
            f"{path}: {len(images)} images but {len(table)} of them with an annotation and a "
            "known category. Download it again."
        )
    names = {"file_name": "image", "category_id": "index", "name": "species"}
    kept = ["image", "index", "supercategory", "species"]
    found = table.rename(columns=names)[kept].astype({"species": str})
    hidden = found["species"].str.fullmatch(r"\d+").all()
    return found.drop(columns="species") if hidden else found
