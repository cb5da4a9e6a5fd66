"""Time reserved for the work after fine-tuning, and the report of the time spent."""

from __future__ import annotations

import time

from recame.config import SYMMETRIES
from recame.inference.forward import steps_of_views
from recame.models import becomes_graph
from recame.names import counted
from recame.progress import say
from recame.training.loop.cost import graph_cost_s
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.retrain import num_retrained
from recame.training.planner import budget_s

#: Largest share of the time budget for judging `val` by more views than one.
JUDGING_SHARE = 0.2
#: Assumed seconds for making a network's graph, if none was measured.
GRAPH_S = 2.0
#: Factor for rotating images and combining answers, on top of the evaluation's forward passes.
_BESIDE_FORWARDS = 1.1
#: Further time of the evaluation, in units of making a graph: for each network's graph with heads,
#: and for the costs of views and networks, calibration, metrics and files; or least seconds.
_MADE_AGAIN, _FIGURES_MADE, _FIGURES_S = 2.0, 3.0, 0.5
#: Ratio of the seconds of the interpreter's end to those of its start, in a command.
_LEAVING_SHARE = 0.2
#: Share of its time budget that a run aims at, since the work at the end is estimated; and the
#: share above which it reports that it took too long.
_AIMED, _OVER = 0.99, 1.02


def later_work(run: OngoingRun, forward_s: float, num_networks: int) -> dict[str, float]:
    """Work after fine-tuning -> its estimated seconds. Add any new work after fine-tuning here.

    Args:
        run: with decided symmetry and measured times of its stages.
        forward_s: measured seconds of one image's forward pass through a network.
        num_networks: number of networks that are evaluated side by side.
    """
    settings, measured = run.config.evaluation, run.measured
    num_val, retrain = _num_val(run), run.config.retrain
    judged = num_val * int(settings.views)
    work = {"judging": num_networks * _passing_s(run, judged, forward_s)}
    if settings.weighting != "mean":  # evaluated again, to learn the weights; mirror images too
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


def afford_views(run: OngoingRun, forward_s: float, num_networks: int) -> OngoingRun:
    """The run with fewer views, if judging `val` by all of them would take too much of its time.

    Args:
        run: with decided symmetry and measured times of its stages.
        forward_s: measured seconds of one image's forward pass through a network.
        num_networks: number of networks that are judged.
    """
    budget, steps = budget_s(run.config, run.device), steps_of_views(most_views(run))
    if budget is None or not opens_views(run):
        return run
    judging_s = {
        views: num_networks * _passing_s(run, views * _num_val(run), forward_s) for views in steps
    }
    most = max([views for views in steps if judging_s[views] <= JUDGING_SHARE * budget], default=1)
    run.folder.mark(run.folder.state, most_views=most)
    if most == steps[-1]:
        return run
    why = (
        f"to judge val by {counted(steps[-1], 'view')} would take {judging_s[steps[-1]]:.0f} of "
        f"the {budget:.0f} s"
    )
    config = run.config.updated({"evaluation.views": most})
    return run.decided(config, [f"evaluation.views = {most} at most: {why}"])


def opens_views(run: OngoingRun) -> bool:
    """Whether the number of averaged views is open."""
    return run.folder.asked().evaluation.views == "auto"


def most_views(run: OngoingRun) -> int:
    """Largest number of views by which `val` is judged, also in a run that has chosen fewer."""
    if not opens_views(run):
        return int(run.config.evaluation.views)
    known = run.folder.info().get("most_views")
    return SYMMETRIES[run.config.augment.symmetry] if known is None else int(known)


def _num_val(run: OngoingRun) -> int:
    return len(run.data.view("val")) if "val" in run.data.splits else 0


def _leaving_s(run: OngoingRun) -> float:
    return _LEAVING_SHARE * run.measured.stages.get("start", 0.0)


def _passing_s(run: OngoingRun, num_images: int, forward_s: float) -> float:
    """Seconds in which images (one for each view) pass a network."""
    pixels = num_images * run.data.spec.height * run.data.spec.width
    making_s = 0.0
    if becomes_graph(run.device, pixels):
        made_s = run.measured.graph_s
        making_s = GRAPH_S if made_s is None else _MADE_AGAIN * made_s
        forward_s = run.measured.graph_image_s or forward_s
    return making_s + num_images * forward_s * _BESIDE_FORWARDS


def ends_at(run: OngoingRun) -> float | None:
    """`time.monotonic()` at which the whole run should end; None: there is no time budget."""
    budget = budget_s(run.config, run.device)
    return None if budget is None else run.started + _AIMED * budget


#: Said where the time ended before fine-tuning could begin.
UNTUNED = (
    "The time was too short to fine-tune the network, so only its classifier is trained. Expect "
    "more of a longer one: --time-budget."
)


def tell_time(run: OngoingRun) -> None:
    """Print, and note in `run.json`, what the time was spent on, and whether it was exceeded."""
    took, leaving = time.monotonic() - run.started, _leaving_s(run)
    stages = {name: round(seconds, 1) for name, seconds in run.measured.stages.items()}
    run.folder.mark(run.folder.state, seconds={"whole": round(took, 1), **stages})
    listed = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items())
    if leaving >= 0.5:
        listed += f"; some {leaving:.1f} s more to leave"
    budget = run.config.run.time_budget_s
    of = "" if budget is None else f" of {budget:.0f} s"
    say(run.console, f"Time: {took:.0f} s{of} ({listed})")
    if run.folder.asked().finetune.enabled and not run.config.finetune.enabled:
        say(run.console, UNTUNED, "yellow")
    if budget is not None and took + leaving > _OVER * budget:
        longest = max(stages, key=lambda name: stages[name])
        say(
            run.console,
            f"Longer than the time budget, {stages[longest]:.0f} s of it for {longest}: the run is "
            "complete, but with a longer budget it would have trained more.",
            "yellow",
        )
