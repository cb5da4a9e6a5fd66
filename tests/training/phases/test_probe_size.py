from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recame.models import FrozenForward
from recame.training.ongoing_run import OngoingRun
from recame.training.phases import probe_size
from recame.training.phases.probe import run_probe
from recame.training.phases.probe_size import num_embedded, plan_probe, settle_probe
from recame.training.planner import LEAST_PER_CLASS

Ongoing = Callable[..., OngoingRun]


@pytest.fixture
def run(ongoing: Ongoing) -> Iterator[OngoingRun]:
    """A run of 100 s, of which embedding may take 15; the clock stands at its beginning."""
    made = ongoing(
        probe__max_per_class="auto",
        probe__views=8,
        probe__steps=20,
        augment__symmetry="auto",
        evaluation__views="auto",
        run__time_budget_s=100.0,
    )
    assert made.config.probe.max_per_class == "auto"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_size, "time", SimpleNamespace(monotonic=lambda: 0.0))
        yield replace(made, started=0.0)


@pytest.fixture
def image_s(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Let an image take so long: `image_s(eager, graph)`."""

    def take(eager: float, graph: float) -> None:
        def measured(_: object, forward: FrozenForward) -> float:
            return graph if forward.uses_graph else eager

        monkeypatch.setattr(probe_size, "_image_s", measured)

    return take


def embedded(run: OngoingRun) -> int:
    counts, val_counts = probe_size._counts(run)
    settings = run.config.probe
    return num_embedded(counts, val_counts, int(settings.max_per_class)) * settings.views


@pytest.mark.parametrize("eager_s", [0.001, 0.022, 0.05, 0.2])
def test_as_much_as_the_measured_speed_allows(
    eager_s: float, run: OngoingRun, image_s: Callable[[float, float], None]
) -> None:
    image_s(eager_s, eager_s)
    settled, forward = settle_probe(run, run.new_model())
    assert not forward.uses_graph
    assert embedded(settled) * eager_s <= 15
    if eager_s == 0.001:
        assert settled.config.probe.max_per_class == 42  # all there are
    else:
        assert embedded(settled) * eager_s > 9
    assert (settled.config.probe.views < 8) == (eager_s > 0.04)
    assert run.folder.load_config() == settled.config
    assert f"an image takes {1000 * eager_s:.1f} ms a view" in "\n".join(run.folder.reasons())


def test_a_probe_begun_again_sees_the_same_images_on_a_machine_of_another_speed(
    run: OngoingRun, image_s: Callable[[float, float], None]
) -> None:
    image_s(0.03, 0.03)
    seen: list[tuple[int, int]] = []
    original = FrozenForward.__call__

    def spy(self: FrozenForward, images: Any) -> Any:
        seen.append((len(seen), len(images)))
        return original(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenForward, "__call__", spy)
        settled, _ = settle_probe(run, run.new_model())
        image_s(1e-5, 1e-5)
        patch.setattr(probe_size, "_measured", None)  # it is not asked again
        taken_up = replace(run, config=run.folder.load_config())
        again, _ = run_probe(taken_up)
    assert again.config.probe == settled.config.probe
    assert sum(number for _, number in seen) == embedded(settled)


def test_a_graph_is_used_where_it_pays_and_by_the_settings_alone(
    run: OngoingRun, image_s: Callable[[float, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recame.models.frozen_forward.GRAPH_PIXELS", 300 * 32 * 32)
    image_s(0.04, 0.02)  # 375 images eagerly, 688 are all
    settled, forward = settle_probe(run, run.new_model())
    assert forward.uses_graph
    assert run.measured.graph_image_s == 0.02
    assert run.measured.graph_s is not None
    assert 400 < embedded(settled) <= 750
    again, forward = settle_probe(settled, run.new_model())
    assert forward.uses_graph
    assert again is settled


def test_a_graph_that_is_too_slow_to_pay_is_left(
    run: OngoingRun, image_s: Callable[[float, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recame.models.frozen_forward.GRAPH_PIXELS", 400 * 32 * 32)
    image_s(0.05, 0.06)  # 300 images eagerly, twice as many were hoped for
    settled, forward = settle_probe(run, run.new_model())
    assert not forward.uses_graph
    assert embedded(settled) <= 300
    assert not settle_probe(settled, run.new_model())[1].uses_graph


class TestWhatFits:
    counts = np.array([6000, 900, 300, 36, 8])
    val = np.array([1500, 225, 75, 9, 2])

    @pytest.mark.parametrize("fits", [0.0, 90.0, 1000.0, 20_000.0, 1e9])
    def test_what_fits_is_embedded_and_no_more(self, fits: float) -> None:
        words = {"views": 8, "draws": 204_800}
        cap, views = plan_probe(fits, self.counts, self.val, **words)
        embedded = num_embedded(self.counts, self.val, cap) * views
        assert embedded <= fits or (cap, views) == (LEAST_PER_CLASS, 1)
        another = num_embedded(self.counts, self.val, cap + 1) * views
        assert another > fits or cap == self.counts.max()

    def test_all_images_and_views_where_they_fit(self) -> None:
        cap, views = plan_probe(1e9, self.counts, self.val, views=8, draws=10**6)
        assert (cap, views) == (6000, 8)

    def test_no_more_than_the_heads_see(self) -> None:
        cap, views = plan_probe(1e9, self.counts, self.val, views=8, draws=8 * 2000)
        assert np.minimum(self.counts, cap).sum() <= 2000 < np.minimum(self.counts, cap + 1).sum()
        assert views == 8

    def test_views_go_where_a_few_images_do_not_fit(self) -> None:
        least = num_embedded(self.counts, self.val, LEAST_PER_CLASS)
        assert least == 5 * 8 + 4 * 8 + 2
        for views in (4, 2, 1):
            found = plan_probe(least * views, self.counts, self.val, views=8, draws=10**6)
            assert found == (LEAST_PER_CLASS, views)
