"""A student of a finished run: what it is made of, what it learns from, and that it resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import recame
from recame.config import Config
from recame.contracts import ExpertOutput, LossResult, PreprocessSpec, ensemble_logits
from recame.data.dataset import BatchDataset
from recame.errors import CheckpointError, ConfigError, DataError
from recame.losses import TrainingLoss
from recame.models import Architecture, MultiExpertClassifier, load_checkpoint
from recame.models.gates import forward_with_gates
from recame.reports.draw import run_facts
from recame.runs.folder import RunFolder
from recame.training.loop.cost import StepCost
from recame.training.loop.module import FinetuneModule
from recame.training.planner import plan_epochs
from recame.training.student.distill import distill
from recame.training.student.recipe import asked_of_student, student_config
from recame.training.student.start import start_from_expert
from recame.training.student.step import matching_stages
from recame.training.student.teacher import Teacher
from recame.training.student.unlabelled import JoinedDataset, PairedBatches, UnlabelledImages
from recame.training.train import train

SPEC = PreprocessSpec(32, 32, 1, 8, 255.0, (0.4,), (0.2,))
LITE0 = Architecture("tf_efficientnet_lite0", num_experts=2, shared_stages=6, pooled_stages=6)
QUICK = {"finetune.epochs": 2}


def build(seed: int = 0, spec: PreprocessSpec = SPEC, **plan: Any) -> MultiExpertClassifier:
    torch.manual_seed(seed)
    plan = {"num_experts": 1, "pooled_stages": 3, "attention": "none", **plan}
    return MultiExpertClassifier(Architecture("test_resnet", **plan), 4, spec).eval()


def pictures(num: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(num, 1, side, side, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def student(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with unlabelled images and every term of the loss."""
    folder = tmp_path_factory.mktemp("distilled")
    stock = folder / "stock"
    stock.mkdir()
    rng = np.random.default_rng(5)
    from PIL import Image

    for number in range(20):
        pixels = rng.integers(0, 255, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(stock / f"{number:02d}.png")
    (stock / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    manifest = pd.read_csv(finished / "manifest.csv")
    shutil.copy(manifest.query("split == 'test'")["path"].iloc[0], stock / "known.png")
    changes = QUICK | {
        "distill.attention": "keep",
        "distill.feature_weight": 0.5,
        "distill.gate_weight": 1.0,
        "distill.teacher_views": 2,
        "augment.cutmix": 0.4,
    }
    return distill(finished, out=folder / "run", unlabelled=[stock], changes=changes).path


class TestRun:
    def test_is_a_run_like_any_other(self, student: Path, finished: Path) -> None:
        ours, theirs = (
            {path.name for path in folder.iterdir() if path.suffix != ".lock"}
            for folder in (student, finished)
        )
        assert ours == theirs | {"unlabelled.csv"}
        judged = recame.evaluate(student, report=False)
        assert len(judged.predictions) == 16
        assert judged.predictions.expert_probabilities.shape == (16, 1, 4)

    def test_records_its_teacher(self, student: Path, finished: Path) -> None:
        info = json.loads((student / "run.json").read_text())
        checksum = json.loads((finished / "model.json").read_text())["weights_sha256"]
        theirs = json.loads((finished / "run.json").read_text())
        assert info["state"] == "finished"
        assert info["data"] == theirs["data"]
        assert info["data_fingerprint"] == theirs["data_fingerprint"]
        teacher = info["teacher"]
        assert (teacher["path"], teacher["weights_sha256"]) == (str(finished), checksum)
        assert 0.25 < teacher["val_balanced_accuracy"] <= 1
        phases = json.loads((student / "phases.json").read_text())
        assert set(phases["val_balanced_accuracy"]) == {"start", "distilled"}
        reasons = json.loads((student / "reasons.json").read_text())
        assert any(reason.startswith("start = the teacher's expert") for reason in reasons)

    def test_report_says_how_to_make_it_again(self, student: Path) -> None:
        loaded, folder = load_checkpoint(student), RunFolder.open(student)
        facts = run_facts(folder, folder.load_config(), loaded, "test")
        teacher = folder.info()["teacher"]["path"]
        command = facts.commands[0]
        assert command.startswith(f"recame distill {teacher} --unlabelled ")
        assert "--set distill.attention=keep" in command
        assert "--set distill.gate_weight=1.0" in command
        assert dict(facts.facts)["taught by"] == teacher

    def test_network_and_splits(self, student: Path, finished: Path) -> None:
        loaded = load_checkpoint(student)
        plan, teachers = loaded.architecture, load_checkpoint(finished).architecture
        assert (plan.backbone, plan.num_experts, plan.stages) == (teachers.backbone, 1, 3)
        ours, theirs = (pd.read_csv(run / "manifest.csv") for run in (student, finished))
        pd.testing.assert_frame_equal(ours, theirs)
        saved = RunFolder.open(student).load_config()
        assert (saved.evaluation.views, saved.probe.enabled) == (1, False)
        assert saved.distill.teacher == finished

    def test_every_term_is_in_the_history(self, student: Path) -> None:
        history = pd.read_csv(student / "history.csv")
        parts = history.filter(like="loss/")
        names = ["loss/base", "loss/teacher", "loss/features", "loss/gates"]
        assert list(parts.columns) == names
        assert (parts > 0).all(axis=None)
        np.testing.assert_allclose(parts.sum(axis=1), history["loss"], rtol=1e-5)

    def test_unlabelled_images_are_listed(self, student: Path) -> None:
        used = pd.read_csv(student / "unlabelled.csv")
        # A test image that lies among them is left out, a broken file is told.
        assert [Path(path).name for path in used["image"]] == [f"{i:02d}.png" for i in range(20)]
        assert set(used["teacher"]) <= {"ok", "scratch", "dent", "hole"}
        assert used["confidence"].between(0.25, 1).all()
        broken = pd.read_csv(student / "broken_images.csv")
        assert [Path(path).name for path in broken["image"]] == ["broken.png"]

    def test_another_backbone_and_size(self, finished: Path, tmp_path: Path) -> None:
        changes = QUICK | {"distill.size": 24, "finetune.epochs": 1}
        run = distill(finished, out=tmp_path / "s", backbone="test_efficientnet", changes=changes)
        loaded = load_checkpoint(run.path)
        assert (loaded.spec.height, loaded.architecture.stages) == (24, 0)
        assert loaded.architecture.backbone == "test_efficientnet"
        assert any("random weights" in reason for reason in run.reasons())

    def test_it_learns_what_the_teacher_says(self, finished: Path, tmp_path: Path) -> None:
        changes = {
            "finetune.epochs": 8,
            "finetune.lr": 3e-3,
            "finetune.head_lr": 1e-2,
            "finetune.ema_decay": 0.0,
            "augment.mixup": 0.0,
            "distill.label_weight": 0.0,
            "run.keep": "last",
        }
        run = distill(finished, out=tmp_path / "s", changes=changes)
        history = pd.read_csv(run.history_path)
        assert history["loss/teacher"].iloc[-1] < 0.5 * history["loss/teacher"].iloc[0]


class TestSeveralExperts:
    def test_a_student_of_experts_of_its_own(self, finished: Path, tmp_path: Path) -> None:
        changes = QUICK | {
            "distill.experts": "each",
            "distill.stages": 0,
            "model.num_experts": 3,
            "model.shared_stages": -2,
            "objective.diversity_weight": 0.2,
            "objective.tau": (0.0, 1.0, 2.0),
            "evaluation.views": "auto",
            "run.keep": "last",
        }
        run = distill(finished, out=tmp_path / "s", changes=changes)
        plan = load_checkpoint(run.path).architecture
        assert (plan.num_experts, plan.shared_stages, plan.stages) == (3, 2, 0)
        config = run.load_config()
        assert config.objective.tau == (0.0, 1.0, 2.0)
        assert (config.objective.diversity_weight, config.objective.hard_weight) == (0.2, 0.0)
        assert config.evaluation.views == 1
        assert any(reason.startswith("start = as without a teacher") for reason in run.reasons())
        assert any("3: they learn what the ensemble" in reason for reason in run.reasons())
        history = pd.read_csv(run.history_path)
        assert list(history.filter(like="loss/").columns) == ["loss/base", "loss/teacher"]
        phases = json.loads((run.path / "phases.json").read_text())
        assert phases["kept"] == "distilled"
        judged = recame.evaluate(run.path, report=False)
        assert judged.predictions.expert_probabilities.shape == (16, 3, 4)

    def test_their_number_is_the_teachers(self) -> None:
        config = TestSettings().make(distill__experts="ensemble")
        assert (config.model.num_experts, config.model.shared_stages) == (2, 4)
        assert config.model.stages == 5
        other = TestSettings().make("resnet18", distill__experts="each", model__num_experts=3)
        assert (other.model.num_experts, other.model.shared_stages) == (3, 0)

    def test_a_loss_of_ones_own(self, finished: Path, tmp_path: Path) -> None:
        seen: list[tuple[int, int]] = []

        class Squared(TrainingLoss):
            def forward(self, output: ExpertOutput, target: torch.Tensor) -> LossResult:
                total = output.logits.square().mean()
                return LossResult(total, {"squared": total.detach()})

        def make_loss(counts: Any, num_experts: int, prior: torch.Tensor) -> TrainingLoss:
            seen.append((len(counts), num_experts))
            return Squared(len(counts))

        changes = {"finetune.epochs": 1, "distill.label_weight": 1.0}
        run = distill(finished, out=tmp_path / "s", changes=changes, make_loss=make_loss)
        assert set(seen) == {(4, 1)}
        assert 0 < pd.read_csv(run.history_path)["loss/base"].iloc[0] < 10


def assert_same_weights(run: RunFolder, expected: RunFolder) -> None:
    ours, theirs = (load_file(r.path / "model.safetensors") for r in (run, expected))
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


Kill, DieAt = Callable[[Callable[[], object]], None], Callable[[Any, str, int], None]


class TestResume:
    CHANGES = QUICK | {"distill.feature_weight": 0.5, "run.keep": "last", "finetune.ema_decay": 0.9}

    def test_killed_and_resumed(
        self, finished: Path, tmp_path: Path, run_until_killed: Kill, die_at: DieAt
    ) -> None:
        whole = distill(finished, out=tmp_path / "whole", changes=self.CHANGES)

        def child() -> None:
            die_at(FinetuneModule, "training_step", 7)
            distill(finished, out=tmp_path / "killed", changes=self.CHANGES)

        run_until_killed(child)
        run = distill(out=tmp_path / "killed", resume=True)
        assert run.finished
        assert_same_weights(run, whole)
        assert run.reasons() == whole.reasons()
        assert run.info()["teacher"] == whole.info()["teacher"]

    @pytest.mark.slow
    def test_unlabelled_images_stay_those_it_began_with(
        self,
        finished: Path,
        write_images: Callable[..., Path],
        tmp_path: Path,
        run_until_killed: Kill,
        die_at: DieAt,
    ) -> None:
        pool = write_images(tmp_path / "pool", {"any": 14, "thing": 9}, seed=11)
        (pool / "any" / "broken.png").write_bytes(b"")
        words: dict[str, Any] = {"unlabelled": [pool], "changes": self.CHANGES}
        whole = distill(finished, out=tmp_path / "whole", **words)

        def child() -> None:
            die_at(FinetuneModule, "training_step", 7)
            distill(finished, out=tmp_path / "killed", **words)

        run_until_killed(child)
        write_images(pool / "new", {"of": 5, "today": 5}, seed=12)  # the folder has grown
        (pool / "any" / "broken.png").unlink()
        changed = Path(shutil.copytree(tmp_path / "killed", tmp_path / "changed"))
        run = distill(out=tmp_path / "killed", resume=True)
        assert_same_weights(run, whole)
        for name in ("unlabelled.csv", "broken_images.csv"):
            assert (run.path / name).read_text() == (whole.path / name).read_text()
        torn = Path(shutil.copytree(changed, tmp_path / "torn"))
        listed = (torn / "unlabelled.csv").read_bytes()
        for damaged in (b"", listed[: listed.rindex(b"\n", 0, -1) + 1]):
            (torn / "unlabelled.csv").write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"unlabelled\.csv cannot be used"):
                distill(out=torn, resume=True)
        first = Path(pd.read_csv(whole.path / "unlabelled.csv")["image"][0])
        shutil.copy(pool / "new" / "today" / "000.png", first)
        with pytest.raises(DataError, match=r"unlabelled images .* have changed since \(finger"):
            distill(out=changed, resume=True)
        first.unlink()
        with pytest.raises(DataError, match=rf"have changed since \({first}"):
            distill(out=changed, resume=True)

    def test_train_does_not_continue_a_student(self, student: Path) -> None:
        with pytest.raises(ConfigError, match="recame distill --resume"):
            train(student, out=student, resume=True)

    def test_finished_student_stays(self, student: Path) -> None:
        before = (student / "model.safetensors").read_bytes()
        assert distill(out=student, resume=True).path == student
        assert (student / "model.safetensors").read_bytes() == before

    def test_another_teacher_is_refused(
        self, student: Path, finished: Path, tmp_path: Path
    ) -> None:
        begun = Path(shutil.copytree(student, tmp_path / "run"))
        other = Path(shutil.copytree(finished, tmp_path / "teacher"))
        RunFolder(begun).mark("training")
        document = json.loads((other / "model.json").read_text())
        # Same weights in another order of bytes would be another file: the checksum decides.
        info = RunFolder(begun).info()
        RunFolder(begun).mark("training", teacher={**info["teacher"], "weights_sha256": "0" * 64})
        with pytest.raises(CheckpointError, match=document["weights_sha256"][:12]):
            distill(other, out=begun, resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "fragment"),
    [
        ({"model.num_experts": 2}, ConfigError, "one network"),
        ({"model.num_experts": 2}, ConfigError, "set distill.experts"),
        ({"retrain.enabled": True}, ConfigError, "retrain.enabled"),
        ({"model.stages": 2}, ConfigError, "set distill.stages"),
        ({"distill.stages": 9}, ConfigError, "has 4 stages"),
        ({"distill.gate_weight": 1.0}, ConfigError, "distill.attention=keep"),
        ({"run.devices": 2}, ConfigError, "one device"),
        ({"distill.unlabelled": ("/nowhere",)}, DataError, "/nowhere"),
    ],
)
def test_wrong_wishes(
    changes: dict[str, Any], error: type[Exception], fragment: str, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=fragment):
        distill(finished, out=tmp_path / "s", changes=QUICK | changes)


def test_unfinished_teacher_is_refused(finished: Path, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(finished, tmp_path / "run"))
    RunFolder(begun).mark("training")
    with pytest.raises(CheckpointError, match="not finished"):
        distill(begun, out=tmp_path / "s")
    with pytest.raises(ConfigError, match="No teacher"):
        distill(out=tmp_path / "s")


class TestSettings:
    def make(self, backbone: str | None = None, **changes: Any) -> Config:
        teacher = Config().updated(
            {
                "model.backbone": LITE0.backbone,
                "model.num_experts": 2,
                "model.shared_stages": 6,
                "model.pooled_stages": 6,
                "objective.tau": (0.0, 2.0),
                "evaluation.views": 8,
                "augment.symmetry": "square",
            }
        )
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return student_config(
            teacher, teacher, LITE0, SPEC, num_stages=7, backbone=backbone, changes=named
        )

    def test_own_backbone_without_its_last_quarter(self) -> None:
        model = self.make().model
        assert (model.stages, model.pooled_stages, model.num_experts) == (5, 4, 1)
        assert (model.attention, model.shared_stages) == ("none", 0)
        assert self.make(distill__stages=4).model.pooled_stages == 3
        assert self.make(distill__stages=0).model.stages == 0
        assert self.make(distill__attention="keep").model.attention == "regional"

    def test_experts_terms_are_off_and_the_rest_is_the_teachers(self) -> None:
        config = self.make(finetune__lr=5e-4)
        weights = config.objective.model_dump()
        on = {name for name, value in weights.items() if name.endswith("_weight") and value}
        assert on == {"base_weight"}
        assert config.objective.tau == 1.0
        assert config.augment.symmetry == "square"
        assert (config.evaluation.views, config.finetune.lr) == (1, 5e-4)
        assert config.finetune.epochs == "auto"

    def test_a_teachers_own_lessons_are_forgotten(self) -> None:
        teacher = Config().updated({"distill.temperature": 9.0, "distill.stages": "auto"})
        assert teacher.distill.stages is None
        config = student_config(
            teacher,
            teacher,
            LITE0,
            SPEC,
            num_stages=7,
            backbone=None,
            changes={"distill.stages": 6},
        )
        assert (config.distill.temperature, config.distill.stages) == (2.0, 6)
        assert config.model.pooled_stages == 5

    @pytest.mark.parametrize(
        ("asked", "decided", "taught"),
        [
            (1.5, 1.5, 1.5),
            ("auto", 1.5, 1.0),
            ("auto", (1.0, 2.0), 1.0),
            ((1.0, 3.0),) * 2 + (1.0,),
        ],
    )
    def test_a_tau_that_was_asked_is_taught(self, asked: Any, decided: Any, taught: float) -> None:
        start = Config().updated({"model.num_experts": 2 if isinstance(decided, tuple) else 1})
        teacher, theirs = (start.updated({"objective.tau": tau}) for tau in (decided, asked))
        words = {"num_stages": 7, "backbone": None}
        student = student_config(teacher, theirs, LITE0, SPEC, **words, changes={})
        assert student.objective.tau == taught
        own = asked_of_student(student, theirs, {})
        assert own.objective.tau == (1.5 if asked == 1.5 else "auto")
        changes = {"objective.tau": 1.0}
        student = student_config(teacher, theirs, LITE0, SPEC, **words, changes=changes)
        assert asked_of_student(student, theirs, changes).objective.tau == 1.0
        # A student of two experts has a use for two.
        changes = {"distill.experts": "each", "model.num_experts": 2}
        student = student_config(teacher, theirs, LITE0, SPEC, **words, changes=changes)
        assert student.objective.tau == (asked if asked != "auto" else 1.0)

    @pytest.mark.parametrize(("asked", "taught"), [("auto", "auto"), (32, 32), (16, 16)])
    def test_a_teachers_smaller_steps_are_not_its_students(self, asked: Any, taught: Any) -> None:
        decided = 32 if asked == "auto" else asked
        teacher, theirs = (
            Config().updated({"finetune.batch_size": size}) for size in (decided, asked)
        )
        words: dict[str, Any] = {"num_stages": 7, "backbone": None}
        student = student_config(teacher, theirs, LITE0, SPEC, **words, changes={})
        assert student.finetune.batch_size == taught
        given = {"finetune.batch_size": 8}
        student = student_config(teacher, theirs, LITE0, SPEC, **words, changes=given)
        assert student.finetune.batch_size == 8

    def test_a_student_has_nothing_to_join(self) -> None:
        for asked, kept in (("joined", "best_on_val"), ("last", "last")):
            teacher = Config().updated({"run.keep": asked})
            config = student_config(
                teacher, teacher, LITE0, SPEC, num_stages=7, backbone=None, changes={}
            )
            assert config.run.keep == kept

    def test_another_backbone_is_whole(self) -> None:
        model = self.make("resnet18").model
        assert (model.backbone, model.stages, model.pretrained) == ("resnet18", 0, False)
        assert self.make("resnet18", model__pretrained=True).model.pretrained is True


class TestStart:
    def teacher(self, **plan: Any) -> MultiExpertClassifier:
        torch.manual_seed(3)
        return build(3, num_experts=2, shared_stages=3, attention="regional", **plan)

    def test_whole_student_is_the_expert(self) -> None:
        teacher = self.teacher()
        student = build(attention="regional")
        assert start_from_expert(student, teacher, 1)
        with torch.no_grad():
            torch.testing.assert_close(
                student(pictures()).logits[:, 0], teacher(pictures()).logits[:, 1]
            )

    def test_cut_student_reads_the_same_features(self) -> None:
        teacher = self.teacher()
        student = build(attention="regional", stages=3, pooled_stages=2)
        assert start_from_expert(student, teacher, 0)
        with torch.no_grad():
            ours, theirs = student.pooled(pictures()), teacher.pooled(pictures())
            torch.testing.assert_close(ours[:, 0], theirs[:, 0, : ours.shape[2]])
        expected = teacher.head.classifier.weight[:, :, : ours.shape[2]].mean(0)
        torch.testing.assert_close(student.head.classifier.weight[0], expected)

    def test_attention_is_left_behind(self) -> None:
        teacher, student = self.teacher(), build()
        assert start_from_expert(student, teacher, 0)
        first, theirs = (next(part.parameters()) for part in (student.tails, teacher.trunk))
        assert torch.equal(first, theirs)
        assert not any("fc1" in name for name in student.state_dict())

    def test_other_networks_do_not_fit(self) -> None:
        # It reads three stages from the first on, the teacher's head from the second.
        student = build(attention="regional", stages=3)
        before = next(student.tails.parameters()).detach().clone()
        assert not start_from_expert(student, self.teacher(), 0)
        assert torch.equal(next(student.tails.parameters()), before)


class TestTeacher:
    def test_lesson_is_the_ensemble(self) -> None:
        model = build(num_experts=2, attention="regional")
        x = pictures()
        lesson = Teacher(model, features=True, gates=True)(x)
        with torch.no_grad():
            output = model(x)
        torch.testing.assert_close(lesson.logits, ensemble_logits(output.logits))
        torch.testing.assert_close(lesson.features, output.features.mean(1))
        assert lesson.gates is not None
        assert lesson.gates.shape == (3, 4, 4)
        assert not any(p.requires_grad for p in model.parameters())
        plain = Teacher(model)(x)
        assert (plain.features, plain.gates) == (None, None)

    def test_views_are_averaged_as_evaluation_does(self) -> None:
        model, x = build(num_experts=2), pictures()
        lesson = Teacher(model, num_views=2)(x)
        with torch.no_grad():
            views = [ensemble_logits(model(v).logits).softmax(-1) for v in (x, x.flip(-1))]
        torch.testing.assert_close(lesson.logits.softmax(-1), (views[0] + views[1]) / 2)

    def test_sees_its_own_size(self) -> None:
        model, seen = build(), []
        model.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
        Teacher(model)(pictures(side=24))
        assert seen == [(3, 1, 32, 32)]

    def test_gates_of_a_student_carry_gradients(self) -> None:
        model = build(attention="regional")
        output, gates = forward_with_gates(model, pictures())
        torch.testing.assert_close(output.logits, model(pictures()).logits)
        gates.sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if "fc2.bias" in n}
        assert len(grads) >= 4
        assert sum(float(g.abs().sum()) for g in grads.values() if g is not None) > 0

    def test_stages_are_matched(self) -> None:
        teacher = build(num_experts=2, attention="regional")
        cut = build(attention="regional", stages=2, pooled_stages=1)
        assert list(matching_stages(cut, teacher)) == [0, 1]
        with pytest.raises(ConfigError, match="grids differ"):
            matching_stages(build(attention="channel"), teacher)


class TestUnlabelledBatches:
    def unlabelled(self, share: float = 0.5) -> UnlabelledImages:
        predicted = np.array([0] * 27 + [1] * 3)
        images: Any = None
        paths = tuple(map(str, range(30)))
        sure = np.ones(30, dtype=np.float32)
        return UnlabelledImages(
            images, np.arange(30), paths, predicted, sure, share, "class_balanced", (), 0
        )

    def settings(self) -> dict[str, Any]:
        return {
            "targets": np.arange(20) % 2,
            "kind": "instance",
            "batch_size": 8,
            "epoch_size": 40,
            "seed": 0,
        }

    @pytest.mark.parametrize(("share", "number"), [(0.5, 4), (0.25, 2), (0.99, 7), (0.01, 1)])
    def test_share_of_each_batch(self, share: float, number: int) -> None:
        sampler = PairedBatches(self.settings(), self.unlabelled(share))
        batches = list(sampler)
        assert len(batches) == len(sampler)
        counts = [sum(position >= 20 for position in batch) for batch in batches]
        assert set(counts) == {number}
        assert {len(batch) for batch in batches[:-1]} == {8}

    def test_predicted_classes_come_equally_often(self) -> None:
        sampler = PairedBatches(self.settings(), self.unlabelled())
        drawn = [position - 20 for batch in sampler for position in batch if position >= 20]
        assert sum(position >= 27 for position in drawn) == len(drawn) / 2

    def test_epochs_differ_and_repeat(self) -> None:
        sampler = PairedBatches(self.settings(), self.unlabelled())
        first = list(sampler)
        sampler.set_epoch(1)
        assert list(sampler) != first
        sampler.set_epoch(0)
        assert list(sampler) == first

    def test_joined_batch(self) -> None:
        images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
        parts = [
            BatchDataset(images[rows], np.arange(3), targets, np.arange(3))
            for rows, targets in (
                (slice(0, 3), np.array([2, 1, 0])),
                (slice(3, 6), np.full(3, -1)),
            )
        ]
        batch = JoinedDataset(parts[0], parts[1])[[4, 0, 2]]
        assert batch.images.flatten().tolist() == [0, 2, 4]
        assert batch.target.tolist() == [2, 0, -1]


class TestRequest:
    def ask(self, run: Path | None = Path("runs/a"), **words: Any) -> Any:
        from recame.cli.requests import distill_request

        given = {
            "backbone": None,
            "unlabelled": [],
            "out": None,
            "settings": [],
            "size": None,
            "time_budget": None,
            "seed": None,
            "resume": False,
        }
        return distill_request(run, **(given | words))

    def test_words_become_changes(self) -> None:
        changes, out = self.ask(settings=["distill.stages=4"], time_budget="2m", seed=3)
        assert out == Path("runs/a-student")
        assert changes == {
            "distill.stages": 4,
            "run.time_budget_s": 120.0,
            "run.seed": 3,
        }
        assert self.ask(size="32x96")[0] == {"distill.size": "32x96"}
        assert self.ask(None, resume=True, out=Path("s")) == ({}, Path("s"))
        # Right only beside a teacher's own settings: unit vectors have no margin of 20.
        asked, _ = self.ask(settings=["objective.contrastive_weight=0.05", "objective.margin=20"])
        assert asked["objective.margin"] == 20

    @pytest.mark.parametrize(
        ("words", "fragment"),
        [
            ({"run": None}, "recame distill RUN"),
            ({"resume": True}, "add --out"),
            ({"resume": True, "out": Path("s"), "seed": 1}, "leave out --backbone"),
            ({"settings": ["distill.heat=2"]}, "distill.heat"),
            ({"size": "32x9"}, "16 to 2048"),
            ({"settings": ["distill.teacher_weight=0", "distill.label_weight=0"]}, "both 0"),
            ({"backbone": "resnet18", "settings": ["model.backbone=lcnet_050"]}, "contradicts"),
        ],
    )
    def test_wrong_words(self, words: dict[str, Any], fragment: str) -> None:
        with pytest.raises(ConfigError, match=fragment):
            self.ask(**words)


def test_a_student_may_train_longer() -> None:
    config = Config().updated({"run.time_budget_s": 36_000, "evaluation.views": 1})
    images = []
    for patience in (1, 3):
        plan = plan_epochs(
            config,
            StepCost(0.1, 0.0),
            num_train=1000,
            left_s=36_000.0,
            device=torch.device("cpu"),
            patience=patience,
        ).config.finetune
        images.append(int(plan.epochs) * int(plan.epoch_size))
    assert images[1] == pytest.approx(3 * images[0], rel=0.01)
