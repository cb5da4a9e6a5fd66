"""What the end of a training leaves to answer by, and what it says where it leaves nothing."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import recame
from recame.models import save_checkpoint
from recame.models.recorded_graph import UnrecordableError
from recame.training import answering
from recame.training.loop.cost import graph_cost_s
from recame.training.ongoing_run import OngoingRun


@pytest.fixture
def kept(ongoing: Callable[..., OngoingRun]) -> OngoingRun:
    """A run whose network was chosen and written."""
    run = replace(ongoing(), console=Console(file=io.StringIO(), width=400))
    save_checkpoint(run.folder.path, run.new_model().eval(), run.data.label_space)
    return run


def said(run: OngoingRun) -> str:
    file = run.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_graph_and_its_price(kept: OngoingRun) -> None:
    answering.keep_graph(kept)
    assert sorted(p.name for p in (kept.folder.path / "graph").iterdir()) == [
        "graph.json",
        "model.onnx",
    ]
    facts = kept.folder.info()
    assert facts["graph"]["kept"] is True
    assert facts["state"] == "training"
    assert "Parity with torch on" in said(kept)
    told = re.search(
        r"Answers ([\d,]+) images/s at 32 x 32 px on this machine with 1 view and 2 networks "
        r"\(by its graph\)",
        said(kept),
    )
    assert told is not None
    assert float(told[1].replace(",", "")) == pytest.approx(facts["graph"]["images_per_s"], abs=1)


def answering_with(ongoing: Callable[..., OngoingRun], **changes: object) -> OngoingRun:
    """A run after it has kept its graph."""
    run = replace(ongoing(**changes), console=Console(file=io.StringIO(), width=400))
    save_checkpoint(run.folder.path, run.new_model().eval(), run.data.label_space)
    answering.keep_graph(run)
    return run


def test_a_student_is_offered_where_it_would_be_faster(
    ongoing: Callable[..., OngoingRun],
) -> None:
    run = answering_with(ongoing, evaluation__views=4)
    (offer,) = [line for line in said(run).splitlines() if line.startswith("Faster: ")]
    assert f"recame distill {run.folder.path} teaches" in offer
    assert "what 2 networks decide under 4 views" in offer
    times = re.search(r"answers ([\d.]+) times as fast \(about ([\d,]+) images/s\)", offer)
    assert times is not None
    assert float(times[1]) >= 4
    answered = run.folder.info()["graph"]["images_per_s"]
    assert int(times[2].replace(",", "")) == pytest.approx(answered * float(times[1]), rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [{"model__num_experts": 1}, {"evaluation__views": 4, "evaluation__weighting": "stability"}],
)
def test_no_student_is_offered_that_would_gain_nothing(
    ongoing: Callable[..., OngoingRun], changes: dict[str, object]
) -> None:
    run = answering_with(ongoing, **changes)
    assert "Answers" in said(run)
    assert "Faster: " not in said(run)


def test_a_graph_that_answers_otherwise_is_not_kept(
    kept: OngoingRun, monkeypatch: pytest.MonkeyPatch, defects: Path
) -> None:
    plain = answering.quick_onnx

    def disturbed(module: torch.nn.Module, *args: object, **words: object) -> bytes:
        with torch.no_grad():
            for name, weights in module.named_parameters():
                if name.endswith("classifier.bias"):
                    weights[:, 0] += 1
        try:
            return plain(module, *args, **words)  # type: ignore[arg-type]
        finally:
            with torch.no_grad():
                for name, weights in module.named_parameters():
                    if name.endswith("classifier.bias"):
                        weights[:, 0] -= 1

    monkeypatch.setattr(answering, "quick_onnx", disturbed)
    answering.keep_graph(kept)
    assert not (kept.folder.path / "graph").exists()
    reason = kept.folder.info()["graph"]["reason"]
    assert "does not answer as the network does: on real images a probability is" in reason
    assert reason in said(kept)
    assert "(by torch)" in said(kept)
    shutil.copytree(defects / "hole", kept.folder.path.parent / "hole")
    kept.folder.finish()
    model = recame.load(kept.folder.path)
    assert model.describe()["backend"] == "torch"
    assert len(model.predict(kept.folder.path.parent / "hole")) == 6


def test_what_cannot_be_recorded_is_exported_where_there_is_time(
    kept: OngoingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise UnrecordableError("nothing is written for aten.new.default")

    exported: list[Path] = []

    def export(_module: object, _example: object, path: Path, **_: object) -> None:
        exported.append(path)
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(answering, "quick_onnx", refuse)
    monkeypatch.setattr(answering, "export_onnx", export)
    answering.keep_graph(kept)
    assert len(exported) == 1
    told = "nothing is written for aten.new.default, and torch.onnx cannot export it"
    assert kept.folder.info()["graph"]["reason"] == f"{told} (no such operator)"
    late = replace(kept, config=kept.config.updated({"run.time_budget_s": 1.0}))
    answering.keep_graph(late)
    assert len(exported) == 1
    assert "has no time left for torch.onnx" in kept.folder.info()["graph"]["reason"]


def test_other_precisions_answer_in_torch(kept: OngoingRun) -> None:
    run = replace(kept, config=kept.config.updated({"run.precision": "bf16"}))
    answering.keep_graph(run)
    assert kept.folder.info()["graph"]["reason"] == "it answers in precision bf16"
    assert "(by torch)" in said(kept)


def test_it_is_reckoned_by_a_forward() -> None:
    # 500 images compared and 235 others, in torch and the graph; a round of 16, 0.4 s timed.
    assert graph_cost_s(0.001) == pytest.approx(1.3 + 1.235 + 0.016 + 0.4)
    assert graph_cost_s(0.001, 0.0005) == pytest.approx(1.3 + 0.545 + 0.345 + 0.008 + 0.4)
    # Where an image takes long, few are compared.
    assert graph_cost_s(0.1, 0.05) == pytest.approx(1.3 + 49 * 0.1 + 64 * 0.05 + 2 * 0.8)
    assert graph_cost_s(0.1, 0.05, views=4) - graph_cost_s(0.1, 0.05) == pytest.approx(4.8)
    assert graph_cost_s(0.001, made_s=2.0) - graph_cost_s(0.001) == pytest.approx(6.7)
    assert graph_cost_s(0.001, made_s=60.0) - graph_cost_s(0.001) == pytest.approx(8.7)
