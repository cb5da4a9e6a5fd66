"""The page of all settings: complete, true, and a file to start from."""

from __future__ import annotations

import json

import pytest
import yaml

from recame.config import Config
from recame.config.allowed import allowed
from recame.config.settings import parse_config
from recame.config.template import settings_schema, settings_template
from recame.errors import ConfigError


def test_given_back_unchanged_it_is_the_default() -> None:
    text = settings_template()
    assert parse_config(yaml.safe_load(text)) == Config()
    assert max(map(len, text.splitlines())) <= 100


def test_every_setting_says_what_it_means_and_what_it_may_be() -> None:
    schema = settings_schema()
    told = 0
    for title, section in schema["$defs"].items():
        if title == "Plugin":  # the value of some settings, and no section
            assert list(section["properties"]) == ["class_path", "init_args", "package"]
            continue
        for name, setting in section["properties"].items():
            assert len(setting.get("description", "")) > 5, name
            assert allowed(setting), name
            told += 1
    assert told == sum(
        len(section) for section in Config().model_dump().values() if isinstance(section, dict)
    )


@pytest.mark.parametrize(
    ("section", "name", "words"),
    [
        ("DataConfig", "val_fraction", "number from 0 to 1"),
        ("DataConfig", "calibrate", "auto or number from 0 and below 1"),
        ("DataConfig", "channels", "auto or 1, 3"),
        ("DataConfig", "critical_classes", "list of text"),
        ("DataConfig", "float_range", "[number, number] or null"),
        ("ModelConfig", "regions", "[whole number from 1, whole number from 1]"),
        ("RunConfig", "compile", "true, false"),
        ("RunConfig", "time_budget_s", "number above 0 or null"),
    ],
)
def test_what_is_allowed_is_said_in_words(section: str, name: str, words: str) -> None:
    assert allowed(settings_schema()["$defs"][section]["properties"][name]) == words


def test_the_schema_is_json_and_refuses_what_training_refuses() -> None:
    schema = json.loads(json.dumps(settings_schema()))
    assert all(not section["additionalProperties"] for section in schema["$defs"].values())


@pytest.mark.parametrize(
    ("wrong", "near"), [("batchsize", "batch_size"), ("scop", "scope"), ("learning", None)]
)
def test_an_unknown_setting_names_the_nearest(wrong: str, near: str | None) -> None:
    with pytest.raises(ConfigError) as refused:
        Config().updated({f"finetune.{wrong}": 1})
    told = str(refused.value)
    assert (f"did you mean {near}?" in told) if near else ("did you mean" not in told)
    assert "known here: " in told
