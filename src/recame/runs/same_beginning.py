"""A run is gone on with as it began: the same images, the same loss, the same precision."""

from __future__ import annotations

from recame.errors import ConfigError, DataError
from recame.runs.folder import RunFolder


def check_same_data(run: RunFolder, fingerprint: str) -> None:
    """Refuse to resume on other images.

    Raises:
        DataError: the images' content differs from what the run began with.
    """
    before = run.fact("data_fingerprint")
    if before != fingerprint:
        raise DataError(
            f"The images have changed since {run.path} began (fingerprint {before}, now "
            f"{fingerprint}), so the run cannot be continued as it was. Restore the images, "
            "or start a new run with another --out."
        )


def check_same_loss(run: RunFolder, loss: str | None) -> None:
    """Refuse to resume with another loss.

    Raises:
        ConfigError: a loss of one's own is missing, or another than the run began with.
    """
    info = run.info()
    if "loss" not in info or info["loss"] == loss:  # the version before did not record it
        return
    words = [name or "the settings' objective" for name in (info["loss"], loss)]
    raise ConfigError(
        f"{run.path} began with the loss of {words[0]}, not of {words[1]}, so going on would "
        "mix two methods. Give the same make_loss as then, or start a new run with another "
        "--out."
    )


def check_same_precision(run: RunFolder, precision: str) -> None:
    """Refuse to resume in another precision, which a finished run may be judged in.

    Raises:
        ConfigError: `run.precision` was edited since the run began.
    """
    before = run.info().get("precision", precision)  # the version before did not record it
    if before != precision:
        raise ConfigError(
            f"{run.path} began with run.precision={before}, and its config.yaml now says "
            f"{precision}: going on would round the rest of training differently, and the result "
            f"would be neither's. Write {before} there again (once the run is finished it may be "
            "edited), or start a new run with another --out."
        )
