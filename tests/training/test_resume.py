"""A run that is killed anywhere and resumed ends with the weights of one that was not."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import stat
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from recame.config import Config
from recame.data import splits
from recame.data.dataset import load_inspection_set
from recame.errors import CheckpointError, ConfigError
from recame.files import write_json
from recame.runs.folder import RunFolder
from recame.training.loop.module import FinetuneModule
from recame.training.phases import probe
from recame.training.train import train

EPOCHS, STEPS = 3, 5  # of 70 images in batches of 16

Patch = tuple[Any, str, int]
Kill = Callable[[Callable[[], object]], None]
DieAt = Callable[[Any, str, int], None]

#: Which call of which function is the process's last.
MOMENTS: dict[str, Patch] = {
    "symmetry decided, probe not saved": (probe, "fit_heads", 1),
    "first epoch": (FinetuneModule, "training_step", 1),
    "second epoch": (FinetuneModule, "training_step", 1 + STEPS),
    "history written, checkpoint not": (pl.Trainer, "save_checkpoint", 2),
    "after the last epoch": (import_module("recame.training.train"), "keep_best", 1),
}


@pytest.fixture(scope="module")
def config(tiny_config: Callable[..., Config]) -> Config:
    """Everything random is on: augmentation, mixing, dropout; and averaging and accumulation."""
    return tiny_config(
        augment__symmetry="auto",
        augment__mixup=0.4,
        augment__cutmix=0.4,
        augment__blur=0.3,
        augment__rand_augment=1,
        model__dropout=0.2,
        model__hidden=16,
        finetune__epochs=EPOCHS,
        finetune__accumulate=2,
        finetune__ema_decay=0.9,
        objective__deferred_reweighting=0.5,
        run__keep="last",
    )


@pytest.fixture(scope="module")
def uninterrupted(
    defects: Path, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    return train(defects, config, out=tmp_path_factory.mktemp("runs") / "whole")


def assert_same_end(run: RunFolder, expected: RunFolder) -> None:
    ours, theirs = (load_file(r.path / "model.safetensors") for r in (run, expected))
    assert ours.keys() == theirs.keys()
    different = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    assert different == []
    histories = [
        pd.read_csv(r.history_path, dtype=str).drop(columns="seconds") for r in (run, expected)
    ]
    pd.testing.assert_frame_equal(*histories)
    for name in ("metrics.json", "phases.json", "config.yaml", "manifest.csv"):
        assert (run.path / name).read_text() == (expected.path / name).read_text()


def test_every_part_of_the_run_learned(uninterrupted: RunFolder) -> None:
    history = pd.read_csv(uninterrupted.history_path)
    assert list(history["epoch"]) == [1, 2, 3]
    assert list(history["step"]) == [3, 6, 9]  # 5 batches an epoch, two a step
    checkpoint = torch.load(uninterrupted.last_checkpoint, weights_only=True)
    assert checkpoint["averaging_state"]["n_averaged"] == 9


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(
    moment: str,
    defects: Path,
    config: Config,
    uninterrupted: RunFolder,
    tmp_path: Path,
    run_until_killed: Kill,
    die_at: DieAt,
) -> None:
    place, name, call = MOMENTS[moment]
    if name == "training_step":
        call += int(np.random.default_rng(call).integers(STEPS))
    out, log = tmp_path / "run", tmp_path / "synced"

    def child() -> None:
        note_what_is_synced(log)
        die_at(place, name, call)
        train(defects, config, out=out)

    run_until_killed(child)
    assert not RunFolder.open(out).finished
    drop_what_is_not_synced(out, log)  # the power was cut as well
    assert_same_end(train(defects, out=out, resume=True), uninterrupted)


def test_a_default_run_is_killed_and_resumed(
    defects: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    run_until_killed: Kill,
    die_at: DieAt,
) -> None:
    config = tiny_config()  # which keeps what is best on val, joined or not
    assert config.run.keep == "best_on_val"
    whole = train(defects, config, out=tmp_path / "whole")

    def child() -> None:
        die_at(FinetuneModule, "training_step", 2 + STEPS)
        train(defects, config, out=tmp_path / "killed")

    run_until_killed(child)
    assert_same_end(train(defects, out=tmp_path / "killed", resume=True), whole)


def test_splits_that_were_drawn_otherwise_stay(
    defects: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    run_until_killed: Kill,
    die_at: DieAt,
) -> None:
    folder = shutil.copytree(defects, tmp_path / "set")
    for path in list(folder.glob("scratch/*.png")):
        shutil.copy(path, path.with_name(f"copy{path.name}"))
    config = tiny_config(finetune__epochs=1)

    def child() -> None:  # as before copies were drawn together
        splits.copies_of = lambda _: None  # type: ignore[assignment]
        die_at(FinetuneModule, "training_step", 1)
        train(folder, config, out=tmp_path / "run")

    run_until_killed(child)
    before = (tmp_path / "run" / "manifest.csv").read_text()
    assert train(folder, out=tmp_path / "run", resume=True).finished
    assert (tmp_path / "run" / "manifest.csv").read_text() == before
    data = load_inspection_set(folder, config.data, seed=config.run.seed)  # drawn anew
    assert data.fingerprint != RunFolder.open(tmp_path / "run").fact("data_fingerprint")


@pytest.fixture(scope="module")
def killed(
    defects: Path,
    config: Config,
    tmp_path_factory: pytest.TempPathFactory,
    run_until_killed: Kill,
    die_at: DieAt,
) -> Path:
    """A run that was killed in its third epoch; read only."""
    out = tmp_path_factory.mktemp("killed") / "run"

    def child() -> None:
        die_at(FinetuneModule, "training_step", 2 + 2 * STEPS)
        train(defects, config, out=out)

    run_until_killed(child)
    return out


@pytest.fixture
def left(killed: Path, tmp_path: Path) -> RunFolder:
    """A copy of it."""
    return RunFolder.open(Path(shutil.copytree(killed, tmp_path / "left")))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


class TestTornCheckpoint:
    @pytest.mark.parametrize("damage", [cut_in_half, flip_a_byte, lambda path: path.unlink()])
    def test_the_one_before_is_used(
        self,
        damage: Callable[[Path], object],
        left: RunFolder,
        uninterrupted: RunFolder,
        defects: Path,
    ) -> None:
        damage(left.last_checkpoint)
        console = Console(file=(told := io.StringIO()), width=500)
        run = train(defects, out=left.path, resume=True, console=console)
        assert_same_end(run, uninterrupted)
        named = f"{left.last_checkpoint} " in told.getvalue()
        assert named == (damage in (cut_in_half, flip_a_byte))
        assert not run.previous_checkpoint.exists()

    def test_without_a_whole_one_the_way_out_is_said(
        self, left: RunFolder, uninterrupted: RunFolder, defects: Path
    ) -> None:
        both = (left.last_checkpoint, left.previous_checkpoint)
        for path in both:
            cut_in_half(path)
        with pytest.raises(CheckpointError, match=rf"{both[0]} .*and {both[1]} .*Remove") as caught:
            train(defects, out=left.path, resume=True)
        assert "repeats fine-tuning from its start" in str(caught.value)
        for path in both:
            path.unlink()
        assert_same_end(train(defects, out=left.path, resume=True), uninterrupted)

    def test_written_to_half(
        self,
        defects: Path,
        config: Config,
        uninterrupted: RunFolder,
        tmp_path: Path,
        run_until_killed: Kill,
    ) -> None:
        out = tmp_path / "run"

        def write_half_and_die(trainer: pl.Trainer, path: Path, **_: object) -> None:
            Path(path).write_bytes(uninterrupted.last_checkpoint.read_bytes()[:10_000])
            os.kill(os.getpid(), signal.SIGKILL)

        def child() -> None:
            pl.Trainer.save_checkpoint = write_half_and_die
            train(defects, config, out=out)

        run_until_killed(child)
        assert not RunFolder.open(out).last_checkpoint.exists()
        assert list(out.glob(".*.part"))
        assert_same_end(train(defects, out=out, resume=True), uninterrupted)
        assert not list(out.glob(".*.part"))


class TestLeftovers:
    def test_anothers_checkpoint_is_refused(
        self, left: RunFolder, uninterrupted: RunFolder, defects: Path
    ) -> None:
        shutil.copy(uninterrupted.last_checkpoint, left.last_checkpoint)
        with pytest.raises(CheckpointError, match=r"last\.ckpt was not written by this run"):
            train(defects, out=left.path, resume=True)
        torch.save({"epoch": 3}, left.last_checkpoint)
        with pytest.raises(CheckpointError, match=r"last\.ckpt was not written by this run"):
            train(defects, out=left.path, resume=True)

    @pytest.mark.parametrize("spoil", ["anothers", "half"])
    def test_a_probe_that_is_not_its_own_is_made_anew(
        self, spoil: str, left: RunFolder, uninterrupted: RunFolder, defects: Path
    ) -> None:
        for path in (left.last_checkpoint, left.previous_checkpoint):
            path.unlink()
        if spoil == "half":  # killed between two renames
            (left.probe_dir / "model.safetensors").unlink()
        else:
            for name in ("model.json", "model.safetensors"):
                shutil.copy(uninterrupted.path / name, left.probe_dir / name)
        assert_same_end(train(defects, out=left.path, resume=True), uninterrupted)

    def test_a_new_run_does_not_mix_with_them(
        self, left: RunFolder, defects: Path, config: Config
    ) -> None:
        (left.path / "run.json").unlink()
        with pytest.raises(ConfigError, match=r"holds .*last\.ckpt.* whose run\.json is missing"):
            train(defects, config, out=left.path)


class TestTwoProcesses:
    def test_a_living_trainer_is_not_joined(
        self, defects: Path, config: Config, uninterrupted: RunFolder, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        reader, writer = multiprocessing.Pipe(duplex=False)

        def child() -> None:
            def pause(*_: object) -> None:
                writer.send("training")
                signal.pause()

            FinetuneModule.training_step = pause
            train(defects, config, out=out)

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        assert reader.recv() == "training"
        told = rf"process {process.pid} on {re.escape(platform.node())}"
        with pytest.raises(ConfigError, match=told):
            train(defects, out=out, resume=True)
        process.kill()
        process.join()
        assert_same_end(train(defects, out=out, resume=True), uninterrupted)

    def test_one_of_two_begins(
        self, defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
    ) -> None:
        folder = RunFolder.free(tmp_path / "run")
        with folder.in_training(), pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            train(defects, tiny_config(), out=folder.path)
        assert not (folder.path / "run.json").exists()


def note_what_is_synced(log: Path) -> None:
    """From now on, write down what each call of `fsync` brings to the disk."""
    fsync = os.fsync

    def noted(number: int) -> None:
        fsync(number)
        facts = os.fstat(number)
        known: dict[str, Any] = {"inode": facts.st_ino, "written": facts.st_mtime_ns}
        if stat.S_ISDIR(facts.st_mode):
            folder = Path(f"/proc/self/fd/{number}").resolve()
            known["holds"] = {path.name: path.lstat().st_ino for path in folder.iterdir()}
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(known) + "\n")

    os.fsync = noted


def drop_what_is_not_synced(folder: Path, log: Path) -> None:
    """Leave of a folder what a power cut may leave: no name and no content that was not synced."""
    lines = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    synced = {known["inode"]: known for known in lines}
    inodes = {path: path.lstat().st_ino for path in (folder, *folder.rglob("*"))}
    for path, inode in inodes.items():
        if path != folder:
            names = synced.get(inodes[path.parent], {}).get("holds", {})
            if names.get(path.name) != inode:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                continue
        if path.is_file() and synced.get(inode, {}).get("written") != path.stat().st_mtime_ns:
            cut_in_half(path)


def test_what_is_not_synced_is_dropped(tmp_path: Path, run_until_killed: Kill) -> None:
    out, log = tmp_path / "run", tmp_path / "log"

    def child() -> None:
        note_what_is_synced(log)
        write_json(out / "kept.json", {"a": 1})
        (out / "lost.json").write_text("[1]", encoding="utf-8")
        with (out / "kept.json").open("a", encoding="utf-8") as stream:
            stream.write("more")
        os.kill(os.getpid(), signal.SIGKILL)

    run_until_killed(child)
    drop_what_is_not_synced(out, log)
    assert [path.name for path in out.iterdir()] == ["kept.json"]
    assert (out / "kept.json").read_text() == '{\n  "a":'


@pytest.mark.slow
def test_what_the_loss_remembers_is_taken_up(
    defects: Path,
    config: Config,
    tmp_path: Path,
    run_until_killed: Kill,
    die_at: DieAt,
) -> None:
    """Clusters and confusion of a resumed run are those of an uninterrupted one."""
    remembering = config.updated(
        {
            "objective.hard_selection": "confusion",
            "objective.intra_mode": "clusters",
            "objective.intra_weight": 0.2,
            "objective.contrastive_weight": 0.05,
            "objective.margin_mode": "relative",
            "model.gate_start": 0.5,
        }
    )
    whole = train(defects, remembering, out=tmp_path / "whole")

    def child() -> None:
        die_at(FinetuneModule, "training_step", 3 + STEPS)
        train(defects, remembering, out=tmp_path / "killed")

    run_until_killed(child)
    resumed = train(defects, out=tmp_path / "killed", resume=True)
    assert_same_end(resumed, whole)
    memories = [
        {
            k: v
            for k, v in torch.load(r.last_checkpoint, weights_only=True)["state_dict"].items()
            if k.startswith("objective.")
        }
        for r in (resumed, whole)
    ]
    assert len(memories[0]) == 3
    torch.testing.assert_close(*memories, rtol=0, atol=0)
