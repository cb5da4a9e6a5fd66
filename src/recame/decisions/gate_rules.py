"""The rules of the gate: what a new model has to show before it replaces an old one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from recame.contracts import BoolArray, FloatArray, IntArray
from recame.errors import ConfigError
from recame.names import quoted

#: Exit codes of the command for each verdict.
PASSED, BLOCKED, CANNOT_TELL = 0, 1, 3

#: Share of the risk of blocking an equally good model that the strict rows get.
_STRICT_SHARE = 0.9


@dataclass(frozen=True)
class GateRules:
    """What a new model has to show.

    Attributes:
        confidence: needed to show that a row is not worse; 1 - confidence is also the risk of
            blocking an equally good model. In (0.5, 1).
        escape_margin: by how much the share of defects that escape may rise; in [0, 1).
        accuracy_margin: by how much balanced accuracy and a class's recall may fall; in [0, 1).
        critical: classes whose escapes block as soon as they are shown to rise.
        least_images: a row with fewer images never passes.
        products: whether each product is checked as well.
        every_row: whether each class and product has to be shown not to be worse.
    """

    confidence: float = 0.95
    escape_margin: float = 0.02
    accuracy_margin: float = 0.02
    critical: tuple[str, ...] = ()
    least_images: int = 30
    products: bool = False
    every_row: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        self._need_number("confidence", 0.5, 1.0, open_below=True)
        self._need_number("escape_margin", 0.0, 1.0)
        self._need_number("accuracy_margin", 0.0, 1.0)
        for name in ("products", "every_row"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise _wrong(name, value, "it is a yes-or-no rule", "Write true or false")
        least = self.least_images
        if isinstance(least, bool) or not isinstance(least, int) or least < 1:
            raise _wrong("least_images", least, "it counts images", "Give a whole number from 1")
        if not all(isinstance(name, str) for name in self.critical):
            critical = list(self.critical)
            raise _wrong("critical", critical, "it takes class names", "List names of classes")

    def _need_number(self, name: str, low: float, high: float, *, open_below: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value < high or (open_below and value == low):
            below = "above" if open_below else "from"
            raise _wrong(
                name, value, "it is a share", f"Give a number {below} {low} to below {high}"
            )

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> GateRules:
        """Make rules from the values of a file; a rule that is left out keeps its default.

        Args:
            facts: names of the attributes above and their values; `critical` is a list.

        Raises:
            ConfigError: a name is unknown, or a value is not possible.
        """
        known = [field.name for field in fields(cls)]
        unknown = [str(name) for name in facts if name not in known]
        if unknown:
            raise ConfigError(
                f"The gate has no rule {', '.join(map(quoted, unknown))}, so it would be ignored. "
                f"Its rules are {', '.join(known)}."
            )
        given = dict(facts)
        if "critical" in given:
            critical = given["critical"]
            if not isinstance(critical, list | tuple):
                raise _wrong("critical", critical, "it must be a list", "Give a list of names")
            given["critical"] = tuple(critical)
        return cls(**given)


def verdicts(
    rules: GateRules,
    change: tuple[FloatArray, FloatArray],
    p_values: FloatArray,
    images: IntArray,
    margins: FloatArray,
    strict: BoolArray,
) -> tuple[IntArray, FloatArray]:
    """Decide the verdicts of R rows together, by the rules of `recame.decisions.gate`.

    Args:
        rules: confidence and least images.
        change: lower and upper ends (..., R) of how much worse each row became.
        p_values: (..., R) of the null hypothesis that the row is no worse.
        images: (R,) images of each row.
        margins: (R,) by how much each row may become worse.
        strict: (R,) rows that block if they are worse at all; must hold both True and False.

    Returns:
        Verdict codes (..., R), and the p-values adjusted over the rows.
    """
    adjusted = _holm(p_values, strict)
    shown = (images >= rules.least_images) & (change[1] < margins)
    worse = (adjusted <= 1 - rules.confidence) & (strict | (change[0] > margins))
    codes: IntArray = np.where(shown, PASSED, np.where(worse, BLOCKED, CANNOT_TELL))
    return codes, adjusted


def overall(codes: IntArray, required: BoolArray) -> IntArray:
    """Combine the rows' verdict codes into one code (...).

    Args:
        codes: (..., R).
        required: (R,) rows that have to pass for the model to pass.
    """
    is_open = ((codes == CANNOT_TELL) & required).any(-1)
    blocked = (codes == BLOCKED).any(-1)
    together: IntArray = np.where(blocked, BLOCKED, np.where(is_open, CANNOT_TELL, PASSED))
    return together


def _holm(p_values: FloatArray, strict: BoolArray) -> FloatArray:
    """Adjust p-values (..., R) by Holm's method with weights (1979)."""
    shares = np.array([1 - _STRICT_SHARE, _STRICT_SHARE]) / np.bincount(strict, minlength=2)
    weights = shares[strict.astype(np.int64)]
    weighted = p_values / weights
    order = np.argsort(weighted, axis=-1, kind="stable")
    remaining = np.cumsum(weights[order][..., ::-1], -1)[..., ::-1]
    stepped = np.maximum.accumulate(np.take_along_axis(weighted, order, -1) * remaining, -1)
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), -1)
    return adjusted


def _wrong(name: str, value: object, why: str, remedy: str) -> ConfigError:
    return ConfigError(f"The gate's {name} is {value!r}, but {why}. {remedy}.")
