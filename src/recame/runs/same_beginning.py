"""Checks that a run is resumed as it began: same images, same loss, same precision."""

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
            f"{fingerprint}), so the run cannot be continued. Restore the images, or start a new "
            "run with another --out."
        )


def check_same_loss(run: RunFolder, loss: str | None) -> None:
    """Refuse to resume with another loss.

    Raises:
        ConfigError: the loss differs from the one with which the run began.
    """
    info = run.info()
    if "loss" not in info or info["loss"] == loss:  # the version before did not record it
        return
    words = [name or "the settings' objective" for name in (info["loss"], loss)]
    raise ConfigError(
        f"{run.path} began with the loss of {words[0]}, not of {words[1]}, so resuming would mix "
        "two methods. Give the same make_loss as at the start, or start a new run with another "
        "--out."
    )


def check_same_precision(run: RunFolder, precision: str) -> None:
    """Refuse to resume in another precision; only evaluation of a finished run may use another.

    Raises:
        ConfigError: `run.precision` was edited since the run began.
    """
    before = run.info().get("precision", precision)  # the version before did not record it
    if before != precision:
        raise ConfigError(
            f"{run.path} began with run.precision={before}, but its config.yaml now says "
            f"{precision}: the rest of training would be rounded differently, and the result would "
            f"belong to neither precision. Write {before} there again (you may edit it after the "
            "run is finished), or start a new run with another --out."
        )
