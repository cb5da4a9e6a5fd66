from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from recame.decisions.flips import Answers
from recame.decisions.gate import GateResult, GateRow, judge
from recame.decisions.gate_rules import GateRules, overall, verdicts
from recame.decisions.paired_rates import change_interval, worse_p_value
from recame.errors import ConfigError, DataError

NAMES = ("ok", "crack", "dent")


def answers(target: np.ndarray, escaped: np.ndarray, wrong: np.ndarray) -> Answers:
    gone = np.isin(np.arange(len(target)), escaped)
    return Answers(gone, ~gone & ~np.isin(np.arange(len(target)), wrong))


def ask(
    old: tuple[list[int], list[int]],
    new: tuple[list[int], list[int]],
    rules: GateRules,
    counts: tuple[int, ...] = (600, 600, 600),
    **others: Any,
) -> GateResult:
    """Images 0 to 599 are ok, then cracks, then dents; lists of escaped and of wrong ones."""
    target = np.repeat(np.arange(3), counts)
    two = (answers(target, *(np.array(part, np.int64) for part in pair)) for pair in (old, new))
    named = [f"{i}.png" for i in range(len(target))]
    given = {"images": named, "names": NAMES, "normal_index": 0, **others}
    return judge(rules, *two, target, **given)


def row_of(
    result: GateResult, what: str, name: str | None = None, product: str | None = None
) -> GateRow:
    key = (what, name, product)
    return next(r for r in result.rows if (r.what, r.class_name, r.product) == key)


CRACK = GateRules(critical=("crack",))


def test_the_same_answers_pass() -> None:
    result = ask(([605, 606], [3, 700]), ([605, 606], [3, 700]), CRACK)
    assert (result.verdict, result.exit_code, result.flips) == ("passed", 0, ())
    row = row_of(result, "escapes", "crack")
    assert (row.images, row.old, row.new, row.difference) == (600, 2 / 600, 2 / 600, 0.0)
    assert row.high == pytest.approx(0.0045, abs=1e-4)
    assert row.sentence == (
        "Escapes of crack: 0.33% before, 0.33% now on 600 images, +0.00 points (-0.45 to +0.45); "
        "shown not to be worse by 2 points."
    )


def test_more_escapes_of_a_critical_class_block_and_are_named() -> None:
    old, new = list(range(600, 612)), list(range(603, 627))  # 3 are caught, 15 escape now
    result = ask((old, []), (new, [0, 1300]), CRACK)
    assert (result.verdict, result.exit_code) == ("blocked", 1)
    row = row_of(result, "escapes", "crack")
    assert (row.old, row.new) == (0.02, 0.04)
    # The first step of Holm's method: the only strict row has nine tenths of the risk.
    assert row.p_value == pytest.approx(worse_p_value(15, 3, 600) / 0.9)
    assert (row.low, row.high) == change_interval(15, 3, 600, 0.95)
    assert row.strict
    assert result.sentence == f"The new model is worse. {row.sentence}"
    assert row.sentence.endswith("; shown to be worse.")
    assert [flip.image for flip in result.flips] == [
        *(f"{i}.png" for i in range(612, 627)),
        *("0.png", "1300.png"),
        *("600.png", "601.png", "602.png"),
    ]
    assert [flip.what for flip in result.flips][14:18] == [
        "critical defect escapes now",
        "wrong now",
        "wrong now",
        "caught now",
    ]
    assert result.flips[0].class_name == "crack"


def test_the_same_rise_of_another_class_does_not_block() -> None:
    old, new = list(range(1200, 1212)), list(range(1203, 1227))
    result = ask((old, []), (new, []), CRACK)
    assert row_of(result, "escapes", "dent").verdict == "cannot_tell"
    assert (result.verdict, result.exit_code) == ("passed", 0)
    every = ask((old, []), (new, []), GateRules(critical=("crack",), every_row=True))
    assert (every.verdict, every.exit_code) == ("cannot_tell", 3)
    assert "Escapes of dent: 2.00% before" in every.sentence


def test_another_class_blocks_beyond_the_margin() -> None:
    result = ask(([], []), (list(range(1200, 1240)), []), CRACK)
    row = row_of(result, "escapes", "dent")
    assert (row.verdict, row.strict, result.exit_code) == ("blocked", False, 1)
    assert row.sentence.endswith("shown to be worse by more than 2 points.")
    assert row_of(result, "escapes", "crack").verdict == "passed"


def test_all_defects_are_strict_where_no_class_is_critical() -> None:
    result = ask(([], []), (list(range(1185, 1215)), []), GateRules(escape_margin=0.015))
    row = row_of(result, "escapes")
    assert (row.strict, row.verdict, result.exit_code) == (True, "blocked", 1)
    assert row.sentence.startswith("Escapes of all defects: 0.00% before, 2.50% now on 1,200")


def test_a_change_within_the_margin_passes_though_it_is_certain() -> None:
    many = (20_000, 20_000, 20_000)
    result = ask(([], []), (list(range(20_000, 20_200)), []), CRACK, many)
    row = row_of(result, "escapes", "crack")
    assert (row.difference, row.verdict, result.exit_code) == (0.01, "passed", 0)
    assert row.p_value < 1e-5


def test_few_images_cannot_tell_but_what_is_certain_blocks() -> None:
    few = (20, 20, 20)
    same = ask(([25], []), ([25], []), CRACK, few)
    assert (same.verdict, same.exit_code) == ("cannot_tell", 3)
    assert "fewer than 30 images are too few to tell" in same.sentence
    lost = ask(([], []), (list(range(20, 35)), []), CRACK, few)
    assert lost.exit_code == 1
    wide = ask(([], []), ([], []), GateRules(critical=("crack",), escape_margin=0.2), few)
    assert row_of(wide, "escapes", "crack").high < 0.2
    assert wide.exit_code == 3


def test_a_critical_class_without_images_cannot_tell() -> None:
    result = ask(([], []), ([], []), CRACK, (600, 0, 600))
    row = row_of(result, "escapes", "crack")
    assert (row.old, row.new, row.difference, row.low, row.high) == (None, None, None, -1.0, 1.0)
    assert row.sentence == "Escapes of crack: there is no image of it."
    assert result.exit_code == 3


def test_a_recall_that_falls_has_its_sign() -> None:
    result = ask(([], []), ([], list(range(1200, 1260))), CRACK)
    row = row_of(result, "recall", "dent")
    assert (row.old, row.new, row.verdict) == (1.0, 0.9, "blocked")
    assert row.difference == pytest.approx(-0.1)
    assert -0.13 < row.low < -0.1 < row.high < -0.08
    whole = row_of(result, "balanced accuracy")
    assert whole.difference == pytest.approx(-0.1 / 3)
    error = math.sqrt((600 * 0.09 + 0.5) / 601 / 600 + 2 * 0.5 / 601 / 600) / 3
    assert whole.low == pytest.approx(-0.1 / 3 - 1.6449 * error, abs=1e-5)
    assert whole.verdict == "blocked"


def test_products_are_judged_each() -> None:
    products = ["a", "b"] * 900
    lost = list(range(601, 681, 2))  # all of product b
    rules = GateRules(critical=("crack",), products=True)
    result = ask(([], []), (lost, []), rules, products=products)
    assert row_of(result, "escapes", "crack", "a").verdict == "passed"
    there = row_of(result, "escapes", "crack", "b")
    assert (there.images, there.new, there.verdict) == (300, 40 / 300, "blocked")
    assert there.sentence.startswith("Escapes of crack on product b: 0.00% before, 13.33% now")
    assert result.flips[0].product == "b"
    assert len(result.rows) == 7 + 2 * 3


def test_images_without_a_label_are_left_out() -> None:
    target = np.array([0, 1, -1, 1])
    before = Answers(np.array([0, 0, 0, 1], bool), np.array([1, 1, 0, 0], bool))
    after = Answers(np.array([0, 1, 1, 0], bool), np.array([1, 0, 0, 1], bool))
    result = judge(
        *(GateRules(), before, after, target),
        images=list("abcd"),
        names=("ok", "crack"),
        normal_index=0,
    )
    assert row_of(result, "balanced accuracy").images == 3
    assert [(flip.image, flip.what) for flip in result.flips] == [
        ("b", "escapes now"),
        ("d", "caught now"),
    ]


def test_result_is_ready_for_json() -> None:
    facts = ask(([], []), ([600], []), CRACK).to_dict()
    assert facts["exit_code"] == 0
    assert facts["rows"][0]["what"] == "escapes"
    assert facts["flips"] == [
        {
            "image": "600.png",
            "class_name": "crack",
            "product": None,
            "what": "critical defect escapes now",
        }
    ]


def test_an_equally_good_model_is_seldom_blocked_by_any_row() -> None:
    """Eight rows, each of images that differ by chance, where intervals are far off the margin."""
    generator, draws = np.random.default_rng(0), 8000
    counts = generator.multinomial(300, [0.02, 0.02, 0.96], size=(draws, 8))[..., :2]
    pairs = counts.reshape(-1, 2).tolist()
    p_values = np.array([worse_p_value(*pair, 300) for pair in pairs]).reshape(draws, 8)
    strict = np.arange(8) < 2
    ends = change_interval(counts[..., 0], counts[..., 1], 300, 0.95)
    codes, adjusted = verdicts(
        GateRules(escape_margin=0.0), ends, p_values, np.full(8, 300), np.zeros(8), strict
    )
    blocked = (codes == 1).any(1).mean()
    assert 0.03 < blocked <= 0.053
    assert np.all(adjusted >= p_values)


def test_adjusted_p_values_by_hand() -> None:
    strict = np.array([True, False, False])
    p_values = np.array([0.02, 0.001, 0.5])
    unknown = np.full(3, -1.0), np.full(3, 1.0)
    _, adjusted = verdicts(GateRules(), unknown, p_values, np.full(3, 99), np.zeros(3), strict)
    # Weights 0.9, 0.05, 0.05; smallest first: 0.001 / 0.05 = 0.02, 0.02 / 0.9 = 0.0222.
    assert adjusted[1] == pytest.approx(0.02)
    assert adjusted[0] == pytest.approx(max(0.02, 0.02 / 0.9 * 0.95))
    assert adjusted[2] == pytest.approx(0.5)


def test_one_blocked_row_blocks_and_only_required_ones_leave_open() -> None:
    codes = np.array([[0, 3, 0], [3, 0, 0], [3, 0, 1], [0, 0, 0]])
    assert overall(codes, np.array([True, False, True])).tolist() == [0, 3, 1, 0]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"margin": 0.1}, "no rule margin"),
        ({"confidence": 0.5}, "confidence is 0.5.*above 0.5 to below 1"),
        ({"confidence": 95}, "confidence is 95"),
        ({"escape_margin": -0.01}, "escape_margin is -0.01.*from 0.0 to below 1.0"),
        ({"accuracy_margin": True}, "accuracy_margin is True"),
        ({"accuracy_margin": math.nan}, "accuracy_margin is nan"),
        ({"critical": "crack"}, "critical is 'crack', but it must be a list"),
        ({"critical": [1]}, "critical is"),
        ({"least_images": 0}, "least_images is 0"),
        ({"least_images": 2.5}, "least_images is 2.5"),
        ({"products": "yes"}, "products is 'yes'"),
    ],
)
def test_rules_that_are_none(facts: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        GateRules.from_dict(facts)


def test_rules_from_a_file() -> None:
    facts = {"critical": ["crack"], "escape_margin": 0, "least_images": 50}
    assert GateRules.from_dict(facts) == GateRules(
        critical=("crack",), escape_margin=0, least_images=50
    )


def test_what_does_not_fit() -> None:
    same = ([], [])
    with pytest.raises(ConfigError, match=r"critical class scratch .* \(crack, dent\)"):
        ask(same, same, GateRules(critical=("scratch",)))
    with pytest.raises(ConfigError, match="critical class ok is not among the defects"):
        ask(same, same, GateRules(critical=("ok",)))
    with pytest.raises(ConfigError, match="no image's product is known"):
        ask(same, same, GateRules(products=True))
    with pytest.raises(DataError, match="1 image of the normal class ok escaped"):
        ask(same, ([3], []), CRACK)
    with pytest.raises(DataError, match=r"have \[5, 1800\] rows"):
        ask(same, same, CRACK, products=["a"] * 5)
    with pytest.raises(DataError, match="index 2, but there are only 2 classes"):
        ask(same, same, CRACK, names=NAMES[:2])
