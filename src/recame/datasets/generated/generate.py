"""A plan -> pixels in memory, or a folder of images with a manifest."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from recame.contracts import Pixels
from recame.datasets.generated.fine_classes import DRAWN
from recame.datasets.generated.hashing import I64, make_keys
from recame.datasets.generated.imaging import take, window
from recame.datasets.generated.plan import SyntheticSpec, plan
from recame.datasets.generated.products import DESIGNS, VARIANTS, Shots, pick
from recame.errors import DataError
from recame.files import write_json
from recame.folders import is_taken, new_folder
from recame.machine import usable_cores
from recame.progress import Progress, silent

MANIFEST_COLUMNS = ("image", "label", "product", "board", "lot", "split")
TRUTH_COLUMNS = ("image", "true_label", "cluster", "duplicate_of", "duplicate_kind")
#: Pixels of the images that are drawn together: their arrays stay in a core's cache.
_CHUNK_PIXELS = 2**18
#: Pixels that `write` holds in memory.
_BLOCK_PIXELS = 2**24


def render(table: pd.DataFrame, spec: SyntheticSpec, on_progress: Progress = silent) -> Pixels:
    """Draw the images of a plan, or of any of its rows.

    An image depends on the seed and on its own row only: its number and its original's are in the
    file names, its class and region in `cluster` and `true_label`.

    Args:
        table: rows of `plan(spec)`; another `true_label` draws another defect on the same scene.
        spec: of the plan.
        on_progress: told of the progress.

    Returns:
        (N, height, width), or (N, height, width, 3) red, green, blue; uint8 or uint16.

    Raises:
        DataError: the table lacks a column.
    """
    missing = sorted({*TRUTH_COLUMNS, "product", "lot"} - set(table))
    if missing:
        raise DataError(
            f"A table without {', '.join(missing)} cannot be drawn: a manifest does not say what "
            "the images show. Pass rows of plan(spec)."
        )
    shots = _shots(table, spec)
    design = shots.product % len(DESIGNS)
    order = np.lexsort((shots.label, design))
    ends = np.flatnonzero(np.diff(design[order], append=-1)) + 1
    most = 1 if spec.canvas else max(1, _CHUNK_PIXELS // spec.size**2)
    chunks = [
        part
        for group in np.split(order, ends[:-1])
        if len(group)
        for part in np.array_split(group, -(-len(group) // most))
    ]
    shape = (len(table), *spec.shape, 3 if spec.colour else 1)
    pixels = np.empty(shape, f"uint{spec.bit_depth}")

    def draw(rows: I64) -> int:
        pixels[rows] = take(
            pick(shots, rows),
            size=spec.size,
            bit_depth=spec.bit_depth,
            colour=spec.colour,
            canvas=spec.canvas,
        )
        return len(rows)

    done = 0
    with ThreadPoolExecutor(usable_cores()) as pool:
        for drawn in as_completed([pool.submit(draw, rows) for rows in chunks]):
            done += drawn.result()
            on_progress("drawing", done, len(table))
    return pixels if spec.colour else pixels[..., 0]


def generate(spec: SyntheticSpec, on_progress: Progress = silent) -> tuple[Pixels, pd.DataFrame]:
    """Plan and draw a set in memory.

    Returns:
        The images as `render` gives them, and the table of `plan`.
    """
    table = plan(spec)
    return render(table, spec, on_progress), table


def write(spec: SyntheticSpec, out: Path, on_progress: Progress = silent) -> Path:
    """Write a set as PNG files and a manifest, whole or not at all.

    The folder holds `images/<product>/<number>.png`, `manifest.csv` (what any user's set has),
    `truth.csv` (the planted clusters, true labels and duplicates, which training never reads) and
    `spec.json`.

    Args:
        spec: what to generate.
        out: the folder; it must be new or empty.
        on_progress: told of the progress.

    Returns:
        The manifest's path.

    Raises:
        DataError: the folder holds something already, or cannot be written.
    """
    out = Path(out)
    if is_taken(out):
        raise DataError(
            f"{out} exists and is not an empty folder, but a generated data set never replaces "
            "files: choose a new folder."
        )
    table = plan(spec)
    with new_folder(out) as folder:
        for product in table["product"].unique():
            (folder / "images" / product).mkdir(parents=True)
        step = max(1, _BLOCK_PIXELS // (spec.shape[0] * spec.shape[1]))
        with ThreadPoolExecutor(usable_cores()) as pool:
            for start in range(0, len(table), step):
                block = table.iloc[start : start + step]
                paths = [folder / image for image in block["image"]]
                list(pool.map(write_png, paths, render(block, spec)))
                on_progress("drawing", start + len(block), len(table))
        table[list(MANIFEST_COLUMNS)].to_csv(folder / "manifest.csv", index=False)
        truth = table[list(TRUTH_COLUMNS)]
        if spec.canvas:
            truth = truth.assign(**windows(table, spec))
        truth.to_csv(folder / "truth.csv", index=False)
        write_json(folder / "spec.json", {"schema": 1, **asdict(spec)})
    return out / "manifest.csv"


def windows(table: pd.DataFrame, spec: SyntheticSpec) -> dict[str, I64 | int]:
    """The window of each image, in which the defect lies: `x, y, width, height`, in pixels."""
    top, left = window(_shots(table, spec).content, spec.size, spec.shape)
    return {"x": left, "y": top, "width": spec.size, "height": spec.size}


def write_png(path: Path, pixels: Pixels) -> None:
    """Write (H, W) grey or (H, W, 3) red, green, blue.

    Raises:
        OSError: the file cannot be written.
    """
    # OpenCV keeps colours as blue, green, red. Its imwrite takes no path beyond the locale and
    # tells no reason.
    ordered = np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., ::-1])
    path.write_bytes(cv2.imencode(".png", ordered)[1].tobytes())


def _shots(table: pd.DataFrame, spec: SyntheticSpec) -> Shots:
    """What each row shows."""
    number = _numbers(table["image"])
    near = (table["duplicate_kind"] == "near").to_numpy()
    copy = (table["duplicate_of"] != "").to_numpy()
    source = number.copy()
    source[copy] = _numbers(table["duplicate_of"][copy])
    product = _numbers(table["product"]) - 1
    content = make_keys(spec.seed, source)
    return Shots(
        product=product,
        variant=table["cluster"].str[-1].map(VARIANTS.index).to_numpy().astype(np.int64),
        label=table["true_label"].map([c.name for c in DRAWN].index).to_numpy().astype(np.int64),
        content=content,
        capture=make_keys(content, np.where(near, number, source)),
        lot=make_keys(make_keys(make_keys(spec.seed, 4_000_037), product), _numbers(table["lot"])),
        moved=near,
    )


def _numbers(names: pd.Series[Any]) -> I64:
    """The last number in each name."""
    codes, unique = pd.factorize(names)
    return np.asarray([int(re.findall(r"\d+", name)[-1]) for name in unique], np.int64)[codes]
