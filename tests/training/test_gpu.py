"""What only a GPU can show: recorded graphs, no waiting within a step, runs from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import recame
from recame.config import Config
from recame.contracts import Batch, ExpertOutput
from recame.losses import Objective
from recame.models import load_checkpoint
from recame.runs.folder import RunFolder
from recame.training.loop.cuda_graph import GraphedStep
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.finetune import _step
from recame.training.student.distill import distill

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

GPU = {"run.accelerator": "gpu"}


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Convolutions that round alike in two calls, without TF32."""
    backends = torch.backends.cudnn
    before = backends.deterministic, backends.allow_tf32
    backends.deterministic, backends.allow_tf32 = True, False
    yield
    backends.deterministic, backends.allow_tf32 = before


@pytest.fixture
def on_gpu(ongoing: Callable[..., OngoingRun]) -> Callable[..., OngoingRun]:
    def make(**changes: object) -> OngoingRun:
        return replace(ongoing(**changes), device=torch.device("cuda"))

    return make


def learn(
    run: OngoingRun,
    *,
    graph: bool,
    precision: str,
    sizes: tuple[int, ...] = (16, 16, 7, 16, 16, 16),
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a few steps and the network after them.

    The third batch is shorter, as an epoch's last one is; re-weighting begins before the fifth.
    """
    trained, data = _step(run, run.new_model())
    assert trained.graphed
    trained.graphed = graph
    parameters = [*trained.model.parameters(), *trained.objective.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)
    losses = []
    for step, size in enumerate(sizes):
        torch.manual_seed(step)
        trained.objective.set_deferred(step >= 4)
        batch = Batch(*(part.cuda() for part in data.train[list(range(step, step + size))]))
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            total = trained(batch, torch.Generator().manual_seed(step)).total
        losses.append(float(total.detach()))
        optimizer.zero_grad(set_to_none=True)
        trained.backward(total)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert (trained.graph is not None) == graph
    return losses, trained.model.state_dict()


class TestGraph:
    @pytest.mark.parametrize("precision", ["32", "bf16"])
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"model__hidden": 8, "model__dropout": 0.5},
            {"augment__mixup": 0.4, "augment__cutmix": 1.0},
            {"objective__contrastive_weight": 0.05, "objective__hard_distillation_weight": 0.6},
        ],
        ids=lambda changes: ",".join(changes) or "default",
    )
    def test_learns_what_ordinary_steps_learn(
        self, changes: dict[str, object], precision: str, on_gpu: Callable[..., OngoingRun]
    ) -> None:
        run = on_gpu(run__precision=precision, **changes)
        losses, weights = learn(run, graph=True, precision=precision)
        usual, expected = learn(run, graph=False, precision=precision)
        # Sums in other orders: some kernels add with atomics.
        near = {"rtol": 2e-2, "atol": 2e-2} if precision == "bf16" else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(losses, usual, **near)
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], **near, msg=f"{name} differs")

    def test_recording_leaves_no_trace(self, on_gpu: Callable[..., OngoingRun]) -> None:
        run = on_gpu(model__dropout=0.5)
        model = run.new_model().train()
        objective = Objective([60, 24, 12, 6], num_experts=2).cuda()
        step = GraphedStep(model, lambda images, labels: objective(model(images), labels[0][0]))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        images = torch.rand(8, 1, 32, 32, device="cuda")
        drawn = torch.cuda.get_rng_state()
        step._record(images, [(torch.arange(8, device="cuda") % 4, 1.0)])
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert torch.equal(torch.cuda.get_rng_state(), drawn)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_another_shape_is_left_to_ordinary_steps(
        self, on_gpu: Callable[..., OngoingRun]
    ) -> None:
        run = on_gpu()
        model = run.new_model().train()
        objective = Objective([60, 24, 12, 6], num_experts=2).cuda()
        step = GraphedStep(model, lambda images, labels: objective(model(images), labels[0][0]))
        targets = torch.arange(8, device="cuda") % 4
        first = step(torch.rand(8, 1, 32, 32, device="cuda"), [(targets, 1.0)])
        assert first is not None
        assert step.set_gradients()
        assert not step.set_gradients()
        assert step(torch.rand(5, 1, 32, 32, device="cuda"), [(targets[:5], 1.0)]) is None
        assert not step.set_gradients()

    @pytest.mark.parametrize(
        "changes",
        [{"run__cuda_graph": False}, {"finetune__accumulate": 2}, {"run__precision": "16"}],
        ids=str,
    )
    def test_not_used(self, changes: dict[str, object], on_gpu: Callable[..., OngoingRun]) -> None:
        run = on_gpu(**changes)
        assert not _step(run, run.new_model())[0].graphed


@pytest.mark.parametrize("graph", [True, False])
def test_a_step_never_waits_for_the_gpu(graph: bool, on_gpu: Callable[..., OngoingRun]) -> None:
    """Reading a value back, or copying from pageable memory, would leave the GPU idle."""
    run = on_gpu(
        run__cuda_graph=graph,
        augment__mixup=0.4,
        augment__shift=0.1,
        augment__brightness=0.1,
        augment__contrast=0.1,
        objective__contrastive_weight=0.05,
        objective__intra_weight=0.01,
    )
    trained, data = _step(run, run.new_model())
    optimizer = torch.optim.AdamW(trained.model.parameters(), lr=1e-3, fused=True)
    batch = data.train[list(range(16))]
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            there = Batch(*(part.pin_memory().to("cuda", non_blocking=True) for part in batch))
            total = trained(there, torch.Generator().manual_seed(step)).total
            optimizer.zero_grad(set_to_none=True)
            trained.backward(total)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(total)


def test_terms_agree_with_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 2, 4, generator=generator)
    features = torch.rand(32, 2, 256, generator=generator)
    target = torch.randint(4, (32,), generator=generator)
    objective = Objective([600, 240, 12, 6], num_experts=2)
    here = objective(ExpertOutput(logits, features), target).parts
    there = objective.cuda()(ExpertOutput(logits.cuda(), features.cuda()), target.cuda()).parts
    for name, value in here.items():
        torch.testing.assert_close(there[name].cpu(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"finetune.scope": "tails"},
        {"run.cuda_graph": False},
        {"finetune.accumulate": 2},
        {"run.precision": "32"},
        {"run.precision": "16", "finetune.clip_norm": 1.0},
    ],
    ids=lambda changes: ",".join(changes) or "default",
)
def test_a_whole_run(
    changes: dict[str, object],
    defects: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    config = tiny_config().updated({**GPU, "finetune.epochs": 4, **changes})
    run = recame.train(defects, config, out=tmp_path / "run")
    history = pd.read_csv(run.history_path)
    assert len(history) == 4
    assert np.isfinite(history["loss"]).all()
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    precision = str(changes.get("run.precision", "bf16"))
    assert run.load_config().run.precision == precision
    judged = recame.evaluate(run.path)
    assert 0.25 < judged.evaluation.headline["balanced_accuracy"].value <= 1


def test_a_student_of_a_run(
    defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    teacher = recame.train(defects, tiny_config().updated(GPU), out=tmp_path / "teacher")
    changes = {"finetune.epochs": 2, **GPU}
    student = distill(teacher.path, out=tmp_path / "student", changes=changes)
    assert np.isfinite(pd.read_csv(student.history_path)["loss"]).all()


def test_a_cpu_reads_what_a_gpu_trained(
    defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    """One code path: the same network answers alike on both."""
    config = tiny_config().updated({**GPU, "run.precision": "32"})
    run: RunFolder = recame.train(defects, config, out=tmp_path / "run")
    model = load_checkpoint(run.path).model.eval()
    images = torch.rand(16, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        here = model(images).logits
        there = model.cuda()(images.cuda()).logits.cpu()
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
