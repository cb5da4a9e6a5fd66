"""What this version left in `fixtures/present` is read, and answers as it did then."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import recame
from recame.export.document import BundleDocument
from recame.runs.folder import RunFolder

PRESENT = Path(__file__).parent / "fixtures" / "present"
EXPECTED = json.loads((PRESENT / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["run", "bundle"])
def test_it_answers_as_then(name: str) -> None:
    images = [PRESENT / "images" / image for image in EXPECTED["images"]]
    answers = recame.load(PRESENT / name).predict(images)
    told = [[answer.label, answer.action] for answer in answers]
    assert told == [[label, action] for label, action, _ in EXPECTED[name]]
    assert len({label for label, _ in told}) > 1
    got = np.stack([answer.probabilities for answer in answers])
    np.testing.assert_allclose(got, [p for _, _, p in EXPECTED[name]], atol=1e-5)


def test_run_and_bundle_say_the_same() -> None:
    run, bundle = ([p for _, _, p in EXPECTED[name]] for name in ("run", "bundle"))
    np.testing.assert_allclose(run, bundle, atol=1e-4)


def test_its_settings_mean_what_they_meant() -> None:
    config = RunFolder.open(PRESENT / "run").load_config()
    # What was added since is told as these runs did it.
    since = {"probe.adapt_batch_norm": 0.0}
    assert config == recame.load_config(PRESENT / "run" / "config.yaml").updated(since)
    assert (config.model.backbone, config.model.stages) == ("test_byobnet", 1)
    assert (config.finetune.epochs, config.evaluation.views) == (8, 2)


def test_its_documents_have_the_fields_of_then() -> None:
    text = (PRESENT / "bundle" / "bundle.json").read_text(encoding="utf-8")
    told = BundleDocument.model_validate_json(text)
    assert told.label_space.normal == "normal"
    metrics = json.loads((PRESENT / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert {"balanced_accuracy", "macro_f1"} <= metrics["val"].keys()
