from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from recame.config import SYMMETRIES, Config
from recame.contracts import Predictions, PreprocessSpec
from recame.models import Architecture, MultiExpertClassifier
from recame.runs.folder import RunFolder
from recame.training.phases.price import Option, affordable, buy, log_losses, macs
from recame.training.train import train

TARGET = np.repeat([0, 1, 2], [20, 4, 2])
SPEC = PreprocessSpec(32, 32, 1, 8, 255.0, (0.5,), (0.5,))


def answers(sure: Sequence[float]) -> Predictions:
    """Predictions that give the true class of each image of class c the probability `sure[c]`."""
    own = np.asarray(sure)[TARGET]
    probabilities = np.repeat((1 - own)[:, None] / 2, 3, 1)
    probabilities[np.arange(len(TARGET)), TARGET] = own
    return Predictions(
        table=pd.DataFrame({"image": np.arange(len(TARGET)).astype(str)}),
        probabilities=probabilities.astype(np.float32),
        expert_probabilities=probabilities[:, None].astype(np.float32),
        target=TARGET,
    )


class TestBuying:
    # Of differing certainty within each: one temperature cannot make them equal.
    poor, better, best = [0.9, 0.2, 0.4], [0.9, 0.5, 0.4], [0.9, 0.6, 0.6]

    def bought(
        self, prices: dict[tuple[str, int], float], limit: float, *sures: list[float]
    ) -> Option:
        options = {Option(*key): price for key, price in prices.items()}
        losses = dict(zip(options, (log_losses(answers(sure)) for sure in sures), strict=True))
        return buy({each: losses[each] for each in affordable(options, limit)}, TARGET)

    prices = {("one", 1): 1.0, ("one", 2): 2.0, ("two", 2): 4.0}  # noqa: RUF012

    def test_what_makes_the_truth_more_probable(self) -> None:
        assert self.bought(self.prices, 10, self.poor, self.better, self.best) == ("two", 2)
        assert self.bought(self.prices, 10, self.poor, self.best, self.better) == ("one", 2)
        assert self.bought(self.prices, 10, self.best, self.poor, self.better) == ("one", 1)

    def test_equals_are_not_paid_for(self) -> None:
        assert self.bought(self.prices, 10, self.best, self.best, self.best) == ("one", 1)

    def test_nothing_above_the_limit_but_the_cheapest(self) -> None:
        assert self.bought(self.prices, 2, self.poor, self.better, self.best) == ("one", 2)
        assert self.bought(self.prices, 0.5, self.poor, self.better, self.best) == ("one", 1)

    def test_a_rare_class_counts_as_a_frequent_one(self) -> None:
        # Two images of class 2 gain what twenty of class 0 lose.
        assert self.bought(self.prices, 2, [0.9, 0.6, 0.1], [0.8, 0.6, 0.9], self.poor)[1] == 2

    def test_being_surer_alone_is_worth_nothing(self) -> None:
        soft, sharp = answers([0.6, 0.6, 0.6]), answers([0.9, 0.9, 0.9])
        wrong = np.arange(len(TARGET)) % 4 == 0  # so that both have a temperature of their own
        for found in (soft, sharp):
            found.probabilities[wrong] = np.roll(found.probabilities[wrong], 1, axis=1)
        cheap, dear = Option("one", 1), Option("one", 2)
        losses = {cheap: log_losses(soft), dear: log_losses(sharp)}
        assert buy(losses, TARGET) == cheap


class TestPrice:
    def network(self, **plan: int) -> MultiExpertClassifier:
        torch.manual_seed(0)
        return MultiExpertClassifier(Architecture("resnet10t", **plan), 3, SPEC)

    def test_a_convolution_counts_each_product_once(self) -> None:
        network = self.network(num_experts=1)
        counted: list[float] = []

        def count(module: torch.nn.Conv2d, _: object, out: torch.Tensor) -> None:
            counted.append(out.numel() * module.weight[0].numel())

        for part in network.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.register_forward_hook(count)
        price = macs(network)
        # The heads' and the gates' products are few.
        assert sum(counted) == pytest.approx(price, rel=0.02)
        assert network.training

    def test_two_experts_pay_a_shared_stage_once(self) -> None:
        one = macs(self.network(num_experts=1))
        apart = macs(self.network(num_experts=2, shared_stages=0))
        shared = macs(self.network(num_experts=2, shared_stages=2))
        assert apart == pytest.approx(2 * one, rel=0.01)
        assert one < shared < apart


@pytest.mark.parametrize(
    ("least", "views"), [(None, (SYMMETRIES["square"],)), (1e9, (1,)), (0.0, (1, 2, 4, 8))]
)
def test_a_run_keeps_what_it_bought(
    defects: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    least: float | None,
    views: tuple[int, ...],
) -> None:
    config = tiny_config(
        evaluation__least_images_per_s=least, evaluation__views="auto", augment__symmetry="square"
    )
    folder = train(defects, config, out=tmp_path / "run")
    chosen = folder.load_config().evaluation.views
    assert chosen in views
    said = [reason for reason in folder.reasons() if reason.startswith("evaluation.views")]
    assert said[-1].startswith(f"evaluation.views = {chosen}:")
    if chosen != SYMMETRIES["square"]:
        assert ("within evaluation.least_images_per_s = 1e+09" in said[-1]) == (least == 1e9)
    assert RunFolder.open(folder.path).answers(folder.load_config())["views"] == chosen
    if least == 1e9:
        assert not json.loads((folder.path / "phases.json").read_text())["kept"].startswith(
            "joined"
        )


def test_views_that_were_asked_for_stay(
    defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(evaluation__least_images_per_s=1e9, evaluation__views=4)
    folder = train(defects, config, out=tmp_path / "run")
    assert folder.load_config().evaluation.views == 4
