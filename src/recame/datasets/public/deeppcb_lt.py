"""DeepPCB-LT, remade bit by bit from a clone of the public DeepPCB repository.

`deeppcb_lt.csv.xz` beside this file has a row a crop, in the manifest's order: `board` (eight
digits, the first five name the product line), `number` of the crop on its board, `label`,
`split`, the corner `x`, `y` in pixels of the board's tested image, and `crc32` of the crop's
pixels, row by row. All other names follow from `board` and `number`. It is CSV text compressed by
xz: `pandas.read_csv` opens it as it is.
"""

from __future__ import annotations

import hashlib
import zlib
from importlib.resources import as_file, files
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from recame.contracts import BoolArray, Pixels
from recame.datasets.public.prepared_folder import prepare_folder, save_manifest, write_images
from recame.errors import DataError
from recame.progress import Progress, silent

SIDE = 64
#: SHA-256 of all crops' pixels in the manifest's order.
PIXELS_SHA256 = "479642b879af9bf1e0529942036aef611b59310763550a93dfef329612f19a93"


def crops() -> pd.DataFrame:
    """The table of crops.

    Returns:
        One row a crop: the manifest's `image, label, product, board, split`, and `source` (below
        the clone), `x`, `y`, `crc32` (8 hex digits).
    """
    with as_file(files("recame.datasets.public") / "deeppcb_lt.csv.xz") as path:
        packed = pd.read_csv(path, dtype=dict.fromkeys(("board", "number", "crc32"), str))
    board = packed["board"]
    line = board.str[:5]
    return pd.DataFrame(
        {
            "image": "images/P" + line + "/" + board + "_" + packed["number"] + ".png",
            "label": packed["label"],
            "product": "P" + line,
            "board": board,
            "split": packed["split"],
            "source": "PCBData/group" + line + "/" + line + "/" + board + "_test.jpg",
            "x": packed["x"],
            "y": packed["y"],
            "crc32": packed["crc32"],
        }
    )


def prepare(raw: Path, out: Path, *, on_progress: Progress = silent) -> Path:
    """Cut the 10,707 crops from a clone and write them with the manifest.

    Each crop's pixels are compared with the published ones: a set that differs in one bit is
    refused, so that figures on any copy compare.

    Args:
        raw: a clone of `tangsanli5201/DeepPCB`, or its folder `PCBData`.
        out: a new or empty folder, or one that holds this set already.
        on_progress: told of the progress while crops are written.

    Returns:
        The manifest: `image, label, product, board, split`.

    Raises:
        DataError: a board's image is missing or differs, or `out` holds something else.
    """
    table = crops()
    recipe = {"set": "DeepPCB-LT", "pixels": PIXELS_SHA256}

    def build(partial: Path) -> None:
        pixels = cut_crops(raw, table)
        found = hashlib.sha256(pixels.tobytes()).hexdigest()
        assert found == PIXELS_SHA256, "every crop's own checksum agrees, but not all together"
        write_images(partial, table["image"].tolist(), pixels.__getitem__, on_progress)
        save_manifest(partial, table[["image", "label", "product", "board", "split"]])

    return prepare_folder(out, recipe, build)


def cut_crops(raw: Path, table: pd.DataFrame) -> Pixels:
    """Cut crops and compare each with its checksum.

    Args:
        raw: a clone of the repository, or its folder `PCBData`.
        table: rows of `crops`.

    Returns:
        (N, 64, 64) pixels in the table's order.

    Raises:
        DataError: an image is missing or unreadable, or crops differ; the message counts them.
    """
    root = raw.parent if raw.name == "PCBData" and not (raw / "PCBData").is_dir() else raw
    absent = [name for name in table["source"].unique() if not (root / name).is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of {table['source'].nunique()} board images are not below {root} "
            f"({absent[0]}, ...). Give a clone of github.com/tangsanli5201/DeepPCB."
        )
    pixels = np.empty((len(table), SIDE, SIDE), np.uint8)
    differing: list[str] = []
    for source, rows in table.groupby("source", sort=False).indices.items():
        part = table.iloc[rows]
        pixels[rows], agree = _cut(root / str(source), part)
        differing += part["image"][~agree].tolist()
    if differing:
        raise DataError(
            f"{len(differing)} of {len(table)} crops differ from the published pixels "
            f"({differing[0]}, ...), so figures on them could not be compared. Clone the "
            "repository again; if that does not help, this machine's JPEG decoder rounds "
            "differently."
        )
    return pixels


def _cut(path: Path, part: pd.DataFrame) -> tuple[Pixels, BoolArray]:
    """The crops of one board and which of them agree, by the reader that agrees best."""
    tried, boxes = [], part[["x", "y"]].to_numpy()
    for read in (_read_pillow, _read_opencv):
        image = read(path)
        if image is not None and (boxes + SIDE <= image.shape[::-1]).all():
            cut = np.stack([image[y : y + SIDE, x : x + SIDE] for x, y in boxes])
            found = np.array([f"{zlib.crc32(crop.tobytes()):08x}" for crop in cut])
            tried.append((cut, found == part["crc32"].to_numpy()))
            if tried[-1][1].all():
                break
    if not tried:
        raise DataError(
            f"{path} is damaged or too small for its crops. Clone the repository again."
        )
    return max(tried, key=lambda crops: int(crops[1].sum()))


def _read_pillow(path: Path) -> Pixels | None:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError):
        return None


def _read_opencv(path: Path) -> Pixels | None:
    # Of a JPEG with three components it takes the luminance as stored; Pillow computes it anew.
    data = np.frombuffer(path.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if len(data) else None
    return None if image is None else np.asarray(image)
