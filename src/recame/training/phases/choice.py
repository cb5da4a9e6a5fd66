"""Choose the phase of a run that is kept, and fit its calibration: both on `val`.

`val` has only a few images of each rare class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recame.config import SYMMETRIES
from recame.contracts import BoolArray, ExpertOutput, Predictions
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
from recame.inference.predict import predict_groups, predict_split
from recame.metrics.evaluation import evaluate_as_configured
from recame.metrics.statistics import balanced_accuracy, class_means, standard_error
from recame.models import MultiExpertClassifier, save_checkpoint
from recame.names import counted
from recame.progress import say
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.certainty import choice_words
from recame.training.phases.posthoc import without_prior
from recame.training.phases.price import NOMINAL_MACS_PER_S, Option, buy, macs

#: Candidate -> another one and the number of standard errors by which it must be better than that
#: one. It must also be better than `joined` (docs/decisions/0008): so the probe alone is kept only
#: if fine-tuning failed.
MARGINS = {"probe": ("finetune", 1.5), "joined_first": ("joined", 0.5)}


def keep_best(run: OngoingRun, candidates: dict[str, MultiExpertClassifier]) -> OngoingRun:
    """Evaluate the phases on `val`, alone and as an ensemble; keep one, with its calibration.

    Returns:
        The run, with as many views in test-time augmentation as are worth their cost.
    """
    settings, space = run.config.evaluation, run.data.label_space
    candidates = without_prior(run, candidates)
    last = list(candidates)[-1]
    chosen = "joined" if run.config.judges_joined else last
    most = _most_views(run)
    if "val" not in run.data.splits:
        if run.config.run.keep != "joined" and last == "retrained":
            chosen = last  # do not discard a requested phase without evaluation
        say(run.console, f"No val split to choose by: {chosen} is kept.")
        run.folder.explain([f"kept = {chosen}: no val split to choose by, so nothing tells"])
        run = _with_views(
            run,
            _affordable(run, _network(candidates, chosen), most),
            f"no val to ask{_within(run)}",
        )
        save_checkpoint(run.folder.path, _network(candidates, chosen), space)
        run.folder.update_json("phases.json", {"kept": chosen})
        _calibrate(run, None)
        return run
    words: dict[str, Any] = {
        "num_views": most,
        "batch_size": settings.batch_size,
        "device": run.device,
        "precision": judging_precision(run.folder, run.config, run.device),
    }
    side_by_side = _SideBySide(candidates.values())
    groups = _groups(candidates, pairs=run.config.judges_joined)
    found = predict_groups(side_by_side, run.data, "val", groups, **words)
    predicted = {name: found[name, most] for name in groups}
    if run.config.run.keep.startswith("best"):
        chosen = choose(predicted)
    option = _bought(run, candidates, found, Option(chosen, most))
    if option != (chosen, most):
        run = _with_views(run, option.views, f"on val no more of them pays{_within(run)}")
        chosen = option.network
    model, kept = _network(candidates, chosen), found[option]
    if (
        settings.weighting != "mean"
    ):  # weights are learned on the evaluated images, for each network
        kept = predict_split(model, run.data, "val", weighting=settings.weighting, **words)
    accuracies = {name: _accuracy(judged) for name, judged in predicted.items()}
    right = {name: _right(judged) for name, judged in predicted.items()}
    why = choice_words(chosen, right, kept.target)
    run.folder.explain([f"kept = {chosen}: {why}"])
    views = counted(option.views, "view")
    said = f"{why[0].upper()}{why[1:]}. Kept: {chosen}, {views} ({_accuracy(kept):.3f})"
    say(run.console, said)
    save_checkpoint(run.folder.path, model, space)
    calibration = _calibrate(run, kept)
    evaluation = evaluate_as_configured(
        calibrated_predictions(kept, calibration), space, run.config
    )
    run.folder.update_json("metrics.json", {"val": evaluation.to_dict()})
    run.folder.update_json("phases.json", {"val_balanced_accuracy": accuracies, "kept": chosen})
    return run


def _bought(
    run: OngoingRun,
    candidates: dict[str, MultiExpertClassifier],
    found: dict[tuple[str, int], Predictions],
    whole: Option,
) -> Option:
    """The cheapest option that is good enough: fewer views, or one network of the ensemble."""
    settings = run.config.evaluation
    if settings.least_images_per_s is None or settings.weighting != "mean":
        return whole
    names = [whole.network]
    if run.config.judges_joined and run.config.run.keep == "best_on_val":
        names = list(dict.fromkeys([*candidates, "joined", whole.network]))
    cost = {name: macs(_network(candidates, name)) for name in names}
    steps = steps_of_views(whole.views) if _open_views(run) else [whole.views]
    options = [Option(name, views) for name in names for views in steps]
    prices = {option: option.views * cost[option.network] for option in options}
    return buy({option: found[option] for option in options}, prices, _limit(run))


def _affordable(run: OngoingRun, model: MultiExpertClassifier, most: int) -> int:
    """The largest number of views within the limit, if there is no `val` to compare them."""
    if run.config.evaluation.least_images_per_s is None or not _open_views(run):
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


def _open_views(run: OngoingRun) -> bool:
    """Whether the number of averaged views is open."""
    return run.folder.asked().evaluation.views == "auto"


def _most_views(run: OngoingRun) -> int:
    """Largest number of views; a run that was killed here may have chosen fewer already."""
    symmetry = run.config.augment.symmetry
    return SYMMETRIES[symmetry] if _open_views(run) else int(run.config.evaluation.views)


def _with_views(run: OngoingRun, views: int, why: str) -> OngoingRun:
    if views == run.config.evaluation.views:
        return run
    reason = f"evaluation.views = {views}: {why}"
    run = replace(run, config=run.config.updated({"evaluation.views": views}))
    run.folder.explain([reason])
    say(run.console, f"  {reason}")
    run.folder.save_config(run.config)
    return run


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


class _SideBySide(nn.Module):
    """The experts of several networks, as one network."""

    def __init__(self, models: Iterable[MultiExpertClassifier]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> ExpertOutput:
        """Images (B, C, H, W) -> logits and features of all experts, in order."""
        outputs = [model(images) for model in self.models]
        logits, features = ([getattr(o, name) for o in outputs] for name in ("logits", "features"))
        return ExpertOutput(torch.cat(logits, 1), torch.cat(features, 1))


def _groups(
    candidates: dict[str, MultiExpertClassifier], *, pairs: bool
) -> dict[str, tuple[int, ...]]:
    """Candidate -> indices of its experts; with `pairs`, also ensembles of one from each phase."""
    found, first = {}, 0
    for name, model in candidates.items():
        found[name] = tuple(range(first, first + model.num_experts))
        first += model.num_experts
    if pairs:
        probe, finetuned = found["probe"], found["finetune"]
        found["joined"] = (probe[0], finetuned[-1])
        if len(finetuned) > 1:
            found["joined_first"] = (probe[0], finetuned[0])
    return found


def _network(candidates: dict[str, MultiExpertClassifier], name: str) -> MultiExpertClassifier:
    """The network of a candidate's experts."""
    if name in candidates:
        return candidates[name]
    expert = {"joined": -1, "joined_first": 0}[name]
    return candidates["probe"].joined(candidates["finetune"], expert)


def choose(predicted: dict[str, Predictions]) -> str:
    """The candidate to keep.

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
