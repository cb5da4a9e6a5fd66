"""Metrics that the user adds to those of the registry (`evaluation.metrics`)."""

from __future__ import annotations

from collections.abc import Sequence

from recame.errors import PluginError
from recame.metrics.registry import BY_NAME, Metric
from recame.plugins import Plugin

_SETTING = "evaluation.metrics"


def own_metrics(plugins: Sequence[Plugin]) -> tuple[Metric, ...]:
    """Load the metrics that `evaluation.metrics` names.

    Each entry names a `Metric`, or a function or class that makes one from its `init_args`.

    Raises:
        PluginError: one cannot be imported or made, is no metric, or has the name of another.
    """
    found: dict[str, Metric] = {}
    for plugin in plugins:
        made = plugin.load(_SETTING)
        if not isinstance(made, Metric):
            made = plugin.make(_SETTING)
        if not isinstance(made, Metric) or (made.share is None) == (made.score is None):
            raise PluginError(
                f"{_SETTING} names {plugin.class_path}, which is no metric with either a share or "
                "a score: give a recame.metrics.registry.Metric, or a function that makes one."
            )
        if made.name in BY_NAME or made.name in found:
            raise PluginError(
                f"{_SETTING} ({plugin.class_path}) is called {made.name}, like another metric, "
                "and files would hold only one of them: give it another name."
            )
        found[made.name] = made
    return tuple(found.values())
