"""Fit how the ensemble's logits become probabilities: by a temperature, or by class biases too.

There are three maps, each a special case of the next: one temperature (Guo et al., ICML 2017); a
temperature and a bias for each class (Alexandari, Kundaje and Shrikumar, ICML 2020); a scale and a
bias for each class (vector scaling, Guo et al.). They act on log-probabilities. These are the
logits minus an offset in each row; the offset does not change the softmax, but would matter with a
scale for each class.

Every class has the same weight in the fit, however many images it has. With a bias for each class,
the probabilities are therefore those of a set in which all classes are equally frequent.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from recame.contracts import FloatArray, IntArray
from recame.decisions.temperature import BELIEVED, fit_temperature
from recame.errors import CheckpointError, DataError

Method = Literal["temperature", "bias_corrected", "vector"]
#: From the simplest to the most flexible.
METHODS: tuple[Method, ...] = get_args(Method)

#: Images of each class that a bias for each class needs; a scale as well needs twice as many.
LEAST_IMAGES = 20
#: A more flexible map has to be better by this many standard errors.
ERRORS_ASKED = 1.0

#: Standard deviations of the Gaussian priors: of a class's scale (mean 1) and bias (mean 0).
_SCALE_SPREAD, _BIAS_SPREAD = 0.5, 3.0
#: Lowest log-probability, so that a probability of 0 stays finite.
_FLOOR = -1e4
_MOST_STEPS = 100
_DEALS = 20


@dataclass(frozen=True, eq=False)
class Calibrator:
    """Softmax of `scale * log-probabilities + bias`.

    Attributes:
        method: one of `METHODS`.
        scale: (C,) within `BELIEVED`; all equal except for vector scaling.
        bias: (C,) all 0 for a temperature.
    """

    method: Method
    scale: FloatArray
    bias: FloatArray

    @property
    def temperature(self) -> float:
        """1 / geometric mean of the scales; multiplying by it restores the scale of the logits."""
        return float(np.exp(-np.log(self.scale).mean()))

    def apply(self, logits: FloatArray) -> FloatArray:
        """Return calibrated probabilities (N, C) of logits or log-probabilities (N, C).

        Rows with NaN or an infinite largest logit become NaN. Computed in float64, returned in the
        logits' type, at least float32.

        Raises:
            DataError: the logits have another number of classes.
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.scale):
            raise DataError(
                f"The logits have shape {logits.shape}, but the calibrator has "
                f"{len(self.scale)} classes. Fit it to this model's logits."
            )
        scores = log_probabilities(logits) * self.scale + self.bias
        wanted = np.result_type(logits.dtype, np.float32)
        return np.exp(log_probabilities(scores)).astype(wanted)

    def to_dict(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        return {"method": self.method, "scale": self.scale.tolist(), "bias": self.bias.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibrator:
        """Read what `to_dict` returned.

        Raises:
            CheckpointError: the values were edited or damaged.
        """
        try:
            method = values["method"]
            scale = np.asarray(values["scale"], np.float64)
            bias = np.asarray(values["bias"], np.float64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"The calibrator cannot be read ({error!r}). {_ANEW}") from error
        fits = scale.ndim == 1 and scale.shape == bias.shape
        if method not in METHODS or not fits:
            raise CheckpointError(
                f"The calibrator has method {method!r}, {scale.shape} scales and {bias.shape} "
                f"biases, but must be one of {', '.join(METHODS)} with one scale and one bias per "
                f"class. {_ANEW}"
            )
        if not (np.isfinite(scale).all() and np.isfinite(bias).all() and (scale > 0).all()):
            raise CheckpointError(
                f"The calibrator's scales {scale.tolist()} and biases {bias.tolist()} must be "
                f"numbers, and scales above 0. {_ANEW}"
            )
        return cls(method, scale, bias)


_ANEW = "It was edited or damaged; fit it again."


def log_probabilities(logits: FloatArray) -> FloatArray:
    """Log-softmax over classes, (N, C) float64, at least `_FLOOR`."""
    scores = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf becomes NaN
        scores = scores - scores.max(1, keepdims=True, initial=-np.inf)
    scores = np.maximum(scores, _FLOOR)
    found: FloatArray = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return found


def fit_calibrator(
    logits: FloatArray,
    target: IntArray,
    groups: Sequence[Hashable] | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Calibrator:
    """Fit the simplest map that no more flexible one clearly improves.

    The log loss, with equal weight for each class, is cross-validated for all three maps. A more
    flexible map is taken if its loss is lower by more than `ERRORS_ASKED` standard errors of the
    paired difference. Only a temperature is fitted if a class has fewer than `LEAST_IMAGES` images,
    or if all images of a class are in one group, which leaves none to validate on. Scales need
    twice as many images.

    Args:
        logits: (N, C) of images that did not train the network; rows with NaN or infinite values
            are left out.
        target: (N,) class indices; rows with -1 are left out.
        groups: (N,) group of each image, for example its wafer; the images of a group stay in one
            fold.
        folds: at least 2.
        seed: of the folds.

    Returns:
        Identity if images of fewer than two classes are left.
    """
    scores, target, kept = _usable(logits, target)
    num_classes = scores.shape[1]
    images = np.bincount(target, minlength=num_classes)
    if (images > 0).sum() < 2:
        return Calibrator("temperature", np.ones(num_classes), np.zeros(num_classes))
    method: Method = "temperature"
    tried = METHODS[: 1 + images.min() // LEAST_IMAGES]
    if len(tried) > 1:
        group = _coded(groups, kept)
        fold = _dealt(group, target, num_classes, folds, np.random.default_rng(seed))
        if fold is not None:
            method = _chosen(_held_out_losses(scores, target, fold, tried), target, group)
    return _fitted(scores, target, method, _balanced(target))


def fit_method(
    logits: FloatArray, target: IntArray, method: Method, *, balanced: bool = True
) -> Calibrator:
    """Fit one of `METHODS`.

    A temperature is fitted by `fit_temperature`. The other maps start from it and take Newton steps
    within the bounds of the scales (Bertsekas, SIAM Journal on Control and Optimization 1982); the
    loss is convex. Class scales have a narrow Gaussian prior around 1, class biases a wide one
    around 0; a single scale for all classes has no prior.

    Args:
        logits: (N, C); rows with NaN or infinite values are left out.
        target: (N,) class indices; rows with -1 are left out.
        method: one of `METHODS`.
        balanced: whether every class has the same weight; else every image has.
    """
    scores, target, _ = _usable(logits, target)
    if not len(target):
        return Calibrator(method, np.ones(scores.shape[1]), np.zeros(scores.shape[1]))
    weights = _balanced(target) if balanced else np.full(len(target), 1 / len(target))
    return _fitted(scores, target, method, weights)


def _usable(logits: FloatArray, target: IntArray) -> tuple[FloatArray, IntArray, IntArray]:
    """Log-probabilities and classes of the rows that are used, and the indices of these rows."""
    known = (target >= 0) & np.isfinite(logits.max(1, initial=-np.inf))
    kept = np.flatnonzero(known)
    return log_probabilities(logits[kept]), target[kept], kept


def _balanced(target: IntArray) -> FloatArray:
    """Weights (N,) of images that sum to 1, with the same sum for each class."""
    images = np.bincount(target)
    return 1 / (np.count_nonzero(images) * images[target].astype(np.float64))


class _Form(NamedTuple):
    """The free parameters of a method: `scale, bias = split(spread @ parameters)`."""

    spread: FloatArray
    identity: FloatArray
    low: FloatArray
    high: FloatArray
    ridge: FloatArray


def _form(method: Method, num_classes: int, weights: FloatArray) -> _Form:
    own, none = np.eye(num_classes), np.zeros((num_classes, num_classes))
    scales = own if method == "vector" else np.ones((num_classes, 1))
    spread = np.hstack([np.vstack([scales, np.zeros_like(scales)]), np.vstack([none, own])])
    is_scale = np.arange(spread.shape[1]) < scales.shape[1]
    # 1 / the sum of squared weights is the effective number of images.
    ridge = np.where(is_scale, _SCALE_SPREAD, _BIAS_SPREAD) ** -2.0 * (weights**2).sum()
    return _Form(
        spread,
        is_scale.astype(np.float64),
        np.where(is_scale, 1 / BELIEVED[1], -np.inf),
        np.where(is_scale, 1 / BELIEVED[0], np.inf),
        np.where(is_scale & (method != "vector"), 0.0, ridge),
    )


def _fitted(
    scores: FloatArray, target: IntArray, method: Method, weights: FloatArray
) -> Calibrator:
    """Minimise the weighted log loss of (N, C) log-probabilities."""
    num_classes = scores.shape[1]
    scale = 1 / float(np.clip(fit_temperature(scores, target, weights), *BELIEVED))
    if method == "temperature":
        return Calibrator(method, np.full(num_classes, scale), np.zeros(num_classes))
    form = _form(method, num_classes, weights)
    found = scale * form.identity
    value = _loss(found, scores, target, weights, form)
    for _ in range(_MOST_STEPS):
        slope, curvature = _derivatives(found, scores, target, weights, form)
        held = ((found <= form.low) & (slope > 0)) | ((found >= form.high) & (slope < 0))
        free = np.flatnonzero(~held)
        step = np.zeros_like(found)
        inner = curvature[np.ix_(free, free)] + 1e-12 * np.eye(len(free))
        step[free] = np.linalg.solve(inner, slope[free])
        if slope @ step < 1e-13:  # converged
            break
        share = 1.0
        while share > 1e-9:
            there = np.clip(found - share * step, form.low, form.high)
            lower = _loss(there, scores, target, weights, form)
            if lower <= value - 1e-4 * float(slope @ (found - there)):
                break
            share /= 2
        else:  # rounding allows no further decrease
            break
        found, value = there, lower
    return Calibrator(method, *np.split(form.spread @ found, 2))


def _loss(
    parameters: FloatArray,
    scores: FloatArray,
    target: IntArray,
    weights: FloatArray,
    form: _Form,
) -> float:
    scale, bias = np.split(form.spread @ parameters, 2)
    pull = form.ridge @ (parameters - form.identity) ** 2 / 2
    return float(weights @ _log_losses(scores, target, scale, bias) + pull)


def _log_losses(
    scores: FloatArray, target: IntArray, scale: FloatArray, bias: FloatArray
) -> FloatArray:
    """(N,) minus the log-probability of each image's true class."""
    moved = scores * scale + bias
    top = moved.max(1)
    whole = top + np.log(np.exp(moved - top[:, None]).sum(1))
    losses: FloatArray = whole - moved[np.arange(len(moved)), target]
    return losses


def _derivatives(
    parameters: FloatArray,
    scores: FloatArray,
    target: IntArray,
    weights: FloatArray,
    form: _Form,
) -> tuple[FloatArray, FloatArray]:
    """Gradient (P,) and Hessian (P, P) of `_loss`."""
    scale, bias = np.split(form.spread @ parameters, 2)
    moved = scores * scale + bias
    powers = np.exp(moved - moved.max(1, keepdims=True))
    likely = powers / powers.sum(1, keepdims=True)
    weighted = weights[:, None] * likely
    missed = weighted.copy()
    missed[np.arange(len(target)), target] -= weights
    slope = form.spread.T @ np.concatenate([(missed * scores).sum(0), missed.sum(0)])

    scales, biases = np.split(form.spread, 2)
    square, cross, plain = ((weighted * scores**power).sum(0)[:, None] for power in (2, 1, 0))
    within = scales.T @ (square * scales + cross * biases)
    within += biases.T @ (cross * scales + plain * biases)
    means = (likely * scores) @ scales + likely @ biases
    curvature = within - means.T @ (weights[:, None] * means)
    pulled = slope + form.ridge * (parameters - form.identity)
    return pulled, curvature + np.diag(form.ridge)


def _coded(groups: Sequence[Hashable] | None, kept: IntArray) -> IntArray:
    """Number the groups from 0."""
    if groups is None:
        return np.arange(len(kept))
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(groups[row], len(codes)) for row in kept], np.int64)


def _dealt(
    group: IntArray,
    target: IntArray,
    num_classes: int,
    folds: int,
    generator: np.random.Generator,
) -> IntArray | None:
    """Assign each image to a fold (N,): groups stay whole, each class is spread over the folds.

    Groups are assigned to the folds in turn, class by class; a group with several classes counts
    as its rarest. A few random assignments are tried.

    Returns:
        None if no assignment leaves images of every class outside each fold.
    """
    holds = np.zeros((group.max() + 1, num_classes), np.int64)
    np.add.at(holds, (group, target), 1)
    within = (holds > 0).sum(0)
    if within.min() < 2:
        return None
    rarest = np.where(holds > 0, within, len(group) + 1).argmin(1)
    folds = min(folds, len(holds))
    for _ in range(_DEALS):
        # The largest groups of a class first, so that the folds get similar sizes.
        order = np.lexsort([generator.random(len(holds)), -holds.sum(1), rarest])
        fold = np.empty(len(holds), np.int64)
        fold[order] = np.arange(len(holds)) % folds
        inside = np.zeros((folds, num_classes), np.int64)
        np.add.at(inside, fold, holds)
        if (inside < holds.sum(0)).all():
            return fold[group]
    return None


def _held_out_losses(
    scores: FloatArray, target: IntArray, fold: IntArray, methods: Sequence[Method]
) -> FloatArray:
    """(methods, N) log loss of each image by each method, fitted without the image's fold."""
    losses = np.empty((len(methods), len(target)))
    for part in range(fold.max() + 1):
        out = fold == part
        weights = _balanced(target[~out])
        for row, method in enumerate(methods):
            fitted = _fitted(scores[~out], target[~out], method, weights)
            losses[row, out] = _log_losses(scores[out], target[out], fitted.scale, fitted.bias)
    return losses


def _chosen(losses: FloatArray, target: IntArray, group: IntArray) -> Method:
    """Go through the methods; take each that is better than the last one taken, beyond chance."""
    taken = 0
    for richer in range(1, len(losses)):
        gain, error = _paired(losses[taken] - losses[richer], target, group)
        if gain > ERRORS_ASKED * error:
            taken = richer
    return METHODS[taken]


def _paired(difference: FloatArray, target: IntArray, group: IntArray) -> tuple[float, float]:
    """Mean over classes of the images' differences (N,), and its standard error over groups."""
    weights = _balanced(target)
    means = np.bincount(target, difference) / np.bincount(target)
    of_class = np.unique(np.stack([target, group]), axis=1)[0]
    seen = np.bincount(of_class).astype(np.float64)
    # Corrects the variance for the degree of freedom that the class mean takes.
    apart = weights * (difference - means[target]) * np.sqrt(seen / (seen - 1))[target]
    error = math.sqrt((np.bincount(group, apart) ** 2).sum())
    return float(weights @ difference), error
