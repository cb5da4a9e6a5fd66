"""Methods with a teacher, and methods that are weighed on the test images: from file to result."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from rich.console import Console

from recame.bench.command import Request, open_bench
from recame.bench.plan.method import load_method
from recame.bench.plan.plan import Bench, Job
from recame.bench.queue.job import run_job
from recame.config import Config
from recame.errors import ConfigError
from recame.runs.folder import RunFolder

PAGE = Path(__file__).parents[2] / "docs" / "bench.md"

TINY: dict[str, Any] = {
    "data.size": 32,
    "model.backbone": "test_resnet",
    "model.pretrained": False,
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "evaluation.bootstrap": 20,
    "run.accelerator": "cpu",
}


def opened(folder: Path, defects: Path, methods: list[Any], out: str = "out", **more: Any) -> Bench:
    values = {
        "title": "taught",
        "seeds": [1],
        "data": {"defects": {}},
        "methods": methods,
        "settings": TINY | more.pop("settings", {}),
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(values | more))
    request = Request(path, folder / out, {"defects": defects})
    return open_bench(request, Console(quiet=True))


def result_of(bench: Bench, job: Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bench.result_path(job).read_text())
    return found


@pytest.mark.slow
def test_ride_is_distilled_from_six(defects: Path, tmp_path: Path) -> None:
    bench = opened(tmp_path, defects, ["ride", "ride_distilled"])
    student, teacher = (
        bench.config("defects", "ride_distilled", 1, of_teacher=of) for of in (False, True)
    )
    plain = bench.config("defects", "ride", 1)
    assert (student.model, student.objective) == (plain.model, plain.objective)
    assert teacher == plain.updated({"model.num_experts": 6})
    job = Job("defects", "ride_distilled", 1)
    run_job(bench, job)
    out = bench.run_dir(job)
    runs = [RunFolder.open(path) for path in (out, out / "teacher")]
    result = result_of(bench, job)
    assert [run.load_config().model.num_experts for run in runs] == [3, 6]
    assert [run.load_config().model.shared_stages for run in runs] == [2, 2]
    assert runs[0].info()["teacher"]["weights_sha256"] == runs[1].weights_sha256()
    assert runs[0].info()["data_fingerprint"] == runs[1].info()["data_fingerprint"]
    config = runs[0].load_config()
    assert config.evaluation.views == runs[1].load_config().evaluation.views == 8
    assert (config.distill.temperature, config.distill.balance) == (1.5, "none")
    assert config.objective == plain.objective
    assert result["kept"] == "distilled"
    assert result["epochs"] == result["teacher"]["epochs"] == 2
    images = sum(json.loads((out / "label_space.json").read_text())["counts"])
    assert (result["images_seen"], result["teacher"]["images_seen"]) == (4 * images, 2 * images)
    assert result["train_s"] >= result["teacher"]["train_s"] >= 0
    assert len(result["splits"]["test"]["experts"]) == 4
    parts = pd.read_csv(out / "history.csv").filter(like="loss/").columns
    assert list(parts) == ["loss/base", "loss/teacher"]


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_stopped_job_goes_on_with_the_same_teacher(
    defects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (text,) = (block for block in blocks if "\nteacher:" in block)
    (tmp_path / "taught.yaml").write_text(text)
    settings = {"evaluation.views": 1, "augment.symmetry": "flips", "model.shared_stages": -1}
    job = Job("defects", "taught", 1)
    whole = opened(tmp_path, defects, ["taught.yaml"], settings=settings)
    run_job(whole, job)
    stopped = opened(tmp_path, defects, ["taught.yaml"], "stopped", settings=settings)
    for place, name in (
        ("recame.training.train", "keep_best"),  # when the teacher ends
        ("recame.training.student.distill", "run_finetune"),  # when the student begins
        ("recame.bench.queue.job", "evaluate"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(import_module(place), name, _interrupt)
            with pytest.raises(KeyboardInterrupt):
                run_job(stopped, job)
        assert not stopped.result_path(job).exists()
    run_job(stopped, job)
    first, second = (result_of(bench, job) for bench in (whole, stopped))
    assert first["splits"] == second["splits"]
    weights = [RunFolder.open(b.run_dir(job)).weights_sha256() for b in (whole, stopped)]
    assert weights[0] == weights[1]
    plan = {"methods": ["taught.yaml"], "settings": {**settings, "finetune.lr": 0.5}}
    with pytest.raises(ConfigError, match=r"seed1 was begun .*finetune.lr: 0.002 then, 0.5 now"):
        opened(tmp_path, defects, out="stopped", **plan)  # its result is of other settings
    stopped.result_path(job).unlink()
    changed = opened(tmp_path, defects, out="stopped", **plan)
    with pytest.raises(ConfigError, match=r"teacher was begun .*finetune.lr: 0.002 then, 0.5 now"):
        run_job(changed, job)


@pytest.mark.slow
def test_a_teacher_of_another_size_and_experts_that_are_weighed(
    defects: Path, tmp_path: Path
) -> None:
    values = {
        "title": "weighed",
        "source": "nobody",
        "settings": {
            "model.num_experts": 2,
            "distill.experts": "each",
            "evaluation.weighting": "stability",
            "evaluation.views": 1,
            "finetune.epochs": 1,
        },
        "teacher": {"data.size": 40, "model.num_experts": 1, "augment.mixup": 0.3},
    }
    (tmp_path / "weighed.yaml").write_text(yaml.safe_dump(values))
    bench = opened(tmp_path, defects, ["weighed.yaml"])
    job = Job("defects", "weighed", 1)
    run_job(bench, job)
    out = bench.run_dir(job)
    configs = [RunFolder.open(path).load_config() for path in (out, out / "teacher")]
    assert [config.data.size for config in configs] == [32, 40]
    assert [config.augment.mixup for config in configs] == [0.0, 0.3]
    assert [config.evaluation.weighting for config in configs] == ["stability", "mean"]
    assert sum(result_of(bench, job)["splits"]["test"]["expert_weights"]) == pytest.approx(
        1, abs=1e-3
    )


def test_sade_says_that_it_saw_the_test_images(defects: Path, tmp_path: Path) -> None:
    bench = opened(tmp_path, defects, ["sade"], settings={"finetune.epochs": 1})
    job = Job("defects", "sade", 1)
    run_job(bench, job)
    result = result_of(bench, job)
    weights = result["splits"]["test"]["expert_weights"]
    assert len(weights) == 3
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    assert "teacher" not in result
    assert result["config"]["objective"]["tau"] == [0.0, 1.0, 2.0]
    assert bench.methods["sade"].title == "SADE, 3 experts, transductive"
    assert bench.methods["sade"].deviations[0].startswith("transductive")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"probe.enabled": True}}, "probe.enabled and retrain.enabled to false"),
        ({"settings": {"retrain.enabled": True}}, "fine-tuned as a whole"),
        ({"settings": {"finetune.scope": "tails"}}, "finetune.scope to all"),
        ({"settings": {"run.devices": 2}}, "one device"),
        ({"settings": {"model.num_experts": 2}}, "distill.experts to ensemble .* or each"),
        ({"settings": {"distill.stages": 2}}, "sets distill.stages"),
        (
            {"settings": {"model.attention": "channel"}, "teacher": {"model.attention": "none"}},
            "not channel",
        ),
        ({"teacher": {"model.depth": 3}}, "model.depth: unknown"),
        ({"teacher": None, "settings": {"distill.temperature": 4}}, "has no teacher"),
    ],
)
def test_what_no_student_could_be_is_refused_at_once(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = {"title": "T", "source": "somebody", "teacher": {"model.num_experts": 2}, **changes}
    (tmp_path / "taught.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        load_method("taught.yaml", tmp_path)


def test_a_plan_that_does_not_fit_is_refused(defects: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="equal=time does not know what a teacher takes"):
        opened(tmp_path, defects, ["ride", "ride_distilled"], equal="time", pace="ride")
    with pytest.raises(ConfigError, match=r"ride_distilled on defects: .*probe.enabled"):
        opened(tmp_path, defects, ["ride_distilled"], settings={"probe.enabled": True})
    variation = {
        "method": "ride_distilled",
        "name": "each",
        "settings": {"distill.experts": "each", "model.num_experts": 2},
    }
    bench = opened(tmp_path, defects, [variation])
    assert bench.config("defects", "each").distill.experts == "each"
    assert bench.config("defects", "each", of_teacher=True).model.num_experts == 6
    assert bench.config("defects", "each", of_teacher=True).distill == Config().distill
