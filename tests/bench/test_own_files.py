"""What docs/bench.md tells a researcher works: a method and a data set in one file each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from recame.bench.command import Request, open_bench
from recame.bench.plan.plan import Job
from recame.bench.queue.job import run_job

PAGE = Path(__file__).parents[2] / "docs" / "bench.md"


def blocks() -> dict[str, str]:
    """File name -> text of the page's blocks that begin with a file's name."""
    found = re.findall(
        r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    return dict(found)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    for name, text in blocks().items():
        (tmp_path / name).write_text(text)
    values = {
        "title": "one file each",
        "seeds": [0],
        "data": {"stripes": {"builder": "stripes.py", "options": {"images": 48}}},
        "methods": ["my_method.yaml", "label_smoothing.py"],
        "settings": {
            "data.size": 32,
            "model.backbone": "test_resnet",
            "model.pretrained": False,
            "augment.symmetry": "flips",
            "finetune.epochs": 1,
            "finetune.batch_size": 16,
            "evaluation.views": 1,
            "evaluation.bootstrap": 20,
            "run.accelerator": "cpu",
        },
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_page_has_all_three() -> None:
    assert set(blocks()) == {"my_method.yaml", "label_smoothing.py", "stripes.py"}


def test_both_run(plan: Path, tmp_path: Path) -> None:
    bench = open_bench(Request(plan, tmp_path / "out", {}), Console(quiet=True))
    assert bench.methods["my_method"].settings == {
        "objective.base": "focal",
        "objective.focal_gamma": 1.0,
    }
    for method, part, experts in (("my_method", "base", 1), ("label_smoothing", "smoothed", 2)):
        job = Job("stripes", method, 0)
        run_job(bench, job)
        result = json.loads(bench.result_path(job).read_text())
        assert result["splits"]["test"]["num_images"] == 12
        assert result["config"]["model"]["num_experts"] == experts
        assert result["images_seen"] == 24
        history = (bench.run_dir(job) / "history.csv").read_text().splitlines()[0]
        assert f"loss/{part}" in history
