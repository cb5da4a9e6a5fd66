"""The words that say how sure a choice on a few validation images is."""

from __future__ import annotations

import doctest

import numpy as np

from recame.metrics.statistics import standard_error
from recame.training.phases import certainty
from recame.training.phases.certainty import (
    choice_words,
    loss_words,
    too_dear_words,
    val_words,
)
from recame.training.phases.price import Option

TARGET = np.repeat([0, 1, 2], [20, 4, 4])


def right(*wrong: int) -> np.ndarray:
    found = np.ones(len(TARGET), np.bool_)
    found[list(wrong)] = False
    return found


def test_its_examples_hold() -> None:
    assert doctest.testmod(certainty)[0] == 0


def test_few_images_do_not_tell() -> None:
    told = choice_words("joined", {"probe": right(20), "joined": right(21)}, TARGET)
    assert told.startswith("balanced accuracy on val (28 images, 4 to 20 a class): probe 0.917 ± ")
    error = standard_error(right(21), right(20), TARGET)
    assert told.endswith(f"so few images do not tell joined from probe (+0.000 ± {error:.3f})")


def test_a_clear_lead_is_called_one() -> None:
    told = choice_words("finetune", {"probe": right(*range(26)), "finetune": right()}, TARGET)
    assert told.endswith("; finetune is ahead by more than 2 of them")
    told = choice_words("probe", {"probe": right(*range(26)), "finetune": right()}, TARGET)
    assert "; probe is behind finetune (-0.8" in told


def test_one_candidate_is_only_judged() -> None:
    assert choice_words("probe", {"probe": right()}, TARGET).endswith("(standard errors)")
    assert val_words(np.repeat([0, 2], [5, 5])) == "10 images, 5 a class"  # a class that val lacks


class TestLossWords:
    one, two, other = Option("probe", 8), Option("probe", 1), Option("joined", 4)

    def test_the_other_networks_best_is_compared(self) -> None:
        losses = {
            self.two: np.full(len(TARGET), 0.9),
            self.one: np.full(len(TARGET), 0.5),
            self.other: np.full(len(TARGET), 0.4),
        }
        told = loss_words(self.other, losses, TARGET)
        assert told.startswith("log loss on val 0.400, the lowest, by joined with 4 views; ")
        assert "probe with 8 views +0.100 ± " in told
        assert "0.900" not in told
        assert "+0.500" not in told

    def test_one_network_alone_has_no_words(self) -> None:
        losses = {self.two: np.zeros(len(TARGET)), self.one: np.ones(len(TARGET))}
        assert loss_words(self.two, losses, TARGET) == ""

    def test_what_the_limit_rules_out_is_told_if_it_would_be_better(self) -> None:
        allowed = {self.one: np.full(len(TARGET), 0.5)}
        dear = {self.other: np.full(len(TARGET), 0.4), self.two: np.full(len(TARGET), 0.45)}
        told = too_dear_words(self.one, allowed, dear, TARGET, 20)
        assert told.startswith("joined with 4 views would have 0.100 ± ")
        assert "evaluation.least_images_per_s = 20" in told
        assert too_dear_words(self.other, dear, allowed, TARGET, 20) == ""
        assert too_dear_words(self.one, allowed, {}, TARGET, 20) == ""
