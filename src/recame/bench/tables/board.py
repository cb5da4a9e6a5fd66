"""The content of a results table: one board of cells for each data set, and the notes below it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from recame.bench.plan.data_entry import DataEntry
from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.contest import Contest
from recame.bench.tables.results import (
    ALL_DATA,
    COLUMNS_OF_PAIRS,
    METRICS,
    TEST_ERROR,
    mixed_data,
    paired,
    standings,
)
from recame.datasets.registry import PUBLIC_SETS
from recame.metrics.registry import BY_NAME

#: Marks a value that is not distinguishable from the best, or from the reference.
LEVEL = "≈"

_READING = (
    "Scores are in %: means over seeds ± standard deviation, with the 95 % t interval of the mean. "
    "Rare classes weigh as much as frequent ones. Bold is the best of its column."
)
_LEVELS = (
    f"{LEVEL} marks a method that may be the best of its column, by Hsu's intervals against the "
    "best of the others (simultaneous, 95 % for all rows together). In the column of differences "
    "it marks a 95 % t interval that includes 0; each such interval stands for one comparison "
    "alone. Rows of one seed have no interval and no mark."
)
_POOLED = (
    "All comparisons of a table use one error, pooled over its rows: the standard deviation of a "
    "method is modelled as its share of errors times a common factor. If the seeds see different "
    "images, the mean effect of each seed is removed first; if they see the same images, it is "
    "not."
)
_TEST_ERROR = (
    "other images, ±: the standard error of a run's balanced accuracy over other images of the "
    "split; whole {groups} are resampled where they are known. All methods are evaluated on the "
    "same images, so this error moves all rows together"
)
_SAME_IMAGES = ", and more seeds do not make it smaller."
_OWN_IMAGES = "; each seed has test images of its own, so that more seeds make it smaller."
_MINUTES = "Minutes are those of the runs, which may have shared the machine: they compare nothing."
_COSTS = (
    "Costs are measured with random weights, the methods in turn: MACs of one image without "
    "test-time augmentation, for all experts (convolutions and matrix products); eager inference "
    "in batches of 128; memory beyond the loaded program and images. Minutes are computed from the "
    "number of images seen and the measured speed. Without a measured speed, or with a teacher, "
    "they are the minutes of the runs, which may have shared the machine."
)

#: Columns of costs: heading, name of the number, factor to its unit, decimals.
_COST_COLUMNS = (
    ("parameters, M", "parameters", 1e-6, 2),
    ("MACs, M", "macs", 1e-6, 0),
    ("training, images/s", "train_images_per_s", 1.0, 0),
    ("inference, images/s", "inference_images_per_s", 1.0, 0),
    ("peak memory, MiB", "peak_memory_mib", 1.0, 0),
    ("epochs", "epochs", 1.0, 0),
    ("images seen, k", "images_seen", 1e-3, 0),
    ("training, min", "train_s", 1 / 60, 1),
)
_MEASURED = [*(name for _, name, *_ in _COST_COLUMNS[:5]), "fixed_s"]


@dataclass(frozen=True)
class Cell:
    """One entry of a board.

    Attributes:
        text: the value.
        small: small print after the value, such as an interval.
        value: number to sort by; NaN if there is none.
        best: whether it is the best of its column.
        level: whether it is not distinguishable from the best (in the column of differences: from
            the reference).
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
        split: the split of the numbers.
        title: for headings.
        heads: of the columns; the first is the method's.
        methods: one name for each row, best first.
        rows: one tuple of cells for each row.
        num_scores: columns before those of cost.
        standings: the numbers behind the cells, see `bench.tables.results.standings`, and the
            measured costs. `train_s` is computed from these where they are known.
    """

    data: str
    split: str
    title: str
    heads: tuple[str, ...]
    methods: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_scores: int
    standings: pd.DataFrame


def boards(contest: Contest) -> list[Board]:
    """One board for each data set and split that has results, in the plan's order."""
    return [
        _board(contest, data, split, table)
        for data, entry in contest.plan.data.items()
        for split in entry.splits
        if len(table := standings(contest.shown, data, contest.reference, split))
    ]


def _board(contest: Contest, data: str, split: str, table: pd.DataFrame) -> Board:
    methods, plan = contest.methods, contest.plan
    title = plan.data[data].title or data
    names = [str(name) for name in table.index]
    table = _with_costs(table, contest, data)
    rows, planned = table.to_dict("records"), len(plan.seeds)
    columns: dict[str, list[Cell]] = {
        "method": [Cell(methods[name].title) for name in names],
        "seeds": [
            Cell(f"{n}" if n == planned else f"{n} of {planned}", value=float(n))
            for n in table["n"]
        ],
        **{
            BY_NAME[name].column: _score_cells(table, name)
            for name in METRICS
            if BY_NAME[name].column and name in table and table[name].notna().any()
            if name != "few_recall" or not table[name].equals(table["tail_recall"])
        },
        f"against {methods[contest.reference].title}": [_difference_cell(row) for row in rows],
    }
    if "tail_difference" in table and table["tail_difference"].notna().any():
        columns["tail, against it"] = [_tail_cell(row) for row in rows]
    for head, prefix in (
        ("against the best of the others", "best"),
        ("tail, against the best of the others", "tail_best"),
    ):
        if table[f"{prefix}_distance"].notna().any():
            columns[head] = [_best_cell(row, prefix) for row in rows]
    if TEST_ERROR in table:
        columns["other images, ±"] = [Cell(percent(v), value=v) for v in table[TEST_ERROR]]
    num_scores = len(columns)
    if contest.is_first_split(data, split):  # a run costs the same on each of its splits
        columns |= _cost_columns(table, plan)
    return Board(
        data,
        split,
        title if split == "test" else f"{title}, split {split}",
        tuple(columns),
        tuple(names),
        tuple(zip(*columns.values(), strict=True)),
        num_scores,
        table,
    )


def _with_costs(table: pd.DataFrame, contest: Contest, data: str) -> pd.DataFrame:
    """Add the measured costs; compute training seconds from the measured speed, where known."""
    measured = [contest.cost_rows().get(f"{data}/{name}", {}) for name in table.index]
    costs = pd.DataFrame(measured, table.index).reindex(columns=_MEASURED).astype(np.float64)
    train_s = costs["fixed_s"] + table["images_seen"] / costs["train_images_per_s"]
    taught = np.array([contest.methods[name].teacher is not None for name in table.index])
    return table.assign(train_s=train_s.mask(taught).fillna(table["train_s"])).join(costs)


def _score_cells(table: pd.DataFrame, name: str) -> list[Cell]:
    best = table[name].min() if BY_NAME[name].lower_is_better else table[name].max()
    spread = f"level_{name}" in table
    cells = []
    for row in table.to_dict("records"):
        value, sd = float(row[name]), row[f"{name}_sd"]
        text, small = percent(value), ""
        if spread and not math.isnan(sd):
            text = f"{text} ± {percent(sd)}"
            low, high = max(row[f"{name}_low"], 0.0), min(row[f"{name}_high"], 1.0)
            small = f"{percent(low)}-{percent(high)}"
        is_best = abs(value - best) < 0.5e-3  # the same to the decimal that is shown
        level = spread and not is_best and bool(row[f"level_{name}"]) and not math.isnan(value)
        cells.append(Cell(text, small, value, is_best, level))
    return cells


def _difference_cell(row: Mapping[Any, Any]) -> Cell:
    """A difference in percentage points with its interval and the seeds won."""
    value, low, high = (row[f"difference{end}"] for end in ("", "_low", "_high"))
    if math.isnan(value):
        return Cell("")
    if math.isnan(low):
        return Cell(f"{100 * value:+.1f}", "one seed: no interval", float(value))
    small = f"{100 * low:+.1f} to {100 * high:+.1f}, wins {row['wins']:g} of {row['pairs']:g}"
    return Cell(f"{100 * value:+.1f}", small, float(value), level=not row["told_apart"])


def _tail_cell(row: Mapping[Any, Any]) -> Cell:
    """A difference of tail recall in percentage points with its interval."""
    value, low, high = (row[f"tail_{name}"] for name in ("difference", "low", "high"))
    if math.isnan(value):
        return Cell("")
    small = f"{100 * low:+.1f} to {100 * high:+.1f}"
    return Cell(f"{100 * value:+.1f}", small, float(value), level=low <= 0 <= high)


def _best_cell(row: Mapping[Any, Any], prefix: str) -> Cell:
    """The distance to the best of the others in points, with its constrained interval."""
    value, low, high = (row[f"{prefix}_{name}"] for name in ("distance", "low", "high"))
    if math.isnan(value):
        return Cell("", "one seed" if row["n"] < 2 else "")
    ends = ("0" if end == 0 else f"{100 * end:+.1f}" for end in (low, high))
    return Cell(f"{100 * value:+.1f}", " to ".join(ends), float(value))


def _cost_columns(table: pd.DataFrame, plan: Plan) -> dict[str, list[Cell]]:
    """Columns of cost that have a value in some row; without a budget that is equal for all."""
    equal = {n for n in ("epochs", "images_seen") if (table[n] == table[n].iloc[0]).all()}
    return {
        head: [
            Cell("-") if math.isnan(value) else Cell(f"{value * unit:,.{digits}f}", value=value)
            for value in table[name]
        ]
        for head, name, unit, digits in _COST_COLUMNS
        if table[name].notna().any() and (plan.equal == "time" or name not in equal)
    }


def percent(value: float) -> str:
    """A share in percent with one decimal.

    Examples:
        >>> percent(0.6237)
        '62.4'
    """
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def pooled_rows(contest: Contest) -> list[tuple[str, str, Cell]]:
    """Differences of balanced accuracy to the reference over all data sets, largest first.

    A set that repeats another one under other settings (`of`) is not counted again.

    Returns:
        Title, number of pairs of runs, difference; empty with fewer than two data sets.
    """
    own = [name for name, entry in contest.plan.data.items() if entry.of is None]
    frame = contest.shown
    rows = paired(frame[frame["data"].isin(own)], contest.reference)
    rows = rows.rename(columns=COLUMNS_OF_PAIRS)
    rows = rows[rows["data"] == ALL_DATA].sort_values("difference", ascending=False)
    return [
        (contest.methods[row["method"]].title, f"{row['pairs']:.0f}", _difference_cell(row))
        for row in rows.to_dict("records")
    ]


def notes(contest: Contest) -> list[str]:
    """Notes on the protocol: selection rule, budget, seeds, splits, machine, versions."""
    frame, methods, plan = contest.shown, contest.methods, contest.plan
    runs = frame.drop_duplicates(["data", "method", "seed"])
    shown = [plan.methods_on(data, methods) for data in frame["data"].unique()]
    wanted = sum(map(len, shown)) * len(plan.seeds)
    finished = "." if len(runs) == wanted else "; methods are compared on the seeds they share."
    splits = ", ".join(f"{data} {listed(entry.splits)}" for data, entry in plan.data.items())
    versions = ", ".join(f"{n} {listed(sorted(set(runs[n])))}" for n in ("recame", "torch"))
    spread = max((row.get("spread", 0.0) for row in contest.cost_rows().values()), default=0.0)
    differs = f"The measured speeds differ by up to {spread:.0%} from round to round."
    return [
        _READING,
        _LEVELS,
        _POOLED,
        *(
            [_TEST_ERROR.format(groups=listed(_groups(plan))) + _over_seeds(plan)]
            if TEST_ERROR in frame and frame[TEST_ERROR].notna().any()
            else []
        ),
        _selection(runs, methods),
        _budget(runs, methods, plan),
        f"Seeds: {listed(plan.seeds)}. Finished: {len(runs)} of {wanted} runs{finished}",
        f"Splits: {splits}.",
        *(_groupings(plan, frame) if TEST_ERROR in frame else []),
        *_tuning(plan),
        *(_blocks(data, entry) for data, entry in plan.data.items() if entry.data_seed == "block"),
        f"Machine: {_machines(runs)}. {versions}.",
        _COSTS if contest.cost_rows() else _MINUTES,
        *([differs] if spread > 0.1 else []),
        *(
            f"The methods did not all see the same images of {data} under one seed, so their "
            "differences are not paired."
            for data in mixed_data(runs)
        ),
    ]


def _over_seeds(plan: Plan) -> str:
    """Whether more seeds bring other test images, as the end of a sentence."""
    drawn = all(
        entry.data_seed == "block"
        and not getattr(PUBLIC_SETS.get(entry.builder or ""), "group", "")
        for entry in plan.data.values()
    )
    return _OWN_IMAGES if drawn else _SAME_IMAGES


def _selection(runs: pd.DataFrame, methods: Mapping[str, Method]) -> str:
    by_val = runs.loc[runs["keep"].str.startswith("best"), "method"].unique()
    joined = runs.loc[runs["keep"] == "joined", "method"].unique()
    told = "Selection rule: the weights after the last epoch, for all methods"
    if len(by_val):
        told += f" but {listed([methods[m].title for m in by_val])}, whose phase val chooses"
    if len(joined):
        named = listed([methods[m].title for m in joined])
        told += f"; for {named}, an ensemble of one expert from each phase"
    return told + "."


def _groupings(plan: Plan, frame: pd.DataFrame) -> list[str]:
    """The definition of many, medium and few on sets that have published groups.

    Runs of earlier versions used the common groups, and lack the error over test images.
    """
    told = []
    for name, entry in plan.data.items():
        known = PUBLIC_SETS.get(entry.builder or "")
        if known is None or known.cutoffs is None:
            continue
        as_published = frame.loc[frame["data"] == name, TEST_ERROR].notna()
        if as_published.all():
            _, many, least = known.cutoffs
            told.append(
                f"On {name}, the groups are as published: many are classes above {many:,} training "
                f"images, medium {least + 1} to {many:,}, few those below. The tail is defined as "
                "on all sets."
            )
        elif as_published.any():
            told.append(
                f"The runs on {name} are of two versions, which group the classes differently."
            )
    return told


def _groups(plan: Plan) -> list[str]:
    known = (PUBLIC_SETS.get(entry.builder or "") for entry in plan.data.values())
    told = dict.fromkeys(f"{one.group}s" for one in known if one and one.group)
    return list(told) or ["groups"]


def _blocks(data: str, entry: DataEntry) -> str:
    """How the images of a set differ from seed to seed."""
    known = PUBLIC_SETS.get(entry.builder or "")
    if known is None or not known.group:
        return f"The images of {data} are generated anew for each seed, the same for all methods."
    return (
        f"The {known.group}s of the training images of {data} are resampled with replacement for "
        "each seed, the same for all methods; the other splits stay the same."
    )


def _tuning(plan: Plan) -> list[str]:
    """How the methods' settings were chosen: by a search or not."""
    if plan.search is not None:
        told = (
            f"A search: each method at {plan.search.trials} settings, its own first and then drawn "
            "ones, evaluated on `val` alone. `tuned.yaml` holds the best ones. Their scores here "
            "are too good, because the best of many was chosen by them: compare methods by a plan "
            "that reads that file, on other seeds."
        )
    elif plan.tuned is not None:
        own = [entry.name or entry.method for entry in plan.methods if not entry.tuned]
        told = (
            "Settings: for each method the best of the same number of tried settings, from "
            f"`{plan.tuned.as_posix()}`"
        ) + (f"; not tuned: {listed(own)}." if own else ".")
    else:
        told = "Settings: each method's own; this plan made no search for better ones."
    return [told]


def _budget(runs: pd.DataFrame, methods: Mapping[str, Method], plan: Plan) -> str:
    if plan.equal == "time":
        assert plan.pace is not None
        return (
            f"Budget: equal time. {methods[plan.pace].title} sets the time; every other method "
            "sees as many images as its measured speed allows in it."
        )
    by_data = runs.groupby("data", sort=False)["epochs"].unique()
    epochs = ", ".join(
        f"{listed([f'{value:.0f}' for value in sorted(values)])} on {data}"
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


def listed(values: Sequence[Any]) -> str:
    """Join values for a sentence: `0, 1 and 2`."""
    *others, last = map(str, values)
    return f"{', '.join(others)} and {last}" if others else last


def method_notes(methods: Mapping[str, Method]) -> list[tuple[str, str, str, tuple[str, ...]]]:
    """Title, name, source and deviations of each method, in the plan's order."""
    return [(m.title, name, m.source, m.deviations) for name, m in methods.items()]
