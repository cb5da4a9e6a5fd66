"""Settings without `auto`, with the reason for each decision."""

from __future__ import annotations

from dataclasses import dataclass

from recame.config import Config


@dataclass(frozen=True)
class ResolvedConfig:
    """Settings without `auto`, and a sentence for each decision.

    Attributes:
        config: the settings.
        reasons: the sentences.
        most_steps: largest number of steps if the time budget ends fine-tuning, however fast they
            are; None: the settings decide.
    """

    config: Config
    reasons: tuple[str, ...]
    most_steps: int | None = None
