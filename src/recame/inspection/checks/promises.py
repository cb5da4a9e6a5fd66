"""Computes which escape limits could be promised, from the counts of images alone."""

from __future__ import annotations

from typing import Any

from recame.decisions.exact import images_needed
from recame.decisions.promises import promisable
from recame.inspection.check import Check, SetFinding
from recame.label_space import likely_normal
from recame.names import counted, quoted

#: Share of the images that would be set aside, and the escape limits that are reported.
_SHARE, _WISHES = 0.2, (0.05, 0.1)
#: The limit for which the needed number of images is reported.
_STRICT = 0.02


class Promises(Check):
    """Which escape limits a fifth of the images, set aside, could promise."""

    place = 9

    def find(self) -> None:
        """Count the images, if a class looks like the normal class."""
        classes = self.inspection.audit.classes
        images = dict(zip(classes["class"], classes["images"], strict=True))
        self.normal = likely_normal(map(str, images))
        counts = {
            str(name): int(_SHARE * number)
            for name, number in images.items()
            if str(name) != self.normal
        }
        self.promisable = promisable(counts) if self.normal is not None and counts else None

    def say(self) -> list[SetFinding]:
        """Limits that could be promised, and the images needed for a stricter one."""
        found = self.promisable
        if found is None or self.normal is None:
            return []
        told = [
            f"{limit:.0%} of {self._classes(limit)} of {len(found.counts)}" for limit in _WISHES
        ]
        needed = images_needed(_STRICT, found.risk)
        assert needed is not None  # the limit is above 0
        text = (
            f"{quoted(self.normal)} looks like the normal class. If a fifth of these images is "
            f"set aside, it can promise escapes of at most {', and '.join(told)} defect classes "
            f"({found.confidence:.0%} confidence, all together); a limit of {_STRICT:.0%} needs "
            f"{counted(needed)} of each class that were used neither to train nor to choose a "
            "model."
        )
        action = (
            f"Name it with --set data.normal_class={self.normal}; label new images of the most "
            "important classes, and fit decisions to them with recame tune."
        )
        return [
            SetFinding("promises", "note", "Escape limits that could be promised", text, action)
        ]

    def _classes(self, limit: float) -> int:
        """Defect classes of which a limit could be promised."""
        assert self.promisable is not None
        return sum(value <= limit for value in self.promisable.limits.values())

    def facts(self) -> dict[str, Any]:
        """The smallest limit of each class."""
        if self.promisable is None:
            return {}
        return {
            "promises": {
                "normal": self.normal,
                "calibrating": self.promisable.counts,
                "smallest_limit": self.promisable.limits,
                "confidence": self.promisable.confidence,
            }
        }
