"""Images that are not square, through every verb."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import recame
from recame.config import Config, DataConfig, load_config
from recame.errors import ConfigError
from recame.export.export import export
from recame.inspection import inspect_set
from recame.models import load_checkpoint
from recame.runtime import load
from recame.training.student.distill import distill
from recame.training.train import train

SIZE, OTHER = (32, 96), (64, 48)
COUNTS = {"ok": 48, "scratch": 20, "dent": 12}


def scan(kind: int, rng: np.random.Generator) -> np.ndarray:
    """A strip of 40 x 120 pixels with the kind's defect somewhere along it."""
    image = rng.normal(120, 12, (40, 120))
    at = int(rng.integers(15, 100))
    if kind == 1:
        image[:, at : at + 4] = 240
    elif kind == 2:
        image[14:26, at : at + 12] = 10
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("data") / "strips", np.random.default_rng(0)
    for kind, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shown = kind if number % 5 else (kind + 1) % 3  # so that there are mistakes to show
            cv2.imwrite(str(folder / name / f"{number:03d}.png"), scan(shown, rng))
    return folder


@pytest.fixture(scope="module")
def run(
    strips: Path, tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    config = tiny_config(
        data__size=SIZE, augment__cutmix=0.5, model__attention="regional", finetune__epochs=3
    )
    out = tmp_path_factory.mktemp("shapes") / "run"
    run = train(strips, config, out=out).path
    recame.evaluate(run)
    return run


def test_trained_and_reported_in_their_shape(run: Path) -> None:
    config, loaded = load_config(run / "config.yaml"), load_checkpoint(run)
    assert config.data.size == "32x96"
    assert (loaded.spec.height, loaded.spec.width) == SIZE
    assert config.augment.symmetry == "flips"  # square was asked
    assert "augment.symmetry = flips: images of 32 x 96" in (run / "reasons.json").read_text()
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["test"]["balanced_accuracy"]["value"] > 0.4  # chance: 0.33
    page = (run / "evaluation" / "test" / "report.html").read_text()
    pictures = re.findall(r'class="(maps|thumbs \w*) (\w*)"', page)
    assert pictures
    assert {layout for _, layout in pictures} == {"wide"}


def test_quarter_turns_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="32 x 96 pixels cannot be rotated by 90 degrees"):
        recame.evaluate(run, views=8)
    with pytest.raises(ConfigError, match="32 x 96 pixels cannot be rotated by 90 degrees"):
        export(run, views=8)


@pytest.mark.parametrize(
    ("format_", "precision"),
    [("onnx", "fp32"), pytest.param("openvino", "int8", marks=pytest.mark.slow)],
)
def test_bundle_answers_as_the_run(
    format_: str, precision: str, run: Path, strips: Path, tmp_path: Path
) -> None:
    outputs = ("attribution", "expert_probabilities", "features")
    bundle = export(
        run, tmp_path / "bundle", format=format_, precision=precision, outputs=outputs, normal="ok"
    )
    assert (bundle.spec.height, bundle.spec.width) == SIZE
    paths = sorted(strips.rglob("*.png"))[::8]
    found, expected = (load(path).predict(paths) for path in (bundle.path, run))
    apart = [
        np.abs(a.probabilities - b.probabilities).max()
        for a, b in zip(found, expected, strict=True)
    ]
    assert max(apart) < (1e-4 if precision == "fp32" else 0.2)


@pytest.mark.slow
def test_student_and_other_shapes(run: Path, tmp_path: Path) -> None:
    quick = {"finetune.epochs": 1, "distill.gate_weight": 1.0, "distill.attention": "keep"}
    same = distill(run, out=tmp_path / "same", changes=quick).path
    assert load_config(same / "config.yaml").data.size == "32x96"
    turned = {"distill.size": OTHER, "augment.symmetry": "square", "distill.teacher_views": 8}
    other = distill(run, out=tmp_path / "other", changes=quick | turned)
    assert load_config(other.path / "config.yaml").data.size == "64x48"
    assert load_config(other.path / "config.yaml").augment.symmetry == "flips"
    reasons = " ".join(other.reasons())
    assert "data.size = 64x48: the teacher sees each batch resized to 32x96" in reasons
    assert "augment.symmetry = flips: images of 64 x 48" in reasons
    square = distill(run, out=tmp_path / "square", changes=quick | turned | {"distill.size": 48})
    assert load_config(square.path / "config.yaml").augment.symmetry == "square"
    spec = load_checkpoint(square.path).spec
    assert (spec.height, spec.width) == (48, 48)


def test_probe_asks_the_groups_that_the_shape_allows(
    strips: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config(
        data__size="auto", augment__symmetry="auto", evaluation__views="auto", probe__views=8
    ).updated({"finetune.scope": "tails", "finetune.epochs": 1, "finetune.trunk_views": 8})
    run = train(strips, config, out=tmp_path / "run")
    reasons = " ".join(run.reasons())
    assert "data.size = 32x128: images are about 40 x 120 pixels (height x width)" in reasons
    assert re.search(r"short probes on val: none [\d.]+, mirror [\d.]+, flips [\d.]+", reasons)
    assert "square 0" not in reasons
    assert int(run.load_config().evaluation.views) <= 4


def test_inspected_in_their_shape(strips: Path, tmp_path: Path) -> None:
    again = cv2.imread(str(strips / "ok" / "000.png"), cv2.IMREAD_UNCHANGED)
    images = tmp_path / "images"
    for name in COUNTS:
        (images / name).mkdir(parents=True)
        for path in sorted((strips / name).iterdir()):
            (images / name / path.name).write_bytes(path.read_bytes())
    lighter = np.clip(again.astype(float) * 1.05 + 4, 0, 255).astype(np.uint8)
    cv2.imwrite(str(images / "dent" / "again.png"), lighter)
    found = inspect_set(images, data=DataConfig(), out=tmp_path / "page")
    assert found.spec is not None
    assert (found.spec.height, found.spec.width) == (32, 128)
    pairs = (tmp_path / "page" / "near_duplicates.csv").read_text()
    assert "again.png" in pairs
    page = (tmp_path / "page" / "inspection.html").read_text()
    assert 'class="pair wide"' in page
