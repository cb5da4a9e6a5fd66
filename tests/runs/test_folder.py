from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pandas as pd
import pytest

from recame.config import Config
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import write_json
from recame.machine import environment
from recame.runs.folder import RUN_SCHEMA, RunFolder
from recame.runs.same_beginning import check_same_data, check_same_loss, check_same_precision


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

    def test_the_way_on_can_be_copied_into_a_shell(self, tmp_path: Path) -> None:
        folder = RunFolder.free(tmp_path / "lot 7")
        folder.begin(tmp_path / "data", "f00d", Config())
        with pytest.raises(CheckpointError) as refused:
            RunFolder.open(folder.path, finished=True)
        assert f"recame train --out '{folder.path}' --resume" in str(refused.value)

    def test_finishing_drops_what_only_resuming_needs(self, run: RunFolder) -> None:
        run.probe_dir.mkdir()
        (run.probe_dir / "model.json").touch()
        for path in (*run.trunk_paths, run.last_checkpoint, run.previous_checkpoint):
            path.touch()
        run.finish()
        left = {path.name for path in run.path.iterdir()}
        assert left == {"run.json", "asked.yaml", "config.yaml", "last.ckpt"}

    def test_a_folder_without_marker_is_free(self, tmp_path: Path) -> None:
        # As left by a process that was killed before the settings were whole.
        (tmp_path / "config.yaml").touch()
        assert RunFolder.free(tmp_path).path == tmp_path

    @pytest.mark.parametrize(
        "name", ["last.ckpt", "previous.ckpt", "trunk_maps.npy", "metrics.json", "evaluation"]
    )
    def test_what_a_run_left_is_not_mixed_with_a_new_one(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=f"holds {name} of a run whose run.json is missing"):
            RunFolder.free(tmp_path)

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
        check_same_data(run, "f00d")
        with pytest.raises(DataError, match="fingerprint f00d, now beef"):
            check_same_data(run, "beef")


class TestLoss:
    def test_another_is_refused(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "run")
        folder.begin(tmp_path, "f00d", Config(), loss="mine.make_loss")
        check_same_loss(folder, "mine.make_loss")
        for other in (None, "mine.other"):
            with pytest.raises(
                ConfigError, match=r"the loss of mine\.make_loss, not of .*make_loss"
            ):
                check_same_loss(folder, other)

    def test_one_that_was_not_there_is_refused(self, run: RunFolder) -> None:
        check_same_loss(run, None)
        with pytest.raises(ConfigError, match=r"the settings' objective, not of mine\.loss"):
            check_same_loss(run, "mine.loss")
        info = run.info()
        del info["loss"]  # as the version before
        write_json(run.path / "run.json", info)
        check_same_loss(run, "mine.loss")


class TestPrecision:
    def test_another_is_refused(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "run")
        folder.begin(tmp_path, "f00d", Config().updated({"run.precision": "bf16"}))
        check_same_precision(folder, "bf16")
        told = r"began with run\.precision=bf16, .*now says 32: .*Write bf16 there again"
        with pytest.raises(ConfigError, match=told):
            check_same_precision(folder, "32")
        info = folder.info()
        del info["precision"]  # as the version before
        write_json(folder.path / "run.json", info)
        check_same_precision(folder, "32")


class TestSettings:
    @pytest.mark.parametrize("name", ["config.yaml", "asked.yaml"])
    @pytest.mark.parametrize("kept", [0, 100])
    def test_a_torn_file_is_refused(self, name: str, kept: int, run: RunFolder) -> None:
        path = run.path / name
        path.write_text("\n".join(path.read_text().splitlines()[:kept]), encoding="utf-8")
        for _ in range(2):
            with pytest.raises(ConfigError, match=rf"{name} is (empty or cut off|not as the run)"):
                (run.load_config if name == "config.yaml" else run.asked)()
            info = run.info()
            info.pop("settings", None)  # as the version before, which kept no hash
            write_json(run.path / "run.json", info)
            path.write_text("", encoding="utf-8")

    def test_a_missing_one_is_refused(self, run: RunFolder) -> None:
        (run.path / "asked.yaml").unlink()
        with pytest.raises(ConfigError, match=r"asked\.yaml is missing, .* copy of the run"):
            run.asked()

    @pytest.mark.parametrize(
        ("old", "new", "refused"),
        [
            ("seed: 0", "seed: 1", True),
            ("weighting: mean", "weighting: stability", False),
            ("accelerator: auto", "accelerator: cpu", False),
            ("cache_dir: null", "cache_dir: /elsewhere", False),
        ],
    )
    def test_edited(self, old: str, new: str, refused: bool, run: RunFolder) -> None:
        path = run.path / "config.yaml"
        text = path.read_text()
        assert text.count(f" {old}\n") == 1
        path.write_text(text.replace(f" {old}\n", f" {new}\n"), encoding="utf-8")
        if not refused:
            assert run.load_config() != Config()
            return
        with pytest.raises(ConfigError, match=r"config\.yaml was edited.*restore"):
            run.load_config()

    def test_a_kill_between_hash_and_file(self, run: RunFolder) -> None:
        before = run.load_config()
        for seed in (1, 2):  # as often as it happens
            old = (run.path / "config.yaml").read_text()
            run.save_config(before.updated({"run.seed": seed}))
            (run.path / "config.yaml").write_text(old, encoding="utf-8")
            assert run.load_config() == before
        run.save_config(before.updated({"run.seed": 3}))
        assert run.load_config().run.seed == 3

    def test_the_identity_is_that_of_the_beginning(self, run: RunFolder, tmp_path: Path) -> None:
        identity = run.identity
        run.save_config(Config().updated({"finetune.epochs": 3}))
        run.mark("fine-tuning", resumed=True)
        assert run.identity == identity
        other = RunFolder(tmp_path / "other")
        other.begin(tmp_path, "beef", Config())
        assert other.identity not in (None, identity)


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
        info = run.info()
        del info["settings"]
        write_json(run.path / "run.json", info)
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

    @pytest.mark.parametrize(
        "text",
        [
            *("", "{", "[1]", '{"schema": "one"}', '{"schema": 1, "state": 3}'),
            '{"schema": 1, "state": "training", "settings": [1]}',
            '{"schema": 1, "state": "training", "settings": {"config.yaml": 3}}',
            '{"schema": 1, "state": "training", "tables": {"manifest.csv": "x"}}',
        ],
    )
    def test_damaged_marker(self, text: str, run: RunFolder) -> None:
        (run.path / "run.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"damaged|schema 'one'"):
            RunFolder.open(run.path)

    def test_a_fact_that_is_missing(self, run: RunFolder) -> None:
        (run.path / "run.json").write_text('{"schema": 1, "state": "training"}', encoding="utf-8")
        for ask in (lambda: check_same_data(run, "f00d"), lambda: run.source):
            with pytest.raises(CheckpointError, match=r"run\.json does not say data"):
                ask()
        (run.path / "model.json").write_text("{}", encoding="utf-8")
        with pytest.raises(CheckpointError, match="holds no checksum"):
            run.weights_sha256()

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

    def test_two_processes_keep_each_others_keys(self, run: RunFolder) -> None:
        def child(name: str) -> None:
            for number in range(25):
                run.update_json("metrics.json", {f"{name}{number}": number})

        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=child, args=(name,)) for name in "abc"]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert len(json.loads((run.path / "metrics.json").read_text())) == 75

    def test_two_do_not_judge_one_split(self, run: RunFolder) -> None:
        with run.in_evaluation("test"):
            with run.in_evaluation("val"):
                pass
            told = rf"on test is in use by process {os.getpid()} on"
            with pytest.raises(ConfigError, match=told), run.in_evaluation("test"):
                pass

    def test_torn_reasons(self, run: RunFolder) -> None:
        (run.path / "reasons.json").write_text("[", encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"reasons\.json cannot be read.*remove it"):
            run.reasons()

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
