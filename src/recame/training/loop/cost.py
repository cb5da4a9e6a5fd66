"""What a fine-tuning step costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepCost:
    """What a fine-tuning step costs on this device, measured.

    Attributes:
        step_s: seconds a training step.
        val_s: seconds one pass over the validation split takes.
    """

    step_s: float
    val_s: float
