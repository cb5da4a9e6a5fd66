"""The graph that a run keeps: used where it is whole and the run's own, and torch's equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import recame
from recame.data.stored_views import check_views, stored_view
from recame.data.transforms import dihedral_view
from recame.errors import ConfigError
from recame.inference.forward import BatchForward
from recame.inference.graph_session import open_graph_session, start_graph
from recame.inference.run_graph import _parts, open_graph
from recame.models import load_checkpoint
from recame.runs.folder import RunFolder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def without(run: Path, tmp_path: Path) -> Path:
    """The same run without a graph."""
    copy = Path(shutil.copytree(run, tmp_path / "without"))
    shutil.rmtree(copy / "graph")
    return copy


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (number, 32, 32, 1), dtype=np.uint8)


@pytest.mark.parametrize("view", range(8))
def test_views_are_those_of_torch(view: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    expected = dihedral_view(torch.from_numpy(images).permute(0, 3, 1, 2), view)
    np.testing.assert_array_equal(stored_view(images, view), expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("views", [1, 4, 8])
def test_it_answers_as_torch_does(views: int, run: Path) -> None:
    session = open_graph_session(run, device="cpu", threads=1, views=views)
    assert session is not None
    model = load_checkpoint(run).model
    forward = BatchForward(model, spec=model.spec, num_views=views, num_images=0, device="cpu")
    images = pixels(7)
    with torch.inference_mode():
        experts, ensemble, features = forward(images, with_features=True)
    found = session.run(images)
    np.testing.assert_allclose(found["probabilities"], ensemble.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["expert_probabilities"], experts.numpy(), atol=1e-5)
    seen = session._graph.averaged(images, views)[2]
    assert features is not None
    np.testing.assert_allclose(seen, features.numpy(), rtol=1e-3, atol=1e-3)
    assert found["probabilities"].dtype == found["expert_probabilities"].dtype == np.float32


@pytest.mark.parametrize("views", [1, 4])
def test_an_image_has_one_answer_in_any_batch(views: int, run: Path) -> None:
    images, answers = pixels(34), set()
    for threads in (1, 2, 4):
        session = open_graph_session(run, device="cpu", threads=threads, views=views)
        assert session is not None
        assert session.steady
        for size in (1, 2, 3, 7, 8, 16, 32, 33):
            found = [session.run(images[at : at + size]) for at in range(0, len(images), size)]
            answers.add(
                tuple(np.concatenate([f[name] for f in found]).tobytes() for name in found[0])
            )
    assert len(answers) == 1


def test_no_part_is_of_one_image_where_others_are_of_several() -> None:
    for number in range(1, 40):
        for size in (1, 2, 3, 4, 16):
            parts = [len(part) for part in _parts(np.arange(number), size)]
            assert sum(parts) == number
            assert min(parts) >= min(2, size, number)
            assert max(parts) <= max(3, size)


def test_the_document_tells_of_it(run: Path) -> None:
    document = json.loads((run / "graph" / "graph.json").read_text(encoding="utf-8"))
    assert document["weights_sha256"] == RunFolder(run).weights_sha256()
    assert document["made"] == "recorded"
    assert document["parity"]["max_difference"] <= 1e-4
    assert document["parity"]["batch_difference"] == 0
    assert document["parity"]["differing"] == document["parity"]["ties"]
    assert "torch" in document["versions"]
    assert RunFolder(run).info()["graph"]["kept"] is True
    assert RunFolder(run).info()["graph"]["images_per_s"] > 0


def torn(run: Path) -> None:
    path = run / "graph" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def gone(run: Path) -> None:
    (run / "graph" / "model.onnx").unlink()


def no_document(run: Path) -> None:
    (run / "graph" / "graph.json").write_text("{", encoding="utf-8")


def newer(run: Path) -> None:
    path = run / "graph" / "graph.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"schema": 99}), encoding="utf-8")


def other_weights(run: Path) -> None:
    path = run / "graph" / "graph.json"
    edited = json.loads(path.read_bytes()) | {"weights_sha256": "0" * 64}
    path.write_text(json.dumps(edited), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (torn, "its SHA-256 is"),
        (gone, "No such file"),
        (no_document, "cannot be read as JSON"),
        (newer, "schema 99"),
        (other_weights, "another weights_sha256"),
    ],
)
def test_a_graph_that_is_not_the_runs_is_left_alone(
    harm: Callable[[Path], None],
    told: str,
    run: Path,
    without: Path,
    defects: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = recame.load(without, device="cpu").predict(defects / "hole")
    harm(run)
    model = recame.load(run, device="cpu")
    assert model.describe()["backend"] == "torch"
    assert told in caplog.text
    assert "uses torch, slower" in caplog.text
    for ours, theirs in zip(model.predict(defects / "hole"), expected, strict=True):
        np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_edited_weights_are_refused_by_torch(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(recame.errors.CheckpointError, match=r"is not the file that model.json"):
        recame.load(run, device="cpu")
    assert "model.safetensors is not what" in caplog.text


def unsettled(run: Path) -> None:
    (run / "config.yaml").unlink()


def other_settings(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "junk: [", encoding="utf-8")


def weightless(run: Path) -> None:
    (run / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (unsettled, r"config\.yaml is missing"),
        (other_settings, "cannot be read as YAML"),
        (weightless, r"holds no model\.safetensors"),
    ],
)
def test_what_torch_needs_too_is_refused_and_not_blamed_on_the_graph(
    harm: Callable[[Path], None], told: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harm(run)
    with pytest.raises(recame.errors.RecameError, match=told):
        recame.load(run, device="cpu")
    assert "answers in torch" not in caplog.text


def test_edited_settings_are_read_again(run: Path) -> None:
    path = run / "config.yaml"
    text = path.read_text(encoding="utf-8")
    assert "views: 1\n" in text
    path.write_text(text.replace("views: 1\n", "views: 4\n"), encoding="utf-8")
    kept = open_graph(RunFolder(run))
    assert kept is not None
    assert kept.judging.views == 4
    path.write_text(text.replace("precision: '32'", "precision: bf16"), encoding="utf-8")
    assert "bf16" in path.read_text(encoding="utf-8")
    assert start_graph(RunFolder(run), device="cpu", threads=1) is None


def test_the_same_images_get_the_same_answers(
    run: Path, without: Path, tmp_path: Path, defects: Path
) -> None:
    judged = recame.evaluate(run, report=False).predictions
    names = [str(name) for name in judged.table["image"]]
    files = [name if Path(name).is_absolute() else defects / name for name in names]
    answers = recame.load(run).predict(files)
    got = np.stack([answer.probabilities for answer in answers])
    np.testing.assert_allclose(got, judged.probabilities, atol=1e-6)
    torch_judged = recame.evaluate(without, report=False).predictions
    np.testing.assert_allclose(judged.probabilities, torch_judged.probabilities, atol=1e-4)
    assert (judged.probabilities.argmax(1) == torch_judged.probabilities.argmax(1)).all()
    tables = []
    for folder in (run, without):
        out = tmp_path / f"{folder.name}.csv"
        recame.predict(folder, defects, out=out)
        tables.append([line.split(",")[:2] for line in out.read_text().splitlines()])
    assert tables[0] == tables[1]


class TestViews:
    def test_other_views_of_a_run(
        self, run: Path, without: Path, defects: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        own = recame.load(run).predict(defects / "hole")
        assert caplog.text == ""
        found = {}
        for folder in (run, without):
            model = recame.load(folder, views=4)
            assert model.describe()["views"] == 4
            found[folder] = np.stack([x.probabilities for x in model.predict(defects / "hole")])
        assert "views 1 then, 4 now" in caplog.text
        np.testing.assert_allclose(found[run], found[without], atol=1e-5)
        assert np.abs(found[run] - np.stack([x.probabilities for x in own])).max() > 1e-4

    @pytest.mark.parametrize("views", [0, 3, 16])
    def test_there_are_1_2_4_or_8(self, views: int, run: Path, without: Path) -> None:
        for folder in (run, without):
            with pytest.raises(ConfigError, match=f"views={views}: .*1, 2, 4 or 8"):
                recame.load(folder, views=views)
        with pytest.raises(ConfigError, match=f"views={views}"):
            recame.evaluate(run, views=views)

    def test_only_squares_are_turned(self) -> None:
        assert check_views(4, 32, 48) == 4
        with pytest.raises(ConfigError, match="32 x 48 pixels cannot be rotated"):
            check_views(8, 32, 48)

    def test_other_views_have_figures_of_their_own(self, run: Path) -> None:
        recame.evaluate(run, report=False)
        before = (run / "evaluation" / "test" / "predictions.parquet").read_bytes()
        turned = recame.evaluate(run, views=4)
        assert turned.split == "test-4-views"
        assert turned.folder.name == "test-4-views"
        assert (turned.folder / "report.html").exists()
        assert (run / "evaluation" / "test" / "predictions.parquet").read_bytes() == before
        note = json.loads((turned.folder / "judged.json").read_text(encoding="utf-8"))
        assert note["views"] == 4
        assert recame.evaluate(run, views=1, report=False).split == "test"
        with pytest.raises(
            ConfigError, match=r"with 4 views would be evaluated under the name 'test'"
        ):
            recame.evaluate(run, views=4, name="test")
        with pytest.raises(ConfigError, match=r"holds the figures of .* with 4 views"):
            recame.evaluate(run, views=2, name="test-4-views")
