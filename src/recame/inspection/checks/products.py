"""Counts the images of each class on each product."""

from __future__ import annotations

from typing import Any

import numpy as np

from recame.inspection.check import MOST_ROWS, Block, Check, Section, SetFinding
from recame.names import by_number, counted

_MOST_COLUMNS = 24
#: If there are more class-product pairs, the JSON holds only the first ones.
_MOST_CELLS = 20_000


class Products(Check):
    """Images of each class on each product."""

    place = 2

    def say(self) -> list[SetFinding]:
        """A missing product column, or class-product pairs without an image."""
        audit = self.inspection.audit
        if audit.products is None:
            name, there = audit.product_column, audit.columns["column"].tolist()
            what = f"Column {name!r} is empty" if name in there else f"There is no column {name!r}"
            text = f"{what}, so no figures are given for each product."
            hint = "If another column names the products: --set data.product_column=NAME."
            return [SetFinding("no-products", "note", "No product column", text, hint)]
        empty = audit.num_empty_cells
        known = (audit.products > 0).sum(axis=1)
        cells = SetFinding(
            "cells",
            "note",
            f"{empty:,} of {audit.products.size:,} class-product pairs "
            f"{by_number(empty, 'has', 'have')} no image",
            f"{known.idxmin()} has images from only {known.min()} of "
            f"{counted(audit.products.shape[1], 'product')}.",
            "Expect more errors there: the model has not seen these classes on these products.",
            empty,
        )
        return [cells] if empty else []

    def tiles(self) -> list[dict[str, str]]:
        """How many products."""
        audit = self.inspection.audit
        if audit.products is None:
            return []
        empty, value = audit.num_empty_cells / audit.products.size, f"{audit.products.shape[1]:,}"
        known = f"{empty:.0%} of class-product pairs have no image"
        meaning = known if empty else "every class has images from every product"
        return [{"name": "Products", "value": value, "meaning": meaning}]

    def show(self) -> list[Section]:
        """A table of counts, coloured."""
        audit, products = self.inspection.audit, self.inspection.audit.products
        if products is None:
            return []
        shown = products.iloc[:MOST_ROWS, :_MOST_COLUMNS]
        top = np.log1p(max(int(shown.to_numpy().max()), 1))
        rows = [
            (name, [(int(n), round(float(np.log1p(n) / top), 2)) for n in counts])
            for name, counts in zip(shown.index, shown.to_numpy(), strict=True)
        ]
        text = (
            f"{audit.num_empty_cells:,} of {products.size:,} class-product pairs "
            f"{by_number(audit.num_empty_cells, 'has', 'have')} no image (hatched)."
        )
        hidden = np.subtract(products.shape, shown.shape)
        more = Block(
            "note", f"Not shown: {counted(hidden[0], 'class')}, {counted(hidden[1], 'product')}."
        )
        heat = Block("heat", ([str(head) for head in shown.columns], rows))
        blocks = [Block("text", text), *([more] if hidden.any() else []), heat]
        return [Section("products", "Classes on products", blocks, "Products")]

    def facts(self) -> dict[str, Any]:
        """The table of counts; of a very large one the first rows and columns."""
        audit, products = self.inspection.audit, self.inspection.audit.products
        if products is None:
            return {"products": None}
        # `all_names` and `all_classes` hold the full numbers.
        shown = products.iloc[:200, :100] if products.size > _MOST_CELLS else products
        return {
            "products": {
                "column": audit.product_column,
                "names": [str(name) for name in shown.columns],
                "classes": [str(name) for name in shown.index],
                "counts": shown.to_numpy().tolist(),
                "empty_cells": audit.num_empty_cells,
                "all_names": products.shape[1],
                "all_classes": products.shape[0],
            }
        }
