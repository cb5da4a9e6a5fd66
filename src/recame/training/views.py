"""The flips and rotations of a run: those that its images' shape allows, those that were chosen."""

from __future__ import annotations

from typing import Any

from recame.config import SYMMETRIES, Config, largest_symmetry
from recame.training.resolved_config import ResolvedConfig


def fit_views(config: Config, height: int, width: int) -> ResolvedConfig:
    """The settings without rotations by 90 degrees, unless the images are square.

    Args:
        config: settings that may hold `auto`.
        height: of the images in training, pixels.
        width: of the images in training, pixels.
    """
    largest = largest_symmetry(height, width)
    most = SYMMETRIES[largest]
    changes: dict[str, Any] = {}
    if SYMMETRIES.get(config.augment.symmetry, 0) > most:
        changes["augment.symmetry"] = largest
    if config.evaluation.views != "auto" and config.evaluation.views > most:
        changes["evaluation.views"] = most
    why = f"images of {height} x {width} pixels (height x width) cannot be turned by 90 degrees"
    reasons = tuple(f"{name} = {value}: {why}" for name, value in changes.items())
    if config.probe.views > most:  # a largest number, so no explicit request is overridden
        changes["probe.views"] = most
    return ResolvedConfig(config.updated(changes) if changes else config, reasons)


def with_symmetry(config: Config, name: str) -> Config:
    """The settings with a decided symmetry, and the test-time augmentation that follows from it."""
    changes: dict[str, object] = {"augment.symmetry": name}
    if config.evaluation.views == "auto":
        changes["evaluation.views"] = SYMMETRIES[name]
    return config.updated(changes)
