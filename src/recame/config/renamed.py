"""Settings that bear another name than they did: files and commands of versions before go on.

Whoever renames a setting adds a line here, and removes it two minor versions later
(`docs/stability.md`).
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

from recame.errors import ConfigError


class Renamed(NamedTuple):
    """What became of a setting.

    Attributes:
        name: `section.key` that it bears now; None: nothing listens to it any more.
        since: the version that gave it that name.
        until: the version that will know the old one no more.
    """

    name: str | None
    since: str
    until: str


#: The name that a setting had -> what became of it.
RENAMED: dict[str, Renamed] = {}


def present_name(old: str, source: str, *, warn: bool = True) -> str | None:
    """What a setting is called now; None: it is passed over.

    Args:
        old: `section.key`.
        source: where it stands, for the warning.
        warn: whether whoever wrote it is told; a finished run's file is nobody's to mend.
    """
    if old not in RENAMED:
        return old
    found = RENAMED[old]
    if warn:
        told = "is passed over" if found.name is None else f"is called {found.name}"
        what_to_do = "leave it out" if found.name is None else "write that"
        warnings.warn(
            f"{source}: {old} {told} since recame {found.since}, and {found.until} will refuse the "
            f"old name: {what_to_do}.",
            FutureWarning,
            stacklevel=2,
        )
    return found.name


def by_present_names(values: dict[str, Any], source: str, *, warn: bool = True) -> dict[str, Any]:
    """Nested settings with each under its present name.

    Args:
        values: section -> key -> value; what is no section stays as it is.
        source: where they stand.
        warn: see `present_name`.

    Raises:
        ConfigError: a setting stands there under both names.
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
                f"{source} holds {old} and {name}, which is its present name, so it is not known "
                f"which of them counts: take {old} out."
            )
        found[section] = {**keys, key: value}
    # A section of which all settings have gone is none.
    return {name: keys for name, keys in found.items() if keys != {} or values.get(name) == {}}
