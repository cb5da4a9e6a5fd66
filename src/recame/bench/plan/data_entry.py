"""A data set of a plan, or one of them again under other settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from recame.config import Section
from recame.errors import ConfigError


class DataEntry(Section):
    """One data set of a plan."""

    title: str = ""
    builder: str | None = Field(
        None,
        description="a public set's name, or a .py file with prepare(out) or prepare(raw, out)",
    )
    options: dict[str, Any] = Field({}, description="for the builder")
    data_seed: Literal["fixed", "block"] = Field(
        "fixed",
        description="block: made anew for each seed of the plan, which the builder gets as `seed`; "
        "of a published set with groups, as boards, the groups in train are drawn with "
        "replacement: a block of the comparison is one seed of data and training",
    )
    path: Path | None = Field(None, description="manifest or folder; or the builder's raw copy")
    of: str | None = Field(
        None,
        description="another set of the plan: its images, builder and settings, under settings "
        "that lie over them, as more epochs",
    )
    methods: tuple[str, ...] | None = Field(
        None, description="only these methods run on this set; null: all of the plan"
    )
    splits: Annotated[tuple[str, ...], Field(min_length=1)] = ("test",)
    settings: dict[str, Any] = Field({}, description="of every method on this set")

    @property
    def needs_path(self) -> bool:
        """Whether somebody has to say where its data lie."""
        from recame.datasets.registry import PUBLIC_SETS

        known = PUBLIC_SETS.get(self.builder or "")
        return self.path is None and (self.builder is None or bool(known and known.raw))


#: What an entry with `of` has from the other one.
_SHARED = ("builder", "options", "data_seed", "path")


def resolved(plan: str, data: Mapping[str, DataEntry]) -> dict[str, DataEntry]:
    """Fill entries that are another set again (`of`) with what they share with it.

    Args:
        plan: name, for errors.
        data: the plan's sets as its file has them.

    Raises:
        ConfigError: `of` names no set that stands for itself, or an entry says again what it
            shares.
    """
    found = dict(data)
    for name, entry in data.items():
        if entry.of is None:
            continue
        root = data.get(entry.of)
        if root is None or root.of is not None:
            sets = ", ".join(one for one, other in data.items() if other.of is None)
            raise ConfigError(
                f"Plan {plan}: data set {name} is of={entry.of!r}, which is none of its sets with "
                f"images of their own ({sets or 'there is none'}): name one of these."
            )
        if said := [key for key in _SHARED if key in entry.model_fields_set]:
            raise ConfigError(
                f"Plan {plan}: data set {name} has the images of {entry.of} and says {said[0]} "
                "too, so that it is not told which holds: leave one of the two out."
            )
        changes = {
            **{key: getattr(root, key) for key in _SHARED},
            "splits": entry.splits if "splits" in entry.model_fields_set else root.splits,
            "settings": {**root.settings, **entry.settings},
        }
        found[name] = entry.model_copy(update=changes)
    return found
