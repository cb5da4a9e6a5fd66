"""A contact sheet of ICDefectSynth: one row a class, one column a product.

Run `python benchmarks/synthetic/contact_sheet.py --out docs/images/icdefectsynth.png`; with
`--fine --products 6 --out docs/images/icdefectsynth-fine.png` of the thirty finer classes.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from PIL import Image

from recame.datasets.generated import DESIGNS, SyntheticSpec, render

mpl.use("Agg")

from matplotlib import pyplot as plt


def cells(classes: tuple[str, ...], num_products: int, regions: str) -> pd.DataFrame:
    """A row for each class on each product, in reading order; regions take turns."""
    rows = []
    for number, (defect, product) in enumerate(
        (name, f"P{p + 1:02d}") for name in classes for p in range(num_products)
    ):
        rows.append(
            {
                "image": f"images/{product}/{number:06d}.png",
                "product": product,
                "lot": f"{product}-L0001",
                "cluster": f"{defect}/{product}/{regions[number % len(regions)]}",
                "true_label": defect,
                "duplicate_of": "",
                "duplicate_kind": "",
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Draw the images and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images/icdefectsynth.png"))
    parser.add_argument("--products", type=int, default=12)
    parser.add_argument("--regions", default="abc", help="variants, taking turns")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--colour", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fine", action="store_true", help="the thirty finer classes")
    options = parser.parse_args()
    spec = SyntheticSpec(
        num_classes=30 if options.fine else 14,
        num_products=options.products,
        size=options.size,
        colour=options.colour,
        seed=options.seed,
        fine=options.fine,
    )
    pixels = render(cells(spec.classes, options.products, options.regions), spec)
    shape = (spec.num_classes, options.products)
    figure, axes = plt.subplots(*shape, figsize=(1.5 + shape[1] * 0.92, 0.5 + shape[0] * 0.92))
    figure.subplots_adjust(
        left=0.13, right=0.995, top=0.965, bottom=0.005, wspace=0.05, hspace=0.05
    )
    for number, axis in enumerate(axes.ravel()):
        row, column = divmod(number, options.products)
        axis.imshow(pixels[number], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
        if row == 0:
            design = DESIGNS[column % len(DESIGNS)].name
            axis.set_title(f"P{column + 1:02d}\n{design}", fontsize=7)
        if column == 0:
            name = spec.classes[row].replace("_", " ")
            axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8.5)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    # A palette keeps the file small enough for a repository.
    tones = 128 if options.colour else 40
    sheet = Image.open(drawn).convert("RGB").quantize(tones, dither=Image.Dither.NONE)
    sheet.save(options.out, optimize=True)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
