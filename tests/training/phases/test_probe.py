"""Before its heads, the probe moves the batch norms' statistics towards the set's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from recame.training.ongoing_run import OngoingRun
from recame.training.phases.probe import run_probe

Ongoing = Callable[..., OngoingRun]


def statistics(run: OngoingRun) -> dict[str, torch.Tensor]:
    state = run_probe(run)[1].state_dict()
    return {n: v for n, v in state.items() if "running" in n and not n.startswith("head")}


@pytest.mark.parametrize(("share", "moves"), [(0.0, False), (0.5, True)])
def test_they_move_by_the_share_that_is_asked_for(
    ongoing: Ongoing, share: float, moves: bool
) -> None:
    run = ongoing(probe__adapt_batch_norm=share, probe__steps=2)
    start = run.new_model().state_dict()
    found = statistics(run)
    assert found
    assert all(torch.equal(value, start[name]) is not moves for name, value in found.items())


def test_a_probe_that_is_repeated_moves_them_alike(ongoing: Ongoing) -> None:
    run = ongoing(probe__adapt_batch_norm=0.5, probe__steps=2)
    found = statistics(run)
    (run.folder.probe_dir / "model.json").unlink()  # so it is not taken from there
    assert all(torch.equal(value, found[name]) for name, value in statistics(run).items())


def test_a_handful_of_images_moves_nothing(ongoing: Ongoing) -> None:
    run = ongoing(probe__adapt_batch_norm=0.5, probe__steps=2)
    table = run.data.table
    few = table[table["split"] == "train"].groupby("target").head(3)
    table = table[(table["split"] != "train") | table.index.isin(few.index)]
    run = replace(run, data=replace(run.data, table=table.reset_index(drop=True)))
    assert len(run.data.view("train")) < 16
    start = run.new_model().state_dict()
    assert all(torch.equal(value, start[name]) for name, value in statistics(run).items())
