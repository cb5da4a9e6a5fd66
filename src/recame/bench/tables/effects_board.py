"""Tables and sentences about the effects of a factorial plan."""

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
    f"{LEVEL} marks effects whose Holm-adjusted p (else p) is {ALPHA} or more: not significant. "
    "This does not show that there is no effect."
)


@dataclass(frozen=True)
class EffectsBoard:
    """The effects on one metric, as a table shows them.

    Attributes:
        title: the metric's.
        finding: which parts have a significant effect, in a sentence or two.
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
        anchor: of the section in the page.
        title: the data set's, with the split if it is not `test`.
        boards: one for each endpoint, the primary one first.
    """

    anchor: str
    title: str
    boards: tuple[EffectsBoard, ...]


def effects_sections(contest: Contest) -> list[EffectsSection]:
    """One section for each data set and split with runs; none if the plan is not factorial."""
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
    aliased = () if factorial.resolution is None else ("aliased with",)
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
    """Title of a row of `Effects.table`: the part or parts whose effect it is."""
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
    """Which parts have a significant effect, and how large an effect may have been missed."""
    if not found.blocks:
        return f"No seed has a value for all its {found.runs} runs, so no effect can be estimated."
    parts = found.parts
    if parts["se"].isna().all():
        return "One block does not suffice to estimate the error of these effects: run more seeds."
    better = -1 if BY_NAME[found.metric].lower_is_better else 1
    told = parts["p_holm"] < ALPHA
    title = BY_NAME[found.metric].title
    sentences = []
    for way, sign in (("for the better", better), ("for the worse", -better)):
        rows = parts[told & (sign * parts["estimate"] > 0)].to_dict("records")
        named = [f"{effect_title(r, factorial)} ({100 * r['estimate']:+.1f})" for r in rows]
        if named:
            sentences.append(f"Significant effect on {title}, {way}: {listed(named)}.")
    if not sentences:
        sentences = [f"No part has a significant effect on {title}."]
    if not told.all():
        low, high = (100 * parts.loc[~told, "detectable"].agg(end) for end in ("min", "max"))
        span = f"{high:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
        sentences.append(
            f"A true effect of {span} points would have been found with a probability of "
            f"{POWER:.0%} by a test of it alone; smaller effects may exist."
        )
    return " ".join(sentences)


def effects_notes(contest: Contest) -> list[str]:
    """Notes on the effects: design, aliases, blocks, model, a sentence or two each."""
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
            "The effect of a part is the mean with it minus the mean without it, within blocks, "
            "averaged over the settings of the other parts with equal weight. The effect of a part "
            "within another is taken over the runs that have that other part. If a part has "
            "another within it, its effect is also given without and with that other part; the "
            "effect of the part is the mean of these two. The effect of a pair is how much more "
            "the one part brings with the other than without it. Effects are in points, with the "
            "95 % t interval."
        ),
        (
            "Model: least squares with a term for each block, each part and each pair that the "
            "design can estimate. The standard error comes from the residual mean square, which "
            "contains the variation of effects between blocks and the interactions of three and "
            "more parts."
        ),
        (
            "p belongs to one effect alone; Holm's p is adjusted for the parts of one table. "
            f"{_READING}"
        ),
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
    pairs = ""
    if len(crossed) > 3:
        pairs = f", and each pair with that of the {len(crossed) - 2} others"
    return (
        f"Half of the combinations of {listed(crossed)}, those with I = {' x '.join(crossed)} "
        f"(resolution {_ROMAN[factorial.resolution]}): {runs}{within} Each part is aliased with "
        f"the interaction of the {len(crossed) - 1} others{pairs}: such an effect is the sum of "
        "both."
    )


def _blocks(found: Sequence[Effects]) -> str:
    """Numbers of complete and left-out blocks; equal ones of several tables are said once."""
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
