"""How many defects the tiles of large images hold, by the number of tiles and the finder.

    python benchmarks/tiles/places.py DIR [--images 24] [--json FILE]

`DIR` is a folder of `ic_defect_synth_large` or `_line` (generated there if it is empty or absent).
So many images of each defect, of train and val, are searched; a tile holds a defect if the middle
of its window lies on it. The variants each leave one part of the finder out. A few minutes on one
core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pandas as pd

from recame.contracts import Array, FloatArray, PreprocessSpec
from recame.data import tiles
from recame.datasets.registry import public_set

SIDE, NUM_TILES = 64, 5
SPEC = PreprocessSpec(SIDE * (NUM_TILES + 1), SIDE, 1, 8, 255.0, (0.5,), (0.5,), tiles=NUM_TILES)


def standardised(features: FloatArray) -> FloatArray:
    """Each feature of mean 0 and deviation 1, and no more."""
    found: FloatArray = (features - features.mean((0, 1))) / (features.std((0, 1)) + 1e-6)
    return found


def untouched(unusual: FloatArray) -> FloatArray:
    """The border as it is."""
    return unusual


#: Variant -> what of `recame.data.tiles` it replaces.
VARIANTS: dict[str, dict[str, Any]] = {
    "as taken": {},
    "border not damped": {"_at_the_border": untouched},
    "features standardised, not whitened": {"_whitened": standardised},
    "neighbours count as counterparts": {"_NEAR": 0},
    "both of these": {"_whitened": standardised, "_NEAR": 0},
    "not evened out": {"_SMOOTH": 1e-3},
    "evened out twice as far": {"_SMOOTH": 1.0},
    "blocks of 16 cells": {"_BLOCK": 16},
    "searched at full size": {"_SHRINK": 1},
    "searched at a quarter": {"_SHRINK": 4},
    "mirrored by two cells only": {"_RIM": 2},
}


@contextmanager
def finder(changes: dict[str, Any]) -> Iterator[Callable[[Array], Array]]:
    """`places` with parts of the finder replaced."""
    with ExitStack() as replaced:
        for name, value in changes.items():
            replaced.enter_context(patch.object(tiles, name, value))
        yield lambda pixels: tiles.places(pixels, SPEC)


def main() -> None:
    """Print a row a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", default="ic_defect_synth_large")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    if not (words.folder / "manifest.csv").exists():
        public_set(words.set).prepare(None, words.folder)
    table = pd.read_csv(words.folder / "manifest.csv").merge(
        pd.read_csv(words.folder / "truth.csv"), on="image"
    )
    table = table[(table["split"] != "test") & (table["label"] != "normal")]
    table = table.groupby("label").head(words.images)
    middle = np.stack([table["y"] + table["height"] / 2, table["x"] + table["width"] / 2], 1)
    images = [
        cv2.imread(str(words.folder / name), cv2.IMREAD_GRAYSCALE)[..., None]
        for name in table["image"]
    ]
    rows = {}
    for name, changes in VARIANTS.items():
        with finder(changes) as places:
            found = np.stack([places(pixels) for pixels in images])
        holds = (np.abs(found + SIDE / 2 - middle[:, None]) <= SIDE / 2).all(2)
        by_number = np.maximum.accumulate(holds, 1)
        recall = pd.DataFrame(by_number).groupby(table["label"].to_numpy()).mean().mean()
        size = np.array(images[0].shape[:2]) - SIDE
        border = ((found == 0) | (found == size)).any(2).mean()
        rows[name] = {
            **{str(number + 1): round(float(value), 3) for number, value in recall.items()},
            "at the border": round(float(border), 2),
        }
        print(f"{name:<40}", rows[name], flush=True)
    if words.json:
        words.json.write_text(json.dumps({"images": len(table), **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
