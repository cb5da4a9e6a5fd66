from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import yaml
from rich.console import Console

from recame.bench import command
from recame.bench.command import Request, _measure_costs, jobs_to_run, open_bench, run_bench
from recame.bench.plan.method import GROUPS, load_method, method_names
from recame.bench.plan.plan import Bench, Job, load_plan, plan_methods
from recame.bench.queue.job import job_config, run_job
from recame.bench.tables.results import collect
from recame.config import Config
from recame.errors import ConfigError, DataError

FOLDER = Path(__file__).parents[3] / "benchmarks" / "plans"
#: What a search found lies beside the plans that ask for it.
PLANS = sorted(set(FOLDER.glob("*.yaml")) - set(FOLDER.glob("*_tuned.yaml")))

TINY: dict[str, Any] = {
    "data.size": 32,
    "model.backbone": "test_resnet",
    "model.pretrained": False,
    "augment.symmetry": "flips",
    "probe.steps": 10,
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "evaluation.views": 1,
    "evaluation.bootstrap": 20,
    "run.accelerator": "cpu",
}


def write_plan(folder: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "title": "tiny",
        "seeds": [0, 1],
        "data": {"defects": {}},
        "methods": ["cross_entropy", "ensemble"],
        "settings": TINY,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def opened(plan: Path, out: Path, **data: Path) -> Bench:
    return open_bench(Request(plan, out, data), Console(quiet=True))


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_what_it_is(name: str) -> None:
    method = load_method(name, Path())
    assert method.group in GROUPS
    assert len(method.source) > 5
    assert method.configure(Config()).run.seed == 0


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_plan_can_be_read_and_configured(path: Path, tmp_path: Path) -> None:
    plan = load_plan(path)
    if plan.tuned is not None and not (path.parent / plan.tuned).exists():
        with pytest.raises(ConfigError, match=f"tuned=.*{plan.tuned} cannot be read"):
            plan_methods(plan, path.parent)  # the search has not been run yet
        plan = plan.model_copy(update={"tuned": None})
    methods = plan_methods(plan, path.parent)
    sources = {(data, seed): tmp_path for data in plan.data for seed in plan.seeds}
    bench = Bench(tmp_path, plan, methods, sources)
    assert len(bench.jobs()) == len(plan.seeds) * len(plan.data) * len(methods)
    lengths = set()
    for job in bench.jobs():
        config = bench.config(job.data, job.method, job.seed)
        assert config.run.seed == job.seed
        lengths.add((job.data, config.finetune.epochs, config.finetune.epoch_size))
    assert len(lengths) == len(plan.data)  # equal epochs for all methods


def test_settings_lie_over_each_other_in_order(tmp_path: Path) -> None:
    path = write_plan(
        tmp_path,
        methods=[
            "cross_entropy",
            {
                "method": "mixup_logit_adjustment",
                "name": "more",
                "settings": {"augment.mixup": 0.8},
            },
        ],
        settings=TINY | {"augment.mixup": 0.1, "finetune.lr": 0.5},
        data={"defects": {"settings": {"finetune.epochs": 7}}},
    )
    bench = Bench(tmp_path, load_plan(path), plan_methods(load_plan(path), tmp_path), {})
    plain, more = bench.config("defects", "cross_entropy"), bench.config("defects", "more", seed=3)
    assert (plain.augment.mixup, more.augment.mixup) == (0.1, 0.8)
    assert plain.model.classifier == "linear"
    assert plain.finetune.lr == more.finetune.lr == 0.5
    assert plain.finetune.epochs == more.finetune.epochs == 7
    assert more.run.seed == 3


def test_a_job_trains_judges_and_leaves_a_result(defects: Path, tmp_path: Path) -> None:
    bench = opened(write_plan(tmp_path), tmp_path / "out", defects=defects)
    job = Job("defects", "ensemble", 1)
    run_job(bench, job)
    result = json.loads(bench.result_path(job).read_text())
    assert result["kept"] == "finetune"
    assert (result["data"], result["method"], result["seed"]) == ("defects", "ensemble", 1)
    assert result["epochs"] == 2
    assert result["images_seen"] == 2 * len_train(bench, job)
    assert 0 <= result["splits"]["test"]["balanced_accuracy"]["value"] <= 1
    assert len(result["splits"]["test"]["experts"]) == 3  # the ensemble and its two members
    before = bench.result_path(job).stat().st_mtime_ns
    run_job(bench, job)
    assert bench.result_path(job).stat().st_mtime_ns == before


def len_train(bench: Bench, job: Job) -> int:
    space = json.loads((bench.run_dir(job) / "label_space.json").read_text())
    return sum(space["counts"])


def test_a_stopped_job_goes_on_to_the_same_result(
    defects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = write_plan(tmp_path)
    job = Job("defects", "cross_entropy", 0)
    whole = opened(plan, tmp_path / "whole", defects=defects)
    run_job(whole, job)
    stopped = opened(plan, tmp_path / "stopped", defects=defects)
    with monkeypatch.context() as patch:
        patch.setattr("recame.bench.queue.job.evaluate", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_job(stopped, job)
    assert not stopped.result_path(job).exists()
    run_job(stopped, job)
    first, second = (json.loads(b.result_path(job).read_text()) for b in (whole, stopped))
    assert first["splits"] == second["splits"]


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_run_under_other_settings_is_neither_continued_nor_counted(
    defects: Path, tmp_path: Path
) -> None:
    job, out = Job("defects", "cross_entropy", 0), tmp_path / "out"
    bench = opened(write_plan(tmp_path), out, defects=defects)
    run_job(bench, job)
    changed = write_plan(tmp_path, settings=TINY | {"finetune.lr": 0.5})
    with pytest.raises(ConfigError, match=r"finetune.lr: 0.002 then, 0.5 now"):
        opened(changed, out, defects=defects)
    bench.result_path(job).unlink()
    with pytest.raises(ConfigError, match=r"finetune.lr: 0.002 then, 0.5 now"):
        run_job(opened(changed, out, defects=defects), job)


def test_equal_time_follows_the_measured_speeds(tmp_path: Path) -> None:
    path = write_plan(
        tmp_path,
        equal="time",
        pace="cross_entropy",
        data={"defects": {"settings": {"finetune.epoch_size": 1000}}},
    )
    plan = load_plan(path)
    bench = Bench(tmp_path, plan, plan_methods(plan, tmp_path), {("defects", 0): tmp_path})
    job = Job("defects", "ensemble", 0)
    with pytest.raises(ConfigError, match="what ensemble costs on defects"):
        job_config(bench, job)
    rows = {
        "defects/cross_entropy": {"train_images_per_s": 100.0, "fixed_s": 1.0},
        "defects/ensemble": {"train_images_per_s": 50.0, "fixed_s": 3.0},
    }
    bench.costs_path.write_text(json.dumps({"rows": rows}))
    # Pace: 2 * 1000 / 100 + 1 = 21 s; 18 s are left at 50 images/s: 900 images in two epochs.
    assert job_config(bench, job).finetune.epoch_size == 450
    assert job_config(bench, Job("defects", "cross_entropy", 0)).finetune.epoch_size == 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["cross_entropi"]}, "'cross_entropi' .did you mean cross_entropy.*: choose"),
        ({"methods": ["missing.yaml"]}, "missing.yaml cannot be read"),
        ({"methods": ["cross_entropy", "cross_entropy"]}, "Two methods are called"),
        ({"methods": [{"method": "focal", "settings": {"data.size": 3}}]}, "has no name"),
        ({"settings": {"finetune.epoch": 3}}, "finetune.epoch: unknown"),
        ({"reference": "recame"}, "reference='recame' is not one of its methods"),
        ({"equal": "time"}, "equal=time needs pace"),
        ({"seeds": []}, "seeds: .*at least 1 item"),
        ({"colour": "red"}, r"colour: unknown \(known here: name, title"),
        ({"sedes": [0]}, "sedes: unknown; did you mean seeds"),
        ({"data": {"a": {"optoins": {}}}}, r"data.a.optoins: unknown; did you mean options"),
        ({"data": {"a/b": {}}}, "their names become folders"),
        ({"data": {"defects": {"builder": "nowhere"}}}, "no public set 'nowhere'"),
        ({"data": {"defects": {"builder": "nowhere.py"}}}, "nowhere.py cannot be run"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(write_plan(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


def test_a_method_s_file_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    text = "title = 'T'\nsource = 's'\nraise ValueError('no such prior')\n"
    (tmp_path / "odd.py").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 3 of its file odd\.py fails .*no such prior"):
        opened(write_plan(tmp_path, methods=["odd.py"]), tmp_path / "out")


def test_if_no_run_has_finished_there_is_no_table(
    defects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_run", lambda *_: None)  # as if all had failed
    text = io.StringIO()
    request = Request(write_plan(tmp_path), tmp_path / "out", {"defects": defects}, costs=False)
    assert not run_bench(request, Console(file=text, width=200))
    assert "No run has finished, so there is no table yet." in text.getvalue()


def test_missing_data_are_named(defects: Path, tmp_path: Path) -> None:
    two = write_plan(tmp_path, data={"defects": {}, "boards": {}})
    assert opened(two, tmp_path / "out", defects=defects).data == ["defects"]
    with pytest.raises(ConfigError, match="no data set is at hand; give --data NAME=PATH"):
        opened(two, tmp_path / "out")
    with pytest.raises(DataError, match="there is nothing at"):
        opened(two, tmp_path / "out", defects=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--data names wafers; the plan has boards, defects"):
        opened(two, tmp_path / "out", wafers=defects)


def test_a_folder_holds_one_plan(defects: Path, tmp_path: Path) -> None:
    opened(write_plan(tmp_path), tmp_path / "out", defects=defects)
    with pytest.raises(ConfigError, match="holds the results of another plan, 'tiny'"):
        opened(write_plan(tmp_path, title="other"), tmp_path / "out", defects=defects)


def test_a_methods_file_is_checked(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.yaml", "title: A", "source: Field required"),
        ("b.yaml", "title: B\nsource: me\ngroup: best", "group='best' is unknown"),
        ("c.yaml", "title: C\nsource: me\nsettings: {model.depth: 3}", "model.depth: unknown"),
        ("d.py", "title = 'D'\nsource = 'me'", "defines no function make_loss"),
        ("e.py", "1 / 0", "ZeroDivisionError"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_method(name, tmp_path)


@pytest.fixture
def made_elsewhere(tmp_path: Path) -> Path:
    """What was kept of a bench on another machine: its plan, and its table of one seed."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    write_plan(folder).rename(folder / "plan.yaml")
    rows = [
        {"data": "defects", "method": method, "seed": 0, "split": "test", "balanced_accuracy": 0.6}
        for method in ("cross_entropy", "ensemble")
    ]
    table = pd.DataFrame(rows).reindex(columns=collect(tmp_path).columns)
    table.to_csv(folder / "results.csv", index=False)
    return folder


def test_runs_made_elsewhere_are_not_made_again(
    made_elsewhere: Path, defects: Path, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path, methods=["cross_entropy", "ensemble", "focal"])
    request = Request(plan, tmp_path / "out", {"defects": defects}, elsewhere=(made_elsewhere,))
    bench = open_bench(request, Console(quiet=True))
    missing = {job.key for job in jobs_to_run(bench, request)}
    assert missing == {
        "defects/cross_entropy/seed1",
        "defects/ensemble/seed1",
        "defects/focal/seed0",
        "defects/focal/seed1",
    }


def test_a_plan_that_gained_a_data_set_keeps_its_runs(
    made_elsewhere: Path, defects: Path, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path, data={"defects": {}, "more": {}}, seeds=[0])
    data = {"defects": defects, "more": defects}
    request = Request(plan, tmp_path / "out", data, elsewhere=(made_elsewhere,))
    bench = open_bench(request, Console(quiet=True))
    missing = {job.key for job in jobs_to_run(bench, request)}
    assert missing == {"more/cross_entropy/seed0", "more/ensemble/seed0"}


class TestEqualTimeElsewhere:
    """A plan of equal time, two runs of which were made on another machine."""

    @pytest.fixture
    def request_(self, made_elsewhere: Path, defects: Path, tmp_path: Path) -> Request:
        settings = {**TINY, "finetune.epoch_size": 64}
        words: dict[str, Any] = {"equal": "time", "pace": "cross_entropy", "settings": settings}
        write_plan(made_elsewhere, **words).rename(made_elsewhere / "plan.yaml")
        cost = {"train_images_per_s": 100.0, "fixed_s": 0.0}
        rows = {"defects/cross_entropy": cost, "defects/ensemble": {**cost, "fixed_s": 0.5}}
        (made_elsewhere / "costs.json").write_text(json.dumps({"rows": rows}))
        plan = write_plan(tmp_path, **words)
        return Request(plan, tmp_path / "out", {"defects": defects}, elsewhere=(made_elsewhere,))

    def test_time_is_shared_out_as_it_was_there(self, request_: Request) -> None:
        bench = open_bench(request_, Console(quiet=True))
        config = job_config(bench, Job("defects", "ensemble", 1))
        own = bench.config("defects", "ensemble", 1).finetune
        images = int(own.epochs) * int(own.epoch_size) - 0.5 * 100
        assert config.finetune.epoch_size == max(own.batch_size, round(images / int(own.epochs)))
        open_bench(request_, Console(quiet=True))  # again, with costs of its own by now

    def test_other_costs_are_refused(self, request_: Request) -> None:
        bench = open_bench(request_, Console(quiet=True))
        bench.costs_path.write_text(json.dumps({"rows": {}}))
        with pytest.raises(ConfigError, match=r"hold different costs.*one table"):
            open_bench(request_, Console(quiet=True))
        bench.costs_path.unlink()
        bench.costs_path.write_bytes((request_.elsewhere[0] / "costs.json").read_bytes())
        costs = json.loads(bench.costs_path.read_text())
        costs["rows"]["defects/focal"] = costs["rows"]["defects/ensemble"]  # measured since
        bench.costs_path.write_text(json.dumps(costs))
        open_bench(request_, Console(quiet=True))
        bench.costs_path.unlink()
        with pytest.raises(ConfigError, match="leave out --costs, or --with"):
            open_bench(replace(request_, costs=True), Console(quiet=True))
        (request_.elsewhere[0] / "costs.json").unlink()
        with pytest.raises(ConfigError, match=r"No costs\.json beside"):
            open_bench(request_, Console(quiet=True))


class TestCostsOfEqualTime:
    WORDS: ClassVar[dict[str, Any]] = {
        "equal": "time",
        "pace": "cross_entropy",
        "settings": {**TINY, "finetune.epoch_size": 64},
    }

    def test_what_was_shared_out_stays(
        self, defects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan = write_plan(tmp_path, **self.WORDS, methods=["cross_entropy", "ensemble", "focal"])
        request = Request(plan, tmp_path / "out", {"defects": defects})
        bench = open_bench(request, Console(quiet=True))
        known = {"defects/cross_entropy": {"spread": 1.0}, "defects/ensemble": {"spread": 2.0}}
        bench.costs_path.write_text(json.dumps({"rows": known}))
        asked: list[str] = []

        def measure(subjects: list[Any], **_: object) -> dict[str, Any]:
            asked.extend(subject.key for subject in subjects)
            return {"machine": {}, "rows": {subject.key: {"spread": 0.0} for subject in subjects}}

        monkeypatch.setattr("recame.bench.costs.measure.measure_side_by_side", measure)
        _measure_costs(bench, request, Console(quiet=True))
        assert asked == ["defects/focal"]
        rows = json.loads(bench.costs_path.read_text())["rows"]
        assert rows == {**known, "defects/focal": {"spread": 0.0}}
        bench.run_dir(Job("defects", "ensemble", 0)).mkdir(parents=True)
        with pytest.raises(ConfigError, match="those still missing would get other shares"):
            _measure_costs(bench, replace(request, costs=True), Console(quiet=True))

    def test_it_cannot_do_without_costs(self, defects: Path, tmp_path: Path) -> None:
        data, quiet = {"defects": defects}, Console(quiet=True)
        plan = write_plan(tmp_path, **self.WORDS)
        with pytest.raises(ConfigError, match="leave out --no-costs"):
            open_bench(Request(plan, tmp_path / "out", data, costs=False), quiet)
        assert not (tmp_path / "out").exists()  # refused, so nothing is left behind
        plan = write_plan(tmp_path, name="epochs")
        request = Request(plan, tmp_path / "epochs", data, costs=False)
        bench = open_bench(request, quiet)
        _measure_costs(bench, request, quiet)
        assert not bench.costs_path.exists()

    def test_a_probe_alone_has_no_epochs_to_share(self, defects: Path, tmp_path: Path) -> None:
        alone = {
            "method": "recame",
            "name": "alone",
            "settings": {"probe.enabled": True, "finetune.enabled": False},
        }
        plan = write_plan(tmp_path, **self.WORDS, methods=["cross_entropy", alone])
        bench = opened(plan, tmp_path / "out", defects=defects)
        job = Job("defects", "alone", 0)
        assert job_config(bench, job) == bench.config("defects", "alone", 0)
        plan = write_plan(tmp_path, **{**self.WORDS, "pace": "alone"}, methods=[alone])
        with pytest.raises(ConfigError, match="pace='alone' does not fine-tune on defects"):
            opened(plan, tmp_path / "other", defects=defects)


def test_a_method_may_be_called_otherwise(tmp_path: Path) -> None:
    plan = write_plan(
        tmp_path,
        reference="base",
        methods=[
            {"method": "focal", "name": "base", "title": "Base", "group": "recame"},
            {
                "method": "focal",
                "name": "wide",
                "settings": {"objective.focal_gamma": 1.0},
                "group": "several experts",
            },
        ],
    )
    methods = plan_methods(load_plan(plan), tmp_path)
    assert [(n, m.title, m.group) for n, m in methods.items()] == [
        ("base", "Base", "recame"),
        ("wide", "wide", "several experts"),
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": {"finetune.epochs": 9}}, "settings"),
        ({"data": {"defects": {"settings": {"finetune.epochs": 9}}}}, "data defects"),
        (
            {
                "methods": [
                    {"method": "focal", "name": "ensemble", "settings": {"objective.tau": 2}}
                ]
            },
            "method ensemble",
        ),
    ],
)
def test_runs_of_another_protocol_are_refused(
    made_elsewhere: Path, defects: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    plan = write_plan(tmp_path, **changes)
    request = Request(plan, tmp_path / "out", {"defects": defects}, elsewhere=(made_elsewhere,))
    with pytest.raises(ConfigError, match=f"differs from tiny in {named}.*another protocol"):
        open_bench(request, Console(quiet=True))
    (made_elsewhere / "plan.yaml").unlink()
    with pytest.raises(ConfigError, match=r"No plan\.yaml beside"):
        open_bench(request, Console(quiet=True))
