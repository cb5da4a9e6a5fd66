"""What an error says of a setting that is none."""

from __future__ import annotations

import pytest

from recame.config import Config
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
    assert "Input should be 'auto' or each side must have 16 to 2048 pixels" in text
    assert text.endswith(", got '0x64'")


def test_values_that_differ_are_shown_each() -> None:
    with pytest.raises(ConfigError) as refused:
        Config().updated({"data.box_columns": [1, 2, "w", "h"]})
    assert "got 1 or" in str(refused.value)
    assert "got 2" in str(refused.value)
