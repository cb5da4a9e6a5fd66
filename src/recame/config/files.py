"""Settings on disk and on a command line: YAML files, and words like `section.key=value`."""

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

#: What PyYAML raises of texts that are none: its own errors, those of a tag whose value is another
#: ("!!int x", a 13th month, 5,000 digits), and Python's where brackets are too deep.
_NO_YAML = (
    *(yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
_MOST_ALIASES, _MOST_OPEN = 20, 100


def load_config(path: Path) -> Config:
    """Read a YAML file of settings; what it leaves out keeps its default.

    Raises:
        ConfigError: the file is missing, is no YAML, or holds a wrong setting.
    """
    values = read_settings(path)
    return parse_config({} if values is None else values, str(path))


def as_config(given: Config | Mapping[str, Any] | AnyPath | None) -> Config:
    """Settings however they are given.

    Args:
        given: a `Config`; a dictionary of sections, of whole names as `finetune.epochs` or of short
            ones, mixed as one likes; a YAML file; None: the defaults.

    Examples:
        >>> mixed = {"finetune": {"epochs": 5}, "finetune.lr": 1e-3, "seed": 3}
        >>> as_config(mixed).finetune.epochs, as_config(mixed).run.seed
        (5, 3)

    Raises:
        ConfigError: a setting is unknown or ill-typed; names the nearest.
    """
    if given is None or isinstance(given, Config):
        return given or Config()
    if isinstance(given, str | os.PathLike):
        return load_config(Path(given))
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"Settings were given as {type(given).__name__}: give a Config, a dictionary as "
            '{"finetune.epochs": 5}, or the path of a YAML file.'
        )
    names = {str(name): value for name, value in given.items()}
    whole = {name: value for name, value in names.items() if name in Config.model_fields}
    changes = {name: value for name, value in names.items() if name not in whole}
    return parse_config(whole).updated(in_full(changes))


def read_settings(path: Path, what: str = "", option: str = "--config") -> Any:
    """What a YAML file of settings says itself, without any default; None if it is empty.

    Args:
        path: the file.
        what: it is of, in words, if not of settings.
        option: with which it was given.

    Raises:
        ConfigError: the file is missing or is no YAML.
    """
    try:
        with open_regular(path) as stream:
            return _yaml_values(stream.read().decode("utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"No {what or 'settings'} file at {path}: check the path given to {option}."
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
        ConfigError: a text has no `=` or no readable value.
    """
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair!r} has no '=': write --set section.key=value")
        try:
            changes[name.strip()] = _yaml_value(text)
        except _NO_YAML as error:
            raise ConfigError(f"--set {pair!r}: the value is no YAML ({error}).") from error
    return changes


def _yaml_value(text: str) -> object:
    # YAML 1.1 reads 1e-3 as a text; people mean a number. What they quote is a text.
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", text.strip()):
        return float(text)
    return _yaml_values(text)


def _yaml_values(text: str) -> object:
    """What a YAML text holds.

    Raises:
        yaml.YAMLError: it is no YAML; it names its parts by aliases so often that a few lines could
            fill the memory, or opens so many brackets that reading them would take minutes; and
            whatever else of `_NO_YAML` a value raises that is not what its tag says.
    """
    opened = list(accumulate((c in "[{") - (c in "]}") for c in text if c in "[]{}"))
    if opened and max(opened) > _MOST_OPEN:
        raise yaml.YAMLError(f"{max(opened)} brackets are open, at most {_MOST_OPEN} are read")
    if (dashes := text.count("- - - - ")) > _MOST_OPEN:
        raise yaml.YAMLError(f"lists in lists, {4 * dashes} deep")
    names = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
    if names > _MOST_ALIASES:
        raise yaml.YAMLError(f"{names} aliases, at most {_MOST_ALIASES} are followed")
    return yaml.safe_load(text)


def save_config(config: Config, path: Path) -> None:
    """Write the settings as YAML, whole or not at all."""
    values = config.model_dump(mode="json")
    write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
