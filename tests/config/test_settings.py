"""What an error says of a setting that is none."""

from __future__ import annotations

import pytest

from recame.config import Config
from recame.config.settings import parse_config
from recame.errors import ConfigError


@pytest.mark.parametrize("value", ["0,1", 0, [1], "black"])
def test_a_range_shows_how_it_is_written(value: object) -> None:
    with pytest.raises(ConfigError, match=r"in brackets, for example \[0,1\], got") as refused:
        Config().updated({"data.float_range": value})
    assert str(refused.value).endswith(f"got {value!r}")
    assert Config().updated({"data.float_range": [0, 1]}).data.float_range == (0.0, 1.0)


def test_a_value_is_shown_once() -> None:
    with pytest.raises(ConfigError) as refused:
        Config().updated({"data.size": "0x64"})
    text = str(refused.value)
    assert text.count("'0x64'") == 1
    assert "must be 'auto'; else each side must have 16 to 2048 pixels" in text
    assert text.endswith(", got '0x64'")


def test_values_that_differ_are_shown_each() -> None:
    with pytest.raises(ConfigError) as refused:
        Config().updated({"data.box_columns": [1, 2, "w", "h"]})
    assert "got 1 or" in str(refused.value)
    assert "got 2" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("finetune.lr", "abc", "must be auto or a number above 0, got 'abc'"),
        ("finetune.lr", -1, "must be auto or a number above 0, got -1"),
        ("finetune.epochs", 1.5, "must be auto or a whole number from 1, got 1.5"),
        ("data.val_fraction", 2, "must be a number from 0 to 1, got 2"),
        ("probe.enabled", "maybe", "must be true or false, got 'maybe'"),
        ("finetune.optimizer", "adam", "must be adamw or sgd, got 'adam'; did you mean adamw?"),
        ("data.critical_classes", 5, "must be a list of text, got 5"),
        ("objective.tau", [1, "a"], "must be auto or a number or a list of numbers, got [1, 'a']"),
    ],
)
def test_a_wrong_value_is_refused_in_words(name: str, value: object, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Config().updated({name: value})
    assert str(refused.value) == f"the settings: {name}: {told}"


def test_a_value_in_place_of_a_section() -> None:
    with pytest.raises(ConfigError, match=r"finetune: must be a section of settings .*, got 3"):
        parse_config({"finetune": 3})
