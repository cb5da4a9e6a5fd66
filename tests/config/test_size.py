"""A size is a side or height x width, wherever it is said, and comes back as it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recame.config import (
    Config,
    as_size,
    height_width,
    load_config,
    parse_config,
    parse_settings,
    save_config,
)
from recame.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "kept", "sides"),
    [
        (128, 128, (128, 128)),
        ("128", 128, (128, 128)),
        ("128x512", "128x512", (128, 512)),
        (" 512 X 128 ", "512x128", (512, 128)),
        ((96, 320), "96x320", (96, 320)),
        ([96, 320], "96x320", (96, 320)),
        ("64x64", 64, (64, 64)),
        (16, 16, (16, 16)),
        ("16x2048", "16x2048", (16, 2048)),
    ],
)
def test_round_trip(given: Any, kept: object, sides: tuple[int, int], tmp_path: Path) -> None:
    config = Config().updated({"data.size": given, "distill.size": given})
    assert config.data.size == config.distill.size == kept
    assert height_width(as_size(given)) == sides
    save_config(config, tmp_path / "config.yaml")
    assert f"size: {kept}\n" in (tmp_path / "config.yaml").read_text()
    assert load_config(tmp_path / "config.yaml") == config


def test_words_of_a_command_line_and_files_of_before() -> None:
    assert parse_settings(["data.size=128x512"]) == {"data.size": "128x512"}
    assert parse_settings(["data.size=[128, 512]"]) == {"data.size": [128, 512]}
    assert parse_config({"data": {"size": 224}}).data.size == 224
    assert Config().data.size == "auto"
    assert Config().updated({"distill.size": "auto"}).distill.size is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (8, "each side must have 16 to 2048 pixels"),
        ("128x4096", "each side must have 16 to 2048 pixels: give the side of a square"),
        ("128x", "height x width, for example 128x512, got '128x'"),
        ("wide", "height x width"),
        ((64, 64, 3), "height x width"),
        ((64, None), "height x width"),
        (64.5, "height x width"),
        (True, "height x width"),
        (None, "height x width"),
        ("9" * 5000, "height x width"),
    ],
)
def test_what_is_no_size(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.size: ") as caught:
        Config().updated({"data.size": given})
    assert told in str(caught.value)
    assert len(str(caught.value)) < 600
