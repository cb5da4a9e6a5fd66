"""Hard categories by what a class is taken for: the matrix against loops, and the ranking."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recame.losses import differing_share, hard_categories
from recame.losses.hard_category import (
    CONFUSION_MOMENTUM,
    Confusion,
    confused_first,
    updated_confusion,
)

NUM_CLASSES = 5
quick = settings(max_examples=15, deadline=None, derandomize=True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)).double()


@quick
@given(seed=st.integers(0, 10_000), size=st.integers(0, 8))
def test_the_matrix_equals_loops_over_classes(seed: int, size: int) -> None:
    matrix = drawn(NUM_CLASSES, NUM_CLASSES, seed=seed).softmax(1)
    probabilities = drawn(size, NUM_CLASSES, seed=seed + 1).softmax(1)
    target = torch.randint(0, 3, (size,), generator=torch.Generator().manual_seed(seed))
    weight = drawn(size, seed=seed + 2)
    expected = matrix.clone()
    for label in range(NUM_CLASSES):
        rows = target == label
        if rows.any():
            total = weight[rows].sum()
            mean = (weight[rows, None] * probabilities[rows]).sum(0) / total
            share = CONFUSION_MOMENTUM ** float(total)
            expected[label] = share * matrix[label] + (1 - share) * mean
    actual = updated_confusion(matrix, probabilities, target, weight)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual.sum(1), torch.ones(NUM_CLASSES).double())
    assert torch.equal(actual[3:], matrix[3:])  # classes that are not in the batch


@quick
@given(seed=st.integers(0, 10_000))
def test_ranks_are_by_confusion_then_by_logit(seed: int) -> None:
    # Few values, so that many are equal.
    confused = (3 * drawn(4, NUM_CLASSES, seed=seed)).round()
    logits = drawn(4, NUM_CLASSES, seed=seed + 1)
    ranks = confused_first(confused, logits)
    for image in range(4):
        found = ranks[image].argsort(descending=True).tolist()
        by = sorted(range(NUM_CLASSES), key=lambda c: (-confused[image, c], -logits[image, c]))
        assert found == by
    assert ranks.sort(1).values.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]] * 4


def test_at_first_the_images_own_logits_decide() -> None:
    confusion, logits = Confusion(NUM_CLASSES), drawn(6, NUM_CLASSES).float()
    target = torch.arange(6) % NUM_CLASSES
    expected = hard_categories(logits[:, None], target, 3)
    assert torch.equal(hard_categories(confusion(logits, target), target, 3), expected)


def test_later_the_class_decides() -> None:
    confusion = Confusion(NUM_CLASSES)
    taken_for = torch.tensor([[0.5, 0.0, 0.1, 0.4, 0.0]])
    for _ in range(20):
        confusion.remember(taken_for, torch.tensor([0]), torch.ones(1))
    # Whatever an image of class 0 looks like, 3 and then 2 are its hard categories.
    logits = torch.tensor([[0.0, 9.0, 0.0, 0.0, 8.0]])
    found = hard_categories(confusion(logits, torch.tensor([0])), torch.tensor([0]), 3)
    assert found.tolist() == [[[0, 3, 2]]]
    # Of another class nothing is known yet.
    found = hard_categories(confusion(logits, torch.tensor([2])), torch.tensor([2]), 3)
    assert found.tolist() == [[[2, 1, 4]]]
    confusion.forget()
    assert torch.equal(confusion.matrix, Confusion(NUM_CLASSES).matrix)


def test_share_of_other_categories_than_the_highest_logits() -> None:
    logits = torch.tensor([[[3.0, 2.0, 1.0, 0.0]], [[0.0, 1.0, 2.0, 3.0]]])
    kept = torch.tensor([[[1, 0]], [[0, 3]]])  # of the second image, 2 is higher than 0
    assert differing_share(kept, logits).item() == 0.5
    assert differing_share(torch.tensor([[[0, 1]], [[3, 2]]]), logits).item() == 0.0
    everything = torch.arange(4).expand(2, 1, 4)
    assert differing_share(everything, logits).item() == 0.0
    assert differing_share(kept[:0], logits[:0]).item() == 0.0
