"""Reads and prints durations; needs only the standard library."""

from __future__ import annotations

import re

from recame.errors import ConfigError

_NUMBER = r"(\d+(?:\.\d+)?)"
# Minutes are no milliseconds.
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m(?!s))?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?")
_SECONDS = (3600.0, 60.0, 1.0, 0.001)


def parse_duration(text: str) -> float:
    """Seconds from `20ms`, `90s`, `15m` or `1h30m`.

    Examples:
        >>> parse_duration("1h30m"), parse_duration("20ms")
        (5400.0, 0.02)

    Raises:
        ConfigError: the text is not a duration above zero, or a number has no unit.
    """
    found = _DURATION.fullmatch(text)
    parts = found.groups() if found else ()
    total = sum(
        unit * float(part) for unit, part in zip(_SECONDS, parts, strict=False) if part is not None
    )
    if total <= 0:
        if re.fullmatch(r"[\d.hms]*\d", text):
            raise ConfigError(
                f"{text!r} ends in a number without a unit, so it may mean milliseconds, seconds "
                f"or minutes: write {text}ms, {text}s or {text}m."
            )
        raise ConfigError(
            f"{text!r} is not a duration above zero: write for example 20ms, 90s, 15m or 1h30m."
        )
    return total


def spoken_duration(seconds: float) -> str:
    """A duration as people say it.

    Examples:
        >>> spoken_duration(8.4), spoken_duration(200), spoken_duration(4000)
        ('8 s', '3 min 20 s', '1 h 06 min')
    """
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
