"""Checks whether shrinking the images loses details that distinguish the classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recame.config import as_size
from recame.contracts import Array, IntArray, PreprocessSpec
from recame.data.at_sizes import decode_at_sizes
from recame.data.proposal import candidate_sizes
from recame.data.sampling import balanced_sample
from recame.inference.embedding import embed_images
from recame.inference.separability import Judged, accuracy_gain, gain, judge
from recame.inspection.check import Block, Check, EmbeddedImages, Section, SetFinding
from recame.pages.drawing import PIECES_NOTE, side_by_side
from recame.pages.render import image_picture

#: Most images that are examined, and most pixels of all of them at all sizes together.
_MOST_IMAGES, _MOST_PIXELS = 240, 2**23
#: A larger size counts as better from this many standard errors of the paired difference.
_MARGIN = 2.0
#: Number of pictures on the page, and the side of the square whose number of pixels they have at
#: most.
_SHOWN, _SHOWN_SIDE = 6, 256
#: No limit of pixels, as these images were decoded before.
_ANY = 2**40

Size = tuple[int, int]


@dataclass(frozen=True)
class _Tried:
    size: Size
    judged: Judged


class Resolution(Check):
    """Compares the size of the images with larger sizes, up to the images' own.

    Attributes:
        tried: the size and, ascending, larger ones, each with the out-of-sample predictions of a
            classifier on features of the packaged network; empty if nothing is shrunk or there are
            too few images.
        better: position in `tried` of the smallest size that is clearly better, or None.
        pictures: row of the table, pixels of the file, and pixels as a network sees them; rare
            classes first.
    """

    place = 7
    of_images = True
    tried: tuple[_Tried, ...] = ()
    better: int | None = None
    pictures: tuple[tuple[int, Array, Array], ...] = ()

    def find(self) -> None:
        """Evaluate a sample of the images at each size, and keep a few to show."""
        inspection, embedded = self.inspection, self.inspection.embedded
        if embedded is None or inspection.spec is None or not len(inspection.headers):
            return
        with inspection.clock("comparing sizes"):
            spec, native = inspection.spec, self._native()
            sizes = [(spec.height, spec.width), *self._larger(spec, native)]
            most = _MOST_PIXELS // sum(map(math.prod, sizes))
            # The page may lead users to another size, and test images must not choose a size.
            split = inspection.table.get("split", pd.Series("", inspection.table.index))
            usable = np.flatnonzero((split.iloc[embedded.rows] != "test").to_numpy())
            most = min(_MOST_IMAGES, most)
            chosen = usable[balanced_sample(embedded.target[usable], most, inspection.seed)]
            if len(sizes) > 1:
                self._judge(spec, sizes, embedded, chosen)
            frequency = np.bincount(embedded.target)[embedded.target[chosen]]
            rare = np.argsort(frequency, kind="stable")
            self._picture(spec, native, embedded.rows[chosen[rare[:: max(1, len(rare) // _SHOWN)]]])

    def _native(self) -> Size:
        height, width = self.inspection.headers[["height", "width"]].median()
        return round(height), round(width)

    def _larger(self, spec: PreprocessSpec, native: Size) -> list[Size]:
        """One or two sizes above the present one, none above the images' own."""
        if spec.tiles:  # tiles show small details
            return []
        larger = [
            size
            for size in sorted(candidate_sizes(native), key=math.prod)
            if spec.height * spec.width < math.prod(size) <= math.prod(native)
        ]
        return [larger[(len(larger) - 1) // 2], larger[-1]] if len(larger) > 1 else larger

    def _judge(
        self,
        spec: PreprocessSpec,
        sizes: Sequence[Size],
        embedded: EmbeddedImages,
        chosen: IntArray,
    ) -> None:
        paths = self._paths(embedded.rows[chosen])
        decoded = decode_at_sizes(paths, spec, sizes, max_pixels=_ANY)
        target = embedded.target[chosen[decoded.positions]]
        if len(np.unique(target)) < 2:
            return
        tried = []
        for (height, width), images in zip(sizes, decoded.images, strict=True):
            at = replace(spec, height=height, width=width)
            features = embed_images(images, at, side=round(math.sqrt(height * width))).details
            none = features[:0], target[:0]
            judged = judge(features, target, *none, int(target.max()) + 1, enough=1)
            if not len(judged.target):
                return
            tried.append(_Tried((height, width), judged))
        self.tried = tuple(tried)
        for number in range(1, len(tried)):
            better, error = gain(tried[0].judged, tried[number].judged)
            if self.better is None and better > _MARGIN * error:
                self.better = number

    def _picture(self, spec: PreprocessSpec, native: Size, rows: IntArray) -> None:
        shrunk = min(1.0, _SHOWN_SIDE / math.sqrt(math.prod(native)))
        own = max(1, round(native[0] * shrunk)), max(1, round(native[1] * shrunk))
        whole = replace(spec, height=own[0], width=own[1], tiles=0)
        decoded = decode_at_sizes(self._paths(rows[:_SHOWN]), whole, [own], max_pixels=_ANY)
        (filed,) = decoded.images
        shown = rows[decoded.positions]
        assert self.inspection.cache is not None
        cached = self.inspection.table["row"].iloc[shown].to_numpy(np.int64)
        seen = side_by_side(self.inspection.cache.images[cached], spec.pieces, white=spec.scale)
        self.pictures = tuple(
            (int(row), *pair) for row, *pair in zip(shown, filed, seen, strict=True)
        )

    def _paths(self, rows: IntArray) -> list[Path]:
        return [Path(path) for path in self.inspection.table["path"].iloc[rows]]

    def say(self) -> list[SetFinding]:
        """Whether the classes are clearly better separable at a larger size."""
        if not self.tried:
            return []
        native, (first, *_) = self._native(), self.tried
        height, width = first.size
        listed = ", ".join(
            f"{one.judged.accuracy:.2f} at {one.size[0]} x {one.size[1]}" for one in self.tried
        )
        text = (
            f"Files of about {native[0]} x {native[1]} pixels (height x width) are resized to "
            f"{height} x {width}. Balanced accuracy of a classifier on features of the packaged "
            f"network, out of sample on {len(first.judged.target)} images: {listed}."
        )
        if self.better is None:
            title = f"{height} x {width} pixels show the classes as well as more pixels would"
            return [SetFinding("resolution", "good", title, text)]
        better = self.tried[self.better]
        action = (
            f"Train with --size {as_size(better.size)}; or leave data.size at auto and give more "
            "time: recame train tries larger sizes itself, if time is enough to show each image "
            "often enough."
        )
        more, error = accuracy_gain(first.judged, better.judged)
        if more > error:
            title = f"{height} x {width} pixels lose details that distinguish the classes"
            return [SetFinding("resolution", "warn", title, text, action)]
        # Better probabilities of the same answers are only a hint.
        title = f"More than {height} x {width} pixels may distinguish the classes better"
        text = (
            f"{text} At {as_size(better.size)} no more images are classified correctly, but the "
            f"probabilities are better (Brier score {better.judged.mean_loss:.2f} instead of "
            f"{first.judged.mean_loss:.2f})."
        )
        return [SetFinding("resolution", "note", title, text, action)]

    def show(self) -> list[Section]:
        """Images as in their files, beside what a network sees."""
        spec, table = self.inspection.spec, self.inspection.table
        assert spec is not None
        if spec.tiles:
            return [self._pieces(spec)]
        cards = []
        for row, filed, seen in self.pictures:
            name, label = str(table["image"].iloc[row]), str(table["label"].iloc[row])
            told = f"{spec.height} x {spec.width}, as a network sees it"
            pair = [
                image_picture(filed, name, "as in the file", scale=spec.scale),
                image_picture(seen, name, told, scale=spec.scale),
            ]
            cards.append({"text": f"{label}: {name}", "pictures": pair})
        note = (
            "Check that the smallest defect is still visible on the right; a larger --size shows "
            "more, and takes time in proportion to its pixels."
        )
        blocks = [Block("note", note), Block("cards", cards)]
        return [Section("resolution", "As a network sees the images", blocks, "Size")]

    def _pieces(self, spec: PreprocessSpec) -> Section:
        """What a network sees of images with tiles."""
        height, width = spec.piece_size
        note = f"{spec.pieces} pieces of {height} x {width} pixels. {PIECES_NOTE}"
        blocks = [Block("note", note)]
        for row, _, seen in self.pictures:
            name, label = self.inspection.table.loc[:, ["image", "label"]].iloc[row].astype(str)
            picture = image_picture(seen, name, f"{label}: {name}", scale=spec.scale)
            blocks.append(Block("picture", picture))
        return Section("resolution", "As a network sees the images", blocks, "Size")

    def facts(self) -> dict[str, Any]:
        """The figures of each size."""
        return {
            "resolution": [
                {
                    "size": as_size(one.size),
                    "balanced_accuracy": one.judged.accuracy,
                    "loss": one.judged.mean_loss,
                    "images": len(one.judged.target),
                }
                for one in self.tried
            ]
        }
