"""Decide whether to set aside images for calibration: their cost against possible promises."""

from __future__ import annotations

import pandas as pd

from recame.config import Config
from recame.data.corrections import corrected
from recame.data.file_groups import groups_of
from recame.data.splits import complete_splits
from recame.decisions.exact import images_needed
from recame.decisions.promises import risk_of_each
from recame.names import counted, quoted

#: Share of the training images that is set aside, and the escape limit that it must promise.
SHARE, LIMIT = 0.2, 0.05
_NAMED = 4


def settle_calibration(table: pd.DataFrame, config: Config) -> tuple[float, str | None]:
    """Decide `data.calibrate` if it is open.

    A fifth of the training images is set aside if this allows promising an escape limit of 5 % for
    at least one defect class; otherwise they are worth more in training.

    Args:
        table: of `read_manifest`.
        config: the settings.

    Returns:
        The share, and the reason. The reason is None if no normal class is named, so that nothing
        can be released.

    Raises:
        DataError: the table cannot be split.
    """
    settings = config.data
    if settings.normal_class is None:
        return 0.0, None
    split = complete_splits(
        table,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        group_by=settings.group_by,
        seed=config.run.seed,
    )
    split, _ = corrected(split, settings)
    if (split["split"] == "calibrate").any():
        return 0.0, "the table has a split of that name"
    train = split[(split["split"] == "train") & split["label"].notna()]
    groups = groups_of(train, settings.group_by)
    counting = train["label"].groupby(train["label"])
    counts = counting.size() if groups is None else groups.groupby(train["label"]).nunique()
    counts = counts.drop(settings.normal_class, errors="ignore")
    enough = _promised(counts)
    unit = "image" if groups is None else str(settings.group_by or "file")
    needed = images_needed(LIMIT, risk_of_each(0.95, promises=max(1, len(enough))))
    if not enough:
        most = 0 if counts.empty else int(counts.max())
        return 0.0, (
            f"no defect class has enough for a promise (at most {counted(most, unit)}, and a "
            f"share of {SHARE:g} must hold {needed} to promise {LIMIT:.0%}); give recame tune "
            "other images by --calibration"
        )
    named = ", ".join(map(quoted, enough[:_NAMED])) + (", ..." if len(enough) > _NAMED else "")
    return SHARE, (
        f"about {round(SHARE * len(train)):,} of {len(train):,} training images are set aside "
        f"for calibration, so that recame tune can promise escapes of {named} ({LIMIT:.0%} or "
        "less); 0 keeps them for training"
    )


def _promised(counts: pd.Series) -> list[str]:
    """Classes for which the set-aside share allows the promise, for all of them together."""
    named = list(counts.index)
    while named:
        needed = images_needed(LIMIT, risk_of_each(0.95, promises=len(named)))
        assert needed is not None  # the limit is above 0
        kept = [name for name in named if int(SHARE * counts[name]) >= needed]
        if len(kept) == len(named):
            break
        named = kept
    return [str(name) for name in named]
