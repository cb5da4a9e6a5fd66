"""The demo: generate a small long-tailed inspection set, train on it, evaluate, predict.

Run with `make demo`, or `python examples/demo.py --out FOLDER --time-budget 2m`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console

import recame
from recame.config import parse_duration

SIDE = 64
#: Training images of each class: 50 to 1.
TRAIN_IMAGES = {"good": 300, "spur": 100, "mousebite": 50, "open": 25, "short": 12, "pinhole": 6}
VAL_IMAGES = 20
TEST_IMAGES = 60
#: Each product has its own line pitch, line width, grey tones and noise.
PRODUCTS = {
    "A100": {"pitch": 16, "width": 7, "dark": 60, "bright": 190, "noise": 9},
    "B200": {"pitch": 22, "width": 10, "dark": 30, "bright": 150, "noise": 14},
    "C300": {"pitch": 28, "width": 16, "dark": 90, "bright": 230, "noise": 7},
}


def draw(label: str, product: str, rng: np.random.Generator) -> np.ndarray:
    """One image (64, 64) uint8: metal lines of a product, with one defect of a class on them."""
    look = PRODUCTS[product]
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    across = (y + rng.uniform(0, look["pitch"])) % look["pitch"]
    metal = across < look["width"]
    # The line nearest to the centre: its upper edge and its middle.
    rows = np.flatnonzero(np.diff(metal[:, 0].astype(int)) == 1) + 1
    top = int(rows[np.argmin(np.abs(rows + look["width"] / 2 - SIDE / 2))])
    middle = top + look["width"] / 2
    cx = rng.uniform(0.35, 0.65) * SIDE
    size = rng.uniform(0.8, 1.2)
    gap = look["pitch"] - look["width"]
    ragged = rng.normal(0, 0.6, SIDE)[None, :]
    if label == "spur":
        metal |= (np.abs(x - cx + ragged) < 2.5 * size) & (y > top - 0.55 * gap) & (y < middle)
    elif label == "mousebite":
        metal &= np.hypot(x - cx, y - top) + ragged > 0.45 * look["width"] * size
    elif label == "open":
        metal &= (np.abs(x - cx + ragged) > 3.0 * size) | (np.abs(y - middle) > look["width"])
    elif label == "short":
        metal |= (np.abs(x - cx + ragged) < 2.5 * size) & (y > top - gap - 1) & (y < middle)
    elif label == "pinhole":
        metal &= np.hypot(x - cx, y - middle) > max(1.8, 0.22 * look["width"]) * size
    image = np.where(metal, look["bright"], look["dark"]) + rng.normal(
        0, look["noise"], metal.shape
    )
    image += rng.normal(0, 6) + rng.uniform(-0.25, 0.25) * (x - SIDE / 2)
    # Any part may lie either way under the camera.
    image = np.rot90(image, rng.integers(4))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_set(folder: Path, seed: int = 0) -> Path:
    """Write images and `manifest.csv` (image, label, split, product); return the manifest."""
    rng = np.random.default_rng(seed)
    rows = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for label, num_train in TRAIN_IMAGES.items():
        for split, count in (("train", num_train), ("val", VAL_IMAGES), ("test", TEST_IMAGES)):
            for number in range(count):
                product = str(rng.choice(list(PRODUCTS)))
                name = f"images/{split}_{label}_{number:03d}.png"
                Image.fromarray(draw(label, product, rng)).save(folder / name)
                rows.append({"image": name, "label": label, "split": split, "product": product})
    manifest = folder / "manifest.csv"
    pd.DataFrame(rows).to_csv(manifest, index=False)
    return manifest


def main() -> None:
    """Generate, train, evaluate, predict."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--time-budget", default="2m")
    options = parser.parse_args()
    console = Console()
    run_dir = options.out / "run"
    shutil.rmtree(run_dir, ignore_errors=True)  # a demo starts afresh; a real run never does this

    console.rule("1. An inspection set: 6 classes, 50 to 1, 3 products")
    manifest = write_set(options.out / "data")
    console.print(f"{manifest}: training images {TRAIN_IMAGES}", highlight=False)

    console.rule("2. recame train")
    config = recame.Config().updated(
        {
            "run.time_budget_s": parse_duration(options.time_budget),
            "data.normal_class": "good",
            "data.critical_classes": ["open", "short"],
        }
    )
    recame.train(manifest, config, out=run_dir, console=console)

    console.rule("3. recame evaluate")
    recame.evaluate(run_dir, console=console)

    console.rule("4. recame predict")
    table, _ = recame.predict(
        run_dir,
        [options.out / "data" / "images" / "test_*.png"],
        out=options.out / "predictions.csv",
        console=console,
    )
    columns = ["image", "prediction", "confidence"]
    console.print(table[columns].sample(5, random_state=0).to_string(index=False))
    console.print(f"Run: {run_dir}   predictions: {options.out / 'predictions.csv'}")


if __name__ == "__main__":
    main()
