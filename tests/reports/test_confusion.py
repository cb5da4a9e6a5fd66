from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.contracts import Predictions
from recame.errors import DataError
from recame.label_space import LabelSpace
from recame.metrics.evaluation import evaluate_predictions
from recame.reports.confusion import confusion_figure, save_evaluation

SPACE = LabelSpace(("rare", "ok", "common"), (5, 900, 300), normal="ok")


@pytest.fixture(scope="module")
def evaluation():
    target = np.array([0] * 4 + [1] * 200 + [2] * 8)
    called = np.array([0, 0, 0, 1] + [1] * 199 + [2] + [2] * 8)
    one_hot = np.eye(3, dtype=np.float32)[called]
    table = pd.DataFrame({"image": np.arange(len(target)).astype(str)})
    return evaluate_predictions(
        Predictions(table, one_hot, one_hot[:, None], target), SPACE, bootstrap=20
    )


def cell_texts(figure):
    texts = figure.axes[0].texts
    return {
        (t.get_position()[1], t.get_position()[0]): t.get_text()
        for t in texts
        if t.get_text() != "escapes"
    }


def test_rows_run_by_training_count_with_readable_numbers(evaluation):
    figure = confusion_figure(evaluation, SPACE, normalised=True)
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["ok  (900)", "common  (300)", "rare  (5)"]
    assert cell_texts(figure) == {
        (0, 0): "99",  # 199 of 200 are not all
        (0, 1): "<1",
        (1, 1): "100",
        (2, 0): "25",
        (2, 2): "75",
    }
    counts = cell_texts(confusion_figure(evaluation, SPACE, normalised=False))
    assert counts[0, 0] == "199"
    assert counts[2, 2] == "3"


def test_text_is_light_on_dark_cells(evaluation):
    figure = confusion_figure(evaluation, SPACE)
    colours = {t.get_text(): t.get_color() for t in figure.axes[0].texts}
    assert colours["100"] == "white"
    assert colours["25"] != "white"


def test_no_global_state_of_pyplot(evaluation):
    confusion_figure(evaluation, SPACE)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_absent_class_says_so_and_many_classes_are_colour_only():
    names = tuple(f"c{i}" for i in range(40))
    space = LabelSpace(names, tuple(range(40, 0, -1)))
    target = np.arange(39)
    table = pd.DataFrame({"image": names[:39]})
    eye = np.eye(40, dtype=np.float32)[target]
    many = evaluate_predictions(Predictions(table, eye, eye[:, None], target), space, bootstrap=0)
    assert len(confusion_figure(many, space).axes[0].texts) == 0
    few = LabelSpace(("a", "b", "c"), (3, 2, 1))
    eye = np.eye(3, dtype=np.float32)[:2]
    small = evaluate_predictions(
        Predictions(table[:2], eye, eye[:, None], np.array([0, 1])), few, bootstrap=0
    )
    texts = [t.get_text() for t in confusion_figure(small, few).axes[0].texts]
    assert texts == ["100", "100", "no image in this split"]


def test_save_evaluation(evaluation, tmp_path):
    save_evaluation(evaluation, tmp_path / "test", SPACE)
    confusion = pd.read_csv(tmp_path / "test" / "confusion.csv", index_col=0)
    assert confusion.loc["rare"].to_dict() == {"rare": 3, "ok": 1, "common": 0}
    per_class = pd.read_csv(tmp_path / "test" / "per_class.csv")
    assert per_class["class"].tolist() == ["rare", "ok", "common"]
    assert per_class["recall"][0] == 0.75
    with Image.open(tmp_path / "test" / "confusion.png") as picture:
        assert min(picture.size) > 400
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        save_evaluation(evaluation, tmp_path / "file" / "x", SPACE)


def test_a_picture_of_many_classes_has_bounded_sides():
    size = 400
    target = np.arange(size)
    names = tuple(f"class {i}" for i in range(size))
    space = LabelSpace(names, counts=(5,) * size)
    sure = np.eye(size, dtype=np.float32)
    found = Predictions(pd.DataFrame(index=target), sure, sure[:, None], target)
    figure = confusion_figure(evaluate_predictions(found, space, bootstrap=0), space)
    assert max(figure.get_size_inches()) * figure.dpi <= 6001
