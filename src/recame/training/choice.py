"""Which phase of a run is kept: judged on `val`, whose rare classes have a few images each."""

from __future__ import annotations

from typing import Any

import numpy as np

from recame.contracts import Predictions
from recame.data import SplitView
from recame.evaluation import evaluate_predictions, predict_split
from recame.models import MultiExpertClassifier, save_checkpoint
from recame.training.frozen_features import capped_view
from recame.training.ongoing_run import OngoingRun

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]

#: Another candidate must be better than `joined`, and than the one named here by so many standard
#: errors (docs/decisions/0008): the probe alone is kept where fine-tuning failed.
MARGINS = {"probe": ("finetune", 1.5), "joined_first": ("joined", 0.5)}
#: Images of a class that decide; the figures of what is kept are of all.
VAL_PER_CLASS = 100


def keep_best(run: OngoingRun, candidates: dict[str, MultiExpertClassifier]) -> None:
    """Judge the phases on `val`, alone and joined; keep one and write its figures."""
    settings, space = run.config.evaluation, run.data.label_space
    chosen = list(candidates)[-1]
    if run.config.judges_joined:
        chosen = "joined"
        candidates = candidates | _joined(candidates["probe"], candidates["finetune"])
    if "val" not in run.data.splits:
        run.console.print(f"No val split to choose by: {chosen} is kept.")
        save_checkpoint(run.folder.path, candidates[chosen], space)
        return

    def predict(model: MultiExpertClassifier, view: SplitView) -> Predictions:
        return predict_split(
            model,
            run.data,
            view,
            num_views=int(settings.views),
            batch_size=settings.batch_size,
            device=run.device,
            precision=run.precision,
            weighting=settings.weighting,
        )

    whole = run.data.view("val")
    deciding = capped_view(whole, VAL_PER_CLASS, run.config.run.seed)
    predicted = {name: predict(model, deciding) for name, model in candidates.items()}
    if run.config.run.keep.startswith("best"):
        chosen = choose(predicted)
    kept = predicted[chosen]
    if len(deciding) < len(whole):
        kept = predict(candidates[chosen], whole)
    accuracies = {name: balanced_accuracy(found) for name, found in predicted.items()}
    listed = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in accuracies.items())
    run.console.print(f"Balanced accuracy on val: {listed}. Kept: [bold]{chosen}[/bold]")
    save_checkpoint(run.folder.path, candidates[chosen], space)
    evaluation = evaluate_predictions(kept, space, bootstrap=settings.bootstrap)
    run.folder.update_json("metrics.json", {"val": evaluation.to_dict()})
    run.folder.update_json("phases.json", {"val_balanced_accuracy": accuracies, "kept": chosen})


def _joined(
    probe: MultiExpertClassifier, finetuned: MultiExpertClassifier
) -> dict[str, MultiExpertClassifier]:
    """Pairs of an expert of each phase: the fine-tuned network's last or, if others, its first."""
    pairs = {"joined": probe.joined(finetuned)}
    if finetuned.num_experts > 1:
        pairs["joined_first"] = probe.joined(finetuned, 0)
    return pairs


def choose(predicted: dict[str, Predictions]) -> str:
    """The candidate to keep.

    A val of a few images a class mistakes luck for skill, and the best of several candidates is
    the luckiest. `joined`, an ensemble of the probe and the fine-tuned network, errs least where
    either is weak, so it is kept unless val speaks against it: unless another candidate is
    better, with the margin of `MARGINS`. Without it, the most accurate one is kept; a small val
    knows few different accuracies, and the balanced log loss decides among equals.

    Args:
        predicted: candidate -> its predictions of val, the same images for all.
    """
    scores = {
        name: (balanced_accuracy(found), -_balanced_loss(found))
        for name, found in predicted.items()
    }
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


def balanced_accuracy(predictions: Predictions) -> float:
    """Mean recall of the classes that have images."""
    return float(class_means(_right(predictions), predictions.target).mean())


def _right(predictions: Predictions) -> BoolArray:
    """(N,) whether each image is called by its class."""
    right: BoolArray = predictions.probabilities.argmax(1) == predictions.target
    return right


def class_means(values: np.ndarray[Any, Any], target: IntArray) -> np.ndarray[Any, Any]:
    """Mean of the images' values (N,) in each class that has images."""
    images = np.bincount(target)
    sums = np.bincount(target, weights=values)
    means: np.ndarray[Any, Any] = sums[images > 0] / images[images > 0]
    return means


def standard_error(first: BoolArray, second: BoolArray, target: IntArray) -> float:
    """Of the difference of two balanced accuracies on the same images.

    Each class counts as if one more image, on which the two differ or not, had been seen: two
    images that are decided alike do not show that all would be.

    Args:
        first: (N,) whether each image is called by its class.
        second: (N,) the other's.
        target: (N,) class indices.
    """
    difference = first.astype(np.float64) - second
    images = np.bincount(target)
    images = images[images > 0]
    mean = class_means(difference, target)
    variance = class_means(difference**2, target) - mean**2
    variance = (variance * images + 0.5) / (images + 1)
    return float(np.sqrt((variance / images).sum()) / len(images))


def _balanced_loss(predictions: Predictions) -> float:
    """Mean over the classes of the mean negative log probability of the true class."""
    target = predictions.target
    right = np.take_along_axis(predictions.probabilities, target[:, None], 1)[:, 0]
    return float(class_means(-np.log(np.maximum(right, 1e-7)), target).mean())
