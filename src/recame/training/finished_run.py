"""What a finished run is judged by: its predictions of labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from recame.config import Config
from recame.contracts import Predictions
from recame.data import InspectionSet, load_inspection_set
from recame.data.manifest import read_recorded_manifest
from recame.errors import CheckpointError
from recame.evaluation import (
    Evaluation,
    evaluate_predictions,
    predict_split,
    predictions_table,
    save_evaluation,
    save_predictions,
)
from recame.evaluation.progress import Report, progress_bars
from recame.models import LoadedModel, load_checkpoint
from recame.training.planner import choose_device
from recame.training.run_folder import RunFolder, write_json

#: Images up to which a prediction keeps its features for the report.
_MOST_FEATURES = 5000
#: Beside a split's predictions: which images they are of.
JUDGED = "judged.json"


@dataclass(frozen=True)
class EvaluatedRun:
    """What `evaluate` found.

    Attributes:
        split: which images were judged.
        evaluation: the figures.
        predictions: each image's probabilities.
        folder: where predictions, confusion matrix and tables were written.
    """

    split: str
    evaluation: Evaluation
    predictions: Predictions
    folder: Path


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
        report: also draw the report; if that fails, the figures stay and the reason is printed.
        console: where progress and figures go; silent if None.

    Raises:
        RecameError: the run or the data cannot be used, or labels were never trained.
    """
    console = console or Console(quiet=True)
    folder, config, loaded = open_finished(run)
    with progress_bars(console) as progress:
        described = recorded_data(folder, config) if source is None else Path(source)
        data = images_to_judge(described, config, loaded, split, progress)
        predictions = _predict(loaded, data, split, config, progress, features=report)
    evaluation = judge(predictions, loaded, config)
    target = folder.path / "evaluation" / split
    target.mkdir(parents=True, exist_ok=True)
    save_predictions(
        predictions_table(predictions, loaded.label_space), target / "predictions.parquet"
    )
    # Whoever draws the report later asks for the same images.
    where = None if source is None else str(Path(source).absolute())
    write_json(target / JUDGED, {"source": where})
    folder.update_json("metrics.json", {split: evaluation.to_dict()})
    save_evaluation(evaluation, target, loaded.label_space)
    evaluation.print(console, title=f"{folder.path.name} on {split}")
    judged = EvaluatedRun(split, evaluation, predictions, target)
    if report:
        _draw(folder, config, loaded, data, judged, source, console)
    return judged


def _draw(
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    data: InspectionSet,
    judged: EvaluatedRun,
    source: Path | str | None,
    console: Console,
) -> None:
    """Draw the report of what is already written; a failure costs the report alone."""
    from recame.training.reporting import draw_report

    try:
        with progress_bars(console) as progress:
            files = draw_report(
                folder,
                config,
                loaded,
                data,
                judged.predictions,
                judged.evaluation,
                judged.split,
                source=source or folder.info().get("data"),
                progress=progress,
            )
    except Exception as error:  # noqa: BLE001 - the figures are what counts, and they are there
        reason = f"{type(error).__name__}: {error}"
        console.print(f"[yellow]The report could not be drawn[/yellow] ({escape(reason)}).")
        console.print(f"Draw it again with: recame report {folder.path} --split {judged.split}")
        return
    console.print(f"Report: {files.html}", highlight=False, soft_wrap=True)


def images_to_judge(
    described: Path | pd.DataFrame,
    config: Config,
    loaded: LoadedModel,
    split: str,
    progress: Report,
) -> InspectionSet:
    """Images as the run's network sees them; a source without splits is all of `split`."""
    return load_inspection_set(
        described,
        config.data,
        seed=config.run.seed,
        spec=loaded.spec,
        label_space=loaded.label_space,
        split_if_absent=split,
        on_progress=lambda done, total: progress("decoding images", done, total),
    )


def judge(predictions: Predictions, loaded: LoadedModel, config: Config) -> Evaluation:
    """Evaluate predictions as the run's settings say."""
    return evaluate_predictions(
        predictions,
        loaded.label_space,
        product_column=config.data.product_column,
        bootstrap=config.evaluation.bootstrap,
        seed=config.run.seed,
    )


def open_finished(run: Path | str) -> tuple[RunFolder, Config, LoadedModel]:
    """A finished run's folder, settings and model.

    Raises:
        CheckpointError: there is no run, or it is not finished.
    """
    folder = RunFolder.open(Path(run))
    if not folder.finished:
        raise CheckpointError(
            f"{folder.path} is not finished: it was interrupted, or still trains. Continue it "
            f"with: recame train DATA --out {folder.path} --resume"
        )
    config = folder.load_config()
    device = choose_device(config.run.accelerator)
    return folder, config, load_checkpoint(folder.path, device)


def recorded_data(folder: RunFolder, config: Config) -> pd.DataFrame:
    """The manifest that the run recorded, so that no image changes its split."""
    return read_recorded_manifest(folder.path / "manifest.csv", config.data.product_column)


def _predict(
    loaded: LoadedModel,
    data: InspectionSet,
    split: str,
    config: Config,
    report: Report,
    *,
    features: bool,
) -> Predictions:
    view = data.view(split)
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        report("predicting", done, len(view))

    return predict_split(
        loaded.model,
        data,
        split,
        num_views=int(config.evaluation.views),
        batch_size=config.evaluation.batch_size,
        device=choose_device(config.run.accelerator),
        on_progress=advance,
        # Those of a very large split would fill the memory; the report then samples.
        with_features=features and len(view) <= _MOST_FEATURES,
        weighting=config.evaluation.weighting,
    )
