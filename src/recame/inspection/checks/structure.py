"""Finds the appearance clusters of each class, what they follow, and which classes mix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from recame.contracts import FloatArray, IntArray
from recame.data.audit import category_columns
from recame.inference.projection import principal_components, project_map
from recame.inspection.check import (
    MOST_ROWS,
    Block,
    Check,
    EmbeddedImages,
    Section,
    SetFinding,
    two_digits,
)
from recame.inspection.clusters import (
    class_structure,
    cluster_agreement,
    cluster_classes,
    find_looks,
    mixing,
)
from recame.inspection.figures import clusters_figure, map_figure, mixing_figure
from recame.names import by_number, counted
from recame.pages.render import figure_picture, listed_text

#: Most points on the map.
MOST_MAPPED = 2500
_MOST_SHEETS, _A_SHEET, _MOST_LOOKALIKES = 20, 12, 12


class Structure(Check):
    """Appearance clusters of the embedded images; none without decoded images.

    Attributes:
        num_looks: number of dense appearance clusters in the whole data set.
        dense_share: share of the images that lie in one.
        classes: see `class_structure`.
        agreement: see `cluster_agreement`.
        cluster: (N,) cluster within the class.
        mixing: (C, C) shares of classes among the neighbours.
        map_rows: (M,) positions shown on the map.
        map_points: (M, 2).
    """

    place = 3
    of_images = True
    num_looks: int
    dense_share: float
    classes: pd.DataFrame
    agreement: pd.DataFrame
    cluster: IntArray
    mixing: FloatArray
    map_rows: IntArray
    map_points: FloatArray

    def find(self) -> None:
        """Cluster each class, and place the images on a map."""
        inspection, embedded = self.inspection, self.inspection.embedded
        if embedded is None:
            return
        target, seed = embedded.target, inspection.seed
        with inspection.clock("clustering"):
            looks = find_looks(embedded.looks, seed)
            self.num_looks, self.dense_share = looks.num_looks, looks.dense_share
            self.cluster = cluster_classes(looks, target, seed)
            self.classes = class_structure(
                inspection.names,
                target,
                self.cluster,
                principal_components(embedded.looks, 16),
                embedded.neighbours,
                embedded.counted,
                present=embedded.present,
            )
            part = inspection.table.iloc[embedded.rows]
            self.agreement = cluster_agreement(part, target, self.cluster, category_columns(part))
            self.mixing = mixing(target, embedded.neighbours, len(inspection.names))
        with inspection.clock("drawing the map"):
            shuffled = np.random.default_rng(seed).permutation(len(target))
            self.map_rows = np.sort(shuffled[:MOST_MAPPED])
            self.map_points = project_map(looks.space[self.map_rows], seed)

    def _of_kind(self, kind: str) -> list[str]:
        return list(self.classes[self.classes["kind"] == kind]["class"])

    def say(self) -> list[SetFinding]:
        """Whether only a sample was examined; classes whose images are few in many clusters."""
        embedded, found = self.inspection.embedded, []
        if embedded is None:
            return []
        if len(embedded.rows) < embedded.num_candidates:
            found.append(
                SetFinding(
                    "sampled",
                    "note",
                    f"Clusters, near-duplicates and labels: {counted(len(embedded.rows))} examined",
                    f"Of {self.inspection.audit.num_images:,} images: all of rare classes, a "
                    "sample of frequent ones.",
                )
            )
        scattered, dense = self._of_kind("few in many"), self._of_kind("many in few")
        if scattered:
            verb = by_number(len(scattered), "is", "are")
            text = (
                f"Few images, scattered over many appearances: {listed_text(scattered)}. "
                "Hardly any two images of a class look alike."
            )
            if dense:
                text += f" Many images in few appearances (many in few): {listed_text(dense)}."
            found.append(
                SetFinding(
                    "few-in-many",
                    "note",
                    f"{counted(len(scattered), 'class')} {verb} few in many",
                    text,
                    "Collect images of the scattered classes from more boards and products first; "
                    "more images of the dense clusters add little.",
                    len(scattered),
                )
            )
        return found

    def lead(self) -> str:
        """A sentence for the top of the page: the classes that are hardest to learn."""
        scattered = [] if self.inspection.embedded is None else self._of_kind("few in many")
        told = (
            " Hardest to learn, as their few images are scattered over many appearances: "
            f"{listed_text(scattered, 5)}."
        )
        return told if scattered else ""

    def tiles(self) -> list[dict[str, str]]:
        """How many classes are few in many clusters."""
        scattered, dense = (len(self._of_kind(kind)) for kind in ("few in many", "many in few"))
        meaning = (
            f"{by_number(scattered, 'class', 'classes')} with few images scattered over many "
            f"appearances; {counted(dense, 'class')} with many images in few (many in few)"
        )
        return [{"name": "Few in many", "value": f"{scattered}", "meaning": meaning}]

    def told_agreement(self) -> list[tuple[str, str]]:
        """The columns that the clusters can be compared with, and how much they agree."""
        told = self.agreement.dropna(subset="ami")
        return [(str(c), f"{a:.2f}") for c, a in zip(told["column"], told["ami"], strict=True)]

    def show(self) -> list[Section]:
        """Clusters, a map, an image of each cluster, look-alikes of other classes."""
        embedded = self.inspection.embedded
        assert embedded is not None
        map_note = (
            f"{len(self.map_rows):,} images, placed so that neighbours stay neighbours (t-SNE). "
            "Distances between separate groups mean nothing."
        )
        sheets_note = (
            "One image from each of the largest clusters of a class, with the cluster's size over "
            "all splits."
        )
        alike = self._lookalikes(embedded)
        none = Block("text", "No image has its nearest neighbour in another class.")
        return [
            Section("clusters", "Clusters within classes", self._clusters(embedded), "Clusters"),
            Section("map", "Map", [Block("note", map_note), Block("maps", self._maps(embedded))]),
            Section(
                "sheets",
                "Contact sheets",
                [Block("note", sheets_note), Block("sheets", self._sheets(embedded))],
            ),
            Section(
                "lookalikes",
                "Nearest look-alikes of other classes",
                [Block("cards", alike) if alike else none],
                "Look-alikes",
            ),
        ]

    def _clusters(self, embedded: EmbeddedImages) -> list[Block]:
        text = "The images form one continuous cloud without separate clusters."
        if self.num_looks:
            text = (
                f"{round(100 * self.dense_share)} % of the images lie in {self.num_looks} dense "
                "appearance clusters"
            )
            if self.dense_share < 0.5:
                text += (
                    ": most images form a continuum, so read the number of clusters as a measure "
                    "of spread, not as a count"
                )
            text += "."
        if told := ", ".join(f"{column} (AMI {ami})" for column, ami in self.told_agreement()):
            text += (
                f" Within classes, the clusters agree with {told}; 1: the same division, 0: chance."
            )
        legend = (
            "Each piece of a bar is a cluster, largest first (grey: the smaller clusters "
            "together); orange: few in many (few images scattered over many appearances). "
            "Effective number = exp(entropy of the shares), "
            f"counted on {embedded.basis}. Features of {embedded.source}."
        )
        heads = ("images", "clusters", "effective", "images each", "alone", "diversity")
        columns = [("class", "left"), *((head, "right") for head in (*heads, "similarity"))]
        rows = [_class_row(r) for r in self.classes.head(MOST_ROWS).to_dict("records")]
        columns_note = (
            "Images each: images per effective cluster; many in few: 10 or more, few in many: at "
            "most 4. Alone: share of images alone in their cluster. Diversity: mean squared "
            "distance within the class / that within the whole data set. Similarity: share of "
            "other classes among the 10 nearest neighbours / the share expected by chance (1: as "
            "if the classes did not exist)."
        )
        bars = figure_picture(
            clusters_figure(self.classes), "The clusters of each class, as shares"
        )
        blocks = [
            Block("text", text),
            Block("picture", bars),
            Block("note", legend),
            Block("table", ([*columns, ("kind", "left")], rows)),
            Block("note", columns_note),
        ]
        if len(self.inspection.names) > 1:
            note = (
                "Row: a class; columns: the classes of the ten nearest neighbours of its images, "
                "in percent. A classifier has to separate the classes off the diagonal."
            )
            figure = mixing_figure(self.inspection.names, self.mixing)
            blocks += [
                Block("heading", "Classes of the nearest neighbours"),
                Block("note", note),
                Block("picture", figure_picture(figure, "Classes of the nearest neighbours")),
            ]
        return blocks

    def _maps(self, embedded: EmbeddedImages) -> list[tuple[str, Any]]:
        columns = ["label", self.inspection.audit.product_column, "split"]
        part = self.inspection.table.iloc[embedded.rows[self.map_rows]]
        shown = [c for c in columns if c in part and len(part[c].unique()) > 1] or ["label"]
        maps = []
        for column in shown:
            title = "class" if column == "label" else column
            figure = map_figure(self.map_points, part[column])
            alt = f"Map of the images coloured by {title}"
            maps.append((title, figure_picture(figure, alt, vector=False, dpi=130)))
        return maps

    def _sheets(self, embedded: EmbeddedImages) -> list[dict[str, Any]]:
        """For each class, the most central image of each of its largest clusters."""
        # The most central image is most often a neighbour of others in its cluster.
        sheets = []
        for c, name in enumerate(self.inspection.names[:_MOST_SHEETS]):
            of_class = np.where(embedded.target == c, self.cluster, -1)
            num_clusters, pictures = int(of_class.max()) + 1, []
            for cluster in range(min(num_clusters, _A_SHEET)):
                member = np.flatnonzero(of_class == cluster)
                near = embedded.neighbours[member].ravel()
                votes = np.bincount(near, minlength=len(embedded.rows))[member]
                row = int(embedded.rows[member[votes.argmax()]])
                pictures.append(self.inspection.thumbnail(row, counted(len(member))))
            remark = counted(num_clusters, "cluster")
            if num_clusters > _A_SHEET:
                remark += f", the largest {_A_SHEET} shown"
            if pictures:
                sheets.append({"name": name, "remark": remark, "pictures": pictures})
        return sheets

    def _lookalikes(self, embedded: EmbeddedImages) -> list[dict[str, Any]]:
        """For each class, rare ones first, an image whose nearest neighbour is of another class."""
        names, target = self.inspection.names, embedded.target
        if not embedded.neighbours.shape[1] or len(names) < 2:
            return []
        nearest, cards = embedded.neighbours[:, 0], []
        differs = np.flatnonzero(target != target[nearest])
        for c in np.unique(target[differs])[::-1][:_MOST_LOOKALIKES]:
            own = differs[target[differs] == c]
            others = target[nearest[own]]
            usual = np.bincount(others).argmax()
            alike = own[others == usual]
            pictures = [
                self.inspection.thumbnail(int(embedded.rows[place]), names[target[place]])
                for place in (alike[0], nearest[alike[0]])
            ]
            text = (
                f"{len(own):,} of {counted(int((target == c).sum()))} of {names[c]} are most like "
                f"an image of another class, {len(alike):,} of them like {names[usual]}."
            )
            cards.append({"text": text, "pictures": pictures})
        return cards

    def facts(self) -> dict[str, Any]:
        """The embedded images, and the clusters of the classes."""
        embedded = self.inspection.embedded
        if embedded is None:
            return {"structure": None}
        return {
            "structure": {
                "embedded_images": len(embedded.rows),
                "embedded_by": embedded.source,
                "dense_looks": self.num_looks,
                "dense_share": self.dense_share,
                "counted_on": embedded.basis,
                "classes": self.classes,
                "agreement": self.agreement,
            }
        }

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every embedded image with its cluster."""
        embedded = self.inspection.embedded
        if embedded is None:
            return {"clusters": pd.DataFrame()}
        part = self.inspection.table.iloc[embedded.rows]
        columns = ("image", "label", "split", self.inspection.audit.product_column)
        kept = [column for column in columns if column in part]
        return {"clusters": part[kept].assign(cluster=self.cluster + 1)}


def _class_row(row: dict[Any, Any]) -> list[str]:
    known = row["images"] > 0
    return [
        str(row["class"]),
        f"{row['images']:,}",
        f"{row['clusters']:,}" if known else "-",
        f"{row['effective']:.1f}" if known else "-",
        f"{row['images_per_cluster']:,.1f}" if known else "-",
        *(two_digits(row[name]) for name in ("singletons", "diversity", "similarity")),
        str(row["kind"]),
    ]
