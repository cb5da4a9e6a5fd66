"""What a model says of several images, as arrays, a table, a picture and a few words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recame.contracts import PreprocessSpec
from recame.runs.prediction_columns import prediction_columns
from recame.runtime import Predictor, load


@pytest.fixture(scope="module")
def model(bundle: Path) -> Predictor:
    return load(bundle)


def test_it_is_arrays_as_of_sklearn(
    model: Predictor,
    pictures: tuple[Path, np.ndarray],
    grey: PreprocessSpec,
    expected: Callable[..., np.ndarray],
) -> None:
    folder, pixels = pictures
    files = sorted(folder.iterdir())[:5]
    proba = model.predict_proba(files)
    assert proba == pytest.approx(expected(pixels[:5], grey), abs=1e-5)
    assert model.classes_.tolist() == ["ok", "crack", "NA"]
    found = model.predict(files)
    assert found.labels.tolist() == model.classes_[proba.argmax(1)].tolist()
    assert np.array_equal(found.probabilities, proba)
    assert [each.image for each in found[1:3]] == [str(file) for file in files[1:3]]
    assert found[1:3].labels.tolist() == found.labels[1:3].tolist()
    assert model.predict([]).probabilities.shape == (0, 3)


def test_images_of_every_kind_are_one(model: Predictor, pictures: tuple[Path, np.ndarray]) -> None:
    folder, pixels = pictures
    file = folder / "000.png"
    tensor = torch.from_numpy(pixels[0].copy()).permute(2, 0, 1)
    with file.open("rb") as stream:
        found = model([file, file.read_bytes(), stream, Image.open(file), pixels[0], tensor])
    assert len(set(found.labels.tolist())) == 1
    assert np.ptp(found.probabilities, axis=0).max() == 0
    assert [each.image for each in found] == [str(file), *(f"#{n}" for n in range(1, 6))]


def test_a_table_and_a_few_words(model: Predictor, pictures: tuple[Path, np.ndarray]) -> None:
    folder, _ = pictures
    file = str(folder / "000.png")
    found = model.predict([file, b"no image", file])
    table = found.to_frame()
    written = prediction_columns(found.classes)
    assert [name for name in written if name in table] == list(table)
    assert table["image"].tolist() == [file, "#1", file]
    assert table["prediction"].dropna().tolist() == [found[0].label, found[0].label]
    assert table["prediction"].isna().tolist() == [False, True, False]
    assert table["p_NA"].isna().tolist() == [False, True, False]
    assert str(found) == f"3 images: {found[0].label} 2\n1 image cannot be read: #1"
    assert str(found[0]) == f"{file}: {found[0].label} {found[0].confidence:.2f} (automatic)"
    assert str(found[1]).startswith("#1: unreadable (")
    assert found[0]["label"] == found[0].label
    with pytest.warns(UserWarning, match="1 image cannot be read"):
        assert np.isnan(model.predict_proba([b"no image"])).all()


def test_a_picture_shows_what_the_model_sees(
    model: Predictor, pictures: tuple[Path, np.ndarray]
) -> None:
    folder, pixels = pictures
    figure = model.predict([folder / "000.png", b"no image", folder / "001.png"]).plot(2)
    first, second = figure.axes
    assert np.allclose(first.images[0].get_array(), pixels[0, ..., 0] / 255)
    assert second.get_title() == "unreadable"
    with pytest.raises(Exception, match="no prediction to draw"):
        model.predict([]).plot()


def test_other_libraries_names_tell_ours(
    model: Predictor, pictures: tuple[Path, np.ndarray]
) -> None:
    found = model.predict(pictures[0] / "000.png")
    for owner, name, way in (
        (model, "fit", r"recame\.train"),
        (model, "names", r"model\.classes_"),
        (found, "to_df", r"results\.to_frame"),
        (found[0], "score", r"prediction\.confidence"),
    ):
        with pytest.raises(AttributeError, match=way):
            getattr(owner, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'zzz'$"):
        model.zzz  # noqa: B018
    with pytest.raises(AttributeError, match=r"prediction\.confidence"):
        found[0]["score"]
