"""Checks files: unreadable, repeated and flat images, different sizes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from recame.data.cache import BrokenImage
from recame.data.decode import losses
from recame.data.listing import KINDS, Unused, walk_images
from recame.inspection.check import Block, Check, Section, SetFinding
from recame.inspection.figures import calm
from recame.names import by_number, counted
from recame.pages.render import BLUE, GREY, LINE, ORANGE, figure_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Images whose pixels have a smaller standard deviation (of [0, 1]) show almost nothing.
FLAT = 0.01
_BROKEN_SHARE = 0.05
#: Sizes of files that a finding names.
_SIZES_NAMED = 4


_LOST = {
    "clipped": (
        "Images are brighter than white",
        "Values above those of the other images, or outside data.float_range, are clipped.",
        "Bring all images to one range of values.",
    ),
    "near black": (
        "Images have fewer bits than the others",
        "Their values fill only the darkest part of the range: they look nearly black to a model.",
        "Bring all images to one range of values, or set data.bit_depth.",
    ),
    "colour": (
        "Coloured images become grey",
        "The model sees only their grey values.",
        "Set data.channels=3 if colour matters.",
    ),
    "pages": (
        "Files have more than one page",
        "Only the first page of each is used.",
        "To use the other pages, set data.pages=all, or name them in a table (file.tif#2).",
    ),
}


class Files(Check):
    """Properties of the files.

    Attributes:
        broken: files that cannot be read.
        unused: other files in the folder.
        lost: kind of loss -> number of files that lose it when all are converted to one format.
    """

    place = 6
    of_images = True
    broken: tuple[BrokenImage, ...]
    unused: Unused
    lost: Counter[str]

    def find(self) -> None:
        """Collect what the decoder noted, and list the folder."""
        inspection = self.inspection
        self.broken = () if inspection.cache is None else inspection.cache.broken
        self.unused, self.lost = Unused(), Counter()
        if (folder := Path(inspection.source)).is_dir():
            for _ in walk_images(folder, self.unused):
                pass
        if inspection.cache is not None and inspection.spec is not None:
            for _, facts in inspection.cache.facts:
                self.lost.update(list(losses(facts, inspection.spec)))

    def say(self) -> list[SetFinding]:
        """Unreadable, repeated and flat images; different sizes."""
        inspection, found = self.inspection, []
        if self.broken:
            share, first = len(self.broken) / inspection.audit.num_images, self.broken[0]
            found.append(
                SetFinding(
                    "broken",
                    "bad" if share > _BROKEN_SHARE else "warn",
                    f"{counted(len(self.broken), 'file')} cannot be read",
                    f"{share:.1%} of the rows; the first: {first.path} ({first.reason}).",
                    "Repair or remove them (broken.csv). Training stops above "
                    f"{_BROKEN_SHARE:.0%}, unless data.max_broken_fraction says otherwise.",
                    len(self.broken),
                )
            )
        if len(self.unused):
            maybe = self.unused.maybe_images
            found.append(
                SetFinding(
                    "unused",
                    "warn" if maybe else "note",
                    f"{counted(len(self.unused), 'file')} in the folder "
                    f"{by_number(len(self.unused), 'is', 'are')} not used",
                    self.unused.told().strip(),
                    f"Convert images to one of {KINDS} to use them." if maybe else "",
                    len(self.unused),
                )
            )
        found += [
            SetFinding(f"lost-{kind.replace(' ', '-')}", "warn", *_LOST[kind], count)
            for kind, count in self.lost.items()
        ]
        repeated = inspection.audit.repeated
        if len(repeated):
            verb = by_number(len(repeated), "names", "name")
            conflicts = int(repeated.groupby("path")["label"].nunique().gt(1).sum())
            found.append(
                SetFinding(
                    "repeated",
                    "bad" if conflicts else "warn",
                    f"{counted(len(repeated), 'row')} {verb} an image more than once",
                    f"{counted(repeated['path'].nunique())}, {conflicts:,} of them "
                    "with different labels.",
                    "Keep one row an image.",
                    len(repeated),
                )
            )
        flat = int((inspection.pixels["contrast"] < FLAT).sum()) if len(inspection.pixels) else 0
        if flat:
            found.append(
                SetFinding(
                    "flat",
                    "warn",
                    f"{counted(flat)} {by_number(flat, 'shows', 'show')} almost nothing",
                    f"The standard deviation of the pixels is below {FLAT:.0%} of the range.",
                    "Check the camera's exposure, or the bit depth (data.bit_depth).",
                    flat,
                )
            )
        headers = inspection.headers
        by_size = Counter[tuple[int, int]]()
        if len(headers):
            by_size.update(zip(headers["height"], headers["width"], strict=True))
        sizes = len(by_size)
        depths = sorted(set(headers["bits"])) if sizes else []
        if sizes > 1 or len(depths) > 1:
            found.append(
                SetFinding(
                    "sizes",
                    "note",
                    "Images differ in size or bit depth",
                    f"Height x width: {_told_sizes(by_size)}; {' and '.join(map(str, depths))} bit "
                    f"(from {counted(len(headers), 'header')}).",
                    "All are resized to one size (data.size, data.resize): check that small "
                    "defects stay visible.",
                    sizes,
                )
            )
        return found

    def show(self) -> list[Section]:
        """The unreadable files; the kinds of files, brightness and contrast."""
        spec, headers = self.inspection.spec, self.inspection.headers
        assert spec is not None
        sections = []
        if self.broken:
            columns = [("file", "left"), ("why", "left")]
            listed = [(b.path, b.reason) for b in self.broken[:20]]
            table = Block("table", (columns, listed))
            blocks = [Block("heading", "Files that cannot be read"), table]
            if more := len(self.broken) - len(listed):
                blocks.append(Block("note", f"and {more} more in broken.csv."))
            sections.append(Section("hygiene", "Hygiene", blocks))
        by = ["width", "height", "channels", "bits", "format"]
        kinds = headers.groupby(by).size().sort_values(ascending=False).head(12)
        rows = [
            (
                f"{kind['width']} x {kind['height']}",
                "grey" if kind["channels"] == 1 else "colour",
                f"{kind['bits']} bit",
                str(kind["format"]),
                f"{kind['files']:,}",
            )
            for kind in kinds.rename("files").reset_index().to_dict("records")
        ]
        sides = ("left", "left", "left", "left", "right")
        heads = ("size", "channels", "depth", "format", "files")
        note = (
            f"From {len(headers):,} headers, width x height. Brightness and contrast are measured "
            f"at {spec.width} x {spec.height} pixels; the line marks the median."
        )
        spread = figure_picture(
            spread_figure(self.inspection.pixels), "Histograms of brightness and contrast"
        )
        blocks = [
            Block("note", note),
            Block("table", (list(zip(heads, sides, strict=True)), rows)),
            Block("picture", spread),
        ]
        return [*sections, Section("images", "Images", blocks)]

    def facts(self) -> dict[str, Any]:
        """The unreadable files; how the images were decoded, and their pixels."""
        broken = [vars(item) for item in self.broken[:1000]]
        facts: dict[str, Any] = {"hygiene": {"broken": broken, "num_broken": len(self.broken)}}
        if self.inspection.spec is not None:
            facts["preprocess"] = self.inspection.spec.to_dict()
            pixels = self.inspection.pixels[["brightness", "contrast"]]
            levels = pixels.quantile([0.0, 0.05, 0.5, 0.95, 1.0])
            facts["pixels"] = levels.set_axis([f"q{level:g}" for level in levels.index]).to_dict()
        return facts

    def tables(self) -> dict[str, pd.DataFrame]:
        """The unreadable files."""
        return {"broken": pd.DataFrame([vars(item) for item in self.broken])}


def _told_sizes(by_size: Counter[tuple[int, int]]) -> str:
    """The most frequent sizes of files, and how many others there are."""
    told = [
        f"{height} x {width} ({counted(number, 'file')})"
        for (height, width), number in by_size.most_common(_SIZES_NAMED)
    ]
    if (more := len(by_size) - _SIZES_NAMED) > 0:
        told.append(counted(more, "other size"))
    return ", ".join(told)


def spread_figure(pixels: pd.DataFrame) -> Figure:
    """Histograms of the images' brightness and contrast.

    Args:
        pixels: what `pixel_statistics` returned.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 2.3), layout="constrained")
    panels = figure.subplots(1, 2)
    what = (("brightness", "mean of the pixels", 1.0), ("contrast", "deviation", 0.5))
    for axes, (column, meaning, top) in zip(panels, what, strict=True):
        calm(axes)
        values = pixels[column].to_numpy()
        axes.hist(np.clip(values, 0, top), bins=50, range=(0, top), color=BLUE)
        axes.set_xlabel(f"{column}: {meaning}, of [0, 1]", fontsize=9, color=GREY, loc="left")
        axes.set_yticks([])
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.axvline(float(np.median(values)), color=ORANGE, linewidth=1.2)
    return figure
