from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from recame.contracts import Predictions
from recame.training.phases.choice import choose

#: A class of 20 images, one of 4, and one of 2.
TARGET = np.repeat([0, 1, 2], [20, 4, 2])


def answers(wrong: Sequence[int], sure: float = 0.9) -> Predictions:
    """Predictions that call the given images by the next class, the others by their own."""
    called = TARGET.copy()
    called[list(wrong)] = (called[list(wrong)] + 1) % 3
    probabilities = np.full((len(TARGET), 3), (1 - sure) / 2, np.float32)
    probabilities[np.arange(len(TARGET)), called] = sure
    return Predictions(
        table=pd.DataFrame({"image": np.arange(len(TARGET)).astype(str)}),
        probabilities=probabilities,
        expert_probabilities=probabilities[:, None],
        target=TARGET,
    )


class TestWithJoined:
    def kept(
        self,
        probe: Sequence[int],
        finetune: Sequence[int],
        joined: Sequence[int],
        joined_first: Sequence[int] = range(26),
    ) -> str:
        wrong = {"probe": probe, "finetune": finetune, "joined": joined}
        wrong |= {"joined_first": joined_first}
        return choose({name: answers(images) for name, images in wrong.items()})

    def test_equals_keep_it(self) -> None:
        assert self.kept([20], [21], [22]) == "joined"

    def test_a_better_fine_tuned_network_is_kept(self) -> None:
        assert self.kept(range(20), [0], [0, 1]) == "finetune"

    def test_a_rare_image_is_luck_for_the_probe(self) -> None:
        # A recall of 1 against 0.5 in the class of two: 17 points, at an error of 15.
        assert self.kept([], [24], [24]) == "joined"

    def test_the_other_pair_needs_half_a_standard_error(self) -> None:
        # 1 of 20 is 2 points, of 5 that half an error is; 1 of 4 is 8.
        assert self.kept(range(26), range(26), [0], []) == "joined"
        assert self.kept(range(26), range(26), [20], []) == "joined_first"

    def test_the_probe_is_kept_where_fine_tuning_failed(self) -> None:
        assert self.kept([], range(21), [0, 1]) == "probe"
        assert self.kept([0, 1], range(21), [0]) == "joined"  # it may still help the pair

    def test_the_best_of_those_that_beat_it(self) -> None:
        assert self.kept(range(26), [0], [0, 1, 20, 21], [0, 1]) == "finetune"


class TestAlone:
    def test_the_most_accurate_is_kept(self) -> None:
        found = {"probe": answers([0]), "finetune": answers([24])}
        assert choose(found) == "probe"

    def test_log_loss_decides_among_equals(self) -> None:
        found = {"probe": answers([0], sure=0.6), "finetune": answers([1], sure=0.8)}
        assert choose(found) == "finetune"

    def test_a_network_without_numbers_is_never_right(self) -> None:
        silent = answers([])
        silent.probabilities[:] = np.nan
        # The largest of no numbers is the first class: 20 images would be right, and one of three.
        for found in (
            {"probe": answers(range(20)), "finetune": silent},
            {"finetune": silent, "probe": answers(range(22))},
        ):
            assert choose(found) == "probe"
