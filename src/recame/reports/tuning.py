"""`recame tune`: fit decisions with promised limits to labelled images that trained nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from recame.config.files import read_settings
from recame.contracts import AnyPath
from recame.datasets.given import Given
from recame.decisions.document import DECISIONS_FILE, last_tuning, note_export, save_policy
from recame.decisions.drift import DriftMonitor
from recame.decisions.limits import ESTIMATE, SMALLEST, Limits, PerClass
from recame.decisions.line_mix import LineMix, stated
from recame.decisions.scored import logits_of
from recame.decisions.strangeness import Scorer
from recame.decisions.tune import tune as tune_scores
from recame.decisions.tuned import Tuned
from recame.decisions.unknown import fit_scorer
from recame.errors import ConfigError
from recame.files import csv_text, write_text
from recame.folders import folder_of
from recame.inference.finished_run import recorded_data
from recame.label_space import LabelSpace, likely_normal
from recame.metrics.evaluation import tail_of
from recame.metrics.statistics import wilson_interval
from recame.names import command, counted, in_words, quoted
from recame.progress import say
from recame.reports.basis import basis_of, looks_before, origin_of
from recame.reports.decisions_page import decisions_page
from recame.reports.labelled import Labelled, features_of, judged
from recame.reports.lot_mix import Lot
from recame.runs.folder import RunFolder
from recame.runtime.opening import load
from recame.runtime.predictor import Predictor

#: Scorer of unknown images (chosen by `benchmarks/decisions/unknown.py`), and most images that it
#: is fitted to; it keeps about 300 of them.
SCORER, _MOST_FITTED = "knn", 400


def tune(
    model: AnyPath,
    calibration: Given | None = None,
    limits: AnyPath | Limits | Mapping[str, Any] | None = None,
    *,
    normal: str | None = None,
    run: AnyPath | None = None,
    lot: AnyPath | pd.DataFrame | LineMix | None = None,
    named: Path | None = None,
    console: Console | None = None,
) -> Tuned:
    """Fit decisions to a finished run, or to a bundle, and keep them in its `decisions.json`.

    From then on `recame predict` and `recame.load` use these decisions. `decisions.html` in the
    same folder shows them; `frontier.csv` shows what other escape limits would cost.

    Args:
        model: the folder.
        calibration: labelled images that neither trained nor chose the model: a path, a DataFrame,
            pairs of an image's path and its label, or a run. Images given in memory are kept in
            `given/` of the folder. None: images that the run has set aside (`data.calibrate`), or
            its `val`; since `val` chose among models, its promises are stricter. For a bundle,
            either `calibration` or `run` is needed.
        limits: a YAML file, its values, or the limits; None: the smallest escape limits that the
            images promise.
        normal: the class that may be released, if neither training nor an earlier tuning named it.
        run: the run that a bundle was exported from; its images calibrate, without those that
            trained it.
        lot: for `line_mix: estimate`, a table that `recame predict` wrote with the same model for a
            lot of the line (its labels are not used), or an earlier estimate.
        named: the future name of a bundle that is still being made.
        console: where progress and promises go; silent if None.

    Raises:
        ConfigError: a limit cannot be promised, or the normal class is not known.
        RecameError: the model, the images or the limits cannot be used.
    """
    console = console or Console(quiet=True)
    asked = _read(limits)
    folder, loaded = folder_of(model), load(model, decide=False)
    path = folder / DECISIONS_FILE
    before = (last_tuning(path) or {}).get("normal")  # named in an earlier tuning
    space = _with_normal(loaded.label_space, normal or before, folder)
    told = _lot(lot, asked, loaded, folder)
    origin = origin_of(folder, run)
    basis = basis_of(folder, origin, calibration, console)
    asked = replace(asked, group=asked.group or basis.group)
    scorer = _scorer(asked, loaded, origin, console)
    words: dict[str, Any] = {"group": asked.group, "seen": basis.seen, "scorer": scorer}
    found = judged(loaded, basis.labelled, console, **words)
    line = told.mix(found) if isinstance(told, Lot) else told
    known_as, tail = str(named or folder.absolute()), tail_of(space)[1]
    own, others = looks_before(path, origin, known_as, found.contents)
    tuned = tune_scores(
        found.scored,
        space.names,
        space.normal,
        asked,
        unit=asked.group or "image",
        comparisons=basis.comparisons,
        estimate=basis.fitted(loaded.calibration),
        tuning=1 + own + others,
        usual_mix=np.array(space.counts, np.float64) if sum(space.counts) else None,
        line=line,
        tail=tail if tail.any() else None,
        products=basis.products,
        product_column=basis.product_column,
    )
    if origin is not None and origin.decisions_path != path:
        # Each bundle that is tuned on the same images counts as another tuning.
        note_export(origin.decisions_path, known_as, found.contents, others)
    kept = None if tuned.policy.unknown_above is None else scorer
    drift = DriftMonitor.of(found.called, found.confidence, space.names, 1 - asked.confidence)
    facts: dict[str, Any] = {"calibration": basis.source, "scorer": kept}
    save_policy(path, tuned, asked, loaded.answers, found.sha256, drift, found.contents, **facts)
    write_text(folder / "frontier.csv", csv_text(pd.DataFrame(tuned.frontier), index=False))
    page = decisions_page(tuned, found.scored, asked, name=folder.resolve().name, told=basis.told)
    write_text(folder / "decisions.html", page)
    _tell(tuned, basis.told, console, line=_line_words(asked, line))
    return tuned


def _line_words(asked: Limits, line: LineMix | None) -> str:
    """Say for which line the shares are."""
    if asked.line_mix is None:
        return "a line whose classes come as in training"
    return "the stated line" if line is None else "the estimated line"


def _lot(
    lot: AnyPath | pd.DataFrame | LineMix | None, asked: Limits, model: Predictor, folder: Path
) -> Lot | LineMix | None:
    """Read the lot from which the line's mix is estimated; None if it is not estimated.

    Raises:
        ConfigError: a lot is needed but not given, given but not needed, or cannot be used.
    """
    if lot is None and asked.line_mix == ESTIMATE:
        words = command("recame", "predict", folder, "LOT", "-o", "lot.csv")
        raise ConfigError(
            "line_mix: estimate: the line's mix is estimated from a lot's own predictions, and "
            f"none are given: predict a lot of the line ({words}) and give its table, --lot "
            f"lot.csv; or state the mix, for instance {stated(model.label_space.names)}."
        )
    if lot is not None and asked.line_mix != ESTIMATE:
        raise ConfigError(
            f"--lot {in_words(lot)}: a lot is read to estimate the line's mix, which the "
            "limits do not ask for: write line_mix: estimate into them, or leave --lot out."
        )
    return lot if lot is None or isinstance(lot, LineMix) else Lot.read(lot, model, folder)


def _scorer(
    asked: Limits, model: Predictor, origin: RunFolder | None, console: Console
) -> Scorer | None:
    """The scorer of unknown images; None if it is not needed, or a bundle has no images."""
    if asked.unknown_false_alarm == SMALLEST and origin is None:
        text = "Unknown images are not recognised: that needs the training images (give --run)."
        say(console, text, "yellow")
        return None
    return None if asked.unknown_false_alarm is None else _fit_scorer(model, origin, console)


def _fit_scorer(model: Predictor, origin: RunFolder | None, console: Console) -> Scorer:
    """Fit the scorer of unknown images to training images, equally many of each class."""
    if origin is None:
        raise ConfigError(
            "unknown_false_alarm: to recognise unknown images needs the training images, which a "
            "bundle does not hold: give its run with --run, or leave the limit out."
        )
    table = recorded_data(origin, origin.load_config())
    table = table[(table["split"] == "train") & table["label"].notna()]
    order = np.random.default_rng(0).permutation(len(table))
    drawn = table.iloc[order]
    place = drawn.groupby("label").cumcount().to_numpy()
    drawn = drawn.iloc[np.argsort(place, kind="stable")[:_MOST_FITTED]]
    path = origin.manifest_path
    labelled = Labelled(drawn.reset_index(drop=True), path, str(path))
    found = labelled.answers(model, console, "reading training images", features=True)
    logits = logits_of(np.stack([each.probabilities for each in found]), model.temperature)
    target = labelled.target(tuple(model.label_space.names))
    return fit_scorer(SCORER, features_of(found), logits, target)


def tune_export(
    bundle: Path,
    run: AnyPath,
    max_escape: float | None = None,
    *,
    normal: str | None = None,
    named: Path | None = None,
    console: Console | None = None,
) -> Tuned | None:
    """Fit decisions to a new bundle, with the limits and images of its run's last tuning.

    A promise holds only for the graph that it was fitted to, so the decisions are fitted again, to
    the bundle's outputs. This counts as another tuning on the same images.

    Args:
        bundle: its folder.
        run: the run that it was exported from.
        max_escape: replaces the run's escape limits: the share of each defect class that may be
            released.
        normal: the class that may be released, if the run does not name it.
        named: the future name of a bundle that is still being made.
        console: where promises go; silent if None.

    Returns:
        None if the run has no decisions and no limit is given; a message says so.

    Raises:
        ConfigError: another tuning on these images cannot promise the limits.
        RecameError: the bundle, the run or its images cannot be used.
    """
    console = console or Console(quiet=True)
    folder = RunFolder.open(run, finished=True)
    last = last_tuning(folder.decisions_path)
    if last is None and max_escape is None:
        words = command("recame", "tune", Path(run))
        say(console, f"No decisions: every image is classified. To promise limits: {words}")
        return None
    last = last or {}
    limits = Limits.from_dict(last.get("limits", {}), str(folder.decisions_path))
    if max_escape is not None:
        limits = replace(limits, escape=PerClass(max_escape))
    source, normal = last.get("calibration"), normal or last.get("normal")
    # The mix is a property of the line, so the estimate of another model can be used.
    line = LineMix.from_dict(last["line"], folder.label_space().names) if "line" in last else None
    how: dict[str, Any] = {"normal": normal, "run": run, "named": named, "lot": line}
    try:
        return tune(bundle, source, limits, console=console, **how)
    except ConfigError as error:
        raise ConfigError(
            f"{error} (The decisions of {run} were being fitted again to the bundle's outputs. "
            "With --undecided the bundle has no decisions and classifies every image.)"
        ) from error


def _read(given: AnyPath | Limits | Mapping[str, Any] | None) -> Limits:
    """Read the limits from a YAML file, or take them as given."""
    if isinstance(given, Limits):
        return given
    if given is None or isinstance(given, Mapping):
        return Limits.from_dict(given or {})
    values = read_settings(Path(given), "limits", "--limits")
    return Limits.from_dict({} if values is None else values, str(given))


def _with_normal(space: LabelSpace, normal: str | None, folder: Path) -> LabelSpace:
    """The classes with the normal class, which must be named."""
    if normal is not None or space.normal is not None:
        return replace(space, normal=normal or space.normal)
    likely = likely_normal(space.names)
    if likely is not None:
        raise ConfigError(
            f"{folder} does not say which class is normal; name it ({quoted(likely)} looks like "
            f"it): {command('recame', 'tune', folder, '--normal', likely)}"
        )
    raise ConfigError(  # no class is proposed: releasing a defect is the worst that could happen
        f"{folder} does not say which class is normal, the one without a defect that may be "
        f"released. If there is one, name it: {command('recame', 'tune', folder, '--normal')} "
        "CLASS. If every class is a defect, nothing can be released: recame predict needs no tune."
    )


def _unknown_words(share: float) -> str:
    return f", {share:.1%} of them as unknown" if share else ""


def _tell(tuned: Tuned, split: str, console: Console, *, line: str) -> None:
    """Print what is promised and what it costs; `line`: the line, in words."""
    facts, expected = tuned.facts, tuned.expected
    tried = f", {facts['comparisons']:,} models compared on it" if facts["comparisons"] > 1 else ""
    number = facts["tuning"]
    say(console, f"Fitted to {tuned.calibrated_on()} of {split}{tried}; tuning number {number}.")
    for sentence in tuned.sentences():
        say(console, f"  {sentence}")
    if expected.overkill is not None:
        missed = round(expected.overkill * expected.num_normal)
        low, high = wilson_interval(missed, expected.num_normal)
        normals = counted(expected.num_normal, f"normal {facts['unit']}")
        say(
            console,
            f"Of {normals} {expected.overkill:.1%} are not released ({low:.0%} to {high:.0%}).",
        )
    told = expected.to_dict(tuned.policy.names)
    say(
        console,
        f"On {line} {told['release']:.1%} pass, {told['automatic']:.1%} are classified "
        f"automatically, {told['review'] + told['unknown']:.1%} go to a person"
        f"{_unknown_words(told['unknown'])}.",
    )
