"""Choose the phase of a run that is kept, and fit its calibration: both on `val`.

`val` has only a few images of each rare class.
"""

from __future__ import annotations

import math

import numpy as np

from recame.contracts import BoolArray, Predictions
from recame.data.file_groups import group_of_each
from recame.data.splits import CALIBRATE
from recame.decisions.calibration import (
    Calibration,
    calibrated_predictions,
    fit_calibration,
    save_calibration,
    why_plain,
)
from recame.inference.device import judging_precision
from recame.inference.forward import steps_of_views
from recame.inference.predict import Forwarding, predict_split
from recame.metrics.evaluation import evaluate_as_configured
from recame.metrics.statistics import balanced_accuracy, class_means, standard_error
from recame.models import MultiExpertClassifier, save_checkpoint
from recame.names import counted
from recame.progress import say
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.candidates import Candidates
from recame.training.phases.certainty import choice_words, loss_words, too_dear_words
from recame.training.phases.posthoc import without_prior
from recame.training.phases.price import (
    NOMINAL_MACS_PER_S,
    Option,
    affordable,
    buy,
    log_losses,
    macs,
)
from recame.training.reserve import most_views, opens_views

#: Candidate -> another one and the number of standard errors by which it must be better than that
#: one. It must also be better than `joined` (docs/decisions/0008): so where the cost of an answer
#: does not matter, the probe alone is kept only if fine-tuning failed.
MARGINS = {"probe": ("finetune", 1.5), "joined_first": ("joined", 0.5)}


def keep_best(run: OngoingRun, phases: dict[str, MultiExpertClassifier]) -> OngoingRun:
    """Evaluate the phases on `val`, alone and as an ensemble; keep one, with its calibration.

    Returns:
        The run, with as many views in test-time augmentation as are worth their cost.
    """
    candidates = Candidates(without_prior(run, phases), ensembles=run.config.judges_joined)
    return (_keep_by_val if "val" in run.data.splits else _keep_unseen)(run, candidates)


def _keep_unseen(run: OngoingRun, candidates: Candidates) -> OngoingRun:
    """Keep a candidate without `val`, which would tell how good each is."""
    chosen = "joined" if run.config.judges_joined else candidates.last
    if run.config.run.keep != "joined" and candidates.last == "retrained":
        chosen = candidates.last  # do not discard a requested phase without evaluation
    say(run.console, f"No val split to choose by: {chosen} is kept.")
    run.folder.explain([f"kept = {chosen}: no val split to choose by, so nothing tells"])
    model = candidates.network(chosen)
    views = _affordable(run, model, most_views(run))
    run = _with_views(run, views, f"no val to ask{_within(run)}")
    save_checkpoint(run.folder.path, model, run.data.label_space)
    run.folder.update_json("phases.json", {"kept": chosen})
    _calibrate(run, None)
    return run


def _keep_by_val(run: OngoingRun, candidates: Candidates) -> OngoingRun:
    """Keep the candidate and the number of views that `val` chooses."""
    settings, space, most = run.config.evaluation, run.data.label_space, most_views(run)
    how: Forwarding = {
        "num_views": most,
        "batch_size": settings.batch_size,
        "device": run.device,
        "precision": judging_precision(run.folder, run.config, run.device),
    }
    found = candidates.predict(run.data, "val", **how)
    predicted = {name: found[Option(name, most)] for name in candidates.names}
    chosen = "joined" if run.config.judges_joined else candidates.last
    if run.config.run.keep.startswith("best"):
        chosen = choose(predicted)
    options, too_dear = _options(run, candidates, Option(chosen, most))
    losses, dear = (
        {option: log_losses(found[option]) for option in each} for each in (options, too_dear)
    )
    target = predicted[chosen].target
    option = buy(losses, target)
    if option != Option(chosen, most):
        run = _with_views(run, option.views, f"on val no more of them pays{_within(run)}")
    model, kept = candidates.network(option.network), found[option]
    if settings.weighting != "mean":
        # Weights are learned on the evaluated images, for each network.
        kept = predict_split(model, run.data, "val", weighting=settings.weighting, **how)
    right = {name: _right(judged) for name, judged in predicted.items()}
    why = [
        loss_words(option, losses, target),
        too_dear_words(option, losses, dear, target, settings.least_images_per_s),
        choice_words(option.network, right, target),
    ]
    _tell(run, option, "; ".join(filter(None, why)), _accuracy(kept))
    save_checkpoint(run.folder.path, model, space)
    calibration = _calibrate(run, kept)
    evaluation = evaluate_as_configured(
        calibrated_predictions(kept, calibration), space, run.config
    )
    run.folder.update_json("metrics.json", {"val": evaluation.to_dict()})
    accuracies = {name: _accuracy(judged) for name, judged in predicted.items()}
    phases = {"val_balanced_accuracy": accuracies, "kept": option.network}
    run.folder.update_json("phases.json", phases)
    return run


def _tell(run: OngoingRun, kept: Option, why: str, score: float) -> None:
    """Note the reason in the run folder, and say what is kept."""
    run.folder.explain([f"kept = {kept.network}: {why}"])
    views = counted(kept.views, "view")
    say(run.console, f"{why[0].upper()}{why[1:]}. Kept: {kept.network}, {views} ({score:.3f})")


def _options(
    run: OngoingRun, candidates: Candidates, whole: Option
) -> tuple[list[Option], list[Option]]:
    """What may be kept: `whole`, fewer views, and other networks if they may be.

    Returns:
        The options within the limit of cost, cheapest first, and those that it rules out.
    """
    settings = run.config.evaluation
    if settings.least_images_per_s is None or settings.weighting != "mean":
        return [whole], []
    names = [whole.network]
    if run.config.judges_joined and run.config.run.keep == "best_on_val":
        # `joined_first` has to be better than `joined` first, as `choose` says.
        names = [n for n in candidates.names if n != "joined_first" or n == whole.network]
    cost = {name: macs(candidates.network(name)) for name in names}
    steps = steps_of_views(whole.views) if opens_views(run) else [whole.views]
    options = [Option(name, views) for name in names for views in steps]
    allowed = affordable({each: each.views * cost[each.network] for each in options}, _limit(run))
    return allowed, [each for each in options if each not in allowed]


def _affordable(run: OngoingRun, model: MultiExpertClassifier, most: int) -> int:
    """The largest number of views within the limit, if there is no `val` to compare them."""
    if run.config.evaluation.least_images_per_s is None or not opens_views(run):
        return most
    cost, limit = macs(model), _limit(run)
    return max([views for views in steps_of_views(most) if views * cost <= limit], default=1)


def _limit(run: OngoingRun) -> float:
    """Largest cost of an answer."""
    least = run.config.evaluation.least_images_per_s
    return math.inf if not least or run.device.type != "cpu" else NOMINAL_MACS_PER_S / least


def _within(run: OngoingRun) -> str:
    """The limit of the cost, as the end of a reason; empty if there is none."""
    if math.isinf(_limit(run)):
        return ""
    return f", within evaluation.least_images_per_s = {run.config.evaluation.least_images_per_s:g}"


def _with_views(run: OngoingRun, views: int, why: str) -> OngoingRun:
    if views == run.config.evaluation.views:
        return run
    config = run.config.updated({"evaluation.views": views})
    return run.decided(config, [f"evaluation.views = {views}: {why}"])


def _calibrate(run: OngoingRun, val: Predictions | None) -> Calibration:
    """Fit the calibration for all later answers of the network that is kept."""
    set_aside = CALIBRATE in run.data.splits
    calibration = fit_calibration(
        val,
        run.folder.answers(run.config),
        plain=why_plain(run.data.label_space.normal, set_aside=set_aside),
        groups=None if val is None else group_of_each(val.table, run.config.data.group_by),
    )
    save_calibration(calibration, run.folder.decisions_path)
    say(run.console, calibration.sentence())
    return calibration


def choose(predicted: dict[str, Predictions]) -> str:
    """The candidate to keep.

    The one that is kept where the cost of an answer does not matter. Where it does, `_options` adds
    the other networks, and the log loss decides (`price.buy`).

    With a few images of a class in `val`, the best score may be luck. `joined`, the ensemble of
    the probe and the fine-tuned network, is the most robust if one of them is weak. So it is kept,
    unless another candidate is better on `val` by the margin of `MARGINS`. Without `joined`, the
    most accurate candidate is kept. A small `val` has few different accuracies, so the balanced log
    loss decides ties.

    Args:
        predicted: candidate -> its predictions of val, the same images for all.
    """
    scores = {name: (_accuracy(found), -_balanced_loss(found)) for name, found in predicted.items()}
    if "joined" not in scores:
        return max(scores, key=lambda name: scores[name])

    def beats(name: str, other: str, margin: float) -> bool:
        error = standard_error(_right(predicted[name]), _right(predicted[other]), target)
        return scores[name][0] - scores[other][0] > margin * error

    target = predicted["joined"].target
    better = [
        name
        for name in scores
        if beats(name, "joined", 0.0) and beats(name, *MARGINS.get(name, ("joined", 0.0)))
    ]
    return max(better, key=lambda name: scores[name], default="joined")


def _accuracy(predictions: Predictions) -> float:
    return balanced_accuracy(_right(predictions), predictions.target)


def _right(predictions: Predictions) -> BoolArray:
    """(N,) whether each image is classified correctly; false if its scores are not numbers."""
    called = predictions.probabilities.argmax(1) == predictions.target
    right: BoolArray = called & np.isfinite(predictions.probabilities).all(1)
    return right


def _balanced_loss(predictions: Predictions) -> float:
    """Mean over the classes of the mean negative log probability of the true class."""
    target = predictions.target
    right = np.take_along_axis(predictions.probabilities, target[:, None], 1)[:, 0]
    return float(class_means(-np.log(np.fmax(right, 1e-7)), target).mean())
