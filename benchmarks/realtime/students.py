"""Teachers, their students, the students' bundles, and what all of them say of the test images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console

import recame
from models import (
    Eager,
    TestSplit,
    bundle_path,
    export_missing,
    exported,
    in_batches,
    train_once,
)
from recame.config import load_config
from recame.contracts import Predictions
from recame.decisions.calibration import Calibration
from recame.files import write_json
from recame.metrics.evaluation import evaluate_predictions
from recame.runtime import load, open_bundle

HERE = Path(__file__).parent
#: A changed answer is a tie where torch itself has the two classes this close.
TIE = 2e-4

Array = np.ndarray[Any, np.dtype[Any]]


def train_all(
    manifest: Path,
    runs: Path,
    student_file: Path,
    seeds: list[int],
    console: Console,
    changes: dict[str, object],
) -> dict[str, Any]:
    """Go through the queue; what is finished is not done again.

    Args:
        manifest: of DeepPCB-LT.
        runs: where `teacher-<seed>`, `student-<seed>` and the bundles lie.
        student_file: what `recame distill` is told.
        seeds: one teacher and one student each.
        console: for progress.
        changes: settings of a quick check, else empty.
    """
    found: dict[str, Any] = {}
    for seed in seeds:
        console.rule(f"seed {seed}")
        teacher, student = runs / f"teacher-{seed}", runs / f"student-{seed}"
        config = load_config(HERE / "teacher.yaml").updated({**changes, "run.seed": seed})
        train_once(manifest, config, teacher, console)
        distill_once(teacher, student, student_file, seed, console, changes)
        for run in (teacher, student):
            if "test" not in _metrics(run):
                recame.evaluate(run, report=False, console=console)
        refused = export_missing(student, console)
        found[str(seed)] = {
            "teacher": _scores(_metrics(teacher)["test"]),
            "student": _scores(_metrics(student)["test"]),
            "bundles": judge_bundles(teacher, student, console),
            "refused": refused,
        }
    return found


def make_timed(
    manifest: Path, runs: Path, student_file: Path, console: Console, changes: dict[str, object]
) -> None:
    """Make `teacher-0`, `student-0` and all bundles, hardly trained: their speed is the same.

    Args:
        manifest: of DeepPCB-LT.
        runs: where they lie.
        student_file: what `recame distill` is told.
        console: for progress.
        changes: settings that make training short.
    """
    teacher, student = runs / "teacher-0", runs / "student-0"
    config = load_config(HERE / "teacher.yaml").updated({**changes, "run.seed": 0})
    train_once(manifest, config, teacher, console)
    distill_once(teacher, student, student_file, 0, console, changes)
    export_missing(student, console, only_timed=True)


def distill_once(
    teacher: Path,
    student: Path,
    student_file: Path,
    seed: int,
    console: Console,
    changes: dict[str, object],
) -> None:
    """Distil a student as a file says, take it up, or leave it where it is finished."""
    from recame.training.student.distill import distill

    settings = yaml.safe_load(student_file.read_text(encoding="utf-8")) or {}
    backbone = settings.pop("backbone", None)
    named = {f"{part}.{key}": v for part, keys in settings.items() for key, v in keys.items()}
    distill(
        teacher,
        out=student,
        backbone=backbone,
        changes={**named, **changes, "run.seed": seed},
        resume=(student / "run.json").exists(),
        console=console,
    )


def judge_bundles(teacher: Path, student: Path, console: Console) -> dict[str, Any]:
    """Scores and parity of each bundle on the test images; kept beside the bundle."""
    found: dict[str, Any] = {}
    images: TestSplit | None = None
    said_by_teacher: Array | None = None
    for name in exported(student):
        path = bundle_path(student, name)
        bundle = open_bundle(path)
        kept = path.with_name(f"{path.name}.judged.json")
        judged = json.loads(kept.read_text()) if kept.exists() else {}
        if judged.get("checksum") != bundle.document["checksum"]:
            console.print(f"judging {path}", highlight=False)
            tail = _metrics(teacher)["test"]["tail_classes"]
            if images is None or said_by_teacher is None:
                images = TestSplit(student, bundle.spec, tail)
                said_by_teacher = _teachers_answers(teacher, images)
            # Of a bundle of a version before, whose graph holds its temperature.
            calibration = bundle.calibration or Calibration(bundle.temperature, {})
            eager = Eager(student, views=bundle.views, calibrate=calibration.apply)
            judged = {
                "checksum": bundle.document["checksum"],
                **compare(
                    in_batches(load(path).probabilities, images.images),
                    in_batches(eager, images.images),
                    said_by_teacher,
                    images,
                ),
            }
            write_json(kept, judged)
        found[name] = judged
    return found


def _teachers_answers(teacher: Path, images: TestSplit) -> Array:
    """The classes that the teacher's own evaluation gave the test images, views and all: (N,)."""
    table = pd.read_parquet(teacher / "evaluation" / "test" / "predictions.parquet")
    named = table.set_index("image")["prediction"].loc[images.table["image"]]
    return np.array([images.label_space.index(name) for name in named])


def compare(found: Array, expected: Array, teachers: Array, images: TestSplit) -> dict[str, Any]:
    """A bundle's scores, and its distance from the same network in torch.

    Args:
        found: (N, C) the bundle's probabilities.
        expected: (N, C) torch's.
        teachers: (N,) the teacher's classes.
        images: the N test images.
    """
    predictions = Predictions(images.table, found, found[:, None], images.target)
    judged = evaluate_predictions(predictions, images.label_space, bootstrap=0)
    same = found.argmax(1) == expected.argmax(1)
    top = np.sort(expected, axis=1)[:, -2:]
    tie = top[:, 1] - top[:, 0] <= TIE
    return {
        **_scores(judged.to_dict()),
        "images": len(found),
        "tail_images": int(images.tail.sum()),
        "max_difference": float(np.abs(found - expected).max()),
        "agreement": float(same.mean()),
        "agreement_tail": float(same[images.tail].mean()),
        "changed": int((~same).sum()),
        "changed_without_tie": int((~same & ~tie).sum()),
        "agreement_with_teacher": float((found.argmax(1) == teachers).mean()),
    }


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: metrics[name]["value"] for name in ("balanced_accuracy", "tail_recall")}


def _metrics(run: Path) -> dict[str, Any]:
    path = run / "metrics.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
