"""Settings in YAML files, and on the command line as `section.key=value`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from recame.config.settings import Config, parse_config
from recame.contracts import AnyPath
from recame.errors import ConfigError
from recame.files import open_regular, write_text
from recame.short_names import in_full

#: What PyYAML raises for a text that is no YAML: its own errors, those of values that do not fit
#: their tag ("!!int x", a 13th month, 5,000 digits), and Python's for brackets too deep.
_NO_YAML = (
    *(yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
_MOST_ALIASES, _MOST_OPEN = 20, 100


def load_config(path: Path) -> Config:
    """Read a YAML file of settings; what it leaves out keeps its default.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds a wrong setting.
    """
    values = read_settings(path)
    return parse_config({} if values is None else values, str(path))


def as_config(given: Config | Mapping[str, Any] | AnyPath | None) -> Config:
    """Convert settings in any accepted form to a `Config`.

    Args:
        given: a `Config`; a dictionary of sections, of full names (`finetune.epochs`), of short
            names, or of a mix of them; the path of a YAML file; None: the defaults.

    Examples:
        >>> mixed = {"finetune": {"epochs": 5}, "finetune.lr": 1e-3, "seed": 3}
        >>> as_config(mixed).finetune.epochs, as_config(mixed).run.seed
        (5, 3)

    Raises:
        ConfigError: a setting is unknown or ill-typed; the error names the nearest.
    """
    if given is None or isinstance(given, Config):
        return given or Config()
    if isinstance(given, str | os.PathLike):
        return load_config(Path(given))
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"Settings of type {type(given).__name__} are not accepted: give a Config, a "
            'dictionary such as {"finetune.epochs": 5}, or the path of a YAML file.'
        )
    names = {str(name): value for name, value in given.items()}
    whole = {name: value for name, value in names.items() if name in Config.model_fields}
    changes = {name: value for name, value in names.items() if name not in whole}
    return parse_config(whole).updated(in_full(changes))


def read_settings(path: Path, what: str = "", option: str = "--config") -> Any:
    """The values of a YAML file of settings, without any default; None if it is empty.

    Args:
        path: the file.
        what: what the file holds, in words, if not settings.
        option: the option with which the file was given.

    Raises:
        ConfigError: the file is missing or is not YAML.
    """
    try:
        with open_regular(path) as stream:
            return _yaml_values(stream.read().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"No {what or 'settings'} file at {path}: check the path after {option}."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be opened ({error.strerror}): give a YAML file that you may read."
        ) from error
    except _NO_YAML as error:
        raise ConfigError(
            f"{path} cannot be read as {what or 'YAML'} ({error}): correct the file."
        ) from error


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Parse `section.key=value` texts as YAML values.

    Examples:
        >>> parse_settings(["finetune.epochs=3", "model.regions=[3, 3]", "probe.enabled=false"])
        {'finetune.epochs': 3, 'model.regions': [3, 3], 'probe.enabled': False}

    Raises:
        ConfigError: a text has no `=`, or its value cannot be read.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(
                f"--set {pair!r} has no '=', so it sets nothing: write --set section.key=value."
            )
        try:
            changes[name.strip()] = _yaml_value(text)
        except _NO_YAML as error:
            raise ConfigError(
                f"--set {pair!r}: the value cannot be read as YAML ({error}). Correct it, or put "
                "it in quotes."
            ) from error
    return changes


def _yaml_value(text: str) -> object:
    # YAML 1.1 reads 1e-3 as a text, but people mean a number. A quoted value stays a text.
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", text.strip()):
        return float(text)
    return _yaml_values(text)


def _yaml_values(text: str) -> object:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError: the text is not YAML; or it has so many aliases that a few lines could fill
            the memory, or so many open brackets that reading them would take minutes. A value that
            does not fit its tag may raise any other error of `_NO_YAML`.
    """
    opened = list(accumulate((c in "[{") - (c in "]}") for c in text if c in "[]{}"))
    if opened and max(opened) > _MOST_OPEN:
        raise yaml.YAMLError(
            f"{max(opened)} brackets are open at once, but at most {_MOST_OPEN} are read"
        )
    if (dashes := text.count("- - - - ")) > _MOST_OPEN:
        raise yaml.YAMLError(f"lists are nested {4 * dashes} deep")
    names = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
    if names > _MOST_ALIASES:
        raise yaml.YAMLError(f"{names} aliases, but at most {_MOST_ALIASES} are followed")
    return yaml.safe_load(text)


def save_config(config: Config, path: Path) -> None:
    """Write the settings as YAML, whole or not at all."""
    values = config.model_dump(mode="json")
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
