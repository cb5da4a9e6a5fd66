from __future__ import annotations

import math

import numpy as np
import pytest

from recame.decisions.actions import Policy
from recame.decisions.promises import Promise
from recame.decisions.scored import Scored
from recame.decisions.verification import verify

NAMES = ("good", "bridge", "open")
MIX = np.full(3, 1 / 3)
POLICY = Policy(NAMES, 0, 0.0, np.full(3, -math.inf))


def images(bridges: tuple[int, int], opens: tuple[int, int], called_open: int = 0) -> Scored:
    """Of each class so many, of which so many are released; and bridges that are called open."""
    target = np.repeat([0, 1, 2], [300, bridges[0], opens[0]])
    called = target.copy()
    called[300 : 300 + bridges[1]] = 0
    called[300 + bridges[0] : 300 + bridges[0] + opens[1]] = 0
    called[300 + bridges[1] : 300 + bridges[1] + called_open] = 2
    logits = 9.0 * np.eye(3)[called]
    return Scored(logits, target, [str(n) for n in range(len(target))])


ESCAPES = tuple(Promise("escape", name, 0.02, 300, 0) for name in NAMES[1:])


@pytest.mark.parametrize(
    ("bridges", "opens", "outcome", "exit_code"),
    [
        ((300, 1), (300, 0), "holds", 0),
        ((300, 20), (300, 0), "broken", 1),
        ((20, 0), (300, 0), "too few", 3),
        ((300, 6), (300, 0), "too few", 3),
        ((20, 0), (300, 20), "broken", 1),
        ((0, 0), (300, 0), "too few", 3),
    ],
)
def test_outcomes(
    bridges: tuple[int, int], opens: tuple[int, int], outcome: str, exit_code: int
) -> None:
    found = verify(images(bridges, opens), POLICY, ESCAPES, mix=MIX)
    assert (found.outcome, found.exit_code) == (outcome, exit_code)
    first = found.rows[0]
    assert (first.images, first.beyond) == bridges


def test_words() -> None:
    found = verify(images((20, 0), (300, 20)), POLICY, ESCAPES, mix=MIX)
    bridge, opened = (row.sentence("board") for row in found.rows)
    assert bridge == (
        "0 of 20 boards of bridge are released: too few to tell whether the limit of 2.00% holds "
        "(it takes 149 if none is)."
    )
    assert opened == "20 of 300 boards of open are released: the limit of 2.00% is BROKEN."


def test_purity() -> None:
    made = (Promise("purity", "open", 0.9, 300, 0),)
    clean = verify(images((600, 0), (600, 0)), POLICY, made, mix=MIX)
    assert clean.outcome == "holds"
    wrong = verify(images((600, 0), (600, 0), called_open=150), POLICY, made, mix=MIX)
    assert wrong.outcome == "broken"
    assert wrong.rows[0].sentence() == (
        "150 of 750 images that are automatically called open are something else: the limit of "
        "10.00% is BROKEN."
    )
    few = verify(images((600, 0), (600, 0), called_open=60), POLICY, made, mix=MIX)
    assert few.outcome == "too few"


def test_what_was_not_promised_is_not_verified() -> None:
    none = Promise("escape", "bridge", None, 3, 0, why="it has too few images")
    found = verify(images((300, 300), (300, 0)), POLICY, (none, ESCAPES[1]), mix=MIX)
    assert found.outcome == "holds"
    assert [row.promise.of for row in found.rows] == ["open"]


def test_outcomes_are_wrong_as_seldom_as_stated() -> None:
    """Five classes at their limits: all of them hold, and are called broken in one of twenty."""
    rng, broken = np.random.default_rng(0), 0
    names = ("good", *"abcde")
    policy = Policy(names, 0, 0.0, np.full(6, -math.inf))
    made = [Promise("escape", name, 0.05, 300, 0) for name in "abcde"]
    for _ in range(400):
        target = np.repeat(np.arange(6), 300)
        called = np.where(rng.random(len(target)) < 0.05, 0, target)
        scored = Scored(9.0 * np.eye(6)[called], target, [""] * len(target))
        broken += verify(scored, policy, made, mix=np.full(6, 1 / 6)).outcome == "broken"
    assert broken <= 0.05 * 400 + 8
