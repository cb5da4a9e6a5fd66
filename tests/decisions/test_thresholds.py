from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recame.decisions.thresholds import NEVER, fit_normal_threshold


def table(certainty: list[float]) -> np.ndarray:
    normal = np.array(certainty, np.float32)
    return np.stack([normal, 1 - normal], 1)


def test_bars_the_escapes_beyond_the_allowed_share() -> None:
    # Defects called normal: 0.95, 0.8, 0.6; of ten defects one may pass.
    probabilities = table([0.99, 0.9, 0.7, 0.3] + [0.95, 0.8, 0.6] + [0.1] * 7)
    target = np.array([0] * 4 + [1] * 10)
    found = fit_normal_threshold(probabilities, target, 0, max_escape=0.1)
    assert found is not None
    assert found.release_above == pytest.approx(0.85)  # half way from 0.8 to the next above, 0.9
    assert (found.escape, found.overkill) == (0.1, 0.5)
    assert (found.num_defects, found.num_normal) == (10, 4)
    assert found.escape_at_most == pytest.approx(0.394, abs=1e-3)
    assert not found.proven
    told = found.sentence("ok")
    assert "With 95% confidence at most 39.42% of the defects pass: on val, 1 of 10 do" in told
    assert "50.0% of 4 normal images do not" in told
    assert "Asked were at most 10.00%, which these are too few for: it takes 29 without" in told


def test_no_threshold_is_needed_where_nothing_escapes() -> None:
    probabilities = table([0.9] * 50 + [0.2] * 500)
    found = fit_normal_threshold(probabilities, np.repeat([0, 1], [50, 500]), 0, max_escape=0.01)
    assert found is not None
    assert (found.release_above, found.escape, found.overkill) == (0.0, 0.0, 0.0)
    assert found.proven
    assert found.escape_at_most == pytest.approx(0.00597, abs=1e-5)
    assert "Asked" not in found.sentence("ok")


def test_certain_escapes_release_nothing() -> None:
    found = fit_normal_threshold(table([1.0, 1.0]), np.array([0, 1]), 0, max_escape=0.01)
    assert found is not None
    assert found.release_above == NEVER
    assert (found.escape, found.overkill) == (0.0, 1.0)
    assert found.sentence("ok").startswith("No image passes as ok")


def test_a_class_that_passes_is_named() -> None:
    probabilities = np.full((40, 3), 0.05, np.float32)
    target = np.array([0] * 10 + [1] * 28 + [2] * 2)
    probabilities[np.arange(40), [0] * 10 + [1] * 28 + [0] * 2] = 0.9
    found = fit_normal_threshold(
        probabilities, target, 0, max_escape=0.1, names=("ok", "dent", "hole")
    )
    assert found is not None
    assert found.by_class["hole"]["pass"] == 2
    assert found.by_class["hole"]["escape_at_most"] == 1.0
    assert found.by_class["dent"]["images"] == 28
    assert "By class: hole 2 of 2 (at most 100%)." in found.sentence("ok")
    assert found.to_dict()["proven"] is False


def test_what_is_no_number_passes_nowhere() -> None:
    probabilities = table([0.9, 0.9, 0.9, 0.2])
    probabilities[[1, 2]] = np.nan
    found = fit_normal_threshold(probabilities, np.array([0, 0, 1, 1]), 0, max_escape=0.0)
    assert found is not None
    assert (found.escape, found.overkill, found.release_above) == (0.0, 0.5, 0.0)


@pytest.mark.parametrize(("num", "most"), [(20, 0.0), (60, 0.05), (300, 0.01)])
def test_the_stated_rate_holds_in_nineteen_of_twenty_sets(num: int, most: float) -> None:
    """Defects of a model that takes 30 % of them for normal, with certainties from 0.5 to 1."""
    rng = np.random.default_rng(0)
    held, rounds = 0, 2000
    for _ in range(rounds):
        escapes = rng.random(num) < 0.3
        certainty = np.where(escapes, rng.uniform(0.5, 1, num), 0.1)
        found = fit_normal_threshold(
            table(certainty.tolist()), np.ones(num, np.int64), 0, max_escape=most
        )
        assert found is not None
        true_rate = 0.3 * min(1.0, max(0.0, (1 - found.release_above) / 0.5))
        held += true_rate <= found.escape_at_most
    assert held / rounds >= 0.94


def test_without_defects_there_is_none() -> None:
    assert fit_normal_threshold(table([0.9, 0.4]), np.array([0, -1]), 0, max_escape=0.01) is None


def test_without_normal_images_there_is_no_overkill() -> None:
    found = fit_normal_threshold(table([0.9, 0.4]), np.array([1, 1]), 0, max_escape=0.0)
    assert found is not None
    assert found.overkill is None
    assert found.escape == 0.0
    assert found.release_above > np.float32(0.9)


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.1, 0.34]),
)
def test_keeps_its_promise_and_is_the_lowest(
    images: list[tuple[float, bool]], max_escape: float
) -> None:
    probabilities = table([p for p, _ in images])
    target = np.array([int(defect) for _, defect in images])
    found = fit_normal_threshold(probabilities, target, 0, max_escape=max_escape)
    if found is None:
        assert not target.any()
        return
    called = (probabilities.argmax(1) == 0) & (probabilities[:, 0] != probabilities[:, 1])
    normal, defects = probabilities[:, 0], target == 1

    def escape(release: float) -> float:
        return float((called & defects & (normal >= np.float32(release))).sum() / defects.sum())

    assert escape(found.release_above) == pytest.approx(found.escape)
    assert found.escape <= max_escape + 1e-9
    lower = normal[called & (normal < found.release_above)]
    if len(lower) and found.release_above > 0:
        assert escape(float(lower.max())) > max_escape
