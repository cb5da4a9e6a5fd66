"""The numbers of a bench from its runs: rows, means over seeds, differences between methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recame.bench.tables.best import Fit, against_the_best, differences, fit
from recame.errors import DataError
from recame.files import read_json
from recame.metrics import registry

RESULT_SCHEMA = 1

#: Kept for each split, though no table has a column for them.
_UNSHOWN = ("g_mean", "accuracy")

#: Metrics of a split in the order of the tables; those where more is better come first.
METRICS = tuple(
    metric.name
    for metric in sorted(registry.METRICS, key=lambda metric: metric.lower_is_better)
    if metric.column or metric.name in _UNSHOWN
)

#: Costs of a run.
RUN_COSTS = ("epochs", "images_seen", "train_s", "evaluate_s")

#: Name of the data in the pooled rows of `paired`.
ALL_DATA = "(all)"

#: Names of `paired`'s columns in `standings`.
COLUMNS_OF_TAIL = {n: f"tail_{n}" for n in ("difference", "low", "high")}
COLUMNS_OF_PAIRS = {"n": "pairs", "low": "difference_low", "high": "difference_high"}

#: Standard error of balanced accuracy over other test images; older results lack it.
TEST_ERROR = "balanced_accuracy_se"

_RUN_KEYS = ["data", "method", "seed"]
_FACTS = ("keep", "kept", "recame", "torch", "processor", "device", "threads", "fingerprint")

#: `Method.sha256` of the run's method; older results lack it.
METHOD_COLUMN = "method_sha256"

#: A standard deviation of paired differences that is one of rounding alone.
_NO_SPREAD = 1e-9


def collect(path: Path, elsewhere: pd.DataFrame | None = None) -> pd.DataFrame:
    """Read every finished run of a bench.

    Args:
        path: the bench's folder, with `runs/DATA/METHOD/seedN/result.json` in it; or, if its runs
            are not kept, the `results.csv` that was written from them.
        elsewhere: rows of runs made elsewhere, of `read_elsewhere`. If a run was also made here,
            the one made here counts.

    Returns:
        One row for each data set, method, seed and split: `data, method, seed, split`, the
        `METRICS` (NaN if a split lacks one), `balanced_accuracy_se` (over other images of the
        split), `expert_<i>` (balanced accuracy of each expert alone), `expert_mean`, the
        `RUN_COSTS`, `keep` (the selection rule), `kept` (the selected phase), and origin: `recame,
        torch, processor, device, threads, fingerprint, method_sha256`. Without a finished run, an
        empty table with these columns.

    Raises:
        DataError: a result cannot be read, or was written by a newer version.
    """
    rows = [row for file in sorted(path.glob("runs/**/result.json")) for row in _rows(file)]
    kept = path / "results.csv"
    if not rows and elsewhere is None and kept.exists():
        return _read_kept(kept)
    frame = pd.DataFrame(rows)
    if elsewhere is not None:
        own = {tuple(row[key] for key in _RUN_KEYS) for row in rows}
        keys = pd.MultiIndex.from_frame(elsewhere[_RUN_KEYS])
        frame = pd.concat([frame, elsewhere[[key not in own for key in keys]]], ignore_index=True)
    experts = {name for name in map(str, frame.columns) if name.startswith("expert_")}
    numbers = [*METRICS, TEST_ERROR, *sorted(experts - {"expert_mean"}), "expert_mean", *RUN_COSTS]
    frame = frame.reindex(columns=[*_RUN_KEYS, "split", *numbers, *_FACTS, METHOD_COLUMN])
    frame[numbers] = frame[numbers].astype(np.float64)
    return frame.sort_values([*_RUN_KEYS, "split"], ignore_index=True)


def read_elsewhere(paths: Sequence[Path]) -> pd.DataFrame:
    """Rows of runs that were made in other folders or on other machines.

    Args:
        paths: folders of benches, or the `results.csv` that a bench wrote. If several hold a run,
            the first counts.

    Returns:
        As `collect`.

    Raises:
        DataError: a path holds no such table.
    """
    frames = []
    for path in paths:
        frame = _read_kept(path) if path.is_file() else collect(path)
        if frame.empty:
            raise DataError(
                f"{path} holds no finished run, so no rows can be taken from it: give the "
                "folder of a bench, or the results.csv that it wrote."
            )
        frames.append(frame)
    joined = pd.concat(frames, ignore_index=True)
    return joined.drop_duplicates([*_RUN_KEYS, "split"], ignore_index=True)


def _read_kept(file: Path) -> pd.DataFrame:
    try:
        texts = dict.fromkeys(("data", "method", "split"), str)  # a method may be called 007
        frame = pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read as a table ({error}): give the results.csv that recame bench "
            "wrote."
        ) from error
    # The file may be older than some metrics.
    needed = (*_RUN_KEYS, "split", "balanced_accuracy", *_FACTS)
    lacking = [name for name in needed if name not in frame]
    if lacking:
        raise DataError(
            f"{file} has no column {', '.join(lacking)}, so its runs cannot stand in this table: "
            "give the results.csv that recame bench wrote."
        )
    newer = (*METRICS, TEST_ERROR, METHOD_COLUMN)
    return frame.assign(**{name: np.nan for name in newer if name not in frame})


def _rows(file: Path) -> list[dict[str, Any]]:
    """One row for each split of a run."""
    way_out = (
        "Without it, the table would silently lack this run: delete the file, and the bench runs "
        "this job again."
    )
    result = read_json(file, newest=RESULT_SCHEMA, advice=way_out, error=DataError)
    try:
        environment, run = result.get("environment", {}), result.get("config", {}).get("run", {})
        gpus = environment.get("cuda", [])
        shared = {
            **{name: result[name] for name in (*_RUN_KEYS, *RUN_COSTS)},
            **{name: result.get(name, "") for name in ("kept", "recame", "fingerprint")},
            METHOD_COLUMN: result.get(METHOD_COLUMN, np.nan),
            "keep": run.get("keep", ""),
            "torch": environment.get("packages", {}).get("torch", ""),
            "processor": environment.get("processor", ""),
            "device": gpus[0] if gpus and run.get("accelerator", "auto") != "cpu" else "cpu",
            "threads": environment.get("cpu_threads"),
        }
        return [shared | _split(name, split) for name, split in result["splits"].items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no result of a run ({error!r}). {way_out}") from error


def _split(name: str, split: dict[str, Any]) -> dict[str, Any]:
    alone = [e["balanced_accuracy"] for e in split.get("experts", []) if e["model"] != "ensemble"]
    return {
        "split": name,
        **{metric: split[metric]["value"] for metric in METRICS if metric in split},
        TEST_ERROR: split.get(TEST_ERROR, np.nan),
        **{f"expert_{number}": value for number, value in enumerate(alone)},
        "expert_mean": sum(alone) / len(alone) if alone else np.nan,
    }


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds, with the 95 % t interval of the mean.

    Args:
        frame: of `collect`.

    Returns:
        One row for each data set, method, split and metric: `data, method, split, metric, n, mean,
        sd, low, high`. `sd` (n - 1 in the denominator) and interval are NaN with one seed.
        Intervals are not cut at 0 or 1. A metric that a split lacks has no row.
    """
    experts = [c for c in map(str, frame.columns) if c.startswith("expert_")]
    keys = ["data", "method", "split"]
    table = (
        frame.melt(id_vars=keys, value_vars=[*METRICS, *experts, *RUN_COSTS], var_name="metric")
        .dropna(subset="value")
        .groupby([*keys, "metric"], sort=False)["value"]
        .agg(n="count", mean="mean", sd="std")
        .reset_index()
    )
    half = _t_quantile(table["n"] - 1) * table["sd"] / np.sqrt(table["n"])
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def paired(
    frame: pd.DataFrame,
    reference: str,
    metric: str = "balanced_accuracy",
    *,
    split: str = "test",
) -> pd.DataFrame:
    """Difference of each method to the reference, seed by seed.

    Runs of one seed see the same images in the same splits, so the effect that a seed has on both
    cancels out. Only seeds that both finished count.

    The rows of data `(all)` hold the mean of the data sets' mean differences, with the standard
    error of these means and Welch and Satterthwaite's degrees of freedom (Satterthwaite, Biometrics
    Bulletin 1946). The data sets are fixed: these rows hold for other seeds, not for other data.
    Each interval stands for one comparison alone; of twenty methods equal to the reference, one is
    expected to look different.

    Args:
        frame: of `collect`.
        reference: the method that the others are compared with.
        metric: one of `METRICS`.
        split: the split of the numbers.

    Returns:
        One row for each data set and each method but the reference: `data, method, metric, n`
        (common seeds), `difference` (method - reference), `sd`, `low`, `high`, `wins` (seeds on
        which the method is better; ties count half), `told_apart` (whether the interval excludes
        0; false with one seed, and where all differences are the same). Rows `(all)` have a NaN
        `sd`. They exist if there are several data sets, for methods with common seeds on every data
        set of the reference.
    """
    table = frame[frame["split"] == split].pivot_table(
        index=["data", "seed"], columns="method", values=metric, aggfunc="mean"
    )
    columns = ["data", "method", "metric", "n", "difference", "sd", "low", "high", "wins"]
    if reference not in table:
        return pd.DataFrame(columns=[*columns, "told_apart"])
    long = table.drop(columns=reference).sub(table[reference], axis=0)
    long = long.melt(ignore_index=False, value_name="difference").reset_index()
    long = long.dropna(subset="difference")
    sign = -1.0 if metric in registry.LOWER_IS_BETTER else 1.0
    long["wins"] = (np.sign(sign * long["difference"]) + 1) / 2
    rows = long.groupby(["data", "method"], sort=False).agg(
        n=("difference", "count"),
        sd=("difference", "std"),
        difference=("difference", "mean"),
        wins=("wins", "sum"),
    )
    rows = rows.reset_index()
    rows = _with_interval(rows, rows["sd"] / np.sqrt(rows["n"]), rows["n"] - 1)
    num_data = table[reference].dropna().index.get_level_values("data").nunique()
    rows = pd.concat([rows, _pooled(rows, num_data)], ignore_index=True)
    # Of a few runs that differ alike by chance no interval tells anything.
    some_spread = ~(rows["sd"] < _NO_SPREAD)
    rows["told_apart"] = some_spread & ((rows["low"] > 0) | (rows["high"] < 0))
    return rows.assign(metric=metric)[[*columns, "told_apart"]]


def _pooled(rows: pd.DataFrame, num_data: int) -> pd.DataFrame:
    """One row for each method, over all data sets."""
    variance = rows["sd"] ** 2 / rows["n"]
    parts = rows.assign(variance=variance, fourth=variance**2 / (rows["n"] - 1))
    sums = parts.groupby("method", sort=False).agg(
        sets=("data", "count"),
        n=("n", "sum"),
        difference=("difference", "mean"),
        wins=("wins", "sum"),
        # A data set with one seed has no variance; then the mean has none either.
        variance=("variance", lambda v: v.sum(skipna=False)),
        fourth=("fourth", lambda v: v.sum(skipna=False)),
    )
    sums = sums[(sums["sets"] == num_data) & (num_data > 1)].reset_index()
    freedom = (sums["variance"] ** 2 / sums["fourth"]).fillna(1)  # no variance: no width either
    sums = sums.assign(data=ALL_DATA, sd=np.nan)
    return _with_interval(sums, np.sqrt(sums["variance"]) / num_data, freedom)[rows.columns]


def _with_interval(
    rows: pd.DataFrame, error: pd.Series[Any], freedom: pd.Series[Any]
) -> pd.DataFrame:
    half = _t_quantile(freedom) * error
    return rows.assign(low=rows["difference"] - half, high=rows["difference"] + half)


def _t_quantile(freedom: pd.Series[Any]) -> pd.Series[Any]:
    """Two-sided 95 % quantile of Student's t; NaN without a degree of freedom."""
    from scipy.special import stdtrit

    degrees = freedom.astype(np.float64)
    return pd.Series(stdtrit(degrees.where(degrees > 0, np.nan), 0.975), index=freedom.index)


def standings(frame: pd.DataFrame, data: str, reference: str, split: str = "test") -> pd.DataFrame:
    """One data set's methods, best mean balanced accuracy first.

    Args:
        frame: of `collect`.
        data: the data set.
        reference: the method that differences are taken to.
        split: the split of the numbers.

    Returns:
        Indexed by method: `n`; for each metric of `summarise` its mean under its own name, and
        `<name>_sd`, `<name>_low`, `<name>_high`; `balanced_accuracy_se`, the root mean square over
        the runs. Against the reference: `pairs` (common seeds), `difference`, `difference_low`,
        `difference_high`, `wins`, `told_apart` (NaN in the reference's row); if both have two
        runs, the interval is that of `recame.bench.tables.best.differences`; `tail_difference`,
        `tail_low`, `tail_high`: the same of tail recall, NaN with fewer than two runs. Against the
        best: `best_distance`, `best_low`, `best_high` of `against_the_best`, NaN with fewer than
        two runs, and `tail_best_distance`, `tail_best_low`, `tail_best_high` of tail recall; and
        `level_balanced_accuracy`, `level_tail_recall`: whether the method may be the best of that
        column.
    """
    own = frame[(frame["data"] == data) & (frame["split"] == split)]
    if own.empty:
        return pd.DataFrame()
    # With one seed there is no spread: keep the empty columns.
    wide = summarise(own).pivot_table(
        index="method", columns="metric", values=["mean", "sd", "low", "high"], dropna=False
    )
    wide.columns = pd.Index([f"{c[1]}_{c[0]}".removesuffix("_mean") for c in wide.columns])
    wide.insert(0, "n", own.groupby("method")["seed"].nunique())
    if TEST_ERROR in own and own[TEST_ERROR].notna().any():
        squares = (own[TEST_ERROR] ** 2).groupby(own["method"]).mean()
        wide[TEST_ERROR] = np.sqrt(squares)
    against = paired(own, reference, split=split).set_index("method")
    against = against[["n", "difference", "low", "high", "wins", "told_apart"]]
    found = fit_of(own, "balanced_accuracy")
    if found is not None and reference in found.methods:
        pooled = differences(found, reference)
        against.update(pooled.loc[pooled.index.isin(against.index)])
        against["told_apart"] = (against["low"] > 0) | (against["high"] < 0)
    wide = wide.join(against.rename(columns=COLUMNS_OF_PAIRS))
    tail = fit_of(own, "tail_recall")
    if tail is not None and reference in tail.methods:
        wide = wide.join(differences(tail, reference).rename(columns=COLUMNS_OF_TAIL))
    for metric, prefix in (("balanced_accuracy", "best_"), ("tail_recall", "tail_best_")):
        best = _against_best(own, metric).reindex(wide.index)
        wide[f"level_{metric}"] = best["high"] > 0
        wide = wide.join(best.add_prefix(prefix))
    return wide.sort_values("balanced_accuracy", ascending=False, kind="stable")


def fit_of(own: pd.DataFrame, metric: str) -> Fit | None:
    """Means and pooled error of the runs of one data set and split.

    Seeds are blocks if they see different images.
    """
    if metric not in own:
        return None
    table = own.pivot_table(index="method", columns="seed", values=metric)
    images = set(own.groupby("seed")["fingerprint"].first())
    return fit(table, blocked=len(images) > 1, relative=True)


def _against_best(own: pd.DataFrame, metric: str) -> pd.DataFrame:
    found = fit_of(own, metric)
    if found is None:
        return pd.DataFrame(columns=["distance", "low", "high"], dtype=np.float64)
    return against_the_best(found, lower_is_better=metric in registry.LOWER_IS_BETTER)


def mixed_data(frame: pd.DataFrame) -> list[str]:
    """Names of data sets whose methods did not see the same images under one seed.

    Args:
        frame: of `collect`.
    """
    seen = frame.groupby(["data", "seed"])["fingerprint"].nunique()
    return sorted(set(seen[seen > 1].index.get_level_values("data")))
