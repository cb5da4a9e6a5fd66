from __future__ import annotations

import numpy as np

from recame.data.dataset import SplitView
from recame.data.sampling import balanced_sample, capped_view, rank_in_class


def test_ranks_number_each_class_in_a_random_order() -> None:
    target = np.array([1, 0, -1, 1, 1, 0])
    ranks = [rank_in_class(target, np.random.default_rng(seed)) for seed in range(20)]
    for label, count in ((0, 2), (1, 3), (-1, 1)):
        of_class = np.array([rank[target == label] for rank in ranks])
        assert (np.sort(of_class, 1) == np.arange(count)).all()
        assert all(len(set(column)) == count for column in of_class.T.tolist())
    assert rank_in_class(target[:0], np.random.default_rng(0)).tolist() == []


def view_of(targets: list[int]) -> SplitView:
    positions = np.arange(len(targets))
    return SplitView("train", positions + 100, np.array(targets), positions + 1000)


class TestCappedView:
    TARGETS = [0] * 50 + [1] * 5 + [2] * 20 + [0] * 3

    def test_at_most_so_many_of_each_class(self) -> None:
        capped = capped_view(view_of(self.TARGETS), 7, seed=0)
        assert np.bincount(capped.targets).tolist() == [7, 5, 7]
        assert (np.diff(capped.indices) > 0).all()
        assert (capped.rows - capped.indices == 900).all()
        assert (np.array(self.TARGETS)[capped.indices - 100] == capped.targets).all()

    def test_seeded(self) -> None:
        draws = [capped_view(view_of(self.TARGETS), 7, seed).indices for seed in (0, 0, 1)]
        assert (draws[0] == draws[1]).all()
        assert (draws[0] != draws[2]).any()

    def test_room_for_all(self) -> None:
        capped = capped_view(view_of(self.TARGETS), 1000, seed=0)
        assert len(capped) == len(self.TARGETS)


class TestBalancedSample:
    TARGET = np.repeat([0, 1, 2, 3], [1000, 40, 5, 1])

    def test_covers_the_tail(self) -> None:
        chosen = balanced_sample(self.TARGET, 60, seed=0)
        assert np.bincount(self.TARGET[chosen]).tolist() == [27, 27, 5, 1]
        assert len(set(chosen.tolist())) == 60

    def test_seeded(self) -> None:
        first, again, other = (balanced_sample(self.TARGET, 60, seed) for seed in (0, 0, 1))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_room_for_all(self) -> None:
        assert sorted(balanced_sample(self.TARGET, 5000, seed=0)) == list(range(1046))
