"""All settings as a YAML file to start from: default, meaning and allowed values of each."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from recame.config.allowed import allowed
from recame.config.settings import Config

_WIDTH = 96


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


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=start)
