"""A run belongs to the method that began it, its code included."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from recame.bench.command import Request, open_bench, run_bench
from recame.bench.plan.method import load_method
from recame.bench.plan.plan import Bench, Job, load_plan, plan_methods
from recame.bench.queue.job import METHOD_FILE, check_code, run_job
from recame.errors import ConfigError

CODE = """
from torch.nn.functional import cross_entropy
from recame.contracts import LossResult
from recame.losses import TrainingLoss

title = "weighed"
source = "nobody"

class Weighed(TrainingLoss):
    def forward(self, output, target):
        total = WEIGHT * cross_entropy(output.logits.mean(1), target)
        return LossResult(total, {"weighed": total.detach()})

def make_loss(counts, num_experts, prior):
    return Weighed(len(counts))
"""

TINY: dict[str, Any] = {
    "data.size": 32,
    "model.backbone": "test_resnet",
    "model.pretrained": False,
    "augment.symmetry": "flips",
    "finetune.epochs": 1,
    "finetune.batch_size": 16,
    "evaluation.views": 1,
    "evaluation.bootstrap": 20,
    "run.accelerator": "cpu",
}
JOB = Job("defects", "weighed", 0)
QUIET = Console(quiet=True)


def write_method(folder: Path, weight: float) -> None:
    (folder / "weighed.py").write_text(CODE.replace("WEIGHT", str(weight)))


@pytest.fixture
def request_of(defects: Path, tmp_path: Path) -> Request:
    write_method(tmp_path, 1.0)
    values = {
        "title": "one method of our own",
        "seeds": [0],
        "data": {"defects": {}},
        "methods": ["weighed.py"],
        "settings": TINY,
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values))
    return Request(tmp_path / "plan.yaml", tmp_path / "out", {"defects": defects}, costs=False)


def test_a_result_of_other_code_is_refused(request_of: Request, tmp_path: Path) -> None:
    bench = open_bench(request_of, QUIET)
    run_job(bench, JOB)
    result = json.loads(bench.result_path(JOB).read_text())
    assert result["method_sha256"] == bench.methods["weighed"].sha256
    assert open_bench(request_of, QUIET).methods == bench.methods
    write_method(tmp_path, 2.0)
    with pytest.raises(ConfigError, match=r"seed0 was begun with other code \(SHA-256 "):
        open_bench(request_of, QUIET)
    with pytest.raises(ConfigError, match=r"seed0 was begun with other code \(SHA-256 "):
        run_bench(replace(request_of, table=True), QUIET)  # a table shows it no more
    # So is a run that was interrupted, before it goes on.
    bench.result_path(JOB).unlink()
    changed = open_bench(request_of, QUIET)
    with pytest.raises(ConfigError, match=r"call the changed method otherwise"):
        run_job(changed, JOB)
    # Nothing is known of a run of a version that kept no record, and the message says how to vouch.
    (bench.run_dir(JOB) / METHOD_FILE).unlink()
    with pytest.raises(ConfigError, match="kept no record of a method's code") as told:
        run_job(changed, JOB)
    vouched = str(told.value).partition("put ")[2].partition(" into ")[0]
    (bench.run_dir(JOB) / METHOD_FILE).write_text(vouched)
    check_code(changed, JOB)


def test_a_run_that_has_not_begun_has_no_other_code(request_of: Request, tmp_path: Path) -> None:
    bench = open_bench(request_of, QUIET)
    record = bench.run_dir(JOB) / METHOD_FILE
    record.parent.mkdir(parents=True)
    record.write_text('{"code_sha256": "of a try that was killed before it began"}')
    run_job(bench, JOB)
    sha256 = bench.methods["weighed"].code_sha256
    assert json.loads(record.read_text()) == {"method": "weighed", "code_sha256": sha256}


@pytest.mark.slow
def test_runs_elsewhere_of_other_code_are_refused(request_of: Request, tmp_path: Path) -> None:
    assert run_bench(request_of, QUIET)
    here = replace(request_of, out=tmp_path / "here", elsewhere=(request_of.out,), table=True)
    open_bench(here, QUIET)
    for elsewhere in (request_of.out, request_of.out / "results.csv"):
        write_method(tmp_path, 1.0)
        open_bench(replace(here, elsewhere=(elsewhere,)), QUIET)
        write_method(tmp_path, 2.0)
        with pytest.raises(
            ConfigError, match=r"differs from plan in the content of method weighed"
        ):
            open_bench(replace(here, elsewhere=(elsewhere,)), QUIET)
    # A table of a version that did not record it is taken as it was then.
    table = request_of.out / "results.csv"
    lines = [line.rpartition(",")[0] for line in table.read_text().splitlines()]
    assert lines[0].endswith("fingerprint")
    table.write_text("\n".join(lines) + "\n")
    open_bench(replace(here, elsewhere=(table,)), QUIET)


def test_what_decides_a_method(tmp_path: Path) -> None:
    write_method(tmp_path, 1.0)
    method = load_method("weighed.py", tmp_path)
    assert method.code_sha256
    same = replace(method, title="Other words", deviations=("none",), settings=None)
    assert same.sha256 == method.sha256
    others = [
        replace(method, settings={"finetune.lr": 0.1}),
        replace(method, teacher={"model.num_experts": 2}),
        replace(method, code=f"{method.code}\n# a line more"),
        replace(method, code=None),
    ]
    assert len({method.sha256, *(other.sha256 for other in others)}) == 5
    assert load_method("focal", tmp_path).code_sha256 == ""


@pytest.mark.parametrize("name", ["a/b", "../up", "con", "Nul.1", "ends.", "ends ", "a:b", "what?"])
def test_names_that_cannot_be_folders_everywhere(name: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "title": "t",
        "data": {"boards": {}},
        "methods": [{"method": "focal", "name": name}],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=f"a method is called '{re.escape(name)}', and its name"):
        plan_methods(load_plan(path), tmp_path)
    values |= {"data": {"con": {}}, "methods": ["focal"]}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="a data set is called 'con'"):
        load_plan(path)


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", '{"rows": 7}', '{"machine": {}}', '{"rows": {"defects/weighed": 3}}', '{"rows"'],
)
@pytest.mark.parametrize("verb", ["queue", "table"])
def test_damaged_costs_name_the_file_and_the_way_out(
    text: str, verb: str, request_of: Request, tmp_path: Path
) -> None:
    out = request_of.out
    out.mkdir()
    (out / "costs.json").write_text(text)
    asked = replace(request_of, costs=None, table=verb == "table")
    with pytest.raises(ConfigError, match=rf"{out / 'costs.json'} .*delete it: recame bench then"):
        run_bench(asked, QUIET)
    bench = Bench(out, load_plan(request_of.plan), {}, {})
    with pytest.raises(ConfigError, match="delete it"):
        bench.costs()
