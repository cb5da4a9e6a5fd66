from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from recame.cli import main


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def recame(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """The command line in this process: `recame("train", folder, ...)`."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["recame", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        code = left.value.code
        assert code is None or isinstance(code, int)
        return Answer(code or 0, *capsys.readouterr())

    return call
