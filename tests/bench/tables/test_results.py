from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.board import boards, notes
from recame.bench.tables.contest import Contest
from recame.bench.tables.results import (
    ALL_DATA,
    METRICS,
    collect,
    mixed_data,
    paired,
    read_elsewhere,
    standings,
    summarise,
)
from recame.bench.tables.table import headline, table_markdown, update_markdown, write_tables
from recame.errors import DataError
from recame.files import csv_text
from recame.metrics import registry

BALANCED = {
    "plain": [0.60, 0.62, 0.61],
    "level": [0.61, 0.60, 0.63],
    "better": [0.70, 0.73, 0.71],
    "short": [0.65, 0.66],
}
METHODS = {
    name: Method(name, name.title(), f"Source of {name}", "single network", {}, ("Shorter.",))
    for name in BALANCED
}
PLAN = Plan.model_validate(
    {
        "name": "p",
        "title": "A plan",
        "data": {"boards": {"title": "Boards"}, "dies": {}},
        "methods": list(METHODS),
        "reference": "plain",
    }
)
COSTS = {
    "machine": {},
    "rows": {
        "boards/plain": {
            "parameters": 1_250_000,
            "macs": 33_000_000,
            "train_images_per_s": 1234.4,
            "fixed_s": 8.0,
            "inference_images_per_s": 5000.0,
            "peak_memory_mib": 310.2,
            "spread": 0.25,
        }
    },
}


def estimate(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}


def write_result(path: Path, data: str, method: str, seed: int, value: float, **more: Any) -> Path:
    split = {
        "balanced_accuracy": estimate(value),
        "tail_recall": estimate(value - 0.2),
        "escape_rate": estimate(1 - value),
        "worst_class_recall": estimate(0.1),
        "macro_f1": estimate(0.5),
        "g_mean": estimate(0.4),
        "accuracy": estimate(0.9),
        "ece": estimate(0.05),
        "experts": [
            {"model": "ensemble", "balanced_accuracy": value},
            {"model": "expert 0", "balanced_accuracy": value - 0.02},
            {"model": "expert 1", "balanced_accuracy": value - 0.04},
        ],
    }
    result = {
        "schema": 1,
        "data": data,
        "method": method,
        "seed": seed,
        "recame": "0.1.0",
        "epochs": 5,
        "images_seen": 5000,
        "train_s": 90.0,
        "evaluate_s": 2.0,
        "config": {"run": {"keep": "last", "accelerator": "auto"}},
        "fingerprint": f"{data}{seed}",
        "environment": {
            "processor": "A processor",
            "cpu_threads": 2,
            "cuda": [],
            "packages": {"torch": "2.15.0"},
        },
        "splits": {"test": split},
        "kept": "finetune",
        **more,
    }
    file = path / "runs" / data / method / f"seed{seed}" / "result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(result), encoding="utf-8")
    return file


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    shifts: Mapping[str, Sequence[float]] = {"boards": (0, 0, 0), "dies": (0.01, -0.01, 0.03)}
    for data, shift in shifts.items():
        for method, values in BALANCED.items():
            for seed, value in enumerate(values):
                moved = value + (shift[seed] if method == "better" else 0)
                write_result(tmp_path, data, method, seed, moved)
    return tmp_path


def test_collect_reads_every_run(bench: Path) -> None:
    frame = collect(bench)
    assert len(frame) == 2 * 11
    row = frame.query("data == 'boards' and method == 'better' and seed == 1").iloc[0]
    assert row["balanced_accuracy"] == 0.73
    assert row["expert_1"] == pytest.approx(0.69)
    assert row["expert_mean"] == pytest.approx(0.70)
    assert math.isnan(row["overkill_rate"])
    assert (row["device"], row["torch"], row["threads"]) == ("cpu", "2.15.0", 2)
    assert (row["epochs"], row["images_seen"], row["train_s"]) == (5, 5000, 90)


def test_collect_without_runs_has_the_columns(tmp_path: Path) -> None:
    frame = collect(tmp_path)
    assert frame.empty
    assert {"data", "method", "seed", "balanced_accuracy", "train_s"} <= set(frame)


def test_a_kept_table_stands_for_its_runs(bench: Path) -> None:
    frame, kept = collect(bench), bench / "kept"
    kept.mkdir()
    frame.to_csv(kept / "results.csv", index=False)
    assert len(frame) > 10
    pd.testing.assert_frame_equal(collect(kept), frame, check_dtype=False)


def test_a_kept_table_may_be_older_than_a_metric(bench: Path) -> None:
    assert {metric.name for metric in registry.METRICS if metric.column} < set(METRICS)
    collect(bench).drop(columns="macro_f1").to_csv(bench / "old.csv", index=False)
    frame = collect(bench / "nothing", read_elsewhere([bench / "old.csv"]))
    assert len(frame) == 2 * 11
    assert frame["macro_f1"].isna().all()
    heads = boards(Contest(frame, METHODS, PLAN))[0].heads
    assert "macro-F1" not in heads
    assert "worst class" in heads


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"schema": 1, "data": "x"}'])
def test_a_damaged_result_is_named(bench: Path, text: str) -> None:
    file = bench / "runs" / "boards" / "plain" / "seed0" / "result.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"seed0.result\.json (is no result|cannot be).*delete"):
        collect(bench)


def test_kept_tables_are_read_as_they_were(bench: Path) -> None:
    frame = collect(bench).replace(
        {"method": {"plain": "007"}, "processor": {"A processor": "a\rb"}}
    )
    (bench / "old.csv").write_text(csv_text(frame, index=False), encoding="utf-8")
    kept = read_elsewhere([bench / "old.csv"])
    assert set(kept["method"]) == {"better", "short", "level", "007"}
    assert set(kept["processor"]) == {"a\rb"}
    assert len(kept) == len(frame)


def test_a_newer_result_is_refused(tmp_path: Path) -> None:
    write_result(tmp_path, "boards", "plain", 0, 0.5, schema=2)
    with pytest.raises(DataError, match="schema 2; this version reads up to 1"):
        collect(tmp_path)


def test_the_gpu_of_a_run_is_its_device(tmp_path: Path) -> None:
    environment = {"processor": "P", "cpu_threads": 1, "cuda": ["H200"], "packages": {}}
    write_result(tmp_path, "boards", "plain", 0, 0.5, environment=environment)
    assert collect(tmp_path)["device"].tolist() == ["H200"]


def test_summary_agrees_with_scipy(bench: Path) -> None:
    table = summarise(collect(bench))
    row = table.query("data == 'boards' and method == 'better' and metric == 'balanced_accuracy'")
    values = BALANCED["better"]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert row[["n", "mean", "sd", "low", "high"]].iloc[0].tolist() == pytest.approx(
        [3, np.mean(values), np.std(values, ddof=1), low, high]
    )
    assert set(table["metric"]) >= {"tail_recall", "expert_mean", "train_s"}
    assert "overkill_rate" not in set(table["metric"])  # no split has it


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_result(tmp_path, "boards", "plain", 0, 0.5)
    write_result(tmp_path, "boards", "better", 0, 0.9)
    frame = collect(tmp_path)
    assert summarise(frame)["low"].isna().all()
    row = paired(frame, "plain").iloc[0]
    assert row["difference"] == pytest.approx(0.4)
    assert math.isnan(row["low"])
    assert not row["told_apart"]


def test_equal_differences_of_two_seeds_tell_nothing(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_result(tmp_path, "boards", "plain", seed, 0.5)
        write_result(tmp_path, "boards", "better", seed, 0.505)
    row = paired(collect(tmp_path), "plain").iloc[0]
    assert row["low"] > 0
    assert not row["told_apart"]


def test_paired_interval_agrees_with_scipy(bench: Path) -> None:
    rows = paired(collect(bench), "plain").query("data == 'boards'").set_index("method")
    assert set(rows.index) == {"level", "better", "short"}
    for method in ("level", "better"):
        found = stats.ttest_rel(BALANCED[method], BALANCED["plain"])
        interval = found.confidence_interval(0.95)
        row = rows.loc[method]
        assert [row["low"], row["high"]] == pytest.approx([interval.low, interval.high])
        assert bool(row["told_apart"]) == (found.pvalue < 0.05)
    assert rows.loc["better", "wins"] == 3
    assert rows.loc["level", "wins"] == 2
    assert rows["told_apart"].to_dict() == {"better": True, "level": False, "short": False}
    # The seed that one of the two lacks does not count.
    assert rows.loc["short", "n"] == 2
    assert rows.loc["short", "difference"] == pytest.approx(0.045)


def test_less_is_better_where_it_is(bench: Path) -> None:
    rows = paired(collect(bench), "plain", "escape_rate").set_index(["data", "method"])
    assert rows.loc[("boards", "better"), "difference"] < 0
    assert rows.loc[("boards", "better"), "wins"] == 3


def test_data_sets_are_pooled_by_welch(bench: Path) -> None:
    row = paired(collect(bench), "plain").query("data == @ALL_DATA").set_index("method")
    first = np.subtract(BALANCED["better"], BALANCED["plain"])
    second = np.add(first, [0.01, -0.01, 0.03])
    variances = np.array([first.var(ddof=1), second.var(ddof=1)]) / 3
    freedom = variances.sum() ** 2 / (variances**2 / 2).sum()
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variances.sum()) / 2
    middle = (first.mean() + second.mean()) / 2
    assert row.loc["better", ["difference", "low", "high"]].tolist() == pytest.approx(
        [middle, middle - half, middle + half]
    )
    # The same as Welch's test of the two means' sum against 0.
    welch = stats.ttest_ind(second, -first, equal_var=False).confidence_interval(0.95)
    assert [2 * row.loc["better", "low"], 2 * row.loc["better", "high"]] == pytest.approx(
        [welch.low, welch.high]
    )
    assert row.loc["better", "wins"] == 6
    assert row.loc["short", "n"] == 4


def test_a_method_without_a_data_set_is_not_pooled(bench: Path) -> None:
    frame = collect(bench)
    frame = frame[(frame["method"] != "level") | (frame["data"] == "boards")]
    pooled = paired(frame, "plain").query("data == @ALL_DATA")
    assert set(pooled["method"]) == {"better", "short"}
    one = frame[frame["data"] == "boards"]
    assert ALL_DATA not in set(paired(one, "plain")["data"])
    assert paired(one, "absent").empty


def test_standings_mark_what_is_level_with_the_best(bench: Path) -> None:
    table = standings(collect(bench), "boards", "plain")
    assert list(table.index) == ["better", "short", "level", "plain"]
    assert table["n"].to_dict() == {"better": 3, "short": 2, "level": 3, "plain": 3}
    assert table.loc["better", "level_balanced_accuracy"]
    # Two seeds with differences of 0.05 and 0.07, beside an error that all rows tell.
    assert not table.loc["short", "level_balanced_accuracy"]
    assert table.loc["short", "best_high"] == 0
    assert table.loc["short", "best_low"] < table.loc["short", "best_distance"] < -0.05
    assert not table.loc["plain", "level_balanced_accuracy"]
    assert math.isnan(table.loc["plain", "difference"])
    assert standings(collect(bench), "nothing", "plain").empty


def test_different_images_under_one_seed_are_told(bench: Path) -> None:
    assert mixed_data(collect(bench)) == []
    file = bench / "runs" / "dies" / "level" / "seed1" / "result.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**result, "fingerprint": "other"}), encoding="utf-8")
    frame = collect(bench)
    assert mixed_data(frame) == ["dies"]
    assert "not all see the same images of dies" in " ".join(notes(Contest(frame, METHODS, PLAN)))


def test_cells_of_a_board(bench: Path) -> None:
    first, second = boards(Contest(collect(bench), METHODS, PLAN, COSTS))
    assert (first.title, second.title) == ("Boards", "dies")
    assert first.methods == ("better", "short", "level", "plain")
    cells = dict(zip(first.heads, zip(*first.rows, strict=True), strict=True))
    assert [cell.text for cell in cells["seeds"]] == ["3", "2 of 3", "3", "3"]
    best = cells["balanced accuracy"][0]
    assert (best.text, best.best) == ("71.3 ± 1.5", True)
    assert best.small == "67.5-75.1"
    assert [c.level for c in cells["balanced accuracy"]] == [False] * 4
    rivals = cells["against the best of the others"]
    assert rivals[0].small.startswith("0 to +")  # no other may be the best
    assert [c.small.endswith(" to 0") for c in rivals] == [False, True, True, True]
    assert [cell.best for cell in cells["escapes"]] == [True, False, False, False]
    rivals = cells["tail, against the best of the others"]
    assert [c.value > 0 for c in rivals].count(True) == 1
    assert all(c.small.startswith("0 to ") or c.small.endswith(" to 0") for c in rivals if c.value)
    against = cells["against Plain"]
    assert against[0].text == "+10.3"
    assert against[0].small.endswith("wins 3 of 3")
    assert against[2].level
    assert against[3].text == ""
    tails = cells["tail, against it"]
    assert tails[0].small.count(" to ") == 1
    assert tails[3].text == ""
    assert [cell.text for cell in cells["parameters, M"]] == ["-", "-", "-", "1.25"]
    assert cells["training, images/s"][3].text == "1,234"
    # 5,000 images at the measured speed, and what else a run does; where nothing was measured, as
    # the runs took.
    assert cells["training, min"][3].value == pytest.approx(5000 / 1234.4 + 8.0)
    assert cells["training, min"][0].text == "1.5"
    assert "epochs" not in cells  # the same for all
    assert "MACs, M" not in second.heads  # nothing measured there


def test_equal_time_shows_epochs(bench: Path) -> None:
    plan = PLAN.model_copy(update={"equal": "time", "pace": "plain"})
    frame = collect(bench)
    contest = Contest(frame, METHODS, plan)
    board = boards(contest)[0]
    assert {"epochs", "images seen, k"} <= set(board.heads)
    assert "equal time. Plain sets the time" in " ".join(notes(contest))


def test_markdown_holds_protocol_sources_and_deviations(bench: Path) -> None:
    text = table_markdown(Contest(collect(bench), METHODS, PLAN, COSTS, "recame bench plan.yaml"))
    assert "| Better | 3 | **71.3 ± 1.5** (67.5-75.1) |" in text
    assert "## Over all data sets, against Plain" in text
    for line in (
        "- Selection rule: the weights after the last epoch, for all methods.",
        "- Budget: equal epochs, 5 on boards, 5 on dies.",
        "- Seeds: 0, 1 and 2. Finished: 22 of 24 runs; methods are compared on the seeds they s",
        "- Machine: A processor, 2 threads a run. recame 0.1.0, torch 2.15.0.",
        "- The measured speeds differ by up to 25% from round to round.",
        "- To make it again: `recame bench plan.yaml`",
        "- **Level** (`level`): Source of level\n  - Shorter.",
    ):
        assert line in text
    rows = [line for line in text.splitlines() if line.startswith("| Level")]
    heads = [line for line in text.splitlines() if line.startswith("| method")]
    assert [row.count("|") for row in rows] == [head.count("|") for head in heads]


def test_selection_rule_names_exceptions(tmp_path: Path) -> None:
    write_result(tmp_path, "boards", "plain", 0, 0.5)
    write_result(tmp_path, "boards", "better", 0, 0.6, config={"run": {"keep": "best_on_val"}})
    told = " ".join(notes(Contest(collect(tmp_path), METHODS, PLAN)))
    assert "for all methods but Better, whose phase val chooses." in told


def test_tables_are_written_whole(bench: Path) -> None:
    frame = collect(bench)
    paths = write_tables(bench, Contest(frame, METHODS, PLAN, COSTS, "recame bench plan.yaml"))
    assert [p.name for p in paths] == ["results.csv", "summary.csv", "paired.csv", "table.md"]
    again = pd.read_csv(bench / "results.csv")
    assert again["balanced_accuracy"].tolist() == frame["balanced_accuracy"].tolist()
    pairs = pd.read_csv(bench / "paired.csv")
    assert set(pairs["reference"]) == {"plain"}
    assert {"balanced_accuracy", "escape_rate"} <= set(pairs["metric"])
    assert not list(bench.glob(".*.part"))


def test_headline_is_short_and_sorted(bench: Path) -> None:
    lines = headline(Contest(collect(bench), METHODS, PLAN, COSTS)).splitlines()
    assert lines[0].startswith("| method | Boards: balanced accuracy | Boards: tail | dies: ")
    assert lines[2].startswith("| Better | **71.3 ± 1.5** | **51.3 ± 1.5** |")
    assert lines[-1].startswith("| Plain | 61.0 ± 1.0 |")
    assert len(lines) == 2 + 4


def test_a_headline_keeps_a_reference_of_any_group(bench: Path) -> None:
    methods = {**METHODS, "plain": replace(METHODS["plain"], group="ablation")}
    lines = headline(Contest(collect(bench), methods, PLAN, COSTS)).splitlines()
    assert lines[-1].startswith("| Plain |")
    alone = {name: replace(method, group="ablation") for name, method in METHODS.items()}
    plan = PLAN.model_copy(update={"reference": None})
    assert len(headline(Contest(collect(bench), alone, plan)).splitlines()) == 2 + 4


def test_what_a_plan_no_longer_has_is_not_shown(bench: Path) -> None:
    plan = PLAN.model_copy(update={"data": {"dies": PLAN.data["dies"]}, "seeds": (0, 1)})
    contest = Contest(collect(bench), METHODS, plan)
    assert set(contest.shown["data"]) == {"dies"}
    assert set(contest.shown["seed"]) == {0, 1}


def test_markers_keep_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    head, tail = (
        b"# Title\r\n\r\nText.\r\n<!-- bench:cpu -->",
        b"<!-- /bench:cpu -->\r\nEnd \xc3\xa4",
    )
    path.write_bytes(head + b"\nold\nrows\n" + tail)
    update_markdown(path, "cpu", "| new |\n")
    assert path.read_bytes() == head + b"\n| new |\n" + tail
    update_markdown(path, "cpu", "| newer |")
    assert path.read_bytes() == head + b"\n| newer |\n" + tail
    with pytest.raises(DataError, match="cannot be read"):
        update_markdown(tmp_path / "READNE.md", "cpu", "| new |")


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- bench:cpu --> only one",
        "<!-- /bench:cpu --> <!-- bench:cpu -->",
        "<!-- bench:cpu --> <!-- /bench:cpu --> <!-- bench:cpu --> <!-- /bench:cpu -->",
    ],
)
def test_markers_that_are_not_one_pair_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="once each and in this order"):
        update_markdown(path, "cpu", "| new |")
    assert path.read_text(encoding="utf-8") == text


def test_runs_made_elsewhere_stand_beside_own_ones_which_come_first(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for method, value in (("plain", 0.6), ("better", 0.7)):
        write_result(other, "boards", method, 0, value)
    collect(other).to_csv(other / "results.csv", index=False)
    for seed, value in enumerate((0.72, 0.74)):
        write_result(own, "boards", "better", seed, value)
    for elsewhere in (other, other / "results.csv"):
        frame = collect(own, read_elsewhere([elsewhere, other]))
        found = {(r.method, r.seed): r.balanced_accuracy for r in frame.itertuples()}
        assert found == {("plain", 0): 0.6, ("better", 0): 0.72, ("better", 1): 0.74}
        assert list(frame.columns) == list(collect(own).columns)


def test_what_is_no_table_of_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished run"):
        read_elsewhere([tmp_path])
    table = tmp_path / "other.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column data, method, seed"):
        read_elsewhere([table])
    table.write_text("")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_elsewhere([table])
