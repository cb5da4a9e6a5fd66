"""What an error says of a plan with a wrong entry: where, what is known there, what was meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explained(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause for each wrong entry.

    Args:
        error: of a check against `model`.
        model: the outermost section.
    """
    told = []
    for item in error.errors():
        where = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            known = list(_section(model, item["loc"][:-1]).model_fields)
            near = get_close_matches(str(item["loc"][-1]), known, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            told.append(f"{where}: unknown{meant} (known here: {', '.join(known)})")
        else:
            said = item["msg"].removeprefix("Value error, ")
            told.append(f"{where}: {said}, got {item['input']!r}")
    return "; ".join(told)


def _section(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The section that lies at a path; names of data sets and positions lead no further."""
    for part in path:
        if part in model.model_fields:
            inside = _models(model.model_fields[str(part)].annotation)
            model = next(inside, model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
