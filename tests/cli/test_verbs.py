"""The verbs as users type them: what they write, what they print."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
import yaml

from recame.cli.app import _next_steps, app
from recame.config import Config, load_config
from recame.runs.folder import RunFolder

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))

Recame = Callable[..., tuple[int, str, str]]

#: Next steps of a run without a test split.
OTHERS = (
    "Next: recame evaluate RUN FOLDER "
    "(the run has no test split: give labelled images that it was not trained on)"
)
OF_VAL = "  or: recame evaluate RUN --split val (val chose the network: its figures are too good)"


@pytest.mark.slow
def test_console_script_trains(defects: Path, tiny_words: list[str], tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("recame")
    command = [script, "train", defects, "--out", tmp_path / "run", "--seed", "3", *tiny_words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "102 images (train 70, val 16, test 16), 4 classes" in done.stdout
    assert "epoch 2/2  loss" in done.stdout
    assert re.search(r"Time: \d+ s \(start \d+ s, images \d+ s, probe \d+ s, fine", done.stdout)
    assert f"Next: recame evaluate {tmp_path / 'run'}" in done.stdout
    assert load_config(tmp_path / "run" / "config.yaml").run.seed == 3
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 100_000


def test_train_evaluate_predict(
    recame: Recame, defects: Path, defects_table: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = tmp_path / "settings.yaml"
    settings.write_text("finetune: {epochs: 7, lr: 3e-4}\nprobe: {steps: 9}\n", encoding="utf-8")
    words = [*tiny_words, "--set", "finetune.epochs=1", "--set", "data.group_by=lot"]
    code, out, err = recame("train", defects_table, "-o", run, "--config", settings, *words)
    assert (code, err) == (0, "")
    config = load_config(run / "config.yaml")
    assert config.finetune.epochs == 1  # --set comes after --config
    assert config.finetune.lr == pytest.approx(3e-4)
    assert "Kept: " in out

    code, out, err = recame("evaluate", run)
    assert (code, err) == (0, "")
    value = json.loads((run / "metrics.json").read_text())["test"]["balanced_accuracy"]["value"]
    assert f"{value:.3f}" in out
    assert "board-A" in out
    code, out, _ = recame("evaluate", run, defects_table, "--split", "val")
    assert code == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"val", "test", "manifest-val"}

    (defects.parent / "new").mkdir()
    (defects.parent / "new" / "empty.png").write_bytes(b"")
    sources = [defects / "hole", defects.parent / "new" / "*.png"]
    code, out, err = recame("predict", run, *sources, "--out", tmp_path / "found.csv")
    assert (code, err) == (0, "")
    assert "1 file cannot be read" in out
    assert "empty.png: " in out
    assert "6 images: " in out
    table = pd.read_csv(tmp_path / "found.csv")
    expected = ["image", "path", "prediction", "confidence"]
    assert list(table.columns[:8]) == [*expected, "p_ok", "p_scratch", "p_dent", "p_hole"]
    assert table["action"].tolist().count("unreadable") == 1


@pytest.mark.parametrize(
    ("splits", "lines"),
    [
        (("train", "val", "test"), ["Next: recame evaluate RUN"]),
        (("train", "val"), [OTHERS, OF_VAL]),
        (("train",), [OTHERS]),
        ((), ["Next: recame evaluate RUN"]),  # no table is left
    ],
)
def test_the_next_step_is_one_that_works(
    splits: tuple[str, ...], lines: list[str], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(tmp_path, "", Config())
    rows = {"image": list(splits), "path": list(splits), "label": ["a"] * len(splits)}
    if splits:
        run.save_manifest(pd.DataFrame({**rows, "split": list(splits)}))
    assert _next_steps(run) == [line.replace("RUN", str(run.path)) for line in lines]


def test_time_budget_plans_the_epochs(
    recame: Recame, defects: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    # However slow the machine, fine-tuning is not left out.
    settings = ["--set", "finetune.epochs=auto", "--set", "run.keep=last"]
    words = [*tiny_words, *settings, "--time-budget", "4s"]
    code, out, err = recame("train", defects, "--out", tmp_path / "run", *words)
    assert (code, err) == (0, "")
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config.run.time_budget_s == 4
    assert isinstance(config.finetune.epochs, int)
    assert re.search(r"finetune = \d+ epochs of", out)
    assert re.search(r"Time: \d+ s of 4 s \(", out)
    # The clock may have changed their number since.
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == config.finetune.epochs


def test_resume_takes_the_runs_own_settings(
    recame: Recame,
    defects: Path,
    tiny_words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    go_on = f"recame train --out {run} --resume"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recame.training.train.run_finetune", interrupt)
        code, _, told = recame("train", defects, "--out", run, *tiny_words)
    assert code == 130
    assert told.endswith(f"interrupted: {run} keeps the finished part. Continue with: {go_on}\n")
    assert json.loads((run / "run.json").read_text())["state"] == "training"
    assert recame("train", "--out", run, "--resume")[0] == 0
    assert len(pd.read_csv(run / "history.csv")) == 2
    code, out, _ = recame("train", "--out", run, "--resume")
    assert code == 0
    assert "nothing to resume" in out


def test_ctrl_c_while_it_trains(
    recame: Recame,
    defects: Path,
    tiny_words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    run, before = tmp_path / "run", signal.getsignal(signal.SIGINT)
    go_on = f"recame train --out {run} --resume"
    with monkeypatch.context() as patch:
        patch.setattr("recame.training.loop.module.FinetuneModule.validation_step", interrupt)
        code, _, told = recame("train", defects, "--out", run, *tiny_words)
    assert code == 130
    assert told.endswith(f"interrupted: {run} keeps the finished part. Continue with: {go_on}\n")
    assert signal.getsignal(signal.SIGINT) is before
    assert recame("train", "--out", run, "--resume")[0] == 0


def test_run_folder_gets_a_name(
    recame: Recame,
    defects: Path,
    tiny_words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*tiny_words, "--set", "finetune.enabled=false"]
    assert recame("train", defects, *words)[0] == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("defects-20")
    assert (run / "model.json").exists()


def test_help_says_what_is_taken_where_nothing_is_given(recame: Recame) -> None:
    """Rich reads square brackets in a help text as markup, and shows nothing of them."""
    verbs: Any = typer.main.get_command(app)
    taken = {}
    for verb in verbs.commands.values():
        for option in verb.params:
            assert "[" not in (getattr(option, "help", None) or ""), (verb.name, option.name)
            taken[verb.name, option.name] = getattr(option, "show_default", None)
    assert taken["predict", "threads"] == "all cores; with --ray one for each shard"
    assert sum(isinstance(words, str) for words in taken.values()) >= 23
    code, out, _ = recame("bench", "-h")
    assert code == 0
    assert "default: (" in out


def test_help_and_version(recame: Recame) -> None:
    code, out, _ = recame("--help")
    assert code == 0
    assert all(verb in out for verb in ("train", "evaluate", "predict"))
    assert "--time-budget" in recame("train", "--help").out
    assert recame("--version").out.startswith("recame 0.")


@pytest.mark.parametrize("words", [["fly"], ["train", "--fast"], ["predict"]])
def test_usage_errors(recame: Recame, words: list[str]) -> None:
    code, _, err = recame(*words)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_published_settings_are_valid(path: Path) -> None:
    config = load_config(path)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, values in given.items():
        if isinstance(values, dict):
            assert set(values) <= set(getattr(config, section).model_dump())
    assert config.schema_version == 1


def test_synth_writes_a_set_that_can_be_read(recame: Recame, tmp_path: Path) -> None:
    out = tmp_path / "set"
    words = ["--count", 240, "--classes", 5, "--products", 4, "--size", 32, "--seed", 2]
    code, text, err = recame("synth", out, *words)
    assert (code, err) == (0, "")
    assert f"Manifest: {out / 'manifest.csv'}" in text
    table = pd.read_csv(out / "manifest.csv")
    assert list(table) == ["image", "label", "product", "board", "lot", "split"]
    assert (len(table), table["label"].nunique(), table["product"].nunique()) == (240, 5, 4)
    assert (out / table["image"][0]).exists()
    code, _, err = recame("synth", out, *words)
    assert code == 2
    assert "is not an empty folder" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--classes", 15], "num_classes = 15 is out of range"),
        (["--size", 8], "size = 8 is out of range"),
        (["--count", 20], "leaves"),
    ],
)
def test_synth_refuses_what_no_plan_could_meet(
    recame: Recame, tmp_path: Path, words: list[object], told: str
) -> None:
    code, _, err = recame("synth", tmp_path / "set", *words)
    assert code == 2
    assert told in err
    assert not (tmp_path / "set").exists()


def test_inspect_writes_a_page(recame: Recame, defects_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "look"
    code, text, err = recame("inspect", defects_table, "--out", out)
    assert (code, err) == (0, "")
    assert f"Page: {out / 'inspection.html'}" in text
    facts = json.loads((out / "inspection.json").read_text())
    assert facts["schema"] == 1
    page = (out / "inspection.html").read_text()
    assert "board-A" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing from the network


def test_inspect_reads_the_table_alone(
    recame: Recame, defects_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv(defects_table)
    table["image"] = "nowhere/" + table["image"]
    table.to_csv(tmp_path / "gone.csv", index=False)
    monkeypatch.chdir(tmp_path)
    code, _, err = recame("inspect", "gone.csv", "--no-decode")
    assert (code, err) == (0, "")
    assert (tmp_path / "inspection" / "gone.csv" / "inspection.html").exists()
    code, _, err = recame("inspect", "gone.csv")
    assert code == 2
    assert "images can be read" in err


def test_no_inspection_takes_the_folder_of_another(
    recame: Recame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "image,label\na.png,ok\nb.png,hole\n"
    for name in ("images.v1", "images.v2", "images", "elsewhere/images"):
        (tmp_path / name / "ok").mkdir(parents=True)
        (tmp_path / name / "ok" / "a.png").touch()
    (tmp_path / "images.csv").write_text(rows, encoding="utf-8")
    pd.read_csv(tmp_path / "images.csv").to_parquet(tmp_path / "images.parquet")
    expected = {
        "images.v1": "images.v1",
        "images.v2": "images.v2",
        "images/": "images",
        "images.csv": "images.csv",
        "images.parquet": "images.parquet",
        "elsewhere/images": "images-2",
        # Each of them again, by other words: its own inspection is replaced.
        "./images.v2/": "images.v2",
        "images.v1/ok/..": "images.v1",
        str(tmp_path / "images"): "images",
        "./elsewhere/../elsewhere/images/": "images-2",
    }
    for source, folder in expected.items():
        code, text, err = recame("inspect", source, "--no-decode")
        assert (code, err) == (0, "")
        assert f"Page: {Path('inspection') / folder / 'inspection.html'}" in text
    assert {path.name for path in Path("inspection").iterdir()} == set(expected.values())
    for source in list(expected)[:6]:
        facts = json.loads(Path("inspection", expected[source], "inspection.json").read_text())
        assert Path(facts["source"]).resolve() == Path(source).resolve()
    monkeypatch.chdir(tmp_path / "images.v1")
    assert recame("inspect", ".", "--no-decode")[0] == 0
    assert Path("inspection", "images.v1", "inspection.html").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "No data at nowhere"),
        (["{data}", "--set", "finetune.lr=1"], "has no effect on an inspection"),
        (["{data}", "--set", "data.label_column=kind"], "has no column 'kind'"),
        (["{data}", "--run", "{data}"], "holds no run"),
    ],
)
def test_inspect_refuses(
    recame: Recame, defects_table: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    words = [word.replace("{data}", str(defects_table)) for word in words]
    code, _, err = recame("inspect", *words, "--out", tmp_path / "look")
    assert code == 2
    assert told in err
    assert not (tmp_path / "look").exists()


def test_a_report_that_fails_is_no_success(
    recame: Recame, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    kept = run / "evaluation" / "test" / "report_error.txt"

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no ink")

    with monkeypatch.context() as patch:
        patch.setattr("recame.reports.draw.draw_report", broken)
        code, out, _ = recame("evaluate", run)
        assert code == 1
        assert f"Written: {kept.parent}" in out
        found = json.loads((run / "metrics.json").read_text())["test"]["balanced_accuracy"]
        assert f"{found['value']:.3f}" in out
        for told in ("no ink", f"The traceback is in {kept}", f"recame report {run} --split test"):
            assert told in out
        assert "ValueError: no ink" in kept.read_text("utf-8")
        code, _, err = recame("report", run)
        assert code == 2
        assert f"(ValueError: no ink); the figures in {kept.parent} are complete" in err
        assert "Traceback" not in err
    assert recame("evaluate", run)[0] == 0
    assert not kept.exists()


def test_report_compares_two_runs(recame: Recame, finished: Path, tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for copy in (run, other):
        shutil.copytree(finished, copy)
    code, _, err = recame("evaluate", run, "--no-report")
    assert (code, err) == (0, "")
    page = run / "evaluation" / "test" / "report.html"
    assert not page.exists()
    code, out, err = recame("report", run, "--against", other)
    assert (code, err) == (0, "")
    assert f"Report: {page}" in out
    assert "Against other this split shows no real difference" in page.read_text()
    numbers = json.loads((run / "evaluation" / "test" / "report.json").read_text())
    assert numbers["schema"] == 1
    code, _, err = recame("report", run, "--split", "nights")
    assert code == 2
    assert "There is no image in the split 'nights'" in err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "5000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_that_wait_sleep_soon_unless_told_otherwise(
    recame: Recame, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever `recame` sets
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    recame("--version")
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_a_warning_is_one_line_said_once(
    recame: Recame, defects: Path, tiny_words: list[str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(defects, tmp_path / "set"))
    (folder / "hole" / "more.gif").write_bytes(b"RIFF")
    code, _, err = recame("train", folder, "--out", tmp_path / "run", *tiny_words)
    assert code == 0
    (line,) = err.splitlines()
    assert line.startswith("warning: 1 file in")
    assert "more.gif" in line


def test_settings_are_a_file_to_start_from(recame: Recame, tmp_path: Path) -> None:
    code, out, err = recame("settings")
    assert (code, err) == (0, "")
    (tmp_path / "all.yaml").write_text(out, encoding="utf-8")
    assert load_config(tmp_path / "all.yaml") == Config()
    schema = json.loads(recame("settings", "--schema").out)
    assert schema["$defs"]["RunConfig"]["properties"]["seed"]["minimum"] == 0
