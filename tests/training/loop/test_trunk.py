from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recame.config import Config
from recame.data.transforms import dihedral_view
from recame.errors import DataError
from recame.runs.folder import RunFolder
from recame.training.loop.module import FinetuneModule
from recame.training.loop.trunk import TrunkCache, build_trunk_cache
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.finetune import run_finetune
from recame.training.train import train

Ongoing = Callable[..., OngoingRun]


def build(
    run: OngoingRun, model: torch.nn.Module, num_views: int = 4, of_run: str | None = None
) -> TrunkCache:
    return build_trunk_cache(
        model,
        run.data,
        run.data.view("train"),
        run.folder.trunk_paths,
        of_run=of_run,
        num_views=num_views,
        batch_size=32,
        precision="32",
    )


class TestCache:
    @pytest.mark.parametrize(("shared", "pooled_stages"), [(3, 1), (3, 3), (1, 1), (0, 1)])
    def test_tails_on_the_cache_are_the_model(
        self, shared: int, pooled_stages: int, ongoing: Ongoing
    ) -> None:
        run = ongoing(model__shared_stages=shared, model__pooled_stages=pooled_stages)
        model = run.new_model()
        cache = build(run, model)
        assert model.training
        rows = run.data.view("train").rows
        assert cache.maps.shape[:2] == (len(rows), 4)
        assert cache.maps.dtype == cache.pooled.dtype == np.float16
        model.eval()
        chosen = torch.tensor([0, 5, len(rows) - 1])
        for number in range(4):
            maps = torch.from_numpy(cache.maps[chosen, number]).float()
            pooled = torch.from_numpy(cache.pooled[chosen, number]).float()
            images = dihedral_view(run.data.images(rows[chosen.numpy()]), number)
            with torch.no_grad():
                ours, whole = model.from_trunk(maps, pooled), model(images)
            torch.testing.assert_close(ours.logits, whole.logits, rtol=5e-3, atol=5e-3)

    def test_views_are_drawn_by_the_generator(self) -> None:
        maps = np.arange(3 * 4, dtype=np.float16).reshape(3, 4, 1, 1, 1)
        cache = TrunkCache(maps, np.zeros((3, 4, 0), np.float16))
        index = torch.arange(3).repeat(200)
        draws = [
            cache.take(index, torch.Generator().manual_seed(seed), torch.device("cpu"))[0].flatten()
            for seed in (0, 0, 1)
        ]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])
        assert torch.equal(draws[0] // 4, index.float())
        assert set((draws[0] % 4).tolist()) == {0.0, 1.0, 2.0, 3.0}

    def test_a_whole_cache_is_taken_up(self, ongoing: Ongoing) -> None:
        run = ongoing()
        model = run.new_model()
        build(run, model)
        stamp = run.folder.trunk_paths[0].stat().st_mtime_ns
        model.eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.zero_()
        assert np.abs(build(run, model).maps).max() > 0
        assert run.folder.trunk_paths[0].stat().st_mtime_ns == stamp

    def test_what_another_run_left_is_not_taken_up(self, ongoing: Ongoing) -> None:
        run = ongoing()
        model = run.new_model()
        maps = build(run, model, of_run="this").maps.copy()
        for parameter in model.parameters():
            parameter.data.zero_()
        np.testing.assert_array_equal(build(run, model, of_run="this").maps, maps)
        assert np.abs(build(run, model, of_run="another").maps).max() == 0
        run.folder.trunk_paths[2].write_text("{", encoding="utf-8")
        assert build(run, model, of_run="this").maps.shape == maps.shape

    def test_full_disk(self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch) -> None:
        run = ongoing()

        def full(*_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(DataError, match="No space left"):
            build(run, run.new_model())
        assert not any(path.exists() for path in run.folder.trunk_paths)


class TestTailsOnly:
    def test_the_trunk_stays(self, ongoing: Ongoing) -> None:
        run = ongoing(finetune__scope="tails", finetune__ema_decay=0.0, finetune__epochs=1)
        model = run.new_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        _, trained = run_finetune(run, model)
        after = trained.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert not any(name.startswith("trunk") for name in moved)
        weights = {name for name, _ in trained.named_parameters()}
        still = weights - moved
        assert {name.split(".")[0] for name in still} == {"trunk"}
        assert any(name.startswith("tails.1") for name in moved)

    def test_killed_and_resumed(
        self,
        defects: Path,
        tiny_config: Callable[..., Config],
        tmp_path: Path,
        run_until_killed: Callable[[Callable[[], object]], None],
        die_at: Callable[[Any, str, int], None],
    ) -> None:
        config = tiny_config(finetune__scope="tails", run__keep="last", model__dropout=0.2)
        whole = train(defects, config, out=tmp_path / "whole")
        assert not any(path.exists() for path in whole.trunk_paths)

        def child() -> None:
            die_at(FinetuneModule, "training_step", 8)
            train(defects, config, out=tmp_path / "killed")

        run_until_killed(child)
        left = RunFolder.open(tmp_path / "killed")
        assert all(path.exists() for path in (*left.trunk_paths, left.last_checkpoint))
        resumed = train(defects, out=tmp_path / "killed", resume=True)
        ours, theirs = (load_file(run.path / "model.safetensors") for run in (resumed, whole))
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
