"""A data set of a plan, or a repetition of one under other settings."""

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
        description="block: the set is made anew for each seed of the plan, which the builder gets "
        "as `seed`; in a published set with groups, such as boards, the groups in train are drawn "
        "with replacement. So one seed of data and training is a block of the comparison",
    )
    path: Path | None = Field(None, description="manifest or folder; or the builder's raw copy")
    of: str | None = Field(
        None,
        description="another set of the plan: this one has its images, builder and settings; "
        "`settings` here override those of the other set, for example for more epochs",
    )
    methods: tuple[str, ...] | None = Field(
        None, description="only these methods run on this set; null: all of the plan"
    )
    splits: Annotated[tuple[str, ...], Field(min_length=1)] = ("test",)
    settings: dict[str, Any] = Field({}, description="for every method on this set")

    @property
    def needs_path(self) -> bool:
        """Whether the path of its data must be given."""
        from recame.datasets.registry import PUBLIC_SETS

        known = PUBLIC_SETS.get(self.builder or "")
        return self.path is None and (self.builder is None or bool(known and known.raw))


#: What an entry with `of` takes from the other one.
_SHARED = ("builder", "options", "data_seed", "path")


def resolved(plan: str, data: Mapping[str, DataEntry]) -> dict[str, DataEntry]:
    """Fill entries that repeat another set (`of`) with what they take from it.

    Args:
        plan: its name, for errors.
        data: the plan's sets as its file has them.

    Raises:
        ConfigError: `of` does not name a set without `of`, or an entry sets what it takes from
            the other set.
    """
    found = dict(data)
    for name, entry in data.items():
        if entry.of is None:
            continue
        root = data.get(entry.of)
        if root is None or root.of is not None:
            sets = ", ".join(one for one, other in data.items() if other.of is None)
            raise ConfigError(
                f"Plan {plan}: data set {name} has of={entry.of!r}, which is not one of its sets "
                f"with images of their own ({sets or 'there is none'}): name one of these."
            )
        if said := [key for key in _SHARED if key in entry.model_fields_set]:
            raise ConfigError(
                f"Plan {plan}: data set {name} has the images of {entry.of} and also sets "
                f"{said[0]}, which it would take from there: leave out `of` or {said[0]}."
            )
        changes = {
            **{key: getattr(root, key) for key in _SHARED},
            "splits": entry.splits if "splits" in entry.model_fields_set else root.splits,
            "settings": {**root.settings, **entry.settings},
        }
        found[name] = entry.model_copy(update=changes)
    return found
