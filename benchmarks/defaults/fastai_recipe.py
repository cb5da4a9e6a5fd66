"""A set's manifest, learnt by fastai as its users do: `vision_learner` and `fine_tune`.

    PYTHON benchmarks/defaults/fastai_recipe.py MANIFEST.csv --seconds 60 --seed 0 --out FILE.npz

PYTHON is of an environment of its own: `pip install recame[train] fastai`. fastai is no dependency
of recame (2.8.12 installs beside torch 2.15). The weights are those that recame packages
(EfficientNet-Lite0), since fastai's come from a network. One frozen epoch, then as many others as
fit the time by a measured epoch; images of 128 px (with 224, one core shows each image of most sets
once or twice in five minutes), square flips where the set bears them, no
test-time views, no weights of classes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

BACKBONE, SIZE, BATCH = "tf_efficientnet_lite0", 128, 64
#: Images by which answers are timed.
TIMED = 256


def learner_of(table: pd.DataFrame, symmetry: str) -> Any:
    """A `vision_learner` with the packaged weights."""
    from fastai.vision.all import (
        ImageDataLoaders,
        Normalize,
        Resize,
        ResizeMethod,
        aug_transforms,
        vision_learner,
    )

    from recame.models.pretrained import create_timm_model

    flips = symmetry != "none"
    changes = aug_transforms(
        size=SIZE, do_flip=flips, flip_vert=symmetry in ("flips", "square"), max_rotate=10.0
    )
    loaders = ImageDataLoaders.from_df(
        table[table["split"].isin(["train", "val"])],
        path="/",
        fn_col="path",
        label_col="label",
        valid_col="is_valid",
        item_tfms=Resize(SIZE, method=ResizeMethod.Squish),
        batch_tfms=[*changes, Normalize.from_stats([0.5] * 3, [0.5] * 3)],
        bs=min(BATCH, int((table["split"] == "train").sum())),
        num_workers=0,
    )
    learner = vision_learner(loaders, BACKBONE, pretrained=False, normalize=False)
    weights = create_timm_model(BACKBONE, "package", 3).state_dict()
    body = learner.model[0].model
    own = body.state_dict()
    body.load_state_dict({name: weights[name] for name in own})
    return learner


def seconds_of_epoch(learner: Any) -> float:
    """What an epoch of all weights takes, its validation included, by two batches of each."""
    steps = len(learner.dls.train)
    learner.unfreeze()
    took = []
    for _ in range(2):
        began = time.monotonic()
        images, target = next(iter(learner.dls.train))
        learner.model.train()
        learner.loss_func(learner.model(images), target).backward()
        took.append(time.monotonic() - began)
        learner.model.zero_grad()
    judged = 0.4 * len(learner.dls.valid)
    return min(took) * (steps + judged)


def main() -> None:
    """Learn, answer and write."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--symmetry", default="flips")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        time.monotonic = time.process_time
        began = time.monotonic()
    import fastai
    from fastai.callback.core import Callback, CancelFitException
    from fastai.vision.all import set_seed

    class Stop(Callback):  # type: ignore[misc]
        """Ends the last epoch where the measured one was too short a guess."""

        def after_batch(self) -> None:
            if time.monotonic() - began > options.seconds:
                raise CancelFitException

    torch.set_num_threads(1)
    set_seed(options.seed, reproducible=True)
    table = pd.read_csv(options.manifest, dtype={"label": str})
    table["path"] = [str(options.manifest.parent.resolve() / name) for name in table["image"]]
    table["is_valid"] = table["split"] == "val"
    learner = learner_of(table, options.symmetry)
    set_seed(options.seed, reproducible=True)
    epoch_s = seconds_of_epoch(learner)
    left = options.seconds - (time.monotonic() - began)
    # A frozen epoch costs about half of one that trains all.
    epochs = max(1, int((left - 0.5 * epoch_s) / epoch_s))
    freeze = 1 if left > 1.5 * epoch_s else 0
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs, freeze_epochs=freeze, cbs=[Stop()])
        trained_s = time.monotonic() - began
        test = table[table["split"] == "test"]
        loader = learner.dls.test_dl(test)
        probabilities = learner.get_preds(dl=loader)[0].numpy()
        few = learner.dls.test_dl(test.head(TIMED))
        answering = time.monotonic()
        learner.get_preds(dl=few)
    images_per_s = min(TIMED, len(test)) / (time.monotonic() - answering)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        options.out,
        probabilities=probabilities,
        names=np.array(learner.dls.vocab, dtype=str),
        seconds=trained_s,
        images_per_s=images_per_s,
        epochs=epochs,
        version=np.array(f"fastai {fastai.__version__}, torch {torch.__version__}"),
    )


if __name__ == "__main__":
    main()
