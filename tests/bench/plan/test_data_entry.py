"""A data set again: its images under other settings, for some methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from recame.bench.plan.plan import Bench, load_plan, plan_methods
from recame.bench.plan.sources import find_sources
from recame.errors import ConfigError

DATA: dict[str, Any] = {
    "chips": {"settings": {"finetune.epochs": 2, "finetune.epoch_size": 30}, "splits": ["val"]},
    "chips_3x": {"of": "chips", "settings": {"finetune.epochs": 6}, "methods": ["bare"]},
}


def write(folder: Path, data: dict[str, Any], **more: Any) -> Path:
    values = {"title": "lengths", "data": data, "methods": ["bare", "cross_entropy"], **more}
    path = folder / "lengths.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_it_has_the_images_of_the_other_and_settings_over_its_own(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, DATA, seeds=[0, 1]))
    long = plan.data["chips_3x"]
    assert long.splits == ("val",)
    assert long.settings == {"finetune.epochs": 6, "finetune.epoch_size": 30}
    images = tmp_path / "images"
    images.mkdir()
    console = Console(quiet=True)
    sources = find_sources(plan, {"chips": images}, tmp_path, tmp_path / "out", console)
    assert sources == {(name, seed): images for name in DATA for seed in (0, 1)}
    bench = Bench(tmp_path, plan, plan_methods(plan, tmp_path), sources)
    pairs = [(job.data, job.method) for job in bench.jobs() if job.seed == 0]
    assert pairs == [("chips", "bare"), ("chips", "cross_entropy"), ("chips_3x", "bare")]
    assert bench.config("chips_3x", "bare").finetune.epochs == 6


def test_only_sets_of_their_own_are_given_a_path(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, DATA))
    with pytest.raises(ConfigError, match="--data names chips_3x; the plan has chips"):
        find_sources(plan, {"chips_3x": tmp_path}, tmp_path, tmp_path, Console(quiet=True))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"of": "boards"}, "of='boards', which is not one of its sets with images"),
        ({"of": "chips_3x"}, "of='chips_3x', which is not one of its sets with images"),
        ({"of": "chips", "data_seed": "block"}, "has the images of chips and also sets data_seed"),
    ],
)
def test_what_it_cannot_be_is_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plan(write(tmp_path, DATA | {"again": entry}))


def test_a_set_for_some_methods_needs_them_and_no_design_of_all(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, {"chips": {"methods": ["bear"]}}))
    with pytest.raises(ConfigError, match="names the method 'bear', which the plan does not have"):
        plan_methods(plan, tmp_path)
    factors = {"lr": {"title": "fast", "settings": {"finetune.lr": 0.5}}}
    crossed = {"base": "bare", "factors": factors}
    plan = load_plan(write(tmp_path, {"chips": {"methods": ["bare"]}}, factorial=crossed))
    with pytest.raises(ConfigError, match="`factorial` needs every method on every set"):
        plan_methods(plan, tmp_path)
