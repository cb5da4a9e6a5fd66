"""What decisions could promise of these classes: told before training, by counting alone."""

from __future__ import annotations

from typing import Any

from recame.decisions.exact import images_needed
from recame.decisions.promises import promisable
from recame.inspection.check import Check, SetFinding
from recame.label_space import likely_normal
from recame.names import counted, quoted

#: Share of the images that would calibrate, and the escape limits that are told.
_SHARE, _WISHES = 0.2, (0.05, 0.1)
#: The limit whose price in images is told.
_STRICT = 0.02


class Promises(Check):
    """Which escape limits a fifth of the images, set aside, could promise."""

    place = 9

    def find(self) -> None:
        """Count, if a class looks like the normal one."""
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
        """What could be promised, and what more would take."""
        found = self.promisable
        if found is None or self.normal is None:
            return []
        told = [
            f"{limit:.0%} of {self._classes(limit)} of {len(found.counts)}" for limit in _WISHES
        ]
        needed = images_needed(_STRICT, found.risk)
        assert needed is not None  # the limit is above 0
        text = (
            f"{quoted(self.normal)} looks like the normal class. A fifth of these images, set "
            f"aside, could promise escapes of at most {', and '.join(told)} defect classes "
            f"({found.confidence:.0%}, all together); {_STRICT:.0%} takes "
            f"{counted(needed)} of each class that chose nothing."
        )
        action = (
            f"Name it with --set data.normal_class={self.normal}; label fresh images of the "
            "classes that matter most, and fit decisions to them: recame tune."
        )
        return [SetFinding("promises", "note", "What could be promised", text, action)]

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
