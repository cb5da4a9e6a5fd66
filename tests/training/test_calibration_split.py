from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import recame
from recame.config import Config
from recame.data.splits import complete_splits
from recame.decisions.exact import images_needed
from recame.decisions.promises import risk_of_each
from recame.training.calibration_split import LIMIT, SHARE, settle_calibration


def table(**counts: int) -> pd.DataFrame:
    labels = [name for name, number in counts.items() for _ in range(number)]
    images = [f"{number}.png" for number in range(len(labels))]
    boards = [f"B{number // 2}" for number in range(len(labels))]
    return pd.DataFrame({"image": images, "label": labels, "board": boards})


def config(**changes: object) -> Config:
    named = {f"data.{key}": value for key, value in changes.items()}
    return Config().updated({"data.normal_class": "ok", **named})


def test_a_fifth_is_set_aside_where_it_promises_something() -> None:
    share, why = settle_calibration(table(ok=2000, dent=1200, hole=30), config())
    assert share == SHARE
    assert why is not None
    train = (1 - 0.3) * 3230
    assert f"about {round(SHARE * train):,} of" in why
    assert "can promise escapes of dent (5% or less)" in why


def test_all_classes_are_promised_together_or_fewer() -> None:
    needed = images_needed(LIMIT, risk_of_each(0.95, promises=2))
    assert needed is not None
    enough = int(np.ceil((needed + 1) / SHARE / 0.7))
    _, why = settle_calibration(table(ok=500, dent=enough, hole=enough), config())
    assert "escapes of dent, hole (5% or less)" in str(why)
    _, why = settle_calibration(table(ok=500, dent=enough, hole=enough // 2), config())
    assert "escapes of dent (5% or less)" in str(why)


def test_nothing_is_set_aside_that_promises_nothing() -> None:
    share, why = settle_calibration(table(ok=500, dent=100, hole=30), config())
    assert share == 0.0
    assert "no defect class has enough for a promise (at most 70 images" in str(why)
    assert settle_calibration(table(ok=2000, dent=1200), Config()) == (0.0, None)
    split = table(ok=2000, dent=1200).assign(split="train")
    split.loc[:300, "split"] = "calibrate"
    assert settle_calibration(split, config()) == (0.0, "the table has a split of that name")


def test_groups_count_where_they_belong_together() -> None:
    share, why = settle_calibration(table(ok=2000, dent=900), config(group_by="board"))
    assert share == 0.0
    assert "at most 3" in str(why)
    assert "boards, and" in str(why)


def test_the_split_is_stratified_grouped_and_made_once() -> None:
    words = {"val_fraction": 0.15, "test_fraction": 0.15, "group_by": None, "seed": 0}
    plain = complete_splits(table(ok=200, dent=100), **words)  # type: ignore[arg-type]
    cut = complete_splits(table(ok=200, dent=100), calibrate_fraction=0.2, **words)  # type: ignore[arg-type]
    kept = cut["split"] != "calibrate"
    assert (cut["split"][kept] == plain["split"][kept]).all()
    assert set(plain["split"][~kept]) == {"train"}
    counts = cut[~kept]["label"].value_counts()
    assert counts.to_dict() == {"ok": 28, "dent": 14}
    again = complete_splits(cut, calibrate_fraction=0.2, **words)  # type: ignore[arg-type]
    assert (again["split"] == cut["split"]).all()
    words["group_by"] = "board"
    grouped = complete_splits(table(ok=200, dent=100), calibrate_fraction=0.2, **words)  # type: ignore[arg-type]
    assert len(grouped[["board", "split"]].drop_duplicates()) == len(set(grouped["board"]))
    assert (grouped["split"] == "calibrate").sum() > 20


def test_a_run_sets_images_aside_and_tunes_by_them(
    write_images: Callable[..., Path], tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    images = write_images(tmp_path / "set", {"ok": 60, "scratch": 40, "dent": 30})
    settings = tiny_config(data__calibrate=0.3, data__normal_class="ok", finetune__epochs=1)
    run = recame.train(images, settings, out=tmp_path / "run").path
    splits = pd.read_csv(run / "manifest.csv").groupby("split")["label"].value_counts()
    aside = splits["calibrate"]
    assert aside["ok"] == round(0.3 * (aside["ok"] + splits["train"]["ok"]))
    found = recame.tune(run)
    assert found.facts["comparisons"] == 1
    assert found.facts["images"] == aside.sum()
    assert recame.load_config(run / "config.yaml").data.calibrate == 0.3


@pytest.mark.parametrize("normal", [None, "ok"])
def test_what_is_decided_is_kept(
    defects: Path, tiny_config: Callable[..., Config], tmp_path: Path, normal: str | None
) -> None:
    settings = tiny_config(data__normal_class=normal, probe__enabled=False, finetune__epochs=1)
    run = recame.train(defects, settings, out=tmp_path / "run")
    assert run.load_config().data.calibrate == 0.0
    assert run.asked().data.calibrate == "auto"
    told = [reason for reason in run.reasons() if reason.startswith("data.calibrate = 0: ")]
    assert len(told) == (normal is not None)
