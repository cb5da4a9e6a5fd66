"""Any model's probabilities, judged; figures as text, table and picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from recame.errors import ConfigError, DataError
from recame.metrics.from_arrays import evaluate_probabilities

NAMES = ["ok", "crack", "hole"]
PROBA = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
LABELS = ["ok", "crack", "crack", "hole"]


def test_names_and_places_are_the_same() -> None:
    judged = evaluate_probabilities(LABELS, PROBA, NAMES, normal="ok", bootstrap=20)
    assert judged["balanced_accuracy"].value == pytest.approx(2.5 / 3)
    assert judged["escape_rate"].value == pytest.approx(1 / 3)
    assert judged.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    by_place = evaluate_probabilities([0, 1, 1, 2], PROBA, NAMES, normal="ok", bootstrap=20)
    assert by_place.headline == judged.headline
    numbers = evaluate_probabilities([7, 8, 8, 9], PROBA, [7, 8, 9], bootstrap=0)
    assert numbers.worst_class == "8"


def test_a_classifier_of_sklearn() -> None:
    x, y = make_classification(
        300, n_informative=4, n_classes=3, weights=[0.8, 0.1], random_state=0
    )
    model = LogisticRegression(max_iter=500).fit(x[:200], y[:200])
    proba = model.predict_proba(x[200:])
    judged = evaluate_probabilities(y[200:], proba, model.classes_, bootstrap=50)
    expected = balanced_accuracy_score(y[200:], model.predict(x[200:]))
    assert judged["balanced_accuracy"].value == pytest.approx(expected)


def test_what_is_rare_and_whose_product() -> None:
    table = pd.DataFrame({"board": ["A", "A", "B", "B"]})
    judged = evaluate_probabilities(
        LABELS, PROBA, NAMES, train_counts=[500, 90, 3000], table=table, product_column="board"
    )
    assert judged.per_class["train_images"].tolist() == [500, 90, 3000]
    assert judged.tail_classes == ("crack",)
    assert judged.per_product["product"].tolist() == ["A", "B"]


def test_a_result_is_text_table_and_picture() -> None:
    judged = evaluate_probabilities(LABELS, PROBA, NAMES, normal="ok", bootstrap=20)
    assert str(judged).startswith("4 images of 3 classes\n  balanced accuracy")
    assert "0.833 (" in str(judged)
    assert str(judged["ece"]) == f"{judged['ece'].value:.3f}"
    frame = judged.to_frame()
    assert frame.index.tolist() == list(judged.headline)
    assert frame.loc["escape_rate", "value"] == pytest.approx(1 / 3)
    assert frame.dtypes.tolist() == [np.dtype(float)] * 3
    (axes,) = judged.plot().axes
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == "hole (1)"
    with pytest.raises(DataError, match="no figure 'auc' here; there are balanced_accuracy"):
        judged["auc"]


@pytest.mark.parametrize(
    ("labels", "proba", "words", "error", "told"),
    [
        (["ok", "dust", "hole", "ok"], PROBA, {}, DataError, "holds dust, none of the classes"),
        ([0, 1, 2, 3], PROBA, {}, DataError, "holds 3, none of the classes"),
        (LABELS, PROBA[:3], {}, DataError, r"shape \(3, 3\).*need \(4, 3\)"),
        (LABELS, 5 * PROBA, {}, DataError, "softmax"),
        (np.eye(3), PROBA, {}, DataError, "argmax"),
        (LABELS, PROBA, {"normal": "good"}, ConfigError, "'good' is not among the classes"),
        (LABELS, PROBA, {"table": pd.DataFrame({"a": [1]})}, DataError, "1 rows for 4 labels"),
    ],
)
def test_what_does_not_fit_is_refused(
    labels: Any, proba: Any, words: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        evaluate_probabilities(labels, proba, NAMES, **words)
