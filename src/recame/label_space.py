"""The one label space of a run: names to indices, training counts, groups, normal and critical."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from recame.errors import CheckpointError, ConfigError, DataError
from recame.names import quoted

LABEL_SPACE_SCHEMA = 1

GROUPS = ("head", "many", "medium", "few")

#: The paper's cut-offs: head > 10,000, many 1,001-10,000, medium 101-1,000, few <= 100 images.
PUBLISHED_CUTOFFS = (10_000, 1_000, 100)


#: Names that the normal class often has, without blanks, hyphens and underscores.
_USUAL_NORMAL = (
    "good", "ok", "okay", "pass", "passed", "normal", "falsecall", "nodefect", "defectfree", "none",
)  # fmt: skip


def likely_normal(names: Iterable[str]) -> str | None:
    """A class that looks by its name like the normal one: to be proposed, never assumed.

    Examples:
        >>> likely_normal(["bridge", "False-Call", "open"]), likely_normal(["a", "b"])
        ('False-Call', None)
    """
    plain = str.maketrans("", "", " -_.")
    found = {name.casefold().translate(plain): name for name in names}
    return next((found[usual] for usual in _USUAL_NORMAL if usual in found), None)


@dataclass(frozen=True)
class LabelSpace:
    """Class names in index order with their training counts.

    Built once from the manifest's training split, saved with every checkpoint, passed explicitly.
    Counts keep their zeros; a class that is missing from a split changes no index.

    Attributes:
        names: C names, index order.
        counts: C training images.
        normal: the class that means "no defect", if there is one.
        critical: the classes whose escapes matter most.

    Examples:
        >>> space = LabelSpace(("ok", "crack"), (900, 12), normal="ok")
        >>> space.index("crack"), space.num_classes, space.imbalance_ratio
        (1, 2, 75.0)
        >>> space.groups()
        ('medium', 'few')
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    normal: str | None = None
    critical: tuple[str, ...] = ()
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the names and build the index."""
        if len(self.names) < 2:
            found = f"only {self.names[0]!r}" if self.names else "none"
            raise DataError(
                f"A classifier needs at least two classes, found {found}. "
                "Add images of another class, or check the label column."
            )
        if len(set(self.names)) != len(self.names) or len(self.names) != len(self.counts):
            raise DataError("Class names must be unique, with one count each.")
        named = [("normal class", self.normal)] if self.normal is not None else []
        named += [("critical class", name) for name in self.critical]
        for role, name in named:
            if name not in self.names:
                listed = ", ".join(map(quoted, self.names[:12]))
                more = ", ..." if len(self.names) > 12 else ""
                near = get_close_matches(str(name), self.names, 1)
                raise ConfigError(
                    f"The {role} {name!r} is not among the classes: {listed}{more}"
                    + (f"; did you mean {quoted(near[0])}?" if near else ". Give one of them.")
                )
        object.__setattr__(self, "_index", {name: i for i, name in enumerate(self.names)})

    @classmethod
    def from_labels(
        cls,
        labels: Iterable[str],
        *,
        normal: str | None = None,
        critical: Sequence[str] = (),
        known: Iterable[str] = (),
    ) -> LabelSpace:
        """Build from the training labels, most frequent class first, ties by name.

        Args:
            labels: the training images' labels.
            normal: the class that means "no defect".
            critical: the classes whose escapes matter most.
            known: further names to hold a place with count 0.
        """
        counted: dict[str, int] = dict.fromkeys(known, 0)
        for label in labels:
            counted[label] = counted.get(label, 0) + 1
        order = sorted(counted, key=lambda name: (-counted[name], name))
        return cls(tuple(order), tuple(counted[name] for name in order), normal, tuple(critical))

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.names)

    @property
    def normal_index(self) -> int | None:
        """Index of the normal class, or None."""
        return None if self.normal is None else self._index[self.normal]

    @property
    def imbalance_ratio(self) -> float:
        """Largest count over smallest count above zero."""
        present = [count for count in self.counts if count > 0]
        return max(present) / min(present) if present else 1.0

    def index(self, name: str) -> int:
        """Index of a class.

        Raises:
            DataError: the name is not in the label space.
        """
        try:
            return self._index[name]
        except KeyError:
            raise DataError(
                f"Label {name!r} is not a class of this model "
                f"({', '.join(map(quoted, self.names[:12]))}"
                f"{', ...' if self.num_classes > 12 else ''}). Correct the label, or train with "
                "images of that class."
            ) from None

    def __contains__(self, name: object) -> bool:
        """Whether the name is a class."""
        return name in self._index

    def groups(self, cutoffs: tuple[int, int, int] = PUBLISHED_CUTOFFS) -> tuple[str, ...]:
        """Group of each class by training count, with the published cut-offs.

        Args:
            cutoffs: a class is head above the first, many above the second, medium above the
                third, few otherwise.
        """
        return tuple(
            next((g for g, low in zip(GROUPS, cutoffs, strict=False) if count > low), "few")
            for count in self.counts
        )

    def quantile_groups(self) -> tuple[str, ...]:
        """Group of each class by rank of its count, for sets that the cut-offs do not divide.

        The most frequent third is `many`, the next `medium`, the rest `few`; classes of equal
        count share a group, and the least frequent class is always `few`.
        """
        counts = np.asarray(self.counts)
        share_above = (counts[None, :] > counts[:, None]).mean(1)
        labels = np.where(
            share_above < 1 / 3, "many", np.where(share_above < 2 / 3, "medium", "few")
        )
        if counts.max() > counts.min():
            labels[counts == counts.min()] = "few"
        return tuple(str(label) for label in labels)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary with its schema version."""
        return {
            "schema": LABEL_SPACE_SCHEMA,
            "names": list(self.names),
            "counts": list(self.counts),
            "normal": self.normal,
            "critical": list(self.critical),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LabelSpace:
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: the schema is newer than this version, or a field is missing.
        """
        schema = values.get("schema")
        if not isinstance(schema, int) or schema > LABEL_SPACE_SCHEMA:
            raise CheckpointError(
                f"The label space has schema {schema!r}; this version reads up to "
                f"{LABEL_SPACE_SCHEMA}. Update recame: pip install -U recame"
            )
        try:
            names, critical = tuple(values["names"]), tuple(values["critical"])
            if not all(isinstance(name, str) for name in (*names, *critical)):
                raise TypeError("a class whose name is no text")
            counts = tuple(int(count) for count in values["counts"])
            return cls(names, counts, values["normal"], critical)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"The label space cannot be read ({error!r}): the file was edited or damaged. "
                "Take it again from the run that wrote it."
            ) from error
