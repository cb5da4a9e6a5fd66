"""The networks among which `val` chooses: those of the phases, and ensembles of two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from recame.contracts import ExpertOutput, Predictions
from recame.data.dataset import InspectionSet
from recame.inference.predict import Forwarding, predict_groups
from recame.models import MultiExpertClassifier
from recame.training.phases.price import Option

#: Ensemble of the probe and one fine-tuned expert -> the index of that expert.
_ENSEMBLES = {"joined": -1, "joined_first": 0}


class Candidates:
    """Networks by name, and what each of them predicts.

    Attributes:
        last: the phase that ran last.
        names: of the phases, then of the ensembles.
    """

    def __init__(
        self, phases: Mapping[str, MultiExpertClassifier], *, ensembles: bool = False
    ) -> None:
        """Take the networks of the phases.

        Args:
            phases: phase -> its network, in the order in which they ran.
            ensembles: whether the probe and a fine-tuned expert may answer together: `joined` with
                the last expert, `joined_first` with the first of several.
        """
        self._phases = dict(phases)
        self.last = list(self._phases)[-1]
        own: tuple[str, ...] = ()
        if ensembles:
            several = self._phases["finetune"].num_experts > 1
            own = ("joined", "joined_first") if several else ("joined",)
        self.names = (*self._phases, *own)

    def network(self, name: str) -> MultiExpertClassifier:
        """The network of a candidate; that of an ensemble is built."""
        if name in self._phases:
            return self._phases[name]
        return self._phases["probe"].joined(self._phases["finetune"], _ENSEMBLES[name])

    def predict(
        self, images: InspectionSet, split: str, **how: Unpack[Forwarding]
    ) -> dict[Option, Predictions]:
        """Predict a split with every candidate, by each number of views, in one pass.

        Args:
            images: decoded as the networks expect them.
            split: its name.
            how: see `Forwarding`; its number of views is the largest.
        """
        all_experts = _SideBySide(self._phases.values())
        found = predict_groups(all_experts, images, split, self._experts(), **how)
        return {Option(*key): predictions for key, predictions in found.items()}

    def _experts(self) -> dict[str, tuple[int, ...]]:
        """Candidate -> indices of its experts among those of all phases, side by side."""
        found: dict[str, tuple[int, ...]] = {}
        first = 0
        for phase, model in self._phases.items():
            found[phase] = tuple(range(first, first + model.num_experts))
            first += model.num_experts
        for name in self.names[len(self._phases) :]:
            found[name] = (found["probe"][0], found["finetune"][_ENSEMBLES[name]])
        return found


class _SideBySide(nn.Module):
    """The experts of several networks, as one network."""

    def __init__(self, models: Iterable[MultiExpertClassifier]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> ExpertOutput:
        """Images (B, C, H, W) -> logits and features of all experts, in order."""
        outputs = [model(images) for model in self.models]
        logits, features = ([getattr(o, name) for o in outputs] for name in ("logits", "features"))
        return ExpertOutput(torch.cat(logits, 1), torch.cat(features, 1))
