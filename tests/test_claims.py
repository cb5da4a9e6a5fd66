"""What pages claim of methods is what committed tables hold: each figure is reckoned from them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SETS = ("digits", "synth small", "deeppcb small", "cifar small")

#: A row of the tables at equal time, by its beginning, and the method in `benchmarks/defaults`.
ROWS = {
    "`recame train` without settings": "default",
    "plain fine-tuning, square-root sampling": (
        "fine-tuning, square-root sampling, cross-entropy, no mixup, lr 2e-3"
    ),
    "plain fine-tuning, balanced softmax, lr 2e-3": (
        "fine-tuning, balanced softmax, no mixup, lr 2e-3"
    ),
    "*before steps became faster:* the same with mixup": (
        "fine-tuning, balanced softmax, mixup, lr 2e-3"
    ),
    "the same at lr 5e-4": "fine-tuning, balanced softmax, no mixup, lr 5e-4",
    "frozen features, MLP": "probe: MLP, balanced softmax",
    "from there, fine-tuning at 1e-4": "probe, then fine-tuning from it, lr 1e-4",
    "*before steps became faster:* plain fine-tuning, balanced softmax": (
        "fine-tuning, balanced softmax, no mixup, lr 2e-3"
    ),
    "probe with an MLP": "probe, then fine-tuning from it, lr 1e-4",
}


def one_line(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


def defaults(budget: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "benchmarks" / "defaults" / f"results-{budget}" / "results.csv")


def means(plan: str) -> pd.DataFrame:
    """Balanced accuracy in %, a row a method, a column a data set."""
    frame = pd.read_csv(ROOT / "benchmarks" / "results" / plan / "results.csv")
    frame = frame[frame["split"] == "test"]
    return 100 * frame.pivot_table(index="method", columns="data", values="balanced_accuracy")


@pytest.mark.parametrize("budget", ["90s", "300s"])
def test_the_tables_at_equal_time_are_the_committed_ones(budget: str) -> None:
    table = RESULTS.partition(f"| {budget[:-1]} s, mean of two seeds |")[2].partition("\n\n")[0]
    frames = [defaults(budget)]
    if budget == "300s":
        frames.append(defaults("300s-from-probe"))
    own = pd.concat(frames).pivot_table("balanced_accuracy", "method", "set")
    compared = 0
    for line in table.splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        method = next(method for row, method in ROWS.items() if name.startswith(row))
        for data, cell in zip(SETS, cells, strict=True):
            told = re.fullmatch(r"\**(0\.\d+)\**", cell)  # not what is older or was not run
            if told:
                assert told[1] == f"{own.loc[method, data]:.3f}", (name, data)
                compared += 1
    assert compared == {"90s": 28, "300s": 12}[budget]


def test_the_defaults_page_names_the_best_plain_recipe() -> None:
    own = defaults("90s").pivot_table(index="method", columns="set", values="balanced_accuracy")
    page = one_line(ROOT / "docs" / "decisions" / "0002-defaults-of-train.md")
    for words, data in (
        ("digits ({} against {} of the best plain recipe)", "digits"),
        ("generated IC defects ({} against {})", "synth small"),
        ("boards ({} against {})", "deeppcb small"),
        ("natural images ({} against {})", "cifar small"),
    ):
        plain = own.drop(index="default")[data].max()
        assert words.format(f"{own.loc['default', data]:.3f}", f"{plain:.3f}") in page
        assert own.loc["default", data] > plain


def test_each_seed_of_the_default_is_ahead_where_it_is_said() -> None:
    assert (
        "each seed of each set has the default ahead of every plain recipe's best seed"
        in " ".join(RESULTS.split())
    )
    for _, own in defaults("90s").groupby("set"):
        ours = own["method"] == "default"
        assert own.loc[ours, "balanced_accuracy"].min() > own.loc[~ours, "balanced_accuracy"].max()


def test_the_seconds_are_those_of_the_runs() -> None:
    text, quick, slow = " ".join(RESULTS.split()), defaults("90s"), defaults("300s")
    older = quick["method"].isin(
        [
            "fine-tuning, balanced softmax, mixup, lr 2e-3",
            "fine-tuning, balanced softmax, no mixup, lr 5e-4",
            "probe, then fine-tuning from it, lr 1e-4",
        ]
    )
    mlp = quick["method"] == "probe: MLP, balanced softmax"
    fresh = slow["method"] != "fine-tuning, balanced softmax, no mixup, lr 2e-3"
    older_s, mlp_s, new_s, slow_s = (
        f"{seconds.min():.0f} to {seconds.max():.0f}"
        for seconds in (
            quick.loc[older, "train_s"],
            quick.loc[mlp, "train_s"],
            quick.loc[~older & ~mlp, "train_s"],
            slow.loc[fresh, "train_s"],
        )
    )
    assert f"after {older_s} s, the MLP alone after {mlp_s})" in text
    assert f"The others ended after {new_s} of 90 s and {slow_s} of 300 s" in text


def test_the_recipe_is_first_where_it_is_said_and_not_where_it_is_not() -> None:
    changes = one_line(ROOT / "CHANGELOG.md")
    assert "first of its tables at equal epochs on three sets and at equal time on two" in changes
    ours = ["recame", "with_probe", "two_after_a_probe"]
    for plan, sets in (("cpu", 3), ("cpu_time", 2)):
        table = means(plan)
        assert table.shape[1] == sets
        assert (table.loc["recame"] > table.drop(index=ours).max()).all()
    short = means("gpu_minutes")["deeppcb_lt"]
    ahead, recame = short["square_root_sampling"], short["recame"]
    assert ahead > recame
    told = f"square-root sampling is ahead of it on DeepPCB-LT ({ahead:.1f} against {recame:.1f}"
    assert told in changes


def test_the_best_peers_of_the_decision_are_those_of_the_tables() -> None:
    page = (ROOT / "docs" / "decisions" / "0011-one-expert-where-time-is-short.md").read_text(
        encoding="utf-8"
    )
    frame = pd.read_csv(ROOT / "benchmarks" / "results" / "cpu" / "results.csv")
    frame = frame[(frame["split"] == "test") & ~frame["method"].isin(["recame", "with_probe"])]
    frame = frame[frame["method"] != "two_after_a_probe"]
    columns = ["balanced_accuracy", "tail_recall"]
    by_method = 100 * frame.groupby(["data", "method"])[columns].mean()
    cells = []
    for data in ("deeppcb_lt", "ic_defect_synth_100", "cifar10_lt"):
        accuracy, tail = by_method.loc[data].sort_values("balanced_accuracy").iloc[-1]
        cells.append(f"{accuracy:.1f} / {tail:.1f}")
    assert f"| best peer | {' | '.join(cells)} |" in page


def test_deeppcb_s_rows_are_those_of_its_table() -> None:
    frame = pd.read_csv(ROOT / "benchmarks" / "deeppcb_lt" / "results" / "results.csv")
    splits = dict(iter(frame.groupby("split")))
    rows = 0
    for method, own in splits["test"].groupby("method"):
        new = splits["new_product_query"].query("method == @method")
        cells = [
            own["balanced_accuracy"],
            *(own[f"recall_{name}"] for name in ("pin_hole", "short", "copper")),
            new["balanced_accuracy"],
        ]
        told = " | ".join(f"{cell.mean():.3f} ± {cell.std():.3f}" for cell in cells)
        assert f"| {method} | {told} |" in RESULTS
        rows += 1
    assert rows == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_says_more_than_any_table_could(page: Path) -> None:
    words = r"ahead of every peer|better than every|beats (?:all|every)|state[- ]of[- ]the[- ]art"
    assert re.findall(words, one_line(page), re.IGNORECASE) == []


def test_the_effects_that_are_told_are_those_of_the_table() -> None:
    page = (ROOT / "docs/decisions/0035-which-parts-help.md").read_text(encoding="utf-8")
    effects = pd.read_csv(ROOT / "benchmarks/results/factorial/effects.csv")
    found = effects.set_index(["metric", "effect"])[["estimate", "low", "high"]] * 100
    assert set(effects["blocks"]) == {8}
    pairs = effects[effects["kind"] == "interaction"]
    assert ((pairs["low"] < 0) & (pairs["high"] > 0)).all()  # none is told apart from none

    second = {
        word: [told(found.loc[(metric, f"experts {word} distilled")]) for metric in ENDPOINTS]
        for word in ("without", "with")
    }
    assert f"| without mutual distillation | {' | '.join(second['without'])} |" in page
    assert f"| with it | {' | '.join(second['with'])} |" in page

    tail = found.loc["tail_unseen"]
    experts = one_line(ROOT / "docs/concepts/experts.md")
    for cell in (told(tail.loc["attention"]), told(tail.loc["distilled"]), second["without"][0]):
        assert cell in experts
    readme = one_line(ROOT / "README.md")
    words, *interval = told(tail.loc["hard"]).partition(" ")
    assert f"hard category mining brings {words} {interval[1]} points" in readme
    assert f"a second expert {second['without'][0]}" in readme
    cost, least, most = -tail.loc["distilled", ["estimate", "high", "low"]]
    assert f"takes {cost:.1f} ({least:.1f} to {most:.1f}) of it away" in readme
    for effect in ("attention", "metric"):
        assert f"({tail.loc[effect, 'estimate']:+.1f})" in readme
    both = 100 * factorial_runs("tail_unseen").mean()
    assert both.idxmax() == "hard+experts"
    assert f"reach {both.max():.1f} % of tail recall on unseen clusters" in page
    assert f"bare reaches {both['bare']:.1f} %" in page


@pytest.mark.parametrize("folder", ["factorial", "factorial_long", "factorial_30"])
def test_each_factorial_s_effects_stand_on_its_page(folder: str) -> None:
    page = (ROOT / "docs/decisions/0035-which-parts-help.md").read_text(encoding="utf-8")
    effects = pd.read_csv(ROOT / "benchmarks/results" / folder / "effects.csv")
    found = effects.set_index(["metric", "effect"])[["estimate", "low", "high"]] * 100
    for effect, name in PARTS.items():
        cells = [told(found.loc[(metric, effect)]) for metric in ENDPOINTS]
        assert f"| {name} | {cells[0]} | {cells[1]} |" in page


def test_what_was_asked_of_the_default_is_what_the_runs_say() -> None:
    page = (ROOT / "docs/decisions/0045-asked-of-the-default.md").read_text(encoding="utf-8")
    folder = ROOT / "benchmarks/defaults"
    for question in ("lr", "lr_by_steps"):
        files = (folder / "results-ask" / question).glob("*@*.json")
        runs = pd.DataFrame([json.loads(path.read_text(encoding="utf-8")) for path in files])
        means = runs.pivot_table("balanced_accuracy", "variant", "set").dropna(axis=1)
        for variant, row in means.iterrows():
            name = str(variant).replace("lr ", "")
            cells = " | ".join(f"{value:.3f}" for value in row.sort_index())
            assert f"| {name} | {cells} |" in page, (name, cells)
    files = (folder / "results-ask/silent").glob("*@*.json")
    runs = pd.DataFrame([json.loads(path.read_text(encoding="utf-8")) for path in files])
    sets = ["defects", "boards", "cells", "digits"]
    for column, form in (("silent", "{:.0%}"), ("balanced_accuracy", "{:.3f}")):
        wide = runs.pivot_table(column, "variant", "set")[sets]
        if column == "balanced_accuracy":
            wide = wide.drop(index="1 step, as it is")
        for variant, row in wide.iterrows():
            cells = " | ".join(form.format(value).replace("%", " %") for value in row)
            assert f"| {str(variant).replace('them', 'the steps')} | {cells} |" in page
    table = (folder / "results-ask/lr/table.md").read_text(encoding="utf-8")
    for rate in ("1e-3", "2e-3"):
        found = re.search(rf"lr {rate}: (.*\)), 12 pairs", table)
        assert found is not None
        assert f"{found[1]} |" in page
    heads = pd.read_csv(folder / "results-heads/heads.csv").pivot_table("bacc", "way", "set")
    heads = heads[["digits", "synth small", "deeppcb small", "cells", "cifar small"]]
    for way, row in heads.iterrows():
        words = str(way).replace("4 views", "4 views instead of 8")
        words = words.replace("the images", "the images: the frequent classes cut")
        words = words.replace("MLP", "an MLP")
        found = re.search(rf"\| {re.escape(words)}( \([^|]*\))? \| (.*) \|\n", page)
        assert found is not None, words
        told = [float(cell) for cell in found[2].split(" | ")]
        # The rows are kept with four decimals, from which a half may round to either side.
        np.testing.assert_allclose(told, [*row, row.mean()], rtol=0, atol=5.6e-4)


def test_what_a_minute_without_a_probe_brings() -> None:
    page = (ROOT / "docs/decisions/0045-asked-of-the-default.md").read_text(encoding="utf-8")
    folder = ROOT / "benchmarks/defaults/results-ask"
    told = (folder / "moving/table.md").read_text(encoding="utf-8")
    span = re.search(r"- 60s, without a probe: ([^)]*\)), (\d+ pairs)", told)
    assert span is not None
    assert f"{span[1]} points in 60 s, {span[2]}" in page
    runs = [json.loads(path.read_text("utf-8")) for path in (folder / "moving").glob("*@*.json")]
    table = 100 * pd.DataFrame(runs).pivot_table("balanced_accuracy", ["set", "draw"], "variant")
    gaps = table["without a probe"] - table["default"]
    for gap in gaps:
        assert f"{gap:+.1f}" in page
    contest = (ROOT / "docs/default.md").read_text(encoding="utf-8")
    for name in (
        "batch_norm/large-defects@60s@0@those-of-ImageNet",
        "moving/large-defects@60s@0@default",
    ):
        run = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert f"{run['balanced_accuracy']:.3f} " in contest


def test_what_the_recipes_moving_average_costs() -> None:
    page = (ROOT / "docs/default.md").read_text(encoding="utf-8")
    pairs = pd.read_csv(ROOT / "benchmarks/defaults/results-no-average/pairs.csv")
    for time, told in (
        ("1m", "gain {0:.1f} points in one minute ({1:+.1f} to {2:+.1f}, {3} pairs)"),
        ("5m", "lose {4:.1f} in five ({1:+.1f} to {2:+.1f}, {3} pairs)"),
    ):
        found = pairs[pairs["time"] == time]
        gaps = 100 * (found["without"] - found["with_average"])
        half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std() / np.sqrt(len(gaps))
        mean = gaps.mean()
        assert told.format(mean, mean - half, mean + half, len(gaps), -mean) in page


def test_what_losses_for_wrong_labels_bring() -> None:
    page = (ROOT / "docs/decisions/0045-asked-of-the-default.md").read_text(encoding="utf-8")
    page = page.split("**Losses that bear wrong labels")[1].split("**Features of")[0]
    heads = pd.read_csv(ROOT / "benchmarks/defaults/results-robust/heads.csv")
    table = heads.pivot_table("bacc", "way", "set")
    table = table[["digits", "synth small", "deeppcb small", "cells", "elpv"]]
    rows = {
        "300 steps": "**the default's loss, 300 steps**",
        "300 steps, half of the images": "the same, half of the images",
        "300 steps, 4 views": "the same, 4 views instead of 8",
        "300 steps, balanced softmax alone": "300 steps, balanced softmax alone",
        "L-BFGS, penalty 0.001": "L-BFGS, penalty 0.001",
        "300 steps and MLP": "300 steps and an MLP (joined)",
        "300 steps, MLP and L-BFGS": "300 steps, an MLP and L-BFGS (joined)",
    }
    losses = {way: str(way).removeprefix("300 steps, ") for way in table.index if "by" in str(way)}
    losses |= {
        way: str(way).removeprefix("300 steps, ") for way in table.index if "gen" in str(way)
    }
    for way, name in (rows | losses).items():
        found = re.search(rf"\n\| {re.escape(name)} \| (.*) \|\n", page)
        assert found is not None, name
        told = [float(cell) if cell.strip() else np.nan for cell in found[1].split("|")]
        np.testing.assert_allclose(told, table.loc[way], rtol=0, atol=5.6e-4)
    draws = 100 * heads[heads["set"] == "elpv"].pivot_table("bacc", "draw", "way")
    for way, sign in (("300 steps, half of the images", -1), ("300 steps, MLP and L-BFGS", 1)):
        gaps = sign * (draws[way] - draws["300 steps"])
        half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std() / len(gaps) ** 0.5
        low, high = gaps.mean() - half, gaps.mean() + half
        span = f"({low:.1f} to {high:.1f})" if low > 0 else f"({low:+.1f} to {high:+.1f})"
        assert f"{gaps.mean():.1f} points {span}" in page


def test_what_the_set_s_statistics_bring() -> None:
    page = (ROOT / "docs/decisions/0051-norms-where-heads-alone-learn.md").read_text("utf-8")
    folder = ROOT / "benchmarks/defaults"
    heads = pd.read_csv(folder / "results-norms/heads.csv")
    table = heads.pivot_table("bacc", "way", "set", sort=False)
    order = ["digits", "synth small", "synth large", "deeppcb small", "cells", "cifar small"]
    for share in ("0", "0.5", "1"):
        row = table.loc[f"300 steps, {share} of the set's statistics", order]
        found = re.search(rf"\| {re.escape(share)} \| (.*) \|\n", page)
        assert found is not None
        told = [float(cell) for cell in found[1].split(" | ")]
        np.testing.assert_allclose(told, [*row, row.mean()], rtol=0, atol=5.6e-4)
    told = (folder / "results-ask/batch_norm/table.md").read_text(encoding="utf-8")
    for budget in ("60s", "300s"):
        span = re.search(rf"- {budget}, half of either: ([^)]*\)), (\d+ pairs)", told)
        assert span is not None
        points = span[1].replace(" (", " points (", 1) if budget == "60s" else span[1]
        assert f"{points} in {budget.replace('s', ' s')}, {span[2]}" in page


def test_what_views_and_five_minutes_bring() -> None:
    page = (ROOT / "docs/decisions/0046-views-for-accuracy.md").read_text(encoding="utf-8")
    folder = ROOT / "benchmarks/defaults/results-ask/longer"
    views = pd.read_csv(folder / "views.csv").pivot_table("balanced_accuracy", "run", "views")
    names = {
        "boards, at 128 px": "boards@5m@0@at-128-px",
        "defects, at 128 px": "defects@5m@0@at-128-px",
        "boards, at 64 px": "boards@5m@0@default",
    }
    for name, run in names.items():
        cells = " | ".join(f"{value:.3f}" for value in views.loc[run])
        assert f"| {name} | {cells} |" in page
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*@0@*.json")]
    table = pd.DataFrame(runs).pivot_table("balanced_accuracy", "variant", "set")
    for variant, row in table[["boards", "defects"]].iterrows():
        cells = " | ".join(f"{value:.3f}" for value in row)
        assert re.search(rf"\| {re.escape(str(variant))}[^|]* \| {re.escape(cells)} \|", page)


def test_recame_is_what_the_pilot_says() -> None:
    page = (ROOT / "docs/decisions/0044-what-recame-is.md").read_text(encoding="utf-8")
    runs = pd.read_csv(ROOT / "benchmarks/results/recame_pilot/results.csv")
    table = 100 * runs.pivot_table("balanced_accuracy", "method", "data")
    table = table[["generated", "deeppcb_lt", "cifar10_lt"]].assign(mean=lambda t: t.mean(axis=1))
    rows = {
        "parts alone": "parts",
        "parts, head of `recame train`": "parts_head",
        "parts, head, tau 1.5": "parts_head_tau",
        "bare": "bare",
    }
    for name, method in rows.items():
        cells = " | ".join(f"{value:.1f}" for value in table.loc[method])
        assert f"| {name} | {cells} |" in page.replace("**", "")
    means = table["mean"].drop("bare")
    assert means.idxmax() == "parts"
    costs = (ROOT / "benchmarks/objective/results/parts.md").read_text(encoding="utf-8")
    found = re.findall(r"\| ([^|]+) \| \d+ \| ([\d.]+) \(([\d.]+) to ([\d.]+)\)", costs)
    told = {name: "{:.2f} ({:.2f} to {:.2f})".format(*map(float, rest)) for name, *rest in found}
    assert f"metric terms {told['metric terms to clusters']}" in page
    assert f"a second expert {told['a second expert']}" in page
    whole = told["hard categories, metric terms, a second expert"]
    assert f"all three {whole}" in page
    changes = one_line(ROOT / "CHANGELOG.md")
    assert f"A step takes {whole.split()[0]} times that of `bare`" in changes
    seeds = 100 * runs.pivot_table("balanced_accuracy", ["method", "seed"], "data")
    interval = stats.t.ppf(0.975, 2) / 3**0.5 * np.array([-1.0, 1.0])
    mean = seeds.mean(axis=1)
    above, cost = mean["parts"] - mean["bare"], mean["parts"] - mean["parts_head"]
    low, high = above.mean() + interval * above.std()
    assert f"{above.mean():.1f} points above it in the mean ({low:.1f} to {high:.1f}, " in changes
    assert f"by {above.mean():.1f} points in the mean ({low:.1f} to {high:.1f}; three" in page
    low, high = cost.mean() + interval * cost.std()
    assert f"The head costs {cost.mean():.1f} in the mean ({low:.1f} to {high:+.1f})" in page
    boards = (seeds.loc["parts_head"] - seeds.loc["parts"])["deeppcb_lt"]
    each = f"({boards.min():.1f} to {boards.max():.1f} in each of the three)"
    assert f"the head is ahead by {boards.mean():.1f} points {each}" in page


def test_what_longer_training_and_more_classes_change() -> None:
    readme = one_line(ROOT / "README.md")
    page = (ROOT / "docs/decisions/0035-which-parts-help.md").read_text(encoding="utf-8")
    tails = {}
    for name in ("factorial_long", "factorial_30"):
        effects = pd.read_csv(ROOT / "benchmarks/results" / name / "effects.csv")
        tails[name] = effects[effects["metric"] == "tail_unseen"].set_index("effect")
    long, many = tails.values()
    words = [
        told(100 * tail.loc["experts without distilled", ["estimate", "low", "high"]])
        for tail in (long, many)
    ]
    assert (
        f"the images the second expert brings {words[0]}, in 48 runs on 30 classes {words[1]}"
        in (readme)
    )
    cost = -100 * many.loc["distilled", ["estimate", "high", "low"]]
    assert (
        "Distillation costs {:.1f} points ({:.1f} to {:.1f}) among 30 classes".format(*cost)
        in readme
    )
    assert long.loc["distilled", "estimate"] > 0  # "no cost of it is seen in the longer runs"
    for tail, sure in ((long, ["experts"]), (many, ["experts", "distilled"])):
        parts = tail[tail["kind"].isin(["factor", "nested"])]
        assert list(parts.index[parts["p_holm"] < 0.05]) == sure
    for effect in ("experts with distilled", "experts without distilled"):
        assert f"({100 * long.loc[effect, 'estimate']:+.1f})" in page
    low = 100 * long.loc["attention:hard", "low"]
    assert (
        f"(interaction {100 * long.loc['attention:hard', 'estimate']:+.1f}, {low:+.1f} to" in page
    )


ENDPOINTS = ("tail_unseen", "balanced_accuracy")
PARTS = {
    "attention": "regional attention",
    "hard": "hard categories",
    "metric": "metric terms to clusters",
    "experts": "a second expert, the mean of with and without mutual distillation",
    "distilled": "mutual distillation, within a second expert",
}


def told(row: pd.Series) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*row)


def factorial_runs(metric: str) -> pd.DataFrame:
    """A row a block, a column a combination."""
    runs = pd.read_csv(ROOT / "benchmarks/results/factorial/results.csv")
    return runs[runs["split"] == "test"].pivot_table(metric, "seed", "method")


def test_what_passes_is_told_by_the_tables() -> None:
    page = one_line(ROOT / "docs/decisions/0043-what-passes.md")
    folder = ROOT / "benchmarks/decisions/results"

    def at(name: str, power: str, overkill: int) -> list[float]:
        found = json.loads((folder / f"operating-point-{name}.json").read_text(encoding="utf-8"))
        return list(found[f"power {power}, overkill {overkill}%"].values())

    for name, digits in (("deeppcb", 1), ("icdefectsynth", 0)):
        for power, bold in (("0", ""), ("1", "**")):
            cells = [
                f"{bold}{own:.{digits}f}{bold} ({mean:.{digits}f})"
                for own, mean in (at(name, power, overkill) for overkill in (1, 2, 5))
            ]
            assert " | ".join(cells) in page, cells
    own, means = zip(*(at("generated", power, 2) for power in ("0", "0.5", "1")), strict=True)
    assert "{:.0f} % of the defects escape with weights alike, {:.0f} %".format(*own) in page
    assert "mean of the classes {:.0f}, {:.0f} and {:.0f} %".format(*means) in page


def test_int8_s_gain_is_that_of_the_tables() -> None:
    page = one_line(ROOT / "docs/export.md")
    for folder, words in (("results-avx2", "with AVX2"), ("results", "with VNNI")):
        text = (ROOT / "benchmarks/realtime" / folder / "table.md").read_text(encoding="utf-8")
        rows = [row for row in text.splitlines() if "px, batch 32: " in row]
        times = {
            kind: np.array(
                [float(n) for n in re.findall(rf"openvino-{kind} ([\d.]+)", "".join(rows))]
            )
            for kind in ("fp32", "int8")
        }
        assert len(times["fp32"]) == len(times["int8"]) > 0
        gains = times["int8"] / times["fp32"]  # the rows of both have the same order
        told = f"{gains.min():.1f} to {gains.max():.1f} times"
        assert re.search(rf"{told}[\w ]*{words}", page), told


def asked(question: str) -> pd.DataFrame:
    """Balanced accuracy of the runs of a question: a column a variant."""
    files = (ROOT / "benchmarks/defaults/results-ask" / question).glob("*@*.json")
    runs = pd.DataFrame([json.loads(path.read_text(encoding="utf-8")) for path in files])
    return runs.pivot_table("balanced_accuracy", ["time", "set", "draw"], "variant")


def interval(gaps: pd.Series) -> str:
    """Mean in points with its 95 % t interval."""
    half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std() / np.sqrt(len(gaps))
    return f"{gaps.mean():+.1f} ({gaps.mean() - half:+.1f} to {gaps.mean() + half:+.1f})"


def test_what_more_pixels_bring() -> None:
    page = one_line(ROOT / "docs/decisions/0047-more-pixels-where-time-is-ample.md")
    runs = asked("more_pixels")
    runs = runs[runs.index.get_level_values("set").isin(["boards", "defects", "digits"])]
    for time, words in (("2m", "2 minutes"), ("5m", "5 minutes")):
        found = runs.loc[time]
        means = found.groupby("set")[["default", "at 128 px"]].mean()
        small = " | ".join(f"{value:.3f}" for value in means["default"])
        assert f"| {words}, 64 px | {small} | |" in page
        large = r" \([^)]*\) \| ".join(f"{value:.3f}" for value in means["at 128 px"])
        told = interval(100 * (found["at 128 px"] - found["default"]))
        assert re.search(rf"{words}, 128 px \| {large} \([^)]*\) \| \**{re.escape(told)}", page)
    larger = asked("larger").groupby("set").mean()
    for data, words in (("cells", "solar cells"), ("large defects", "defects of 192 px")):
        row = larger.loc[data]
        assert f"{words} {row['192 px']:.3f} against {row['default']:.3f}" in page


def test_what_smaller_steps_bring() -> None:
    page = one_line(ROOT / "docs/decisions/0048-smaller-steps-where-few-fit.md")
    few, many = asked("few_steps"), asked("batch").rename(columns={"default": "batches of 64"})
    cases = {
        "boards at 128 px": (few, "boards", True),
        "generated defects at 128 px": (few, "defects", True),
        "natural images at 128 px": (few, "natural", True),
        "generated defects of 192 px, at 128": (many, "large defects", True),
        "solar cells, at 128 px": (many, "cells", True),
        "boards": (many, "boards", False),
        "generated defects": (many, "defects", False),
        "natural images": (many, "natural", False),
        "digits": (many, "digits", False),
    }
    gaps: dict[bool, list[pd.Series]] = {True: [], False: []}
    for words, (runs, data, is_few) in cases.items():
        found = runs.xs(data, level="set")[["batches of 64", "batches of 32"]]
        gap = 100 * (found["batches of 32"] - found["batches of 64"])
        gaps[is_few].append(gap)
        draws = ", ".join(f"{value:+.1f}" if abs(value) >= 0.05 else "0.0" for value in gap)
        cells = " | ".join(f"{value:.3f}" for value in found.mean())
        assert f"| {words} | {cells} | {draws} |" in page
    mean, _, ends = interval(pd.concat(gaps[True])).partition(" (")
    assert f"{mean} points (95 % t interval {ends}" in page
    mean, _, ends = interval(pd.concat(gaps[False])).partition(" (")
    assert f"{mean} points ({ends}" in page
