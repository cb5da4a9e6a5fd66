from __future__ import annotations

import json
from unittest.mock import ANY

import numpy as np
import pytest
from scipy.special import softmax

from recame.contracts import FloatArray, IntArray
from recame.decisions.limits import Limits
from recame.decisions.line_mix import LEAST_IMAGES, LineMix, estimate_line
from recame.decisions.prior_shift import Known
from recame.decisions.scored import Scored
from recame.decisions.tune import tune
from recame.errors import CheckpointError, ConfigError

NAMES = ("good", "bridge", "open")
EQUAL = np.full(3, 1 / 3)
LINE = np.array([0.95, 0.04, 0.01])
MEANS = 3.0 * np.eye(3)


def drawn(counts: IntArray, seed: int) -> tuple[FloatArray, IntArray]:
    """Logits of Gaussian images, exact were all classes equally frequent, and their classes."""
    random = np.random.default_rng(seed)
    target = np.repeat(np.arange(3), counts)
    return (random.normal(size=(len(target), 3)) + MEANS[target]) @ MEANS.T, target


def estimated(images: int = 3000, unknown_share: float | None = None, tests: int = 300) -> LineMix:
    logits, _ = drawn((LINE * images).round().astype(int), 1)
    own, target = drawn(np.full(3, tests), 2)
    return estimate_line(
        softmax(logits, 1),
        EQUAL,
        Known(softmax(own, 1), target),
        NAMES,
        unknown_share=unknown_share,
        source="lot7.csv",
        sha256="ab" * 32,
    )


def scored(each: int = 600) -> Scored:
    logits, target = drawn(np.array([4000, each, each]), 3)
    images = [f"{n}.png" for n in range(len(target))]
    strange = np.random.default_rng(4).normal(size=len(target))
    return Scored(logits, target, images, unknown=strange)


ASKED = {"escape": 0.05, "purity": {"bridge": 0.8}, "unknown_false_alarm": 0.05}


def test_a_lot_tells_how_often_each_class_comes() -> None:
    found = estimated()
    np.testing.assert_allclose(found.shares, LINE, atol=0.01)
    assert ((found.estimate.low <= LINE) & (found.estimate.high >= LINE)).all()
    good = found.estimate
    assert found.words().startswith(
        f"a line as estimated from 3,000 images of lot7.csv (good {good.prior[0]:.1%} "
        f"({good.low[0]:.1%} to {good.high[0]:.1%}), bridge "
    )


def test_it_is_read_as_it_was_written() -> None:
    found = estimated()
    told = json.loads(json.dumps(found.to_dict()))
    assert told["prior"]["good"] == found.shares[0]
    assert (told["images"], told["sha256"]) == (3000, "ab" * 32)
    assert "escape limits do not depend on it" in told["holds"]
    again = LineMix.from_dict(told, NAMES[::-1])
    assert again.shares.tolist() == found.shares[::-1].tolist()
    assert LineMix.from_dict(told, NAMES).sentence() == found.sentence()
    with pytest.raises(CheckpointError, match="--lot"):
        LineMix.from_dict(told, ("good", "bridge", "void"))


def test_an_estimate_is_used_where_a_stated_mix_is() -> None:
    line = estimated()
    limits = Limits.from_dict({**ASKED, "line_mix": "estimate"})
    found = tune(scored(), NAMES, "good", limits, line=line)
    mix = dict(zip(NAMES, line.shares.tolist(), strict=True))
    same = tune(scored(), NAMES, "good", Limits.from_dict({**ASKED, "line_mix": mix}))
    own, stated = found.policy.to_dict(), same.policy.to_dict()
    # But for release, which no estimate moves and a stated mix does.
    assert own.pop("defect_weights") == {"bridge": 1.0, "open": 1.0}
    assert stated.pop("defect_weights") == {"bridge": pytest.approx(1.6, 0.01), "open": ANY}
    assert own.pop("release_above") != stated.pop("release_above")
    assert own == stated
    booked = [p for p in found.promises if p.kind != "escape"]
    assert booked == [p for p in same.promises if p.kind != "escape"]
    np.testing.assert_allclose(found.expected.mix, line.shares)
    assert found.facts["line"] == line.to_dict()
    assert f"for {line.words()}" in " ".join(found.sentences())
    # It matters: where so many bridges come as the labelled images hold, more of them are booked.
    bare = tune(scored(), NAMES, "good", Limits.from_dict(ASKED))
    assert bare.policy.automatic_above[1] < found.policy.automatic_above[1]
    assert bare.policy.unknown_above != found.policy.unknown_above


@pytest.mark.parametrize("alarms", [0.05, "smallest", False, {"overall": 0.05, "tail": 0.2}])
@pytest.mark.parametrize("escape", [0.05, "smallest"])
def test_no_threshold_of_release_rests_on_it(alarms: object, escape: object) -> None:
    asked = {"escape": escape, "purity": 0.5, "unknown_false_alarm": alarms}
    tail = np.array([False, False, True])
    line = estimated()
    extreme = LineMix.from_dict(
        {**line.to_dict(), "prior": {"good": 1.0, "bridge": 0.0, "open": 0.0}}, NAMES
    )
    bare = tune(scored(), NAMES, "good", Limits.from_dict(asked), tail=tail)
    for told in (line, extreme):
        limits = Limits.from_dict({**asked, "line_mix": "estimate"})
        if isinstance(alarms, dict) and told is extreme:
            with pytest.raises(ConfigError, match="unknown_false_alarm cannot be kept"):
                tune(scored(), NAMES, "good", limits, tail=tail, line=told)
            continue
        found = tune(scored(), NAMES, "good", limits, tail=tail, line=told)
        assert found.policy.release_above == bare.policy.release_above
        escapes = [p for p in found.promises if p.kind == "escape"]
        assert escapes == [p for p in bare.promises if p.kind == "escape"]


@pytest.mark.parametrize(
    ("lot", "told"),
    [
        (
            {"images": LEAST_IMAGES - 20},
            "180 images with probabilities are too few (200 are needed)",
        ),
        ({"unknown_share": 0.2}, "20.0% of the images are of no known class"),
        ({"tests": 0}, "no labelled image shows how good is predicted"),
    ],
)
def test_what_tells_no_mix_is_refused_and_nothing_taken_instead(
    lot: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        estimated(**lot)  # type: ignore[arg-type]
    assert told in str(refused.value)
    assert "No other mix was used instead" in str(refused.value)
    assert "line_mix: {good: 98, bridge: 2}" in str(refused.value)


def test_classes_that_are_called_alike_tell_no_mix() -> None:
    blind = np.tile([0.4, 0.3, 0.3], (900, 1))
    known = Known(blind, np.repeat([0, 1, 2], 300))
    facts = {"unknown_share": None, "source": "lot.csv", "sha256": ""}
    with pytest.raises(ConfigError, match="get the same predictions"):
        estimate_line(blind, EQUAL, known, NAMES, **facts)  # type: ignore[arg-type]


def test_an_estimate_is_asked_for_and_given_or_neither() -> None:
    estimate = Limits.from_dict({"line_mix": "estimate"})
    with pytest.raises(ConfigError, match="none are given"):
        tune(scored(), NAMES, "good", estimate)
    with pytest.raises(ConfigError, match="the limits do not ask for it"):
        tune(scored(), NAMES, "good", Limits(), line=estimated())
    priced = {"line_mix": "estimate", "prices": {"escape": 9, "false_call": 1, "review": 1}}
    with pytest.raises(ConfigError, match="state the mix, or leave prices out"):
        tune(scored(), NAMES, "good", Limits.from_dict(priced), line=estimated())
