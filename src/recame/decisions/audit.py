"""The audit: people look at a random share of all images, and a monitor raises an alarm.

Nobody sees what a model releases. Its escapes become visible only if people also look at images
that the score did not choose. A hash of an image's content decides whether it is audited, so nobody
chooses the images, and drawing again gives the same ones. Escapes are counted among the audited
images that the model would have released. The alarm is raised if they come more often than
promised.

The evidence is a bet at fair odds against the promise (Shafer, JRSS-A 2021; Waudby-Smith and
Ramdas, JRSS-B 2024). Each bet assumes that from some image on the rate is p, above the limit q.
After each image, its stake is multiplied by p / q if the image escaped, and by (1 - p) / (1 - q) if
not. While the rate is at most q, no stake is expected to grow. The stakes are spread over several
rates and over every image as a possible start (as in Shiryaev, Theory of Probability 1963, but with
a prior that decays as slowly as possible, since the time of a change is unknown). Without this, the
bets would first have to win back what they lost in good months. By Ville's inequality, the sum of
the stakes ever reaches 1 / risk with a probability of at most the risk, however often one looks.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recame.contracts import BoolArray, FloatArray
from recame.errors import ConfigError, DataError

_SCHEMA = 1

#: Rates that are bet on, as multiples of the limit, with equal stakes.
RATIOS = np.array([1.5, 2.0, 3.0, 6.0])
#: Images whose factors are multiplied at once, so that the products do not overflow.
_AT_ONCE = 128
#: A stake is capped here.
_RICH = 1e100

_SHA256 = re.compile(r"[0-9a-f]{64}")


def audited(digests: Sequence[str], share: float, salt: str) -> BoolArray:
    """Draw the images that go to people, whatever their score.

    The draw depends only on an image's content: the same image is always drawn or never,
    whichever other images it comes with. The images of a smaller share are also in a larger one.

    Args:
        digests: SHA-256 of each of N files, as hexadecimal digits.
        share: of the images that is drawn, in [0, 1].
        salt: another salt draws other images. Keep it secret if the draw must stay secret.

    Returns:
        (N,).

    Raises:
        ConfigError: the share is not in [0, 1].
        DataError: a digest is not a SHA-256.

    Examples:
        >>> digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(6)]
        >>> audited(digests, 0.5, "line 3").tolist()
        [False, False, True, False, True, False]
    """
    need_share("share of audited images", share, closed=True)
    prefix = hashlib.sha256(salt.encode() + b"\0")
    drawn = np.empty(len(digests), np.uint64)
    for row, digest in enumerate(digests):
        lower = digest.lower()
        if not _SHA256.fullmatch(lower):
            raise DataError(
                f"{digest!r} is no SHA-256 of 64 hexadecimal digits, so it is not known which "
                "image it stands for. Give the checksum of the file's content."
            )
        mixed = prefix.copy()
        mixed.update(lower.encode())
        drawn[row] = (
            int.from_bytes(mixed.digest()[:8], "big") >> 11
        )  # a float holds 53 bits exactly
    found: BoolArray = drawn * 2.0**-53 < share
    return found


def evidence(
    stakes: FloatArray, seen: int, escaped: BoolArray, limit: float
) -> tuple[FloatArray, FloatArray]:
    """Update the bets with the next images of one stream, or of several.

    Args:
        stakes: (..., 4) current value of the bets; zeros at the start.
        seen: number of images so far.
        escaped: (..., n) whether each of the next images escaped, in order.
        limit: the promised rate, in (0, 1).

    Returns:
        The new stakes, and e-values (..., n) after each image.
    """
    rates = np.minimum(limit * RATIOS, (1 + limit) / 2)
    won, lost = np.log(rates / limit), np.log((1 - rates) / (1 - limit))
    values = np.empty(escaped.shape)
    for start in range(0, escaped.shape[-1], _AT_ONCE):
        part = escaped[..., start : start + _AT_ONCE, None]
        begins = seen + start + 1 + np.arange(part.shape[-2])
        joining = (_waiting(begins) - _waiting(begins + 1))[:, None] / len(RATIOS)
        steps = np.where(part, won, lost)
        grown = np.cumsum(steps, -2)
        entered = np.cumsum(joining * np.exp(steps - grown), -2)
        worth = np.minimum(np.exp(grown) * (stakes[..., None, :] + entered), _RICH)
        values[..., start : start + _AT_ONCE] = worth.sum(-1) + _waiting(begins + 1)
        stakes = worth[..., -1, :]
    return stakes, values


def _waiting(image: FloatArray | Any) -> FloatArray:
    """Share of the stakes that start at the given image, counted from 1, or later."""
    share: FloatArray = 1 / (1 + np.log(image))
    return share


@dataclass
class EscapeMonitor:
    """Monitor the escapes among audited images that the model would have released.

    Attributes:
        limit: the rate of escapes that was promised, in (0, 1).
        risk: probability that a stream which keeps the promise ever raises the alarm.
        images: number of audited and released images so far.
        escapes: number of them that escaped.
        alarmed_at: image, counted from 1, at which the alarm was raised; None: it was not. Once
            raised, the alarm stays.

    Examples:
        >>> monitor = EscapeMonitor(limit=0.02, risk=0.05)
        >>> monitor.add(np.arange(300) % 10 == 9)
        >>> monitor.alarm, monitor.alarmed_at, monitor.escapes
        (True, 50, 30)
    """

    limit: float
    risk: float = 0.05
    images: int = 0
    escapes: int = 0
    alarmed_at: int | None = None
    _stakes: FloatArray | None = None

    def __post_init__(self) -> None:
        """Check the limit and the risk."""
        need_share("promised rate of escapes", self.limit)
        need_share("risk of a false alarm", self.risk)
        if self._stakes is None:
            self._stakes = np.zeros(len(RATIOS))

    def add(self, escaped: BoolArray) -> None:
        """Add the next images.

        Args:
            escaped: (n,) whether people found a defect on each image, in order.
        """
        assert self._stakes is not None
        self._stakes, values = evidence(self._stakes, self.images, escaped, self.limit)
        if self.alarmed_at is None:
            reached = np.flatnonzero(values >= 1 / self.risk)
            self.alarmed_at = self.images + 1 + int(reached[0]) if len(reached) else None
        self.images += len(escaped)
        self.escapes += int(escaped.sum())

    @property
    def e_value(self) -> float:
        """Evidence against the promise: the bets' current value for a stake of 1."""
        assert self._stakes is not None
        return float(self._stakes.sum() + _waiting(self.images + 1))

    @property
    def alarm(self) -> bool:
        """Whether the evidence has ever reached 1 / risk."""
        return self.alarmed_at is not None

    def interval(self) -> tuple[float, float]:
        """Return bounds of the rate that hold at all times together, except with the risk.

        A rate is excluded once a bet spread over all rates by Jeffreys' prior has won 1 / risk
        against it (Robbins, Annals of Mathematical Statistics 1970). The bounds hold for a constant
        rate. For a changing rate they describe roughly the mean so far, without a promise.
        """
        hits, misses = self.escapes, self.images - self.escapes
        spread = _log_beta(hits + 0.5, misses + 0.5) - _log_beta(0.5, 0.5)
        most = math.log(1 / self.risk) - spread

        def end(outside: float) -> float:
            inside = hits / self.images
            for _ in range(60):
                rate = (outside + inside) / 2
                kept = -hits * math.log(rate) - misses * math.log1p(-rate) < most
                outside, inside = (outside, rate) if kept else (rate, inside)
            return outside

        return end(0.0) if hits else 0.0, end(1.0) if misses else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the state as values for JSON; `from_dict` continues from it."""
        assert self._stakes is not None
        return {
            "schema": _SCHEMA,
            "limit": self.limit,
            "risk": self.risk,
            "images": self.images,
            "escapes": self.escapes,
            "alarmed_at": self.alarmed_at,
            "stakes": self._stakes.tolist(),
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> EscapeMonitor:
        """Continue from the state that `to_dict` returned.

        Raises:
            DataError: the state has another schema, or is damaged.
        """
        stakes = np.array(facts.get("stakes") or (), np.float64)
        if facts.get("schema") != _SCHEMA or stakes.shape != RATIOS.shape:
            raise DataError(
                f"The monitor's state has schema {facts.get('schema')!r} and the stakes "
                f"{stakes.tolist()}, but this version needs schema {_SCHEMA} and "
                f"{len(RATIOS)} stakes. Begin a new monitor, or use the version that wrote it."
            )
        known = {name: facts[name] for name in ("limit", "risk", "images", "escapes", "alarmed_at")}
        return cls(**known, _stakes=stakes)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def need_share(what: str, value: float, *, closed: bool = False) -> None:
    """Refuse a value that is not a share.

    Args:
        what: name of the value, for the error.
        value: above 0 and below 1.
        closed: whether 0 and 1 are allowed too.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value <= 1 if closed else 0 < value < 1):
        between = "from 0 to 1" if closed else "between 0 and 1"
        raise ConfigError(f"The {what} is {value!r}, which is no share. Give a number {between}.")
