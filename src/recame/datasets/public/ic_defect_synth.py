"""ICDefectSynth as a benchmark set: 2,000 training images with a tail, balanced held-out sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from recame.datasets.generated import SyntheticSpec, write
from recame.datasets.public.prepared_folder import prepare_folder
from recame.progress import Progress, silent

NUM_TRAIN = 2000
VAL_PER_CLASS = 20
TEST_PER_CLASS = 60


def benchmark_spec(imbalance: float = 100, seed: int = 0, num_classes: int = 10) -> SyntheticSpec:
    """What the set holds.

    Ten classes, so that the profile meets the imbalance that it is named after: 807 to 8 images
    at 100, 998 to 2 at 500 (14 classes would end at 380 to 1). Twelve products.
    """
    held_out = num_classes * (VAL_PER_CLASS + TEST_PER_CLASS)
    return SyntheticSpec(
        num_images=NUM_TRAIN + held_out,
        num_classes=num_classes,
        imbalance=imbalance,
        val_per_class=VAL_PER_CLASS,
        test_per_class=TEST_PER_CLASS,
        seed=seed,
    )


def large_spec(canvas: tuple[int, int], seed: int = 0) -> SyntheticSpec:
    """Images on which a defect of 8 to 24 pixels lies anywhere: six classes, 406 to 8 images.

    Three products, and defects that a network which sees the defect's own window tells apart.

    Args:
        canvas: height and width of the images, pixels.
        seed: another one gives other images of the same products.
    """
    defects = ("particle", "residue", "extra_pattern", "open", "bridge")
    num_classes = len(defects) + 1
    val, test = 12, 30
    return SyntheticSpec(
        num_images=741 + num_classes * (val + test),
        num_classes=num_classes,
        num_products=3,
        size=96,
        imbalance=50,
        val_per_class=val,
        test_per_class=test,
        seed=seed,
        canvas=canvas,
        defects=defects,
    )


def prepare_large(
    out: Path,
    *,
    canvas: tuple[int, int] = (1024, 1024),
    seed: int = 0,
    on_progress: Progress = silent,
) -> Path:
    """Generate the set of `large_spec`, as `prepare` does."""
    spec = large_spec(canvas, seed)
    recipe = {"set": f"ICDefectSynth {canvas[0]} x {canvas[1]}", "spec": asdict(spec)}
    return prepare_folder(out, recipe, lambda partial: write(spec, partial, on_progress))


def prepare(
    out: Path,
    *,
    imbalance: float = 100,
    seed: int = 0,
    num_classes: int = 10,
    on_progress: Progress = silent,
) -> Path:
    """Generate the set; the same arguments give the same pixels on every machine.

    Args:
        out: a new or empty folder, or one that holds this set already.
        imbalance: images of the largest class over the smallest, in train.
        seed: another one gives other images of the same products.
        num_classes: 2 to 14.
        on_progress: told of the progress.

    Returns:
        The manifest: `image, label, product, board, lot, split`.

    Raises:
        DataError: `out` holds something else.
        ConfigError: an argument is out of range.
    """
    spec = benchmark_spec(imbalance, seed, num_classes)
    recipe = {"set": f"ICDefectSynth ({imbalance:g})", "spec": asdict(spec)}
    return prepare_folder(out, recipe, lambda partial: write(spec, partial, on_progress))
