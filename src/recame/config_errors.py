"""What is wrong with settings, in the words of someone who wrote them."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, known_names: Callable[[str | None], list[str]]) -> str:
    """One clause a setting: what it may be, and what it was.

    Args:
        error: of the whole configuration.
        known_names: section -> its settings; None -> the sections.
    """
    told: dict[str, list[str]] = {}
    for item in error.errors():
        where = [str(part) for part in item["loc"]]
        if item["type"] == "extra_forbidden":
            known = known_names(where[0] if len(where) > 1 else None)
            text = f"unknown (known here: {', '.join(known)})"
        else:
            text = item["msg"].removeprefix("Value error, ")
            if not isinstance(item["input"], dict | BaseModel):  # else a whole section
                text += f", got {item['input']!r}"
        told.setdefault(".".join(where[:2]), []).append(text)
    listed = []
    for name, texts in told.items():
        text = " or ".join(dict.fromkeys(texts))
        listed.append(f"{name}: {text}" if name else text)
    return "; ".join(listed)
