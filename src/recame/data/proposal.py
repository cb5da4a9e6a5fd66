"""Preprocessing that the settings leave open: proposed from a sample of files, settled by all."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from recame.config import DataConfig
from recame.contracts import CONTEXT, PreprocessSpec, ResizeRule
from recame.data.cache import ImageCache, build_cache
from recame.data.decode import (
    CAMERA_BITS,
    Loss,
    clipped_share,
    is_coloured,
    losses,
    stored_values,
)
from recame.data.image_file import open_header, read_image, stored_form, whole_file
from recame.errors import DataError
from recame.names import printable
from recame.progress import Progress, silent

#: Most pixels that `propose_spec` decodes, so that large images cost seconds and not minutes.
_SAMPLE_PIXELS = 2**27
_SIDE_RANGE = (16, 2048)
#: How many files a warning names.
_NAMED = 3
#: Images whose sides differ by less than the first factor are resized to squares; others keep their
#: aspect ratio, up to the second factor.
NEAR_SQUARE, MOST_ELONGATED = 1.5, 8
#: Sides of the squares whose numbers of pixels are tried, and the largest enlargement: pretrained
#: networks see more of a small image that is enlarged, but no more of a large one.
_SIDES = (64, 96, 128, 160, 192, 224, 256)
_ENLARGED, _LARGE_ENOUGH = 2.0, (128, 192)


def propose_spec(
    paths: Sequence[Path],
    *,
    size: tuple[int, int] | None,
    channels: Literal["auto", 1, 3] = "auto",
    bit_depth: Literal["auto", 8, 16] = "auto",
    resize: ResizeRule = "stretch",
    max_pixels: int,
    sample: int = 64,
    mean: float = 0.5,
    std: float = 0.5,
    float_range: tuple[float, float] | None = None,
    context: float = CONTEXT,
    tiles: int = 0,
) -> tuple[PreprocessSpec, tuple[int, int]]:
    """Choose the preprocessing from an evenly spaced sample of the readable files.

    Open choices are decided as follows. Channels: three if any sampled image is really coloured.
    Bit depth: 16 if any file has 16. Size: the median of sqrt(height * width), within 16 to 2048;
    for images far from square their median height and width, no side beyond 2048. Scale: 255, or
    65535 for 16 bit; if no sampled value needs more than 10, 12 or 14 bits, the largest value of
    that many bits, as cameras of that depth store it. If other files hold more, `settled` corrects
    the choice.

    Args:
        paths: image files.
        size: height and width that the images are resized to, or None for their own; pixels.
        channels: 1, 3 or `auto`.
        bit_depth: 8, 16 or `auto`.
        resize: how the aspect ratio is treated.
        max_pixels: an image with more pixels counts as unreadable.
        sample: how many files are examined.
        mean: mean of every channel, in [0, 1].
        std: standard deviation of every channel, in [0, 1].
        float_range: values of floating-point files that mean black and white; without it such files
            are unreadable.
        context: side of the square around a box, see `PreprocessSpec`.
        tiles: number of tiles that follow below the whole image, each of `size`.

    Returns:
        The spec, and the median (height, width) of the files.

    Raises:
        DataError: none of the sampled files can be read.
    """
    sizes: list[tuple[int, int]] = []
    coloured = deep = False
    peak = decoded = 0
    reason = "no files"
    for path in (paths[i] for i in evenly_spaced(len(paths), sample)):
        try:
            with whole_file(path, max_pixels=max_pixels) as (data, part):
                form = stored_form(io.BytesIO(data), part, context)
                height, width, is_deep = form["height"], form["width"], form["bits"] > 8
                wanted = (channels == "auto" and not coloured) or is_deep
                # 8-bit files among the others need the whole range.
                file_peak = 0 if is_deep else 0xFFFF
                if wanted and (not sizes or decoded < _SAMPLE_PIXELS):
                    image = read_image(data, max_pixels=max_pixels, page=part.page)
                    decoded += math.prod(image.pixels.shape[:2])
                    image = image._replace(pixels=part.cut(image.pixels, context))
                    pixels, _ = stored_values(image, float_range)
                    if image.declares_white:
                        file_peak = 0xFFFF
                    coloured = coloured or is_coloured(pixels)
                    file_peak = max(file_peak, int(pixels.max()))
        except DataError as error:
            reason = f"{path}: {error}"
            continue
        sizes.append((height, width))
        deep = deep or is_deep
        peak = max(peak, file_peak)
    native = _median_size(sizes, reason)
    size = size or _own_size(native, sizes)
    num_channels: Literal[1, 3] = (3 if coloured else 1) if channels == "auto" else channels
    depth: Literal[8, 16] = (16 if deep else 8) if bit_depth == "auto" else bit_depth
    spec = PreprocessSpec(
        height=size[0] * (tiles + 1),
        width=size[1],
        channels=num_channels,
        bit_depth=depth,
        scale=_white(peak) if depth == 16 else 255.0,
        mean=(mean,) * num_channels,
        std=(std,) * num_channels,
        resize=resize,
        float_range=float_range,
        context=context,
        tiles=tiles,
    )
    return spec, native


def _own_size(native: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The images' own size, within `_SIDE_RANGE`; a square if they are nearly square."""
    least, most = _SIDE_RANGE
    if is_elongated(native):
        ratio = min(1.0, most / max(native))
        return max(least, round(native[0] * ratio)), max(least, round(native[1] * ratio))
    side = round(float(np.median([(h * w) ** 0.5 for h, w in sizes])))
    side = int(np.clip(side, least, most))
    return side, side


def _white(peak: int) -> float:
    """The largest value of a camera whose values reach up to the peak."""
    return float(2 ** next((bits for bits in CAMERA_BITS if peak < 2**bits), 16) - 1)


def settled(
    proposed: PreprocessSpec,
    paths: Sequence[Path],
    config: DataConfig,
    *,
    on_progress: Progress = silent,
) -> tuple[PreprocessSpec, ImageCache]:
    """Decode all files, and correct a proposal that some of them do not fit.

    A sample misses rare files: the one coloured product, a shiny defect. So the decoder notes for
    every file what the proposal would lose, and choices that the settings leave open are made
    again: brighter values raise the scale, at no cost; after colour or 16-bit files outside the
    sample, all files are decoded once more. A warning names the files that changed a choice, and
    the files that still lose something, see `tell_losses`.

    Args:
        proposed: from `propose_spec`.
        paths: all files.
        config: which choices are open, and the cache.
        on_progress: told of the decoding.

    Raises:
        DataError: see `build_cache`.
    """
    spec = proposed
    while True:
        cache = build_cache(
            paths,
            spec,
            cache_dir=config.cache_dir,
            max_pixels=config.max_pixels,
            on_progress=on_progress,
        )
        mended = _mended(spec, cache, config)
        if mended == spec:
            tell_losses(cache, spec, colour=config.channels == "auto")
            return spec, cache
        spec = mended


def decoded_as(
    spec: PreprocessSpec,
    paths: Sequence[Path],
    config: DataConfig,
    *,
    on_progress: Progress = silent,
) -> ImageCache:
    """Decode files for a trained model, and warn of files that lose something.

    Args:
        spec: the model's.
        paths: all files.
        config: the cache, and whether grey was asked for.
        on_progress: told of the decoding.

    Raises:
        DataError: see `build_cache`.
    """
    cache = build_cache(
        paths,
        spec,
        cache_dir=config.cache_dir,
        max_pixels=config.max_pixels,
        on_progress=on_progress,
    )
    tell_losses(cache, spec, colour=config.channels == "auto")
    return cache


def _mended(spec: PreprocessSpec, cache: ImageCache, config: DataConfig) -> PreprocessSpec:
    """The specification that loses nothing of the decoded files; warns of what has changed."""
    facts = cache.facts
    coloured = [path for path, found in facts if found.coloured]
    deep = [path for path, found in facts if found.deep]
    changes: list[str] = []
    if config.channels == "auto" and spec.channels == 1 and coloured:
        changes.append(f"{_named(coloured)} in colour: all images keep 3 channels")
        spec = replace(spec, channels=3, mean=spec.mean * 3, std=spec.std * 3)
    if config.bit_depth == "auto" and spec.bit_depth == 8 and deep:
        changes.append(f"{_named(deep)} with 16 bits: all images are decoded to 16 bits")
        spec = replace(spec, bit_depth=16, scale=65535.0)
    elif spec.bit_depth == 16:
        white = _white(max((found.peak for _, found in facts), default=0))
        if white > spec.scale:
            brighter = [path for path, found in facts if found.peak > spec.scale]
            changes.append(
                f"{_named(brighter)} with values above {spec.scale:.0f}: white is {white:.0f}"
            )
            spec = replace(spec, scale=white)
    if changes:
        warnings.warn(
            "Preprocessing was first chosen from a sample, and other files hold more: "
            f"{'; '.join(changes)}. If these files do not belong here, remove them and start "
            "again: the model sees the other images better without them.",
            stacklevel=4,
        )
    return spec


def tell_losses(cache: ImageCache, spec: PreprocessSpec, *, colour: bool = True) -> None:
    """Warn, by kind and by name, of files that lose something when they are fitted to a spec.

    Args:
        cache: the decoded files.
        spec: the spec by which they were decoded, with the scale.
        colour: whether to warn of lost colour too: not if the settings ask for grey.
    """
    found: dict[Loss, list[str]] = {}
    worst = 0.0
    for path, facts in cache.facts:
        worst = max(worst, clipped_share(facts, spec))
        for kind in losses(facts, spec):
            found.setdefault(kind, []).append(path)
    white = f"{spec.scale:.0f}" if spec.bit_depth == 16 else "that of 16 bits, of which 8 are kept"
    beyond = f"above {spec.scale:.0f}, which is white here"
    if spec.float_range is not None:
        beyond += " or outside data.float_range={}..{}".format(
            *map("{:g}".format, spec.float_range)
        )
    words: dict[Loss, Callable[[str], str]] = {
        "clipped": lambda named: (
            f"{named} with values {beyond}: these values are clipped, "
            f"up to {worst:.1%} of an image. The images seem to come from another camera or "
            "exposure than the training images: bring all images to one range."
        ),
        "near black": lambda named: (
            f"{named} with fewer bits per channel than the others: white is {white} here, so they "
            "look nearly black to the model. Bring all images to one range, or set data.bit_depth "
            "before training."
        ),
        "colour": lambda named: (
            f"{named} in colour, but the model sees only grey values. Set data.channels=3 before "
            "training if colour matters."
        ),
        "pages": lambda named: (
            f"{named} with several pages: only the first page of each file is used. To use the "
            "other pages of TIFF files, set data.pages=all for a folder, or name them in a table "
            "(file.tif#2); save frames of other kinds of files as separate files."
        ),
    }
    for kind, paths in found.items():
        if kind != "colour" or colour:
            warnings.warn(words[kind](_named(paths)), stacklevel=3)


def _named(paths: Sequence[str]) -> str:
    shown = [*map(printable, paths[:_NAMED])]
    more = ", ..." if len(paths) > _NAMED else ""
    return f"{len(paths):,} image{'s' * (len(paths) != 1)} ({', '.join(shown)}{more})"


def is_elongated(native: tuple[int, int]) -> bool:
    """Whether images are so far from square that they are not resized to squares.

    Args:
        native: median height and width of the images.
    """
    return max(native) >= NEAR_SQUARE * min(native)


def working_side(native: tuple[int, int]) -> int:
    """Side of the square with the usual number of pixels: near the images' own, 64 to 128.

    Args:
        native: median height and width of the images.

    Examples:
        >>> working_side((20, 20)), working_side((90, 100)), working_side((900, 1000))
        (64, 96, 128)
    """
    side = math.sqrt(native[0] * native[1])
    return min(128, max(64, 32 * round(side / 32)))


def candidate_sizes(native: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes (height, width) that images may be resized to if the settings give none.

    The first is that of `working_side`, used if no size is tried. The others follow with ascending
    numbers of pixels, up to 256 x 256: as many pixels as the images have, and for small images
    more, up to twice their side (in any case 128, at most 192).

    Args:
        native: median height and width of the images.

    Examples:
        >>> candidate_sizes((180, 200))
        [(128, 128), (64, 64), (96, 96), (160, 160), (192, 192)]
        >>> candidate_sizes((64, 64)) == candidate_sizes((32, 32))
        True
        >>> candidate_sizes((200, 5000))[:4]
        [(64, 320), (32, 160), (32, 256), (64, 448)]
    """
    first, own = working_side(native), math.sqrt(native[0] * native[1])
    least, most = _LARGE_ENOUGH
    largest = max(own, least, min(_ENLARGED * own, most))
    others = [side for side in _SIDES if side != first and side <= largest]
    return list(dict.fromkeys(shaped(side, native) for side in (first, *others)))


def shaped(side: int, native: tuple[int, int]) -> tuple[int, int]:
    """Height and width with about as many pixels as a square, in the images' aspect ratio.

    Both are multiples of 32, the longer at most 8 times the shorter. Images that are nearly square
    get the square. A wrong number of pixels counts twice as much as a wrong aspect ratio.

    Args:
        side: of the square.
        native: median height and width of the images.

    Examples:
        >>> shaped(128, (480, 640)), shaped(128, (8000, 2000)), shaped(96, (100, 220))
        ((128, 128), (256, 64), (64, 128))
    """
    if not is_elongated(native):
        return side, side
    aspect = min(MOST_ELONGATED, max(native) / min(native))

    def miss(shape: tuple[int, int]) -> float:
        short, long = shape
        pixels = math.log(short * long / side**2)
        return 2 * pixels**2 + math.log(long / short / aspect) ** 2

    short, long = min(
        (
            (short, long)
            for short in range(32, side + 1, 32)
            for long in range(short, MOST_ELONGATED * short + 1, 32)
        ),
        key=miss,
    )
    return (short, long) if native[0] < native[1] else (long, short)


def native_size(
    paths: Sequence[Path], *, sample: int = 64, context: float = CONTEXT
) -> tuple[int, int]:
    """Median (height, width) of an evenly spaced sample of files, from their headers alone; pixels.

    Args:
        paths: image files.
        sample: how many files are examined.
        context: side of the square around a box, see `PreprocessSpec`.

    Raises:
        DataError: none of the sampled files has a readable header.
    """
    sizes, reason = [], "no files"
    for path in (paths[i] for i in evenly_spaced(len(paths), sample)):
        try:
            with open_header(path) as (stream, part):
                form = stored_form(stream, part, context)
            sizes.append((form["height"], form["width"]))
        except DataError as error:
            reason = f"{path}: {error}"
    return _median_size(sizes, reason)


def evenly_spaced(total: int, sample: int) -> list[int]:
    """At most `sample` of `total` positions, from the first to the last."""
    return sorted(set(np.linspace(0, total - 1, min(sample, total)).astype(int).tolist()))


def _median_size(sizes: list[tuple[int, int]], reason: str) -> tuple[int, int]:
    if not sizes:
        raise DataError(
            f"None of the sampled images can be read ({reason}), so preprocessing cannot be "
            "chosen. Check the paths and the files."
        )
    height, width = np.median(np.asarray(sizes), axis=0)
    return round(float(height)), round(float(width))
