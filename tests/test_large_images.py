"""Images of which a run sees tiles, through the verbs."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import recame
from recame.config import Config, load_config
from recame.data.resize import brought_to
from recame.export.export import export
from recame.inspection import inspect_set
from recame.inspection.checks.resolution import Resolution
from recame.models import load_checkpoint
from recame.pages.drawing import GAP, PIECES_NOTE, side_by_side
from recame.runs.folder import RunFolder
from recame.runtime import load

TILES, SIDE = 3, 32


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grids of pads on 192 x 256 px: of some a pad is missing, of others one is bright."""
    folder, rng = tmp_path_factory.mktemp("data") / "boards", np.random.default_rng(0)
    y, x = np.mgrid[:192, :256]
    for name, count in {"ok": 40, "bright": 24, "missing": 16}.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pad = np.hypot(y % 16 - 8, x % 16 - 8) < 5
            image = np.where(pad, 150, 70) + rng.normal(0, 4, (192, 256))
            row, column = rng.integers(1, 11), rng.integers(1, 15)
            odd = pad & (y // 16 == row) & (x // 16 == column)
            image[odd] += {"ok": 0, "bright": 70, "missing": -80}[name]
            pixels = np.clip(image, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"{number:03d}.png"), pixels)
    return folder


@pytest.fixture(scope="module")
def run(boards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    short = {
        "data.tiles": TILES,
        "data.size": SIDE,
        "probe.steps": 40,
        "finetune.epochs": 8,
        "finetune.batch_size": 16,
        "evaluation.bootstrap": 50,
        "run.accelerator": "cpu",
    }
    out = tmp_path_factory.mktemp("runs") / "run"
    return recame.train(boards, Config().updated(short), out=out).path


@pytest.mark.slow
def test_a_run_learns_from_the_labels_of_images_what_their_tiles_show(run: Path) -> None:
    config = load_config(run / "config.yaml")
    assert (config.data.tiles, config.data.size) == (TILES, SIDE)
    spec = json.loads((run / "model.json").read_text())["preprocess"]
    assert (spec["tiles"], spec["height"], spec["width"]) == (TILES, 4 * SIDE, SIDE)
    recame.evaluate(run)
    accuracy = json.loads((run / "metrics.json").read_text())["test"]["balanced_accuracy"]
    assert accuracy["value"] > 0.8  # chance: 0.33; nothing of it is seen on the whole at 32 px


@pytest.mark.slow
def test_a_report_shows_the_pieces_side_by_side(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    table = pd.read_csv(copy / "manifest.csv")
    wrong = table.index[(table["split"] == "test") & (table["label"] == "ok")][:2]
    table.loc[wrong, "label"] = "missing"
    RunFolder(copy).save_manifest(table)
    recame.evaluate(copy)
    page = (copy / "evaluation" / "test" / "report.html").read_text("utf-8")
    assert page.count(PIECES_NOTE) == 1
    (shown, *_) = re.findall(r'class="maps wide">\s*<figure><img src="data:.*?,(.*?)"', page)
    encoded = np.frombuffer(base64.b64decode(shown), np.uint8)
    pixels = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)
    assert pixels.shape == (SIDE, (TILES + 1) * SIDE + TILES * GAP)
    first, *_ = re.findall(r'<p class="file">(.*?)</p>', page)
    path = table.loc[table["image"] == first, "path"].item()
    spec = recame.load(run).spec
    stored = brought_to(cv2.imread(path, cv2.IMREAD_GRAYSCALE)[..., None], spec)
    np.testing.assert_array_equal(pixels, side_by_side(stored, spec.pieces, 255)[..., 0])


@pytest.mark.slow
def test_a_set_is_inspected_by_a_run_that_sees_pieces(run: Path, boards: Path) -> None:
    model = load_checkpoint(run)
    found = inspect_set(boards, model=model)
    sizes = [seen.shape[:2] for _, _, seen in found[Resolution].pictures]
    row = (SIDE, (TILES + 1) * SIDE + TILES * GAP)
    assert sizes == [row] * 6
    assert found[Resolution].tried == ()  # pieces show what is small
    picture = found.thumbnail(0)
    assert (picture.height, picture.width, picture.layout) == (*row, "wide")
    (section,) = found[Resolution].show()
    note, *pictures = section.blocks
    assert note.content == f"4 pieces of 32 x 32 pixels. {PIECES_NOTE}"
    assert [(block.kind, block.content.width) for block in pictures] == [("picture", row[1])] * 6


@pytest.mark.slow
def test_run_and_bundles_answer_alike(run: Path, boards: Path, tmp_path: Path) -> None:
    images = sorted(boards.glob("*/*.png"))[::4]
    summary = recame.predict(run, images, out=tmp_path / "run.parquet")
    expected = pd.read_parquet(summary.out)
    columns = [f"p_{name}" for name in recame.load(run).label_space.names]
    right = np.array([path.parent.name for path in images]) == expected["prediction"]
    assert right.mean() > 0.8
    # Eight bits round otherwise on each kind of processor.
    for precision, most, alike in (("fp32", 2e-4, 1.0), ("int8", 0.6, 0.9)):
        export(run, tmp_path / precision, precision=precision)
        found = load(tmp_path / precision).predict(list(map(str, images)))
        scores = np.stack([one.probabilities for one in found])
        assert np.abs(scores - expected[columns].to_numpy()).max() < most
        same = scores.argmax(1) == expected[columns].to_numpy().argmax(1)
        assert same.mean() >= alike


@pytest.mark.slow
def test_views_turn_pieces_in_graph_and_torch_alike(
    run: Path, boards: Path, tmp_path: Path
) -> None:
    images = list(map(str, sorted(boards.glob("*/*.png"))[::9]))
    by_graph = recame.load(run, views=4).predict(images)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("graph"))
    by_torch = recame.load(tmp_path / "run", views=4).predict(images)
    for one, other in zip(by_graph, by_torch, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-4)


@pytest.mark.slow
def test_an_array_is_brought_to_pieces_like_its_file(run: Path, boards: Path) -> None:
    path = next(boards.glob("bright/*.png"))
    model = recame.load(run)
    of_file, of_pixels = model.predict([str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)])
    np.testing.assert_array_equal(of_file.probabilities, of_pixels.probabilities)
