"""From run folders to a report: reads what a run left, and lets `recame.evaluation` draw it."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from recame.config import Config
from recame.contracts import Predictions
from recame.data import InspectionSet
from recame.errors import DataError
from recame.evaluation import Evaluation, load_predictions
from recame.evaluation.progress import Report, progress_bars
from recame.evaluation.report import (
    Baseline,
    ReportFiles,
    RunFacts,
    Setting,
    build_report,
    gather_evidence,
    write_report,
)
from recame.label_space import LabelSpace
from recame.models import LoadedModel
from recame.training.finished_run import (
    JUDGED,
    evaluate,
    images_to_judge,
    judge,
    open_finished,
    recorded_data,
)
from recame.training.run_folder import RunFolder


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
    evaluation = judge(predictions, loaded, config)
    with progress_bars(console) as progress:
        source = _read_json(folder.path / "evaluation" / split / JUDGED).get("source")
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
    progress: Report | None = None,
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


def _predictions(run: Path, split: str, console: Console) -> Predictions:
    """What `evaluate` left of a split, or what it finds now."""
    folder = RunFolder.open(run)
    path = folder.path / "evaluation" / split / "predictions.parquet"
    if not path.exists():
        return evaluate(run, split=split, console=console, report=False).predictions
    return load_predictions(path, _label_space(folder))


def _baseline(run: Path, split: str, console: Console) -> Baseline:
    predictions = _predictions(run, split, console)
    folder = RunFolder.open(run)
    return Baseline(folder.path.resolve().name, predictions, _label_space(folder), str(run))


def _label_space(folder: RunFolder) -> LabelSpace:
    path = folder.path / "label_space.json"
    try:
        return LabelSpace.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}), so the predictions' classes are unknown: copy the "
            "run's folder again."
        ) from error


def _images(
    table: pd.DataFrame, split: str, config: Config, loaded: LoadedModel, progress: Report
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
    source: Path, split: str, config: Config, loaded: LoadedModel, progress: Report
) -> InspectionSet | None:
    try:
        return images_to_judge(source, config, loaded, split, progress)
    except DataError:
        return None


def run_facts(
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    split: str,
    *,
    source: Path | str | None = None,
    baseline: Baseline | None = None,
) -> RunFacts:
    """How a run was made, from the files it left; a file that an older run lacks is passed over.

    Args:
        folder: of the run.
        config: its settings.
        loaded: its model.
        split: that is reported.
        source: where the judged images were described; None if unknown.
        baseline: named in the command.
    """
    info, environment = folder.info(), _read_json(folder.path / "environment.json")
    phases = _read_json(folder.path / "phases.json")
    packages = environment.get("packages", {})
    cuda = environment.get("cuda") or []
    hardware = ", ".join(cuda) or str(environment.get("processor", ""))
    if not cuda and environment.get("cpu_threads"):
        hardware += f", {environment['cpu_threads']} threads"
    facts = {
        "seed": str(config.run.seed),
        "data fingerprint": str(info.get("data_fingerprint", "")),
        "started": str(info.get("started", "")),
        "training time": _duration(info),
        "hardware": hardware,
        "system": str(environment.get("platform", "")),
        "Python": str(environment.get("python", "")),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "model": _model_text(loaded),
        "taught by": str(info.get("teacher", {}).get("path", "")),
        "run folder": str(folder.path.resolve()),
    }
    run, data = shlex.quote(str(folder.path)), shlex.quote(str(info.get("data", "DATA")))
    against = ""
    if baseline is not None:
        against = f" --against {shlex.quote(baseline.path or baseline.name)}"
    # Images that the run was not trained from are named, the others are in its manifest.
    elsewhere = source is not None and str(source) != info.get("data")
    judged = f" {shlex.quote(str(source))}" if elsewhere else ""
    on_split = "" if split == "test" else f" --split {shlex.quote(split)}"
    return RunFacts(
        name=folder.path.resolve().name,
        split=split,
        data=str(info.get("data", "")),
        source=str(source or ""),
        settings=config.model_dump(mode="json", exclude={"schema_version"}),
        changed=_changed(config),
        facts=tuple((name, text) for name, text in facts.items() if text.strip(", ")),
        reasons=tuple(folder.reasons()),
        commands=(
            _training_command(info, data, run),
            f"recame evaluate {run}-again{judged}{on_split}",
            f"recame report {run}-again{on_split}{against}",
        ),
        history=_history(folder.history_path),
        phases=phases,
        product_column=config.data.product_column,
    )


def _training_command(info: dict[str, Any], data: str, run: str) -> str:
    """What makes the run again; a student is made of its teacher."""
    teacher = info.get("teacher")
    if teacher is None:
        return f"recame train {data} --config {run}/config.yaml --out {run}-again"
    asked = teacher.get("asked", {})
    words = [shlex.quote(teacher["path"])]
    words += [f"--backbone {shlex.quote(asked['backbone'])}"] if asked.get("backbone") else []
    words += [f"--unlabelled {shlex.quote(path)}" for path in asked.get("unlabelled", ())]
    words += [
        f"--set {shlex.quote(f'{name}={_word(value)}')}"
        for name, value in asked.get("changes", {}).items()
    ]
    return f"recame distill {' '.join(words)} --out {run}-again"


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _changed(config: Config) -> tuple[Setting, ...]:
    default = Config().model_dump(mode="json", exclude={"schema_version"})
    own = config.model_dump(mode="json", exclude={"schema_version"})
    return tuple(
        Setting(f"{section}.{name}", value, default[section][name])
        for section, values in own.items()
        for name, value in values.items()
        if value != default[section][name]
    )


def _model_text(loaded: LoadedModel) -> str:
    plan = loaded.architecture
    experts = "1 expert" if plan.num_experts == 1 else f"{plan.num_experts} experts"
    weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    size = f"{loaded.spec.height} x {loaded.spec.width} pixels"
    return f"{plan.backbone}, {experts}, attention {plan.attention}, {weights:,} weights, {size}"


def _holds_training(folder: RunFolder, data: InspectionSet) -> bool:
    """Whether the data's training split is the one that the model learned from."""
    try:
        known = pd.read_csv(folder.path / "manifest.csv", usecols=["path", "split"])
    except (OSError, ValueError):
        return False
    learned = known.loc[known["split"] == "train", "path"]
    table = data.table
    return bool(table.loc[table["split"] == "train", "path"].astype(str).isin(learned).all())


def _duration(info: dict[str, Any]) -> str:
    try:
        begun, ended = (datetime.fromisoformat(info[name]) for name in ("started", "finished"))
    except (KeyError, ValueError):
        return ""
    seconds = round((ended - begun).total_seconds())
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    text = " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
    return f"{text}, interruptions included" if info.get("resumed") else text


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _history(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError):
        return pd.DataFrame()
    return table if "epoch" in table else pd.DataFrame()
