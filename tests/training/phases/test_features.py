from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recame.config import ProbeConfig
from recame.data.transforms import dihedral_view
from recame.losses import Objective
from recame.models import ExpertHead, load_checkpoint
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.features import ProbeFeatures, embed, fit_heads, probe_prior
from recame.training.phases.probe import run_probe

Ongoing = Callable[..., OngoingRun]


class TestEmbed:
    @pytest.mark.parametrize("pooled_stages", [1, 3])
    def test_is_what_the_model_pools(self, pooled_stages: int, ongoing: Ongoing) -> None:
        run = ongoing(model__pretrained=False, model__pooled_stages=pooled_stages)
        model = run.new_model()
        # Tails drawn anew differ, so each expert has its own features.
        assert not model.tails_identical()
        view = run.data.view("test")
        features = embed(run, model, view, 8)
        assert model.training
        images = run.data.images(view.rows)
        model.eval()
        with torch.no_grad():
            expected = torch.stack([model.pooled(dihedral_view(images, v)) for v in range(8)], 1)
        assert features.pooled.shape[:3] == (len(view), 8, 2)
        torch.testing.assert_close(features.pooled, expected, rtol=1e-4, atol=1e-5)
        assert features.target.tolist() == view.targets.tolist()

    def test_equal_tails_are_computed_once(self, ongoing: Ongoing) -> None:
        run = ongoing(model__shared_stages=4)
        model = run.new_model()
        features = embed(run, model, run.data.view("val"), 1)
        assert features.pooled.ndim == 3
        batch = features.expand(features.pooled[:4, 0], 2)
        assert torch.equal(batch[:, 0], batch[:, 1])
        images = run.data.images(run.data.view("val").rows[:4])
        torch.testing.assert_close(batch, model.eval().pooled(images), rtol=1e-4, atol=1e-5)


class TestFitHeads:
    COUNTS = (40, 12, 4)

    @pytest.fixture
    def features(self) -> ProbeFeatures:
        generator = torch.Generator().manual_seed(0)
        target = torch.repeat_interleave(torch.arange(3), torch.tensor(self.COUNTS))
        pooled = 5 + 3 * torch.randn(len(target), 2, 6, generator=generator)
        pooled[..., :3] += 6 * torch.eye(3)[target][:, None]
        return ProbeFeatures(pooled, target)

    def objective(self, **weights: float) -> Objective:
        prior = probe_prior(np.array(self.COUNTS))
        zero = {"contrastive_weight": 0.0, "intra_weight": 0.0}
        return Objective(self.COUNTS, num_experts=2, prior=prior, **{**zero, **weights})

    def fit(self, features: ProbeFeatures, steps: int, seed: int = 0) -> ExpertHead:
        torch.manual_seed(7)
        head = ExpertHead(2, 6, 3, hidden=8, dropout=0.1)
        settings = ProbeConfig(steps=steps, batch_size=32, lr=1e-2)
        fit_heads(head, features, self.objective(), settings, num_experts=2, seed=seed)
        assert not head.training
        return head

    def loss(self, head: ExpertHead, features: ProbeFeatures) -> float:
        inputs = features.expand(features.pooled[:, 0], 2)
        with torch.no_grad():
            return float(self.objective()(head(inputs), features.target).total)

    def test_the_loss_falls(self, features: ProbeFeatures) -> None:
        losses = [self.loss(self.fit(features, steps), features) for steps in (1, 20, 150)]
        assert losses[0] > 1.3 * losses[1] > 1.3 * losses[2]

    def test_rare_classes_are_learned(self, features: ProbeFeatures) -> None:
        head = self.fit(features, 150)
        logits = head(features.expand(features.pooled[:, 1], 2)).logits.mean(1)
        hits = (logits.argmax(1) == features.target).float()
        assert hits[-4:].mean() == 1.0
        assert hits.mean() > 0.85

    def test_features_are_standardised(self, features: ProbeFeatures) -> None:
        head = self.fit(features, 1)
        flat = features.pooled.flatten(0, 1)
        torch.testing.assert_close(head.mean, flat.mean(0).expand(2, -1))
        spread = flat.std(0, correction=0).expand(2, -1)
        torch.testing.assert_close(head.std, spread, rtol=1e-3, atol=1e-4)

    def test_seeded(self, features: ProbeFeatures) -> None:
        heads = [self.fit(features, 5, seed).state_dict() for seed in (0, 0, 1)]
        weight = "classifier.weight"
        assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
        assert not torch.equal(heads[0][weight], heads[2][weight])

    def test_prior_is_that_of_the_draws(self) -> None:
        prior = probe_prior(np.array([81, 9, 0]))
        torch.testing.assert_close(prior, torch.tensor([0.75, 0.25, 0.0]))


class TestRunProbe:
    def test_only_heads_learn(self, ongoing: Ongoing) -> None:
        run = ongoing(probe__steps=5)
        fresh = run.new_model().state_dict()
        _, model = run_probe(run)
        changed = {
            name for name, value in model.state_dict().items() if (value != fresh[name]).any()
        }
        assert changed
        assert all(name.startswith("head.") for name in changed)
        saved = load_checkpoint(run.folder.probe_dir).model.state_dict()
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())

    def test_symmetry_is_asked_of_the_data_and_saved(self, ongoing: Ongoing) -> None:
        run = ongoing(augment__symmetry="auto", probe__views=8, evaluation__views="auto")
        decided, _ = run_probe(run)
        symmetry = decided.config.augment.symmetry
        assert symmetry != "auto"
        assert (
            decided.config.evaluation.views
            == {"none": 1, "mirror": 2, "flips": 4, "square": 8}[symmetry]
        )
        assert run.folder.load_config() == decided.config

    def test_a_saved_probe_is_taken_up(self, ongoing: Ongoing) -> None:
        run = ongoing(probe__steps=5)
        _, model = run_probe(run)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("recame.training.phases.probe.fit_heads", None)  # calling it would fail
            _, again = run_probe(run)
        assert all(
            torch.equal(value, again.state_dict()[name])
            and value.stride() == again.state_dict()[name].stride()
            for name, value in model.state_dict().items()
        )
