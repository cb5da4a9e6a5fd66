from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from recame.bench.plan.factorial import Factorial
from recame.bench.plan.method import Method
from recame.bench.plan.plan import Plan
from recame.bench.tables.bench_figures import effects_figure
from recame.bench.tables.bench_page import write_page
from recame.bench.tables.contest import Contest
from recame.bench.tables.effects import (
    Effects,
    all_effects,
    detectable,
    effects,
    effects_table,
    holm,
    least_squares,
)
from recame.bench.tables.effects_board import effects_notes, effects_sections
from recame.bench.tables.results import METRICS
from recame.bench.tables.table import table_markdown, write_tables
from recame.pages.render import GREEN, GREY, RED

#: 2 x 2 on three blocks, so that each number below can be had by hand.
BY_HAND = {
    "bare": [0.50, 0.60, 0.55],
    "a": [0.54, 0.63, 0.60],
    "b": [0.52, 0.60, 0.56],
    "a+b": [0.60, 0.69, 0.63],
}


def factorial(*names: str, nested: dict[str, str] | None = None, **words: Any) -> Factorial:
    """Factors that set one key each, and nested ones: name -> within."""
    factors: dict[str, Any] = {n: {"settings": {f"x.{n}": 1}} for n in names}
    for name, within in (nested or {}).items():
        factors[name] = {"settings": {f"x.{name}": 1}, "within": within}
    return Factorial.model_validate({"base": "bare", "factors": factors, **words})


def frame_of(values: dict[str, Any], metric: str = "balanced_accuracy") -> pd.DataFrame:
    """Results: method -> a value a seed; NaN makes no run."""
    rows = [
        {
            **dict.fromkeys(METRICS, np.nan),
            metric: value,
            "data": "chips",
            "method": method,
            "seed": seed,
            "split": "test",
            "keep": "last",
            "recame": "0.1.0",
            "torch": "2.15.0",
            "processor": "P",
            "device": "cpu",
            "threads": 2,
            "fingerprint": f"f{seed}",
            **dict.fromkeys(("epochs", "images_seen", "train_s", "evaluate_s"), 1.0),
        }
        for method, found in values.items()
        for seed, value in enumerate(found)
        if not np.isnan(value)
    ]
    return pd.DataFrame(rows)


def found_in(values: dict[str, Any], plan: Factorial, metric: str = "balanced_accuracy") -> Effects:
    seeds = range(max(map(len, values.values())))
    frame = frame_of(values, metric)
    return effects(frame, plan, metric, data="chips", split="test", seeds=[*seeds])


def simulated(
    plan: Factorial, blocks: int, rng: np.random.Generator, true: dict[str, float], noise: float
) -> dict[str, Any]:
    """Values of every run: blocks that differ, the effects of the factors that are on, noise."""
    shift = rng.normal(0.6, 0.1, blocks)
    return {
        method: shift + sum(true.get(name, 0.0) for name in on) + rng.normal(0, noise, blocks)
        for method, on in plan.cells().items()
    }


def test_effects_by_hand() -> None:
    found = found_in(BY_HAND, factorial("a", "b"))
    table = found.table.set_index("effect")
    on = {name: np.mean([BY_HAND[m] for m in BY_HAND if name in m.split("+")]) for name in "ab"}
    off = {
        name: np.mean([BY_HAND[m] for m in BY_HAND if name not in m.split("+")]) for name in "ab"
    }
    for name in "ab":
        assert table.loc[name, "estimate"] == pytest.approx(on[name] - off[name])
    # What a brings with b, 0.08, beside what it brings without, 0.04.
    assert table.loc["a", "estimate"] == pytest.approx(0.06)
    assert table.loc["a:b", "estimate"] == pytest.approx(0.04)
    # Saturated in combinations, so the residuals are those of blocks and combinations.
    values = np.array(list(BY_HAND.values()))
    left = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    se = np.sqrt((left**2).sum() / 6 / 3)  # 4 s^2 / 12 runs
    assert (table["freedom"] == 6).all()
    assert table.loc[["a", "b"], "se"].tolist() == pytest.approx([se, se])
    assert table.loc["a:b", "se"] == pytest.approx(2 * se)
    half = stats.t.ppf(0.975, 6) * se
    assert table.loc["a", ["low", "high"]].tolist() == pytest.approx([0.06 - half, 0.06 + half])
    assert table.loc["a", "p"] == pytest.approx(2 * stats.t.sf(0.06 / se, 6))
    assert table.loc["a", "detectable"] == pytest.approx(
        (stats.t.ppf(0.975, 6) + stats.t.ppf(0.8, 6)) * se
    )
    assert (found.blocks, found.lacking, found.runs) == ((0, 1, 2), {}, 4)


def test_two_runs_a_block_are_a_paired_t_test() -> None:
    values = {"bare": BY_HAND["bare"], "a": BY_HAND["a"]}
    row = found_in(values, factorial("a")).table.iloc[0]
    test = stats.ttest_rel(values["a"], values["bare"])
    interval = test.confidence_interval(0.95)
    assert [row["p"], row["low"], row["high"]] == pytest.approx(
        [test.pvalue, interval.low, interval.high]
    )


@pytest.mark.parametrize(
    "plan",
    [
        factorial("a", "b", "c"),
        factorial("a", "b", nested={"n": "b"}),
        factorial("a", "b", nested={"n": "b", "m": "b"}),
        factorial("a", "b", "c", "d", fraction="1/2"),
        factorial("a", "b", "c", "d", nested={"n": "a"}, fraction="1/2"),
    ],
    ids=["full", "nested", "two nested", "half", "half and nested"],
)
def test_the_fit_is_that_of_dummy_variables(plan: Factorial) -> None:
    """The same model in columns of 0 and 1, whose coefficients are put together to effects."""
    num_blocks, rng = 5, np.random.default_rng(0)
    values = simulated(plan, num_blocks, rng, {"a": 0.05, "n": 0.02}, 0.03)
    found = found_in(values, plan).table.set_index("effect")
    pairs = [term.factors for term in plan.terms() if term.kind == "interaction"]
    rows, target = [], []
    for method, on in plan.cells().items():
        own = [*(name in on for name in plan.factors), *({*pair} <= {*on} for pair in pairs)]
        for block in range(num_blocks):
            rows.append([*np.eye(num_blocks)[block], *map(float, own)])
            target.append(values[method][block])
    design = np.array(rows)
    coefficients, (squares,), rank, _ = np.linalg.lstsq(design, np.array(target), rcond=None)
    assert rank == design.shape[1]
    freedom = len(target) - rank
    assert found["freedom"].tolist() == [freedom] * len(found)
    covariance = squares / freedom * np.linalg.inv(design.T @ design)
    names = [*plan.factors, *pairs]
    for effect, row in found.iterrows():
        parts = tuple(str(effect).split(":"))
        contrast = dict.fromkeys(names, 0.0)
        if row["kind"] != "simple":
            contrast[parts if len(parts) == 2 else parts[0]] = 1.0
        if row["kind"] == "simple":
            factor, word, nested = str(effect).split()
            contrast = dict.fromkeys(names, 0.0) | {factor: 1.0, nested: float(word == "with")}
            contrast |= {pair: 0.5 for pair in pairs if factor in pair}
            # Another one within the factor is on in half of these runs.
            others = {n for n, f in plan.factors.items() if f.within == factor} - {nested}
            contrast |= dict.fromkeys(others, 0.5)
        if row["kind"] == "factor":  # half of what depends on others, which are on in half
            contrast |= {pair: 0.5 for pair in pairs if parts[0] in pair}
            contrast |= {n: 0.5 for n, f in plan.factors.items() if f.within == parts[0]}
        weights = np.array([*[0.0] * num_blocks, *(contrast[name] for name in names)])
        assert row["estimate"] == pytest.approx(weights @ coefficients)
        assert row["se"] == pytest.approx(np.sqrt(weights @ covariance @ weights))


def test_a_nested_effect_is_within_its_parent() -> None:
    plan = factorial("a", "b", nested={"n": "b"})
    true = {"a": 0.03, "b": 0.10, "n": 0.05}
    values = simulated(plan, 3, np.random.default_rng(1), true, 0.0)
    table = found_in(values, plan).table.set_index("effect")
    # b's is over runs with and without n.
    assert table["estimate"].to_dict() == pytest.approx(
        {"a": 0.03, "b": 0.125, "n": 0.05, "a:b": 0.0, "b without n": 0.10, "b with n": 0.15}
    )
    assert table.loc["b with n", ["kind", "within"]].tolist() == ["simple", ""]
    assert table.loc[["b without n", "b with n"], "p_holm"].isna().all()
    assert table.loc["n", ["kind", "within"]].tolist() == ["nested", "b"]


def test_a_mean_effect_is_shown_beside_what_it_averages(contest: Contest) -> None:
    plan = factorial("a", nested={"n": "a"})
    values = simulated(plan, 8, np.random.default_rng(0), {"a": 0.05, "n": -0.05}, 0.001)
    methods = {name: Method(name, name, "s", "ablation") for name in values}
    plan_of_it = PLAN.model_copy(update={"factorial": plan, "seeds": tuple(range(8))})
    text = table_markdown(Contest(frame_of(values), methods, plan_of_it))
    assert re.search(r"\| a \| \+2\.\d ", text)
    assert re.search(r"\| a, without n \| \+5\.\d .*\| < 0\.001 \| - \|", text)
    assert re.search(r"\| a, with n \| ≈ [+-]0\.\d ", text)


def test_an_aliased_effect_holds_both() -> None:
    plan = factorial("a", "b", "c", fraction="1/2")
    cells = plan.cells()
    both = {m: np.full(2, 0.1 * ("b" in on and "c" in on)) for m, on in cells.items()}
    table = found_in(both, plan).table.set_index("effect")
    assert list(table.index) == ["a", "b", "c"]
    assert table.loc["a", "aliased"] == "b:c"
    assert table.loc["a", "estimate"] == pytest.approx(0.05)  # nothing but b and c together


def test_intervals_cover_and_detectable_effects_are_detected() -> None:
    """400 plans of 2 x 2 on four blocks: 95 % intervals, power 80 % at the detectable effect."""
    plan, noise, rng = factorial("a", "b"), 0.02, np.random.default_rng(0)
    matrix, repeats = plan.matrix(), 400
    # The true standard error of an effect: 2 sigma / sqrt(16 runs).
    size = float(detectable(np.array([2 * noise / 4]), 9)[0])
    covered = found = 0
    for _ in range(repeats):
        values = simulated(plan, 4, rng, {"a": size}, noise)
        estimate, covariance, freedom = least_squares(np.array([*values.values()]).T, matrix)
        assert freedom == 9
        error = np.sqrt(np.diag(covariance))
        covered += abs(estimate[0] - size) < stats.t.ppf(0.975, 9) * error[0]
        found += abs(estimate[0]) > stats.t.ppf(0.975, 9) * error[0]
    assert covered / repeats == pytest.approx(0.95, abs=0.03)
    assert found / repeats == pytest.approx(0.80, abs=0.05)


def test_a_detectable_effect_has_the_power_of_the_noncentral_t() -> None:
    for freedom in (6, 30, 200):
        size = float(detectable(np.ones(1), freedom)[0])
        critical = stats.t.ppf(0.975, freedom)
        power = stats.nct.sf(critical, freedom, size) + stats.nct.cdf(-critical, freedom, size)
        assert power == pytest.approx(0.8, abs=0.02)


def test_holm_steps_down() -> None:
    p = np.array([0.04, 0.001, 0.03, 0.5])
    # 0.001 * 4, 0.03 * 3, then no smaller than that; 0.04 * 2 < 0.09, 0.5 * 1.
    assert holm(p) == pytest.approx([0.09, 0.004, 0.09, 0.5])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
    table = found_in(BY_HAND, factorial("a", "b")).table
    parts = table[table["kind"] == "factor"]
    assert parts["p_holm"].tolist() == pytest.approx(
        np.maximum(parts["p"], [2 * parts["p"].min(), parts["p"].max()]).tolist()
    )
    assert table.loc[table["kind"] == "interaction", "p_holm"].isna().all()


def test_incomplete_blocks_are_left_out_and_counted() -> None:
    values = {name: [*found, 0.9, 0.1] for name, found in BY_HAND.items()}
    values["a"][3] = np.nan
    values["b"][4] = values["a+b"][4] = np.nan
    found = found_in(values, factorial("a", "b"))
    assert found.blocks == (0, 1, 2)
    assert found.lacking == {3: 1, 4: 2}
    whole = found_in(BY_HAND, factorial("a", "b"))
    pd.testing.assert_frame_equal(found.table, whole.table)


def test_one_block_has_effects_and_no_errors() -> None:
    found = found_in({name: values[:1] for name, values in BY_HAND.items()}, factorial("a", "b"))
    table = found.table.set_index("effect")
    assert table.loc["a", "estimate"] == pytest.approx(0.06)
    assert table[["se", "low", "high", "p", "detectable"]].isna().all(axis=None)
    assert (table["freedom"] == 0).all()


PLAN = Plan.model_validate(
    {
        "name": "p",
        "title": "Parts",
        "seeds": [0, 1, 2, 3],
        "data": {"chips": {"title": "Chips", "builder": "ic_defect_synth_100"}},
        "methods": ["bare"],
        "factorial": {
            "base": "bare",
            "factors": {
                "a": {"settings": {"augment.mixup": 0.1}, "title": "Part A"},
                "b": {"settings": {"augment.cutmix": 0.1}},
            },
        },
        "endpoints": ["balanced_accuracy", "escape_rate"],
    }
)


@pytest.fixture
def contest() -> Contest:
    frame = frame_of(BY_HAND)
    # b saves escapes for sure; a does nothing to them.
    rng = np.random.default_rng(0)
    helps = frame["method"].str.contains("b$") & (frame["method"] != "bare")
    frame["escape_rate"] = 0.3 - 0.2 * helps + rng.normal(0, 0.01, len(frame))
    methods = {name: Method(name, name, "s", "ablation") for name in BY_HAND}
    return Contest(frame, methods, PLAN)


def test_tables_tell_the_effects(contest: Contest, tmp_path: Path) -> None:
    paths = {path.name: path for path in write_tables(tmp_path, contest)}
    table = pd.read_csv(paths["effects.csv"], keep_default_na=True)
    assert table["effect"].tolist() == ["a", "b", "a:b"] * 2
    assert table["metric"].tolist() == ["balanced_accuracy"] * 3 + ["escape_rate"] * 3
    assert set(table["blocks"]) == {3}
    assert set(table["left_out"]) == {1}
    assert table["estimate"].tolist() == pytest.approx(
        effects_table(all_effects(contest))["estimate"].tolist(), abs=1e-6
    )
    text = table_markdown(contest)
    assert "### Chips: balanced accuracy" in text
    row = all_effects(contest)[0].table.iloc[0]
    interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
    assert f"| Part A | +6.0 ({interval}) | < 0.001 | < 0.001 |" in text
    assert re.search(r"\| Part A x b \| (≈ )?\+4\.0 ", text)
    assert "3 complete blocks; left out as incomplete: seed 3 (lacks 4 of 4 runs)." in text
    assert "Significant effect on escape rate, for the better: b (-" in text
    assert "A true effect of " in text


def test_a_plan_without_factors_has_no_effects(contest: Contest, tmp_path: Path) -> None:
    plain = Contest(contest.frame, contest.methods, PLAN.model_copy(update={"factorial": None}))
    assert effects_sections(plain) == []
    assert effects_notes(plain) == []
    assert "effects.csv" not in {path.name for path in write_tables(tmp_path, plain)}
    assert "Which parts help?" not in table_markdown(plain)
    assert "Which parts help?" not in write_page(tmp_path, plain).read_text(encoding="utf-8")


def test_the_page_shows_them(contest: Contest, tmp_path: Path) -> None:
    text = write_page(tmp_path, contest).read_text(encoding="utf-8")
    assert '<a href="#effects">Which parts help?</a>' in text
    assert text.count("<summary>Pairs of parts</summary>") == 2
    assert "Part A" in text
    (section,) = effects_sections(contest)
    figure = effects_figure(section, PLAN.factorial)
    first, second = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert dict(zip(names, first.get_yticks(), strict=True)) == {"Part A": 1, "b": 0}
    dots = first.collections[-1].get_offsets()
    assert dots[:, 0].tolist() == pytest.approx(
        (100 * section.boards[0].effects.parts["estimate"]).tolist()
    )
    assert "less is better" in second.get_xlabel()
    from matplotlib.colors import to_hex

    colours = [to_hex(colour) for colour in second.collections[-1].get_facecolors()]
    assert colours == [GREY, GREEN]  # fewer escapes are better
    worse = contest.frame.assign(escape_rate=1 - contest.frame["escape_rate"])
    (section,) = effects_sections(Contest(worse, contest.methods, PLAN))
    colours = [
        to_hex(colour)
        for colour in effects_figure(section, PLAN.factorial)
        .axes[1]
        .collections[-1]
        .get_facecolors()
    ]
    assert colours == [GREY, RED]


def test_a_metric_without_values_is_said_in_words(contest: Contest, tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"endpoints": ("balanced_accuracy", "tail_unseen")})
    nothing = Contest(contest.frame, contest.methods, plan)
    text = table_markdown(nothing)
    assert "No seed has a value for all its 4 runs, so no effect can be estimated." in text
    assert "Of tail recall on unseen clusters: 0 complete blocks" in text
    page = write_page(tmp_path, nothing).read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower()


def test_half_a_plan_says_what_it_cannot_tell(contest: Contest) -> None:
    plan = factorial("a", "b", "c", "d", fraction="1/2")
    values = simulated(plan, 3, np.random.default_rng(0), {"a": 0.1}, 0.01)
    methods = {name: Method(name, name, "s", "ablation") for name in values}
    half = Contest(frame_of(values), methods, PLAN.model_copy(update={"factorial": plan}))
    text = table_markdown(half)
    assert "those with I = a x b x c x d (resolution IV): 8 runs a block." in text
    assert "with the interaction of the 3 others, and each pair with that of the 2 others" in text
    assert re.search(r"\| a \| \+\d+\.\d \(.*\| b x c x d \|\n", text)
    assert re.search(r"\| a x b \|.*\| c x d \|\n", text)
