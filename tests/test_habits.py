"""What people type by habit who come from other libraries: it works, or says how it is done here.

Each line is a call of a peer's way, typed against recame. `given` is what stands in scope, `tiny`
are settings of a network that trains in a second.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import recame

mpl.use("agg")
CLASSES = ["ok", "scratch", "dent", "hole"]


@dataclass(frozen=True)
class Habit:
    """One call.

    Attributes:
        peer: whose way it is.
        typed: the call; of several statements the last one is an expression.
        holds: what must be true of its value; None where it is refused.
        told: a pattern in the error that refuses it, which names our way.
    """

    peer: str
    typed: str
    holds: Callable[[Any], bool] | None = None
    told: str = ""


def _finished(run: Any) -> bool:
    return bool(run.finished)


def _is_figure(figure: Any) -> bool:
    return isinstance(figure, Figure) and bool(figure.axes)


HABITS = (
    Habit(
        "ultralytics",
        "recame.train(folder, tiny, epochs=1, size=32, batch_size=16, device='cpu', seed=1)",
        lambda run: run.finished and run.load_config().finetune.epochs == 1,
    ),
    Habit("ultralytics", "recame.train(data=folder, epochs=1, imgsz=32)", None, r"'imgsz'.*size"),
    Habit("ultralytics", "model.val()", None, r"recame\.evaluate"),
    Habit("ultralytics", "model.export(format='onnx')", None, r"recame\.export_bundle"),
    Habit(
        "ultralytics",
        "model.predict(folder).to_frame()['prediction'].unique()",
        lambda labels: set(labels) <= set(CLASSES),
    ),
    Habit("ultralytics", "model.predict(images).plot()", _is_figure),
    Habit("ultralytics", "model(image)[0].label", lambda label: label in CLASSES),
    Habit("ultralytics", "[p.label for p in model.predict(images)]", lambda found: len(found) == 4),
    Habit("fastai", "model.fine_tune(5)", None, r"recame\.train"),
    Habit("fastai", "model.predict(Image.open(image))[0].label", lambda label: label in CLASSES),
    Habit("fastai", "recame.evaluate(run, report=False).plot()", _is_figure),
    Habit(
        "fastai",
        "recame.train(table, {**tiny, 'probe.steps': 20, 'finetune.enabled': False})",
        _finished,
    ),
    Habit(
        "scikit-learn",
        "model.predict_proba(images)",
        lambda p: p.shape == (4, 4) and np.allclose(p.sum(1), 1, atol=1e-5),
    ),
    Habit("scikit-learn", "list(model.classes_)", lambda names: names == CLASSES),
    Habit(
        "scikit-learn",
        "(model.classes_[model.predict_proba(images).argmax(1)] == model.predict(images).labels)",
        lambda same: bool(same.all()),
    ),
    Habit(
        "scikit-learn",
        "from sklearn.metrics import accuracy_score\n"
        "accuracy_score(labels, model.predict(images).labels)",
        lambda share: 0 <= share <= 1,
    ),
    Habit("scikit-learn", "model.score(images, labels)", None, r"recame\.evaluate_probabilities"),
    Habit(
        "scikit-learn",
        "recame.evaluate_probabilities(labels, model.predict_proba(images), model.classes_)"
        ".to_frame().loc['balanced_accuracy', 'value']",
        lambda value: 0 <= value <= 1,
    ),
    Habit("timm", "recame.create_model('resnet18', num_classes=4)", None, r"MultiExpertClassifier"),
    Habit(
        "torch",
        "net = recame.MultiExpertClassifier.from_config(tiny, num_classes=4).eval()\n"
        "torch.export.export(net, (torch.rand(2, 3, 32, 32),)).module()(torch.rand(2, 3, 32, 32))",
        lambda output: tuple(output.logits.shape) == (2, 2, 4),
    ),
    Habit(
        "timm",
        "net = recame.MultiExpertClassifier.from_config(tiny, num_classes=4)\n"
        "net(torch.rand(2, 3, 32, 32)).logits.shape",
        lambda shape: tuple(shape) == (2, 2, 4),
    ),
    Habit("Hugging Face", "recame.load(run)(image)[0]['label']", lambda label: label in CLASSES),
    Habit("Hugging Face", "recame.from_pretrained(run)", None, r"recame\.load"),
    Habit(
        "pandas",
        "recame.evaluate(run, table, report=False, name='mine').to_frame()",
        lambda frame: "balanced_accuracy" in frame.index,
    ),
    Habit(
        "torch",
        "model.predict([image, torch.zeros(3, 32, 32, dtype=torch.uint8), np.zeros((32, 32), "
        "np.uint8), open(image, 'rb'), Image.open(image)])",
        lambda found: len(found) == 5 and found[0].label == found[3].label == found[4].label,
    ),
)


@pytest.fixture
def given(
    defects: Path,
    finished_copy: Path,
    tiny_settings: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """What stands in scope of each call."""
    monkeypatch.chdir(tmp_path)
    images = [str(defects / name / "000.png") for name in CLASSES]
    every = [(str(path), path.parent.name) for path in sorted(defects.rglob("*.png"))]
    return {
        "recame": recame,
        "Image": Image,
        "np": np,
        "torch": torch,
        "folder": str(defects),
        "table": pd.DataFrame(every, columns=["image", "label"]),
        "tiny": tiny_settings,
        "images": images,
        "image": images[1],
        "labels": CLASSES,
        "run": recame.RunFolder(finished_copy),
        "model": recame.load(finished_copy),
    }


@pytest.fixture(scope="module")
def finished_copy(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("habits") / "run"))


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: f"{habit.peer}: {habit.typed[:40]}")
def test_habit(habit: Habit, given: dict[str, Any]) -> None:
    *statements, last = habit.typed.split("\n")
    exec("\n".join(statements), given)
    if habit.holds is not None:
        assert habit.holds(eval(last, given))
        return
    with pytest.raises((recame.RecameError, AttributeError, TypeError), match=habit.told):
        eval(last, given)


def test_most_habits_work_as_typed() -> None:
    assert len(HABITS) == 25
    assert sum(habit.holds is not None for habit in HABITS) >= 18
