"""All settings as a YAML file to start from: default, meaning and allowed values of each."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from recame.config.settings import Config

_WIDTH = 96
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}


def settings_schema() -> dict[str, Any]:
    """The settings' JSON schema, with which editors complete and check a YAML file."""
    return Config.model_json_schema()


def settings_template() -> str:
    """All settings as YAML with comments; unchanged, the file means the defaults."""
    schema = settings_schema()
    defaults = Config().model_dump(mode="json")
    lines = [
        "# Every setting of recame train, with its default. Keep the settings that you change, and",
        "# leave out the rest: recame train DATA --config FILE. Or give single settings with",
        "# --set section.name=value.",
        f"schema_version: {defaults['schema_version']}",
    ]
    for section, values in defaults.items():
        if not isinstance(values, dict):
            continue
        described = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]
        lines += ["", *_comment(described["description"], ""), f"{section}:"]
        for name, value in values.items():
            setting = described["properties"][name]
            lines += _comment(f"{setting['description']} ({allowed(setting)})", "  ")
            shown = yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()
            lines.append(f"  {name}: {shown[1:-1]}")
    return "\n".join(lines) + "\n"


def allowed(setting: dict[str, Any]) -> str:
    """The allowed values of a setting, in words.

    Args:
        setting: the JSON schema of the setting.

    Examples:
        >>> allowed({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]})
        'auto or whole number from 1'
        >>> allowed({"type": "number", "minimum": 0.0, "maximum": 1.0})
        'number from 0 to 1'
        >>> allowed({"type": "array", "prefixItems": [{"type": "string"}] * 2})
        '[text, text]'
    """
    if "anyOf" in setting:
        return " or ".join(dict.fromkeys(allowed(each) for each in setting["anyOf"]))
    if "$ref" in setting:
        return "{class_path, init_args}"
    if "enum" in setting or "const" in setting:
        choices = setting.get("enum", [setting.get("const")])
        return ", ".join(str(choice) for choice in choices)
    kind = setting.get("type")
    if kind == "null":
        return "null"
    if kind == "array":
        each = setting.get("prefixItems")
        if each is None:
            return f"list of {allowed(setting.get('items', {}))}"
        return f"[{', '.join(map(allowed, each))}]"
    return _KINDS.get(str(kind), "text") + _range(setting)


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
    return "".join(ends)


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=start)
