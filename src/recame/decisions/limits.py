"""The limits that an engineer sets and signs for decisions: `limits.yaml` as a checked value.

```yaml
confidence: 0.95
escape: {default: 0.02, bridge: 0.01}  # largest released share of a defect class; or `smallest`
purity: {default: 0.95}          # smallest share of correct images among those booked as a class
overkill: 0.10                   # largest share of normal images that are not released
review: {share: 0.08, lot: lot}  # of each lot (column `lot`); or per_hour, images_per_hour
unknown_false_alarm: {overall: 0.02, tail: 0.06}  # or `smallest`; `off`
line_mix: {good: 98, bridge: 1, open: 1}  # how often each class comes; or `estimate`
prices: {escape: 500, false_call: 2, review: 1}
audit: 0.01                      # share of all images that people see, whatever the score
group: board                     # the column whose values are counted
signed_by: A. Engineer, 2026-11-30
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from typing import Any

import numpy as np

from recame.contracts import FloatArray
from recame.errors import ConfigError
from recame.names import quoted

#: Instead of a number: the smallest limit that the images can promise.
SMALLEST = "smallest"
#: Instead of a stated mix: estimate the class shares from a lot's predictions, without labels.
ESTIMATE = "estimate"
#: `smallest` does not go below these limits, since that would need higher thresholds.
USUAL_ESCAPE, USUAL_ALARM, USUAL_TAIL_ALARM = 0.02, 0.02, 0.06


@dataclass(frozen=True)
class PerClass:
    """A limit for each class.

    Attributes:
        default: limit of the classes that `of` does not name; None: they have no limit.
        of: class -> limit.
    """

    default: float | str | None = None
    of: dict[str, float] = field(default_factory=dict)

    def limit(self, name: str) -> float | str | None:
        """Return the limit of one class: a share, `smallest`, or None."""
        return self.of.get(name, self.default)

    @property
    def asked(self) -> bool:
        """Whether any class has a limit."""
        return self.default is not None or bool(self.of)


@dataclass(frozen=True)
class Prices:
    """Costs of an escape, a false call and a review, all in one currency."""

    escape: float
    false_call: float
    review: float


@dataclass(frozen=True)
class Review:
    """How many images of each production lot people can look at.

    Attributes:
        share: largest share of a lot's images.
        per_hour: largest number of images that people can look at in an hour; needs
            `images_per_hour`.
        images_per_hour: images that the line makes in an hour.
        lot: column of the production lots in a table of images; None: each table is one lot.
    """

    share: float | None = None
    per_hour: float | None = None
    images_per_hour: float | None = None
    lot: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that would limit nothing."""
        if self.per_hour is not None and not self.images_per_hour:
            raise ConfigError(
                f"review.per_hour is {self.per_hour:g}, but it is not known how many images come "
                "in an hour: give review.images_per_hour (above 0) as well."
            )
        if self.images_per_hour is not None and self.per_hour is None:
            raise ConfigError(
                f"review.images_per_hour is {self.images_per_hour:g}, but it is not known how many "
                "of them people can look at: give review.per_hour as well."
            )
        if self.lot is not None and self.budget is None:
            raise ConfigError(
                f"review.lot is {self.lot!r}, but nothing limits how many images of a lot people "
                "see: give review.share, or review.per_hour and review.images_per_hour."
            )

    @property
    def budget(self) -> float | None:
        """Largest share of a lot's images that people look at: the smaller of both limits."""
        shares = [] if self.share is None else [self.share]
        if self.per_hour is not None and self.images_per_hour:
            shares.append(min(1.0, self.per_hour / self.images_per_hour))
        return min(shares, default=None)


@dataclass(frozen=True)
class Limits:
    """The limits that decisions have to keep.

    Attributes:
        confidence: with which all promises of a tuning hold together.
        escape: largest share of each defect class that may be released.
        purity: smallest share of the images automatically booked as a class that belong to it.
        overkill: largest share of normal images that are not released.
        review: how many images people can look at.
        unknown_false_alarm: largest share of known images that may be called unknown; `smallest`:
            the smallest limit that can be promised, if there is a scorer of strangeness; None: no
            image is called unknown.
        tail_false_alarm: the same limit for the tail classes together.
        line_mix: class -> weight on the line; `estimate`: from a lot, without labels; None: as in
            training, or as in the labelled images.
        prices: used to choose among thresholds that keep all promises.
        audit: share of all images that people see, whatever their score.
        group: column of a table whose values are counted instead of images.
        signed_by: who signed, and when.
    """

    confidence: float = 0.95
    escape: PerClass = PerClass(SMALLEST)
    purity: PerClass = PerClass()
    overkill: float | None = None
    review: Review = Review()
    unknown_false_alarm: float | str | None = SMALLEST
    tail_false_alarm: float | str | None = SMALLEST
    line_mix: dict[str, float] | str | None = None
    prices: Prices | None = None
    audit: float = 0.0
    group: str | None = None
    signed_by: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "limits") -> Limits:
        """Make limits from the values of a YAML file.

        Args:
            values: keys and values of the file; a key that is left out has the value of `Limits()`.
            source: name of the file, for errors.

        Raises:
            ConfigError: a key is unknown, or a limit cannot have this value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(
                f"{source} must hold limits by name, found {type(values).__name__}: for instance "
                "escape: {default: 0.02}"
            )
        read = _Reader(source, dict(values))
        escape = read.per_class("escape", PerClass(SMALLEST), smallest=True)
        alarms = read.alarms("unknown_false_alarm")
        prices = read.section("prices", ("escape", "false_call", "review"), most=math.inf)
        if prices and len(prices) < 3:
            missing = {"escape", "false_call", "review"} - prices.keys()
            raise ConfigError(
                f"{source}: prices lack {', '.join(sorted(missing))}, so costs cannot be compared. "
                "Give all three, in one currency."
            )
        limits = cls(
            confidence=read.share("confidence", 0.95, least=0.5, below=True),
            escape=escape,
            purity=read.per_class("purity", PerClass()),
            overkill=read.share("overkill"),
            review=read.review("review"),
            unknown_false_alarm=alarms[0],
            tail_false_alarm=alarms[1],
            line_mix=read.mix("line_mix"),
            prices=Prices(**prices) if prices else None,
            audit=read.share("audit", 0.0),
            group=read.text("group"),
            signed_by=read.text("signed_by"),
        )
        read.refuse_rest()
        return limits

    def to_dict(self) -> dict[str, Any]:
        """Return the limits as values that `from_dict` reads."""
        review = {name: v for name, v in asdict(self.review).items() if v is not None} or None
        alarms = {"overall": self.unknown_false_alarm, "tail": self.tail_false_alarm}
        alarms = {name: value for name, value in alarms.items() if value is not None}
        unknown = SMALLEST if set(alarms.values()) == {SMALLEST} else alarms or False
        told = {
            "confidence": self.confidence,
            "escape": _per_class_dict(self.escape),
            "purity": _per_class_dict(self.purity),
            "overkill": self.overkill,
            "review": review,
            "unknown_false_alarm": unknown,
            "line_mix": self.line_mix,
            "prices": None if self.prices is None else asdict(self.prices),
            "audit": self.audit or None,
            "group": self.group,
            "signed_by": self.signed_by,
        }
        return {name: value for name, value in told.items() if value is not None}

    def check_classes(self, names: Sequence[str], normal: str | None, source: str) -> None:
        """Refuse limits of unknown classes, and limits that need a normal class if there is none.

        Args:
            names: of the C classes.
            normal: the class that may be released.
            source: name of the file, for errors.

        Raises:
            ConfigError: a limit does not fit the classes; the message names it.
        """
        mix = self.line_mix if isinstance(self.line_mix, dict) else {}
        named = {"escape": self.escape.of, "purity": self.purity.of, "line_mix": mix}
        for key, classes in named.items():
            for name in classes:
                if name not in names:
                    raise ConfigError(
                        f"{source}: {key} names the class {name!r}, which the model does not know "
                        f"({', '.join(map(quoted, names[:12]))}): correct its name."
                    )
        if normal is not None and normal in self.escape.of:
            raise ConfigError(
                f"{source}: escape limits are for defects, but {normal!r} is the normal class: use "
                "overkill to limit how many normal images are not released."
            )
        if normal is None and (self.escape != PerClass(SMALLEST) or self.overkill is not None):
            raise ConfigError(
                f"{source}: escape and overkill need a normal class, and this model has none: set "
                f"data.normal_class to one of {', '.join(map(quoted, names[:12]))}."
            )

    def mix(self, names: Sequence[str], usual: FloatArray) -> FloatArray:
        """Return the (C,) shares of the classes on the line; they sum to 1.

        Args:
            names: of the C classes.
            usual: (C,) weights to use if the limits state none.
        """
        weights = np.asarray(usual, np.float64)
        if isinstance(self.line_mix, dict):
            weights = np.array([self.line_mix.get(name, 0.0) for name in names])
        shares: FloatArray = weights / weights.sum()
        return shares


def _per_class_dict(limit: PerClass) -> dict[str, Any] | str | None:
    if not limit.asked:
        return None
    if limit == PerClass(SMALLEST):
        return SMALLEST
    default = {} if limit.default is None else {"default": limit.default}
    return {**default, **limit.of}


class _Reader:
    """Take keys out of a mapping and check their values; keys that are left are unknown."""

    def __init__(self, source: str, values: dict[str, Any]) -> None:
        self._source, self._values = source, values

    def share(
        self,
        key: str,
        default: Any = None,
        *,
        least: float = 0.0,
        most: float = 1.0,
        below: bool = False,
    ) -> Any:
        """Read a number from `least` to `most`; `below`: both ends excluded."""
        value = self._values.pop(key, None)
        if value is None:
            return default
        return self._checked(key, value, least, most, below=below)

    def per_class(self, key: str, default: PerClass, *, smallest: bool = False) -> PerClass:
        """Read one share for all classes, or a share for each."""
        value = self._values.pop(key, None)
        if value is None:
            return default
        if smallest and value == SMALLEST:
            return PerClass(SMALLEST)
        if not isinstance(value, Mapping):
            return PerClass(self._checked(key, value, 0.0, 1.0))
        own = {str(name): limit for name, limit in value.items()}
        rest: float | str | None = own.pop("default", default.default)
        if rest is not None and not (smallest and rest == SMALLEST):
            rest = self._checked(f"{key}.default", rest, 0.0, 1.0)
        of = {name: self._checked(f"{key}.{name}", v, 0.0, 1.0) for name, v in own.items()}
        return PerClass(rest, of)

    def section(
        self, key: str, names: Sequence[str], *, alone: str | None = None, most: float = 1.0
    ) -> dict[str, float]:
        """Read numbers by these names; a single number is the value of `alone`."""
        value = self._values.pop(key, None)
        if value is None:
            return {}
        if alone is not None and not isinstance(value, Mapping):
            value = {alone: value}
        if not isinstance(value, Mapping) or not set(value) <= set(names):
            raise ConfigError(
                f"{self._source}: {key} is {value!r}; it takes {', '.join(names)}, for instance "
                f"{key}: {{{names[0]}: 0.02}}"
            )
        return {str(n): self._checked(f"{key}.{n}", v, 0.0, most) for n, v in value.items()}

    def review(self, key: str) -> Review:
        """Read the review limits, and the column of lots."""
        value = self._values.get(key)
        lot = None
        if isinstance(value, Mapping) and "lot" in value:
            self._values[key] = {name: each for name, each in value.items() if name != "lot"}
            lot = value["lot"]
            if not isinstance(lot, str) or not lot.strip():
                raise ConfigError(
                    f"{self._source}: {key}.lot is {lot!r}; give the name of the column that holds "
                    "the production lots."
                )
        names = ("share", "per_hour", "images_per_hour", "lot")
        found = self.section(key, names, most=math.inf)
        if "share" in found:
            self._checked(f"{key}.share", found["share"], 0.0, 1.0)
        try:
            return Review(**found, lot=lot)
        except ConfigError as error:
            raise ConfigError(f"{self._source}: {error}") from None

    def alarms(self, key: str) -> tuple[float | str | None, float | str | None]:
        """Read the shares overall and of the tail; `smallest` or `off` hold for both."""
        value = self._values.get(key)
        if value is None or value == SMALLEST:
            self._values.pop(key, None)
            return SMALLEST, SMALLEST
        if value is False or value == "off":  # what YAML makes of `off`
            del self._values[key]
            return None, None
        found = self.section(key, ("overall", "tail"), alone="overall")
        return found.get("overall"), found.get("tail")

    def mix(self, key: str) -> dict[str, float] | str | None:
        """Read weights of classes, or `estimate`."""
        value = self._values.pop(key, None)
        if value is None:
            return None
        if value == ESTIMATE:
            return ESTIMATE
        if not isinstance(value, Mapping) or not value:
            raise ConfigError(
                f"{self._source}: {key} is {value!r}; give each class its weight on the line, for "
                f"instance {key}: {{good: 98, bridge: 2}}, or estimate."
            )
        weights = {str(n): self._checked(f"{key}.{n}", v, 0.0, math.inf) for n, v in value.items()}
        if sum(weights.values()) <= 0:
            raise ConfigError(f"{self._source}: the weights of {key} are all 0: no image comes.")
        return weights

    def text(self, key: str) -> str | None:
        """Read a text that is not empty."""
        value = self._values.pop(key, None)
        if value is None:
            return None
        if not str(value).strip():
            raise ConfigError(f"{self._source}: {key} is empty: give it a value or leave it out.")
        return str(value)

    def refuse_rest(self) -> None:
        """Refuse unknown keys: a limit that is not read would not be kept."""
        if self._values:
            hidden = {"tail_false_alarm"}
            raise ConfigError(
                f"{self._source}: {', '.join(map(quoted, map(str, self._values)))} is no limit, "
                "so it would not be kept. The limits are "
                f"{', '.join(f.name for f in fields(Limits) if f.name not in hidden)}."
            )

    def _checked(
        self, key: str, value: object, least: float, most: float, *, below: bool = False
    ) -> float:
        number = isinstance(value, Real) and not isinstance(value, bool)
        fits = number and least <= float(value) <= most  # type: ignore[arg-type]
        if fits and below:
            fits = least < float(value) < most  # type: ignore[arg-type]
        if not fits or not math.isfinite(float(value)):  # type: ignore[arg-type]
            wanted = (
                f"from {least:g} to {most:g}" if math.isfinite(most) else f"of {least:g} or more"
            )
            raise ConfigError(f"{self._source}: {key} is {value!r}; it must be a number {wanted}.")
        return float(value)  # type: ignore[arg-type]
