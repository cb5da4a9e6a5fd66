"""ICDefectSynth as a benchmark set: 2,000 training images with a tail, balanced held-out sets."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from recame.datasets.generated import SyntheticSpec, write
from recame.datasets.public.prepared_folder import prepare_folder
from recame.errors import ConfigError
from recame.progress import Progress, silent

NUM_TRAIN = 2000
VAL_PER_CLASS = 20
TEST_PER_CLASS = 60


def benchmark_spec(
    imbalance: float = 100, seed: int = 0, num_classes: int = 10, **options: Any
) -> SyntheticSpec:
    """The specification of the set.

    It has ten classes, so that the profile reaches the imbalance in the set's name: 807 to 8 images
    at 100, 998 to 2 at 500 (14 classes would end at 380 to 1). It has twelve products.

    Args:
        imbalance: images of the largest class / images of the smallest, in train.
        seed: another seed gives other images of the same products.
        num_classes: 2 to 14.
        options: other fields of `SyntheticSpec`, over the benchmark's. Without `num_images` there
            are `NUM_TRAIN` training images, whatever val and test hold.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    usual = {
        "imbalance": imbalance,
        "seed": seed,
        "num_classes": num_classes,
        "val_per_class": VAL_PER_CLASS,
        "test_per_class": TEST_PER_CLASS,
    }
    return _spec(NUM_TRAIN, usual, options)


def large_spec(canvas: tuple[int, int], seed: int = 0, **options: Any) -> SyntheticSpec:
    """Images on which a defect of 8 to 24 pixels lies anywhere: six classes, 406 to 8 images.

    It has three products, and defects that a network distinguishes if it sees the defect's window.

    Args:
        canvas: height and width of the images, pixels.
        seed: another one gives other images of the same products.
        options: as of `benchmark_spec`; without `num_images` there are 741 training images.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    defects = ("particle", "residue", "extra_pattern", "open", "bridge")
    usual = {
        "seed": seed,
        "num_classes": len(defects) + 1,
        "num_products": 3,
        "size": 96,
        "imbalance": 50,
        "val_per_class": 12,
        "test_per_class": 30,
        "canvas": canvas,
        "defects": defects,
    }
    return _spec(741, usual, options)


def _spec(num_train: int, usual: dict[str, Any], options: dict[str, Any]) -> SyntheticSpec:
    """The usual fields, overridden by the options; `num_train` images to train by default."""
    known = [field.name for field in fields(SyntheticSpec)]
    if unknown := sorted(options.keys() - set(known)):
        raise ConfigError(
            f"A generated set has no option {unknown[0]!r}, so it cannot be set: choose from "
            f"{', '.join(known)}."
        )
    # A plan's YAML has lists for tuples.
    chosen: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in {**usual, **options}.items()
    }
    held_out = chosen["num_classes"] * (chosen["val_per_class"] + chosen["test_per_class"])
    return SyntheticSpec(**{"num_images": num_train + held_out, **chosen})


def prepare_large(
    out: Path,
    *,
    canvas: tuple[int, int] = (1024, 1024),
    seed: int = 0,
    on_progress: Progress = silent,
    **options: Any,
) -> Path:
    """Generate the set of `large_spec`, as `prepare` does."""
    spec = large_spec(canvas, seed, **options)
    recipe = {"set": f"ICDefectSynth {canvas[0]} x {canvas[1]}", "spec": asdict(spec)}
    return prepare_folder(out, recipe, lambda partial: write(spec, partial, on_progress))


def prepare(
    out: Path,
    *,
    imbalance: float = 100,
    seed: int = 0,
    num_classes: int = 10,
    on_progress: Progress = silent,
    **options: Any,
) -> Path:
    """Generate the set; the same arguments give the same pixels on every machine.

    Args:
        out: a new or empty folder, or one that holds this set already.
        imbalance: images of the largest class over the smallest, in train.
        seed: another one gives other images of the same products.
        num_classes: 2 to 14.
        on_progress: told of the progress.
        options: other fields of `SyntheticSpec`, see `benchmark_spec`.

    Returns:
        The manifest: `image, label, product, board, lot, split`.

    Raises:
        DataError: `out` holds something else.
        ConfigError: an option is unknown or out of range.
    """
    spec = benchmark_spec(imbalance, seed, num_classes, **options)
    recipe = {"set": f"ICDefectSynth ({imbalance:g})", "spec": asdict(spec)}
    return prepare_folder(out, recipe, lambda partial: write(spec, partial, on_progress))
