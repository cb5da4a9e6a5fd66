"""The recipes that the default of `recame train` is held against, each by name.

All but fastai are settings of recame, so that every one has the same decoded images, the same
steps and the same moving average: a loop of one's own is not faster.
"""

from __future__ import annotations

FASTAI = "fastai, vision_learner and fine_tune"

#: Flips and turns that the images of a set bear, and the test-time views that follow, four at most.
VIEWS = {"none": 1, "mirror": 2, "flips": 4, "square": 4}

#: One network, its last stage's features, a linear head, one expert, nothing of the method.
PLAIN: dict[str, object] = {
    "model.num_experts": 1,
    "model.attention": "none",
    "model.pooled_stages": 1,
    "model.classifier": "linear",
    "model.standardise": False,
    "objective.base": "balanced_softmax",
    "objective.tau": 1,
    "objective.hard_weight": 0,
    "objective.contrastive_weight": 0,
    "objective.intra_weight": 0,
    "probe.enabled": False,
    "probe.adapt_batch_norm": 0,
    "finetune.sampler": "instance",
    "finetune.freeze_batch_norm": False,
    "finetune.frozen_stages": 0,
    "evaluation.least_images_per_s": None,
    "augment.mixup": 0,
    "data.tiles": 0,
}
#: As a page on timm has it: flips and turns of every image, four views at test time.
_TIMM: dict[str, object] = {
    **PLAIN,
    "data.size": 128,
    "finetune.lr": 1e-3,
    "augment.symmetry": "square",
    "augment.shift": 0,
    "augment.brightness": 0,
    "augment.contrast": 0,
    "evaluation.views": 4,
}
#: Square-root sampling, by someone who knows which flips the images bear.
_SQUARE_ROOT: dict[str, object] = {
    **PLAIN,
    "objective.base": "cross_entropy",
    "finetune.sampler": "square_root",
    "finetune.lr": 2e-3,
}
#: Name -> settings; None: not recame's.
RECIPES: dict[str, dict[str, object] | None] = {
    "default": {},
    "timm, cross-entropy, 128 px": {**_TIMM, "objective.base": "cross_entropy"},
    "timm, balanced softmax, 128 px": _TIMM,
    "square-root sampling, 128 px": {**_SQUARE_ROOT, "data.size": 128},
    "square-root sampling, 224 px": {**_SQUARE_ROOT, "data.size": 224},
    "bare": {**PLAIN, "finetune.sampler": "square_root", "finetune.lr": 2e-3, "data.size": "own"},
    "frozen features, MLP, balanced softmax": {
        **PLAIN,
        "data.size": 128,
        "model.hidden": 256,
        "model.pooled_stages": 4,
        "model.dropout": 0.3,
        "model.standardise": True,
        "probe.enabled": True,
        "finetune.enabled": False,
    },
    FASTAI: None,
}


def settings_of(recipe: str, symmetry: str, own_size: int | str) -> dict[str, object]:
    """The settings of a recipe for a set.

    Args:
        recipe: one of `RECIPES` that is recame's.
        symmetry: which flips and turns the set's images bear.
        own_size: the size that their files ask for, between 64 and 128 px.
    """
    settings = dict(RECIPES[recipe] or {})
    if not settings:
        return settings  # the default asks the images itself
    settings.setdefault("augment.symmetry", symmetry)
    settings.setdefault("evaluation.views", VIEWS[symmetry])
    if settings["data.size"] == "own":
        settings["data.size"] = own_size
    return settings
