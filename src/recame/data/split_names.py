"""What folders and tables usually call their splits -> train, val and test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_USUAL = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
#: Names that mean a split only where nothing else does: beside a test, a holdout is a further one.
_ELSE = {"dev": "val", "eval": "test", "evaluation": "test", "holdout": "test"}


def is_split_name(name: str) -> bool:
    """Whether a split is usually named so.

    Examples:
        >>> is_split_name("Holdout"), is_split_name("scratch")
        (True, False)
    """
    return name.lower() in _USUAL or name.lower() in _ELSE


def usual_names(names: Iterable[str]) -> dict[str, str]:
    """The split that each name means; other names are kept.

    Examples:
        >>> usual_names(["Training", "dev", "night"])
        {'Training': 'train', 'dev': 'val', 'night': 'night'}
        >>> usual_names(["train", "test", "holdout"])
        {'train': 'train', 'test': 'test', 'holdout': 'holdout'}
    """
    found = {name: _USUAL.get(name.lower(), name) for name in names}
    taken = set(found.values())
    meant = {name: _ELSE[name.lower()] for name in found if name.lower() in _ELSE}
    count = Counter(meant.values())  # of two names for one split, neither is certain
    sure = {name: split for name, split in meant.items() if split not in taken and count[split] < 2}
    return found | sure
