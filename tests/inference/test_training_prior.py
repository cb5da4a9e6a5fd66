"""Which shares of the classes a network's probabilities speak of, by its settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recame.config import Config
from recame.contracts import ExpertOutput
from recame.files import read_json, write_json
from recame.inference.training_prior import prior_of_run, training_prior
from recame.losses import Objective
from recame.runs.folder import RunFolder

COUNTS = (900, 90, 9)
NATURAL = np.array(COUNTS) / 999
ROOT = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()


def prior(
    kept: str = "finetune", counts: tuple[int, ...] = COUNTS, **changes: object
) -> np.ndarray:
    settings = {"model.num_experts": 1, "objective.tau": 1.0}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    found = training_prior(Config().updated(settings), counts, kept)
    assert found.unknown == ""
    return np.array(found.prior)


def power(shares: np.ndarray, by: float) -> np.ndarray:
    raised = shares**by
    return np.asarray(raised / raised.sum())


def test_a_balanced_softmax_speaks_of_equal_shares() -> None:
    for sampler in ("instance", "square_root", "class_balanced"):
        np.testing.assert_allclose(prior(finetune__sampler=sampler), np.full(3, 1 / 3), rtol=1e-9)


def test_plain_cross_entropy_speaks_of_what_the_sampler_shows() -> None:
    plain = {"objective__base": "cross_entropy"}
    np.testing.assert_allclose(prior(finetune__sampler="instance", **plain), NATURAL)
    np.testing.assert_allclose(prior(finetune__sampler="square_root", **plain), ROOT)
    alike = prior(finetune__sampler="class_balanced", **plain)
    np.testing.assert_allclose(alike, np.full(3, 1 / 3))


def test_a_tau_leaves_the_rest_of_the_prior() -> None:
    for tau in (0.0, 0.5, 1.5, 2.0):
        found = prior(finetune__sampler="instance", objective__tau=tau)
        np.testing.assert_allclose(found, power(NATURAL, 1 - tau))
    # Above 1 it takes rare classes to be the frequent ones.
    assert prior(finetune__sampler="instance", objective__tau=1.5).argmax() == 2


def test_what_is_taken_off_after_training_is_not_spoken_of() -> None:
    for tau in (0.5, 1.0, 1.5):
        plain = {"objective__base": "cross_entropy", "objective__posthoc_tau": tau}
        np.testing.assert_allclose(
            prior(finetune__sampler="instance", **plain), power(NATURAL, 1 - tau)
        )


def test_experts_are_a_geometric_mean() -> None:
    two = {"model__num_experts": 2, "objective__tau": (1.0, 2.0), "finetune__sampler": "instance"}
    np.testing.assert_allclose(prior(**two), power(NATURAL, -0.5))


def test_the_experts_that_were_kept_count() -> None:
    two = {"model__num_experts": 2, "objective__tau": (1.0, 2.0), "finetune__sampler": "instance"}
    np.testing.assert_allclose(prior("probe", **two), power(ROOT, -0.5))
    # The probe's first, of tau 1 on equal terms, and the fine-tuned network's last, of tau 2.
    np.testing.assert_allclose(prior("joined", **two), power(NATURAL, -0.5))
    np.testing.assert_allclose(prior("joined_first", **two), np.full(3, 1 / 3))
    retrained = prior("retrained", objective__base="cross_entropy", retrain__sampler="instance")
    np.testing.assert_allclose(retrained, NATURAL)


def test_weights_of_the_classes_multiply() -> None:
    weighted = {"objective__class_balanced_beta": 1.0, "finetune__sampler": "instance"}
    found = prior(objective__base="class_balanced", **weighted)
    np.testing.assert_allclose(found, np.full(3, 1 / 3))
    late = prior(objective__base="cross_entropy", objective__deferred_reweighting=0.8, **weighted)
    np.testing.assert_allclose(late, np.full(3, 1 / 3))
    # New heads are trained without.
    early = prior("probe", objective__base="cross_entropy", objective__deferred_reweighting=0.8)
    np.testing.assert_allclose(early, ROOT)


def test_a_class_without_images_is_not_spoken_of() -> None:
    found = prior(counts=(90, 0, 10))
    np.testing.assert_allclose(found, [0.5, 0, 0.5])


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_the_minimum_of_the_objective_speaks_of_it(tau: float) -> None:
    """Three kinds of images, one in each row, with known densities: logits are fitted freely."""
    density = np.array([[0.7, 0.2, 0.3], [0.2, 0.6, 0.3], [0.1, 0.2, 0.4]])  # image x class
    counts = (60, 30, 10)
    shown = np.array(counts) / 100
    objective = Objective(
        counts,
        num_experts=1,
        tau=tau,
        hard_weight=0,
        distillation_weight=0,
        hard_distillation_weight=0,
        contrastive_weight=0,
        intra_weight=0,
    )
    image, target = np.divmod(np.arange(9), 3)
    joint = torch.tensor((density * shown)[image, target])
    logits = torch.zeros(3, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses = [
            objective(
                ExpertOutput(logits[[i]][:, None], torch.zeros(1, 1, 2)), torch.tensor([int(t)])
            ).total
            for i, t in zip(image, target, strict=True)
        ]
        total = (torch.stack(losses) * joint).sum()
        total.backward()
        return total

    optimizer.step(closure)
    speaks = prior(counts=counts, finetune__sampler="instance", objective__tau=tau)
    expected = density * speaks
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(torch.softmax(logits, 1).detach(), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "kept", "told"),
    [
        ({"distill.teacher": "runs/teacher"}, "finetune", "it is a student"),
        ({"objective.base": "ldam"}, "finetune", "by its own margin"),
        ({}, None, "which of its phases was kept"),
        ({"objective.tau": "auto"}, "finetune", "objective.tau or model.num_experts open"),
    ],
)
def test_what_nothing_says_is_not_guessed(
    changes: dict[str, object], kept: str | None, told: str
) -> None:
    settings = {"model.num_experts": 1, "objective.tau": 1.0, **changes}
    found = training_prior(Config().updated(settings), COUNTS, kept)
    assert found.prior == ()
    assert told in found.unknown


def test_of_a_run(finished: Path, tmp_path: Path) -> None:
    folder = RunFolder.open(Path(shutil.copytree(finished, tmp_path / "run")))
    config = folder.load_config()
    found = prior_of_run(folder, config)
    kept = read_json(folder.path / "phases.json")["kept"]
    assert found == training_prior(config, folder.label_space().counts, kept)
    assert sum(found.prior) == pytest.approx(1)
    assert [each.phase for each in found.experts]
    marker = read_json(folder.path / "run.json")
    write_json(folder.path / "run.json", {**marker, "loss": "mine.make_loss"})
    assert "a loss of the user (mine.make_loss)" in prior_of_run(folder, config).unknown
