"""The report of numbers that are at hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from recame.config import Config
from recame.contracts import Predictions
from recame.data.dataset import InspectionSet
from recame.metrics.evaluation import Evaluation
from recame.models import LoadedModel
from recame.progress import Progress, silent
from recame.reports.evidence import gather_evidence
from recame.reports.facts import run_facts
from recame.reports.files import ReportFiles, write_report
from recame.reports.run_report import Baseline, build_report
from recame.runs.folder import RunFolder


def draw_report(
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    data: InspectionSet | None,
    predictions: Predictions,
    evaluation: Evaluation,
    split: str,
    *,
    source: Path | str | None = None,
    baseline: Baseline | None = None,
    progress: Progress = silent,
) -> ReportFiles:
    """Draw the report of numbers that are at hand.

    Args:
        folder: of the run.
        config: its settings.
        loaded: its model, on its device.
        data: the images; None: a report without pictures.
        predictions: of the split.
        evaluation: of the predictions.
        split: its name.
        source: where the images were described; None if unknown.
        baseline: another run's predictions of the split.
        progress: called while images pass.
    """
    evidence = gather_evidence(
        loaded,
        data,
        predictions,
        split,
        product_column=config.data.product_column,
        batch_size=config.evaluation.batch_size,
        seed=config.run.seed,
        of_the_run=data is not None and _holds_training(folder, data),
        on_progress=progress,
    )
    facts = run_facts(folder, config, loaded, split, source=source, baseline=baseline)
    made = build_report(
        facts,
        evaluation,
        predictions,
        loaded.label_space,
        evidence,
        baseline=baseline,
        seed=config.run.seed,
    )
    return write_report(made, folder.path / "evaluation" / split)


def _holds_training(folder: RunFolder, data: InspectionSet) -> bool:
    """Whether the data's training split is the one that the model learned from."""
    try:
        known = pd.read_csv(folder.manifest_path, usecols=["path", "split"])
    except (OSError, ValueError):
        return False
    learned = known.loc[known["split"] == "train", "path"]
    table = data.table
    return bool(table.loc[table["split"] == "train", "path"].astype(str).isin(learned).all())
