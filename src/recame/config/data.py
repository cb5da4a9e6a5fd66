"""Settings of images on disk -> batches, and of their random changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from recame.config.section import Auto, Count, Fraction, Own, Positive, Range, Section, Weight
from recame.config.size import Size
from recame.contracts import CONTEXT

#: Name -> how many views of an image it makes: itself, mirrored left to right, both mirrors, and
#: these with quarter turns, which only square images allow.
SYMMETRIES = {"none": 1, "mirror": 2, "flips": 4, "square": 8}


def largest_symmetry(height: int, width: int) -> str:
    """The largest group of `SYMMETRIES` that images of this size, in pixels, allow."""
    return "square" if height == width else "flips"


class DataConfig(Section):
    """Images on disk -> batches."""

    image_column: str = Field("image", description="column of a table that names the image files")
    label_column: str = Field("label", description="column of a table that names the classes")
    split_column: str = Field(
        "split",
        description="column of a table that says train, val, test; without it the images are split",
    )
    product_column: str = Field(
        "product",
        description="column of a table that names products or lines, by which figures are told "
        "apart",
    )
    encoding: str = Field(
        "auto", description="of a CSV table, as cp1252; auto takes what is certain"
    )
    corrections: Path | None = Field(
        None,
        description="table of labels that people corrected, as suspects.csv of recame inspect with "
        "its column corrected_label filled in (empty: as it is; -: the image is left out)",
    )
    continues: Path | None = Field(
        None,
        description="a finished run whose images keep their splits, so that none that it was "
        "judged by trains; set by recame train --from",
    )
    replay: bool = Field(
        default=False,
        description="whether that run's images are taken from its manifest and the data are new "
        "ones alone; set by recame train --add",
    )
    group_by: str | None = Field(None, description="no value of this column straddles two splits")
    val_fraction: Fraction = Field(
        0.15,
        description="share of the images, 0 to 1, that chooses the model, where the data name no "
        "val",
    )
    test_fraction: Fraction = Field(
        0.15, description="share of the images, 0 to 1, that judges it, where the data name no test"
    )
    calibrate: Auto | Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        "auto",
        description="share of the training images that is set aside for recame tune and chooses "
        "nothing; auto: a fifth where a normal class is named and promises come of it, else 0",
    )
    normal_class: str | None = Field(
        None, description="the class without a defect: escapes and false calls are counted by it"
    )
    critical_classes: tuple[str, ...] = Field(
        (), description="classes whose escapes are counted apart"
    )
    size: Auto | Size = Field(
        "auto",
        description="pixels: the side of a square, or height x width, as 128x512; auto: what the "
        "time allows, and val says",
    )
    tiles: Auto | Annotated[int, Field(ge=0, le=64)] = Field(
        "auto",
        description="pieces of a large image that are seen as they are, each of data.size, beside "
        "the whole shrunk to it; 0: none",
    )
    channels: Auto | Literal[1, 3] = Field(
        "auto", description="1: grey, 3: colour; auto: as the images are"
    )
    bit_depth: Auto | Literal[8, 16] = Field(
        "auto", description="bits of a pixel; auto: as the files are"
    )
    resize: Literal["stretch", "pad", "crop"] = Field(
        "stretch",
        description="how an image of another shape meets data.size: stretched, padded with its "
        "border, or cut",
    )
    float_range: Range | None = Field(
        None, description="values of floating-point files that are black and white"
    )
    pages: Literal["first", "all"] = Field(
        "first", description="of TIFF files in a folder; a table names them (file.tif#2)"
    )
    box_columns: tuple[str, str, str, str] | None = Field(
        ("x", "y", "width", "height"),
        description="of a table's boxes, in pixels of the upright file; null: it has none",
    )
    context: Annotated[float, Field(ge=1.0)] = Field(
        CONTEXT, description="side of the square seen of a box, in lengths of its longer side"
    )
    max_broken_fraction: Fraction = Field(
        0.05,
        description="share of the files, 0 to 1, that may be unreadable; with more, training is "
        "refused",
    )
    max_pixels: Positive = Field(178_956_970, description="an image with more is refused")
    builder: Own | None = Field(
        None,
        description="makes the set where there is nothing at the path of the data yet: called with "
        "the folder to write, it returns the table's path",
    )
    cache_dir: Path | None = Field(None, description="default: the user's cache folder")


class AugmentConfig(Section):
    """Random changes of a training batch, on the training device."""

    symmetry: Auto | Literal["none", "mirror", "flips", "square"] = Field(
        "auto", description="flips and turns under which an image keeps its class"
    )
    shift: Fraction = Field(0.1, description="largest shift, as a share of each side")
    scale: Fraction = Field(0.0, description="largest relative change of size")
    rotate_deg: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        0.0, description="largest turn to either side, degrees, 0 to 180"
    )
    brightness: Fraction = Field(
        0.1, description="largest change of the mean grey, as a share of the range of values"
    )
    contrast: Fraction = Field(0.1, description="largest relative change of contrast")
    blur: Fraction = Field(0.0, description="probability of a Gaussian blur")
    rand_augment: Count = Field(0, description="operations of RandAugment; 0 leaves it out")
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = Field(
        9, description="strength of those operations, 0 to 30"
    )
    extra: tuple[Own, ...] = Field(
        (), description="further changes of one's own, in order, after those above (docs/extend.md)"
    )
    mixup: Weight = Field(0.0, description="alpha of the Beta distribution; 0 leaves it out")
    cutmix: Weight = Field(0.0, description="alpha of the Beta distribution; 0 leaves it out")
