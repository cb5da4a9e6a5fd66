"""Tables of `contest.py`: is the default first, within the spread, or behind, on each set and time?

    python benchmarks/defaults/contest_table.py [RESULTS] [--plan plan.yaml]

Reads the JSON files of runs and writes `table.md` and `results.csv` beside them.

The difference of the default to another recipe is the mean over the seeds that both have, of
balanced accuracy on the same images. Its 95 % interval holds two kinds of chance: other test images
(`standard_error` of the paired difference, the mean over the seeds) and other seeds (the standard
deviation of the seeds' differences / sqrt(seeds); with one seed it is not known, and said so).
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from contest import OVERKILL
from recipes import RECIPES

from recame.durations import parse_duration
from recame.metrics.statistics import standard_error
from recame.pages.render import markdown_table

HERE = Path(__file__).parent
#: Drawn test sets of an interval of escapes.
RESAMPLES = 1000
#: Half a 95 % interval, in standard errors; of few seeds it is Student's.
Z, STUDENT = 1.96, {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "false_calls": "false calls",
    "escapes_at_1_percent": "escapes at 1 % overkill",
    "escapes_at_2_percent": "escapes at 2 % overkill",
    "seconds": "s",
    "images_per_s": "images/s",
}


class Difference(NamedTuple):
    """The default's balanced accuracy minus another recipe's.

    Attributes:
        value: mean over the seeds.
        half: half of its interval's width.
        seeds: that both have.
    """

    value: float
    half: float
    seeds: int

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.value - self.half > 0:
            return "ahead"
        return "behind" if self.value + self.half < 0 else "within spread"


def read_results(folder: Path) -> pd.DataFrame:
    """A row a run, `right` as an array; false calls are normal images that it calls defects."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        target, called = (np.array(list(found.pop(name))) for name in ("target", "called"))
        codes, right = np.unique(target, return_inverse=True)[1], target == called
        if "normal" in found:
            own = codes == found["classes"].index(found["normal"])
            found["false_calls"] = float(1 - right[own].mean())
        rows.append({**found, "right": right, "codes": codes})
    return pd.DataFrame(rows)


def difference(default: pd.DataFrame, other: pd.DataFrame) -> Difference | None:
    """Of two recipes' runs of one set and time; None without a common seed."""
    pairs = default.merge(other, on="seed", suffixes=("", "_other"))
    if pairs.empty:
        return None
    values = (pairs["balanced_accuracy"] - pairs["balanced_accuracy_other"]).to_numpy()
    errors = [
        standard_error(row["right"], row["right_other"], row["codes"])
        for row in pairs.to_dict("records")
    ]
    return _with_seeds(values, float(np.mean(errors)))


def escape_difference(
    default: pd.DataFrame, other: pd.DataFrame, overkill: float
) -> Difference | None:
    """The same of escapes at an overkill: above 0 more escape the default."""
    pairs = default.merge(other, on="seed", suffixes=("", "_other"))
    if pairs.empty or "release_ranks" not in pairs or pairs["release_ranks"].isna().any():
        return None
    first = pairs.iloc[0]
    normal, codes = first["classes"].index(first["normal"]), first["codes"]
    generator, places = np.random.default_rng(0), []
    for code in np.unique(codes):
        own = np.flatnonzero(codes == code)
        places.append(own[generator.integers(len(own), size=(RESAMPLES, len(own)))])
    drawn = np.concatenate(
        [np.arange(len(codes))[None], np.concatenate(places, 1)[:, order_of(codes)]]
    )
    gaps = np.array(
        [
            _escapes(row["release_ranks"], codes, normal, first["train_counts"], drawn, overkill)
            - _escapes(
                row["release_ranks_other"], codes, normal, first["train_counts"], drawn, overkill
            )
            for row in pairs.to_dict("records")
        ]
    )
    return _with_seeds(gaps[:, 0], float(gaps[:, 1:].mean(0).std(ddof=1)))


def order_of(codes: np.ndarray) -> np.ndarray:
    """(N,) where each image stands among the images sorted by class."""
    return np.argsort(np.argsort(codes, kind="stable"), kind="stable")


def _escapes(
    ranks: list[int],
    codes: np.ndarray,
    normal: int,
    train_counts: list[int],
    drawn: np.ndarray,
    overkill: float,
) -> np.ndarray:
    """(R,) escapes of each row of drawn images (R, N), a place of each class's at its places."""
    score, is_normal = np.asarray(ranks)[drawn], codes == normal
    held = int(overkill * is_normal.sum() + 1e-9)
    threshold = np.partition(score[:, is_normal], held, axis=1)[:, held]
    weight = (np.asarray(train_counts) / np.bincount(codes))[codes] * ~is_normal
    passed: np.ndarray = (score >= threshold[:, None]) @ (weight / weight.sum())
    return passed


def _with_seeds(values: np.ndarray, error: float) -> Difference:
    """The mean of the seeds' differences, by the error of the images and that of the seeds."""
    half = Z * error
    if len(values) > 1:
        seeds = STUDENT.get(len(values), Z) * float(values.std(ddof=1)) / math.sqrt(len(values))
        half = math.hypot(half, seeds)
    return Difference(float(values.mean()), half, len(values))


def differences(results: pd.DataFrame) -> pd.DataFrame:
    """`set, time, recipe` -> the default's difference to it, and the verdict."""
    rows = []
    for (name, time), found in results.groupby(["set", "time"], sort=False):
        default = found[found["recipe"] == "default"]
        for recipe in RECIPES:
            told = difference(default, found[found["recipe"] == recipe])
            if recipe != "default" and told is not None:
                facts = {"set": name, "time": time, "recipe": recipe}
                rows.append({**facts, **told._asdict(), "verdict": told.verdict})
    columns = ["set", "time", "recipe", *Difference._fields, "verdict"]
    return pd.DataFrame(rows, columns=columns)


def standing(found: pd.DataFrame, scores: pd.Series) -> str:
    """Where the default stands on one set and time.

    `first`: ahead of every recipe beyond chance; `behind`: a recipe is ahead of it beyond chance.

    Args:
        found: its differences to each recipe.
        scores: recipe -> mean balanced accuracy.
    """
    if found.empty:
        return "alone"
    best = str(scores.drop("default").idxmax())
    row = found[found["recipe"] == best].iloc[0]
    interval = f"{points(row)} points to {best}"
    if (found["verdict"] == "behind").any():
        worst = found.loc[found["value"].idxmin()]
        return f"**behind** ({points(worst)} points to {worst['recipe']})"
    if (found["verdict"] == "ahead").all():
        return f"**first** ({interval})"
    return f"within spread ({interval})"


def points(row: pd.Series) -> str:
    """A difference in points, with its interval."""
    return f"{100 * row['value']:+.1f} ± {100 * row['half']:.1f}"


def tables(results: pd.DataFrame) -> str:
    """All of it as Markdown."""
    parts = [f"## {title}\n\n{table}\n" for title, table in named_tables(results).items()]
    return "\n".join(parts)


def named_tables(results: pd.DataFrame) -> dict[str, str]:
    """Title -> Markdown table: the standings, what belongs to all sets, then each set and time."""
    told, standings = differences(results), []
    details: dict[str, str] = {}
    for (name, time), found in results.groupby(["set", "time"], sort=False):
        scores = found.groupby("recipe")["balanced_accuracy"].mean()
        if "default" not in scores:
            continue
        own = told[(told["set"] == name) & (told["time"] == time)]
        seeds = found[found["recipe"] == "default"]["seed"].nunique()
        standings.append([name, time, seeds, standing(own, scores)])
        details[f"{name}, {time}"] = _details(found, own)
    found = {
        "The default on each set": markdown_table(
            ["set", "time", "seeds", "the default"], standings, left=4
        ),
        "In the mean of the sets": _leads(results, told),
        "What more time brings the default, in points of balanced accuracy": _more_time(results),
        "Escapes of the default minus those of a recipe, in points": _escape_lines(results),
    }
    return {title: table for title, table in (found | details).items() if table}


def _leads(results: pd.DataFrame, told: pd.DataFrame) -> str:
    """The default's lead over each recipe in the mean of the sets, for each time."""
    rows = []
    for time in results["time"].unique():
        for recipe in RECIPES:
            own = told[(told["time"] == time) & (told["recipe"] == recipe)]
            if len(own):
                half = math.sqrt((own["half"] ** 2).sum()) / len(own)
                lead = f"{100 * own['value'].mean():+.1f} ± {100 * half:.1f}"
                rows.append([time, recipe, len(own), lead])
    heads = ["time", "recipe", "sets", "the default's lead"]
    return markdown_table(heads, rows, left=2) if rows else ""


def _more_time(results: pd.DataFrame) -> str:
    """What the default gains from each time to the next, on each set; bold where it loses."""
    own = results[results["recipe"] == "default"]
    times = sorted(own["time"].unique(), key=parse_duration)
    steps = list(pairwise(times))
    rows = []
    for name, found in own.groupby("set", sort=False):
        runs = {time: found[found["time"] == time] for time in times}
        gains = [difference(runs[after], runs[before]) for before, after in steps]
        if any(gain is not None for gain in gains):
            rows.append([name, *("" if gain is None else _gained(gain) for gain in gains)])
    heads = [f"{before} to {after}" for before, after in steps]
    return markdown_table(["set", *heads], rows) if rows else ""


def _gained(gain: Difference) -> str:
    """A difference; bold where it is a loss beyond chance."""
    told = f"{100 * gain.value:+.1f} ± {100 * gain.half:.1f}"
    return f"**{told}**" if gain.verdict == "behind" else told


def _escape_lines(results: pd.DataFrame) -> str:
    """How many more escape the default than each recipe, on each set with a normal class."""
    heads = [f"at {share:.0%} overkill" for share in OVERKILL]
    rows = []
    for (name, time), found in results.groupby(["set", "time"], sort=False):
        default = found[found["recipe"] == "default"]
        for recipe in [each for each in RECIPES if each != "default"]:
            other = found[found["recipe"] == recipe]
            gaps = [escape_difference(default, other, share) for share in OVERKILL]
            cells = [_worse(gap) for gap in gaps if gap is not None]
            if cells:
                rows.append([name, time, recipe, *cells])
    return markdown_table(["set", "time", "recipe", *heads], rows, left=3) if rows else ""


def _worse(gap: Difference) -> str:
    """An escape difference; bold where the default is worse beyond chance."""
    told = f"{100 * gap.value:+.1f} ± {100 * gap.half:.1f}"
    return f"**{told}**" if gap.value - gap.half > 0 else told


def _details(found: pd.DataFrame, own: pd.DataFrame) -> str:
    columns = [name for name in COLUMNS if name in found and found[name].notna().any()]
    rows = []
    known = found["recipe"].unique()
    for recipe in sorted(known, key=list(RECIPES).index):
        runs = found[found["recipe"] == recipe]
        cells = [_cell(name, runs[name]) for name in columns]
        lead = own[own["recipe"] == recipe]
        cells.append(
            ""
            if lead.empty
            else f"{100 * lead['value'].iloc[0]:+.1f} ± {100 * lead['half'].iloc[0]:.1f}"
        )
        rows.append([recipe, *cells])
    heads = ["recipe", *(COLUMNS[name] for name in columns), "the default's lead"]
    return markdown_table(heads, rows)


def _cell(name: str, values: pd.Series) -> str:
    if name in ("seconds", "images_per_s"):
        return f"{values.mean():.0f}"
    spread = f" ± {values.std():.3f}" if len(values) > 1 else ""
    return f"{values.mean():.3f}{spread}"


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=HERE / "results-contest")
    options = parser.parse_args()
    results = read_results(options.results)
    if results.empty:
        raise SystemExit(f"{options.results} holds no results yet: run contest.py.")
    (options.results / "table.md").write_text(tables(results), encoding="utf-8")
    hidden = ["right", "codes", "classes", "release_ranks", "train_counts"]
    plain = results.drop(columns=hidden, errors="ignore")
    plain.to_csv(options.results / "results.csv", index=False, float_format="%.5f")
    print(tables(results))


if __name__ == "__main__":
    main()
