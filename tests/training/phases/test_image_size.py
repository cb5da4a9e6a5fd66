from __future__ import annotations

import re
import shutil
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from recame.config import Config
from recame.data.at_sizes import ImagesAtSizes, decode_at_sizes
from recame.data.manifest import read_manifest
from recame.inference.separability import Judged
from recame.training import begin
from recame.training.phases import size_trial
from recame.training.phases.image_size import (
    AMPLE_IMAGES,
    AMPLE_PASSES,
    TRAINED_SHARE,
    best_size,
    settle_size,
    with_ample_time,
)
from recame.training.phases.size_trial import (
    LEAST_PASSES,
    MANY_IMAGES,
    OPENING_S,
    Tried,
    chosen_three,
    fitting,
    needed_images,
)
from recame.training.train import train

CPU = torch.device("cpu")
COUNTS = {"plain": 24, "grid": 16}
LONG = 1e4


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 256 px that differ in columns of one pixel: at 128 px nothing of them is left."""
    folder, rng = tmp_path_factory.mktemp("data") / "fine", np.random.default_rng(0)
    for name, count in COUNTS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = rng.normal(120, 3, (256, 256))
            if name == "grid":
                image[:, ::2] += 40
                image[:, 1::2] -= 40
            pixels = np.clip(image, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")
    return folder


def settled(source: Path, **changes: object) -> tuple[int | str, str]:
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    config = Config().updated({"evaluation.least_images_per_s": 0, **changes})
    return settle_size(read_manifest(source), config, CPU, started=time.monotonic())


def judged(loss: float, *, spread: float = 0.2, num: int = 40) -> Judged:
    target = np.arange(num) % 4
    rng = np.random.default_rng(round(1000 * loss))
    return Judged(target, np.zeros(num, bool), loss + rng.normal(0, spread, num))


class TestChoice:
    def test_a_dearer_size_must_be_better_beyond_chance(self) -> None:
        assert best_size([judged(0.5), judged(0.2), judged(0.5)]) == 1
        assert best_size([judged(0.5), judged(0.5), judged(0.2)]) == 2
        assert best_size([judged(0.5), judged(0.48)]) == 0
        assert best_size([judged(0.5), judged(0.9)]) == 0

    def test_a_third_one_must_beat_the_second(self) -> None:
        assert best_size([judged(0.6), judged(0.30), judged(0.29)]) == 1
        assert best_size([judged(0.6), judged(0.30), judged(0.05)]) == 2

    def test_small_images_are_enlarged_where_time_is_ample(self) -> None:
        sizes = [(64, 64), (96, 96), (128, 128)]
        alike = [Tried(size, judged(0.5), 0.01) for size in sizes]
        ample = dict.fromkeys(sizes, AMPLE_PASSES + 0.1)
        many = AMPLE_IMAGES
        assert with_ample_time(alike, 0, ample, many) == 2
        assert with_ample_time(alike, 0, {**ample, sizes[2]: AMPLE_PASSES - 0.1}, many) == 1
        assert with_ample_time(alike, 0, {}, many) == 0
        worse = [*alike[:2], Tried(sizes[2], judged(0.9), 0.01)]
        assert with_ample_time(worse, 0, ample, many) == 1
        # Many passes over few images are too few steps to learn on other maps.
        assert with_ample_time(alike, 0, ample, AMPLE_IMAGES // 10) == 0
        often = dict.fromkeys(sizes, 10.0 + 0.1)
        assert with_ample_time(alike, 0, often, AMPLE_IMAGES // 10) == 2

    def test_neither_large_images_nor_classes_that_are_right_are_enlarged(self) -> None:
        sizes = [(128, 128), (192, 192)]
        alike = [Tried(size, judged(0.5), 0.01) for size in sizes]
        assert with_ample_time(alike, 0, dict.fromkeys(sizes, 100.0), 1000) == 0
        small = [(64, 64), (96, 96)]
        target = np.arange(40) % 4
        perfect = [Tried(s, Judged(target, np.ones(40, bool), np.zeros(40)), 0.01) for s in small]
        assert with_ample_time(perfect, 0, dict.fromkeys(small, 100.0), 1000) == 0

    def test_three_of_many(self) -> None:
        squares = [(side, side) for side in (64, 96, 128, 160, 192, 224, 256)]
        assert chosen_three(squares, (128, 128)) == ((128, 128), (192, 192), (256, 256))
        assert chosen_three(squares[:4], (128, 128)) == ((128, 128), (160, 160))
        assert chosen_three(squares[:3], (128, 128)) == ((128, 128),)

    def test_images_that_fit(self) -> None:
        sizes = [(64, 64), (128, 128), (192, 192)]
        opening = 3 * OPENING_S
        assert fitting(0.01, sizes, 500, 14.0 * 0.01 * 100 + opening + 0.01) == (tuple(sizes), 100)
        assert fitting(0.01, sizes, 500, 1e3) == (tuple(sizes), 500)
        fewer, num = fitting(0.01, sizes, 500, 5.0 * 0.01 * 80 + opening)  # 28 of all three
        assert fewer == tuple(sizes[:2])
        assert num >= 80
        assert fitting(1.0, sizes, 500, 2.0) == (((64, 64),), 0)

    def test_images_that_fine_tuning_shall_show(self) -> None:
        assert needed_images(2_000) == 2_000 * LEAST_PASSES
        assert needed_images(100_000) == MANY_IMAGES
        assert needed_images(50) > 50 * LEAST_PASSES  # so few steps would teach nothing


class TestSettling:
    def test_what_distinguishes_classes_is_kept(self, fine: Path) -> None:
        size, why = settled(fine, run__time_budget_s=LONG)
        assert size in (192, 256)
        assert "images are about 256 x 256 pixels; balanced accuracy" in why
        assert "(val and images left out of train): 128 0." in why
        assert "; better beyond chance" in why

    def test_nothing_is_paid_for_classes_that_a_small_size_shows(self, defects: Path) -> None:
        size, why = settled(defects, run__time_budget_s=LONG)
        assert size == 64
        assert ": 64 1.000 (" in why
        assert "96" not in why
        assert why.endswith("all are right: no more is tried")

    def test_a_size_that_time_does_not_suffice_for(
        self, fine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(size_trial, "_forward_s", lambda *_: 0.1)
        monkeypatch.setattr(size_trial, "STEP_FORWARDS", 2.0)
        monkeypatch.setattr(size_trial, "LEAST_PASSES", 6)
        monkeypatch.setattr(size_trial, "FEWEST_IMAGES", 0)
        # 128 px: 5 images a second, so 10 passes over 28 images; 160 px: 6.4, 192 px: 4.4.
        size, why = settled(fine, run__time_budget_s=56 / TRAINED_SHARE)
        assert size in (128, 160)
        assert "at 192 fine-tuning would show each of 28 images about 4." in why

    def test_a_size_that_answers_too_slowly(self, fine: Path) -> None:
        size, why = settled(fine, run__time_budget_s=LONG, evaluation__least_images_per_s=200)
        assert size == 128
        assert "160 would answer about" in why
        assert "less than evaluation.least_images_per_s = 200 (0 lifts that)" in why

    def test_given_epochs_do_not_grow(self, fine: Path) -> None:
        size, why = settled(fine, finetune__epochs=2, run__time_budget_s=LONG)
        assert size == 128
        assert why.endswith("set data.size for more)")

    @pytest.mark.slow
    def test_without_time_the_same_is_taken_again(
        self, fine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(size_trial, "_UNTIMED_CPU_PIXELS", 10**6)
        whys = [settled(fine, finetune__epochs=2)[1] for _ in range(2)]
        scores = [re.findall(r"\d+ [\d.]+ \(loss [\d.]+", why) for why in whys]
        assert len(scores[0]) >= 2
        assert scores[0] == scores[1]

    def test_weights_that_know_nothing_are_not_asked(self, fine: Path) -> None:
        size, why = settled(fine, model__pretrained=False, model__backbone="test_resnet")
        assert (size, "keeps an epoch short" in why) == (128, True)

    def test_too_little_time_to_ask(self, fine: Path) -> None:
        size, why = settled(fine, run__time_budget_s=20.0)
        assert size == 128
        assert why.endswith("other sizes were not tried: the time is too short")

    def test_a_handful_of_images_in_time_is_no_trial(
        self, fine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def hurried(*args: Any, most_s: float | None, **how: Any) -> ImagesAtSizes:
            return decode_at_sizes(*args, most_s=0.0, **how)  # the first 16 of 40

        monkeypatch.setattr(size_trial, "decode_at_sizes", hurried)
        size, why = settled(fine, run__time_budget_s=LONG)
        assert size == 128
        assert why.endswith("other sizes were not tried: the time is too short")

    def test_one_unreadable_file_of_a_small_set_does_not_end_the_trial(
        self, fine: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(fine, tmp_path / "fine")
        torn = tmp_path / "fine" / "plain" / "003.png"
        torn.write_bytes(torn.read_bytes()[:100])
        size, why = settled(tmp_path / "fine", run__time_budget_s=LONG)
        assert size != 128
        assert "better beyond chance" in why

    def test_classes_of_two_images_give_no_number(self, fine: Path, tmp_path: Path) -> None:
        for name in COUNTS:
            (tmp_path / name).mkdir()
            for number in range(2):
                shutil.copy(fine / name / f"{number:03d}.png", tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            size, why = settled(tmp_path, run__time_budget_s=LONG)
        assert size == 128
        assert why.endswith("no class has an image in val, or three in train, to judge by")

    def test_unreadable_files_are_told_where_all_are_read(self, tmp_path: Path) -> None:
        for name in COUNTS:
            (tmp_path / name).mkdir()
            for number in range(4):
                pixels = np.zeros((300, 300), np.uint8)
                path = tmp_path / name / f"{number}.png"
                Image.fromarray(pixels).save(path)
                path.write_bytes(path.read_bytes()[:60])
        size, _ = settled(tmp_path)
        assert size == 128


class TestRun:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """A decision each time that one is asked for: 48 pixels."""
        calls: list[object] = []

        def decide(*_: object, **__: object) -> tuple[int, str]:
            calls.append(None)
            return 48, "for the test"

        monkeypatch.setattr(begin, "settle_size", decide)
        return calls

    def test_a_given_size_asks_nothing(
        self, defects: Path, tiny_config: Callable[..., Config], tmp_path: Path, asked: list[object]
    ) -> None:
        train(defects, tiny_config(finetune__enabled=False), out=tmp_path / "run")
        assert asked == []

    def test_a_run_taken_up_again_keeps_its_size(
        self,
        defects: Path,
        tiny_config: Callable[..., Config],
        tmp_path: Path,
        asked: list[object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        config = tiny_config(data__size="auto", finetune__enabled=False)
        with monkeypatch.context() as patch:
            patch.setattr(import_module("recame.training.train"), "run_probe", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(defects, config, out=tmp_path / "run")
        assert len(asked) == 1
        run = train(defects, None, out=tmp_path / "run", resume=True)
        assert len(asked) == 1
        assert run.load_config().data.size == 48
        assert "data.size = 48: for the test" in run.reasons()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
