"""Metrics of one's own, beside those of the registry."""

from __future__ import annotations

from collections.abc import Sequence

from recame.errors import PluginError
from recame.metrics.registry import BY_NAME, Metric
from recame.plugins import Plugin

_SETTING = "evaluation.metrics"


def own_metrics(plugins: Sequence[Plugin]) -> tuple[Metric, ...]:
    """What `evaluation.metrics` names: a `Metric`, or what makes one of its `init_args`.

    Raises:
        PluginError: one cannot be imported or made, is no metric, or bears a name that is taken.
    """
    found: dict[str, Metric] = {}
    for plugin in plugins:
        made = plugin.load(_SETTING)
        if not isinstance(made, Metric):
            made = plugin.make(_SETTING)
        if not isinstance(made, Metric) or (made.share is None) == (made.score is None):
            raise PluginError(
                f"{_SETTING} names {plugin.class_path}, which is no metric with either a share or "
                "a score: give a recame.metrics.registry.Metric, or what makes one."
            )
        if made.name in BY_NAME or made.name in found:
            raise PluginError(
                f"{_SETTING} ({plugin.class_path}) is called {made.name}, as another metric is, "
                "and files would hold one of them alone: give it another name."
            )
        found[made.name] = made
    return tuple(found.values())
