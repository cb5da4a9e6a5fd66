"""Options that are settings, settings where a run is judged or predicts, and what help says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
import yaml

from recame.cli.app import app
from recame.cli.help_texts import VERBS
from recame.cli.requests import train_request
from recame.config import load_config
from recame.datasets.registry import PUBLIC_SETS
from recame.errors import ConfigError

Recame = Callable[..., Any]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def renamed(defects_table: Path, tmp_path: Path) -> Path:
    """The table of the defects with columns of other names."""
    table = pd.read_csv(defects_table).rename(columns={"image": "file", "label": "defect"})
    table["file"] = [str(defects_table.parent / name) for name in table["file"]]
    table.to_csv(tmp_path / "renamed.csv", index=False)
    return tmp_path / "renamed.csv"


def test_frequent_settings_are_options(
    recame: Recame, defects: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    words = ["--epochs", 1, "--batch-size", 8, "--size", 32, "--normal", "ok", "--device", "cpu"]
    words += ["--seed", 4, "--time-budget", "90s", "--set", "finetune.epochs=3"]
    code, _, err = recame("train", defects, "-o", tmp_path / "run", *tiny_words, *words)
    assert (code, err) == (0, "")
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.finetune.epochs, config.finetune.batch_size) == (1, 8)  # options come last
    assert (config.data.size, config.data.normal_class) == (32, "ok")
    assert (config.run.accelerator, config.run.seed, config.run.time_budget_s) == ("cpu", 4, 90)
    code, _, err = recame("train", "-o", tmp_path / "run", "--resume", "--epochs", 3)
    assert code == 2
    assert "--resume continues with the run's own settings" in err


def test_a_run_is_judged_on_a_table_of_other_names(
    recame: Recame, run: Path, renamed: Path, tmp_path: Path
) -> None:
    columns = ["--set", "data.image_column=file", "--set", "data.label_column=defect"]
    table = tmp_path / "judged.csv"
    code, out, err = recame("evaluate", run, renamed, *columns, "--device", "cpu", "-o", table)
    assert (code, err) == (0, "")
    assert f"Predictions: {table}" in out
    kept = run / "evaluation" / "renamed" / "predictions.parquet"
    assert list(pd.read_csv(table)) == list(pd.read_parquet(kept))
    assert pd.read_csv(table)["prediction"].tolist() == pd.read_parquet(kept)["prediction"].tolist()
    judged = json.loads((run / "evaluation" / "renamed" / "judged.json").read_text())
    assert judged["settings"]["data.label_column"] == "defect"
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["label_column"] == "label"
    code, _, err = recame("report", run, "--split", "renamed")  # reads it by the same names
    assert (code, err) == (0, "")


def test_a_run_is_continued_with_corrections_and_short_options(
    finished: Path, defects: Path, tmp_path: Path
) -> None:
    fixed, out = tmp_path / "fixed.csv", tmp_path / "run"
    short = {"epochs": 2, "normal": "ok", "device": "cuda", "size": None}
    words = ["finetune.epochs=3", "finetune.lr=0.5"]
    source, chosen, _ = train_request(
        None, out, None, finished, defects, fixed, words, short, resume=False
    )
    assert source == defects
    assert (chosen.data.continues, chosen.data.corrections) == (finished.resolve(), fixed)
    assert (chosen.finetune.epochs, chosen.finetune.lr) == (2, 0.5)  # options come last
    assert (chosen.data.normal_class, chosen.run.accelerator) == ("ok", "gpu")
    for given in ({"from_": finished}, {"corrections": fixed}, {"short": {"epochs": 2}}):
        nothing = {"from_": None, "add": None, "corrections": None, "settings": [], "short": {}}
        with pytest.raises(ConfigError, match="leave out --config, --from, --add, --corrections"):
            train_request(None, finished, None, **{**nothing, **given}, resume=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "finetune.lr=1"], "finetune.lr was fixed when the run was trained"),
        (["--set", "evaluation.views=2"], "and views can be changed"),
        (["--set", "evaluation.bootstrap=-1"], "evaluation.bootstrap"),
        (["--device", "cuda:1"], "CUDA_VISIBLE_DEVICES=1"),
        (["--out", "judged.xlsx"], "must end in .csv or .parquet"),
    ],
)
def test_what_training_has_decided_stays(
    recame: Recame, run: Path, words: list[str], told: str
) -> None:
    code, _, err = recame("evaluate", run, *words)
    assert code == 2
    assert told in err


def test_predictions_take_settings(
    recame: Recame, run: Path, renamed: Path, tmp_path: Path
) -> None:
    words = ["--out", tmp_path / "found.csv", "--set", "data.image_column=file"]
    code, _, err = recame("predict", run, renamed, *words, "--set", "evaluation.batch_size=8")
    assert (code, err) == (0, "")
    table = pd.read_csv(tmp_path / "found.csv")
    assert len(table) == 102
    assert table["defect"].value_counts()["ok"] == 60
    code, _, err = recame("predict", run, renamed, *words, "--set", "data.size=64")
    assert code == 2
    assert "data.size has no effect on a prediction" in err


def test_help_groups_the_verbs_with_examples_and_exit_codes(recame: Recame) -> None:
    verbs: Any = typer.main.get_command(app)
    assert list(verbs.commands) == list(VERBS)
    code, out, _ = recame("--help")
    assert code == 0
    places = [out.index(f" {panel} ") for panel in dict.fromkeys(v.panel for v in VERBS.values())]
    assert places == sorted(places)
    for name, verb in VERBS.items():
        for example in verb.examples:  # of this verb, and of options that it has
            words = example.split()
            assert words[:2] == ["recame", name]
            options = {
                o
                for option in verbs.commands[name].params
                for o in (*option.opts, *option.secondary_opts)
            }
            assert {word for word in words if word.startswith("--")} <= options
    assert "MODEL is a RUN or a BUNDLE" in " ".join(out.split())
    text = recame("verify", "--help").out
    assert "$ recame verify runs/first fresh_labelled/" in text
    assert "0 all promises hold, 1 a promise is broken, 2 refused" in text


def test_help_names_what_kind_of_thing_is_meant(recame: Recame) -> None:
    verbs: Any = typer.main.get_command(app)
    words = {
        verb: [each.metavar for each in known.params if each.param_type_name == "argument"]
        for verb, known in verbs.commands.items()
    }
    assert words["train"] == words["inspect"] == ["DATA"]
    assert words["evaluate"] == ["RUN", "DATA"]
    assert words["compare"] == ["OLD", "NEW", "DATA"]
    assert words["verify"] == ["MODEL", "DATA"]
    for verb in words:
        options = [line for line in recame(verb, "--help").out.splitlines() if " --" in line]
        assert [line for line in options if "<path>" in line or " PATH " in line] == []
    kinds = {
        option: each.metavar
        for known in verbs.commands.values()
        for each in known.params
        for option in each.opts
    }
    assert (kinds["--against"], kinds["--calibration"], kinds["--limits"]) == (
        "RUN",
        "DATA",
        "FILE",
    )


@pytest.mark.parametrize("option", ["--with", "--images", "--outputs", "--gpu", "--count"])
def test_an_option_means_one_thing(option: str) -> None:
    verbs: Any = typer.main.get_command(app)
    having = [
        verb
        for verb, known in verbs.commands.items()
        if any(option in each.opts for each in known.params)
    ]
    assert len(having) == 1


def test_prepare_makes_public_sets(recame: Recame, tmp_path: Path) -> None:
    code, out, _ = recame("prepare")
    assert code == 0
    assert all(name in out for name in PUBLIC_SETS)
    words = [
        f"--option={k}={v}" for k, v in {"num_classes": 3, "num_images": 90, "size": 32}.items()
    ]
    words += ["--option=val_per_class=2", "--option=test_per_class=4", "--option=imbalance=5"]
    code, out, err = recame("prepare", "ic_defect_synth_100", "-o", tmp_path / "set", *words)
    assert (code, err) == (0, "")
    assert len(pd.read_csv(tmp_path / "set" / "manifest.csv")) == 90
    assert f"Next: recame inspect {tmp_path / 'set' / 'manifest.csv'}" in out
    code, _, err = recame("prepare", "cifar10_lt")
    assert code == 2
    assert "is made from a local copy of its files" in err
    assert recame("prepare", "cifar11").code == 2
