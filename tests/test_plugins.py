"""What lies outside the package: found, made, recorded, and missed with a way out."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from recame.config import Config
from recame.contracts import ExpertOutput
from recame.data.own_augment import own_changes
from recame.data.own_sampler import OwnBatches, shown_prior
from recame.datasets.registry import public_set
from recame.errors import ConfigError, PluginError
from recame.label_space import LabelSpace
from recame.losses import Objective, own_loss
from recame.metrics.own import own_metrics
from recame.models import Architecture, MultiExpertClassifier, build_backbone
from recame.plugins import Plugin, _package_of, plugin_of, registered
from recame.runs.folder import RunFolder
from recame.training.train import train

PACKAGE = Path(__file__).parent / "fixtures" / "boards"
SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package `boards` is installed."""
    monkeypatch.syspath_prepend(PACKAGE)
    importlib.invalidate_caches()
    for cached in (registered, _package_of):
        cached.cache_clear()
    yield
    for cached in (registered, _package_of):
        cached.cache_clear()


def plugin(name: str, **init_args: Any) -> Plugin:
    return Plugin(f"boards.parts.{name}", init_args, "boards==1.2")


@pytest.mark.usefixtures("boards")
class TestSettings:
    def test_a_path_a_mapping_and_a_name_are_one(self) -> None:
        path = "boards.parts.EveryImage"
        for value in (path, {"class_path": path}, "every_image", {"class_path": "every_image"}):
            config = Config().updated({"finetune.sampler": value})
            assert config.finetune.sampler == Plugin(path, {}, "boards==1.2")

    def test_they_survive_a_file(self) -> None:
        changes = {
            "augment.extra": ["darker", {"class_path": "darker", "init_args": {"most": 0.5}}],
            "model.backbone": {"class_path": "board_net", "init_args": {"width": 4}},
            "objective.loss": "boards.parts.BoardLoss",
        }
        config = Config().updated(changes)
        again = Config.model_validate(json.loads(config.model_dump_json()))
        assert again == config
        assert again.augment.extra[1] == plugin("Darker", most=0.5)
        assert (again.model.backbone, again.model.backbone_from) == (
            "board_net",
            plugin("board_net", width=4),
        )

    def test_another_backbone_leaves_the_own_one_behind(self) -> None:
        config = Config().updated({"model.backbone": "board_net"})
        assert config.updated({"model.backbone": "resnet18"}).model.backbone_from is None
        assert Config().updated({"model.backbone": "resnet50.a1_in1k"}).model.backbone_from is None

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"finetune.sampler": "squareroot"}, "'squareroot' is not an import path.*every_image"),
            ({"objective.loss": {"class_path": "a b"}}, "'a b' is not an import path"),
            ({"objective.loss": {"init_args": {}}}, "class_path"),
            ({"augment.extra": [{"class_path": "a.b", "args": 1}]}, "augment.extra"),
        ],
    )
    def test_what_names_nothing_is_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            Config().updated(changes)


@pytest.mark.usefixtures("boards")
class TestLoading:
    def test_what_is_missing_names_its_package(self) -> None:
        gone = Plugin("gone.parts.Loss", {}, "gone-boards==3.1")
        with pytest.raises(PluginError, match=r"'gone'.*pip install 'gone-boards==3\.1'"):
            gone.load("objective.loss")
        with pytest.raises(PluginError, match="gone lies in on PYTHONPATH"):
            Plugin("gone.parts.Loss").load("objective.loss")
        with pytest.raises(PluginError, match=r"boards\.parts has no Nothing.*boards==1\.2"):
            plugin("Nothing").load("objective.loss")

    def test_arguments_that_do_not_fit_are_told(self) -> None:
        with pytest.raises(PluginError, match=r"init_args=\{'least': 1\}.*least"):
            plugin("Darker", least=1).make("augment.extra")

    def test_another_version_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        Plugin("boards.parts.Darker", {}, "boards==1.0").load("augment.extra")
        assert "boards 1.2, but the run was made with 1.0" in caplog.text

    def test_a_function_names_itself_where_others_can_import_it(self) -> None:
        loss = plugin("BoardLoss").load("objective.loss")
        assert plugin_of(partial(loss, smoothing=0.1)) == plugin("BoardLoss", smoothing=0.1)
        assert plugin_of(lambda: None) is None
        assert plugin_of(partial(loss, smoothing=torch.ones(1))) is None

    def test_nothing_is_imported_by_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "boards.parts", raising=False)
        Config().updated({"objective.loss": "boards.parts.BoardLoss"})
        assert "boards.parts" not in sys.modules


@pytest.mark.usefixtures("boards")
class TestPlaces:
    def test_loss(self) -> None:
        made = own_loss(plugin("BoardLoss", smoothing=0.2), (3, 1), 2, torch.tensor([0.7, 0.3]))
        output = ExpertOutput(torch.zeros(4, 2, 2), torch.zeros(4, 2, 3))
        found = made(output, torch.tensor([0, 1, 0, 1]))
        assert float(found.total) == pytest.approx(np.log(2))
        with pytest.raises(PluginError, match=r"makes a tuple: .*TrainingLoss"):
            own_loss(Plugin("boards.parts.together"), (1,), 1, torch.ones(1))

    def test_sampler(self) -> None:
        targets = np.array([0] * 7 + [1] * 3)
        words = {"batch_size": 4, "epoch_size": 10, "seed": 0, "rank": 0, "world_size": 1}
        batches = OwnBatches(plugin("EveryImage"), targets, **words)
        batches.set_epoch(1)
        shown = [position for batch in batches for position in batch]
        assert (len(batches), sorted(shown), batches.weight(0)) == (3, list(range(10)), 1.0)
        assert shown_prior(batches, targets, 3).tolist() == [0.7, 0.3, 0.0]
        with pytest.raises(PluginError, match=r"the images are numbered 0 to 1"):
            _positions(batches, targets[:2])

    def test_augmentation(self) -> None:
        darker, erase = own_changes(
            (plugin("Darker", most=1.0), Plugin("torchvision.transforms.v2.RandomInvert", {"p": 1}))
        )
        images = torch.full((2, 1, 4, 4), 0.5)
        generator = torch.Generator().manual_seed(0)
        dark = darker(images, generator)
        assert 0 <= float(dark.max()) < 0.5
        assert not torch.equal(dark[0], dark[1])
        torch.testing.assert_close(erase(images * 0.5, generator), images * 1.5)
        (crop,) = own_changes((Plugin("torchvision.transforms.v2.CenterCrop", {"size": 2}),))
        with pytest.raises(PluginError, match=r"returns \(2, 1, 2, 2\) for images \(2, 1, 4, 4\)"):
            crop(images, generator)

    def test_metric(self) -> None:
        (sure,) = own_metrics((plugin("sure"),))
        assert sure.name == "sure"
        assert sure.score is not None
        space = LabelSpace(("a", "b"), (1, 1))
        probabilities = np.array([[0.9, 0.1], [0.4, 0.6]])
        assert sure.score(probabilities, np.array([0, 1]), space) == pytest.approx(0.75)
        with pytest.raises(PluginError, match="is called sure, like another"):
            own_metrics((plugin("sure"), plugin("sure")))
        with pytest.raises(PluginError, match="no metric"):
            own_metrics((plugin("Darker"),))

    def test_backbone(self) -> None:
        backbone = build_backbone("board_net", in_channels=1, origin=plugin("board_net", width=4))
        assert backbone.stage_channels == [4, 8]
        plan = Architecture("board_net", backbone_from=plugin("board_net", width=4))
        assert Architecture.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
        assert "backbone_from" not in Architecture("resnet18").to_dict()
        with pytest.raises(PluginError, match="registers no network Darker with timm"):
            build_backbone("Darker", origin=plugin("Darker"))

    def test_network_and_loss_of_settings(self) -> None:
        named = {"class_path": "board_net", "init_args": {"width": 4}}
        settings = {"model.backbone": named, "model.pretrained": False, "size": 32}
        network = MultiExpertClassifier.from_config(settings, num_classes=3)
        plan = network.architecture
        assert (plan.shared_stages, plan.pooled_stages) == (0, 1)
        assert plan.backbone_from == plugin("board_net", width=4)
        assert network(torch.rand(2, 3, 32, 32)).features.shape == (2, 2, 8)
        with pytest.raises(ConfigError, match=r"build it with recame\.losses\.own_loss"):
            Objective.from_config({"objective.loss": "boards.parts.BoardLoss"}, [9, 3])

    def test_a_bench_takes_no_function_for_a_set(self) -> None:
        with pytest.raises(PluginError, match=r"builder=board_set is boards\.parts\.write_boards"):
            public_set("board_set")


def _positions(batches: OwnBatches, targets: np.ndarray) -> list[list[int]]:
    """The batches of a sampler that was made for more images."""
    batches._num_images = len(targets)
    return list(batches)


class _Interrupted(Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("the power fails")


def _python(*words: str, path: list[Path]) -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )


_WITHOUT = """
import sys
for name in ("torch", "timm", "boards", "lightning"):
    sys.modules[name] = None
import recame
predictor = recame.load(sys.argv[1])
print([answer.label for answer in predictor.predict(sys.argv[2:])])
"""


@pytest.mark.slow
@pytest.mark.usefixtures("boards")
def test_a_package_outside_goes_the_whole_way(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    data, run, bundle = tmp_path / "boards", tmp_path / "run", tmp_path / "bundle"
    config = tiny_config(
        data__builder="board_set",
        model__backbone={"class_path": "board_net", "init_args": {"width": 4}},
        model__shared_stages=1,
        objective__loss={"class_path": "boards.parts.BoardLoss", "init_args": {"smoothing": 0.1}},
        augment__extra=["darker"],
        finetune__sampler="every_image",
        finetune__epochs=3,
        evaluation__metrics=["sure"],
    )
    with pytest.raises(RuntimeError, match="the power fails"):
        train(data, config, out=run, callbacks=[_Interrupted()])
    assert RunFolder(run).info()["loss"] == "boards.parts.BoardLoss"

    alone, both = [SOURCE], [PACKAGE, SOURCE]
    command = ("-m", "recame")
    resume = (*command, "train", str(data), "--resume", "--out", str(run))
    refused = _python(*resume, path=alone)
    assert refused.returncode == 2
    assert "pip install 'boards==1.2'" in " ".join(refused.stderr.split())
    for words in (
        resume,
        (*command, "evaluate", str(run)),
        (*command, "export", str(run), "--out", str(bundle)),
    ):
        done = _python(*words, path=both)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = RunFolder.open(run, finished=True)
    assert 0 < json.loads((run / "metrics.json").read_text())["test"]["sure"]["value"] < 1
    assert folder.load_config().finetune.epochs == 3
    described = json.loads((run / "model.json").read_text())["architecture"]
    assert described["backbone_from"] == {
        "class_path": "boards.parts.board_net",
        "init_args": {"width": 4},
        "package": "boards==1.2",
    }
    refused = _python(*command, "evaluate", str(run), path=alone)
    assert refused.returncode == 2
    assert "boards==1.2" in refused.stderr
    image = str(data / "ok" / "0.png")
    answered = _python("-c", _WITHOUT, str(bundle), image, path=alone)
    assert answered.stdout.strip() in {"['ok']", "['scratch']"}, answered.stderr
