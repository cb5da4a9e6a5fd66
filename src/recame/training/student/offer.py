"""What a student of a finished run would gain and cost, in one sentence at the run's end."""

from __future__ import annotations

from dataclasses import replace

from recame.errors import RecameError
from recame.models import LoadedModel
from recame.names import command, counted
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.price import macs
from recame.training.student.recipe import student_config

#: Least gain of speed for mentioning a student.
_LEAST_GAIN = 1.5


def student_offer(run: OngoingRun, loaded: LoadedModel, images_per_s: float) -> str | None:
    """A sentence on the gain of `recame distill` for the run.

    Args:
        run: with decided views.
        loaded: the network that it keeps.
        images_per_s: its speed.

    Returns:
        None if a student would gain little, or if the run cannot teach one or is one itself.
    """
    views, settings = int(run.config.evaluation.views), run.config
    one_answer = loaded.architecture.num_experts == views == 1
    if (
        one_answer
        or settings.distill.teacher is not None
        or settings.evaluation.weighting != "mean"
    ):
        return None
    try:
        config = student_config(
            settings,
            run.folder.asked(),
            loaded.architecture,
            loaded.spec,
            num_stages=loaded.model.num_stages,
            backbone=None,
            changes={},
        )
        student = replace(run, config=config).new_model(pretrained=False)
    except RecameError:  # the run cannot teach a student
        return None
    gain = views * macs(loaded.model) / macs(student)
    if gain < _LEAST_GAIN:
        return None
    budget = settings.run.time_budget_s
    words = () if budget is None else ("--time-budget", f"{budget:g}s")
    verb = command("recame", "distill", run.folder.path, *words)
    networks = loaded.architecture.num_experts
    decide = "decides" if networks == 1 else "decide"
    return (
        f"Faster: {verb} teaches one small network what {counted(networks, 'network')} {decide} "
        f"under {counted(views, 'view')}. By its multiplications it answers {gain:.1f} times as "
        f"fast (about {images_per_s * gain:,.0f} images/s); what it keeps of the accuracy on val "
        "is said at its end"
    )
