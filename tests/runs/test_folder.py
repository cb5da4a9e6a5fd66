from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from recame.config import Config
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import write_json
from recame.machine import environment
from recame.runs.folder import RUN_SCHEMA, RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.free(tmp_path / "runs" / "first")
    folder.begin(tmp_path / "data", "f00d", Config())
    return folder


class TestLifecycle:
    def test_states(self, run: RunFolder) -> None:
        assert (run.state, run.finished) == ("training", False)
        assert run.load_config() == Config()
        run.mark("fine-tuning")
        assert RunFolder.open(run.path).state == "fine-tuning"
        run.finish()
        assert run.finished
        assert run.info()["finished"] >= run.info()["started"]
        assert run.info()["schema"] == RUN_SCHEMA

    def test_finishing_drops_what_only_resuming_needs(self, run: RunFolder) -> None:
        run.probe_dir.mkdir()
        (run.probe_dir / "model.json").touch()
        for path in (*run.trunk_paths, run.last_checkpoint):
            path.touch()
        run.finish()
        left = {path.name for path in run.path.iterdir()}
        assert left == {"run.json", "asked.yaml", "config.yaml", "last.ckpt"}

    def test_a_folder_without_marker_is_free(self, tmp_path: Path) -> None:
        # As left by a process that was killed before the settings were whole.
        (tmp_path / "config.yaml").touch()
        assert RunFolder.free(tmp_path).path == tmp_path

    def test_a_run_is_not_overwritten(self, run: RunFolder) -> None:
        with pytest.raises(ConfigError, match="already holds a run"):
            RunFolder.free(run.path)

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="is a file"):
            RunFolder.free(tmp_path / "file")
        with pytest.raises(ConfigError, match="cannot be made"):
            RunFolder.free(tmp_path / "file" / "run").begin(tmp_path, "f00d", Config())

    def test_same_data(self, run: RunFolder) -> None:
        run.check_same_data("f00d")
        with pytest.raises(DataError, match="fingerprint f00d, now beef"):
            run.check_same_data("beef")


class TestAsked:
    def test_is_kept_beside_what_was_decided(self, tmp_path: Path) -> None:
        asked = Config()
        decided = asked.updated({"objective.tau": 1.5})
        folder = RunFolder.free(tmp_path / "run")
        folder.begin(tmp_path, "f00d", decided, asked=asked, device="cuda")
        assert (folder.load_config(), folder.asked()) == (decided, asked)
        assert (folder.keeps_asked, folder.device) == (True, "cuda")

    def test_the_version_before_gave_reasons(self, run: RunFolder) -> None:
        (run.path / "asked.yaml").unlink()
        decided = Config().updated({"objective.tau": 1.5, "finetune.lr": 0.1, "run.seed": 4})
        run.save_config(decided)
        assert run.asked() == decided
        run.explain(["objective.tau = 1.5: above 1", "run.seed = 4: no", "start = an expert"])
        assert run.asked() == decided.updated({"objective.tau": "auto"})
        assert not run.keeps_asked


class TestOpening:
    def test_newer_schema(self, run: RunFolder) -> None:
        write_json(run.path / "run.json", {**run.info(), "schema": RUN_SCHEMA + 1})
        with pytest.raises(CheckpointError, match=f"schema {RUN_SCHEMA + 1}.*pip install -U"):
            RunFolder.open(run.path)

    @pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema": "one"}'])
    def test_damaged_marker(self, text: str, run: RunFolder) -> None:
        (run.path / "run.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"damaged|schema 'one'"):
            RunFolder.open(run.path)

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="holds no run"):
            RunFolder.open(tmp_path)


class TestFiles:
    def test_json_is_merged_by_key(self, run: RunFolder) -> None:
        run.update_json("metrics.json", {"val": {"a": 1}})
        run.update_json("metrics.json", {"test": {"a": 2}})
        run.update_json("metrics.json", {"val": {"b": 3}})
        saved = json.loads((run.path / "metrics.json").read_text())
        assert saved == {"val": {"b": 3}, "test": {"a": 2}}

    def test_manifest_leaves_out_what_is_ours(self, run: RunFolder) -> None:
        row = {"image": "a.png", "path": "/a.png", "label": "ok", "split": "train"}
        run.save_manifest(pd.DataFrame([{**row, "target": 0, "row": 0, "lot": "7"}]))
        assert list(pd.read_csv(run.path / "manifest.csv")) == [*row, "lot"]

    def test_broken_images(self, run: RunFolder) -> None:
        run.save_broken([("a,b.png", "no\nimage")])
        table = pd.read_csv(run.path / "broken_images.csv")
        assert table.to_dict("records") == [{"image": "a,b.png", "reason": "no\nimage"}]

    def test_environment(self) -> None:
        facts = environment()
        assert facts["packages"]["recame"].count(".") == 2
        assert facts["cpu_threads"] == 1


def test_a_split_s_name_stays_in_the_run_s_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.evaluation_dir("test") == folder.path / "evaluation" / "test"
    for split in ("../../other", "/etc", "lot/7", "..", "con", "a:b"):
        assert folder.evaluation_dir(split).parent == folder.path / "evaluation"
