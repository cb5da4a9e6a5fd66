"""`recame tune`: labelled images that trained nothing -> decisions with promised limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from recame.config import SYMMETRIES, Config
from recame.config.files import read_settings
from recame.data.splits import CALIBRATE
from recame.decisions.calibration import Calibration
from recame.decisions.document import (
    DECISIONS_FILE,
    earlier_tunings,
    last_tuning,
    note_export,
    save_policy,
)
from recame.decisions.drift import DriftMonitor
from recame.decisions.limits import ESTIMATE, SMALLEST, Limits, PerClass
from recame.decisions.line_mix import LineMix, stated
from recame.decisions.scored import logits_of
from recame.decisions.strangeness import Scorer
from recame.decisions.tune import Tuned
from recame.decisions.tune import tune as tune_scores
from recame.decisions.unknown import fit_scorer
from recame.errors import ConfigError, DataError
from recame.files import csv_text, write_text
from recame.inference.finished_run import recorded_data
from recame.label_space import LabelSpace, likely_normal
from recame.metrics.evaluation import tail_of
from recame.metrics.statistics import wilson_interval
from recame.names import command, quoted
from recame.progress import say
from recame.reports.decisions_page import decisions_page
from recame.reports.labelled import Labelled, contents_of, features_of, judged
from recame.reports.lot_mix import Lot
from recame.runs.folder import RunFolder
from recame.runtime.bundle import find_bundle, open_bundle
from recame.runtime.opening import load
from recame.runtime.predictor import Predictor

#: What tells the unknown (`benchmarks/decisions/unknown.py`), and images that it is fitted to: some
#: 300 of them are kept.
SCORER, _MOST_FITTED = "knn", 400
#: Sizes, and tiles or none, that are compared where they are left open, at most.
_SIZES, _TILES = 3, 2


@dataclass(frozen=True)
class _Basis:
    """What decisions are fitted to.

    Attributes:
        labelled: the images.
        told: which they are, in words.
        comparisons: models of which they may have chosen one.
        source: where they are described, if not by the run itself.
        seen: contents of the images that made the model, which promise nothing.
    """

    labelled: Labelled
    told: str
    comparisons: int = 1
    source: str | None = None
    seen: frozenset[str] = frozenset()

    def fitted(self, calibration: Calibration | None) -> str:
        """Why these images can promise nothing by probabilities that they calibrated, or empty.

        A temperature moves no score; biases of classes move the scores that limits are laid by.
        """
        if calibration is None or not calibration.balanced or self.source is not None:
            return ""
        if calibration.fitted_on.get("split") != self.told:
            return ""
        return (
            f"Biases of classes were fitted to these images of {self.told}: others promise "
            "(--calibration, or data.calibrate in training)"
        )


def tune(
    model: Path | str,
    calibration: Path | str | None = None,
    limits: Path | str | Limits | None = None,
    *,
    normal: str | None = None,
    run: Path | str | None = None,
    lot: Path | str | LineMix | None = None,
    named: Path | None = None,
    console: Console | None = None,
) -> Tuned:
    """Fit decisions to a finished run, or to a bundle, and keep them in its `decisions.json`.

    From then on `recame predict` and `recame.load` of that folder decide by them. `decisions.html`
    beside it shows them, `frontier.csv` what other escape limits would cost.

    Args:
        model: the folder.
        calibration: labelled images that neither trained nor chose anything; None: those that the
            run has set aside (`data.calibrate`), or its `val`, which has chosen among models: all
            of these are paid for. A bundle needs them, or its run.
        limits: a YAML file, or the limits; None: the smallest escapes that the images promise.
        normal: the class that may be released, where neither training nor an earlier tuning
            named it.
        run: that a bundle was exported from: its images calibrate, and no image that made it.
        lot: for `line_mix: estimate`, what the same model has predicted of a lot of the line, a
            table of `recame predict`, whose labels are not looked at; or what was estimated before.
        named: what a bundle will be called, that is still being made.
        console: where progress and promises go; silent if None.

    Raises:
        ConfigError: a limit cannot be promised, or the normal class is not known.
        RecameError: the model, the images or the limits cannot be used.
    """
    console = console or Console(quiet=True)
    asked = limits if isinstance(limits, Limits) else _read(limits)
    folder, loaded = Path(model), load(model, decide=False)
    path = folder / DECISIONS_FILE
    before = (last_tuning(path) or {}).get("normal")  # who has named it once need not again
    space = _with_normal(loaded.label_space, normal or before, folder)
    told = _lot(lot, asked, loaded, folder)
    origin = _origin(folder, run)
    if origin is None:
        basis = _basis_of_bundle(folder, calibration, console)
    else:
        config = origin.load_config()
        basis = _basis(origin, config, calibration, console)
        asked = replace(asked, group=asked.group or config.data.group_by)
    tail = tail_of(space)[1]
    scorer = None
    if asked.unknown_false_alarm == SMALLEST and origin is None:
        text = "Nothing tells unknown images: a bundle holds none that trained it (--run)."
        say(console, text, "yellow")
    elif asked.unknown_false_alarm is not None:
        scorer = _fit_scorer(loaded, origin, console)
    known_as = str(named or folder.absolute())
    found = judged(
        loaded, basis.labelled, console, group=asked.group, seen=basis.seen, scorer=scorer
    )
    line = told.mix(found) if isinstance(told, Lot) else told
    tuned = tune_scores(
        found.scored,
        space.names,
        space.normal,
        asked,
        unit=asked.group or "image",
        comparisons=basis.comparisons,
        estimate=basis.fitted(loaded.calibration),
        tuning=1 + _earlier(path, origin, known_as, found.contents),
        usual_mix=np.array(space.counts, np.float64) if sum(space.counts) else None,
        line=line,
        tail=tail if tail.any() else None,
        products=None if origin is None else _products(origin),
        product_column="product" if origin is None else origin.load_config().data.product_column,
    )
    drift = DriftMonitor.of(found.called, found.confidence, space.names, 1 - asked.confidence)
    kept = None if tuned.policy.unknown_above is None else scorer
    if origin is not None and origin.decisions_path != path:
        # Who tunes several bundles on the same images looks at them as often.
        note_export(origin.decisions_path, known_as, found.contents)
    facts: dict[str, Any] = {"calibration": basis.source, "scorer": kept}
    save_policy(path, tuned, asked, loaded.answers, found.sha256, drift, found.contents, **facts)
    write_text(folder / "frontier.csv", csv_text(pd.DataFrame(tuned.frontier), index=False))
    name = folder.resolve().name
    page = decisions_page(tuned, found.scored, asked, name=name, told=basis.told)
    write_text(folder / "decisions.html", page)
    words = "a line whose classes come as in training"
    if asked.line_mix is not None:
        words = "the stated line" if line is None else "the estimated line"
    _tell(tuned, basis.told, console, line=words)
    return tuned


def _lot(
    lot: Path | str | LineMix | None, asked: Limits, model: Predictor, folder: Path
) -> Lot | LineMix | None:
    """What the line's mix is estimated from; None where it is not.

    Raises:
        ConfigError: it is asked for and not there, there and not asked for, or tells nothing.
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
            f"--lot {lot}: a lot is read to estimate the line's mix, which the limits do not ask "
            "for: write line_mix: estimate into them, or leave --lot out."
        )
    return lot if lot is None or isinstance(lot, LineMix) else Lot.read(lot, model, folder)


def _basis(
    run: RunFolder, config: Config, calibration: Path | str | None, console: Console
) -> _Basis:
    """Images for a run's decisions."""
    manifest = recorded_data(run, config)
    made = manifest["path"][manifest["split"].isin(["train", "val"])]
    if calibration is not None:
        labelled, source = Labelled.read(calibration, console), str(Path(calibration).absolute())
        return _Basis(labelled, str(calibration), 1, source, frozenset(contents_of(made)))
    if (manifest["split"] == CALIBRATE).any():
        labelled = _own(run, manifest, CALIBRATE)
        return _Basis(labelled, CALIBRATE, seen=frozenset(contents_of(made)))
    return _Basis(_own(run, manifest, "val"), "val", compared(run.asked(), config))


def _basis_of_bundle(folder: Path, calibration: Path | str | None, console: Console) -> _Basis:
    """Images for a bundle's decisions."""
    if calibration is None:
        words = ("recame", "tune", folder, "--calibration", "LABELLED")
        raise ConfigError(
            f"{folder} is a bundle, which holds no images: give labelled ones that neither trained "
            f"nor chose its model, {command(*words)}, or the run that it was exported from, --run."
        )
    say(console, "A bundle does not tell by which images it was made: see that none is among these")
    source = str(Path(calibration).absolute())
    return _Basis(Labelled.read(calibration, console), str(calibration), source=source)


def _origin(folder: Path, run: Path | str | None) -> RunFolder | None:
    """The run whose images calibrate; None of a bundle without one.

    Raises:
        ConfigError: a run is given for a run, or one that the bundle was not exported from.
    """
    if not find_bundle(folder):
        if run is not None:
            raise ConfigError(f"--run {run}: {folder} is a run itself, and has its own images.")
        return RunFolder.open(folder, finished=True)
    if run is None:
        return None
    origin, document = RunFolder.open(Path(run), finished=True), open_bundle(folder).document
    facts = (origin.info().get("data_fingerprint"), origin.path.resolve().name)
    if (document.get("data_fingerprint"), document.get("run", {}).get("name")) != facts:
        raise ConfigError(
            f"{folder} was exported from a run {document.get('run', {}).get('name')!r} of other "
            f"images than {run}: images that made its model could calibrate it. Give its own run, "
            "or labelled images with --calibration."
        )
    return origin


def _products(origin: RunFolder) -> list[str] | None:
    """The products that trained a run; None where its table names fewer than two."""
    config = origin.load_config()
    table = recorded_data(origin, config)
    if config.data.product_column not in table:
        return None
    rows = table[config.data.product_column][table["split"] == "train"]
    found = sorted({str(name) for name in rows.dropna() if str(name)})
    return found if len(found) > 1 else None


def _fit_scorer(model: Predictor, origin: RunFolder | None, console: Console) -> Scorer:
    """What tells the unknown, fitted to images that trained the model, as many of each class."""
    if origin is None:
        raise ConfigError(
            "unknown_false_alarm: what is unknown is told by the images that trained the model, "
            "which a bundle does not hold: give its run with --run, or leave the limit out."
        )
    table = recorded_data(origin, origin.load_config())
    table = table[(table["split"] == "train") & table["label"].notna()]
    order = np.random.default_rng(0).permutation(len(table))
    drawn = table.iloc[order]
    place = drawn.groupby("label").cumcount().to_numpy()
    drawn = drawn.iloc[np.argsort(place, kind="stable")[:_MOST_FITTED]]
    labelled = Labelled(drawn.reset_index(drop=True), origin.manifest_path)
    found = labelled.answers(model, console, "looking at what is known", features=True)
    logits = logits_of(np.stack([each.probabilities for each in found]), model.temperature)
    target = labelled.target(tuple(model.label_space.names))
    return fit_scorer(SCORER, features_of(found), logits, target)


def _earlier(path: Path, origin: RunFolder | None, bundle: str, contents: Sequence[str]) -> int:
    """How often decisions were fitted to these images, of the run and of its bundles."""
    found = earlier_tunings(path, contents)
    if origin is not None and origin.decisions_path != path:
        found += earlier_tunings(origin.decisions_path, contents, besides=bundle)
    return found


def tune_export(
    bundle: Path,
    run: Path | str,
    max_escape: float | None = None,
    *,
    normal: str | None = None,
    named: Path | None = None,
    console: Console | None = None,
) -> Tuned | None:
    """Give a new bundle the decisions of its run: fitted anew, to the bundle's own answers.

    A promise belongs to the graph that it was fitted to. The limits are those of the run's last
    tuning, and so are the images; a look more at these is paid for.

    Args:
        bundle: its folder.
        run: that it was exported from.
        max_escape: instead of the run's escape limits: the share of each defect class that may be
            released.
        normal: the class that may be released, where the run does not name it.
        named: what the bundle will be called, where it is still being made.
        console: where promises go; silent if None.

    Returns:
        None where the run has no decisions and no limit is given, which is said.

    Raises:
        ConfigError: the limits cannot be promised by another look at the images.
        RecameError: the bundle, the run or its images cannot be used.
    """
    console = console or Console(quiet=True)
    folder = RunFolder.open(Path(run), finished=True)
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
    # How often classes come is the line's, whichever model has told it.
    line = LineMix.from_dict(last["line"], folder.label_space().names) if "line" in last else None
    how: dict[str, Any] = {"normal": normal, "run": run, "named": named, "lot": line}
    try:
        return tune(bundle, source, limits, console=console, **how)
    except ConfigError as error:
        raise ConfigError(
            f"{error} (The bundle was to have the decisions of {run}, fitted to its own answers. "
            "With --undecided it has none, and classifies every image.)"
        ) from error


def _own(folder: RunFolder, manifest: pd.DataFrame, split: str) -> Labelled:
    """Images of the run's own table: those that choose nothing, or those that chose the model."""
    table = manifest[(manifest["split"] == split) & manifest["label"].notna()]
    if table.empty:
        raise DataError(
            f"{folder.path} has no val split, and the images that trained it promise nothing: "
            "give labelled images that did not, with --calibration."
        )
    return Labelled(table.reset_index(drop=True), folder.manifest_path)


def compared(asked: Config, config: Config) -> int:
    """How many models `val` may have chosen among, at most: what was left open, multiplied.

    Args:
        asked: the settings with `auto` where the run decided.
        config: as the run decided.
    """
    number = 1
    if asked.data.size == "auto":
        number *= _SIZES
        number *= _TILES if asked.data.tiles == "auto" else 1
    if asked.augment.symmetry == "auto":
        number *= len(SYMMETRIES)
    if asked.evaluation.views == "auto":
        most = SYMMETRIES[config.augment.symmetry] if config.augment.symmetry != "auto" else 8
        number *= most.bit_length()
    phases = 1 + config.finetune.enabled + config.retrain.enabled - (not config.probe.enabled)
    if config.run.keep in ("best_on_val", "best_phase"):
        number *= max(1, phases) + (2 if config.judges_joined else 0)
    return number


def _read(path: Path | str | None) -> Limits:
    """Limits of a YAML file."""
    if path is None:
        return Limits()
    values = read_settings(Path(path), "limits", "--limits")
    return Limits.from_dict({} if values is None else values, str(path))


def _with_normal(space: LabelSpace, normal: str | None, folder: Path) -> LabelSpace:
    """The classes with the normal one, which must be named."""
    if normal is not None or space.normal is not None:
        return replace(space, normal=normal or space.normal)
    likely = likely_normal(space.names)
    name = likely or space.names[0]
    proposal = "for instance" if likely is None else f"{quoted(likely)} looks like it"
    raise ConfigError(
        f"{folder} does not say which class is normal, and none is released unasked; {proposal}: "
        f"{command('recame', 'tune', folder, '--normal', name)}"
    )


def _unknown_words(share: float) -> str:
    return f", {share:.1%} of them as unknown" if share else ""


def _tell(tuned: Tuned, split: str, console: Console, *, line: str) -> None:
    """Print what is promised and what it costs; `line`: on which, in words."""
    facts, expected = tuned.facts, tuned.expected
    tried = f", {facts['comparisons']:,} models compared on it" if facts["comparisons"] > 1 else ""
    say(console, f"Fitted to {facts['images']:,} of {split}{tried}; tuning {facts['tuning']}.")
    for sentence in tuned.sentences():
        say(console, f"  {sentence}")
    if expected.overkill is not None:
        missed = round(expected.overkill * expected.num_normal)
        low, high = wilson_interval(missed, expected.num_normal)
        say(
            console,
            f"Of {expected.num_normal:,} normal images {expected.overkill:.1%} are not released "
            f"({low:.0%} to {high:.0%}).",
        )
    told = expected.to_dict(tuned.policy.names)
    say(
        console,
        f"On {line} {told['release']:.1%} pass, {told['automatic']:.1%} are classified "
        f"automatically, {told['review'] + told['unknown']:.1%} go to a person"
        f"{_unknown_words(told['unknown'])}.",
    )
