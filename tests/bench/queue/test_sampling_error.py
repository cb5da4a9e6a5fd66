"""The error over other test images: by formula for single images, by resampling for groups."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from recame.bench.queue.sampling_error import sampling_error
from recame.contracts import Predictions


def predicted(right: np.ndarray, label: np.ndarray, board: np.ndarray) -> Predictions:
    called = np.where(right, label, 1 - label)
    probabilities = np.eye(2, dtype=np.float32)[called]
    table = pd.DataFrame({"image": np.arange(len(label)).astype(str), "board": board})
    return Predictions(table, probabilities, probabilities[:, None], label)


def test_single_images_have_the_binomial_error() -> None:
    label = np.array([0] * 100 + [1] * 25)
    right = np.array([True] * 80 + [False] * 20 + [True] * 15 + [False] * 10)
    found = sampling_error(predicted(right, label, label))
    assert found == pytest.approx(math.sqrt(0.8 * 0.2 / 100 + 0.6 * 0.4 / 25) / 2)


def test_boards_whose_images_fail_together_tell_less() -> None:
    generator = np.random.default_rng(0)
    board = np.repeat(np.arange(50), 20)
    label = np.tile([0, 1], 500)
    together = predicted((generator.random(50) < 0.7)[board], label, board)
    alone = predicted(generator.random(1000) < 0.7, label, board)
    wide, narrow = (sampling_error(one, "board") for one in (together, alone))
    assert wide is not None
    assert narrow is not None
    # The error of 50 boards, and of 1,000 images.
    share = together.probabilities.argmax(1) == label
    boards = share.reshape(50, 20)[:, 0]
    assert wide == pytest.approx(boards.std() / math.sqrt(50), rel=0.1)
    assert narrow < wide / 2.5
    assert narrow == pytest.approx(math.sqrt(0.7 * 0.3 / 1000), rel=0.3)
    # Of a column that is not there, each image by itself.
    assert sampling_error(together, "lot") == sampling_error(together)


def test_images_without_a_label_do_not_count() -> None:
    label = np.array([0, 1, -1])
    one = predicted(np.array([True, True, True]), np.array([0, 1, 0]), label)
    none = Predictions(one.table, one.probabilities, one.expert_probabilities, np.full(3, -1))
    assert sampling_error(none) is None
    partly = Predictions(one.table, one.probabilities, one.expert_probabilities, label)
    assert sampling_error(partly) == 0.0
