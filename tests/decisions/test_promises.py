from __future__ import annotations

import math

import pytest
from scipy.stats import binom

from recame.decisions.promises import Promise, promisable, risk_of_each, too_few


def test_any_number_of_tunings_spends_no_more_than_all() -> None:
    spent = sum(risk_of_each(0.95, promises=1, tuning=j) for j in range(1, 20_000))
    assert spent < 0.05
    assert spent == pytest.approx(0.05, rel=1e-4)
    assert risk_of_each(0.95, promises=3, comparisons=4) == pytest.approx(
        risk_of_each(0.95, promises=1) / 12
    )


def test_what_so_many_boards_can_promise() -> None:
    counts = dict.fromkeys(["a", "b", "c", "d", "e", "f"], 82)
    found = promisable(counts, comparisons=12, unit="board")
    # 1 - risk ** (1 / n), which is the exact bound without an escape.
    assert found.risk == pytest.approx(0.05 * 6 / math.pi**2 / 72)
    assert found.smallest == pytest.approx(1 - found.risk ** (1 / 82))
    needed = found.needed(0.02)
    assert needed is not None
    assert binom.cdf(0, needed, 0.02) <= found.risk < binom.cdf(0, needed - 1, 0.02)
    assert found.sentence(0.02) == (
        "6 classes, 82 boards or more each, 12 models tried: at most 9.0% can be promised (95%); "
        "0.02 needs 385 boards of each, none released."
    )


def test_few_images_promise_nothing_of_worth() -> None:
    told = promisable({"a": 3, "b": 400}).sentence(0.02)
    assert "no escape limit can be promised for all of them at once" in told
    assert promisable({"a": 400}).sentence(0.5) == (
        "1 class, 400 images or more each: at most 0.9% can be promised (95%)."
    )


def test_why_limits_are_refused() -> None:
    told = too_few([("bridge", 20, 0.02), ("open", 2, 0.0)], 0.01, "board")
    assert told == (
        "bridge 2.00% (20 boards: it takes 228; these promise at most 20.6%); "
        "open 0.00% (2 boards: no number promises 0; these promise nothing)"
    )


def test_sentences() -> None:
    kept = Promise("escape", "open", 0.02, 300, 1, 1, 0.01)
    assert kept.holds
    assert kept.sentence("board") == (
        "At most 2.00% of open is released (1 of 300 boards in the calibration)."
    )
    assert Promise.from_dict(kept.to_dict()) == kept
    guess = Promise("purity", "open", 0.95, 40, 0, 0, 0.01, "Weights were fitted to these images")
    assert not guess.holds
    assert guess.sentence() == (
        "Estimated, not promised: at most 5.00% of what is automatically called open is something "
        "else (0 of 40 images in the calibration). Weights were fitted to these images."
    )
    none = Promise("escape", "open", None, 3, 0, why="it has too few images")
    assert none.sentence() == (
        "No limit is promised for escapes of open: it has too few images (0 of 3 images in the "
        "calibration)."
    )
