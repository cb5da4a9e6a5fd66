"""`model.pretrained` names one of our own runs or checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import recame
from recame.config import Config
from recame.contracts import PreprocessSpec
from recame.errors import CheckpointError, ConfigError
from recame.label_space import LabelSpace
from recame.models import (
    Architecture,
    MultiExpertClassifier,
    load_checkpoint,
    save_checkpoint,
)
from recame.training.ongoing_run import OngoingRun

SPEC = PreprocessSpec(32, 32, 1, 8, 255.0, (0.31,), (0.17,))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts of two stages, of other classes, with a normalisation of their own."""
    torch.manual_seed(7)
    plan = Architecture("test_resnet", shared_stages=1, stages=2)
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    model = MultiExpertClassifier(plan, 2, SPEC)
    save_checkpoint(folder, model, LabelSpace(("a", "b"), (1, 1)))
    return folder


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


SHORT = {"model__stages": 2, "model__shared_stages": 1, "model__pooled_stages": 1}


def test_a_run_goes_on_from_a_run(
    finished: Path,
    write_images: Callable[..., Path],
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(finished.parent)
    data = write_images(tmp_path / "data", {"ok": 30, "crack": 12, "void": 9})
    config = tiny_config(
        model__pretrained=Path(finished.name),
        model__backbone="auto",
        finetune__enabled=False,
        probe__steps=5,
    )
    run = recame.train(data, config, out=tmp_path / "run")
    ours, theirs = load_checkpoint(run.path), load_checkpoint(finished)
    assert ours.label_space.names == ("ok", "crack", "void")
    assert ours.architecture.backbone == "test_resnet"
    # The probe trains heads alone.
    donors = [0, 1] if theirs.architecture.shared_stages >= 3 else [1, 1]
    for expert, donor in enumerate(donors):
        own, source = ours.model.stages(expert), theirs.model.stages(donor)
        for stage, other in zip(own, source, strict=True):
            state, expected = stage.state_dict(), other.state_dict()
            assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert run.load_config().model.pretrained == finished.resolve()
    told = run.reasons()
    assert any(reason.startswith(f"model.pretrained = {finished.resolve()}: ") for reason in told)
    assert any(reason.startswith("model.backbone = test_resnet: ") for reason in told)


def test_its_normalisation_comes_along(
    checkpoint: Path, defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(
        model__pretrained=checkpoint, finetune__enabled=False, probe__steps=1, **SHORT
    )
    run = recame.train(defects, config, out=tmp_path / "run")
    spec = load_checkpoint(run.path).spec
    assert (spec.mean, spec.std) == (SPEC.mean, SPEC.std)


def test_the_head_is_new_and_seeded(checkpoint: Path, ongoing: Callable[..., OngoingRun]) -> None:
    run = ongoing(model__pretrained=checkpoint, **SHORT)
    first, second = run.new_model(), run.new_model()
    assert first.num_classes == 4
    ours, again = first.state_dict(), second.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in ours.items())
    source = load_checkpoint(checkpoint).model
    images = torch.rand(2, 1, 32, 32)
    found = first.eval().pooled(images * first.std + first.mean)
    torch.testing.assert_close(found, source.pooled(images * source.std + source.mean))


def refused(source: Path, config: Callable[..., Config], data: Path, **changes: object) -> str:
    out = data.parent / "never"
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        recame.train(data, config(model__pretrained=source, **changes), out=out)
    assert not out.exists()
    return str(caught.value)


def test_what_cannot_be_taken(
    copied: Path, defects: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    message = refused(tmp_path / "none", tiny_config, defects)
    assert f"{tmp_path / 'none'} holds no model.json and no model.safetensors" in message
    assert f"{tmp_path} holds no model.json" in refused(tmp_path, tiny_config, defects)
    message = refused(copied, tiny_config, defects, model__backbone="resnet10t")
    assert "a test_resnet, whose weights do not fit model.backbone=resnet10t" in message
    assert "Set model.stages=2" in refused(copied, tiny_config, defects)
    (copied / "run.json").write_text(json.dumps({"schema": 1, "state": "training"}))
    message = refused(copied, tiny_config, defects, **SHORT)
    assert f"{copied} is not finished" in message
    assert "--resume" in message
    (copied / "run.json").unlink()
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] + b"somedata")
    assert "it is damaged" in refused(copied, tiny_config, defects, **SHORT)


@pytest.mark.parametrize("channels", ["auto", 3])
def test_other_channels(
    channels: object, copied: Path, defects: Path, tiny_config: Callable[..., Config]
) -> None:
    document = json.loads((copied / "model.json").read_text())
    if channels == "auto":  # the images are grey
        torch.manual_seed(0)
        spec = PreprocessSpec(32, 32, 3, 8, 255.0, (0.3,) * 3, (0.2,) * 3)
        plan = Architecture.from_dict(document["architecture"])
        space = LabelSpace.from_dict(document["label_space"])
        save_checkpoint(copied, MultiExpertClassifier(plan, 2, spec), space)
    message = refused(copied, tiny_config, defects, data__channels=channels, **SHORT)
    theirs, ours = (3, 1) if channels == "auto" else (1, 3)
    assert f"images of {theirs} channel(s), and these have {ours}" in message
    assert f"Set data.channels={theirs}" in message
