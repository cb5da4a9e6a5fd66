"""What is promised where the unknown, purity and a line's shares meet; the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from recame.decisions.actions import AUTOMATIC, UNKNOWN
from recame.decisions.limits import Limits
from recame.decisions.scored import Scored
from recame.decisions.tune import tune
from recame.decisions.tuned import Tuned
from recame.decisions.verification import verify
from recame.errors import ConfigError

NAMES = ("good", "a", "b")
MIX = np.array([0.60, 0.05, 0.35])


def drawn(counts: tuple[int, ...], seed: int, far: float = 0.5) -> Scored:
    """Images of three classes; a share of `a` lies far from all that trained."""
    rng = np.random.default_rng(seed)
    target = np.repeat(np.arange(3), counts)
    logits = rng.normal(0, 1, (len(target), 3))
    logits[np.arange(len(target)), target] += 4.0
    # Some of b are called a, by which its purity is what is left of a's own.
    swapped = (target == 2) & (rng.random(len(target)) < 0.01)
    logits[swapped] = logits[swapped][:, [0, 2, 1]]
    strange = rng.random(len(target))
    strange[(target == 1) & (rng.random(len(target)) < far)] += 5.0
    names = [f"{seed}-{number}" for number in range(len(target))]
    return Scored(logits, target, names, None, strange)


def tuned(images: Scored, **asked: object) -> Tuned:
    limits = Limits.from_dict({"escape": 0.2, **asked})
    tail = np.array([False, True, False])
    return tune(images, NAMES, "good", limits, usual_mix=MIX, tail=tail)


@pytest.mark.parametrize(("limit", "shown"), [(0.6, 20), (0.84, 0)])
def test_purity_is_that_of_what_the_unknown_leaves(limit: float, shown: int) -> None:
    """Half of `a` is unknown: what is left is `a` in 82 %, with all of it in 90 %."""
    truth = drawn((60_000, 60_000, 60_000), 99)
    promised = broken = 0
    for seed in range(30):
        found = tuned(
            drawn((3000, 3000, 3000), seed),
            purity={"a": limit},
            unknown_false_alarm={"overall": 0.05},
        )
        [purity] = [promise for promise in found.promises if promise.kind == "purity"]
        if purity.limit is None:
            continue
        acted = found.policy.act(truth.logits, strangeness=truth.unknown)
        called = (acted.action == AUTOMATIC) & (acted.best == 1)
        rate = np.array([called[truth.target == index].mean() for index in range(3)])
        promised += 1
        broken += MIX[1] * rate[1] / (MIX @ rate) < purity.limit
    assert promised >= shown
    assert broken <= 2


def test_the_tail_is_verified_by_its_own_images() -> None:
    found = tuned(
        drawn((2000, 400, 400), 0, far=0.0), unknown_false_alarm={"overall": 0.1, "tail": 0.1}
    )
    kinds = {promise.kind: promise for promise in found.promises}
    assert kinds["tail_false_alarm"].classes == ("a",)
    moved = drawn((2000, 400, 400), 1, far=0.9)  # the tail has changed, and is 5 % of the line
    rows = {row.promise.kind: row for row in _verified(found, moved).rows}
    assert rows["tail_false_alarm"].outcome == "broken"
    assert rows["tail_false_alarm"].images == 400
    same = {row.promise.kind: row for row in _verified(found, drawn((2000, 400, 400), 2, 0.0)).rows}
    assert "broken" not in {row.outcome for row in same.values()}


def _verified(found: Tuned, images: Scored):
    return verify(images, found.policy, found.promises, mix=found.expected.mix)


def test_false_alarms_are_those_of_the_line_and_not_of_the_set() -> None:
    found = tuned(drawn((3000, 300, 1750), 0), unknown_false_alarm={"overall": 0.06})
    # A set with as many of each class holds far more of the strange class than the line does.
    balanced = drawn((1500, 1500, 1500), 3)
    acted = found.policy.act(balanced.logits, strangeness=balanced.unknown)
    assert (acted.action == UNKNOWN).mean() > 0.1
    [row] = [
        row for row in _verified(found, balanced).rows if row.promise.kind == "unknown_false_alarm"
    ]
    assert row.outcome != "broken"
    assert row.images < 3000


@pytest.mark.parametrize("asked", ["smallest", {"overall": 0.05}])
def test_a_class_without_images_leaves_the_promise_of_the_others(asked: object) -> None:
    images = drawn((1500, 0, 1500), 0)
    found = tuned(images, unknown_false_alarm=asked, escape="smallest")
    assert found.policy.unknown_above is not None
    assert [p.kind for p in found.promises if p.kind != "escape"] == ["unknown_false_alarm"]
    assert "The calibration holds no image of a" in " ".join(found.sentences())


def test_what_too_few_images_promise_is_said() -> None:
    few = drawn((3, 3, 3), 0)
    found = tune(few, NAMES, None, Limits(), usual_mix=MIX)
    assert found.policy.unknown_above is None
    with pytest.raises(
        ConfigError, match=r"unknown_false_alarm 5\.00% overall \(\d+ images?: it takes"
    ):
        tune(few, NAMES, None, Limits.from_dict({"unknown_false_alarm": 0.05}), usual_mix=MIX)
    with pytest.raises(ConfigError, match=r"unknown_false_alarm 0\.00% overall: no number of imag"):
        tune(few, NAMES, None, Limits.from_dict({"unknown_false_alarm": 0}), usual_mix=MIX)
    with pytest.raises(
        ConfigError, match=r"unknown_false_alarm 60\.00% tail: .* above 50% is worth"
    ):
        tuned(few, unknown_false_alarm={"overall": 0.1, "tail": 0.6})
    bare, asked = Scored(few.logits, few.target, few.images), {"unknown_false_alarm": 0.05}
    with pytest.raises(ConfigError, match="a score of how strange each image is"):
        tune(bare, NAMES, None, Limits.from_dict(asked))
