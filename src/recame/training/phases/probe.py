"""Phase 1, frozen-feature probing: train the experts' heads on cached features."""

from __future__ import annotations

import time
from dataclasses import replace

from recame.config import SYMMETRIES, largest_symmetry
from recame.data.sampling import capped_view
from recame.errors import CheckpointError
from recame.losses import TrainingLoss
from recame.models import (
    FrozenForward,
    MultiExpertClassifier,
    initialise_classifier,
    load_checkpoint,
    save_checkpoint,
)
from recame.models.checkpoint import owner
from recame.names import counted
from recame.progress import Progress, progress_bars, say
from recame.runs.folder import RunFolder
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.batch_norms import adapt_to_set
from recame.training.phases.certainty import val_words
from recame.training.phases.features import ProbeFeatures, embed, fit_heads, probe_prior
from recame.training.phases.probe_size import VAL_PER_CLASS, settle_probe
from recame.training.phases.symmetry import choose_symmetry
from recame.training.views import with_symmetry


def run_probe(run: OngoingRun) -> tuple[OngoingRun, MultiExpertClassifier]:
    """Train the heads on cached features, or take them from the interrupted run.

    Returns:
        The run with decided symmetry, and the network with trained heads; the weights of its stages
        are not changed.
    """
    if (left := _left_probe(run.folder)) is not None:
        return run, run.placed(left)
    began = time.monotonic()
    model, seed = run.new_model(), run.config.run.seed
    adapt_to_set(run, model)
    run, forward = settle_probe(run, model)
    settings = run.config.probe
    view = capped_view(run.data.view("train"), int(settings.max_per_class), seed)
    objective = run.objective(
        probe_prior(view.counts(run.data.label_space.num_classes)),
        model.num_features,
        fixed_features=run.config.model.hidden == 0,
    )
    symmetry = run.config.augment.symmetry
    num_views = settings.views if symmetry == "auto" else SYMMETRIES[symmetry]
    with progress_bars(run.console) as report:
        features = embed(run, model, view, min(num_views, settings.views), report, forward)
        if symmetry == "auto":
            run = _decide_symmetry(run, model, features, objective, report, forward)
            num_views = SYMMETRIES[run.config.augment.symmetry]
            features = replace(features, pooled=features.pooled[:, :num_views])
        _initialise(run, model, features)
        fitting = time.monotonic()
        fit_heads(
            model.head,
            features,
            objective,
            settings,
            num_experts=model.num_experts,
            seed=seed,
            on_progress=report,
            on_loss=run.trackers.losses_of("probe"),
        )
    fitted = time.monotonic()
    save_checkpoint(run.folder.probe_dir, model, run.data.label_space, of_run=run.folder.identity)
    run.measured.head_step_s = (fitted - fitting) / int(settings.steps)
    run.measured.saving_s = time.monotonic() - fitted
    say(
        run.console,
        f"Probe: heads on frozen features of {len(view):,} images, "
        f"{counted(features.pooled.shape[1], 'view')} each, {time.monotonic() - began:.0f} s",
    )
    return run, model


def _left_probe(folder: RunFolder) -> MultiExpertClassifier | None:
    """The probe of the interrupted run; None if it is damaged or not its own, to repeat it."""
    try:
        if owner(folder.probe_dir) != folder.identity:
            return None
        return load_checkpoint(folder.probe_dir).model
    except CheckpointError:
        return None


def initial_model(run: OngoingRun) -> MultiExpertClassifier:
    """The network of a run without a probe, with its classifier initialised as the settings say."""
    model = run.new_model()
    if run.config.model.initialisation != "random":
        cap = int(run.config.probe.max_per_class)
        view = capped_view(run.data.view("train"), cap, run.config.run.seed)
        with progress_bars(run.console) as report:
            _initialise(run, model, embed(run, model, view, 1, report))
    return model


def _initialise(run: OngoingRun, model: MultiExpertClassifier, features: ProbeFeatures) -> None:
    names = run.data.label_space.names
    how = run.config.model.initialisation
    initialise_classifier(model.head, how, features.pooled, features.target, names)


def _decide_symmetry(
    run: OngoingRun,
    model: MultiExpertClassifier,
    features: ProbeFeatures,
    objective: TrainingLoss,
    report: Progress,
    forward: FrozenForward,
) -> OngoingRun:
    if "val" not in run.data.splits:
        name = largest_symmetry(*run.data.spec.piece_size)
        why = "no val split to ask; inspection images seldom have an up"
    else:
        seed = run.config.run.seed
        most = min(VAL_PER_CLASS, int(run.config.probe.max_per_class))
        view = capped_view(run.data.view("val"), most, seed)
        val = embed(run, model, view, features.pooled.shape[1], report, forward)
        name, scores = choose_symmetry(
            model.head,
            features,
            val,
            objective,
            run.config.probe,
            num_experts=model.num_experts,
            seed=seed,
        )
        listed = ", ".join(f"{key} {score:.3f}" for key, score in scores.items())
        why = (
            f"log loss of short probes on val: {listed} ({val_words(val.target.numpy())}: the "
            "largest group that is not worse than the best by a standard error is taken)"
        )
    return run.decided(with_symmetry(run.config, name), [f"augment.symmetry = {name}: {why}"])
