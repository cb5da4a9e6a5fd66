"""The settings on which a run's answers depend, without pydantic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recame.runs.settings import decided_views

if TYPE_CHECKING:
    from recame.config import Config


@dataclass(frozen=True)
class Judging:
    """The settings of a run that decide its answers, and how they are computed.

    Attributes:
        views: number of test-time views that are averaged.
        weighting: weighting of the experts' logits.
        batch_size: images in each forward pass in torch.
        max_pixels: most pixels of an image file that is decoded.
        accelerator: `auto`, `cpu` or `gpu`.
        precision: number format in which the run was trained; it answers in the same on the same
            kind of device.
    """

    views: int
    weighting: str
    batch_size: int
    max_pixels: int
    accelerator: str
    precision: str

    @classmethod
    def of(cls, config: Config, run: Path) -> Judging:
        """Those of a run's settings.

        Raises:
            ConfigError: they leave the views open.
        """
        judged, trained = config.evaluation, config.run
        return cls(
            views=decided_views(config, run),
            weighting=judged.weighting,
            batch_size=judged.batch_size,
            max_pixels=config.data.max_pixels,
            accelerator=trained.accelerator,
            precision=trained.precision,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Judging:
        """Read what `to_dict` wrote.

        Raises:
            TypeError: a value is missing, unknown, or of another kind.
        """
        read = cls(**values)
        for name in (field.name for field in fields(cls)):
            kind = int if name in ("views", "batch_size", "max_pixels") else str
            if type(getattr(read, name)) is not kind:
                raise TypeError(f"{name} is {getattr(read, name)!r}")
        return read

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def answers(self, weights_sha256: str) -> dict[str, object]:
        """What decides the ensemble's probabilities, so that a temperature holds for them."""
        return {
            "views": self.views,
            "weighting": self.weighting,
            "weights_sha256": weights_sha256,
        }
