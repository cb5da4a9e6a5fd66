from __future__ import annotations

import builtins
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.nn import functional

from recame.config import Config, load_config
from recame.contracts import PreprocessSpec
from recame.data.dataset import load_inspection_set
from recame.errors import CheckpointError, ConfigError, MissingDependencyError
from recame.inference.graph import DeploymentGraph
from recame.label_space import LabelSpace
from recame.models import (
    Architecture,
    ExpertHead,
    MultiExpertClassifier,
    RegionalChannelAttention,
    build_backbone,
    class_means,
    initialise_classifier,
    load_checkpoint,
    read_text_features,
    save_checkpoint,
)
from recame.models.adapters import AdaptedMlp, lift_rank, tune
from recame.models.frozen_forward import FrozenForward, export_onnx
from recame.models.vision_transformer import TransformerStage, maps_to_tokens
from recame.runs.folder import RunFolder
from recame.training.loop.module import FinetuneModule
from recame.training.ongoing_run import OngoingRun
from recame.training.phases.probe import initial_model
from recame.training.planner import plan_model
from recame.training.train import train

SPEC = PreprocessSpec(32, 32, 3, 8, 255.0, (0.5,) * 3, (0.5,) * 3)
PLAN = Architecture("test_vit", num_experts=2, shared_stages=2, attention="none")
NAMES = ("ok", "scratch", "dent", "hole", "crack")


def make(spec: PreprocessSpec = SPEC, **changes: object) -> MultiExpertClassifier:
    torch.manual_seed(0)
    return MultiExpertClassifier(replace(PLAN, **changes), 5, spec).eval()


def images(count: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def learning(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def moved_by_training(model: MultiExpertClassifier, num_steps: int = 3) -> set[str]:
    """Names of the weights that a few steps of gradient descent change."""
    before = {name: value.clone() for name, value in model.named_parameters()}
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    model.train()
    target = torch.tensor([0, 1, 2, 3]).repeat_interleave(model.num_experts)
    for _ in range(num_steps):
        logits = model(images(4)).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        optimizer.step()
    assert len(optimizer.state) == len(learned)
    return {name for name, value in model.named_parameters() if not value.equal(before[name])}


@pytest.mark.parametrize("columns", [3, 7])
@pytest.mark.parametrize(
    ("name", "num_prefix"),
    [
        ("test_vit", 1),
        ("test_vit2", 1),  # layer scale
        ("vit_small_patch14_reg4_dinov2", 5),  # four registers, patches of 14
        ("vit_tiny_patch16_dinov3_qkvb", 5),  # rotary positions, as EVA
        ("vit_base_patch16_siglip_gap_224", 0),  # no class token, a norm after the pooling
    ],
)
def test_stages_compute_what_timm_does(
    name: str, num_prefix: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {} if name.startswith("test") else {"depth": 4}
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **{**k, **small}))
    torch.manual_seed(0)
    patch = 14 if "patch14" in name else 16
    size = (3 * patch, columns * patch)
    backbone = build_backbone(name, image_size=size).eval()
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    whole.set_input_size(size)
    x = 2 * images(2, max(size))[:, :, : size[0]] - 1
    with torch.no_grad():
        maps = backbone(x)
        expected = whole.eval().fc_norm(whole.forward_features(x))
    stage = backbone.stages[-1][-1]
    assert isinstance(stage, TransformerStage)
    assert maps.shape == (2, stage.width * (1 + num_prefix), 3, columns)
    tokens, found = maps_to_tokens(maps, stage.width)
    assert found == num_prefix
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)


def test_what_feeds_the_head() -> None:
    average, token, both = (make(pooling=p) for p in ("average", "token", "both"))
    x = images()
    with torch.no_grad():
        maps = average.tails[1][1](average.tails[1][0](average.trunk_features(x)[0]))
        tokens, _ = maps_to_tokens(maps, 64)
        torch.testing.assert_close(average.pooled(x)[:, 1], tokens[:, 1:].mean(1))
        torch.testing.assert_close(token.pooled(x)[:, 1], tokens[:, 0])
        sides = torch.cat([average.pooled(x), token.pooled(x)], 2)
        torch.testing.assert_close(both.pooled(x), sides)
    assert make(pooling="both", pooled_stages=3).head.shape == (2, 3 * 128)
    assert make(stages=3).num_stages == 3
    with pytest.raises(ConfigError, match=r"model.stages=5, but test_vit has 4"):
        make(stages=5)
    with pytest.raises(ConfigError, match="resnet10t has no class token"):
        make(backbone="resnet10t", pooling="token")


def test_any_image_size() -> None:
    odd = replace(SPEC, height=40, width=72)
    model = make(odd)  # patches of 16: padded to 48 x 80
    assert model.trunk[0][0].pos_embed.shape == (1, 1 + 3 * 5, 64)
    x = images(2, 80)[:, :, :40, :72]
    assert model.trunk_features(x)[0].shape == (2, 128, 3, 5)
    assert model.trunk_features(images(2, 64))[0].shape == (2, 128, 4, 4)  # positions resampled


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = timm.create_model("test_vit", num_classes=0)
    path = tmp_path / "vit.safetensors"
    save_file(source.state_dict(), path)
    torch.manual_seed(4)
    model = MultiExpertClassifier(replace(PLAN, tuning="adapter"), 5, SPEC, path).eval()
    assert model.tails_identical()
    source.set_input_size((32, 32))
    with torch.no_grad():
        expected = source.eval().forward_features(2 * images() - 1)[:, 1:].mean(1)
    torch.testing.assert_close(model.pooled_single(images()), expected, atol=1e-5, rtol=1e-4)


def test_attention_acts_on_the_grid_of_patches() -> None:
    model = make(replace(SPEC, height=64, width=64), attention="regional", pooling="both")
    gates = [m for m in model.modules() if isinstance(m, RegionalChannelAttention)]
    assert len(gates) == 2 + 2 * 2
    seen: list[tuple[int, ...]] = []
    gates[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    model(images(3, 64))
    assert seen == [(3, 64, 4, 4)]
    # Closed gates of the last stage silence the patches, not the class token.
    with torch.no_grad():
        model.tails[1][1][0].norm = None
        open_token = model.pooled(images(3, 64))[:, 1, 64:]
        gates[-1].fc2.weight.zero_()
        gates[-1].fc2.bias.fill_(-60.0)
        pooled = model.pooled(images(3, 64))[:, 1]
    assert pooled[:, :64].abs().max() == 0
    assert pooled[:, 64:].equal(open_token)
    assert pooled[:, 64:].abs().min() > 0


@pytest.mark.parametrize("kind", ["lora", "adapter", "bias", "head"])
def test_start_equals_the_backbone_and_only_adapters_learn(kind: str) -> None:
    plain = make(num_experts=1)
    model = make(num_experts=1, tuning=kind)
    parts = {"lora": "lora_", "adapter": ("down", "up", "scale"), "bias": ("bias",), "head": "-"}
    allowed = (parts[kind],) if isinstance(parts[kind], str) else parts[kind]
    with torch.no_grad():
        torch.testing.assert_close(model.pooled(images()), plain.pooled(images()))
    names = learning(model)
    assert {n for n in names if not n.startswith("head.")} == {
        name
        for name, _ in model.named_parameters()
        if not name.startswith("head.") and any(part in name for part in allowed)
    }
    model = make(tuning=kind)
    moved = moved_by_training(model)
    assert moved <= learning(model)
    assert {name.split(".")[0] for name in moved} == (
        {"head"} if kind == "head" else {"head", "trunk", "tails"}
    )


def test_every_linear_layer_of_a_block_gets_lora() -> None:
    model = make(num_experts=1, tuning="lora", tuning_rank=2)
    adapted = {n.split(".lora_A")[0] for n in learning(model) if "lora_A" in n}
    assert len(adapted) == 6 * 4
    assert {name.split("blocks.")[1][2:] for name in adapted} == {
        "attn.qkv",
        "attn.proj",
        "mlp.fc1",
        "mlp.fc2",
    }
    assert model.trunk[0][1].blocks[0].attn.qkv.lora_A.default.weight.shape == (2, 64)


def test_a_frozen_backbone_keeps_its_statistics() -> None:
    model = make(backbone="test_resnet", shared_stages=0, tuning="head").train()
    norms = [m for m in model.tails.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.head.standardise.training
    assert make(backbone="test_resnet", shared_stages=0).train().tails[0][0][1].training


@pytest.mark.parametrize("kind", ["lora", "adapter"])
@pytest.mark.parametrize("num_classes", [6, 1000])
def test_share_of_vit_base_that_learns(kind: str, num_classes: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone_on_meta("vit_base_patch16_clip_224")
        tune(backbone, kind, None, num_classes)
    total = sum(p.numel() for p in backbone.parameters())
    learned = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert total > 85e6
    assert 0.0005 < learned / total < 0.01


def build_backbone_on_meta(name: str) -> torch.nn.Module:
    """As `build_backbone`, without the check that needs numbers."""
    from recame.models.backbone import StagedBackbone
    from recame.models.vision_transformer import cut_transformer

    model = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    return StagedBackbone(cut_transformer(model, lambda _: None, 0), [768] * 4)


def test_rank_rule() -> None:
    def of(num_classes: int) -> int:
        return lift_rank(num_classes, 768, 12 * 2 * 768)

    # 2^floor(log2(K / 2L)) for the 12 blocks and the classes of CIFAR-100, ImageNet, iNaturalist.
    assert [of(k) for k in (100, 1000, 8142)] == [4, 32, 256]
    assert of(2) == 4
    model = make(num_experts=1, tuning="adapter", tuning_rank=7)
    adapters = [m for m in model.modules() if isinstance(m, AdaptedMlp)]
    assert [(a.down.out_features, a.scale.item()) for a in adapters] == [
        (7, pytest.approx(0.1))
    ] * 6


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("lora", "adapter"):
        with pytest.raises(ConfigError, match=f"model.tuning={kind} adapts the blocks of a vision"):
            make(backbone="test_resnet", shared_stages=0, tuning=kind)
    with pytest.raises(ConfigError, match=r"Unknown model\.tuning='prompt'"):
        make(tuning="prompt")
    real = builtins.__import__

    def without_peft(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError("No module named 'peft'", name="peft")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(MissingDependencyError, match=r"pip install 'recame\[lift\]'"):
        make(tuning="lora")


@pytest.mark.parametrize("kind", ["lora", "adapter", "bias"])
def test_checkpoints_round_trip(kind: str, tmp_path: Path) -> None:
    model = make(tuning=kind, attention="regional", pooling="both")
    moved_by_training(model)
    save_checkpoint(tmp_path, model.eval(), LabelSpace(NAMES, (9, 5, 3, 2, 1)))
    loaded = load_checkpoint(tmp_path)
    assert loaded.architecture == model.architecture
    assert loaded.architecture.tuning == kind
    assert learning(loaded.model) == learning(model)
    with torch.no_grad():
        assert loaded.model(images()).logits.equal(model(images()).logits)
        joined = loaded.model.joined(make(tuning=kind, attention="regional", pooling="both"))
        assert joined(images()).logits[:, 0].equal(model(images()).logits[:, 0])


def test_lora_is_merged_away() -> None:
    model = make(tuning="lora")
    moved_by_training(model)
    merged = model.eval().merged()
    assert not any("lora" in name for name in merged.state_dict())
    assert (merged.architecture.tuning, model.architecture.tuning) == ("full", "lora")
    fresh = MultiExpertClassifier(merged.architecture, 5, SPEC).eval()
    fresh.load_state_dict(merged.state_dict())
    with torch.no_grad():
        expected = model(images()).logits
        torch.testing.assert_close(fresh(images()).logits, expected, atol=1e-5, rtol=1e-4)
        assert any("lora" in name for name in model.state_dict())


@pytest.mark.slow
def test_bundled_graph_answers_as_torch(tmp_path: Path) -> None:
    small = {"num_experts": 1, "shared_stages": 0, "stages": 1, "pooling": "both"}
    model = make(tuning="adapter", attention="regional", **small)
    moved_by_training(model)
    graph = DeploymentGraph(model.eval(), outputs=("attribution",))
    pixels = (images(5) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    path = tmp_path / "vit.onnx"
    export_onnx(graph, pixels[:2], path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found, attribution = session.run(None, {"images": pixels.numpy()})
    with torch.no_grad():
        logits = model(pixels.permute(0, 3, 1, 2).float() / 255).logits.mean(1)
    np.testing.assert_allclose(found, logits.softmax(1).numpy(), atol=1e-4, rtol=1e-3)
    bias = model.head.classifier.bias.detach().mean(0)
    called = logits.argmax(1)
    above = (logits - bias).gather(1, called[:, None])[:, 0] - (logits - bias).mean(1)
    assert attribution.shape == (5, 2, 2)
    np.testing.assert_allclose(attribution.mean((1, 2)), above.numpy(), atol=1e-3, rtol=1e-2)


class _Pooled(torch.nn.Module):
    def __init__(self, model: MultiExpertClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.pooled_single(x)


def test_features_embedded_by_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recame.models.frozen_forward.GRAPH_PIXELS", 0)
    model = make(tuning="lora", stages=1, shared_stages=1, num_experts=1)
    moved_by_training(model)
    forward = FrozenForward(_Pooled(model.eval()), images(), num_images=3)
    assert forward.uses_graph
    with torch.no_grad():
        expected = model.pooled_single(images())
    torch.testing.assert_close(forward(images())[0], expected, atol=1e-4, rtol=1e-3)


def clusters(num_views: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, V, 8) of 5 classes of unequal size, far from the origin, and their classes."""
    generator = torch.Generator().manual_seed(5)
    target = torch.repeat_interleave(torch.arange(5), torch.tensor([40, 12, 6, 3, 2]))
    centres = 3 * torch.randn(5, 8, generator=generator) + 20
    noise = torch.randn(len(target), num_views, 8, generator=generator)
    return centres[target][:, None] + noise, target


def test_class_means_decide_as_the_nearest_mean() -> None:
    pooled, target = clusters()
    torch.manual_seed(0)
    head = ExpertHead(2, 8, 5).eval()
    initialise_classifier(head, "class_means", pooled, target, NAMES)
    flat = pooled.flatten(0, 1)
    z = functional.normalize((flat - flat.mean(0)) / flat.std(0, correction=0), dim=-1)
    means = torch.stack([pooled[target == c].mean((0, 1)) for c in range(5)])
    means = functional.normalize((means - flat.mean(0)) / flat.std(0, correction=0), dim=-1)
    nearest = torch.cdist(z, means).argmin(1)  # on the sphere, where the cosine lives
    with torch.no_grad():
        logits = head(flat[:, None].expand(-1, 2, -1)).logits
    assert logits.argmax(2).T.equal(nearest.expand(2, -1))
    assert (nearest == target.repeat_interleave(2)).float().mean() > 0.9


def test_a_class_without_images_keeps_its_weights() -> None:
    pooled, target = clusters()
    means = class_means(pooled, target, 6)
    assert means.shape == (6, 2, 8)
    torch.testing.assert_close(means[3], pooled[target == 3].mean(0))
    assert means[5].isnan().all()
    head = ExpertHead(2, 8, 6)
    drawn = head.classifier.weight.detach().clone()
    initialise_classifier(head, "class_means", pooled, target, (*NAMES, "unseen"))
    weight = head.classifier.weight.detach()
    assert weight[:, 5].equal(drawn[:, 5])
    torch.testing.assert_close(weight[:, :5].norm(dim=2), torch.ones(2, 5))


def test_text_features_by_name(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(6)
    vectors = {name: torch.randn(8, generator=generator) for name in NAMES}
    save_file(vectors, tmp_path / "text.safetensors")
    np.save(tmp_path / "text.npy", np.stack([vectors[name].numpy() for name in sorted(NAMES)]))
    expected = torch.stack([vectors[name] for name in NAMES])
    for name in ("text.safetensors", "text.npy"):
        assert read_text_features(tmp_path / name, NAMES).equal(expected)
    # The logit is the cosine; with a standardisation, that of centred and scaled features.
    pooled, target = clusters()
    for standardise in (False, True):
        head = ExpertHead(1, 8, 5, cosine_scale=1.0, standardise=standardise).eval()
        initialise_classifier(head, tmp_path / "text.npy", pooled, target, NAMES)
        flat = pooled.flatten(0, 1)
        std = flat.std(0, correction=0) if standardise else torch.ones(8)
        centred = pooled[:, 0] - (flat.mean(0) if standardise else 0)
        with torch.no_grad():
            logits = head(pooled[:, :1]).logits[:, 0]
        length = (centred / std).norm(dim=1)[:, None] * (expected * std).norm(dim=1)
        torch.testing.assert_close(logits, centred @ expected.T / length, atol=1e-4, rtol=1e-3)


def test_text_features_that_do_not_fit(tmp_path: Path) -> None:
    pooled, target = clusters()
    np.save(tmp_path / "wide.npy", np.zeros((5, 9), np.float32) + 1)
    with pytest.raises(ConfigError, match=r"features 9 wide, but it sees 8.*pooling=token"):
        initialise_classifier(ExpertHead(1, 8, 5), tmp_path / "wide.npy", pooled, target, NAMES)
    save_file({name: torch.ones(8) for name in NAMES[:4]}, tmp_path / "few.safetensors")
    with pytest.raises(CheckpointError, match="no text features of crack"):
        read_text_features(tmp_path / "few.safetensors", NAMES)
    np.save(tmp_path / "rows.npy", np.ones((4, 8)))
    with pytest.raises(CheckpointError, match="one row for each of 5 sorted"):
        read_text_features(tmp_path / "rows.npy", NAMES)
    with pytest.raises(CheckpointError, match="class_mean cannot be read as text features"):
        read_text_features(Path("class_mean"), NAMES)
    np.save(tmp_path / "nan.npy", np.full((5, 8), np.nan))
    with pytest.raises(CheckpointError, match="finite"):
        read_text_features(tmp_path / "nan.npy", NAMES)
    with pytest.raises(ConfigError, match="Only a cosine classifier"):
        initialise_classifier(
            ExpertHead(1, 8, 5, classifier="linear"), "class_means", pooled, target, NAMES
        )
    with pytest.raises(ConfigError, match="set classifier=cosine and hidden=0"):
        Config().updated({"model.hidden": 8, "model.initialisation": "class_means"})
    assert Config().updated({"model.tuning_rank": "auto"}).model.tuning_rank is None


@pytest.fixture
def lift(tiny_config: Callable[..., Config]) -> Config:
    return tiny_config(
        model__backbone="test_vit",
        model__shared_stages=2,
        model__pooled_stages=1,
        model__pooling="both",
        model__attention="regional",
        model__tuning="lora",
        model__initialisation="class_means",
        probe__steps=1,
        run__keep="last",
    )


@pytest.mark.slow
def test_run_adapts_and_leaves_the_backbone(defects: Path, lift: Config, tmp_path: Path) -> None:
    run = train(defects, lift, out=tmp_path / "run")
    loaded = load_checkpoint(run.path)
    torch.manual_seed(lift.run.seed)
    fresh = MultiExpertClassifier(loaded.architecture, 4, loaded.spec, False)
    drawn = fresh.state_dict()
    learned = learning(loaded.model)
    state = dict(loaded.model.named_parameters())
    assert [n for n in state if n not in learned and not state[n].equal(drawn[n])] == []
    moved = {name for name in learned if not state[name].equal(drawn[name])}
    assert {"trunk", "tails", "head"} == {name.split(".")[0] for name in moved}
    assert any("lora_B" in name for name in moved)
    assert any("gate.fc2" in name for name in moved)
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(learned)


@pytest.mark.slow
def test_killed_and_resumed(
    defects: Path,
    lift: Config,
    tmp_path: Path,
    run_until_killed: Callable[[Callable[[], object]], None],
    die_at: Callable[[Any, str, int], None],
) -> None:
    whole = train(defects, lift, out=tmp_path / "whole")

    def child() -> None:
        die_at(FinetuneModule, "training_step", 8)
        train(defects, lift, out=tmp_path / "stopped")

    run_until_killed(child)
    assert len(pd.read_csv(tmp_path / "stopped" / "history.csv")) == 1  # of two epochs
    resumed = train(defects, out=tmp_path / "stopped", resume=True)
    ours, theirs = (load_file(run.path / "model.safetensors") for run in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not ours[name].equal(theirs[name])] == []


def test_classifier_starts_at_class_means_without_a_probe(
    defects: Path, lift: Config, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    data = load_inspection_set(defects, lift.data, seed=0)
    config = plan_model(lift.updated({"probe.enabled": False}), data, device).config
    folder = RunFolder(tmp_path / "run")
    folder.begin(defects, data.fingerprint, config)
    run = OngoingRun(folder, config, data, device, Console(quiet=True), 0.0)
    model = initial_model(run).eval()
    view = data.view("train")
    with torch.no_grad():
        pooled = model.pooled(data.images(view.rows))
    z = functional.normalize((pooled - model.head.mean) / model.head.std, dim=2)
    target = torch.from_numpy(view.targets.copy())
    means = class_means((pooled - model.head.mean) / model.head.std, target, 4)
    expected = functional.normalize(means.transpose(0, 1), dim=2)
    weight = model.head.classifier.weight.detach()
    torch.testing.assert_close(weight, expected, atol=1e-3, rtol=1e-2)
    nearest = torch.cdist(z.transpose(0, 1), weight).argmin(2).T
    with torch.no_grad():
        assert (model.head(pooled).logits.argmax(2) == nearest).float().mean() > 0.99


def test_published_settings_train_on_any_backbone(defects: Path, tmp_path: Path) -> None:
    config = load_config(Path(__file__).parents[2] / "configs" / "lift.yaml")
    assert (config.model.tuning, config.model.tuning_rank) == ("adapter", None)
    small = {"model.backbone": "test_vit", "model.pretrained": False, "data.size": 32}
    quick = {"finetune.epochs": 1, "finetune.batch_size": 16, "run.accelerator": "cpu"}
    run = train(defects, config.updated(small | quick), out=tmp_path / "run")
    loaded = load_checkpoint(run.path)
    assert (loaded.architecture.pooling, loaded.model.head.shape) == ("token", (1, 64))
    learned = {n for n in learning(loaded.model) if not n.startswith("head.")}
    assert len(learned) == 6 * 5  # weights and biases of two layers, and a scale, in each block


def test_a_token_alone_needs_no_attention_after_the_last_block() -> None:
    def gates(pooling: str) -> int:
        backbone = build_backbone("vit_tiny_patch16_224", attention="regional", pooling=pooling)
        kinds = [m for m in backbone.modules() if isinstance(m, RegionalChannelAttention)]
        return len(kinds)

    assert (gates("token"), gates("both"), gates("average")) == (3, 4, 4)
