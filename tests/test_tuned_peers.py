"""What pages say of the comparison with tuned peers is what its committed table holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recame.bench.tables.best import Fit, against_the_best, differences, dunnett_quantile, fit
from recame.bench.tables.results import fit_of

ROOT = Path(__file__).parents[1]
RUNS = pd.read_csv(ROOT / "benchmarks" / "results" / "peers" / "results.csv")
LONG = pd.read_csv(ROOT / "benchmarks" / "results" / "peers_long" / "results.csv")
TITLES = {"bare": "bare", "bare_tau_one_and_a_half": "bare, tau 1.5"}
SETS = {"generated": "generated", "deeppcb_lt": "DeepPCB-LT", "cifar10_lt": "CIFAR-10-LT"}

#: The endpoint of decision 0039, in points, fixed before the runs.
MOST_BEHIND = 3.0


def page(name: str) -> str:
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


README, RESULTS, CHANGES, QUESTIONS, DECISION = map(
    page,
    (
        "README.md",
        "docs/results.md",
        "CHANGELOG.md",
        "docs/reference/questions.md",
        "docs/decisions/0039-tuned-peers.md",
    ),
)


def fitted(
    data: str,
    metric: str = "balanced_accuracy",
    split: str = "test",
    runs: pd.DataFrame = RUNS,
) -> Fit:
    found = fit_of(runs[(runs["data"] == data) & (runs["split"] == split)], metric)
    assert found is not None
    return found


def means(found: Fit) -> pd.Series:
    return pd.Series(100 * found.means, index=list(found.methods))


def against_others(found: Fit) -> pd.Series:
    """Distance of `recame` to the best other row, in points, with Hsu's interval."""
    return 100 * against_the_best(found).loc["recame"]


def signed(row: pd.Series) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*row)


def test_the_runs_are_whole() -> None:
    runs = RUNS[RUNS["split"] == "test"].groupby("data")
    assert all(len(own) == 12 * 5 and own["method"].nunique() == 12 for _, own in runs)
    assert set(RUNS["seed"]) == {210, 211, 212, 213, 214}
    assert set(RUNS["data"]) == set(SETS)


@pytest.mark.parametrize(
    ("words", "data", "metric"),
    [
        *((title, name, "balanced_accuracy") for name, title in SETS.items()),
        *((title, name, "tail_recall") for name, title in SETS.items()),
        ("generated, unseen clusters", "generated", "tail_unseen"),
    ],
)
def test_recame_beside_the_best_other_row(words: str, data: str, metric: str) -> None:
    found = fitted(data, metric)
    own = means(found)
    best = str(own.drop("recame").idxmax())
    row = against_others(found)
    low, high = (f"{end:+.1f}" if abs(end) >= 0.05 else "0" for end in (row["low"], row["high"]))
    assert (
        f"| {words} | {own['recame']:.1f} | {TITLES[best]}: {own[best]:.1f} | "
        f"{row['distance']:+.1f} ({low} to {high}) |"
    ) in DECISION


@pytest.mark.parametrize("data", SETS)
def test_the_endpoint_is_met(data: str) -> None:
    found = fitted(data)
    assert -against_others(found)["low"] <= MOST_BEHIND
    own = means(found)
    plain = own[[name for name in own.index if name.startswith("bare")]]
    assert plain.min() > own.drop([*plain.index, "recame"]).max()


def test_five_seeds_were_enough() -> None:
    sd, half = {}, []
    for data in SETS:
        own = RUNS[(RUNS["data"] == data) & (RUNS["split"] == "test")]
        table = own.pivot_table("balanced_accuracy", "method", "seed")
        found = fit(table, blocked=data != "cifar10_lt")
        assert found is not None
        sd[data] = 100 * found.sd
        wide = np.sqrt(found.variances.max())
        half.append(dunnett_quantile(len(table) - 1, found.freedom) * sd[data] * wide)
    assert (
        f"is {sd['generated']:.1f} points on the generated set, {sd['deeppcb_lt']:.1f} on "
        f"DeepPCB-LT and {sd['cifar10_lt']:.1f} on CIFAR-10-LT, and half of Hsu's interval with "
        f"one deviation for all rows at most {max(half):.1f}"
    ) in DECISION


def test_the_leads_that_pages_tell() -> None:
    leads = {data: against_others(fitted(data)) for data in SETS}
    generated, boards, natural = (leads[data] for data in SETS)
    assert generated["low"] == natural["low"] == 0 > boards["low"]
    first, second = (f"{r['distance']:.1f} (0 to {r['high']:.1f})" for r in (generated, natural))
    assert f"is {first} and {second} points behind" in RESULTS
    assert f"is at most {-boards['low']:.1f} points ahead" in RESULTS
    assert (
        f"{generated['distance']:.1f} points before the next on generated defects "
        f"(0 to {generated['high']:.1f}) and {natural['distance']:.1f} on CIFAR-10-LT "
        f"(0 to {natural['high']:.1f})"
    ) in CHANGES
    assert f"on CIFAR-10-LT ({natural['distance']:.1f} points before the next)" in README
    tail = against_others(fitted("generated", "tail_recall"))
    assert f"{tail['distance']:.1f} points (0 to {tail['high']:.1f}) before `bare`" in RESULTS
    tail = against_others(fitted("cifar10_lt", "tail_recall"))
    assert f"that row is `bare`, at most {-tail['low']:.1f} points ahead" in RESULTS
    for data in SETS:  # "may be the best" on all three, of the tail
        assert against_others(fitted(data, "tail_recall"))["high"] > 0


def test_against_the_plain_network() -> None:
    told_apart = {}
    for data, metric in (("generated", "tail_unseen"), *((d, "balanced_accuracy") for d in SETS)):
        row = 100 * differences(fitted(data, metric), "bare").loc["recame"]
        assert signed(row) in DECISION
        assert signed(row) in RESULTS
        told_apart[data, metric] = row["low"] > 0
        if metric == "tail_unseen":
            assert f"it is told apart: {signed(row)} points" in README
    assert [key for key, apart in told_apart.items() if not apart] == [
        ("deeppcb_lt", "balanced_accuracy")
    ]


def test_new_products() -> None:
    found = fitted("deeppcb_lt", split="new_product_query")
    own = means(found)
    assert own.idxmax() == "ride_early"
    assert f"RIDE {own['ride_early']:.1f}, `recame` {own['recame']:.1f}, not told" in DECISION
    assert (
        f"RIDE has the highest mean ({own['ride_early']:.1f}), `recame` {own['recame']:.1f}"
        in RESULTS
    )
    assert against_others(found)["high"] > 0


def test_how_far_the_published_objective_is_behind() -> None:
    behind = [
        f"{-100 * differences(fitted(data), 'recame').loc['recame_reference', 'difference']:.1f}"
        for data in SETS
    ]
    assert "stays {}, {} and {} points behind `recame`".format(*behind) in DECISION


def test_what_recame_adds_to_balanced_softmax() -> None:
    over = {data: 100 * differences(fitted(data), "balanced_softmax") for data in SETS}
    plain = [over[data].loc["bare"] for data in SETS]
    words = ("on generated defects", "on DeepPCB-LT", "on CIFAR-10-LT")
    each = [
        f"{{:.1f}} {where} ({{:.1f}} to {{:.1f}})".format(*row)
        for where, row in zip(words, plain, strict=True)
    ]
    each[0] = each[0].replace(" on", " points on", 1)
    assert f"by {each[0]}, {each[1]} and {each[2]}." in QUESTIONS
    added = [differences(fitted(data), "bare").loc["recame", "difference"] for data in SETS]
    unseen = differences(fitted("generated", "tail_unseen"), "bare").loc["recame", "difference"]
    told = [f"{100 * value:.1f}" for value in (*added, unseen)]
    assert "add another {}, {} and {} points to `bare`, and {} on".format(*told) in QUESTIONS
    published = [over[data].loc["recame_reference"] for data in SETS]
    assert [row["low"] > 0 for row in published] == [False, False, True]
    assert all(row["high"] > 0 for row in published)
    new = fitted("deeppcb_lt", split="new_product_query")
    behind = -100 * differences(new, "balanced_softmax").loc["recame_reference"]
    distance, high, low = behind
    assert f"it is {distance:.1f} points behind ({low:.1f} to {high:.1f})" in QUESTIONS
    assert f"it is {published[2]['difference']:.1f} ahead" in QUESTIONS


def test_balanced_softmax_beside_its_untuned_row() -> None:
    untuned = pd.read_csv(ROOT / "benchmarks" / "results" / "cpu" / "results.csv")
    untuned = untuned[(untuned["split"] == "test") & (untuned["method"] == "balanced_softmax")]
    before = 100 * untuned.groupby("data")["balanced_accuracy"].mean()
    own = {data: means(fitted(data)) for data in SETS}
    assert (
        f"On CIFAR-10-LT it reaches {own['cifar10_lt']['balanced_softmax']:.1f} with that, and "
        f"{before['cifar10_lt']:.1f} at tau 1"
    ) in RESULTS
    table = (ROOT / "benchmarks/results/peers/table.md").read_text(encoding="utf-8")
    assert re.search(r"\(`balanced_softmax`\).*\n  - tuned: .*objective\.tau=0\.531", table)
    assert re.search(r"\(`bare`\).*(?:\n  - .*)*objective\.tau=1\.69", table)


class TestTenTimesTheImages:
    metrics = ("balanced_accuracy", "tail_recall", "tail_unseen")
    words = ("balanced accuracy", "tail recall", "tail recall, unseen clusters")

    def long(self, metric: str = "balanced_accuracy") -> Fit:
        return fitted("generated", metric, runs=LONG)

    def test_the_runs_are_whole(self) -> None:
        assert set(LONG["method"]) == {"bare", "crt", "recame_reference", "recame"}
        assert set(LONG["seed"]) == {210, 211, 212}
        assert len(LONG) == 12
        assert (LONG["images_seen"] >= 10 * 9_000).all()
        hours = LONG["train_s"].sum() / 3600
        assert f"Ten times the images took {hours:.1f}." in DECISION

    def test_recame_beside_the_best_other_row(self) -> None:
        for metric, words in zip(self.metrics, self.words, strict=True):
            found = self.long(metric)
            own, row = means(found), against_others(found)
            assert own.drop("recame").idxmax() == "bare"
            assert (
                f"| {words} | {own['recame']:.1f} | bare: {own['bare']:.1f} | {signed(row)} |"
            ) in DECISION
        ahead = [-against_others(self.long(metric))["low"] for metric in self.metrics[:2]]
        assert (
            "no row is more than {:.1f} points of balanced accuracy ahead of it, "
            "or {:.1f} of tail recall".format(*ahead)
        ) in RESULTS

    def test_three_seeds_do_not_tell_it_from_the_plain_network(self) -> None:
        rows = [100 * differences(self.long(each), "bare").loc["recame"] for each in self.metrics]
        assert all(row["low"] < 0 < row["high"] for row in rows)
        first, second, third = map(signed, rows)
        assert (
            f"{first} points of balanced accuracy, {second} of tail recall, and {third}" in RESULTS
        )
        assert f"{first}, {second} and {third}" in DECISION
        distance, low, high = rows[0]
        assert f"{distance:.1f} points before `bare` ({low:+.1f} to {high:+.1f};" in README
        assert (
            f"{distance:.1f} points before the plain network ({low:+.1f} to {high:.1f})" in CHANGES
        )
        assert f"they add {distance:.1f} points on generated defects ({low:+.1f} to" in QUESTIONS
        table = LONG.pivot_table("balanced_accuracy", "method", "seed")
        assert (table.idxmax() == "recame").all()

    def test_distances_to_peers_shrink(self) -> None:
        behind = [
            f"{-100 * differences(found, 'recame').loc[method, 'difference']:.1f}"
            for method in ("recame_reference", "crt")
            for found in (self.long(), fitted("generated"))
        ]
        assert (
            "is {} points of balanced accuracy behind `recame` ({} at the short length), "
            "cRT {} ({})".format(*behind)
        ) in RESULTS
        assert (
            "is {} points of balanced accuracy behind `recame` here and {} at".format(*behind[:2])
            in DECISION
        )
