from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, binom

from recame.decisions.limits import SMALLEST, Limits, PerClass
from recame.decisions.release import check_defects, fit_release, promised_classes
from recame.errors import ConfigError

NAMES = ("good", "bridge", "open")


def calibration(bridges: int, opens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the normal class: 200 good images, and defects that are less like it."""
    rng = np.random.default_rng(seed)
    target = np.repeat([0, 1, 2], [200, bridges, opens])
    return rng.normal(np.array([4.0, 0.0, 1.0])[target], 1.0), target


def test_the_threshold_of_the_worst_class_keeps_all() -> None:
    scores, target = calibration(300, 400)
    found = fit_release(scores, target, NAMES, 0, PerClass(0.02), risk=0.05)
    allowed = [max(k for k in range(-1, n) if binom.cdf(k, n, 0.02) <= 0.05) for n in (300, 400)]
    each = [np.sort(scores[target == c])[-1 - k] for c, k in zip((1, 2), allowed, strict=True)]
    assert found.above == max(each) == each[1]
    bridge, opened = found.promises
    assert (bridge.of, bridge.limit, bridge.images, bridge.allowed) == ("bridge", 0.02, 300, 1)
    assert (opened.allowed, opened.beyond) == (allowed[1], allowed[1])
    assert bridge.beyond == (scores[target == 1] > found.above).sum()
    assert all(promise.holds for promise in found.promises)


def test_the_smallest_limit_is_promised_where_none_is_asked() -> None:
    scores, target = calibration(60, 1000)
    found = fit_release(scores, target, NAMES, 0, PerClass(SMALLEST), risk=0.01)
    bridge, opened = found.promises
    assert bridge.limit == pytest.approx(beta.ppf(0.99, 1, 60))
    assert bridge.allowed == 0
    assert opened.limit == 0.02  # more images are worth more released, not a smaller limit
    assert opened.allowed == max(k for k in range(50) if binom.cdf(k, 1000, 0.02) <= 0.01)


def test_a_class_of_too_few_images_is_kept_from_passing_without_a_promise() -> None:
    scores, target = calibration(300, 2)
    scores[target == 2] = [7.0, 0.0]
    found = fit_release(scores, target, NAMES, 0, PerClass(SMALLEST), risk=0.05)
    assert promised_classes(target, NAMES, 0, PerClass(SMALLEST)) == [1]
    assert found.above == 7.0
    assert found.promises[1].limit is None
    assert found.promises[1].sentence() == (
        "No limit is promised for escapes of open: it has too few images (0 of 2 images in the "
        "calibration)."
    )


def test_a_class_without_a_limit_may_pass() -> None:
    scores, target = calibration(300, 300)
    scores[target == 2] = 9.0
    found = fit_release(scores, target, NAMES, 0, PerClass(None, {"bridge": 0.05}), risk=0.05)
    assert found.above < 4
    assert found.promises[1].why == "it has no limit"
    assert found.promises[1].beyond == 300


def test_limits_that_cannot_be_promised_are_refused_with_what_they_take() -> None:
    scores, target = calibration(100, 20)
    with pytest.raises(ConfigError) as refused:
        fit_release(
            scores, target, NAMES, 0, PerClass(0.02, {"open": 0.0}), risk=0.05, unit="board"
        )
    told = str(refused.value)
    assert "bridge 2.00% (100 boards: it takes 149; these promise at most 3.0%)" in told
    assert "open 0.00% (20 boards: no number promises 0; these promise at most 13.9%)" in told
    assert "Nothing was loosened" in told


def test_nothing_passes_where_nothing_is_promised() -> None:
    scores, target = calibration(2, 1)
    found = fit_release(scores, target, NAMES, 0, PerClass(SMALLEST), risk=0.05)
    assert found.above == math.inf
    assert all(promise.limit is None for promise in found.promises)


def test_a_calibration_without_defects_is_refused() -> None:
    with pytest.raises(ConfigError, match="7 images of good and no defect"):
        check_defects(np.zeros(7, np.int64), NAMES, 0)


def test_images_without_a_score_do_not_pass() -> None:
    scores, target = calibration(300, 300)
    scores[(target == 1).nonzero()[0][:5]] = math.nan
    found = fit_release(scores, target, NAMES, 0, Limits().escape, risk=0.05)
    assert found.promises[0].images == 300
    assert math.isfinite(found.above)


def test_promises_are_broken_as_seldom_as_stated() -> None:
    """Two classes with a limit each: together they fail in no more than twice the risk of each."""
    rng, risk, limit = np.random.default_rng(1), 0.05, 0.05
    broken = np.zeros(2)
    draws = 400
    for _ in range(draws):
        scores = rng.random(500)
        target = np.repeat([0, 1, 2], [20, 180, 300])
        above = fit_release(scores, target, NAMES, 0, PerClass(limit), risk=risk).above
        # Uniform scores: the share beyond the threshold is known. The first class alone.
        alone = fit_release(
            scores, target, NAMES, 0, PerClass(None, {"bridge": limit}), risk=risk
        ).above
        broken += [1 - above > limit, 1 - alone > limit]
    expected = binom.cdf(max(k for k in range(20) if binom.cdf(k, 180, limit) <= risk), 180, limit)
    assert broken[0] / draws <= 2 * risk
    assert broken[1] / draws == pytest.approx(expected, abs=0.03)
