"""Images of every kind in, decisions out, in order."""

from __future__ import annotations

import itertools
import math
import shutil
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import recame
from recame.contracts import PreprocessSpec
from recame.data import decode
from recame.data.decode import decode_image
from recame.errors import CheckpointError, ConfigError, DataError
from recame.models import load_checkpoint, save_checkpoint
from recame.runtime import predictor as runtime
from recame.runtime import sessions

Pictures = tuple[Path, np.ndarray]
Expected = Callable[..., np.ndarray]


def test_paths_bytes_and_arrays_say_the_same(
    bundle: Path, pictures: Pictures, expected: Expected, grey: PreprocessSpec
) -> None:
    folder, pixels = pictures
    model = recame.load(bundle)
    path = folder / "007.png"
    given = [path, str(path), path.read_bytes(), pixels[7], pixels[7, ..., 0]]
    found = model.predict(given)
    for item in found:
        np.testing.assert_allclose(item.probabilities, expected(pixels[7:8], grey)[0], atol=1e-5)
        assert item.label == model.label_space.names[int(item.probabilities.argmax())]
        assert (item.action, item.reason, item.stands) == ("automatic", "automatic", True)
        assert item.confidence == pytest.approx(float(item.probabilities.max()))
        assert item.error is None
    assert [item.image for item in found] == [str(path), str(path), "#2", "#3", "#4"]
    (alone,) = model.predict(path)
    np.testing.assert_array_equal(alone.probabilities.argmax(), found[0].probabilities.argmax())
    assert len(model.predict(pixels[:3])) == 3  # a stack of images


def test_folders_are_expanded_and_order_is_kept(bundle: Path, pictures: Pictures) -> None:
    folder, _ = pictures
    model = recame.load(bundle, threads=2)
    everything = model.predict(folder)
    assert [Path(item.image).name for item in everything] == [f"{i:03d}.png" for i in range(300)]
    some = model.predict([folder / "250.png", folder / "003.png"])
    assert [item.label for item in some] == [everything[250].label, everything[3].label]


def test_broken_images_are_answers(bundle: Path, pictures: Pictures, tmp_path: Path) -> None:
    good = pictures[0] / "000.png"
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:40])
    model = recame.load(bundle)
    first, cut, none, last = model.predict([good, tmp_path / "cut.png", tmp_path / "no.png", good])
    assert (cut.label, cut.action, none.action) == (None, "unreadable", "unreadable")
    assert (cut.reason, cut.note, cut.stands) == ("unreadable", cut.error, False)
    assert math.isnan(cut.confidence)
    assert np.isnan(cut.probabilities).all()
    assert "truncated" in str(cut.error)
    assert none.error == "no such file"
    np.testing.assert_array_equal(first.probabilities, last.probabilities)
    (only,) = model.predict(b"no image")
    assert "not an image" in str(only.error)


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stored", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour", [False, True])
def test_arrays_are_adapted_as_files_are(
    bit_depth: int,
    channels: int,
    stored: type,
    colour: bool,
    write_bundle: Callable[..., Path],
    tmp_path: Path,
) -> None:
    spec = PreprocessSpec(
        6, 5, channels, bit_depth, 2.0**bit_depth - 1, (0.5,) * channels, (0.5,) * channels
    )
    model = recame.load(write_bundle(tmp_path / "b", spec))
    shape = (9, 11, 3) if colour else (9, 11)
    image = np.random.default_rng(0).integers(0, np.iinfo(stored).max, shape).astype(stored)
    data = cv2.imencode(".png", image[..., ::-1] if colour else image)[1].tobytes()
    as_array, as_file = model.predict([image, data])
    np.testing.assert_array_equal(as_array.probabilities, as_file.probabilities)
    decoded = decode_image(data, spec, max_pixels=1000)
    np.testing.assert_allclose(
        model.probabilities(decoded[None])[0], as_file.probabilities, atol=1e-6
    )


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((6, 5), np.float32), "float32 values.*give uint8"),
        (np.zeros((6, 5, 4), np.uint8), r"shape \(6, 5, 4\).*drop an alpha channel"),
        (np.zeros((0, 5), np.uint8), "is not an image"),
        (np.zeros(5, np.uint8), r"give \(H, W\)"),
    ],
)
def test_arrays_that_are_no_images(image: np.ndarray, told: str, bundle: Path) -> None:
    model = recame.load(bundle)
    with pytest.raises(DataError, match=told):
        model.predict(image)
    with pytest.raises(DataError, match=told):
        list(model.stream([image]))


def test_decoded_batches_must_fit(bundle: Path) -> None:
    model = recame.load(bundle)
    with pytest.raises(DataError, match=r"uint8 pixels of shape \(B, 6, 5, 1\), but got uint16"):
        model.probabilities(np.zeros((2, 6, 5, 1), np.uint16))
    with pytest.raises(DataError, match="which converts them"):
        model.run(np.zeros((2, 7, 5, 1), np.uint8))
    assert model.probabilities(np.zeros((2, 6, 5, 1), np.uint8)).shape == (2, 3)


def test_normal_below_the_threshold_goes_to_review(
    write_bundle: Callable[..., Path], grey: PreprocessSpec, pictures: Pictures, tmp_path: Path
) -> None:
    thresholds = {"normal": {"release_above": 0.6, "max_escape": 0.01}}
    model = recame.load(write_bundle(tmp_path / "b", grey, thresholds=thresholds))
    found = model.predict(pictures[0])
    normal = [item for item in found if item.label == "ok"]
    held = {item.image for item in normal if item.action == "review"}
    assert held == {item.image for item in normal if item.confidence < 0.6}
    assert 0 < len(held) < len(normal)
    assert {item.reason for item in normal} == {"released", "below_release"}
    assert {item.action for item in found if item.label != "ok"} == {"automatic"}
    assert all(item.candidates.startswith("ok") == (item.image in held) for item in found)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_bundle_that_is_replaced_while_it_is_loaded(
    form: str,
    write_bundle: Callable[..., Path],
    expected: Expected,
    grey: PreprocessSpec,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")
        # So that the graph is compiled again for large batches.
        monkeypatch.setitem(sessions._PIXELS_AT_ONCE, "fp32", 2 * 6 * 5)
    path = write_bundle(tmp_path / "b", grey, form=form)
    model = recame.load(path, threads=2)
    write_bundle(path, grey, form=form, seed=1, replace=True)
    assert recame.load(path).fingerprint != model.fingerprint
    found = list(model.stream(pictures[1]))  # measured now, in sessions of its own
    np.testing.assert_allclose(
        np.stack([item.probabilities for item in found]), expected(pictures[1], grey), atol=1e-5
    )


@pytest.mark.parametrize("how", ["replaced", "overwritten", "emptied", "removed"])
def test_a_bundle_that_goes_while_a_stream_runs(
    how: str,
    write_bundle: Callable[..., Path],
    expected: Expected,
    grey: PreprocessSpec,
    pictures: Pictures,
    tmp_path: Path,
) -> None:
    path = write_bundle(tmp_path / "b", grey)

    def images() -> Iterator[np.ndarray]:
        for number, pixels in enumerate(pictures[1]):
            if number == 80 and how == "replaced":
                write_bundle(path, grey, seed=1, replace=True)
            elif number == 80:
                for file in path.iterdir():
                    content = {"overwritten": b"x" * file.stat().st_size}.get(how, b"")
                    file.unlink() if how == "removed" else file.write_bytes(content)
            yield pixels

    model = recame.load(path, threads=2)
    for source in (images(), iter(pictures[1])):
        found = np.stack([item.probabilities for item in model.stream(source)])
        np.testing.assert_allclose(found, expected(pictures[1], grey), atol=1e-5)


class TestWithoutAnAnswer:
    """A graph that loses its numbers on white images: none of them may pass as the normal class."""

    @pytest.fixture(params=[(math.nan, "no number"), (0.0, "every class for equally probable")])
    def model(
        self,
        request: pytest.FixtureRequest,
        write_bundle: Callable[..., Path],
        grey: PreprocessSpec,
        tmp_path: Path,
    ) -> tuple[recame.runtime.Predictor, str]:
        at_white, told = request.param
        thresholds = {"normal": {"release_above": 0.0}}
        path = write_bundle(tmp_path / "b", grey, thresholds=thresholds, at_white=at_white)
        return recame.load(path), told

    @pytest.mark.parametrize("number", [3, 200])  # one by one, and as a stream
    def test_goes_to_review(
        self, number: int, model: tuple[recame.runtime.Predictor, str], pictures: Pictures
    ) -> None:
        predictor, told = model
        images = [image.copy() for image in pictures[1][:number]]
        for place in (0, number // 2):
            images[place][0, 0] = 255
        found = predictor.predict(images)
        assert len(found) == number
        for place, item in enumerate(found):
            if place in (0, number // 2):
                assert (item.label, item.action, item.unreadable) == (None, "review", False)
                assert item.reason == "not_finite"
                assert math.isnan(item.confidence)
                assert told in str(item.error)
            else:
                assert item.stands
                assert item.error is None


def test_a_run_whose_network_gives_no_numbers(
    finished: Path, defects: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    loaded = load_checkpoint(run)
    with torch.no_grad():
        for parameter in loaded.model.head.parameters():
            parameter.fill_(math.nan)
    save_checkpoint(run, loaded.model, loaded.label_space)
    found = recame.load(run, device="cpu").predict(defects / "hole")
    assert {(item.label, item.action) for item in found} == {(None, "review")}


class TestStream:
    @pytest.mark.parametrize("options", [{}, {"threads": 2, "batch_size": 7}, {"threads": 1}])
    def test_equals_predict_one_by_one(
        self,
        options: dict[str, int],
        bundle: Path,
        pictures: Pictures,
        expected: Expected,
        grey: PreprocessSpec,
    ) -> None:
        folder, pixels = pictures
        model = recame.load(bundle, **options)  # type: ignore[arg-type]
        paths = sorted(folder.iterdir())
        found = list(model.stream(iter(paths)))
        assert [item.image for item in found] == [str(path) for path in paths]
        np.testing.assert_allclose(
            np.stack([item.probabilities for item in found]), expected(pixels, grey), atol=1e-5
        )
        told = model.describe()
        assert told["batch_size"] == options.get("batch_size", told["batch_size"])
        assert told["chosen"].startswith("measured (")
        assert told["backend"] == "onnxruntime"

    def test_memory_is_bounded_and_nobody_waits_for_the_end(
        self, bundle: Path, pictures: Pictures
    ) -> None:
        model = recame.load(bundle, threads=2, batch_size=4)
        taken = 0

        def endless() -> Iterator[np.ndarray]:
            nonlocal taken
            while True:
                taken += 1
                yield pictures[1][taken % 300]

        stream = model.stream(endless())
        for count in range(1, 201):
            assert next(stream).label is not None
            assert taken <= max(count, 64) + 4 * 6  # the measuring look-ahead, then six batches
        threads = threading.active_count()
        stream.close()  # type: ignore[attr-defined]
        assert threading.active_count() < threads

    def test_ctrl_c_inside_leaves_nothing_running(self, bundle: Path, pictures: Pictures) -> None:
        model = recame.load(bundle, threads=2, batch_size=4)
        before = threading.active_count()

        def interrupted() -> Iterator[np.ndarray]:
            yield from pictures[1][:150]
            raise KeyboardInterrupt

        found: list[recame.runtime.Prediction] = []
        with pytest.raises(KeyboardInterrupt):
            found.extend(model.stream(interrupted()))
        assert threading.active_count() == before
        # The model is as good as new.
        assert len(list(model.stream(pictures[1]))) == 300

    def test_memory_does_not_grow(self, bundle: Path, pictures: Pictures) -> None:
        model = recame.load(bundle, threads=2, batch_size=16)
        list(model.stream(pictures[1]))  # measured

        def held_after(images: int) -> int:
            tracemalloc.start()
            endless = itertools.cycle(pictures[1])
            for _ in model.stream(itertools.islice(endless, images)):
                pass
            size = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return size

        held_after(300)
        short, long = held_after(1000), held_after(4000)
        assert (long - short) / 3000 < 10  # bytes an image; one picture has 30, its answer more

    def test_a_short_stream_measures_nothing(self, bundle: Path, pictures: Pictures) -> None:
        model = recame.load(bundle)
        assert len(list(model.stream(pictures[1][:20]))) == 20
        assert model.describe()["chosen"] == "not measured: no long stream yet"

    @pytest.mark.parametrize("steady", [True, False])
    def test_unsteady_models_get_whole_batches(
        self,
        steady: bool,
        write_bundle: Callable[..., Path],
        grey: PreprocessSpec,
        pictures: Pictures,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        path = write_bundle(tmp_path / "b", grey, steady=steady)
        model = recame.load(path, batch_size=8, threads=1)
        sizes, run = [], model._session.run

        def noted(images: np.ndarray) -> dict[str, np.ndarray]:
            sizes.append(len(images))
            return run(images)

        monkeypatch.setattr(model._session, "run", noted)
        images = [*pictures[1][:3], b"broken", *pictures[1][3:12]]
        found = list(model.stream(images, num_images=13))
        assert sorted(sizes) == ([5, 7] if steady else [8, 8])
        assert [item.error is None for item in found] == [n != 3 for n in range(13)]
        assert [item.image for item in found] == [f"#{n}" for n in range(13)]
        known = model.probabilities(pictures[1][:12])
        answered = [item.probabilities for item in found if item.error is None]
        np.testing.assert_allclose(np.stack(answered), known, atol=1e-6)

    def test_decoding_runs_while_the_model_does(
        self, bundle: Path, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = recame.load(bundle, threads=1, batch_size=10)
        list(model.stream(pictures[1]))  # measured
        plain, run = decode.match_with_facts, model._session.run
        running, decoded_meanwhile = threading.Event(), threading.Event()
        first: list[int] = []

        def wait_for_model(*args: object) -> object:
            first.append(me := threading.get_ident())
            if me != first[0]:  # not for the batch that the model takes first
                assert running.wait(20)
                decoded_meanwhile.set()
            return plain(*args)  # type: ignore[arg-type]

        def wait_for_decoder(images: np.ndarray) -> dict[str, np.ndarray]:
            running.set()
            assert decoded_meanwhile.wait(20)
            return run(images)

        monkeypatch.setattr(decode, "match_with_facts", wait_for_model)
        monkeypatch.setattr(model._session, "run", wait_for_decoder)
        assert len(list(model.stream(pictures[1]))) == 300


class TestMeasuring:
    def measured(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, rates: dict[tuple[int, int], float]
    ) -> dict[str, object]:
        monkeypatch.setattr(
            runtime, "_rate", lambda _session, pixels, calls: rates[calls, len(pixels)]
        )
        model = recame.load(bundle, threads=2)
        model.batch_size_for(1000)
        return model.describe()

    def test_the_fastest_is_taken(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rates = {(1, 1): 2e4, (2, 1): 3e4, (1, 4): 6e4, (2, 4): 5e4, (1, 16): 5e4, (2, 16): 8e4}
        told = self.measured(bundle, monkeypatch, rates)
        assert (told["parallel_batches"], told["batch_size"], told["decode_threads"]) == (2, 16, 3)
        rates[1, 4] = 9e4
        told = self.measured(bundle, monkeypatch, rates)
        assert (told["parallel_batches"], told["batch_size"], told["decode_threads"]) == (1, 4, 2)
        assert "1 x batch 4: 90000/s" in str(told["chosen"])

    def test_threads_share_no_batch_of_an_unsteady_model(
        self,
        write_bundle: Callable[..., Path],
        grey: PreprocessSpec,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        rates = {(2, 1): 3e4, (2, 4): 5e4, (2, 16): 8e4}
        path = write_bundle(tmp_path / "b", grey, steady=False)
        assert self.measured(path, monkeypatch, rates)["parallel_batches"] == 2

    def test_what_takes_too_long_is_not_tried(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Four images a second: even the smallest batch would exceed the time for measuring.
        told = self.measured(bundle, monkeypatch, {(1, 1): 4.0, (2, 1): 5.0})
        assert (told["parallel_batches"], told["batch_size"]) == (2, 1)


class TestLoad:
    @pytest.mark.parametrize("name", ["threads", "batch_size"])
    @pytest.mark.parametrize("value", [0, -1, "many", 2.5])
    def test_numbers(self, name: str, value: object, bundle: Path) -> None:
        with pytest.raises(ConfigError, match=f"{name}={value!r} is not a number above 0"):
            recame.load(bundle, **{name: value})  # type: ignore[arg-type]

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="holds no run and no bundle"):
            recame.load(tmp_path)

    def test_run_folder(self, finished: Path, defects: Path) -> None:
        model = recame.load(finished, device="cpu")
        found = model.predict([defects / "hole", defects / "ok" / "000.png"])
        assert [Path(item.image).parent.name for item in found] == ["hole"] * 6 + ["ok"]
        assert found[0].expert_probabilities is not None
        assert found[0].expert_probabilities.shape == (2, 4)
        assert model.describe()["backend"] == "onnxruntime"
        assert (model.decider.policy, model.decider.release_above) == (None, None)
        image = np.asarray(Image.open(defects / "ok" / "000.png"))
        np.testing.assert_allclose(
            model.predict(image)[0].probabilities, found[-1].probabilities, atol=1e-6
        )

    def test_a_bundle_has_its_own_views(self, bundle: Path) -> None:
        assert recame.load(bundle, views=1).fingerprint == recame.load(bundle).fingerprint
        with pytest.raises(ConfigError, match=r"views=4: the bundle .* has 1 in its graph"):
            recame.load(bundle, views=4)

    def test_fingerprints_differ(
        self, bundle: Path, write_bundle: Callable[..., Path], grey: PreprocessSpec, tmp_path: Path
    ) -> None:
        other = write_bundle(tmp_path / "b", grey, seed=1)
        assert recame.load(bundle).fingerprint == recame.load(bundle).fingerprint
        assert recame.load(bundle).fingerprint != recame.load(other).fingerprint


def test_values_of_fewer_bits_do_not_pass_as_black(bundle: Path, pictures: Pictures) -> None:
    model = recame.load(bundle, threads=1)
    pixels = pictures[1][0, ..., 0]
    twelve = pixels.astype(np.uint16) << 4
    for given in (twelve, cv2.imencode(".png", twelve)[1].tobytes()):
        (found,) = model.predict([given])
        assert (found.action, found.reason) == ("review", "near_black")
        assert found.label is not None
        assert found.lost == {
            "near black": "its values use 12 of 16 bits, but the model sees only the upper 8 bits"
        }
    (found,) = model.predict([pixels.astype(np.uint16) * 257])
    assert found.lost == {}
    np.testing.assert_array_equal(found.probabilities, model.predict(pixels)[0].probabilities)
