"""Adapt a trained network to other classes; classes that keep their name keep their weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from recame.errors import DataError
from recame.label_space import LabelSpace
from recame.models.adapters import rank_of
from recame.models.checkpoint import LoadedModel
from recame.models.classifier import CosineClassifier, LinearClassifier
from recame.names import quoted


@torch.no_grad()
def adapted_to(loaded: LoadedModel, label_space: LabelSpace) -> LoadedModel:
    """A checkpoint's network for a label space with more, fewer or reordered classes.

    Every expert keeps the class vector and bias of each class that has the same name in both, so
    the logits of these classes do not change; classes that no longer exist are left out. Backbone,
    feature normalisation and hidden layer are kept.

    A new class starts without information, and with the smallest bias of the others:

    - linear: at the mean of the other class vectors, which has no effect in the softmax. Its logit
      is never above the mean of theirs, so the class is not predicted before training.
    - cosine: at a random direction, as in a new head, nearly orthogonal to all features. (The
      direction of the mean would be closer to an image between two classes than either of them,
      and would win the doubtful images; it would also be the same for every new class.) Use
      `torch.manual_seed` to make it repeatable.

    Args:
        loaded: is not changed.
        label_space: classes are matched by name; the result has this label space.

    Raises:
        DataError: no class has the same name in both.

    Examples:
        >>> from recame.contracts import PreprocessSpec
        >>> from recame.models import Architecture, MultiExpertClassifier
        >>> spec = PreprocessSpec(32, 32, 1, 8, 255.0, (0.5,), (0.5,))
        >>> plan = Architecture("test_resnet", stages=1)
        >>> model = MultiExpertClassifier(plan, 2, spec).eval()
        >>> before = LoadedModel(model, LabelSpace(("ok", "dent"), (9, 2)), spec, plan)
        >>> after = adapted_to(before, LabelSpace(("dent", "hole", "ok"), (5, 3, 9)))
        >>> images = torch.rand(1, 1, 32, 32)
        >>> model(images).logits.shape, after.model(images).logits.shape
        (torch.Size([1, 2, 2]), torch.Size([1, 2, 3]))
    """
    known = loaded.label_space
    kept = [index for index, name in enumerate(label_space.names) if name in known]
    if not kept:
        raise DataError(
            f"None of the classes {', '.join(map(quoted, label_space.names[:12]))} is one of the "
            f"checkpoint's ({', '.join(map(quoted, known.names[:12]))}), so nothing "
            "of its classifier could be kept: correct the names, or train a new one on its "
            "backbone (model.pretrained)."
        )
    model = copy.deepcopy(loaded.model)
    classifier, count = model.head.classifier, label_space.num_classes
    rows = [known.index(label_space.names[index]) for index in kept]
    weight, bias = classifier.weight[:, rows], classifier.bias[:, rows]
    if isinstance(classifier, CosineClassifier):
        start = LinearClassifier(len(weight), weight.shape[2], count).weight.to(weight)
    else:
        start = weight.mean(1, keepdim=True).repeat(1, count, 1)
    least = bias.amin(1, keepdim=True).repeat(1, count)
    start[:, kept], least[:, kept] = weight, bias
    classifier.weight, classifier.bias = nn.Parameter(start), nn.Parameter(least)
    model.num_classes = count
    if model.architecture.tuning_rank is None:
        # Fix the rank: if open, it would be derived from the new number of classes.
        model.architecture = replace(model.architecture, tuning_rank=rank_of(model))
    return LoadedModel(model, label_space, loaded.spec, model.architecture)
