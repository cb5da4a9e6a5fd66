"""What is no path is refused with our error, by every function that takes a model or a table."""

from __future__ import annotations

from typing import Any

import pytest

import recame

OF_A_MODEL: dict[str, tuple[Any, ...]] = {
    "load": (),
    "evaluate": (),
    "report": (),
    "tune": (),
    "verify": ("labelled/",),
    "compare": ("runs/second", "labelled/"),
    "export_bundle": (),
    "distill": (),
    "measure_latency": (),
    "monitor": ("lot.csv",),
    "RunFolder": (),
}


@pytest.mark.parametrize("verb", OF_A_MODEL)
@pytest.mark.parametrize("given", [5, None, ["runs/first"]])
def test_what_is_no_folder_is_refused(verb: str, given: Any) -> None:
    with pytest.raises(recame.RecameError) as refused:
        getattr(recame, verb)(given, *OF_A_MODEL[verb])
    own_words = (verb, given) == ("distill", None)
    assert ("No teacher given" if own_words else "is not a path") in str(refused.value)


@pytest.mark.parametrize("given", [5, None])
def test_what_is_no_table_of_predictions_is_refused(given: Any) -> None:
    with pytest.raises(recame.RecameError, match="read from a path or a DataFrame"):
        recame.load_predictions(given)


@pytest.mark.parametrize("verb", ["train", "inspect"])
def test_what_is_no_set_is_refused(verb: str) -> None:
    with pytest.raises(recame.RecameError, match="Images cannot be given as int"):
        getattr(recame, verb)(5)
