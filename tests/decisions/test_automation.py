from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from recame.decisions.automation import fit_automation
from recame.decisions.limits import PerClass
from recame.decisions.scored import class_log_odds

NAMES = ("good", "bridge", "open")
MIX = np.array([0.5, 0.25, 0.25])


def scores(number: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = np.repeat([0, 1, 2], number)
    return class_log_odds(spread * np.eye(3)[target] + rng.normal(0, 1, (3 * number, 3))), target


def upper(n: int, k: int, risk: float) -> float:
    return 1.0 if k >= n else float(beta.ppf(1 - risk, k + 1, n - k))


def bound(odds: np.ndarray, target: np.ndarray, own: int, above: float, risk: float) -> float:
    """The largest impurity by the formula, in plain loops."""
    called = odds.argmax(1)
    taken = (called == own) & (odds[:, own] > above)
    counts = [int((target == c).sum()) for c in range(3)]
    hits = [int((taken & (target == c)).sum()) for c in range(3)]
    right = MIX[own] * (1 - upper(counts[own], counts[own] - hits[own], risk / 2 / 7))
    wrong = sum(MIX[c] * upper(counts[c], hits[c], risk / 2 / 2) for c in range(3) if c != own)
    return float(wrong / (wrong + right))


def test_all_of_a_clear_class_is_automatic() -> None:
    odds, target = scores(800, 12.0)
    found = fit_automation(odds, target, NAMES, 0, PerClass(0.95), MIX, risk=0.02)
    assert found.above.tolist() == [-math.inf] * 3
    bridge, _ = found.promises
    assert (bridge.of, bridge.limit, bridge.images, bridge.beyond) == ("bridge", 0.95, 800, 0)


def test_the_lowest_threshold_that_keeps_the_limit() -> None:
    odds, target = scores(1000, 3.0)
    found = fit_automation(odds, target, NAMES, 0, PerClass(0.93), MIX, risk=0.02)
    above = found.above[1]
    assert math.isfinite(above)
    assert bound(odds, target, 1, above, 0.02) <= 0.07
    own = np.sort(np.where(odds.argmax(1) == 1, odds[:, 1], -math.inf)[target == 1])[::-1]
    tried = [math.floor(share * 1000) for share in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)]
    place = tried.index(int((own > above).sum()))
    assert bound(odds, target, 1, own[tried[place + 1]], 0.02) > 0.07


def test_a_class_whose_purity_is_not_shown_goes_to_a_person() -> None:
    odds, target = scores(20, 12.0)
    found = fit_automation(odds, target, NAMES, 0, PerClass(None, {"open": 0.99}), MIX, risk=0.02)
    assert found.above.tolist() == [-math.inf, -math.inf, math.inf]
    (promise,) = found.promises
    assert promise.limit is None
    assert promise.sentence().startswith("No limit is promised for the purity of open")


def test_a_class_without_images_is_not_automatic() -> None:
    odds, target = scores(500, 12.0)
    kept = target != 2
    found = fit_automation(odds[kept], target[kept], NAMES, 0, PerClass(0.5), MIX, risk=0.02)
    assert found.above[2] == math.inf
    assert found.above[1] == math.inf  # any open could be called a bridge
    absent = np.array([0.6, 0.4, 0.0])
    found = fit_automation(odds[kept], target[kept], NAMES, 0, PerClass(0.5), absent, risk=0.02)
    assert found.above[1] == -math.inf


def test_what_is_no_number_is_not_called() -> None:
    odds, target = scores(800, 12.0)
    odds[:3] = math.nan
    found = fit_automation(odds, target, NAMES, 0, PerClass(0.95), MIX, risk=0.02)
    assert found.above.tolist() == [-math.inf] * 3


@pytest.mark.parametrize("number", [100, 400])
def test_purity_is_broken_as_seldom_as_stated(number: int) -> None:
    """The true purity at each fitted threshold, from many fresh images."""
    truth, truth_target = scores(40_000, 2.5, seed=99)
    called = truth.argmax(1)
    broken = tuned = 0
    for seed in range(150):
        odds, target = scores(number, 2.5, seed)
        above = fit_automation(odds, target, NAMES, 0, PerClass(0.85), MIX, risk=0.1).above[1]
        if above == math.inf:
            continue
        tuned += 1
        taken = (called == 1) & (truth[:, 1] > above)
        weight = (MIX / 40_000)[truth_target]
        purity = weight[taken & (truth_target == 1)].sum() / weight[taken].sum()
        broken += purity < 0.85
    assert broken <= 15
    assert tuned == 150 or number == 100
