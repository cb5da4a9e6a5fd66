from __future__ import annotations

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn import metrics as sk

from recame.contracts import Predictions
from recame.errors import DataError
from recame.label_space import LabelSpace
from recame.metrics.evaluation import evaluate_predictions
from recame.metrics.statistics import Estimate, wilson_interval
from recame.reports.terminal import print_evaluation

SPACE = LabelSpace(
    ("ok", "open", "short", "spur"), (2000, 400, 90, 8), normal="ok", critical=("open",)
)


def predictions_of(target, called, num_classes, experts=None, **columns):
    """Predictions whose argmax is `called`, with 0.7 on it."""
    target, called = np.asarray(target), np.asarray(called)

    def soft(of):
        rest = 0.3 / (num_classes - 1)
        return np.where(np.arange(num_classes) == of[..., None], 0.7, rest).astype(np.float32)

    alone = np.stack([called, called], 1) if experts is None else np.asarray(experts)
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(len(target))], **columns})
    return Predictions(table, soft(called), soft(alone), target.astype(np.int64))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(1, 80))
def test_headline_agrees_with_scikit_learn(seed, num_classes, images):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, num_classes, images)
    called = np.where(rng.random(images) < 0.6, target, rng.integers(0, num_classes, images))
    names = tuple(f"c{i}" for i in range(num_classes))
    space = LabelSpace(names, tuple(range(num_classes, 0, -1)))
    got = evaluate_predictions(predictions_of(target, called, num_classes), space, bootstrap=20)
    present = np.unique(target)
    recall = sk.recall_score(target, called, labels=present, average=None, zero_division=0)
    options = {"labels": present, "average": "macro", "zero_division": 0}
    expected = {
        "balanced_accuracy": recall.mean(),
        "accuracy": sk.accuracy_score(target, called),
        "macro_f1": sk.f1_score(target, called, **options),
        "macro_precision": sk.precision_score(target, called, **options),
        "worst_class_recall": recall.min(),
        "g_mean": np.prod(recall) ** (1 / len(present)),
    }
    for name, value in expected.items():
        estimate = got.headline[name]
        assert estimate.value == pytest.approx(value, abs=1e-9), name
        assert 0 <= estimate.low <= estimate.value + 1e-12
        assert estimate.value - 1e-12 <= estimate.high <= 1
    assert got.worst_class == names[present[recall.argmin()]]
    np.testing.assert_array_equal(
        got.confusion, sk.confusion_matrix(target, called, labels=range(num_classes))
    )
    table = got.per_class.iloc[present]
    np.testing.assert_allclose(table["recall"], recall)
    np.testing.assert_allclose(
        table["f1"], sk.f1_score(target, called, labels=present, average=None, zero_division=0)
    )
    called_ones = np.isin(present, called)
    np.testing.assert_allclose(
        table["precision"][called_ones],
        sk.precision_score(target, called, labels=present[called_ones], average=None),
    )
    assert json.loads(json.dumps(got.to_dict(), allow_nan=False))["num_images"] == images


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_repeating_images_and_shuffling_change_no_value(seed, times):
    rng = np.random.default_rng(seed)
    target, called = rng.integers(0, 4, (2, 30))
    once = evaluate_predictions(predictions_of(target, called, 4), SPACE, bootstrap=0)
    order = rng.permutation(np.repeat(np.arange(30), times))
    many = evaluate_predictions(predictions_of(target[order], called[order], 4), SPACE, bootstrap=0)
    for name in once.headline:
        assert once.headline[name].value == pytest.approx(many.headline[name].value, abs=1e-6)


def test_inspection_rates():
    #            ok: 10, 1 called short; open: 4, 1 called ok; short: 6, 2 called ok
    target = [0] * 10 + [1] * 4 + [2] * 6
    called = [0] * 9 + [2] + [1] * 3 + [0] + [2] * 4 + [0] * 2
    got = evaluate_predictions(predictions_of(target, called, 4), SPACE).headline
    assert got["escape_rate"].value == pytest.approx(3 / 10)
    assert got["overkill_rate"].value == pytest.approx(1 / 10)
    assert got["critical_escape_rate"].value == pytest.approx(1 / 4)
    low, high = wilson_interval(3, 10)
    assert (got["escape_rate"].low, got["escape_rate"].high) == (low, high)


def test_no_escape_among_fifty_is_no_certainty():
    got = evaluate_predictions(predictions_of([1] * 50, [1] * 50, 4), SPACE).headline
    assert got["escape_rate"].value == 0
    assert got["escape_rate"].high > 0.05
    assert got["overkill_rate"] == Estimate(None, None, None)


def test_no_rates_without_a_normal_class():
    space = LabelSpace(SPACE.names, SPACE.counts)
    got = evaluate_predictions(predictions_of([0, 1], [0, 1], 4), space).headline
    assert not {"escape_rate", "overkill_rate", "critical_escape_rate"} & set(got)


def test_absent_classes_make_no_nan_and_enter_no_mean():
    got = evaluate_predictions(predictions_of([0, 0, 2, 2], [0, 3, 2, 2], 4), SPACE)
    assert got.headline["balanced_accuracy"].value == pytest.approx(0.75)
    values = got.to_dict()
    json.dumps(values, allow_nan=False)
    absent = values["per_class"][1]
    assert absent["recall"] is None
    assert absent["f1"] is None
    assert absent["note"] == "no image in this split"
    assert values["per_class"][3]["precision"] == 0.0
    assert got.confusion.shape == (4, 4)


def test_a_split_of_one_class():
    got = evaluate_predictions(predictions_of([3, 3], [3, 0], 4), SPACE)
    assert got.headline["balanced_accuracy"].value == 0.5
    assert got.headline["tail_recall"].value == 0.5
    assert got.worst_class == "spur"
    assert "many_recall" not in got.headline
    json.dumps(got.to_dict(), allow_nan=False)


def test_unlabelled_rows_are_left_out_and_counted():
    got = evaluate_predictions(predictions_of([0, -1, 1, -1], [0, 1, 1, 2], 4), SPACE)
    assert (got.num_images, got.num_unlabelled) == (2, 2)
    assert got.headline["accuracy"].value == 1.0
    with pytest.raises(DataError, match="None of the 2 predicted images has a label"):
        evaluate_predictions(predictions_of([-1, -1], [0, 1], 4), SPACE)


def test_groups_and_tail_by_the_cutoffs():
    target = [0, 0, 1, 1, 2, 2, 3, 3]
    called = [0, 0, 1, 0, 2, 0, 0, 0]
    got = evaluate_predictions(predictions_of(target, called, 4), SPACE)
    assert got.tail_rule == "cutoffs"
    assert got.tail_classes == ("short", "spur")
    assert got.headline["many_recall"].value == 1.0
    assert got.headline["medium_recall"].value == 0.5
    assert got.headline["few_recall"].value == got.headline["tail_recall"].value == 0.25
    assert "head_recall" not in got.headline
    few = got.groups.query("rule == 'cutoffs' and group == 'few'").iloc[0]
    assert (few["classes"], few["train_images"], few["images"]) == (2, 98, 4)


def test_tail_by_quantile_where_every_class_is_small_and_none_where_equal():
    small = LabelSpace(SPACE.names, (90, 40, 20, 5))
    got = evaluate_predictions(predictions_of([0, 3, 3], [0, 3, 0], 4), small)
    assert got.tail_rule == "quantile"
    assert "spur" in got.tail_classes
    assert got.headline["tail_recall"].value == 0.5
    equal = LabelSpace(SPACE.names, (50, 50, 50, 50))
    got = evaluate_predictions(predictions_of([0, 3], [0, 3], 4), equal)
    assert (got.tail_rule, got.tail_classes) == ("none", ())
    assert got.headline["tail_recall"].value is None


def test_experts_beside_the_ensemble():
    target = np.array([0, 0, 1, 3])
    experts = np.array([[0, 1], [0, 1], [1, 1], [0, 3]])
    got = evaluate_predictions(predictions_of(target, target, 4, experts), SPACE).experts
    assert got["model"].tolist() == ["ensemble", "expert 0", "expert 1"]
    np.testing.assert_allclose(got["accuracy"], [1, 0.75, 0.5])
    np.testing.assert_allclose(got["balanced_accuracy"], [1, 2 / 3, 2 / 3])
    np.testing.assert_allclose(got["tail_recall"], [1, 0, 1])
    for column, row in enumerate(experts.T, start=1):
        options = {"labels": [0, 1, 3], "average": "macro", "zero_division": 0}
        assert got["macro_f1"][column] == pytest.approx(sk.f1_score(target, row, **options))


def test_products_and_the_missing_product():
    got = evaluate_predictions(
        predictions_of([0, 0, 1, 1, 0], [0, 1, 1, 1, 0], 4, board=["A", "A", "A", "B", None]),
        SPACE,
        product_column="board",
    )
    table = got.per_product.set_index("product")
    assert table["images"].to_dict() == {"(none)": 1, "A": 3, "B": 1}
    assert table.loc["A", "balanced_accuracy"] == pytest.approx(0.75)
    assert table.loc["A", "accuracy"] == pytest.approx(2 / 3)
    assert table.loc["A", "worst_class"] == "ok"
    long = got.class_by_product.set_index(["class", "product"])
    assert len(long) == 4
    assert long.loc[("ok", "A"), "recall"] == 0.5
    assert long.loc[("ok", "A"), "images"] == 2
    without = evaluate_predictions(predictions_of([0, 1], [0, 1], 4), SPACE)
    assert without.to_dict()["per_product"] == []


def test_note_says_too_few_to_tell():
    target = [0] * 100 + [3] * 12
    called = [0] * 100 + [3] * 10 + [0] * 2
    got = evaluate_predictions(predictions_of(target, called, 4), SPACE)
    notes = got.per_class["note"].tolist()
    assert notes[3] == "12 images: recall 0.83 (0.55-0.95), too few to tell"
    assert notes[0] == ""
    assert got.headline["worst_class_recall"].too_wide


def test_probabilities_that_are_no_numbers_are_refused():
    broken = predictions_of([0, 1, 1], [0, 1, 0], 4)
    broken.probabilities[1] = np.nan
    with pytest.raises(DataError, match="no numbers for 1 of 3 images"):
        evaluate_predictions(broken, SPACE)


def test_to_dict_has_plain_headline_names():
    values = evaluate_predictions(predictions_of([0, 1, 3], [0, 1, 0], 4), SPACE).to_dict()
    assert set(values["balanced_accuracy"]) == {"value", "low", "high"}
    assert values["worst_class"] == "spur"
    assert values["ece"]["low"] is None
    assert values["confusion"]["counts"][3] == [1, 0, 0, 0]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_print_fits_and_says_what_it_cannot_tell(width):
    rng = np.random.default_rng(0)
    target = np.array([0] * 60 + [1] * 20 + [3] * 5)
    called = np.where(rng.random(85) < 0.8, target, 0)
    space = LabelSpace(
        ("ok", "[red]open", "a very long class name of a very long defect", "spur"),
        SPACE.counts,
        normal="ok",
        critical=("[red]open",),
    )
    got = evaluate_predictions(
        predictions_of(target, called, 4, product=["P1", "P2", "P3", "P4", "P5"] * 17), space
    )
    stream = io.StringIO()
    print_evaluation(got, Console(file=stream, width=width), "run 12, split test")
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= min(width, 100)
    text = "\n".join(lines)
    assert "…" not in text
    for row in got.per_class.to_dict("records"):
        assert re.search(rf" {row['train_images']:,} +{row['images']} ", text)
    for row in got.experts.to_dict("records"):
        assert f"{row['tail_recall']:.3f}" in text
    assert "run 12, split test  85 images" in text
    assert "[red]open" in text
    assert f"{got.headline['balanced_accuracy'].value:.3f}" in text
    assert "expert 1" in text
    assert "P5" in text
    assert "Too few images to tell the recall of spur (5 images), [red]open (20" in " ".join(
        text.split()
    )
    assert "No image of a very long class name" in text


def test_print_shortens_many_classes():
    names = tuple(f"c{i}" for i in range(80))
    target = np.arange(80)
    got = evaluate_predictions(
        predictions_of(target, target, 80), LabelSpace(names, tuple(range(80, 0, -1)))
    )
    stream = io.StringIO()
    print_evaluation(got, Console(file=stream, width=100), "Evaluation")
    assert "The 20 classes of lowest recall, of 80" in stream.getvalue()
    assert "and 74 more." in " ".join(stream.getvalue().split())
