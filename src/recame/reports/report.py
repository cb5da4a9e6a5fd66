"""From run folders to a report: reads what a run left, and draws it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.console import Console

from recame.config import Config
from recame.contracts import Predictions
from recame.data.dataset import InspectionSet
from recame.errors import DataError
from recame.inference.finished_run import images_to_judge, open_finished, recorded_data
from recame.metrics.evaluation import evaluate_as_configured
from recame.models import LoadedModel
from recame.progress import Progress, progress_bars
from recame.reports.draw import draw_report
from recame.reports.evaluate import JUDGED, evaluate
from recame.reports.facts import _read_json
from recame.reports.files import ReportFiles
from recame.reports.run_report import Baseline
from recame.runs.folder import RunFolder
from recame.runs.predictions import load_predictions


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
        RecameError: a run or its data cannot be used.
    """
    console = console or Console(quiet=True)
    baseline = None if against is None else _baseline(Path(against), split, console)
    predictions = _predictions(Path(run), split, console)
    folder, config, loaded = open_finished(run)
    evaluation = evaluate_as_configured(predictions, loaded.label_space, config)
    with progress_bars(console) as progress:
        source = _read_json(folder.evaluation_dir(split) / JUDGED).get("source")
        if source is None:
            table = recorded_data(folder, config)
            data = _images(table, split, config, loaded, progress)
        else:  # `evaluate` was given other images than the run's
            data = _images_elsewhere(Path(source), split, config, loaded, progress)
        return draw_report(
            folder,
            config,
            loaded,
            data,
            predictions,
            evaluation,
            split,
            source=source or (None if data is None else folder.info().get("data")),
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
    table: pd.DataFrame, split: str, config: Config, loaded: LoadedModel, progress: Progress
) -> InspectionSet | None:
    """The run's images; without those that have moved: the split's alone, or none."""
    found = table["split"] == split
    parts = [table, table[found | (table["split"] == "train")], table[found]]
    for part in parts:
        if part.empty:
            continue
        try:
            return images_to_judge(part.reset_index(drop=True), config, loaded, split, progress)
        except DataError:
            continue
    return None


def _images_elsewhere(
    source: Path, split: str, config: Config, loaded: LoadedModel, progress: Progress
) -> InspectionSet | None:
    try:
        return images_to_judge(source, config, loaded, split, progress)
    except DataError:
        return None
