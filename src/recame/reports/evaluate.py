"""Judge a finished run by its predictions of labelled images, and draw the report of it."""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console

from recame.config import Config
from recame.contracts import Predictions
from recame.data.dataset import InspectionSet
from recame.decisions.calibration import calibrated_predictions, load_calibration
from recame.errors import DataError, RecameError, ReportError
from recame.files import write_json, write_text
from recame.inference.finished_run import images_to_judge, open_finished, predict_run, recorded_data
from recame.metrics.evaluation import Evaluation, evaluate_as_configured
from recame.models import LoadedModel
from recame.progress import Progress, progress_bars, say
from recame.reports.confusion import save_evaluation
from recame.reports.run_report import Baseline
from recame.reports.terminal import print_evaluation
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions, predictions_table, save_predictions

if TYPE_CHECKING:
    from recame.reports.draw import ReportFiles

#: Beside a split's predictions: which images they are of, and why their report was not drawn.
JUDGED, REPORT_ERROR = "judged.json", "report_error.txt"


@dataclass(frozen=True)
class EvaluatedRun:
    """What `evaluate` found.

    Attributes:
        split: which images were judged.
        evaluation: the figures.
        predictions: each image's probabilities, calibrated.
        folder: where predictions, confusion matrix and tables were written.
        report_error: why the report could not be drawn; None where it was, or none was asked for.
    """

    split: str
    evaluation: Evaluation
    predictions: Predictions
    folder: Path
    report_error: ReportError | None = None


def evaluate(
    run: Path | str,
    source: Path | str | None = None,
    *,
    split: str = "test",
    report: bool = True,
    console: Console | None = None,
) -> EvaluatedRun:
    """Judge a finished run on one split and write the figures into its folder.

    `metrics.json` gets the split's headline numbers; `evaluation/<split>/` gets
    `predictions.parquet`, `per_class.csv`, `confusion.csv` and `confusion.png`, and with `report`
    then `report.html`, `report.md` and `report.json`.

    Args:
        run: the run's folder.
        source: labelled images; None: the data that the run was trained from, split as then.
            A source without splits is judged whole, under the name given as `split`.
        split: which split to judge.
        report: also draw the report; if that fails, the figures stay, the reason is printed and
            returned, and its traceback lies in `report_error.txt`.
        console: where progress and figures go; silent if None.

    Raises:
        RecameError: the run or the data cannot be used, or labels were never trained.
    """
    console = console or Console(quiet=True)
    folder, config, loaded = open_finished(run)
    with progress_bars(console) as progress:
        described = recorded_data(folder, config) if source is None else Path(source)
        data = images_to_judge(described, config, loaded, split, progress)
        found = predict_run(folder, config, loaded, data, split, progress, features=report)
    calibration = load_calibration(folder.decisions_path, folder.answers(config))
    predictions = calibrated_predictions(found, calibration)
    evaluation = evaluate_as_configured(predictions, loaded.label_space, config)
    target = folder.evaluation_dir(split)
    save_predictions(
        predictions_table(predictions, loaded.label_space), target / "predictions.parquet"
    )
    # Whoever draws the report later asks for the same images.
    where = None if source is None else str(Path(source).absolute())
    write_json(target / JUDGED, {"source": where})
    folder.update_json("metrics.json", {split: evaluation.to_dict()})
    save_evaluation(evaluation, target, loaded.label_space)
    print_evaluation(evaluation, console, f"{folder.path.name} on {split}")
    judged = EvaluatedRun(split, evaluation, predictions, target)
    if not report:
        return judged
    from recame.reports.draw import draw_report

    try:
        with _failure_kept(folder, split), progress_bars(console) as progress:
            files = draw_report(
                folder,
                config,
                loaded,
                data,
                predictions,
                evaluation,
                split,
                source=source or folder.info().get("data"),
                progress=progress,
            )
    except ReportError as error:  # the figures are what counts, and they are there
        say(console, str(error), "yellow")
        return replace(judged, report_error=error)
    say(console, f"Report: {files.html}")
    return judged


@contextmanager
def _failure_kept(folder: RunFolder, split: str, against: Path | None = None) -> Iterator[None]:
    """Keep the traceback of a report that fails beside the figures, until one is drawn.

    Raises:
        ReportError: the block raised something; says why, where the traceback lies, what to do.
    """
    path = folder.evaluation_dir(split) / REPORT_ERROR
    try:
        yield
    except Exception as error:
        reason = str(error)
        if not isinstance(error, RecameError):
            reason = f"{type(error).__name__}: {error}"
        kept = f"The traceback lies in {path}."
        try:
            write_text(path, traceback.format_exc(), advice="Free some space.")
        except RecameError as unwritten:
            kept = f"The traceback is lost: {unwritten}"
        words = ["recame", "report", str(folder.path), "--split", split]
        words += [] if against is None else ["--against", str(against)]
        raise ReportError(
            f"The report could not be drawn ({reason}); the figures in {path.parent} stand without "
            f"it. {kept} Draw it again with: {shlex.join(words)}"
        ) from error
    path.unlink(missing_ok=True)


def report(
    run: Path | str,
    split: str = "test",
    against: Path | str | None = None,
    console: Console | None = None,
) -> ReportFiles:
    """Draw the report of a finished run on one split, into `evaluation/<split>/`.

    Predictions that `evaluate` left are taken as they are; without any, the split is evaluated
    first. So is the baseline.

    Args:
        run: the run's folder.
        split: which split.
        against: the folder of another run to compare with on the same images.
        console: where progress goes; silent if None.

    Returns:
        Where the page, its Markdown summary and its JSON lie.

    Raises:
        ReportError: the numbers are there, but the page cannot be drawn; `report_error.txt` beside
            them holds the traceback.
        RecameError: a run or its data cannot be used.
    """
    from recame.reports.draw import draw_report, json_or_nothing

    console = console or Console(quiet=True)
    other = None if against is None else Path(against)
    baseline = None if other is None else _baseline(other, split, console)
    predictions = _predictions(Path(run), split, console)
    folder, config, loaded = open_finished(run)
    evaluation = evaluate_as_configured(predictions, loaded.label_space, config)
    source = json_or_nothing(folder.evaluation_dir(split) / JUDGED).get("source")
    with _failure_kept(folder, split, other), progress_bars(console) as progress:
        data, missing = _images(source, folder, config, loaded, split, progress)
        return draw_report(
            folder,
            config,
            loaded,
            data,
            predictions,
            evaluation,
            split,
            source=source or (None if data is None else folder.info().get("data")),
            missing=missing,
            baseline=baseline,
            progress=progress,
        )


def _predictions(run: Path, split: str, console: Console) -> Predictions:
    """What `evaluate` left of a split, or what it finds now."""
    folder = RunFolder.open(run)
    path = folder.evaluation_dir(split) / "predictions.parquet"
    if not path.exists():
        return evaluate(run, split=split, console=console, report=False).predictions
    return load_predictions(path, folder.label_space())


def _baseline(run: Path, split: str, console: Console) -> Baseline:
    predictions = _predictions(run, split, console)
    folder = RunFolder.open(run)
    return Baseline(folder.path.resolve().name, predictions, folder.label_space(), str(run))


def _images(
    source: str | None,
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    split: str,
    progress: Progress,
) -> tuple[InspectionSet | None, str]:
    """The images that were judged, and why not all of them are there.

    Of a run's own, where some have moved, the split's alone, or none.
    """
    described: list[Path | pd.DataFrame]
    if source is not None:  # `evaluate` was given other images than the run's
        described = [Path(source)]
    else:
        table = recorded_data(folder, config)
        own = table["split"] == split
        parts = (table, table[own | (table["split"] == "train")], table[own])
        described = [part.reset_index(drop=True) for part in parts if len(part)]
    reason = ""
    for part in described:
        try:
            return images_to_judge(part, config, loaded, split, progress), reason
        except DataError as error:
            reason = str(error)
    return None, reason
