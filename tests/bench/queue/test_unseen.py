from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recame.bench.queue.unseen import tail_unseen
from recame.errors import DataError
from recame.reports.evaluate import evaluate
from recame.reports.judged_images import PREDICTIONS
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions


@pytest.fixture
def judged(finished: Path, tmp_path: Path) -> RunFolder:
    """A finished run whose test images are judged."""
    shutil.copytree(finished, tmp_path / "run")
    evaluate(tmp_path / "run", report=False)
    return RunFolder.open(tmp_path / "run")


def by_hand(run: RunFolder, unseen: pd.Series, tail: list[str]) -> float:
    classes, found, _ = load_predictions(run.evaluation_dir("test") / PREDICTIONS)
    called = np.array(classes)[found.probabilities.argmax(1)]
    recalls = []
    for name in tail:
        rows = (found.table["label"] == name) & found.table["image"].isin(unseen)
        if rows.any():
            recalls.append((called[rows] == name).mean())
    return float(np.mean(recalls))


def test_only_images_of_clusters_without_a_training_image_of_the_class_count(
    judged: RunFolder, tmp_path: Path
) -> None:
    manifest = pd.read_csv(judged.manifest_path)
    # Each class has three clusters; one of them is taken from training.
    number = manifest.groupby("label").cumcount() % 3
    is_train = manifest["split"] == "train"
    cluster = manifest["label"] + "/" + number.where(~is_train, number.replace(2, 1)).astype(str)
    truth = pd.DataFrame({"image": manifest["image"], "cluster": cluster})
    (tmp_path / "set").mkdir()
    truth.to_csv(tmp_path / "set" / "truth.csv", index=False)
    source = tmp_path / "set" / "manifest.csv"

    tail = ["scratch", "dent"]
    unseen = manifest["image"][(cluster.str.endswith("/2")) & (manifest["split"] == "test")]
    assert len(unseen) > 1
    found = tail_unseen(judged, source, "test", tail)
    assert found is not None
    assert found.value == pytest.approx(by_hand(judged, unseen, tail))
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    nothing = tail_unseen(judged, source, "test", [])
    assert nothing is not None
    assert nothing.value is None


def test_a_cluster_is_of_a_class(judged: RunFolder, tmp_path: Path) -> None:
    """Another class's training images in the same cluster do not show the class there."""
    manifest = pd.read_csv(judged.manifest_path)
    alone = (manifest["label"] == "dent") & (manifest["split"] == "test")
    cluster = np.where(alone | (manifest["label"] == "ok"), "here", "there")
    pd.DataFrame({"image": manifest["image"], "cluster": cluster}).to_csv(
        tmp_path / "truth.csv", index=False
    )
    found = tail_unseen(judged, tmp_path / "manifest.csv", "test", ["dent"])
    assert found is not None
    assert found.value == pytest.approx(by_hand(judged, manifest["image"][alone], ["dent"]))


def test_without_clusters_there_is_none(judged: RunFolder, tmp_path: Path) -> None:
    assert tail_unseen(judged, tmp_path / "manifest.csv", "test", ["dent"]) is None
    (tmp_path / "truth.csv").write_text("image,group\na,b\n")
    with pytest.raises(DataError, match=r"truth\.csv does not hold the images' clusters"):
        tail_unseen(judged, tmp_path / "manifest.csv", "test", ["dent"])


def test_a_manifest_may_tell_the_clusters_itself(
    judged: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recame.bench.queue import unseen

    read: Callable[..., pd.DataFrame] = unseen.recorded_data
    told = ["a", None]

    def with_clusters(*words: object) -> pd.DataFrame:
        table = read(*words)
        is_test = table["split"] == "test"
        return table.assign(cluster=np.where(is_test, told[0], "b"))

    monkeypatch.setattr(unseen, "recorded_data", with_clusters)
    tail = ["dent", "scratch"]
    manifest = pd.read_csv(judged.manifest_path)
    every = manifest["image"][manifest["split"] == "test"]
    found = tail_unseen(judged, tmp_path / "manifest.csv", "test", tail)
    assert found is not None
    assert found.value == pytest.approx(by_hand(judged, every, tail))
    told[0] = None  # where it is not told, nobody can say that it is unseen
    found = tail_unseen(judged, tmp_path / "manifest.csv", "test", tail)
    assert found is not None
    assert found.value is None
