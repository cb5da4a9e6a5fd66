"""Settings of the data (images on disk -> batches) and of augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from recame.config.section import Auto, Count, Fraction, Own, Positive, Range, Section, Weight
from recame.config.size import Size
from recame.contracts import CONTEXT

#: Name -> number of versions of an image: the image; also mirrored left to right; also mirrored top
#: to bottom; also rotated by quarter turns, which only square images allow.
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
        description="column of a table that says train, val or test; without this column, recame "
        "splits the images",
    )
    product_column: str = Field(
        "product",
        description="column of a table that names the product or the line of an image; figures are "
        "also reported for each",
    )
    encoding: str = Field(
        "auto",
        description="text encoding of a CSV table, for example cp1252; auto: detected, and an "
        "uncertain encoding is refused",
    )
    corrections: Path | None = Field(
        None,
        description="table of labels that people have corrected, for example suspects.csv of "
        "recame inspect with its column corrected_label filled in (empty: the label stays; -: the "
        "image is left out)",
    )
    continues: Path | None = Field(
        None,
        description="a finished run; its images keep their splits, so that no image on which it "
        "was evaluated is trained on; set by recame train --from",
    )
    replay: bool = Field(
        default=False,
        description="whether that run's images are read from its manifest, so that the data hold "
        "only new images; set by recame train --add",
    )
    group_by: str | None = Field(
        None, description="column of a table; images with the same value in it stay in one split"
    )
    val_fraction: Fraction = Field(
        0.15,
        description="share of the images, 0 to 1, by which the model is chosen, if the data name "
        "no val",
    )
    test_fraction: Fraction = Field(
        0.15,
        description="share of the images, 0 to 1, on which the model is evaluated, if the data "
        "name no test",
    )
    calibrate: Auto | Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        "auto",
        description="share of the training images that is set aside for recame tune, and neither "
        "trains nor chooses; auto: a fifth if a normal class is named and a fifth is enough to "
        "promise an escape limit, else 0",
    )
    normal_class: str | None = Field(
        None, description="the class without a defect; escapes and overkill are counted from it"
    )
    critical_classes: tuple[str, ...] = Field(
        (), description="defect classes whose escapes are counted separately"
    )
    size: Auto | Size = Field(
        "auto",
        description="size of the images in pixels: the side of a square, or height x width, as "
        "128x512; auto: sizes that the time allows are tried, and val decides",
    )
    tiles: Auto | Annotated[int, Field(ge=0, le=64)] = Field(
        "auto",
        description="number of tiles: parts of a large image at full resolution, each of "
        "data.size, that the model sees beside the whole image shrunk to data.size; 0: none",
    )
    channels: Auto | Literal[1, 3] = Field(
        "auto", description="1: grey, 3: colour; auto: as in the image files"
    )
    bit_depth: Auto | Literal[8, 16] = Field(
        "auto", description="bits of each channel; auto: as in the image files"
    )
    resize: Literal["stretch", "pad", "crop"] = Field(
        "stretch",
        description="how an image of another aspect ratio is brought to data.size: stretched, "
        "padded with the median of its border, or cropped to its centre",
    )
    float_range: Range | None = Field(
        None,
        description="the values of floating-point files that mean black and white; null: such "
        "files are refused",
    )
    pages: Literal["first", "all"] = Field(
        "first",
        description="pages of TIFF files in a folder that are used; a table names each page "
        "(file.tif#2)",
    )
    box_columns: tuple[str, str, str, str] | None = Field(
        ("x", "y", "width", "height"),
        description="columns of a table that hold a box: left, top, width and height in pixels of "
        "the upright image; null: the table has no boxes",
    )
    context: Annotated[float, Field(ge=1.0)] = Field(
        CONTEXT,
        description="side of the square that is cut out around a box, as a multiple of the box's "
        "longer side",
    )
    max_broken_fraction: Fraction = Field(
        0.05,
        description="share of the files, 0 to 1, that may be unreadable; if there are more, "
        "training is refused",
    )
    max_pixels: Positive = Field(178_956_970, description="an image with more pixels is refused")
    builder: Own | None = Field(
        None,
        description="function that makes the data set if nothing lies at the path of the data "
        "yet: it is called with the folder to write, and returns the path of the table",
    )
    cache_dir: Path | None = Field(
        None, description="folder for decoded images; null: the user's cache folder"
    )


class AugmentConfig(Section):
    """Random changes of each training batch, computed on the training device."""

    symmetry: Auto | Literal["none", "mirror", "flips", "square"] = Field(
        "auto", description="flips and rotations under which an image keeps its class"
    )
    shift: Fraction = Field(0.1, description="largest shift, as a share of each side")
    scale: Fraction = Field(0.0, description="largest relative change of size")
    rotate_deg: Annotated[float, Field(ge=0.0, le=180.0)] = Field(
        0.0, description="largest rotation to either side, in degrees, 0 to 180"
    )
    brightness: Fraction = Field(
        0.1, description="largest change of the mean grey value, as a share of the range of values"
    )
    contrast: Fraction = Field(0.1, description="largest relative change of contrast")
    blur: Fraction = Field(0.0, description="probability of a Gaussian blur")
    rand_augment: Count = Field(0, description="number of RandAugment operations; 0: none")
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = Field(
        9, description="strength of the RandAugment operations, 0 to 30"
    )
    extra: tuple[Own, ...] = Field(
        (),
        description="your own augmentations, applied in this order after those above "
        "(docs/extend.md)",
    )
    mixup: Weight = Field(0.0, description="alpha of mixup's Beta distribution; 0: no mixup")
    cutmix: Weight = Field(0.0, description="alpha of CutMix's Beta distribution; 0: no CutMix")
