from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from recame.config import DataConfig
from recame.contracts import ExpertOutput, PreprocessSpec
from recame.data.dataset import load_inspection_set
from recame.data.transforms import dihedral_view
from recame.errors import DataError
from recame.inference.predict import predict_cached, predict_groups, predict_split
from recame.label_space import LabelSpace
from recame.metrics.evaluation import evaluate_predictions
from recame.runs.predictions import load_predictions, predictions_table, save_predictions

SIDE, CLASSES, EXPERTS = 8, 3, 2
SPEC = PreprocessSpec(SIDE, SIDE, 3, 8, 255.0, (0.5,) * 3, (0.5,) * 3)


class TinyExperts(nn.Module):
    """Logits linear in the pixels, so that views differ; counts what it is given."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (EXPERTS * CLASSES, 3 * SIDE * SIDE)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator) * 0.1)
        self.dropout = nn.Dropout(0.5)
        self.batches = []
        self.formats = []

    def forward(self, images):
        self.batches.append(len(images))
        self.formats.append(images.is_contiguous(memory_format=torch.channels_last))
        features = self.dropout(images.flatten(1))
        logits = (features @ self.weight.T).view(-1, EXPERTS, CLASSES)
        return ExpertOutput(logits, features[:, None, :4].expand(-1, EXPERTS, -1))


@pytest.fixture
def stored():
    return np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), dtype=np.uint8)


def expected_probabilities(model, images, views):
    unit = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 255
    weight = model.weight.detach()
    experts, ensemble = [], []
    for view in range(views):
        logits = (dihedral_view(unit, view).flatten(1) @ weight.T).view(-1, EXPERTS, CLASSES)
        experts.append(logits.softmax(-1))
        ensemble.append(logits.mean(1).softmax(-1))
    return torch.stack(experts).mean(0).numpy(), torch.stack(ensemble).mean(0).numpy()


@pytest.mark.parametrize("views", [1, 4, 8])
def test_views_are_averaged_for_the_rows_asked(stored, views):
    model = TinyExperts()
    rows = np.array([6, 0, 3, 3, 1])
    done: list[tuple[int, int]] = []
    experts, ensemble, features = predict_cached(
        model,
        stored,
        rows,
        spec=SPEC,
        num_views=views,
        batch_size=2,
        device="cpu",
        on_progress=lambda _, n, of: done.append((n, of)),
    )
    want_experts, want_ensemble = expected_probabilities(model, stored[rows], views)
    np.testing.assert_allclose(experts, want_experts, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ensemble, want_ensemble, rtol=1e-4, atol=1e-6)
    assert experts.dtype == ensemble.dtype == np.float32
    assert features is None
    assert done == [(2, 5), (4, 5), (5, 5)]
    assert len(model.batches) == 3 * views
    assert all(model.formats)


def test_features_are_of_the_untouched_image(stored):
    args = {"spec": SPEC, "batch_size": 4, "device": "cpu", "with_features": True}
    one = predict_cached(TinyExperts(), stored, np.arange(7), num_views=1, **args)[2]
    many = predict_cached(TinyExperts(), stored, np.arange(7), num_views=8, **args)[2]
    assert one.shape == (7, EXPERTS, 4)
    np.testing.assert_array_equal(one, many)
    np.testing.assert_allclose(one[:, 0, 0], stored[:, 0, 0, 0] / 255, rtol=1e-6)


def test_mode_comes_back_module_by_module(stored):
    model = TinyExperts().train()
    model.dropout.eval()
    args = {"spec": SPEC, "num_views": 1, "batch_size": 4, "device": "cpu"}
    predict_cached(model, stored, np.arange(2), **args)
    assert model.training
    assert not model.dropout.training

    def broken(_images):
        raise RuntimeError("no")

    model.forward = broken
    with pytest.raises(RuntimeError):
        predict_cached(model, stored, np.arange(2), **args)
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_sixteen_bit_and_memory_map_and_bf16(stored, tmp_path):
    deep = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint16, stored.shape)
    deep[:] = stored.astype(np.uint16) * 257
    args = {"num_views": 2, "batch_size": 4, "device": "cpu"}
    shallow = predict_cached(TinyExperts(), stored, np.arange(7), spec=SPEC, **args)[1]
    got = predict_cached(
        TinyExperts(), deep, np.arange(7), spec=replace(SPEC, bit_depth=16, scale=65535.0), **args
    )[1]
    np.testing.assert_allclose(got, shallow, rtol=1e-4)
    half = predict_cached(TinyExperts(), stored, np.arange(7), spec=SPEC, precision="bf16", **args)[
        1
    ]
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, shallow, atol=0.05)
    np.testing.assert_allclose(half.sum(1), 1, rtol=1e-5)


@pytest.fixture
def labelled(stored):
    """Three stored images as a split, `test`, of a set."""
    table = pd.DataFrame(
        {"image": list("uvwxy"), "label": list("abcab"), "split": ["test", "val"] * 2 + ["test"]}
    )
    view = SimpleNamespace(
        indices=np.array([0, 2, 4]), targets=np.array([0, 2, -1]), rows=np.array([5, 1, 0])
    )
    return SimpleNamespace(
        table=table,
        spec=SPEC,
        cache=SimpleNamespace(images=stored),
        view={"test": view}.__getitem__,
    )


def test_predict_split_puts_labels_beside(stored, labelled):
    model = TinyExperts()
    got = predict_split(model, labelled, "test", num_views=2, batch_size=2, device="cpu")
    assert got.table["image"].tolist() == ["u", "w", "y"]
    assert got.table.index.tolist() == [0, 1, 2]
    assert got.target.tolist() == [0, 2, -1]
    np.testing.assert_allclose(
        got.probabilities, expected_probabilities(model, stored[[5, 1, 0]], 2)[1], rtol=1e-4
    )


def test_images_that_nobody_labelled_are_predicted(stored, tmp_path):
    for number, pixels in enumerate(stored):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    space = LabelSpace(("a", "b", "c"), (4, 2, 1))
    data = load_inspection_set(
        tmp_path,
        DataConfig(cache_dir=tmp_path / "cache"),
        seed=0,
        spec=SPEC,
        label_space=space,
        split_if_absent="night",
        labels="optional",
    )
    model = TinyExperts()
    got = predict_split(model, data, "night", num_views=1, batch_size=3, device="cpu")
    assert got.target.tolist() == [-1] * 7
    np.testing.assert_allclose(
        got.probabilities, expected_probabilities(model, stored, 1)[1], rtol=1e-4
    )
    table = predictions_table(got, space.names)
    save_predictions(table, tmp_path / "night.parquet", space.names)
    again = load_predictions(tmp_path / "night.parquet").predictions
    assert again.table["label"].isna().all()
    assert again.target.tolist() == [-1] * 7
    with pytest.raises(DataError, match="label"):
        evaluate_predictions(again, space)


def test_groups_of_experts_are_ensembles_of_their_own(labelled):
    class Chosen(nn.Module):
        """Some of a model's experts, as a model."""

        def __init__(self, model, experts):
            super().__init__()
            self.model, self.experts = model, list(experts)

        def forward(self, images):
            output = self.model(images)
            chosen = output.logits[:, self.experts], output.features[:, self.experts]
            return ExpertOutput(*chosen)

    model = TinyExperts()
    words = {"num_views": 4, "batch_size": 2, "device": "cpu"}
    groups = {"all": (0, 1), "last": (1,), "turned": (1, 0)}
    found = predict_groups(model, labelled, "test", groups, **words)
    assert list(found) == [(name, views) for name in groups for views in (1, 2, 4)]
    for (name, views), ours in found.items():
        words["num_views"] = views
        alone = predict_split(Chosen(model, groups[name]), labelled, "test", **words)
        for field in ("probabilities", "expert_probabilities", "target"):
            np.testing.assert_allclose(getattr(ours, field), getattr(alone, field), rtol=1e-5)
        pd.testing.assert_frame_equal(ours.table, alone.table)
    assert not np.allclose(found["all", 4].probabilities, found["last", 4].probabilities)
