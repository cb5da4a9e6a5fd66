"""A setting that was renamed is understood by its old name, and who wrote it is told."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from recame.config import Config, load_config, parse_config
from recame.config.renamed import RENAMED, Renamed
from recame.errors import ConfigError


@pytest.fixture(autouse=True)
def _renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {
        "finetune.rounds": Renamed("finetune.epochs", "0.2.0", "0.4.0"),
        "train.seed": Renamed("run.seed", "0.2.0", "0.4.0"),
        "model.magic": Renamed(None, "0.2.0", "0.4.0"),
    }
    monkeypatch.setattr("recame.config.renamed.RENAMED", now)


def test_every_renaming_leads_to_a_setting() -> None:
    """Of the table as it is, which may be empty."""
    known = Config().model_dump()
    for old, found in RENAMED.items():
        section, _, key = old.partition(".")
        assert key not in known.get(section, {}), old
        if found.name is not None:
            section, _, key = found.name.partition(".")
            assert key in known[section], old


def test_a_file_is_read_by_its_old_names(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("finetune: {rounds: 7}\ntrain: {seed: 3}\nmodel: {magic: 1}\n", "utf-8")
    with pytest.warns(FutureWarning) as told:
        config = load_config(path)
    assert (config.finetune.epochs, config.run.seed) == (7, 3)
    assert config == Config().updated({"finetune.epochs": 7, "run.seed": 3})
    texts = [str(each.message) for each in told]
    assert texts[0] == (
        f"{path}: finetune.rounds is called finetune.epochs since recame 0.2.0, and "
        "recame 0.4.0 will refuse the old name: write finetune.epochs."
    )
    assert "model.magic is ignored since recame 0.2.0" in texts[2]


def test_a_word_of_a_command_is_read_too() -> None:
    with pytest.warns(FutureWarning, match=r"train\.seed is called run\.seed"):
        assert Config().updated({"train.seed": 5}).run.seed == 5


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"holds finetune\.rounds and also finetune\.epochs"):
        parse_config({"finetune": {"rounds": 7, "epochs": 8}}, warn_of_old_names=False)


def test_nobody_is_told_of_a_file_that_is_nobody_s_to_mend() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = parse_config({"finetune": {"rounds": 7}}, warn_of_old_names=False)
    assert config.finetune.epochs == 7


def test_an_unknown_setting_stays_unknown() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.rnds: unknown"):
        parse_config({"finetune": {"rnds": 7}})
