"""Settings by short names, dictionaries and whole names, from one table."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from recame.cli.app import app
from recame.config import Config, FinetuneConfig, as_config
from recame.errors import ConfigError
from recame.short_names import SHORT, ShortSettings, in_full


def test_every_short_name_is_a_keyword_an_option_and_a_setting() -> None:
    assert set(get_type_hints(ShortSettings)) == set(SHORT)
    verbs: Any = typer.main.get_command(app)
    options = {option.name: option for option in verbs.commands["train"].params}
    for name, short in SHORT.items():
        assert options[name].help == short.words
        section, _, key = short.setting.partition(".")
        assert hasattr(getattr(Config(), section), key)


def test_settings_however_they_are_given(tmp_path: Path) -> None:
    mixed = {"finetune": {"epochs": 5}, "finetune.lr": 1e-3, "seed": 3, "size": (64, 128)}
    config = as_config({**mixed, "time_budget": "1h30m", "device": "cuda", "normal": "good"})
    assert (config.finetune.epochs, config.finetune.lr, config.run.seed) == (5, 1e-3, 3)
    assert (config.data.size, config.data.normal_class) == ("64x128", "good")
    assert (config.run.time_budget_s, config.run.accelerator) == (5400.0, "gpu")
    (tmp_path / "own.yaml").write_text("run: {seed: 7}\n", encoding="utf-8")
    assert as_config(tmp_path / "own.yaml").run.seed == 7
    assert as_config(config) is config
    assert as_config(None) == Config()
    assert in_full({"time_budget": 90.0, "seed": None}) == {"run.time_budget_s": 90.0}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"imgsz": 64}, "no setting 'imgsz' here: give size=128 instead"),
        ({"lr0": 0.1}, r'the settings \{"finetune.lr": 5e-4\}'),
        ({"sede": 1}, "did you mean seed"),
        ({"zzz": 1}, "Short names are epochs, batch_size, size"),
        ({"epochs": "many"}, "finetune.epochs: .*got 'many'"),
        ({"epochs": 0}, "finetune.epochs"),
        ({"finetune.epoch": 3}, "did you mean epochs"),
        ({"finetune": {"epoch": 3}}, "did you mean epochs"),
        ({"finetun.epochs": 3}, "Unknown setting 'finetun.epochs'"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES=1"),
        ({"device": "tpu"}, "run.accelerator"),
        ({"time_budget": "soon"}, "not a duration"),
        (3, "Settings of type int are not accepted"),
    ],
)
def test_what_is_wrong_is_told_with_the_way(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        as_config(given)


def test_settings_are_checked_wherever_they_are_made() -> None:
    with pytest.raises(ConfigError, match=r"data.sizes: unknown; did you mean size\?"):
        Config(data={"sizes": 3})
    config = Config(finetune=FinetuneConfig(epochs=3))
    with pytest.raises(ConfigError, match=r"cannot be changed in place.*config.updated"):
        config.finetune.epochs = 4  # type: ignore[misc]
    assert config.finetune.epochs == 3
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
