"""Draw a report from figures that are already computed, and write it to disk."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from recame.config import Config
from recame.contracts import AnyPath, Predictions
from recame.data.corrections import CHANGES, LEFT_OUT
from recame.data.dataset import InspectionSet
from recame.decisions.calibration import Calibration
from recame.decisions.outcome import Outcome
from recame.errors import CheckpointError
from recame.files import json_text, read_json, text_bytes, write_together
from recame.inference.finished_run import answering_graph, recorded_data
from recame.metrics.evaluation import Evaluation
from recame.models import LoadedModel
from recame.names import command, counted
from recame.progress import Progress, silent
from recame.reports.confusion import WRITABLE
from recame.reports.evidence import gather_evidence
from recame.reports.markdown import report_markdown
from recame.reports.report_page import report_html
from recame.reports.run_report import Baseline, RunFacts, RunReport, Setting, build_report
from recame.runs.folder import RunFolder


class ReportFiles(NamedTuple):
    """Paths of a report's files.

    Attributes:
        html: the page.
        markdown: its summary.
        json: all numbers, with a schema version.
    """

    html: Path
    markdown: Path
    json: Path


def draw_report(
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    data: InspectionSet | None,
    predictions: Predictions,
    evaluation: Evaluation,
    split: str,
    *,
    name: str | None = None,
    source: AnyPath | None = None,
    missing: str = "",
    baseline: Baseline | None = None,
    calibration: Calibration | None = None,
    outcome: Outcome | None = None,
    progress: Progress = silent,
) -> ReportFiles:
    """Draw the report from figures that are already computed.

    Args:
        folder: of the run.
        config: its settings.
        loaded: its model, on its device.
        data: the images; None: a report without pictures.
        predictions: of the split.
        evaluation: of the predictions.
        split: its name.
        name: under which its figures are kept; None: the split's name.
        source: where the images are described; None if unknown.
        missing: why images are missing in `data`, in sentences.
        baseline: another run's predictions of the split.
        calibration: of the probabilities.
        outcome: results of the run's decisions on the images.
        progress: called while images are processed.
    """
    learned, why = (False, "") if data is None else _holds_training(folder, config, data)
    evidence = gather_evidence(
        loaded,
        data,
        predictions,
        split,
        product_column=config.data.product_column,
        batch_size=config.evaluation.batch_size,
        seed=config.run.seed,
        of_the_run=learned,
        missing=missing or why,
        graph=None if data is None else answering_graph(folder, config),
        on_progress=progress,
    )
    name = name or split
    facts = run_facts(
        folder,
        config,
        loaded,
        split,
        name=name,
        source=source,
        baseline=baseline,
        calibration=calibration,
    )
    space, seed = loaded.label_space, config.run.seed
    made = build_report(
        facts,
        evaluation,
        predictions,
        space,
        evidence,
        baseline=baseline,
        outcome=outcome,
        seed=seed,
    )
    return write_report(made, folder.evaluation_dir(name))


def write_report(report: RunReport, folder: Path) -> ReportFiles:
    """Write `report.html`, `report.md` and `report.json`.

    Everything is drawn before anything is written; files get their names when all are on disk.

    Args:
        report: the report.
        folder: made if it is missing.

    Raises:
        DataError: the folder cannot be written, or the disk is full; an old report survives.
    """
    files = ReportFiles(*(folder / f"report.{suffix}" for suffix in ("html", "md", "json")))
    texts = (report_html(report), report_markdown(report), json_text(report.to_dict()))
    with write_together(folder, advice=WRITABLE) as partial:
        for path, text in zip(files, texts, strict=True):
            (partial / path.name).write_bytes(text_bytes(text))
    return files


def _holds_training(folder: RunFolder, config: Config, data: InspectionSet) -> tuple[bool, str]:
    """Whether the data's training split trained the model; if that is not known, why."""
    try:
        known = recorded_data(folder, config)
    except CheckpointError as error:
        return False, str(error)
    learned, now = (t.loc[t["split"] == "train", "path"].astype(str) for t in (known, data.table))
    return bool(now.isin(learned).all()), ""


def run_facts(
    folder: RunFolder,
    config: Config,
    loaded: LoadedModel,
    split: str,
    *,
    name: str | None = None,
    source: AnyPath | None = None,
    baseline: Baseline | None = None,
    calibration: Calibration | None = None,
) -> RunFacts:
    """Collect how a run was made from its files; files that an older run lacks are skipped.

    Args:
        folder: of the run.
        config: its settings.
        loaded: its model.
        split: that is reported.
        name: under which its figures are kept; None: the split's name.
        source: where the evaluated images are described; None if unknown.
        baseline: to name in the command that makes the report again.
        calibration: of the probabilities.
    """
    info, environment = folder.info(), _facts(folder.path / "environment.json")
    settings = config.model_dump(mode="json", exclude={"schema_version"})
    packages, hardware = environment.get("packages", {}), ", ".join(environment.get("cuda") or [])
    if not hardware:
        threads = environment.get("cpu_threads")
        hardware = str(environment.get("processor", "")) + (
            f", {threads} threads" if threads else ""
        )
    corrections = folder.listed(folder.corrections_path, CHANGES)
    facts = {
        "seed": str(config.run.seed),
        "data fingerprint": str(info.get("data_fingerprint", "")),
        "corrected labels": "" if corrections is None else _corrected_text(corrections),
        "started": str(info.get("started", "")),
        "training time": _duration(info),
        "hardware": hardware,
        "system": str(environment.get("platform", "")),
        "Python": str(environment.get("python", "")),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "model": _model_text(loaded),
        "calibration": "" if calibration is None else calibration.sentence(),
        "taught by": str(info.get("teacher", {}).get("path", "")),
        "run folder": str(folder.path.resolve()),
    }
    again = Path(f"{folder.path}-again")
    other: list[str | Path] = (
        [] if baseline is None else ["--against", Path(baseline.path or baseline.name)]
    )
    # Only images from elsewhere have to be named; the others are in the run's manifest.
    elsewhere = source is not None and str(source) != info.get("data")
    judged: list[str | Path] = [Path(str(source))] if elsewhere else []
    name = name or split
    on_split, reported = ([] if word == "test" else ["--split", word] for word in (split, name))
    judged += ["--name", name] if elsewhere else []
    return RunFacts(
        name=folder.path.resolve().name,
        split=name,
        data=str(info.get("data", "")),
        source=str(source or ""),
        settings=settings,
        changed=_changed(settings),
        facts=tuple((name, text) for name, text in facts.items() if text.strip(", ")),
        reasons=tuple(folder.reasons()),
        commands=(
            command("recame", *_training_words(info, folder.path), "--out", again),
            command("recame", "evaluate", again, *judged, *on_split),
            command("recame", "report", again, *reported, *other),
        ),
        history=_history(folder),
        phases=_facts(folder.path / "phases.json"),
        product_column=config.data.product_column,
    )


def _training_words(info: dict[str, Any], run: Path) -> list[str | Path]:
    """The command that makes the run again; a student is made from its teacher."""
    teacher = info.get("teacher")
    if teacher is None:
        return ["train", Path(info.get("data", "DATA")), "--config", run / "config.yaml"]
    asked = teacher.get("asked", {})
    words: list[str | Path] = ["distill", Path(teacher["path"])]
    words += ["--backbone", asked["backbone"]] if asked.get("backbone") else []
    for path in asked.get("unlabelled", ()):
        words += ["--unlabelled", Path(path)]
    for name, value in asked.get("changes", {}).items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return words


def _corrected_text(changes: pd.DataFrame) -> str:
    """How many labels people corrected, by split."""
    splits = ", ".join(
        f"{name} {count:,}" for name, count in changes["split"].value_counts().items()
    )
    out = int((changes["is"] == LEFT_OUT).sum())
    return f"{len(changes):,} ({splits or 'none'}; {out:,} of them left out; corrections.csv)"


def _changed(settings: dict[str, dict[str, Any]]) -> tuple[Setting, ...]:
    default = Config().model_dump(mode="json")
    return tuple(
        Setting(f"{section}.{name}", value, default[section][name])
        for section, values in settings.items()
        for name, value in values.items()
        if value != default[section][name]
    )


def _model_text(loaded: LoadedModel) -> str:
    plan, spec = loaded.architecture, loaded.spec
    weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    return (
        f"{plan.backbone}, {counted(plan.num_experts, 'expert')}, attention {plan.attention}, "
        f"{weights:,} weights, {spec.height} x {spec.width} pixels"
    )


def _duration(info: dict[str, Any]) -> str:
    try:
        begun, ended = (datetime.fromisoformat(info[name]) for name in ("started", "finished"))
    except (KeyError, ValueError):
        return ""
    minutes, seconds = divmod(round((ended - begun).total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    text = " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
    return f"{text}, interruptions included" if info.get("resumed") else text


def _facts(path: Path) -> dict[str, Any]:
    """A JSON file of a run; empty if an older run lacks it."""
    way_out = "It was edited or damaged: take it from a copy of the run, or remove it."
    return read_json(path, advice=way_out) if path.exists() else {}


def _history(folder: RunFolder) -> pd.DataFrame:
    """The figures of each epoch; empty if there was no epoch."""
    table = folder.history()
    return pd.DataFrame() if table is None else table.apply(pd.to_numeric)
