"""What a run still owes after fine-tuning, and what its time was spent on."""

from __future__ import annotations

import time

from recame.models import becomes_graph
from recame.progress import say
from recame.training.loop.cost import graph_cost_s
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.retrain import num_retrained
from recame.training.planner import budget_s

#: Seconds that making a network's graph takes, where none was made that could be measured.
GRAPH_S = 2.0
#: Turning the images and putting the answers together, beside the forwards of the judgement.
_BESIDE_FORWARDS = 1.1
#: What judging takes beside that: of each network its graph, with heads, in those that making a
#: graph took before; prices of views and networks, calibration, figures and files, likewise, or so
#: many seconds.
_MADE_AGAIN, _FIGURES_MADE, _FIGURES_S = 2.0, 3.0, 0.5
#: Seconds of the interpreter's end to those of its start; a call from Python has neither.
_LEAVING_SHARE = 0.2
#: The share of its time that a run aims at, since what it owes at the end is an estimate; and the
#: one from which on it is over its time, and says so.
_AIMED, _OVER = 0.99, 1.02


def later_work(run: OngoingRun, forward_s: float, num_networks: int) -> dict[str, float]:
    """What is due after fine-tuning -> its seconds; whatever comes to be done there is added here.

    Args:
        run: its symmetry decided, what its stages took so far beside it.
        forward_s: an image's forward through a network, measured.
        num_networks: that are judged side by side.
    """
    settings, measured = run.config.evaluation, run.measured
    num_val = len(run.data.view("val")) if "val" in run.data.splits else 0
    judged, retrain = num_val * int(settings.views), run.config.retrain
    work = {"judging": num_networks * _passing_s(run, judged, forward_s)}
    if settings.weighting != "mean":  # judged again, to learn the weights, as are mirror images
        work["weighing"] = 2 * _passing_s(run, judged + 2 * num_val, forward_s)
    if retrain.enabled:
        heads_s = retrain.steps * (measured.head_step_s or 0.005)
        work["retraining"] = _passing_s(run, num_retrained(run), forward_s) + heads_s
    if run.device.type == "cpu":
        together = min(2, num_networks)  # may answer
        image_s = measured.graph_image_s
        work["graph"] = graph_cost_s(
            together * forward_s,
            None if image_s is None else together * image_s,
            views=int(settings.views),
            made_s=measured.graph_s or 0.0,
        )
    work["saving"] = 2 * (measured.saving_s or 0.5)
    work["figures"] = max(_FIGURES_S, _FIGURES_MADE * (measured.graph_s or 0.0))
    work["leaving"] = _leaving_s(run)
    return work


def _leaving_s(run: OngoingRun) -> float:
    return _LEAVING_SHARE * run.measured.stages.get("start", 0.0)


def _passing_s(run: OngoingRun, num_images: int, forward_s: float) -> float:
    """Seconds in which images, each counted once a view, pass a network."""
    pixels = num_images * run.data.spec.height * run.data.spec.width
    making_s = 0.0
    if becomes_graph(run.device, pixels):
        made_s = run.measured.graph_s
        making_s = GRAPH_S if made_s is None else _MADE_AGAIN * made_s
        forward_s = run.measured.graph_image_s or forward_s
    return making_s + num_images * forward_s * _BESIDE_FORWARDS


def ends_at(run: OngoingRun) -> float | None:
    """`time.monotonic()` that the end of the whole run aims at; None: it has no time to keep."""
    budget = budget_s(run.config, run.device)
    return None if budget is None else run.started + _AIMED * budget


def tell_time(run: OngoingRun) -> None:
    """Say, and note in `run.json`, what the time was spent on, and where it was not kept."""
    took, leaving = time.monotonic() - run.started, _leaving_s(run)
    stages = {name: round(seconds, 1) for name, seconds in run.measured.stages.items()}
    run.folder.mark(run.folder.state, seconds={"whole": round(took, 1), **stages})
    listed = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items())
    if leaving >= 0.5:
        listed += f"; some {leaving:.1f} s more to leave"
    budget = run.config.run.time_budget_s
    of = "" if budget is None else f" of {budget:.0f} s"
    say(run.console, f"Time: {took:.0f} s{of} ({listed})")
    if budget is not None and took + leaving > _OVER * budget:
        longest = max(stages, key=lambda name: stages[name])
        say(
            run.console,
            f"Longer than the time budget, {stages[longest]:.0f} s of it for {longest}: the run is "
            "whole, but had less training than in a longer time.",
            "yellow",
        )
