"""What a setting may be, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}


def allowed(setting: dict[str, Any], *, sentence: bool = False) -> str:
    """The allowed values of a setting, in words.

    Args:
        setting: the JSON schema of the setting.
        sentence: whether the words follow "must be": with articles, and "or" before a last choice.

    Examples:
        >>> allowed({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]})
        'auto or whole number from 1'
        >>> allowed({"type": "number", "minimum": 0.0, "maximum": 1.0})
        'number from 0 to 1'
        >>> allowed({"type": "array", "prefixItems": [{"type": "string"}] * 2})
        '[text, text]'
        >>> allowed({"type": "number", "exclusiveMinimum": 0.0}, sentence=True)
        'a number above 0'
        >>> allowed({"enum": ["adamw", "sgd"]}, sentence=True)
        'adamw or sgd'
    """
    if "anyOf" in setting:
        each_way = (allowed(each, sentence=sentence) for each in setting["anyOf"])
        return " or ".join(dict.fromkeys(each_way))
    if "$ref" in setting:
        return "{class_path, init_args}"
    if "enum" in setting or "const" in setting:
        return _listed([str(choice) for choice in choices(setting)], sentence=sentence)
    kind = setting.get("type")
    if kind == "null":
        return "null"
    if kind == "array":
        each = setting.get("prefixItems")
        if each is None:
            items = allowed(setting.get("items", {}))
            if sentence:
                return f"a list of {items.replace('number', 'numbers')}"
            return f"list of {items}"
        return f"[{', '.join(map(allowed, each))}]"
    words = _KINDS.get(str(kind), "text")
    if kind == "boolean":
        return _listed(words.split(", "), sentence=sentence)
    article = "a " if sentence and words != "text" else ""
    return article + words + _range(setting)


def choices(setting: dict[str, Any]) -> Iterator[Any]:
    """The single values that a setting may have."""
    for way in setting.get("anyOf", ()):
        yield from choices(way)
    yield from setting.get("enum", ())
    if "const" in setting:
        yield setting["const"]


def _listed(words: list[str], *, sentence: bool) -> str:
    if not sentence or len(words) == 1:
        return ", ".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _range(setting: dict[str, Any]) -> str:
    ends = [
        f" {word} {setting[key]:g}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("exclusiveMaximum", "below"),
        )
        if key in setting
    ]
    # "from 0 to 1", but "above 0 and below 1".
    return (" and" if len(ends) > 1 and "below" in ends[1] else "").join(ends)
