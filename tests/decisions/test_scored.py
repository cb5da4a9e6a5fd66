from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import logsumexp

from recame.decisions.scored import Scored, class_log_odds, logits_of
from recame.errors import DataError


@given(arrays(np.float64, (5, 4), elements=st.floats(-300, 300)))
def test_log_odds_agree_with_scipy(logits: np.ndarray) -> None:
    found = class_log_odds(logits)
    for own in range(4):
        others = np.delete(logits, own, 1)
        np.testing.assert_allclose(
            found[:, own], logits[:, own] - logsumexp(others, axis=1), rtol=1e-9, atol=1e-9
        )


def test_log_odds_of_what_is_no_number_are_none() -> None:
    found = class_log_odds(np.array([[1.0, np.inf], [np.nan, 0.0], [-np.inf, 0.0], [3.0, 1.0]]))
    assert np.isnan(found[:3]).all()
    assert found[3].tolist() == [2.0, -2.0]


def test_log_odds_tell_images_apart_whose_probability_is_one() -> None:
    logits = np.array([[30.0, 0.0, 1.0], [40.0, 0.0, 1.0]], np.float32)
    assert (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, 0].tolist() == [1.0, 1.0]
    odds = class_log_odds(logits)[:, 0]
    assert odds[1] - odds[0] == pytest.approx(10)


def test_logits_of_probabilities_undo_a_temperature() -> None:
    logits = np.array([[2.0, 0.5, -1.0]])
    powers = np.exp(logits / 1.7)
    back = logits_of(powers / powers.sum(), 1.7)
    assert (back - logits).std() == pytest.approx(0, abs=1e-12)
    assert np.isfinite(logits_of(np.array([[1.0, 0.0]]))).all()


def scored(**changes: object) -> Scored:
    values: dict[str, object] = {
        "logits": np.arange(10.0).reshape(5, 2),
        "target": np.array([0, 1, 1, 1, -1]),
        "images": ["a", "b", "c", "d", "e"],
        **changes,
    }
    return Scored(**values)  # type: ignore[arg-type]


def test_without_groups_every_labelled_image_counts() -> None:
    assert scored().counted().images == ["a", "b", "c", "d"]


def test_of_a_group_one_image_of_each_class_counts_whatever_the_order() -> None:
    groups = ["x", "x", "x", "y", "y"]
    kept = scored(groups=groups).counted()
    assert kept.target.tolist() == [0, 1, 1]
    assert kept.groups == ["x", "x", "y"]
    back = scored(
        logits=np.arange(10.0).reshape(5, 2)[::-1],
        target=np.array([-1, 1, 1, 1, 0]),
        images=["e", "d", "c", "b", "a"],
        groups=groups[::-1],
    )
    assert sorted(back.counted().images) == sorted(kept.images)


def test_what_is_not_of_the_same_images_is_refused() -> None:
    with pytest.raises(DataError, match="for the same images"):
        scored(groups=["x"])
    with pytest.raises(DataError, match="for the same images"):
        scored(logits=np.zeros(5))
