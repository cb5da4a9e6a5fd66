"""Evaluate a finished run on labelled images, and draw its report."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console

from recame.config import Config
from recame.contracts import AnyPath, Predictions
from recame.data.corrections import told_corrections
from recame.data.dataset import InspectionSet
from recame.data.stored_views import check_views
from recame.datasets.given import Given, given_path
from recame.decisions.calibration import calibrated_predictions
from recame.decisions.outcome import Outcome
from recame.errors import DataError, RecameError, ReportError
from recame.files import csv_text, write_text
from recame.folders import folder_of
from recame.inference.finished_run import images_to_judge, open_finished, predict_run
from recame.label_space import LabelSpace
from recame.metrics.evaluation import Evaluation, evaluate_as_configured
from recame.models import LoadedModel
from recame.names import cells_of, check_folder_name, command
from recame.progress import Progress, progress_bars, say
from recame.reports.confusion import WRITABLE, confusion_figure, save_evaluation
from recame.reports.deciding import KeptDecisions, decide_split, with_tuned_normal
from recame.reports.judged_images import (
    PREDICTIONS,
    JudgedImages,
    check_free,
    check_name,
    judging_settings,
    usual_name,
)
from recame.reports.run_report import Baseline
from recame.reports.terminal import print_evaluation
from recame.runs.folder import RunFolder
from recame.runs.predictions import (
    check_suffix,
    load_predictions,
    load_predictions_table,
    predictions_table,
    save_predictions,
)
from recame.runs.trackers import track_evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from recame.reports.draw import ReportFiles

#: File beside the predictions that says why their report was not drawn.
REPORT_ERROR = "report_error.txt"


@dataclass(frozen=True)
class EvaluatedRun:
    """The result of `evaluate`.

    Attributes:
        split: the evaluated split, or the name under which another source's figures are kept.
        evaluation: the figures.
        predictions: each image's probabilities, calibrated.
        folder: where predictions, confusion matrix and tables were written.
        report_error: why the report could not be drawn; None if it was drawn or not requested.
        outcome: results of the run's decisions on the images; None if the run has no decisions.
    """

    split: str
    evaluation: Evaluation
    predictions: Predictions
    folder: Path
    report_error: ReportError | None = None
    outcome: Outcome | None = None
    label_space: LabelSpace | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Return the headline numbers and the folder of the files."""
        decided = () if self.outcome is None else self.outcome.sentences()
        return "\n".join([f"{self.split}: {self.evaluation}", *decided, f"in {self.folder}"])

    def to_frame(self) -> pd.DataFrame:
        """Return the headline numbers, see `Evaluation.to_frame`."""
        return self.evaluation.to_frame()

    def predictions_frame(self) -> pd.DataFrame:
        """Return one row per image, as in `evaluation/<name>/predictions.parquet`."""
        return pd.read_parquet(self.folder / PREDICTIONS)

    def plot(self) -> Figure:
        """Draw the confusion matrix beside each class's recall with its interval."""
        assert self.label_space is not None
        return confusion_figure(self.evaluation, self.label_space)


def evaluate(
    run: AnyPath,
    data: Given | None = None,
    *,
    split: str = "test",
    name: str | None = None,
    views: int | None = None,
    corrections: AnyPath | None = None,
    report: bool = True,
    out: AnyPath | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> EvaluatedRun:
    """Evaluate a finished run on one split and write the figures into its folder.

    `metrics.json` gets the headline numbers; `evaluation/<name>/` gets `predictions.parquet`,
    `per_class.csv`, `confusion.csv` and `confusion.png`. With `report`, it also gets
    `report.html`, `report.md` and `report.json`.

    Args:
        run: the run's folder.
        data: labelled images, as for `train`; None: the data of the run's training, with the same
            splits. All images of data without splits are evaluated. Data given in memory are kept
            as a table in the run's folder.
        split: which split to evaluate.
        name: under which the figures are kept; None: the split's name. Figures of other data get
            the name of their file or folder, so that the run's own figures stay. If `views` is not
            the run's, the name says so (`test-1-views`).
        views: views of test-time augmentation: 1, 2, 4 or 8; None: as in the run, to which its
            calibration was fitted. With other views, the probabilities are not calibrated, and a
            message says so.
        corrections: table of labels that people have corrected since, see `data.corrections`; the
            figures are kept under another name (`test-corrected`).
        report: also draw the report. If that fails, the figures stay, the reason is printed and
            returned, and `report_error.txt` holds the traceback.
        out: a further copy of the table of predictions, .csv or .parquet.
        device: `cpu` or `cuda`; None: as in the run's settings.
        settings: full names to values of settings for reading and computing images, see `JUDGING`.
        console: where progress and figures go; silent if None.

    Raises:
        RecameError: the run or the data cannot be used, a label is unknown to the model, the name
            is taken by other images' figures, or another process evaluates under it now.
    """
    console = console or Console(quiet=True)
    if out is not None:
        check_suffix(Path(out))
    if name is not None:
        check_folder_name(name, "--name")
    changed = judging_settings({**(settings or {}), **({"device": device} if device else {})})
    folder, config, loaded = _opened(run, changed)
    if views is not None:
        check_views(views, *loaded.spec.piece_size)
    others = None if views == config.evaluation.views else views
    by = None if corrections is None else str(Path(corrections).absolute())
    with ExitStack() as kept:
        where = None
        if data is not None:
            given = given_path(data, folder.path / "given", config.data.image_column)
            where = str(kept.enter_context(given).absolute())
        weights = folder.weights_sha256()
        judged = JudgedImages(where, split, weights, others, corrections=by, settings=changed)
        config = judged.config(config)
        name = name or usual_name(judged)
        check_name(folder, name, judged)
        kept.enter_context(folder.in_evaluation(name))
        check_free(folder, name, judged)
        done = _evaluate(folder, config, loaded, judged, name, console, report=report)
        if out is not None:
            table, _ = load_predictions_table(done.folder / PREDICTIONS)
            save_predictions(table, Path(out), loaded.label_space.names, weights)
            say(console, f"Predictions: {out}")
        return done


def _opened(
    run: AnyPath, changes: Mapping[str, Any] = MappingProxyType({})
) -> tuple[RunFolder, Config, LoadedModel]:
    """Open a finished run, with changed settings and the normal class of its decisions."""
    folder, config, loaded = open_finished(run, changes=changes)
    space = with_tuned_normal(folder, loaded.label_space)
    return folder, config, replace(loaded, label_space=space)


def _evaluate(
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    judged: JudgedImages,
    name: str,
    console: Console,
    *,
    report: bool,
) -> EvaluatedRun:
    split, source, path = judged.split, judged.source, judged.corrections_path
    decisions = KeptDecisions.of(folder, config)  # first, so that damaged decisions stop early
    kept = decisions.policy
    with progress_bars(console) as progress:
        described, changes = judged.images(folder, config)
        data = images_to_judge(described, config, loaded, split, progress, corrections=path)
        found = predict_run(
            folder,
            config,
            loaded,
            data,
            split,
            progress,
            features=report,
            all_features=kept is not None and kept.scorer is not None,
        )
    predictions = calibrated_predictions(found, decisions.calibration)
    evaluation = evaluate_as_configured(predictions, loaded.label_space, config)
    target = folder.evaluation_dir(name)
    judged = replace(judged, decided="" if kept is None else kept.sha256)
    judged.write(target)  # first, since predictions without this note count as the run's own
    decided = decide_split(folder, decisions, predictions, judged.words(), data)
    classes = loaded.label_space.names
    table = predictions_table(predictions, classes, decided.rows)
    save_predictions(table, target / PREDICTIONS, classes, judged.weights)
    told = {} if decided.outcome is None else {"decisions": decided.outcome.to_dict()}
    folder.update_json("metrics.json", {name: {**evaluation.to_dict(), **told}})
    save_evaluation(evaluation, target, loaded.label_space)
    if path is not None:
        _keep_corrections(changes if source is None else data.corrections, judged, target, console)
    print_evaluation(evaluation, console, f"{folder.path.name} on {name}")
    if decided.outcome is not None:
        say(console, "By the decisions that recame tune has fitted:")
        if decided.tuned_by:
            text = (
                f"The decisions were fitted to {decided.tuned_by:.0%} of these images: for other "
                "images, these figures say little."
            )
            say(console, f"  {text}", "yellow")
        for sentence in decided.outcome.sentences():
            say(console, f"  {sentence}")
    space = loaded.label_space
    done = EvaluatedRun(name, evaluation, predictions, target, None, decided.outcome, space)
    if not report:
        track_evaluation(folder, config, name)
        return done
    from recame.reports.draw import draw_report

    try:
        with _failure_kept(folder, name), progress_bars(console) as progress:
            files = draw_report(
                folder,
                config,
                loaded,
                data,
                predictions,
                evaluation,
                split,
                name=name,
                source=source or folder.info().get("data"),
                calibration=decisions.calibration,
                outcome=decided.outcome,
                progress=progress,
            )
    except ReportError as error:  # the figures are already written
        say(console, str(error), "yellow")
        return replace(done, report_error=error)
    say(console, f"Report: {files.html}")
    track_evaluation(folder, config, name, files.html)
    return done


def _keep_corrections(
    changes: pd.DataFrame, judged: JudgedImages, target: Path, console: Console
) -> None:
    """Say which labels of the evaluated images were corrected, and list them beside the figures."""
    path = judged.corrections_path
    assert path is not None
    changes = changes[changes["split"] == judged.split]
    write_text(
        target / "corrections.csv", csv_text(cells_of(changes), index=False), advice=WRITABLE
    )
    for sentence in told_corrections(changes, path):
        say(console, f"{sentence} (all in {target / 'corrections.csv'})")


@contextmanager
def _failure_kept(folder: RunFolder, name: str, against: Path | None = None) -> Iterator[None]:
    """If a report fails, keep its traceback beside the figures until a report is drawn.

    Raises:
        ReportError: the block raised an error; says why, where the traceback is, and what to do.
    """
    path = folder.evaluation_dir(name) / REPORT_ERROR
    try:
        yield
    except Exception as error:
        reason = str(error)
        if not isinstance(error, RecameError):
            reason = f"{type(error).__name__}: {error}"
        kept = f"The traceback is in {path}."
        try:
            write_text(path, traceback.format_exc(), advice="Free some space.")
        except RecameError as unwritten:
            kept = f"The traceback is lost: {unwritten}"
        words: list[str | Path] = ["recame", "report", folder.path, "--split", name]
        words += [] if against is None else ["--against", against]
        raise ReportError(
            f"The report could not be drawn ({reason}); the figures in {path.parent} are complete. "
            f"{kept} Draw the report again with: {command(*words)}"
        ) from error
    path.unlink(missing_ok=True)


def report(
    run: AnyPath,
    split: str = "test",
    against: AnyPath | None = None,
    console: Console | None = None,
) -> ReportFiles:
    """Draw the report of a finished run on one split, into `evaluation/<split>/`.

    The predictions that `evaluate` wrote are used. If there are none, or other weights made them,
    the split is evaluated first. The same holds for the baseline.

    Args:
        run: the run's folder.
        split: which split, or the name under which `evaluate` kept another source's figures.
        against: the folder of another run to compare with on the same images.
        console: where progress goes; silent if None.

    Returns:
        Paths of the page, its Markdown summary and its JSON.

    Raises:
        ReportError: the figures are complete, but the page cannot be drawn; `report_error.txt`
            beside them holds the traceback.
        RecameError: a run or its data cannot be used, or another process evaluates it now.
    """
    from recame.reports.draw import draw_report

    console = console or Console(quiet=True)
    other = None if against is None else Path(against)
    baseline = None if other is None else _baseline(other, split, console)
    predictions = _predictions(folder_of(run), split, console)
    folder, config, loaded = _opened(run)
    evaluation = evaluate_as_configured(predictions, loaded.label_space, config)
    judged = JudgedImages.read(folder, split) or JudgedImages(None, split, "")
    source, config = judged.source, judged.config(config)
    decisions = KeptDecisions.of(folder, config)
    with (
        folder.in_evaluation(split),
        _failure_kept(folder, split, other),
        progress_bars(console) as progress,
    ):
        data, missing = _images(judged, folder, config, loaded, progress)
        return draw_report(
            folder,
            config,
            loaded,
            data,
            predictions,
            evaluation,
            judged.split,
            name=split,
            source=source or (None if data is None else folder.info().get("data")),
            missing=missing,
            baseline=baseline,
            calibration=decisions.calibration,
            outcome=decide_split(folder, decisions, predictions, judged.words()).outcome,
            progress=progress,
        )


def _predictions(run: Path, split: str, console: Console) -> Predictions:
    """The predictions that `evaluate` wrote for a split; else evaluate it now."""
    folder = RunFolder.open(run)
    path = folder.evaluation_dir(split) / PREDICTIONS
    judged = JudgedImages.read(folder, split) if path.exists() else None
    found = None
    if judged is None:
        found = evaluate(run, split=split, console=console, report=False).predictions
    else:
        kept = KeptDecisions.of(folder, judged.config(folder.load_config())).policy
        stale = kept is not None and kept.sha256 != judged.decided
        if stale or judged.weights not in ("", folder.weights_sha256()):
            found = evaluate(
                run,
                judged.source,
                split=judged.split,
                name=split,
                views=judged.views,
                corrections=judged.corrections,
                settings=judged.settings,
                report=False,
                console=console,
            ).predictions
    written = load_predictions(path, folder.label_space().names).predictions
    # Only the table holds the notes on each image.
    return written if found is None else replace(found, table=written.table)


def _baseline(run: Path, split: str, console: Console) -> Baseline:
    predictions = _predictions(run, split, console)
    folder = RunFolder.open(run)
    return Baseline(folder.path.resolve().name, predictions, folder.label_space(), str(run))


def _images(
    judged: JudgedImages,
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    progress: Progress,
) -> tuple[InspectionSet | None, str]:
    """The evaluated images, and why not all of them are there.

    If some of the run's own images have moved, only those of the split are returned, or None.
    """
    described: list[Path | pd.DataFrame]
    split, source = judged.split, judged.source
    if source is not None:  # `evaluate` was given other images than the run's
        described = [Path(source)]
    else:
        table, _ = judged.images(folder, config)
        assert isinstance(table, pd.DataFrame)
        own = table["split"] == split
        parts = (table, table[own | (table["split"] == "train")], table[own])
        described = [part.reset_index(drop=True) for part in parts if len(part)]
    reason = ""
    for part in described:
        try:
            path = judged.corrections_path
            found = images_to_judge(part, config, loaded, split, progress, corrections=path)
            return found, reason
        except DataError as error:
            reason = str(error)
    return None, reason
