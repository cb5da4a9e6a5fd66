from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from recame.contracts import Predictions
from recame.label_space import LabelSpace
from recame.metrics.evaluation import evaluate_predictions
from recame.metrics.registry import BY_NAME, LOWER_IS_BETTER, METRICS
from recame.metrics.statistics import ClassRates

SPACE = LabelSpace(("ok", "open", "short"), (200, 40, 9), normal="ok", critical=("short",))
TARGET = np.array([0, 0, 0, 0, 1, 1, 2, 2])
CALLED = np.array([0, 0, 1, 2, 1, 0, 0, 2])


def headline(space: LabelSpace) -> dict[str, float | None]:
    soft = np.eye(3, dtype=np.float32)[CALLED]
    table = pd.DataFrame({"image": [str(i) for i in range(len(TARGET))]})
    found = evaluate_predictions(Predictions(table, soft, soft[:, None], TARGET), space)
    return {name: estimate.value for name, estimate in found.headline.items()}


def test_an_evaluation_holds_the_metrics_in_the_order_of_the_registry() -> None:
    found = list(headline(SPACE))
    absent = {"head_recall", "medium_recall"} if "many_recall" in found else {"head_recall"}
    assert found == [m.name for m in METRICS if m.name in found]
    assert absent <= set(BY_NAME) - set(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 4 / 8),
        ("escape_rate", 2 / 4),
        ("critical_escape_rate", 1 / 2),
        ("overkill_rate", 2 / 4),
        ("worst_class_recall", 1 / 2),
        ("balanced_accuracy", 1 / 2),
    ],
)
def test_values_by_hand(name: str, value: float) -> None:
    assert headline(SPACE)[name] == pytest.approx(value)


def test_without_a_normal_class_there_is_no_escape() -> None:
    found = headline(LabelSpace(SPACE.names, SPACE.counts))
    assert not {"escape_rate", "critical_escape_rate", "overkill_rate"} & set(found)
    assert not [name for name in found if "overkill" in name]


def test_a_new_metric_needs_its_entry_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from recame.metrics import breakdown, evaluation
    from recame.metrics.registry import Metric

    median = Metric("median_recall", "median recall", "", mean=lambda r: np.median(r.recall, -1))
    for module in (breakdown, evaluation):
        monkeypatch.setattr(module, "METRICS", (*METRICS, median))
    assert headline(SPACE)["median_recall"] == pytest.approx(0.5)


def test_a_mean_may_ask_which_classes_are_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    from recame.metrics import breakdown, evaluation, paired
    from recame.metrics.registry import Metric

    def recall(rates: ClassRates) -> np.ndarray:
        return rates.recall[..., rates.defect].mean(-1)

    good = Metric("good", "good", "", mean=recall)
    bad = Metric("bad", "bad", "", "headline", lower_is_better=True, mean=lambda r: 1 - recall(r))
    for module in (breakdown, evaluation, paired):
        monkeypatch.setattr(module, "METRICS", (*METRICS, good, bad))
    monkeypatch.setattr(evaluation, "LOWER_IS_BETTER", LOWER_IS_BETTER | {"bad"})
    for called, value in ((CALLED, 0.5), (TARGET, 0.0)):  # a perfect model's error is no cliff
        soft = np.eye(3, dtype=np.float32)[called]
        table = pd.DataFrame({"image": [str(i) for i in range(len(TARGET))]})
        got = evaluate_predictions(Predictions(table, soft, soft[:, None], TARGET), SPACE).headline
        assert got["bad"].value == pytest.approx(value)
        assert got["bad"].low == pytest.approx(1 - got["good"].high)
        assert got["bad"].high == pytest.approx(1 - got["good"].low)
    differences = paired.paired_differences(TARGET, CALLED, TARGET, SPACE, resamples=50, seed=0)
    assert differences["bad"].value == pytest.approx(0.5)


def test_less_is_better_of_rates_of_error_alone() -> None:
    rates = {"escape_rate", "critical_escape_rate", "overkill_rate"}
    assert rates | {f"escapes_at_{n}_overkill" for n in (1, 2)} | {"ece"} == LOWER_IS_BETTER
    assert BY_NAME["ece"].goodness(0.2) == pytest.approx(0.8)
    assert BY_NAME["accuracy"].goodness(0.2) == pytest.approx(0.2)
