"""The gate: may a new model replace an old one? Both are compared on the same labelled images.

Each row asks how much worse one figure became: the escapes of a class or of all defects, the recall
of a class, or balanced accuracy. If products are checked, each product has such rows too. Each row
gets one of three verdicts:

- **passed**: it is shown that the row did not become worse by the margin. The upper end of the
  change's one-sided interval lies below the margin (Tango, Statistics in Medicine 1998; for
  balanced accuracy: mean and standard error). A new model passes if *every* required row passes, so
  no correction for their number is needed (Berger, Technometrics 1982): a model that is worse by
  the margin in any of them passes with a probability of at most 1 - confidence.
- **blocked**: it is shown that the row did become worse. An equally good model must seldom be
  blocked by any row, so the null hypothesis is "equally good". It is tested exactly on the images
  on which the models differ (for balanced accuracy: by its standard error), and adjusted over all
  rows by Holm's method with weights (Scandinavian Journal of Statistics 1979). *Strict* rows are
  the escapes of the critical classes, or of all defects if no class is critical. They share nine
  tenths of the risk, and block if they are worse at all. Any other row must also be worse by more
  than the margin to block.
- **cannot tell**: neither is shown, for example because there are few images, or because the two
  models differ on many.

So an escape rate of a critical class that rises by exactly the margin is blocked, because it is
worse. It need not be shown to exceed the margin, which would succeed only once in twenty times. A
change that is shown to be smaller than the margin passes, even if many images show that there is a
change: the margin is what the rules allow.

Required rows are the strict rows, the escapes of all defects, and balanced accuracy over all
products. The other rows can only block, unless `every_row` is set: with forty classes and their
products, some row would always have too few images to show anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from recame.contracts import Array, BoolArray, IntArray
from recame.decisions.flips import Answers, Flip, flips
from recame.decisions.gate_rules import (
    BLOCKED,
    CANNOT_TELL,
    PASSED,
    GateRules,
    overall,
    verdicts,
)
from recame.decisions.paired_rates import change_interval, worse_p_value
from recame.errors import ConfigError, DataError
from recame.metrics.statistics import balanced_accuracy, standard_error
from recame.names import counted, quoted

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["passed", "blocked", "cannot_tell"]

_CODES: dict[Verdict, int] = {"passed": PASSED, "blocked": BLOCKED, "cannot_tell": CANNOT_TELL}
_VERDICTS = {code: verdict for verdict, code in _CODES.items()}

ESCAPES, RECALL, BALANCED = "escapes", "recall", "balanced accuracy"


@dataclass(frozen=True)
class GateRow:
    """One figure that may have become worse.

    Attributes:
        what: `escapes`, `recall` or `balanced accuracy`.
        class_name: None: all defects, or all classes.
        product: None: all products.
        images: number of images that count for the row.
        old: share with the old model, None without images.
        new: share with the new model, None without images.
        difference: new - old, None without images.
        low: lower end of the difference's interval; each end holds with the rules' confidence.
        high: upper end.
        p_value: probability of being this much worse by chance alone, adjusted over all rows.
        strict: whether the row blocks as soon as it is shown to be worse at all.
        required: whether the row has to pass for the model to pass.
        verdict: of this row.
        sentence: the row in words.
    """

    what: str
    class_name: str | None
    product: str | None
    images: int
    old: float | None
    new: float | None
    difference: float | None
    low: float
    high: float
    p_value: float
    strict: bool
    required: bool
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class GateResult:
    """The verdict of the gate.

    Attributes:
        verdict: of all rows together.
        sentence: the verdict in words.
        rows: the rows; those over all products come first.
        flips: images on which the two models differ, worst first.
    """

    verdict: Verdict
    sentence: str
    rows: tuple[GateRow, ...]
    flips: tuple[Flip, ...]

    def __str__(self) -> str:
        """Return the verdict, and each row in a sentence."""
        return "\n".join([self.sentence, *(f"  {row.sentence}" for row in self.rows)])

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a table; `flips` lists the images on which the models differ."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    @property
    def exit_code(self) -> int:
        """0 passed, 1 blocked, 3 cannot tell."""
        return _CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "sentence": self.sentence,
            "rows": [asdict(row) for row in self.rows],
            "flips": [flip._asdict() for flip in self.flips],
        }


def judge(
    rules: GateRules,
    old: Answers,
    new: Answers,
    target: IntArray,
    *,
    images: Sequence[str],
    names: Sequence[str],
    normal_index: int | None,
    products: Sequence[str] | None = None,
) -> GateResult:
    """Decide whether the new model may replace the old one.

    Args:
        rules: what the new model has to show.
        old: decisions of the old model.
        new: decisions of the new model on the same images.
        target: (N,) class indices; images with -1 are left out.
        images: N names.
        names: of the C classes.
        normal_index: index of the normal class, if there is one.
        products: N names; needed if the rules check products.

    Raises:
        ConfigError: a critical class is not among the defects, or products are missing.
        DataError: the arrays do not fit each other, or a normal image escaped.
    """
    _check(rules, old, new, target, images, names, normal_index, products)
    known = np.flatnonzero(target >= 0)
    target = target[known]
    old, new = (Answers(a.escaped[known], a.right[known]) for a in (old, new))
    product_of = None if products is None else np.asarray(products, dtype=object)[known]
    asked = list(_questions(rules, target, names, normal_index, product_of))
    rows = _rows(rules, asked, old, new, target)
    critical = np.isin(names, rules.critical)[target]
    return GateResult(
        *_overall(rows),
        rows,
        flips(old, new, target, [images[i] for i in known.tolist()], names, critical, product_of),
    )


def _check(
    rules: GateRules,
    old: Answers,
    new: Answers,
    target: IntArray,
    images: Sequence[str],
    names: Sequence[str],
    normal_index: int | None,
    products: Sequence[str] | None,
) -> None:
    lengths = {
        len(part) for part in (*old, *new, target, images, images if products is None else products)
    }
    if len(lengths) != 1:
        raise DataError(
            f"The two models' answers have {sorted(lengths)} rows, so they cannot be compared "
            "image by image. Give both models' answers to the same images, in the same order."
        )
    if len(target) and int(target.max()) >= len(names):
        raise DataError(
            f"A label has the index {int(target.max())}, but there are only {len(names)} classes. "
            "Give the names of all classes."
        )
    normal = None if normal_index is None else names[normal_index]
    for name in rules.critical:
        if name not in names or name == normal:
            defects = ", ".join(quoted(other) for other in names if other != normal)
            raise ConfigError(
                f"The gate's critical class {quoted(name)} is not among the defects ({defects}), "
                "so its escapes would not be counted. Correct its name in the gate's rules."
            )
    if rules.products and products is None:
        raise ConfigError(
            "The gate's rules check each product, but no image's product is known. Give a table "
            "with a column `product`, or set the rule `products` to false."
        )
    wrong = int(((old.escaped | new.escaped) & (target == normal_index)).sum())
    if normal_index is not None and wrong:
        raise DataError(
            f"{counted(wrong)} of the normal class {quoted(names[normal_index])} escaped, but only "
            "a defect can escape. Mark as escaped only defects that were released."
        )


class _Question(NamedTuple):
    """A row before it is answered: which images and figure it is about, and how it counts."""

    what: str
    class_name: str | None
    product: str | None
    rows: BoolArray
    strict: bool
    required: bool


def _questions(
    rules: GateRules,
    target: IntArray,
    names: Sequence[str],
    normal_index: int | None,
    product_of: Array | None,
) -> Iterator[_Question]:
    everywhere = np.ones(len(target), np.bool_)
    defect = target != (-1 if normal_index is None else normal_index)
    pooled = not rules.critical  # without critical classes, all defects count as critical
    yield _Question(ESCAPES, None, None, defect, pooled, True)
    for index, name in enumerate(names):
        here = target == index
        if index != normal_index:
            strict = name in rules.critical
            yield _Question(ESCAPES, name, None, here, strict, strict or rules.every_row)
        yield _Question(RECALL, name, None, here, False, rules.every_row)
    yield _Question(BALANCED, None, None, everywhere, False, True)
    if not rules.products or product_of is None:
        return
    for product in sorted(set(product_of.tolist())):
        of_it = product_of == product
        yield _Question(ESCAPES, None, product, of_it & defect, False, rules.every_row)
        for name in rules.critical:
            here = of_it & (target == list(names).index(name))
            yield _Question(ESCAPES, name, product, here, False, rules.every_row)
        yield _Question(BALANCED, None, product, of_it, False, rules.every_row)


def _rows(
    rules: GateRules, asked: list[_Question], old: Answers, new: Answers, target: IntArray
) -> tuple[GateRow, ...]:
    """Answer all questions; here, a positive change means that the new model is worse."""
    images = np.array([question.rows.sum() for question in asked])
    counts = np.array([_discordant(question, old, new) for question in asked])
    low, high = change_interval(counts[:, 0], counts[:, 1], images, rules.confidence)
    p_values = np.array(
        [
            worse_p_value(int(worse), int(better), int(count)) if count else 1.0
            for (worse, better), count in zip(counts, images, strict=True)
        ]
    )
    for i, question in enumerate(asked):
        if question.what == BALANCED and images[i]:
            found = _balanced_change(question.rows, old, new, target, rules.confidence)
            low[i], high[i], p_values[i] = found
    codes, adjusted = verdicts(
        rules,
        (low, high),
        p_values,
        images,
        np.array([_margin(rules, question) for question in asked]),
        np.array([question.strict for question in asked]),
    )
    shares = [_shares(question, old, new, target) for question in asked]
    return tuple(
        _row(
            rules, question, int(count), pair, (float(lowest), float(highest)), float(p), int(code)
        )
        for question, count, pair, lowest, highest, p, code in zip(
            asked, images, shares, low, high, adjusted, codes, strict=True
        )
    )


def _margin(rules: GateRules, question: _Question) -> float:
    return rules.escape_margin if question.what == ESCAPES else rules.accuracy_margin


def _discordant(question: _Question, old: Answers, new: Answers) -> tuple[int, int]:
    """Count the images that are wrong only with the new model, and only with the old one."""
    if question.what == ESCAPES:
        before, now = old.escaped[question.rows], new.escaped[question.rows]
    else:
        before, now = ~old.right[question.rows], ~new.right[question.rows]
    return int((now & ~before).sum()), int((before & ~now).sum())


def _shares(
    question: _Question, old: Answers, new: Answers, target: IntArray
) -> tuple[float, float] | None:
    here = question.rows
    if not here.any():
        return None
    if question.what == BALANCED:
        first, second = (balanced_accuracy(a.right[here], target[here]) for a in (old, new))
        return first, second
    column = 0 if question.what == ESCAPES else 1
    return float(old[column][here].mean()), float(new[column][here].mean())


def _balanced_change(
    here: BoolArray, old: Answers, new: Answers, target: IntArray, confidence: float
) -> tuple[float, float, float]:
    """Interval of the fall of balanced accuracy, and its p-value."""
    before, now, label = old.right[here], new.right[here], target[here]
    fall = balanced_accuracy(before, label) - balanced_accuracy(now, label)
    error = standard_error(before, now, label)
    normal = NormalDist()
    half = normal.inv_cdf(confidence) * error
    p_value = 1 - normal.cdf(fall / error) if fall > 0 else 1.0
    return max(fall - half, -1.0), min(fall + half, 1.0), p_value


def _row(
    rules: GateRules,
    question: _Question,
    images: int,
    shares: tuple[float, float] | None,
    change: tuple[float, float],
    p_value: float,
    code: int,
) -> GateRow:
    low, high = change
    verdict = _VERDICTS[code]
    if question.what != ESCAPES:  # for recall and balanced accuracy a fall is worse
        low, high = -high, -low
    old, new = shares or (None, None)
    text = _subject(question)
    if shares is None:
        text += ": there is no image of it."
    else:
        text += (
            f": {shares[0]:.2%} before, {shares[1]:.2%} now on {counted(images)}, "
            f"{100 * (shares[1] - shares[0]):+.2f} points ({100 * low:+.2f} to {100 * high:+.2f}); "
            f"{_finding(rules, question, verdict, images)}"
        )
    return GateRow(
        question.what,
        question.class_name,
        question.product,
        images,
        old,
        new,
        None if shares is None else shares[1] - shares[0],
        low,
        high,
        p_value,
        question.strict,
        question.required,
        verdict,
        text,
    )


def _subject(question: _Question) -> str:
    text = question.what[0].upper() + question.what[1:]
    if question.class_name is not None:
        text += f" of {quoted(question.class_name)}"
    elif question.what == ESCAPES:
        text += " of all defects"
    return text if question.product is None else f"{text} on product {quoted(question.product)}"


def _finding(rules: GateRules, question: _Question, verdict: Verdict, images: int) -> str:
    points = f"{100 * _margin(rules, question):g} points"
    if verdict == "passed":
        return f"shown not to be worse by {points}."
    if verdict == "blocked":
        return "shown to be worse" + ("." if question.strict else f" by more than {points}.")
    if images < rules.least_images:
        return f"fewer than {counted(rules.least_images)} are too few to tell."
    return f"these images cannot tell whether it is worse by {points}."


def _overall(rows: tuple[GateRow, ...]) -> tuple[Verdict, str]:
    codes = np.array([_CODES[row.verdict] for row in rows])
    verdict = _VERDICTS[int(overall(codes, np.array([row.required for row in rows])))]
    deciding = [row for row in rows if row.verdict == verdict and (row.required or row.strict)]
    deciding = deciding or [row for row in rows if row.verdict == verdict]
    worst = min(deciding, key=lambda row: (row.p_value, row.images)).sentence
    if verdict == "blocked":
        return verdict, f"The new model is worse. {worst}"
    if verdict == "cannot_tell":
        return verdict, f"These images cannot tell whether the new model may be used. {worst}"
    return verdict, "The new model is shown to be no worse than the rules allow."
