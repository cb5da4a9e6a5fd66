from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recame.contracts import PreprocessSpec
from recame.errors import CheckpointError
from recame.label_space import LabelSpace
from recame.models import Architecture, MultiExpertClassifier, load_checkpoint, save_checkpoint

SPACE = LabelSpace(("ok", "crack", "void"), (50, 5, 0), normal="ok", critical=("crack",))
SPEC = PreprocessSpec(32, 32, 1, 16, 4095.0, (0.4,), (0.2,), "pad")


@pytest.fixture(scope="module")
def model() -> MultiExpertClassifier:
    torch.manual_seed(0)
    plan = Architecture("resnet10t", shared_stages=3, hidden=4, regions=(3, 2))
    model = MultiExpertClassifier(plan, 3, SPEC).to(memory_format=torch.channels_last)
    model.head.set_standardisation(torch.rand(512), torch.rand(512) + 1)
    return model.eval()


def test_weights_of_the_first_schema_are_read(saved: Path, model: MultiExpertClassifier) -> None:
    state = load_file(saved / "model.safetensors")
    variance = state.pop("head.standardise.running_var").view(2, 512)[0]
    state["head.std"] = variance.sqrt()
    state["head.mean"] = state.pop("head.standardise.running_mean").view(2, 512)[0].clone()
    del state["head.standardise.num_batches_tracked"]
    save_file(state, saved / "model.safetensors")
    document = json.loads((saved / "model.json").read_text())
    del document["architecture"]["standardise"], document["architecture"]["stages"]
    digest = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    document |= {"schema": 1, "weights_sha256": digest}
    (saved / "model.json").write_text(json.dumps(document))
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = model(images).logits
        found = load_checkpoint(saved).model(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def saved(model: MultiExpertClassifier, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save_checkpoint(folder, model, SPACE)
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def test_round_trip(model: MultiExpertClassifier, saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "model.safetensors"]
    loaded = load_checkpoint(saved)
    assert loaded.label_space == SPACE
    assert loaded.spec == SPEC
    assert loaded.architecture == model.architecture
    assert not loaded.model.training
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x).logits, model(x).logits, rtol=1e-4, atol=1e-5)


def test_description_tells_what_made_it(saved: Path) -> None:
    document = json.loads((saved / "model.json").read_text())
    assert document["schema"] == 2
    assert document["label_space"]["counts"] == [50, 5, 0]
    assert document["preprocess"]["scale"] == 4095.0
    assert len(document["weights_sha256"]) == 64
    assert document["recame"].count(".") == 2


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"run holds no {name}: give the run folder"):
        load_checkpoint(saved)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model\.json and no model\.safetensors"):
        load_checkpoint(tmp_path / "none")


def test_damaged_weights(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_checkpoint(saved)


def test_truncated_weights_with_a_matching_checksum(saved: Path) -> None:
    import hashlib

    content = (saved / "model.safetensors").read_bytes()[:-100]
    (saved / "model.safetensors").write_bytes(content)
    edit(saved, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "as JSON"),
        ("[]", "holds a list"),
        ('{"schema": 99}', "schema 99.*Update recame"),
        ('{"schema": 1}', "'architecture'"),
    ],
)
def test_unusable_descriptions(saved: Path, text: str, message: str) -> None:
    (saved / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_edited_labels(saved: Path) -> None:
    edit(saved, label_space=LabelSpace(("a", "b"), (1, 1)).to_dict())
    with pytest.raises(
        CheckpointError, match="names 2 classes, but the weights were trained for 3"
    ):
        load_checkpoint(saved)
    edit(saved, label_space={**SPACE.to_dict(), "names": ["a", "a", "b"], "normal": None})
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_checkpoint(saved)


def test_edited_architecture(saved: Path, model: MultiExpertClassifier) -> None:
    edit(saved, architecture={**model.architecture.to_dict(), "hidden": 5})
    with pytest.raises(CheckpointError, match="do not fit the architecture"):
        load_checkpoint(saved)


def test_full_disk_keeps_the_old_checkpoint(
    saved: Path, model: MultiExpertClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(CheckpointError, match=r"run .*No space left.*Free space"):
            save_checkpoint(saved, model, SPACE)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_folder_that_is_a_file(model: MultiExpertClassifier, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "run", model, SPACE)


def test_divided_gates_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plan = Architecture("test_resnet", shared_stages=2, gate_start=0.4)
    model = MultiExpertClassifier(plan, 3, SPEC).eval()
    for name, parameter in model.named_parameters():
        if ".fc2." in name:
            torch.nn.init.normal_(parameter)  # as if trained
    save_checkpoint(tmp_path / "run", model, SPACE)
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.architecture == plan
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.model(x).logits, model(x).logits)
    document = json.loads((tmp_path / "run" / "model.json").read_text())
    assert document["schema"] == 3  # a version that knows no start refuses it
    edit(tmp_path / "run", architecture={**plan.to_dict(), "gate_start": 1.5})
    with pytest.raises(CheckpointError, match=r"gate_start=1\.5"):
        load_checkpoint(tmp_path / "run")


def test_undivided_gates_are_what_older_versions_read(saved: Path) -> None:
    document = json.loads((saved / "model.json").read_text())
    assert document["schema"] == 2
    assert "gate_start" not in document["architecture"]
    assert load_checkpoint(saved).architecture.gate_start is None
