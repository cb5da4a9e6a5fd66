from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
import torch
from torch import nn

from recame.bench.costs import measure, parts
from recame.bench.costs.measure import Costs, Subject, measure_all, measure_side_by_side
from recame.bench.costs.parts import count_macs
from recame.bench.plan.method import Method
from recame.bench.plan.plan import Bench, Plan
from recame.config import Config
from recame.data.dataset import InspectionSet


def test_macs_of_convolutions_and_matrices() -> None:
    plain = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    assert count_macs(plain, torch.zeros(1, 3, 16, 16)) == 8 * 8 * 8 * 3 * 9
    depthwise = nn.Conv2d(6, 6, 5, padding=2, groups=6)
    assert count_macs(depthwise, torch.zeros(1, 6, 10, 10)) == 10 * 10 * 6 * 25
    head = nn.Sequential(nn.Flatten(), nn.Linear(48, 7), nn.ReLU())
    assert count_macs(head, torch.zeros(2, 3, 4, 4)) == 2 * 48 * 7


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "INFERENCE_BATCH", 8)
    monkeypatch.setattr(parts, "_INFERENCE_S", 0.01)
    monkeypatch.setattr(parts, "_HEAD_STEPS", 2)


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Spare the seconds of a fresh process for each method."""
    asked: list[str] = []

    def peak(subject: Subject, data: InspectionSet) -> float:
        asked.append(subject.key)
        return 1.0

    monkeypatch.setattr(measure, "_peak_in_child", peak)
    return asked


def rows_of(subjects: list[Subject]) -> dict[str, Costs]:
    found = measure_side_by_side(subjects, rounds=1)
    assert found["machine"]["cores"] >= 1
    return {key: Costs(**row) for key, row in found["rows"].items()}


@pytest.mark.slow
def test_methods_differ_as_they_should(
    defects: Path, tiny_config: Callable[..., Config], no_child: list[str]
) -> None:
    alone = tiny_config(probe__enabled=False, model__num_experts=1, model__attention="none")
    twins = alone.updated({"model.num_experts": 2, "model.shared_stages": 0})
    shared = twins.updated({"model.shared_stages": 3})
    probed = shared.updated({"probe.enabled": True, "finetune.enabled": False})
    tails = shared.updated({"finetune.scope": "tails"})
    joined = alone.updated({"probe.enabled": True, "run.keep": "joined", "model.num_experts": 1})
    configs = {
        "alone": alone,
        "twins": twins,
        "shared": shared,
        "probed": probed,
        "tails": tails,
        "joined": joined,
    }
    rows = rows_of([Subject(name, defects, config) for name, config in configs.items()])
    assert rows["twins"].parameters == 2 * rows["alone"].parameters
    assert rows["twins"].macs == 2 * rows["alone"].macs
    assert rows["alone"].parameters < rows["shared"].parameters < rows["twins"].parameters
    # What the probe and the fine-tuning leave is kept side by side: two whole networks.
    assert rows["joined"].parameters == rows["twins"].parameters
    assert rows["joined"].macs == rows["twins"].macs
    assert rows["joined"].trained_parameters == rows["alone"].parameters
    assert 0 < rows["tails"].trained_parameters < rows["shared"].trained_parameters
    assert rows["shared"].trained_parameters == rows["shared"].parameters
    assert rows["probed"].train_images_per_s is None
    assert rows["probed"].trained_parameters == 0
    assert rows["probed"].peak_memory_mib is None
    assert rows["probed"].fixed_s > 0
    assert no_child == ["alone", "twins", "shared", "tails", "joined"]
    for row in rows.values():
        assert row.device == "cpu"
        assert row.inference_images_per_s > 0
        assert row.batch_size == 16


def test_a_network_that_starts_from_a_run_is_of_that_run_s_backbone(
    finished: Path, defects: Path, tiny_config: Callable[..., Config], no_child: list[str]
) -> None:
    named = tiny_config(probe__enabled=False)  # test_resnet, as `finished` has it
    left = named.updated({"model.backbone": "auto", "model.pretrained": finished})
    rows = rows_of([Subject("named", defects, named), Subject("left", defects, left)])
    assert rows["left"].parameters == rows["named"].parameters
    assert rows["left"].macs == rows["named"].macs


def test_macs_agree_with_a_hand_count_of_the_head(
    defects: Path, tiny_config: Callable[..., Config], no_child: list[str]
) -> None:
    narrow = tiny_config(probe__enabled=False, model__classifier="linear")
    wide = narrow.updated({"model.hidden": 24})
    rows = rows_of([Subject("narrow", defects, narrow), Subject("wide", defects, wide)])
    classes, experts = 4, 2
    weights = rows["wide"].parameters - rows["narrow"].parameters
    # A hidden layer of width h on P features: P h + h + h C + C instead of P C + C.
    width = (weights // experts - 24 - 24 * classes) // (24 - classes)
    assert weights == experts * (24 * width + 24 + 24 * classes - width * classes)
    added = experts * (24 * width + 24 * classes - width * classes)
    assert rows["wide"].macs - rows["narrow"].macs == added


@pytest.mark.slow
def test_memory_is_measured_in_a_fresh_process(
    defects: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(probe__enabled=False)
    row = rows_of([Subject("one", defects, config)])["one"]
    assert row.peak_memory_mib is not None
    # Weights, gradients and two moments of 0.65 million numbers take 10 MiB.
    assert 5 < row.peak_memory_mib < 500


class KilledPool:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, *_: object) -> Self:
        return self

    def result(self) -> float:
        raise BrokenProcessPool


def test_a_killed_process_has_no_peak(
    defects: Path, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "ProcessPoolExecutor", lambda **_: KilledPool())
    row = rows_of([Subject("one", defects, tiny_config(probe__enabled=False))])["one"]
    assert row.peak_memory_mib is None


@pytest.mark.slow
def test_a_bench_writes_its_costs_whole(
    defects: Path, tmp_path: Path, no_child: list[str], tiny_config: Callable[..., Config]
) -> None:
    plan = Plan.model_validate(
        {
            "name": "p",
            "title": "t",
            "data": {"defects": {}},
            "methods": ["one", "two"],
            "settings": {
                "data.size": 32,
                "model.backbone": "test_resnet",
                "model.pretrained": False,
                "augment.symmetry": "flips",
                "finetune.epochs": 2,
                "finetune.batch_size": 16,
                "run.accelerator": "cpu",
            },
        }
    )
    one = Method("one", "One", "nobody", settings={})
    two = replace(one, name="two", title="Two", settings={"model.num_experts": 2})
    bench = Bench(tmp_path / "out", plan, {"one": one, "two": two}, {("defects", 0): defects})
    told: list[tuple[str, int, int]] = []
    before = torch.get_num_threads()
    found = measure_all(bench, lambda *step: told.append(step), threads=before + 1)
    assert torch.get_num_threads() == before
    assert {row["threads"] for row in found["rows"].values()} == {before + 1}
    written = json.loads(bench.costs_path.read_text(encoding="utf-8"))
    assert written == found
    assert list(written["rows"]) == ["defects/one", "defects/two"]
    assert written["rows"]["defects/two"]["macs"] == 2 * written["rows"]["defects/one"]["macs"]
    assert told[-1] == ("costs", 8, 8)
    assert not list(bench.path.glob(".*.part"))
