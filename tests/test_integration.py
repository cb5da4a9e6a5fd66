"""One run through every verb with the settings that a user gets, but for its length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

import recame
from recame.config import Config, load_config


def test_from_images_to_predictions(
    defects: Path, write_images: Callable[..., Path], tmp_path: Path
) -> None:
    # Epochs and not a time, in which a busy machine may have none.
    short = {"probe.steps": 20, "finetune.batch_size": 16, "finetune.epochs": 2}
    asked = Config().updated({**short, "run.accelerator": "cpu"})
    run = recame.train(defects, asked, out=tmp_path / "run").path

    config = load_config(run / "config.yaml")
    assert config.model.backbone == "tf_efficientnet_lite0"  # the packaged weights
    assert config.data.size == 64
    assert config.augment.symmetry != "auto"
    reasons = json.loads((run / "reasons.json").read_text())
    decided = {reason.split(" = ")[0] for reason in reasons}
    assert {"data.size", "model.backbone", "augment.symmetry", "finetune.lr"} <= decided
    kept = json.loads((run / "phases.json").read_text())
    assert config.model.num_experts == 2  # time is not what is short
    judged = {"probe", "finetune", "joined", "joined_first"}
    assert set(kept["val_balanced_accuracy"]) == judged

    evaluated = recame.evaluate(run)
    figures = json.loads((run / "metrics.json").read_text())
    accuracy = figures["test"]["balanced_accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] > 0.7  # chance: 0.25
    assert len(evaluated.predictions) == 16
    page = (evaluated.folder / "report.html").read_text()
    assert f"{accuracy['value']:.3f}" in page
    assert "its ImageNet weights are installed with recame" in page  # why it was chosen

    names = json.loads((run / "label_space.json").read_text())["names"]
    new = write_images(tmp_path / "new", dict.fromkeys(names, 6), seed=11)
    (new / "cut-off.png").write_bytes((new / "ok" / "000.png").read_bytes()[:200])
    summary = recame.predict(run, [new], out=tmp_path / "predictions.parquet")
    assert [Path(path).name for path, _ in summary.unreadable] == ["cut-off.png"]
    table = pd.read_parquet(summary.out)
    table = table[table["action"] != "unreadable"]
    right = np.array([Path(p).parent.name for p in table["image"]]) == table["prediction"]
    assert right.mean() > 0.7
    expected = ["image", "path", "prediction", "confidence"]
    expected += [f"p_{name}" for name in names]
    assert list(table.columns[: len(expected)]) == expected
