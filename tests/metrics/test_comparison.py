from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from recame.contracts import Predictions
from recame.label_space import LabelSpace
from recame.metrics.comparison import compare_predictions
from recame.metrics.disagreement import expert_disagreement
from recame.metrics.paired import mcnemar_p_value, paired_differences

SPACE = LabelSpace(("ok", "open", "short", "spur"), (2000, 400, 90, 8), normal="ok")


def predictions_of(target, called, images=None, num_classes=4):
    probabilities = np.eye(num_classes, dtype=np.float32)[np.asarray(called)]
    names = [f"{i}.png" for i in range(len(target))] if images is None else images
    return Predictions(
        pd.DataFrame({"image": names}),
        probabilities,
        probabilities[:, None],
        np.asarray(target, np.int64),
    )


def random_calls(seed, images=400, right=(0.8, 0.6)):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, images)
    calls = [
        np.where(rng.random(images) < share, target, rng.integers(0, 4, images)) for share in right
    ]
    return target, *calls


def test_values_and_differences_are_those_of_scikit_learn():
    target, one, other = random_calls(0)
    found = paired_differences(target, one, other, SPACE, ("spur",), resamples=50, seed=0)
    for called, part in ((one, "value"), (other, "other")):
        recall = sk.recall_score(target, called, average=None)
        expected = {
            "balanced_accuracy": recall.mean(),
            "worst_class_recall": recall.min(),
            "tail_recall": recall[3],
            "macro_f1": sk.f1_score(target, called, average="macro"),
            "escape_rate": (called[target > 0] == 0).mean(),
            "overkill_rate": (called[target == 0] > 0).mean(),
        }
        assert {n: getattr(found[n], part) for n in found} == pytest.approx(expected)
    accuracy = found["balanced_accuracy"]
    assert accuracy.difference == pytest.approx(accuracy.value - accuracy.other)
    assert accuracy.low < accuracy.difference < accuracy.high
    assert accuracy.real


def test_what_is_no_number_calls_no_class():
    target = [0, 0, 0, 1]
    ours, theirs = (predictions_of(target, [0, 0, 0, 1]) for _ in range(2))
    theirs.probabilities[:2] = np.nan
    found = compare_predictions(ours, theirs, SPACE, SPACE, name="other", tail=(), seed=0)
    assert found.recalls["other"].tolist()[0] == pytest.approx(1 / 3)


def test_the_same_model_differs_by_nothing():
    target, one, _ = random_calls(1)
    for difference in paired_differences(target, one, one, SPACE, resamples=200, seed=0).values():
        assert difference.difference == 0
        assert not difference.real


def test_two_images_prove_nothing():
    # Both right for one model and wrong for the other, yet they are only two of each class.
    target = np.array([0, 0, 1, 1])
    found = paired_differences(target, target, 1 - target, SPACE, resamples=2000, seed=0)
    assert found["balanced_accuracy"].difference == 1
    assert found["balanced_accuracy"].low < 0.9


def test_intervals_hold_the_true_difference_about_as_often_as_they_say():
    # Accuracies 0.8 + 0.2 / 4 and 0.6 + 0.4 / 4 give a difference of 0.15.
    inside = []
    for seed in range(120):
        target, one, other = random_calls(seed, images=120)
        found = paired_differences(target, one, other, SPACE, resamples=300, seed=seed)
        inside.append(found["balanced_accuracy"].low <= 0.15 <= found["balanced_accuracy"].high)
    assert 0.9 <= np.mean(inside) <= 1.0


def test_mcnemar_counts_the_discordant_images():
    assert mcnemar_p_value(0, 0) == 1.0
    # 1 of 6 or less, twice: 2 * (1 + 6) / 64.
    assert mcnemar_p_value(5, 1) == pytest.approx(14 / 64)
    assert mcnemar_p_value(5, 1) == mcnemar_p_value(1, 5)


def test_images_are_matched_by_name_whatever_their_order():
    target, one, other = random_calls(2, images=60)
    order = np.random.default_rng(0).permutation(60)
    names = [f"{i}.png" for i in range(60)]
    shuffled = predictions_of(target[order], other[order], [names[i] for i in order])
    straight = predictions_of(target, other)
    own = predictions_of(target, one)
    options = {"name": "base", "tail": ("spur",), "resamples": 100}
    got = compare_predictions(own, shuffled, SPACE, SPACE, **options)
    assert got.to_dict() == compare_predictions(own, straight, SPACE, SPACE, **options).to_dict()
    assert got.images == 60
    right, base = one == target, other == target
    assert got.only_model_right == (right & ~base).sum()
    assert got.recalls["only_baseline_right"].sum() == (base & ~right).sum()


def test_classes_of_the_baseline_in_another_order_or_unknown():
    target = np.array([0, 1, 2, 3])
    other_space = LabelSpace(("spur", "short", "open", "ok", "new"), (5, 4, 3, 2, 1))
    # ok -> ok, open -> spur, short -> "new", spur -> spur, in the baseline's own indices.
    base = predictions_of([3, 2, 1, 0], [3, 0, 4, 0], num_classes=5)
    got = compare_predictions(
        predictions_of(target, target), base, SPACE, other_space, name="b", resamples=20
    )
    assert got.recalls["other"].tolist() == [1, 0, 0, 1]
    assert got.differences["balanced_accuracy"].other == 0.5


def test_images_that_only_one_model_saw_are_left_out_and_counted():
    own = predictions_of([0, 1, 2, -1], [0, 1, 2, 3])
    base = predictions_of([0, 2, 1], [0, 2, 1], ["0.png", "1.png", "x.png"])
    got = compare_predictions(own, base, SPACE, SPACE, name="b", resamples=20)
    # 1.png has two labels, 2.png and x.png have one judge, 3.png has no label.
    assert (got.images, got.left_out) == (1, 4)
    strangers = predictions_of([0, 1], [0, 1], ["a", "b"])
    nothing = compare_predictions(own, strangers, SPACE, SPACE, name="b")
    assert (nothing.images, nothing.differences, nothing.p_value) == (0, {}, 1.0)


def test_disagreement_agrees_with_counting_in_loops():
    rng = np.random.default_rng(3)
    experts = rng.random((50, 3, 4)).astype(np.float32)
    experts[:20] = experts[:20, :1]
    target = rng.integers(-1, 4, 50)
    together = experts.mean(1)
    found = expert_disagreement(experts, together, target, SPACE)
    rows = [i for i in range(50) if target[i] >= 0]
    calls = experts.argmax(2)
    pairs = [(0, 1), (0, 2), (1, 2)]
    pairwise = np.mean([[calls[i, a] != calls[i, b] for a, b in pairs] for i in rows])
    differ = [len(set(calls[i])) > 1 for i in rows]
    right = np.array([together[i].argmax() == target[i] for i in rows])
    assert found.images == len(rows)
    assert found.disagreed == sum(differ)
    assert found.pairwise == pytest.approx(pairwise)
    assert found.accuracy_disagreed[0] == pytest.approx(right[differ].mean())
    assert found.any_right == np.mean([target[i] in calls[i] for i in rows])
    chance = sum((calls[rows] == c).mean() ** 2 for c in range(4))
    assert found.fleiss_kappa == pytest.approx((1 - pairwise - chance) / (1 - chance))
    recalls = [sk.recall_score(target[rows], calls[rows, e], average="macro") for e in range(3)]
    assert found.best_expert == int(np.argmax(recalls))
    assert found.gain.other == pytest.approx(max(recalls))


def test_one_expert_has_nobody_to_differ_from():
    experts = np.full((5, 1, 4), 0.25, np.float32)
    assert expert_disagreement(experts, experts[:, 0], np.zeros(5, np.int64), SPACE) is None
    two = np.full((5, 2, 4), 0.25, np.float32)
    assert expert_disagreement(two, two[:, 0], np.full(5, -1), SPACE) is None
    assert expert_disagreement(two, two[:, 0], np.zeros(5, np.int64), SPACE).fleiss_kappa is None
