"""Tables and classes of a run folder are read as the run wrote them, or refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from recame.config import Config
from recame.errors import CheckpointError
from recame.files import write_json
from recame.inference.finished_run import recorded_data
from recame.label_space import LabelSpace
from recame.runs.classes import check_classes
from recame.runs.folder import RunFolder

ROWS = [
    {"image": f"{n}.png", "path": f"/{n}.png", "label": label, "split": "test"}
    for n, label in enumerate(("ok", "dent", "ok"))
]
SPACE = LabelSpace(("ok", "dent"), (2, 1), normal="ok")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose three tables are written."""
    folder = RunFolder(tmp_path / "run")
    folder.begin(tmp_path, "f00d", Config())
    folder.save_manifest(pd.DataFrame(ROWS))
    folder.save_broken([("a.png", "no image"), ("b.png", "too large")])
    epochs = [{"epoch": n, "loss": 1 / n, "val/x": None, "seconds": 0.5} for n in (1, 2)]
    folder.save_table(folder.history_path, pd.DataFrame(epochs))
    return folder


def read(run: RunFolder, name: str) -> object:
    if name == "manifest.csv":
        return recorded_data(run, Config()).to_dict("records")
    if name == "broken_images.csv":
        return run.broken()
    history = run.history()
    return None if history is None else history.to_dict("records")


def forget_hashes(run: RunFolder) -> None:
    """As a version before, which kept none."""
    info = run.info()
    del info["tables"]
    write_json(run.path / "run.json", info)


TABLES = ("manifest.csv", "broken_images.csv", "history.csv")
HURTS = {
    "emptied": lambda text: "",
    "cut within a row": lambda text: text[: len(text) - 3],
    "cut between two rows": lambda text: "".join(text.splitlines(keepends=True)[:-1]),
    "changed": lambda text: text[:-3] + ("7" if text[-3] != "7" else "8") + text[-2:],
    "without a column": lambda text: "\n".join(t.partition(",")[2] for t in text.split("\n")),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("hurt", HURTS)
def test_a_damaged_table_is_refused(name: str, hurt: str, run: RunFolder) -> None:
    path = run.path / name
    path.write_text(HURTS[hurt](path.read_text("utf-8")), encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be used .*[Rr]estore it from"):
        read(run, name)
    forget_hashes(run)
    if hurt in ("emptied", "cut within a row", "without a column"):
        with pytest.raises(CheckpointError, match=rf"{name} .*(edited|damaged)"):
            read(run, name)
    else:
        assert read(run, name)


@pytest.mark.parametrize("name", TABLES)
def test_what_a_version_before_left_is_read(name: str, run: RunFolder) -> None:
    whole = read(run, name)
    forget_hashes(run)
    assert read(run, name) == whole


@pytest.mark.parametrize("name", ["broken_images.csv", "history.csv"])
def test_without_the_file_there_is_nothing(name: str, run: RunFolder) -> None:
    (run.path / name).unlink()
    assert not read(run, name)


def test_history_that_is_no_numbers(run: RunFolder) -> None:
    run.save_table(run.history_path, pd.DataFrame({"epoch": [1, "x"], "seconds": [1, 2]}))
    with pytest.raises(CheckpointError, match=r"history\.csv holds values that are not numbers"):
        run.history()


def test_a_kill_between_hash_and_table(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole = run.manifest_path, read(run, "manifest.csv")
    before = path.read_bytes()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for kept in (1, 2):  # as often as it happens
        with monkeypatch.context() as patch:
            patch.setattr("recame.runs.folder.write_bytes", die)
            with pytest.raises(KeyboardInterrupt):
                run.save_manifest(pd.DataFrame(ROWS[:kept]))
        assert read(run, "manifest.csv") == whole
    run.save_manifest(pd.DataFrame(ROWS[:2]))
    assert read(run, "manifest.csv") == whole[:2]  # type: ignore[index]
    path.write_bytes(before)  # which is no longer right
    with pytest.raises(CheckpointError, match=r"its hash differs from that in run\.json"):
        read(run, "manifest.csv")


@pytest.mark.parametrize("text", ["a\rb", "\ra", "a\r", "a\r\nb", "a\nb", 'q"\r,', "'=\r"])
def test_any_name_comes_back(text: str, run: RunFolder) -> None:
    rows = [{**ROWS[0], "image": text, "path": f"/{text}", "label": text}, ROWS[1]]
    run.save_manifest(pd.DataFrame(rows))
    assert read(run, "manifest.csv") == rows
    run.save_broken([(text, text), ("b", "c")])
    assert run.broken() == [(text, text), ("b", "c")]


@pytest.mark.parametrize(
    "text", ["", '{"schema": 1, "na', "[]", '{"schema": 1}', '{"schema": 1, "names": ["ok"]}']
)
def test_classes_that_are_torn(text: str, run: RunFolder) -> None:
    run.save_label_space(SPACE)
    check_classes(run.path, SPACE)
    (run.path / "label_space.json").write_text(text, encoding="utf-8")
    for ask in (run.label_space, lambda: check_classes(run.path, SPACE)):
        told = r"label_space\.json cannot be .*remove it: model\.json holds the same classes"
        with pytest.raises(CheckpointError, match=told):
            ask()


def test_other_classes_than_the_models(run: RunFolder) -> None:
    run.save_label_space(LabelSpace(("dent", "ok"), (2, 1), normal="ok"))
    told = r"label_space\.json and model\.json .*names: \('dent', 'ok'\), there \('ok', 'dent'\)"
    with pytest.raises(CheckpointError, match=told):
        check_classes(run.path, SPACE)


def test_without_the_file_the_model_tells_the_classes(run: RunFolder) -> None:
    write_json(run.path / "model.json", {"label_space": SPACE.to_dict()})
    check_classes(run.path, SPACE)
    assert run.label_space() == SPACE
    write_json(run.path / "model.json", {})
    with pytest.raises(CheckpointError, match=r"model\.json cannot be used\. It names no classes"):
        run.label_space()


def test_figures_that_are_torn(run: RunFolder) -> None:
    (run.path / "metrics.json").write_text('{"val": {', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.json cannot be read.* or remove it"):
        run.update_json("metrics.json", {"test": {}})
