"""What the tables say of a factorial plan: cells and sentences of its effects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from recame.bench.plan.factorial import Factorial
from recame.bench.tables.board import LEVEL, Cell, listed
from recame.bench.tables.contest import Contest
from recame.bench.tables.effects import ALPHA, POWER, Effects, all_effects
from recame.metrics.registry import BY_NAME

_ROMAN = ("", "", "", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")

_READING = (
    f"{LEVEL} stands where it is {ALPHA} or more (where there is none, where p is): not told apart "
    "from no effect, which does not show that there is none."
)


@dataclass(frozen=True)
class EffectsBoard:
    """The effects on one metric, as a table shows them.

    Attributes:
        title: the metric's.
        finding: which parts are told apart from none, in a sentence or two.
        heads: of the columns.
        parts: rows of factors, then of their simple effects: name, cells.
        pairs: rows of interactions.
        effects: the numbers behind the cells.
    """

    title: str
    finding: str
    heads: tuple[str, ...]
    parts: tuple[tuple[str, tuple[Cell, ...]], ...]
    pairs: tuple[tuple[str, tuple[Cell, ...]], ...]
    effects: Effects


@dataclass(frozen=True)
class EffectsSection:
    """The effects on all endpoints of one data set and split.

    Attributes:
        anchor: of the page.
        title: the data set's, with the split where it is not `test`.
        boards: one an endpoint, the primary first.
    """

    anchor: str
    title: str
    boards: tuple[EffectsBoard, ...]


def effects_sections(contest: Contest) -> list[EffectsSection]:
    """One a data set and split that has runs; none of a plan that is not factorial."""
    plan = contest.plan
    if plan.factorial is None:
        return []
    sections = []
    for (data, split), group in groupby(all_effects(contest), lambda e: (e.data, e.split)):
        title = plan.data[data].title or data
        sections.append(
            EffectsSection(
                f"effects-{data}-{split}",
                title if split == "test" else f"{title}, split {split}",
                tuple(_board(found, plan.factorial) for found in group),
            )
        )
    return sections


def _board(found: Effects, factorial: Factorial) -> EffectsBoard:
    metric = BY_NAME[found.metric]
    aliased = () if factorial.resolution is None else ("not told apart from",)
    return EffectsBoard(
        metric.title,
        _finding(found, factorial),
        ("part", "effect, points", "p", "p, Holm", "detectable, points", *aliased),
        _rows(pd.concat([found.parts, found.simple]), factorial) if found.blocks else (),
        _rows(found.pairs, factorial) if found.blocks else (),
        found,
    )


def _rows(table: pd.DataFrame, factorial: Factorial) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    rows = []
    for row in table.to_dict("records"):
        decisive = row["p"] if math.isnan(row["p_holm"]) else row["p_holm"]
        cells = [
            Cell(effect_title(row, factorial)),
            _effect_cell(row, level=not decisive < ALPHA),
            _p_cell(row["p"]),
            _p_cell(row["p_holm"]),
            _points_cell(row["detectable"]),
        ]
        if factorial.resolution is not None:
            cells.append(Cell(_product(row["aliased"], factorial)))
        rows.append((row["effect"], tuple(cells)))
    return tuple(rows)


def effect_title(row: Mapping[Any, Any], factorial: Factorial) -> str:
    """What a row of `Effects.table` is an effect of, in words."""
    if row["kind"] == "simple":
        factor, word, nested = row["effect"].split()
        return f"{factorial.factor_title(factor)}, {word} {factorial.factor_title(nested)}"
    title = _product(row["effect"], factorial)
    within = row["within"]
    return f"{title} (within {factorial.factor_title(within)})" if within else title


def _product(names: str, factorial: Factorial) -> str:
    """`a:b` in the factors' titles."""
    return " x ".join(factorial.factor_title(name) for name in names.split(":") if name)


def _effect_cell(row: Mapping[Any, Any], *, level: bool) -> Cell:
    value, low, high = (row[name] for name in ("estimate", "low", "high"))
    small = "no interval" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
    return Cell(f"{100 * value:+.1f}", small, float(value), level=level)


def _points_cell(value: float) -> Cell:
    return Cell("-" if math.isnan(value) else f"{100 * value:.1f}", value=value)


def _p_cell(value: float) -> Cell:
    """A p-value with three decimals.

    Examples:
        >>> _p_cell(0.0423).text, _p_cell(1e-6).text
        ('0.042', '< 0.001')
    """
    if math.isnan(value):
        return Cell("-")
    return Cell("< 0.001" if value < 0.001 else f"{value:.3f}", value=float(value))


def _finding(found: Effects, factorial: Factorial) -> str:
    """Which parts are told apart from none, and how large an effect could have been missed."""
    if not found.blocks:
        return f"No seed has a value of all its {found.runs} runs, so no effect can be told."
    parts = found.parts
    if parts["se"].isna().all():
        return "The effects of one block, with nothing left to tell their error: run more seeds."
    better = -1 if BY_NAME[found.metric].lower_is_better else 1
    told = parts["p_holm"] < ALPHA
    title = BY_NAME[found.metric].title
    sentences = []
    for way, sign in (("for the better", better), ("for the worse", -better)):
        rows = parts[told & (sign * parts["estimate"] > 0)].to_dict("records")
        named = [f"{effect_title(r, factorial)} ({100 * r['estimate']:+.1f})" for r in rows]
        if named:
            sentences.append(f"Told apart from no effect on {title}, {way}: {listed(named)}.")
    if not sentences:
        sentences = [f"No part is told apart from no effect on {title}."]
    if not told.all():
        low, high = (100 * parts.loc[~told, "detectable"].agg(end) for end in ("min", "max"))
        span = f"{high:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
        sentences.append(
            f"A true effect of {span} points would have been found with a probability of "
            f"{POWER:.0%} by a test of it alone; smaller ones may be there."
        )
    return " ".join(sentences)


def effects_notes(contest: Contest) -> list[str]:
    """How the effects came about: design, aliases, blocks, model, a sentence or two each."""
    plan = contest.plan
    if plan.factorial is None:
        return []
    factorial, found = plan.factorial, all_effects(contest)
    anew = [name for name, entry in plan.data.items() if entry.data_seed == "block"]
    drawn = f", which also draws the images of {listed(anew)}" if anew else ""
    return [
        _design(factorial),
        f"A block is a seed of the training{drawn}. {_blocks(found)}",
        (
            "An effect is the mean with a part minus the mean without, within blocks and over the "
            "settings of the other parts, each counting alike; of a part within another, over the "
            "runs that have that one. The effect of a part in which another lies is told without "
            "and with that other too, and is the mean of the two. A pair's is by how much more the "
            "one part brings with the other than without. In points, with the 95 % t interval."
        ),
        (
            "Least squares with a term for each block, each part and each pair that the design can "
            "tell. The standard error is of the residual mean square, in which is how effects "
            "differ from block to block, and what three and more parts do together."
        ),
        f"p is of one effect alone; Holm's is adjusted for the parts of one table. {_READING}",
        (
            f"Detectable: the true effect that a two-sided test at {ALPHA:.0%} finds with a "
            f"probability of {POWER:.0%}, from the same standard error."
        ),
    ]


def _design(factorial: Factorial) -> str:
    crossed = [factorial.factor_title(name) for name in factorial.crossed]
    nested = [
        f"{factorial.factor_title(name)} (within {factorial.factor_title(factor.within)})"
        for name, factor in factorial.factors.items()
        if factor.within is not None
    ]
    within = f" Only where the other is on: {listed(nested)}." if nested else ""
    runs = f"{len(factorial.cells())} runs a block."
    if factorial.resolution is None:
        return f"Every combination of {listed(crossed)}: {runs}{within}"
    pairs = f", nor a pair from that of the {len(crossed) - 2} others" if len(crossed) > 3 else ""
    return (
        f"Half of the combinations of {listed(crossed)}, those with I = {' x '.join(crossed)} "
        f"(resolution {_ROMAN[factorial.resolution]}): {runs}{within} Each part cannot be told "
        f"apart from the interaction of the {len(crossed) - 1} others{pairs}: an effect stands for "
        "both together."
    )


def _blocks(found: Sequence[Effects]) -> str:
    """How many blocks count, and what is left out, for each data set, split and metric alike."""
    told: dict[str, list[str]] = {}
    several = len({(one.data, one.split) for one in found}) > 1
    for one in found:
        lacking = [
            f"seed {seed} (lacks {number} of {one.runs} runs)"
            for seed, number in one.lacking.items()
        ]
        left = f"; left out as incomplete: {listed(lacking)}" if lacking else ""
        text = f"{len(one.blocks)} complete block{'s' * (len(one.blocks) != 1)}{left}"
        where = f"{one.data} {one.split}, " if several else ""
        told.setdefault(text, []).append(f"{where}{BY_NAME[one.metric].title}")
    if len(told) == 1:
        return f"{next(iter(told))}."
    return f"{'. '.join(f'Of {listed(names)}: {text}' for text, names in told.items())}."
