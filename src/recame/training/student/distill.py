"""Train a student of a finished run's experts; its run folder is like any other."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from recame.config import SYMMETRIES, Config, height_width, largest_symmetry
from recame.contracts import AnyPath
from recame.data.dataset import load_inspection_set
from recame.errors import CheckpointError, ConfigError
from recame.folders import folder_of
from recame.inference.device import choose_device, choose_precision
from recame.inference.finished_run import open_finished, recorded_data
from recame.inference.predict import predict_split
from recame.losses import LossFactory
from recame.models import (
    LoadedModel,
    MultiExpertClassifier,
    build_backbone,
    register_backbone,
)
from recame.names import by_number, command, counted, quoted
from recame.progress import progress_bars, say
from recame.runs.folder import RunFolder
from recame.runs.trackers import tracking
from recame.training.answering import keep_graph
from recame.training.begin import check_run, quiet_libraries, record_run, track, with_loss
from recame.training.loop.launched import refuse_several
from recame.training.ongoing_run import Measured, OngoingRun
from recame.training.phases.choice import keep_best
from recame.training.phases.finetune import run_finetune
from recame.training.reserve import tell_time
from recame.training.student.recipe import (
    asked_of_student,
    student_config,
    student_reasons,
    student_spec,
)
from recame.training.student.start import start_from_expert
from recame.training.student.step import Distillation, matching_stages
from recame.training.student.teacher import Resized, Teacher
from recame.training.student.unlabelled import (
    UnlabelledImages,
    load_unlabelled,
    reload_unlabelled,
    save_unlabelled,
)
from recame.training.views import fit_views

#: Assumed passes over the training images, to decide whether the teacher becomes a graph.
_RECKONED_PASSES = 10


@dataclass(frozen=True)
class _TeachersRun:
    """The finished run of the teacher."""

    folder: RunFolder
    config: Config
    loaded: LoadedModel

    def facts(self) -> dict[str, Any]:
        """What the student's `run.json` records about it."""
        info = self.folder.info()
        return {
            "name": self.folder.path.resolve().name,
            "path": str(self.folder.path.resolve()),
            "weights_sha256": self.folder.weights_sha256(),
            "data_fingerprint": info.get("data_fingerprint"),
        }


@quiet_libraries()
def distill(
    teacher: AnyPath | None = None,
    *,
    out: AnyPath | None = None,
    backbone: str | None = None,
    unlabelled: Sequence[AnyPath] = (),
    changes: dict[str, Any] | None = None,
    resume: bool = False,
    console: Console | None = None,
    make_loss: LossFactory | None = None,
    started: float | None = None,
) -> RunFolder:
    """Train a student of a finished run's ensemble and write a run folder.

    The student is one network unless `distill.experts` says otherwise. It learns the labels and the
    ensemble's class-balanced distribution, on the teacher's training images and on further
    unlabelled ones. `evaluate`, `report` and all other commands accept its run folder.

    Args:
        teacher: the finished run's folder; with `resume` it may be left out.
        out: the run folder to create, or with `resume` to continue; None: `<teacher>-student`.
        backbone: any timm name; None: the teacher's, cut after `distill.stages` stages.
        unlabelled: folders of further images; labels are not needed and not read.
        changes: `section.key` settings; the others are the teacher's.
        resume: continue an interrupted run with its own settings.
        console: where progress goes; silent if None.
        make_loss: factory of a custom loss on labels, which replaces the `objective` settings, as
            in `train`; give it again to resume.
        started: `time.monotonic()` at which a time budget begins; default: now.

    Returns:
        The finished run's folder. If the loss or the weights became non-finite, training stopped
        early with the last good weights: `stopped` says why.

    Raises:
        RecameError: the teacher, its images, the settings or the folder cannot be used.
    """
    started = time.monotonic() if started is None else started
    refuse_several("recame distill")
    console = console or Console(quiet=True)
    place = _place(teacher, out, resume=resume)
    words = {
        "backbone": backbone,
        "unlabelled": [str(path) for path in unlabelled],
        "changes": {name: _plain(value) for name, value in (changes or {}).items()},
    }
    config = None
    with ExitStack() as held:
        if resume:
            folder = RunFolder.open(place)
            held.enter_context(folder.in_training())
            config = _students_settings(folder)
            if folder.finished:
                folder.drop_unfinished()
                say(console, f"{folder.path} is finished: nothing to resume.")
                return folder
            teacher = teacher or config.distill.teacher
        else:
            folder = RunFolder.free(place)
        if teacher is None:
            raise ConfigError("No teacher given: name the folder of a finished run.")
        teachers = _TeachersRun(*open_finished(teacher))
        _check_same_judgement(teachers)
        if resume:
            _check_same_teacher(folder, teachers)
        run, reasons, asked = _prepare(
            teachers, folder, config, backbone, unlabelled, changes, console, started
        )
        config, make_loss = with_loss(run.config, make_loss, resumed=resume)
        run = replace(run, config=config, make_loss=make_loss)
        check_run(run)
        stage = run.measured.stage
        with stage("teacher"):
            classroom = _classroom(run, teachers, resume=resume)
        if not resume:
            folder.make()
            held.enter_context(folder.in_training())
            RunFolder.free(folder.path)  # another process may have begun a run there meanwhile
        _record(run, teachers, classroom, reasons, asked, words, resume=resume)
        run = replace(run, trackers=held.enter_context(tracking(folder, run.config)))
        candidates = {"start": copy.deepcopy(classroom.model).eval()}
        with stage("training"):
            run, distilled = run_finetune(run, classroom.model, classroom.distillation)
        assert distilled is not None  # without a probe training is never left out
        candidates["distilled"] = distilled
        with stage("judging"):
            run = keep_best(run, candidates)
        with stage("graph"):
            keep_graph(run)
        tell_time(run)
        track(run)
        folder.finish()
    return folder


def _students_settings(folder: RunFolder) -> Config:
    """The settings of a student's run that is resumed."""
    config = folder.load_config()
    if config.distill.teacher is None:
        raise ConfigError(
            f"{folder.path} is not a student: continue it with "
            f"{command('recame', 'train', '--resume', '--out', folder.path)}"
        )
    return config


def _place(teacher: AnyPath | None, out: AnyPath | None, *, resume: bool) -> Path:
    """Path of the student's run."""
    if out is not None:
        return Path(out)
    if resume:
        raise ConfigError("resume=True needs the student's run to continue: out='FOLDER'.")
    if teacher is None:
        raise ConfigError("No teacher given: name the folder of a finished run.")
    run = folder_of(teacher)
    return run.with_name(f"{run.resolve().name}-student")


def _plain(value: object) -> object:
    """Convert a setting to a JSON value."""
    return value if isinstance(value, bool | int | float | list) or value is None else str(value)


def _prepare(
    teachers: _TeachersRun,
    folder: RunFolder,
    config: Config | None,
    backbone: str | None,
    unlabelled: Sequence[AnyPath],
    changes: dict[str, Any] | None,
    console: Console,
    started: float,
) -> tuple[OngoingRun, list[str], Config]:
    """Decide the settings and load the teacher's images at the student's size.

    Returns:
        The run, the reasons for its settings, and the requested settings.
    """
    loaded, reasons, asked = teachers.loaded, list[str](), config
    measured, began = Measured(), time.monotonic()
    measured.stages["start"] = began - started
    if config is None:
        # Decide open settings as for any student.
        changes = {name: value for name, value in (changes or {}).items() if value != "auto"}
        name = backbone or str(changes.get("model.backbone", loaded.architecture.backbone))
        own = teachers.config.updated({"model.backbone": name}).model
        whole = build_backbone(
            str(own.backbone),
            pretrained=False,
            in_channels=loaded.spec.channels,
            origin=own.backbone_from,
        )
        changes["distill.teacher"] = teachers.folder.path.resolve()
        if unlabelled:
            changes["distill.unlabelled"] = tuple(Path(path).resolve() for path in unlabelled)
        theirs = teachers.folder.asked()
        config = student_config(
            teachers.config,
            theirs,
            loaded.architecture,
            loaded.spec,
            num_stages=len(whole.stages),
            backbone=backbone,
            changes=changes,
        )
        fitted = fit_views(config, *height_width(config.data.size))
        config = fitted.config
        reasons = [*student_reasons(config, loaded, len(whole.stages)), *fitted.reasons]
        given = changes if backbone is None else {**changes, "model.backbone": backbone}
        asked = asked_of_student(config, theirs, given)
    register_backbone(config.model.backbone_from)
    device = choose_device(config.run.accelerator)
    config = config.updated({"run.precision": choose_precision(config.run.precision, device)})
    with progress_bars(console) as report:
        data = load_inspection_set(
            recorded_data(teachers.folder, teachers.config),
            config.data.model_copy(
                update={"corrections": None}
            ),  # the teacher's table contains the corrections
            seed=config.run.seed,
            spec=student_spec(config, loaded),
            label_space=loaded.label_space,
            on_progress=report,
        )
    measured.stages["images"] = time.monotonic() - began
    run = OngoingRun(folder, config, data, device, console, started, measured=measured)
    return run, reasons, asked or config


@dataclass(frozen=True)
class _Classroom:
    """A student and its teacher, ready for training.

    Attributes:
        model: the student at its start.
        distillation: adds the teacher to a training step.
        why: origin of the student's starting weights.
        score: the teacher's balanced accuracy on `val`; None without `val`.
    """

    model: MultiExpertClassifier
    distillation: Distillation
    why: str
    score: float | None


def _classroom(run: OngoingRun, teachers: _TeachersRun, *, resume: bool) -> _Classroom:
    """Build the student at its start, and its teacher."""
    settings = run.config.distill
    teacher_model = run.placed(teachers.loaded.model)
    spec = teachers.loaded.spec
    allowed = run.config.augment.symmetry, largest_symmetry(*spec.piece_size)
    teacher = Teacher(
        teacher_model,
        num_views=min(settings.teacher_views, *(SYMMETRIES[name] for name in allowed)),
        features=settings.feature_weight > 0,
        gates=settings.gate_weight > 0,
        # Use an assumed number, not the planned one, so that a resumed run makes the same choice.
        num_images=_RECKONED_PASSES * len(run.data.view("train")),
        precision=run.precision,
    )
    model, why, score = _start(run, teacher_model)
    if settings.gate_weight > 0:
        matching_stages(model, teacher_model)  # refuse stages that cannot be matched
    unlabelled: UnlabelledImages | None = None
    if settings.unlabelled:
        with progress_bars(run.console) as report:
            # A resumed run reuses its list, because the folders may have new images.
            unlabelled = reload_unlabelled(run, report) if resume else None
            if unlabelled is None:
                unlabelled = load_unlabelled(run, settings, Resized(teacher_model), report)
    return _Classroom(model, Distillation(teacher, unlabelled), why, score)


def _record(
    run: OngoingRun,
    teachers: _TeachersRun,
    classroom: _Classroom,
    reasons: list[str],
    asked: Config,
    words: dict[str, Any],
    *,
    resume: bool,
) -> None:
    """Write the description of the student and its teacher, and print it."""
    folder, unlabelled = run.folder, classroom.distillation.unlabelled
    broken = folder.broken() if resume else []
    record_run(run, teachers.folder.source, [*reasons, classroom.why], asked, resume=resume)
    if "teacher" not in folder.info():
        facts = {**teachers.facts(), "val_balanced_accuracy": classroom.score, "asked": words}
        folder.mark("training", teacher=facts)
    if classroom.score is not None:
        say(run.console, f"Teacher on val, one view: balanced accuracy {classroom.score:.3f}")
    if unlabelled is not None:
        save_unlabelled(run, unlabelled)
        broken += [(i.path, i.reason) for i in (*run.data.cache.broken, *unlabelled.broken)]
        folder.save_broken(list(dict.fromkeys(broken)))
        _tell_unlabelled(run, unlabelled)


def _start(
    run: OngoingRun, teacher: MultiExpertClassifier
) -> tuple[MultiExpertClassifier, str, float | None]:
    """The student before training: from an expert if it fits, else from pretrained weights.

    Returns:
        The student, the origin of its weights, and the teacher's balanced accuracy on `val`.
    """
    expert, score = _best_expert(run, teacher)
    settings = run.config.model
    if run.config.distill.experts != "one":
        why = "start = as without a teacher: distill.experts gives the student several experts"
        return run.new_model(), why, score
    student = run.new_model(pretrained=False)
    # Adapters are merged into the weights that they change.
    whole = teacher if teacher.architecture.tuning == "full" else teacher.merged()
    if start_from_expert(student, whole, expert):
        which = f"the teacher's expert {expert + 1}" if teacher.num_experts > 1 else "the teacher"
        return student, f"start = {which}: it has the same backbone", score
    kinds = {False: "random weights", True: "the timm hub's weights", "package": "packaged weights"}
    begin = kinds.get(settings.pretrained, f"the weights of {settings.pretrained}")
    return run.new_model(), f"start = {begin}: the teacher's do not fit {settings.backbone}", score


def _best_expert(run: OngoingRun, teacher: MultiExpertClassifier) -> tuple[int, float | None]:
    """The expert that is best on `val` alone, and the ensemble's balanced accuracy there.

    Without `val`, the last expert: in an ensemble of phases, the first has only pretrained stages.
    """
    if "val" not in run.data.splits:
        return teacher.num_experts - 1, None
    predictions = predict_split(
        Resized(teacher),
        run.data,
        "val",
        num_views=1,
        batch_size=run.config.evaluation.batch_size,
        device=run.device,
        precision=run.precision,
    )
    target = predictions.target
    everyone = np.concatenate(
        [predictions.expert_probabilities, predictions.probabilities[:, None]], axis=1
    )
    hits = (everyone.argmax(2) == target[:, None]) & np.isfinite(everyone).all(2)
    recalls = np.stack([hits[target == label].mean(0) for label in np.unique(target)])
    *experts, ensemble = recalls.mean(0).tolist()
    return int(np.argmax(experts)), float(ensemble)


def _tell_unlabelled(run: OngoingRun, found: UnlabelledImages) -> None:
    """Print which unlabelled images are used, and which cannot be read."""
    names = run.data.label_space.names
    shown = np.bincount(found.predicted, minlength=len(names))
    listed = ", ".join(f"{quoted(names[i])} {shown[i]:,}" for i in np.argsort(-shown) if shown[i])
    say(run.console, f"{counted(len(found), 'unlabelled image')}, by the teacher: {listed}")
    if found.num_known:
        verb = by_number(found.num_known, "is", "are")
        say(
            run.console, f"  {found.num_known:,} more {verb} left out: the run's own data hold them"
        )
    for image in found.broken[:20]:
        say(run.console, f"  {image.path}: {image.reason}")


def _check_same_judgement(teachers: _TeachersRun) -> None:
    if teachers.config.evaluation.weighting != "mean":
        raise ConfigError(
            f"{teachers.folder.path} computes the weights of its experts from all images of a "
            f"split (evaluation.weighting={teachers.config.evaluation.weighting}), but a teacher "
            "answers batch by batch: it would teach other decisions than those of its evaluation. "
            "Set evaluation.weighting: mean in its config.yaml to let it teach "
            "the mean of its experts."
        )


def _check_same_teacher(folder: RunFolder, teachers: _TeachersRun) -> None:
    recorded = folder.info().get("teacher", {}).get("weights_sha256")
    found = teachers.folder.weights_sha256()
    if recorded is not None and recorded != found:
        raise CheckpointError(
            f"The teacher {teachers.folder.path} is not the one that {folder.path} began with "
            f"(weights {found[:12]}, then {recorded[:12]}), so the run cannot be continued as it "
            "was. Restore that teacher, or start a new run with another --out."
        )
