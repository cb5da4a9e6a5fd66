"""Base class of the checks of a data set, and the inspection that they work on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import pandas as pd

from recame.contracts import BoolArray, FloatArray, IntArray, PreprocessSpec
from recame.data.audit import ManifestAudit
from recame.data.cache import ImageCache
from recame.names import counted
from recame.pages.drawing import side_by_side
from recame.pages.render import Picture, image_picture
from recame.progress import Progress, relabelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Level = Literal["bad", "warn", "note", "good"]
C = TypeVar("C", bound="Check")

#: Most rows of a figure or table on the page; the JSON holds all rows.
MOST_ROWS = 40
_RANK = {"bad": 0, "warn": 1, "note": 2, "good": 3}
_THUMB = 80


@dataclass(frozen=True)
class SetFinding:
    """One finding about a data set.

    Attributes:
        key: short name.
        level: `bad`: makes figures wrong; `warn`: costs quality; `note`: good to know; `good`: no
            fault found.
        title: the finding in a few words.
        text: the details.
        action: what to do; empty if nothing needs to be done.
        count: number of images, classes or groups.
    """

    key: str
    level: Level
    title: str
    text: str
    action: str = ""
    count: int = 0


@dataclass(frozen=True)
class Block:
    """A part of the page.

    Attributes:
        kind: how `inspection.html.j2` draws it: `text`, `note` and `heading` take a text,
            `picture` and `thumbs` one and several pictures, `table` its columns and rows, `cards`
            pairs of pictures with a text, `sheets` pictures of each class, `maps` pictures to
            choose from, `heat` counts on colours, `folded` a summary and the blocks below it.
        content: what is drawn.
    """

    kind: Literal[
        "text", "note", "heading", "picture", "thumbs", "table", "cards", "sheets", "maps", "heat",
        "folded",
    ]  # fmt: skip
    content: Any


@dataclass(frozen=True)
class Section:
    """A section of the page; those of the same key become one.

    Attributes:
        key: its anchor.
        title: its heading; `short` is its name in the contents.
        blocks: what it shows.
        short: empty if the title itself is short.
    """

    key: str
    title: str
    blocks: list[Block]
    short: str = ""


class Clock:
    """Times the steps and passes their progress on."""

    def __init__(self, report: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report

    @contextmanager
    def __call__(self, label: str) -> Iterator[Progress]:
        """Time a step, which is done in the block."""
        start = time.perf_counter()
        yield relabelled(self._report, label)
        self.seconds[label] = round(time.perf_counter() - start, 3)
        self._report(label, 1, 1)


@dataclass(frozen=True)
class EmbeddedImages:
    """The N embedded images: one of each group of exact duplicates, a sample of frequent classes.

    Attributes:
        rows: (N,) rows of the table.
        num_candidates: number of images from which they were drawn.
        source: the network that embedded them.
        looks: (N, P), see `Embedding`.
        details: (N, Q), see `Embedding`.
        components: (N, 64) principal components of the details.
        neighbours: (N, 10) positions (not table rows) of the nearest images.
        target: (N,) index of the class among the manifest's classes.
        basis: the split whose images are counted for the clusters, or "all images".
        counted: (N,) whether the image belongs to the basis.
        present: (C,) images of each class in the basis, embedded or not.
    """

    rows: IntArray
    num_candidates: int
    source: str
    looks: FloatArray
    details: FloatArray
    components: FloatArray
    neighbours: IntArray
    target: IntArray
    basis: str
    counted: BoolArray
    present: IntArray


@dataclass
class Inspection:
    """An inspected data set: its properties, and the checks.

    Attributes:
        source: the data as the user named it.
        table: the manifest; with decoded images also `row` (of the cache; -1: unreadable).
        audit: counts from the manifest.
        seed: seed of every sample.
        clock: times each step.
        headers: properties from the files' headers (a sample); empty without decoding.
        pixels: brightness and contrast of each cached image; empty without decoding.
        spec: how the images were decoded, or None.
        cache: the decoded images, or None.
        corrections: labels that `data.corrections` changed; None if it is not set.
        equal: exact duplicates (images with equal pixels): `group`, `image`, `label`, `split`,
            `bytes_equal` and the numbers of different `labels` and `splits` in the group.
        embedded: vectors of the images, or None without decoding.
        checks: the checks, in the order of `CHECKS`; `inspection[Files]` is one of them.
    """

    source: str
    table: pd.DataFrame
    audit: ManifestAudit
    seed: int
    clock: Clock
    headers: pd.DataFrame = field(default_factory=pd.DataFrame)
    pixels: pd.DataFrame = field(default_factory=pd.DataFrame)
    spec: PreprocessSpec | None = None
    cache: ImageCache | None = None
    corrections: pd.DataFrame | None = None
    equal: pd.DataFrame = field(default_factory=pd.DataFrame)
    embedded: EmbeddedImages | None = None
    checks: list[Check] = field(default_factory=list)

    def __str__(self) -> str:
        """A line about the data set, and the findings, worst first."""
        audit = self.audit
        told = f"{counted(audit.num_images)} of {counted(len(audit.classes), 'class')}"
        lines = [f"{self.source}: {told}"]
        return "\n".join(
            [*lines, *(f"  {found.level:4}  {found.title}" for found in self.findings())]
        )

    def to_frame(self) -> pd.DataFrame:
        """The findings, one row each, worst first: `level, key, title, text, action, count`.

        `audit.classes` is the table of the classes.
        """
        columns = ["level", "key", "title", "text", "action", "count"]
        return pd.DataFrame([vars(found) for found in self.findings()], columns=columns)

    def plot(self) -> Figure:
        """Draw how many images each class has, on a logarithmic axis.

        Returns:
            A new figure; the global state of matplotlib stays unchanged.
        """
        from matplotlib.figure import Figure

        classes = self.audit.classes.iloc[::-1]
        names = [str(name).replace("$", r"\$") for name in classes["class"]]
        figure = Figure(figsize=(6.4, 0.9 + 0.28 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(names, classes["images"], color="#3182bd")
        axes.set_xscale("log")
        axes.set_xlabel("images of each class")
        return figure

    def __getitem__(self, kind: type[C]) -> C:
        """The check of a class, with its results."""
        return next(check for check in self.checks if isinstance(check, kind))

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each step."""
        return self.clock.seconds

    @property
    def names(self) -> list[str]:
        """The classes, most frequent first."""
        return list(self.audit.classes["class"])

    def findings(self) -> list[SetFinding]:
        """The findings of all checks, worst first."""
        found = [finding for check in self.checks for finding in check.say()]
        return sorted(found, key=lambda finding: _RANK[finding.level])

    def thumbnail(self, table_row: int, caption: str = "") -> Picture:
        """An image of the data set, each of its tiles with at most as many pixels as 80 x 80."""
        import cv2

        assert self.cache is not None
        assert self.spec is not None
        row = self.table.iloc[table_row]
        pixels = np.asarray(self.cache.images[int(row["row"])])
        pixels = side_by_side(pixels, self.spec.pieces, white=self.spec.scale)
        height, width = pixels.shape[:2]
        ratio = _THUMB * (self.spec.pieces / (height * width)) ** 0.5
        if ratio < 1:
            size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        return image_picture(pixels, str(row["image"]), caption, scale=self.spec.scale)


class Check:
    """One check of a data set; `checks/` has a file for each, and `CHECKS` a line.

    A check without findings or sections leaves out the method.

    Attributes:
        place: place of its sections and its tile on the page, ascending.
        of_images: whether it has no section and no tile if images are not decoded.
    """

    place: ClassVar[int]
    of_images: ClassVar[bool] = False

    def __init__(self, inspection: Inspection) -> None:
        self.inspection = inspection
        self.find()

    def find(self) -> None:
        """Do the check and keep the results as attributes; results of earlier checks are there."""

    def say(self) -> list[SetFinding]:
        """The findings, in sentences, with what to do."""
        return []

    def tiles(self) -> list[dict[str, str]]:
        """Headline numbers: `name`, `value`, `meaning` and, if coloured, `tone`."""
        return []

    def show(self) -> list[Section]:
        """The sections of this check on the page."""
        return []

    def facts(self) -> dict[str, Any]:
        """The part of this check in `inspection.json`; dictionaries under one key are merged."""
        return {}

    def tables(self) -> dict[str, pd.DataFrame]:
        """CSV files to write, by name; tables without a row are left out."""
        return {}


def two_digits(value: float | None) -> str:
    """A share with two digits, or a dash if there is none."""
    return "-" if value is None or pd.isna(value) else f"{value:.2f}"
