"""The contest of the default with plain recipes: its plan, its verdicts, its committed results."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from recame.config import Config

FOLDER = Path(__file__).parents[1] / "benchmarks" / "defaults"
#: Plan -> where its results lie.
PLANS = {"plan": "results-contest", "elpv": "results-elpv", "xsdd": "results-xsdd"}
#: What all plans may take, in hours of one core.
MOST_HOURS = 24


@pytest.fixture(scope="module")
def contest() -> ModuleType:
    return _module("contest")


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return _module("contest_table")


def _module(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for other in ("recipes", "run", "sizes", name):
            sys.modules.pop(other, None)
        return importlib.import_module(name)


def test_the_plans_are_affordable_and_their_recipes_are_settings(contest: ModuleType) -> None:
    jobs = [job for plan in PLANS for job in contest.jobs_of(FOLDER / f"{plan}.yaml")]
    assert sum(job.core_s for job in jobs) <= MOST_HOURS * 3600
    assert len({job.name for job in jobs}) == len(jobs)
    recipes = {job.recipe for job in jobs}
    assert "default" in recipes
    assert len(recipes) == 8
    for job in jobs:
        if contest.RECIPES[job.recipe] is not None:
            settings = contest.settings_of(job.recipe, job.facts["symmetry"], 96)
            assert isinstance(Config().updated(settings), Config)
            assert (settings == {}) == (job.recipe == "default")


def test_folds_cut_train_and_val_anew_and_leave_test_alone(
    contest: ModuleType, tmp_path: Path
) -> None:
    labels = (["a"] * 80 + ["b"] * 20) * 2
    rows = {"image": [f"{number}.png" for number in range(200)], "label": labels}
    table = pd.DataFrame({**rows, "split": ["train", "val", "test", "train"] * 50})
    table.to_csv(tmp_path / "manifest.csv", index=False)
    asked = set(tmp_path.resolve() / table["image"][table["split"] != "test"])
    judged: list[Path] = []
    for number in range(1, contest.FOLDS + 1):
        path = contest.fold(tmp_path / "manifest.csv", number, tmp_path / f"fold {number}")
        found = pd.read_csv(path)
        assert set(map(Path, found["image"])) == asked
        counts = found.groupby(["split", "label"]).size()
        assert counts["test"].tolist() == [24, 6]
        assert counts["val"].tolist() == [19, 5]
        judged += map(Path, found["image"][found["split"] == "test"])
    assert sorted(judged) == sorted(asked)


def test_escapes_are_told_at_a_share_of_normal_images(contest: ModuleType) -> None:
    normal = np.linspace(1, 0.01, 100)  # of probability
    defects = np.array([0.015, 0.025, 0.5, 0.005])
    target = np.r_[np.zeros(100, int), 1, 1, 2, 2]
    score = np.r_[normal, defects]
    probabilities = np.c_[score, 1 - score, np.zeros(104)]
    train = pd.Series(["a"] * 90 + ["b"] * 8 + ["c"] * 2)
    found = contest.judged(probabilities, target, ["a", "b", "c"], "a", train)
    # The threshold lies at 0.02 and at 0.03, above one and two of the normal images; four defects
    # of five are of the first kind.
    assert found["escapes_at_1_percent"] == pytest.approx(0.5)
    assert found["escapes_at_2_percent"] == pytest.approx(0.1)


def write(
    folder: Path, recipe: str, seed: int, wrong: range, number: int, time: str = "1m"
) -> None:
    target = "0" * 50 + "1" * 50
    called = "".join(
        ("1" if sign == "0" else "0") if index in wrong else sign
        for index, sign in enumerate(target)
    )
    right = 1 - sum(1 for _ in wrong) / 100
    found = {"recipe": recipe, "set": "s", "time": time, "seed": seed, "target": target}
    found |= {"called": called, "balanced_accuracy": right, "macro_f1": right, "seconds": 60}
    found |= {"images_per_s": 50, "classes": ["a", "b"]}
    (folder / f"s@{time}@{seed}@{number}.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.mark.parametrize(
    ("wrong", "verdict"), [(40, "**first**"), (4, "within spread"), (0, "**behind**")]
)
def test_the_default_is_first_behind_or_neither(
    table: ModuleType, tmp_path: Path, wrong: int, verdict: str
) -> None:
    own = 30 if verdict == "**behind**" else 3
    for seed in range(3):
        write(tmp_path, "default", seed, range(own), 0)
        write(tmp_path, "bare", seed, range(wrong), 5)
    results = table.read_results(tmp_path)
    (found,) = table.differences(results).to_dict("records")
    assert found["value"] == pytest.approx((wrong - own) / 100)
    assert found["seeds"] == 3
    assert f"| s | 1m | 3 | {verdict}" in table.tables(results)


def test_other_seeds_widen_the_interval(table: ModuleType, tmp_path: Path) -> None:
    for seed, wrong in enumerate((10, 20, 30)):
        write(tmp_path, "default", seed, range(5), 0)
        write(tmp_path, "bare", seed, range(wrong), 5)
    (found,) = table.differences(table.read_results(tmp_path)).to_dict("records")
    # The seeds' own part: 4.30 x 0.1 / sqrt(3), of two degrees of freedom.
    assert found["half"] > 0.248
    assert found["verdict"] == "within spread"


def test_escapes_are_compared_on_the_same_images(table: ModuleType, contest: ModuleType) -> None:
    generator = np.random.default_rng(0)
    target = np.repeat([0, 1, 2], [200, 60, 40])
    train = pd.Series(["a"] * 200 + ["b"] * 30 + ["c"] * 10)
    rows = {"good": [], "bad": []}
    for seed in range(3):
        for name, apart in (("good", 3.0), ("bad", 1.0)):
            odds = generator.normal(np.where(target == 0, apart, 0.0))
            own = 1 / (1 + np.exp(-odds))
            probabilities = np.c_[own, (1 - own) / 2, (1 - own) / 2]
            found = contest.judged(probabilities, target, ["a", "b", "c"], "a", train)
            found |= {"seed": seed, "codes": target}
            rows[name].append(found)
    good, bad = pd.DataFrame(rows["good"]), pd.DataFrame(rows["bad"])
    for share, name in ((0.01, "escapes_at_1_percent"), (0.02, "escapes_at_2_percent")):
        found = table.escape_difference(good, bad, share)
        assert found.value == pytest.approx((good[name] - bad[name]).mean())
        assert 0 < found.half < 1
    assert found.value + found.half < 0  # fewer escape the better one
    alike = table.escape_difference(good, good, 0.02)
    assert (alike.value, alike.half) == (0, 0)


def test_a_lead_in_the_mean_of_the_sets(table: ModuleType, tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path, "default", seed, range(5), 0)
        write(tmp_path, "bare", seed, range(25), 5)
    assert "| 1m | bare | 1 | +20.0 ±" in table.tables(table.read_results(tmp_path))


def test_a_loss_by_more_time_is_marked(table: ModuleType, tmp_path: Path) -> None:
    for seed in range(3):
        for time, wrong in (("10m", 30), ("1m", 25), ("5m", 5)):
            write(tmp_path, "default", seed, range(wrong), 0, time)
    told = table.tables(table.read_results(tmp_path))
    assert "| set | 1m to 5m | 5m to 10m |" in told
    (row,) = [line for line in told.splitlines() if line.startswith("| s | +20.0 ± ")]
    assert "| **-25.0 ± " in row


@pytest.mark.parametrize("name", PLANS.values())
def test_the_committed_table_is_that_of_the_committed_results(table: ModuleType, name: str) -> None:
    folder = FOLDER / name
    results = table.read_results(folder)
    assert (folder / "table.md").exists() == bool(len(results))  # none before the first piece
    if results.empty:
        return
    assert (folder / "table.md").read_text(encoding="utf-8") == table.tables(results)
    for row in results.to_dict("records"):
        shares = [row["right"][row["codes"] == code].mean() for code in np.unique(row["codes"])]
        assert row["balanced_accuracy"] == pytest.approx(np.mean(shares))


def test_the_page_shows_the_committed_tables(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = FOLDER.parents[1] / "docs"
    monkeypatch.syspath_prepend(str(docs / "making"))
    making = importlib.import_module("default_contest")
    page = (docs / "default.md").read_text(encoding="utf-8")
    tables = table.named_tables(table.read_results(making.RESULTS))
    shown = [found[2] for found in making.TABLE.finditer(page)]
    assert shown == list(tables)[: len(shown)]
    assert len(shown) == 4
    assert making.filled(page, tables) == page
    for look in making.LOOKS:
        assert f"images/contest-{look}.svg" in page
        assert (docs / "images" / f"contest-{look}.svg").exists()


def test_a_table_of_the_page_is_filled_in_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parents[1] / "docs" / "making"))
    making = importlib.import_module("default_contest")
    empty = "a\n<!-- table: one -->\n<!-- end -->\nb\n<!-- table: two -->\n<!-- end -->\n"
    once = making.filled(empty, {"one": "| 1 |", "two": "| 2 |"})
    assert once.count("<!-- end -->") == 2
    assert "| 1 |\n\n<!-- end -->\nb\n" in once
    assert making.filled(once, {"one": "| 1 |", "two": "| 2 |"}) == once


def test_the_picture_s_mean_is_of_the_sets_that_all_recipes_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parents[1] / "docs" / "making"))
    picture = importlib.import_module("default_contest")
    rows = [("a", "default", 0.6), ("a", "bare", 0.5), ("b", "default", 0.9)]
    scores = pd.DataFrame(rows, columns=["set", "recipe", "balanced_accuracy"])
    figure = picture.drawn(scores.assign(time="5m", seed=0), picture.LOOKS["light"])
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [picture.MEAN, "a", "b"]
    bare, own = (dots.get_offsets()[:, 0].tolist() for dots in panel.collections[0::2])
    assert (bare[0], own) == (50, [60, 60, 90])
