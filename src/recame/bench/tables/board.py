"""What a results table says: one board of cells a data set, and the sentences below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.comparison import Comparison
from recame.bench.tables.results import (
    ALL_DATA,
    COLUMNS_OF_PAIRS,
    METRICS,
    mixed_data,
    paired,
    standings,
)
from recame.metrics.registry import BY_NAME

#: Stands before what paired seeds do not tell apart.
LEVEL = "≈"

_HEADS = {name: BY_NAME[name].column for name in METRICS if BY_NAME[name].column}
_READING = (
    "Scores are in %, means over seeds ± standard deviation, with the 95 % t interval of the mean. "
    "Rare classes weigh as much as frequent ones. Bold is the best of its column."
)
_LEVELS = (
    f"{LEVEL} stands where the 95 % t interval of the difference of paired seeds includes 0: not "
    "told apart. Each interval is of one comparison alone: of twenty methods that are equal, one "
    "is expected to seem different."
)
_COSTS = (
    "Costs: random weights, all methods in turn; MACs of one image and one view (products of "
    "convolutions and matrices), all experts; eager inference in batches of 128; memory beyond the "
    "loaded program and images. Minutes are those of the images seen at the measured speed (of the "
    "runs themselves, which may have shared the machine, without such a speed or with a teacher)."
)
_WIDE_SPREAD = 0.1
_WITH_SPREAD = ("balanced_accuracy", "tail_recall")


@dataclass(frozen=True)
class Cell:
    """One entry of a board.

    Attributes:
        text: the value.
        small: what stands behind it in small print, as an interval.
        value: to sort by; NaN where there is none.
        best: whether it is the best of its column.
        level: whether paired seeds do not tell it apart from the best (or, in the column of
            differences, from the reference).
    """

    text: str
    small: str = ""
    value: float = math.nan
    best: bool = False
    level: bool = False


@dataclass(frozen=True)
class Board:
    """The table of one data set and split.

    Attributes:
        data: the data set's name.
        split: of which the numbers are.
        title: as a heading says it.
        heads: of the columns; the first is the method's.
        methods: a name a row, best first.
        rows: a list of cells a row.
        num_scores: columns before those of cost.
        standings: the numbers behind the cells, see `bench.tables.results.standings`; `train_s` is
            reckoned from measured costs where there are any.
    """

    data: str
    split: str
    title: str
    heads: tuple[str, ...]
    methods: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_scores: int
    standings: pd.DataFrame


def boards(comparison: Comparison) -> list[Board]:
    """One board a data set and split that has results, in the plan's order."""
    frame = comparison.shown
    found = []
    for data, entry in comparison.plan.data.items():
        for split in entry.splits:
            table = standings(frame, data, reference=comparison.reference, split=split)
            if len(table):
                found.append(_board(comparison, data, split, table))
    return found


def _board(comparison: Comparison, data: str, split: str, table: pd.DataFrame) -> Board:
    methods, plan = comparison.methods, comparison.plan
    title = plan.data[data].title or data
    heading = title if split == "test" else f"{title}, split {split}"
    shown = [name for name in _HEADS if name in table and table[name].notna().any()]
    names = [str(name) for name in table.index]
    measured = [comparison.cost_rows().get(f"{data}/{name}") for name in names]
    costs_of = [None if methods[n].teacher else m for n, m in zip(names, measured, strict=True)]
    pairs = zip(table.to_dict("records"), costs_of, strict=True)
    table = table.assign(train_s=[_undisturbed_s(row, cost) for row, cost in pairs])
    planned = len(plan.seeds)
    columns: dict[str, list[Cell]] = {
        "method": [Cell(methods[name].title) for name in names],
        "seeds": [
            Cell(f"{n}" if n == planned else f"{n} of {planned}", value=float(n))
            for n in table["n"]
        ],
        **{_HEADS[name]: _score_cells(table, name) for name in shown},
        f"against {methods[comparison.reference].title}": [
            _difference_cell(row) for row in table.to_dict("records")
        ],
    }
    num_scores = len(columns)
    if comparison.is_first_split(data, split):  # a run costs the same on each of its splits
        columns |= _cost_columns(table, measured, plan)
    rows = tuple(zip(*columns.values(), strict=True))
    return Board(data, split, heading, tuple(columns), tuple(names), rows, num_scores, table)


def _score_cells(table: pd.DataFrame, name: str) -> list[Cell]:
    values = table[name]
    best = values.min() if BY_NAME[name].lower_is_better else values.max()
    spread = name in _WITH_SPREAD
    cells = []
    for row in table.to_dict("records"):
        value = row[name]
        text, small = percent(value), ""
        if spread and not math.isnan(row[f"{name}_sd"]):
            text = f"{text} ± {percent(row[f'{name}_sd'])}"
            low, high = max(row[f"{name}_low"], 0.0), min(row[f"{name}_high"], 1.0)
            small = f"{percent(low)}-{percent(high)}"
        is_best = abs(value - best) < 0.5e-3  # the same to the decimal that is shown
        level = spread and not is_best and bool(row[f"level_{name}"]) and not math.isnan(value)
        cells.append(Cell(text, small, float(value), is_best, level))
    return cells


def _difference_cell(row: Mapping[Any, Any]) -> Cell:
    """A difference in percentage points with its interval and the seeds won.

    Args:
        row: `difference, difference_low, difference_high, wins, pairs, told_apart` of
            `standings`.
    """
    value = row["difference"]
    if math.isnan(value):
        return Cell("")
    low, high = row["difference_low"], row["difference_high"]
    if math.isnan(low):
        return Cell(f"{100 * value:+.1f}", "one seed: no interval", float(value), level=True)
    small = f"{100 * low:+.1f} to {100 * high:+.1f}, wins {row['wins']:g} of {row['pairs']:g}"
    return Cell(f"{100 * value:+.1f}", small, float(value), level=not bool(row["told_apart"]))


def _cost_columns(
    table: pd.DataFrame, costs: Sequence[Mapping[str, Any] | None], plan: Plan
) -> dict[str, list[Cell]]:
    """Columns of cost that have a value in some row."""
    measured = (
        ("parameters, M", "parameters", 1e-6, 2),
        ("MACs, M", "macs", 1e-6, 0),
        ("training, images/s", "train_images_per_s", 1.0, 0),
        ("inference, images/s", "inference_images_per_s", 1.0, 0),
        ("peak memory, MiB", "peak_memory_mib", 1.0, 0),
    )
    found = {
        head: [_number_cell((row or {}).get(key), scale, digits) for row in costs]
        for head, key, scale, digits in measured
    }
    of_runs = (
        ("epochs", "epochs", 1.0, 0),
        ("images seen, k", "images_seen", 1e-3, 0),
        ("training, min", "train_s", 1 / 60, 1),
    )
    for head, key, scale, digits in of_runs:
        if key == "train_s" or plan.equal == "time" or (table[key] != table[key].iloc[0]).any():
            found[head] = [_number_cell(value, scale, digits) for value in table[key]]
    return {head: cells for head, cells in found.items() if any(c.text != "-" for c in cells)}


def _undisturbed_s(run: Mapping[Any, Any], costs: Mapping[str, Any] | None) -> float:
    """Seconds of a run's training at the measured speed; as they passed, where there is none."""
    rate = (costs or {}).get("train_images_per_s")
    if costs is None or not rate:
        return float(run["train_s"])
    return float(costs["fixed_s"] + run["images_seen"] / rate)


def _number_cell(value: float | None, scale: float, digits: int) -> Cell:
    """A number in other units, or a dash."""
    if value is None or math.isnan(value):
        return Cell("-")
    return Cell(f"{value * scale:,.{digits}f}", value=float(value))


def percent(value: float) -> str:
    """A share in percent with one decimal.

    Examples:
        >>> percent(0.6237)
        '62.4'
    """
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def pooled_rows(comparison: Comparison) -> list[tuple[str, str, Cell]]:
    """Differences of balanced accuracy to the reference over all data sets, largest first.

    Returns:
        Title, number of pairs of runs, difference; empty with fewer than two data sets.
    """
    rows = paired(comparison.shown, comparison.reference)
    rows = rows[rows["data"] == ALL_DATA].sort_values("difference", ascending=False)
    rows = rows.rename(columns=COLUMNS_OF_PAIRS)
    return [
        (comparison.methods[row["method"]].title, f"{row['pairs']:.0f}", _difference_cell(row))
        for row in rows.to_dict("records")
    ]


def notes(comparison: Comparison) -> list[str]:
    """How the table came about, a sentence each: rule, budget, seeds, splits, machine, versions."""
    frame, methods, plan = comparison.shown, comparison.methods, comparison.plan
    runs = frame.drop_duplicates(["data", "method", "seed"])
    wanted = frame["data"].nunique() * len(methods) * len(plan.seeds)
    finished = "." if len(runs) == wanted else "; methods are compared on the seeds they share."
    splits = ", ".join(f"{data} {_listed(entry.splits)}" for data, entry in plan.data.items())
    versions = [f"{name} {_listed(sorted(set(runs[name])))}" for name in ("recame", "torch")]
    told = [
        _READING,
        _LEVELS,
        _selection(runs, methods),
        _budget(runs, methods, plan),
        f"Seeds: {_listed(plan.seeds)}. Finished: {len(runs)} of {wanted} runs{finished}",
        f"Splits: {splits}.",
        f"Machine: {_machines(runs)}. {', '.join(versions)}.",
        _COSTS,
    ]
    spread = max((row.get("spread", 0.0) for row in comparison.cost_rows().values()), default=0.0)
    if spread > _WIDE_SPREAD:
        told.append(f"The measured speeds differ by up to {spread:.0%} from round to round.")
    told += [
        f"The methods did not all see the same images of {data} under one seed: their differences "
        "are not paired."
        for data in mixed_data(runs)
    ]
    return told


def _selection(runs: pd.DataFrame, methods: Mapping[str, Method]) -> str:
    by_val = runs.loc[runs["keep"].str.startswith("best"), "method"].unique()
    joined = runs.loc[runs["keep"] == "joined", "method"].unique()
    told = "Selection rule: the weights after the last epoch, for all methods"
    if len(by_val):
        told += f" but {_listed([methods[m].title for m in by_val])}, whose phase val chooses"
    if len(joined):
        told += f"; {_listed([methods[m].title for m in joined])} joins an expert of each phase"
    return told + "."


def _budget(runs: pd.DataFrame, methods: Mapping[str, Method], plan: Plan) -> str:
    if plan.equal == "time":
        assert plan.pace is not None
        return (
            f"Budget: equal time. {methods[plan.pace].title} sets it; every other method sees as "
            "many images as its measured speed allows in that time."
        )
    by_data = runs.groupby("data", sort=False)["epochs"].unique()
    epochs = ", ".join(
        f"{_listed([f'{value:.0f}' for value in sorted(values)])} on {data}"
        for data, values in by_data.items()
    )
    return f"Budget: equal epochs, {epochs}."


def _machines(runs: pd.DataFrame) -> str:
    kinds = runs[["processor", "device", "threads"]].drop_duplicates()
    return "; ".join(
        (f"{row.device} with " if row.device != "cpu" else "")
        + f"{row.processor}, {row.threads:g} thread{'s' * (row.threads != 1)} a run"
        for row in kinds.itertuples()
    )


def _listed(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def method_notes(methods: Mapping[str, Method]) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Title, name, source and deviations of each method, in the plan's order."""
    return [(m.title, name, m.source, m.deviations) for name, m in methods.items()]
