"""Renamed settings: files and commands with the former names still work.

When a setting is renamed, a line is added here, and removed two minor versions later
(`docs/stability.md`).
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from recame.errors import ConfigError


class Renamed(NamedTuple):
    """What became of a setting.

    Attributes:
        name: its present name, `section.key`; None: the setting no longer exists.
        since: the version that changed the name.
        until: the first version that refuses the former name.
    """

    name: str | None
    since: str
    until: str


#: Former name of a setting -> what became of the setting.
RENAMED: dict[str, Renamed] = {}


def present_name(old: str, source: str, *, warn: bool = True) -> str | None:
    """The present name of a setting; None: the setting is ignored.

    Args:
        old: `section.key`.
        source: where the setting stands, for the warning.
        warn: whether a former name causes a warning; not for files of finished runs, which nobody
            should edit.
    """
    if old not in RENAMED:
        return old
    found = RENAMED[old]
    if warn:
        told = "is ignored" if found.name is None else f"is called {found.name}"
        what_to_do = "leave it out" if found.name is None else f"write {found.name}"
        warnings.warn(
            f"{source}: {old} {told} since recame {found.since}, and recame {found.until} will "
            f"refuse the old name: {what_to_do}.",
            FutureWarning,
            stacklevel=2,
        )
    return found.name


def by_present_names(values: dict[str, Any], source: str, *, warn: bool = True) -> dict[str, Any]:
    """Nested settings, each under its present name.

    Args:
        values: section -> key -> value; a value that is no section stays as it is.
        source: where the settings stand, for messages.
        warn: see `present_name`.

    Raises:
        ConfigError: a setting is given under both names.
    """
    known = {name.partition(".")[0] for name in RENAMED}
    found = {
        section: dict(keys) if section in known and isinstance(keys, dict) else keys
        for section, keys in values.items()
    }
    for old in RENAMED:
        section, _, key = old.partition(".")
        if not isinstance(found.get(section), dict) or key not in found[section]:
            continue
        value = found[section].pop(key)
        name = present_name(old, source, warn=warn)
        if name is None:
            continue
        section, _, key = name.partition(".")
        there = found.get(section)
        keys = dict(there) if isinstance(there, dict) else {}
        if key in keys:
            raise ConfigError(
                f"{source} holds {old} and also {name}, the present name of the same setting, so "
                f"it is unclear which value counts: remove {old}."
            )
        found[section] = {**keys, key: value}
    # A section whose settings have all gone is left out.
    return {name: keys for name, keys in found.items() if keys != {} or values.get(name) == {}}
