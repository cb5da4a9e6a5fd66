from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from recame.training import reserve
from recame.training.loop.cost import graph_cost_s
from recame.training.ongoing_run import Measured, OngoingRun
from recame.training.reserve import (
    GRAPH_S,
    afford_views,
    ends_at,
    later_work,
    most_views,
    tell_time,
)

Ongoing = Callable[..., OngoingRun]


class TestLaterWork:
    def test_judging_is_images_times_views_times_networks(self, ongoing: Ongoing) -> None:
        run = ongoing(evaluation__views=4)
        for networks in (1, 2, 3):
            work = later_work(run, 0.01, networks)
            assert work["judging"] == pytest.approx(16 * 4 * 0.01 * networks * 1.1)

    def test_a_graph_is_made_for_each_network_and_gains_what_was_measured(
        self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = ongoing(evaluation__views=4)
        monkeypatch.setattr("recame.models.frozen_forward.GRAPH_PIXELS", 16 * 4 * 32 * 32)
        assert later_work(run, 0.01, 2)["judging"] == pytest.approx(2 * (GRAPH_S + 0.704))
        measured = replace(run, measured=Measured(graph_s=3.0, graph_image_s=0.005))
        # By the graph's own time: the probe and fine-tuning need not run a network alike.
        for forward_s in (0.01, 0.03):
            judging = later_work(measured, forward_s, 2)["judging"]
            assert judging == pytest.approx(2 * (2 * 3 + 0.352))
        fewer = replace(run, config=run.config.updated({"evaluation.views": 2}))
        assert later_work(fewer, 0.01, 2)["judging"] == pytest.approx(2 * 0.352)  # runs eagerly

    def test_each_later_stage_has_its_time(self, ongoing: Ongoing) -> None:
        run = ongoing()
        plain = later_work(run, 0.01, 2)
        views = int(run.config.evaluation.views)
        assert plain["graph"] == graph_cost_s(0.02, views=views)  # two networks may answer
        assert later_work(run, 0.01, 1)["graph"] == graph_cost_s(0.01, views=views)
        slow = replace(run, measured=Measured(graph_s=2.0, graph_image_s=0.004))
        work = later_work(slow, 0.01, 3)
        assert work["graph"] == graph_cost_s(0.02, 0.008, views=views, made_s=2.0)
        assert (plain["figures"], work["figures"]) == (0.5, 6.0)
        asked: dict[str, Any] = {"retrain.enabled": True, "evaluation.weighting": "stability"}
        more = replace(run, config=run.config.updated(asked), measured=Measured(head_step_s=0.01))
        work = later_work(more, 0.01, 3)
        assert set(work) - set(plain) == {"retraining", "weighing"}
        assert work["retraining"] == pytest.approx(70 * 4 * 0.01 * 1.1 + 400 * 0.01)
        assert work["weighing"] == pytest.approx(2 * (16 + 32) * 0.01 * 1.1)
        assert sum(work.values()) > sum(plain.values())

    def test_the_interpreter_leaves_as_fast_as_it_came(self, ongoing: Ongoing) -> None:
        run = ongoing()
        assert later_work(run, 0.01, 2)["leaving"] == 0  # called from Python
        slow = replace(run, measured=Measured(stages={"start": 20.0}))
        assert later_work(slow, 0.01, 2)["leaving"] == pytest.approx(4.0)

    def test_without_val_nothing_is_judged(
        self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = ongoing()
        table = run.data.table[run.data.table["split"] != "val"].reset_index(drop=True)
        run = replace(run, data=replace(run.data, table=table))
        assert later_work(run, 0.01, 2)["judging"] == 0


class TestAffordViews:
    """16 images of val by 8 views and 2 networks, 10 ms a forward pass: 2.8 s."""

    @staticmethod
    def asked(ongoing: Ongoing, budget: float | None, views: int | str = "auto") -> OngoingRun:
        run = ongoing(run__time_budget_s=budget)
        open_ = run.config.updated({"evaluation.views": views})
        run.folder.begin(run.folder.source, run.data.fingerprint, run.config, asked=open_)
        own = 8 if views == "auto" else views
        decided = {"augment.symmetry": "square", "evaluation.views": own}
        return replace(run, config=run.config.updated(decided))

    @pytest.mark.parametrize(("budget", "views"), [(15, 8), (13, 4), (6, 2), (3, 1), (1, 1)])
    def test_judging_takes_a_fifth_of_the_time_at_most(
        self, ongoing: Ongoing, budget: float, views: int
    ) -> None:
        run = self.asked(ongoing, budget)
        afforded = afford_views(run, 0.01, 2)
        assert afforded.config.evaluation.views == most_views(afforded) == views
        reasons = [each for each in run.folder.reasons() if "evaluation.views" in each]
        assert len(reasons) == (views < 8)
        if reasons:
            told = f"to judge val by 8 views would take 3 of the {budget} s"
            assert reasons == [f"evaluation.views = {views} at most: {told}"]
            assert run.folder.load_config().evaluation.views == views

    def test_fewer_that_were_chosen_later_are_asked_again(self, ongoing: Ongoing) -> None:
        run = afford_views(self.asked(ongoing, 13), 0.01, 2)
        chosen = replace(run, config=run.config.updated({"evaluation.views": 1}))
        assert most_views(chosen) == 4

    def test_a_number_that_was_asked_for_stays(self, ongoing: Ongoing) -> None:
        run = self.asked(ongoing, 1, views=4)
        assert afford_views(run, 0.01, 2) is run
        assert most_views(run) == 4


class TestTellTime:
    def told(
        self,
        ongoing: Ongoing,
        took: float,
        budget: float | None,
        patch: pytest.MonkeyPatch,
        **before: float,
    ) -> tuple[str, OngoingRun]:
        run = ongoing(run__time_budget_s=budget)
        heard = io.StringIO()
        stages = Measured(stages=before | {"images": 0.7 * took, "probe": 0.2 * took})
        run = replace(run, started=0.0, measured=stages, console=Console(file=heard, width=300))
        patch.setattr(reserve, "time", SimpleNamespace(monotonic=lambda: took))
        tell_time(run)
        return heard.getvalue(), run

    def test_kept(self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch) -> None:
        text, run = self.told(ongoing, 58.0, 60.0, monkeypatch)
        assert "Time: 58 s of 60 s (images 41 s, probe 12 s)" in text
        assert "Longer" not in text
        assert run.folder.info()["seconds"] == {"whole": 58.0, "images": 40.6, "probe": 11.6}
        assert ends_at(run) == pytest.approx(0.99 * 60)

    def test_not_kept(self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch) -> None:
        text, _ = self.told(ongoing, 64.0, 60.0, monkeypatch)
        assert "Longer than the time budget, 45 s of it for images" in text

    def test_what_leaving_takes_is_told(
        self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text, _ = self.told(ongoing, 58.0, 60.0, monkeypatch, start=20.0)
        assert "Time: 58 s of 60 s (start 20 s, images 41 s, probe 12 s; some 4.0 s more" in text
        assert "Longer than the time budget" in text

    def test_a_network_that_was_not_fine_tuned_is_said_to_be_none(
        self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text, run = self.told(ongoing, 58.0, 60.0, monkeypatch)
        assert "too short to fine-tune" not in text
        run = replace(run, config=run.config.updated({"finetune.enabled": False}))
        heard = io.StringIO()
        tell_time(replace(run, console=Console(file=heard, width=300)))
        assert "too short to fine-tune the network" in heard.getvalue()

    def test_no_time_was_given(self, ongoing: Ongoing, monkeypatch: pytest.MonkeyPatch) -> None:
        text, _ = self.told(ongoing, 64.0, None, monkeypatch)
        assert "Time: 64 s (" in text
        assert "Longer" not in text
