from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from recame.decisions.actions import ACTIONS, Policy, candidates
from recame.decisions.scored import release_scores
from recame.errors import CheckpointError

NAMES = ("good", "bridge", "open")


def policy(**changes: object) -> Policy:
    values: dict[str, object] = {
        "names": NAMES,
        "normal": 0,
        "release_above": 2.0,
        "automatic_above": np.array([math.inf, 1.0, math.inf]),
        "unknown_above": 5.0,
        "products": frozenset({"P1", "P2"}),
        **changes,
    }
    return Policy(**values)  # type: ignore[arg-type]


def logits(*odds: tuple[int, float]) -> np.ndarray:
    """Rows in which a class has so much more than the two others, which are alike."""
    rows = np.zeros((len(odds), 3))
    for row, (index, value) in zip(rows, odds, strict=True):
        row[index] = value + math.log(2)
    return rows


def test_every_reason_in_its_order() -> None:
    scores = logits((0, 3), (0, 3), (0, 3), (0, 3), (0, 3), (0, 1.9), (1, 2), (1, 0.5), (2, 9))
    scores[0, 1] = math.nan
    acted = policy().act(
        scores,
        strangeness=np.array([0, 6, 1, 1, 1, 1, 1, 1, 1.0]),
        products=["P1", "P1", "P9", "P1", "P1", "P1", "P2", "P2", "P1"],
        drawn=np.array([False, False, False, True] + [False] * 5),
    )
    assert acted.reasons() == [
        *("not_finite", "unknown", "product_unseen", "audit", "released", "below_release"),
        *("automatic", "ambiguous", "class_not_promised"),
    ]
    assert [ACTIONS[number] for number in acted.action] == [
        *("review", "unknown", "review", "review", "release", "review"),
        *("automatic", "review", "review"),
    ]
    assert acted.best.tolist()[1:] == [0, 0, 0, 0, 0, 1, 1, 2]
    assert math.isnan(acted.odds[0])
    assert acted.odds[4] == pytest.approx(3)


def test_a_threshold_is_not_above_itself() -> None:
    scores = logits((0, 2.0))
    exact = policy(release_above=float(policy().act(scores).odds[0]))
    assert exact.act(scores).reasons() == ["below_release"]
    assert exact.act(scores + np.array([1e-9, 0, 0])).reasons() == ["released"]


def test_by_weights_an_image_passes_whatever_it_is_called() -> None:
    weighed = policy(defect_weights=np.array([1.0, 1.9, 0.1]), release_above=0.0)
    scores = np.log([[0.4, 0.1, 0.5], [0.4, 0.5, 0.1], [0.9, 0.05, 0.05]])
    acted = weighed.act(scores)
    assert acted.reasons() == ["released", "ambiguous", "released"]
    assert acted.best.tolist() == [0, 1, 0]
    assert acted.odds[0] == pytest.approx(math.log(0.4 / 0.6))
    guarded = replace(weighed, guarded=frozenset({2}))
    assert guarded.act(scores).reasons() == ["class_not_promised", "ambiguous", "released"]
    told = json.loads(json.dumps(guarded.to_dict()))
    assert told["defect_weights"] == {"bridge": 1.9, "open": 0.1}
    assert told["guarded"] == ["open"]
    again = Policy.from_dict(told, NAMES)
    assert again.act(scores).reasons() == guarded.act(scores).reasons()
    for wrong in (0.0, "much", True, math.inf):
        damaged = {**told, "defect_weights": {"bridge": wrong, "open": 1.0}}
        with pytest.raises(CheckpointError, match="decision policy cannot be read"):
            Policy.from_dict(damaged, NAMES)


def test_no_weights_let_fewer_defects_escape_than_their_frequencies() -> None:
    """On a line of known densities: two defects on two sides, one of them rare."""
    rng = np.random.default_rng(0)
    places, share = np.array([0.0, 2.5, -2.5]), np.array([0.9, 0.095, 0.005])
    target = rng.choice(3, 40_000, p=share)
    x = rng.normal(places[target], 1.0)
    logits = -((x[:, None] - places) ** 2) / 2  # of equally frequent classes

    def escaping(weights: list[float]) -> float:
        scores = release_scores(logits, 0, np.array([1.0, *weights]))
        above = np.quantile(scores[target == 0], 0.02)
        return float((scores[target != 0] > above).mean())

    by_frequency = escaping([0.095, 0.005])
    assert by_frequency < escaping([0.5, 0.5]) - 0.03
    assert by_frequency < escaping([0.005, 0.095]) - 0.3


def test_what_is_strange_beyond_numbers_is_unknown() -> None:
    acted = policy().act(logits((0, 9), (0, 9)), strangeness=np.array([math.nan, 5.0]))
    assert acted.reasons() == ["unknown", "released"]


def test_without_a_normal_class_nothing_is_released() -> None:
    free = policy(normal=None, automatic_above=np.full(3, -math.inf), release_above=math.inf)
    assert set(free.act(logits((0, 9), (1, 0.1))).reasons()) == {"automatic"}


def test_what_no_one_asks_of_is_not_asked() -> None:
    plain = policy(unknown_above=None, products=None)
    acted = plain.act(logits((0, 9)), strangeness=np.array([1e9]), products=["P77"])
    assert acted.reasons() == ["released"]


def test_no_image() -> None:
    acted = policy().act(np.zeros((0, 3)))
    assert len(acted.reason) == len(acted.best) == 0
    assert acted.reasons() == []


def test_candidates_for_a_person() -> None:
    found = candidates(
        policy().names,
        np.array([[0.5, 0.44, 0.06], [0.97, 0.02, 0.01], [0.3, 0.3, 0.4]], np.float32),
    )
    assert found == ["good|bridge|open", "good", "open|good|bridge"]


def test_the_audit_is_drawn_by_content() -> None:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]
    drawn = policy(audit=0.1).draws([*digests, None])
    assert drawn is not None
    assert not drawn[-1]
    assert drawn.mean() == pytest.approx(0.1, abs=0.02)
    again = policy(audit=0.1).draws(digests[::-1])
    assert again is not None
    assert (again[::-1] == drawn[:-1]).all()
    assert policy().draws(digests) is None


def test_a_policy_is_read_as_it_was_written() -> None:
    told = json.loads(json.dumps(policy().to_dict(), allow_nan=False))
    assert told["automatic_above"] == {"bridge": 1.0, "open": "never"}
    again = Policy.from_dict(told, NAMES)
    assert again.to_dict() == told
    assert again.automatic_above.tolist() == [math.inf, 1.0, math.inf]
    free = policy(normal=None, automatic_above=np.full(3, -math.inf), release_above=math.inf)
    assert Policy.from_dict(free.to_dict(), NAMES).release_above == math.inf
    few = policy(review_budget=0.08, lot_column="wafer lot")
    read = Policy.from_dict(json.loads(json.dumps(few.to_dict())), NAMES)
    assert (read.review_budget, read.lot_column) == (0.08, "wafer lot")


def test_a_policy_of_before_has_no_budget() -> None:
    told = policy().to_dict()
    del told["review_budget"], told["lot_column"]
    read = Policy.from_dict(told, NAMES)
    assert (read.review_budget, read.lot_column) == (None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"normal": "fine"},
        {"release_above": "often"},
        {"release_above": math.nan},
        {"release_above": None},
        {"release_above": True},
        {"automatic_above": {"bridge": 1.0}},
        {"products": 3},
        {"audit": 1.5},
        {"review_budget": 1.5},
    ],
)
def test_a_damaged_policy_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="recame tune"):
        Policy.from_dict({**policy().to_dict(), **change}, NAMES)
    lacking = policy().to_dict()
    del lacking["products"]
    with pytest.raises(CheckpointError, match="products"):
        Policy.from_dict(lacking, NAMES)
