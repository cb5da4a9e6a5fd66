"""The registry, the folder that every set is prepared in, DeepPCB-LT and ICDefectSynth."""

import hashlib
import json
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.data.manifest import read_manifest
from recame.datasets.generated import train_counts
from recame.datasets.public import deeppcb_lt
from recame.datasets.public.ic_defect_synth import benchmark_spec, large_spec
from recame.datasets.public.prepared_folder import (
    fingerprint,
    prepare_folder,
    save_manifest,
    write_images,
)
from recame.datasets.registry import PUBLIC_SETS, PUBLISHED_GROUPS, public_set
from recame.errors import ConfigError, DataError
from recame.label_space import LabelSpace


def test_names_lead_to_sets():
    assert public_set("wm_811k").title == "WM-811K"
    assert len({one.title for one in PUBLIC_SETS.values()}) == len(PUBLIC_SETS) == 12
    with pytest.raises(ConfigError, match=r"no public set 'mnist'; the public sets are cifar10_lt"):
        public_set("mnist")
    with pytest.raises(ConfigError, match=r"'cifar_lt' \(did you mean cifar10_lt\?\)"):
        public_set("cifar_lt")


def test_a_set_that_needs_files_says_which(tmp_path):
    with pytest.raises(DataError, match=r"Give the path of LSWMD\.pkl"):
        public_set("wm_811k").prepare(None, tmp_path / "out")


def test_groups_are_the_literatures():
    space = LabelSpace(tuple("abcdef"), (5000, 101, 100, 20, 19, 5))
    assert space.groups(PUBLISHED_GROUPS) == ("many", "many", "medium", "medium", "few", "few")


def test_preparing_brings_no_torch():
    modules = sorted({one.module for one in PUBLIC_SETS.values()})
    code = "import sys, importlib\n"
    code += "import recame.datasets.registry\nassert 'pandas' not in sys.modules\n"
    code += f"for name in {modules}: importlib.import_module('recame.datasets.public.' + name)\n"
    code += "print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def one_row(folder):
    save_manifest(folder, pd.DataFrame({"image": ["a.png"], "label": ["x"], "split": ["train"]}))


def test_a_folder_is_made_whole_once_and_never_replaced(tmp_path):
    out = tmp_path / "deep" / "out"
    calls = []

    def build(folder):
        calls.append(folder)
        one_row(folder)

    recipe = {"set": "A", "shape": (1, 2)}
    assert prepare_folder(out, recipe, build) == out / "manifest.csv"
    assert prepare_folder(out, recipe, build) == out / "manifest.csv"
    assert len(calls) == 1
    assert json.loads((out / "prepared.json").read_text())["shape"] == [1, 2]
    with pytest.raises(DataError, match=r"prepared differently \(set A and not B\)"):
        prepare_folder(out, {**recipe, "set": "B"}, build)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(DataError, match="no prepared data set, and recame does not replace"):
        prepare_folder(tmp_path / "mine", recipe, build)
    (tmp_path / "empty").mkdir()
    assert prepare_folder(tmp_path / "empty", recipe, build).is_file()


@pytest.mark.parametrize("error", [DataError("bad"), OSError("full"), KeyboardInterrupt()])
def test_a_folder_that_is_not_whole_does_not_appear(tmp_path, error):
    def build(folder):
        one_row(folder)
        raise error

    with pytest.raises((DataError, KeyboardInterrupt)):
        prepare_folder(tmp_path / "out", {"set": "A"}, build)
    assert list(tmp_path.iterdir()) == []


def test_fingerprints_see_names_sizes_and_both_ends(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(5 << 20))
    before = fingerprint([path])
    assert len(before) == 16
    content = bytearray(5 << 20)
    content[-1] = 1
    path.write_bytes(content)
    at_the_end = fingerprint([path])
    (tmp_path / "b.bin").write_bytes(content)
    assert len({before, at_the_end, fingerprint([tmp_path / "b.bin"])}) == 3
    with pytest.raises(DataError, match=r"c\.bin cannot be read"):
        fingerprint([tmp_path / "c.bin"])


def test_images_are_written_grey_and_in_colour(tmp_path):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (5, 7, 3)[: 2 + n % 2], np.uint8) for n in range(300)]
    names = [f"é/{n % 3}/{n}.png" for n in range(300)]
    seen = []
    write_images(tmp_path, names, pixels.__getitem__, lambda _, *counts: seen.append(tuple(counts)))
    assert seen[-1] == (300, 300)
    for name, expected in zip(names, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), expected)


def test_the_shipped_crops_are_deeppcb_lt():
    table = deeppcb_lt.crops()
    counts = table.groupby(["split", "label"]).size()
    assert len(table) == 10707
    assert counts["train"].to_dict() == {
        "copper": 8,
        "false_call": 6000,
        "mousebite": 900,
        "open": 300,
        "pin_hole": 36,
        "short": 16,
        "spur": 100,
    }
    assert set(counts["val"]) == {100}
    assert set(counts["test"]) == {280}
    assert table.groupby("board")["split"].nunique().max() == 1
    assert table["product"].nunique() == 11
    assert table[["x", "y"]].min().min() >= 0
    assert table[["x", "y"]].max().max() <= 640 - deeppcb_lt.SIDE
    assert table["crc32"].str.fullmatch("[0-9a-f]{8}").all()
    first = table.iloc[0]
    assert first["source"] == "PCBData/group44000/44000/44000012_test.jpg"
    assert (first["image"], first["x"], first["y"]) == ("images/P44000/44000012_00.png", 325, 111)


@pytest.fixture
def clone(tmp_path):
    """A few boards laid out as in the public repository, and the crops' table of their pixels."""
    table = deeppcb_lt.crops()
    chosen = table["source"].drop_duplicates().iloc[[0, 1, 700]]
    table = table[table["source"].isin(chosen)].reset_index(drop=True)
    rng = np.random.default_rng(0)
    boards = {}
    for n, name in enumerate(chosen):
        path = tmp_path / "DeepPCB" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = (rng.random((80, 80)) > 0.5).astype(np.uint8) * 255
        image = Image.fromarray(np.kron(coarse, np.ones((8, 8), np.uint8)))
        (image.convert("RGB") if n == 1 else image).save(path, quality=90)
        boards[name] = np.asarray(Image.open(path).convert("L"))
    crops = np.stack(
        [boards[s][y : y + 64, x : x + 64] for s, x, y in table[["source", "x", "y"]].to_numpy()]
    )
    crc32 = [f"{zlib.crc32(crop.tobytes()):08x}" for crop in crops]
    return tmp_path / "DeepPCB", table.assign(crc32=crc32), crops


def test_deeppcb_lt_is_cut_from_a_clone(tmp_path, clone, monkeypatch):
    root, table, crops = clone
    monkeypatch.setattr(deeppcb_lt, "crops", lambda: table)
    digest = hashlib.sha256(crops.tobytes()).hexdigest()
    monkeypatch.setattr(deeppcb_lt, "PIXELS_SHA256", digest)
    manifest = PUBLIC_SETS["deeppcb_lt"].prepare(root, tmp_path / "out")
    read = read_manifest(manifest)
    assert manifest.read_text().splitlines()[0] == "image,label,product,board,split"
    assert read["image"].tolist() == table["image"].tolist()
    for path, expected in zip(read["path"], crops, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    np.testing.assert_array_equal(deeppcb_lt.cut_crops(root / "PCBData", table), crops)


def test_deeppcb_lt_takes_the_reader_that_agrees(clone):
    root, table, _ = clone
    name = table["source"].iloc[0]
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (640, 640, 3), np.uint8)).save(root / name, quality=90)
    luminance = Image.open(root / name)
    luminance.draft("L", luminance.size)  # as stored in the file
    stored = np.asarray(luminance)
    part = table[table["source"] == name].reset_index(drop=True)
    crops = np.stack([stored[y : y + 64, x : x + 64] for x, y in part[["x", "y"]].to_numpy()])
    part["crc32"] = [f"{zlib.crc32(crop.tobytes()):08x}" for crop in crops]
    assert not np.array_equal(stored, np.asarray(Image.open(root / name).convert("L")))
    np.testing.assert_array_equal(deeppcb_lt.cut_crops(root, part), crops)


def test_a_clone_that_differs_is_refused(clone):
    root, table, _ = clone
    wrong = table.assign(crc32=["00000000", *table["crc32"][1:]])
    with pytest.raises(DataError, match=rf"1 of {len(table)} crops differ .*44000012_00\.png"):
        deeppcb_lt.cut_crops(root, wrong)
    Image.fromarray(np.zeros((100, 100), np.uint8)).save(root / table["source"].iloc[0])
    with pytest.raises(DataError, match="damaged or too small"):
        deeppcb_lt.cut_crops(root, table)
    (root / table["source"].iloc[0]).unlink()
    with pytest.raises(DataError, match="1 of 3 board images are not below"):
        deeppcb_lt.cut_crops(root, table)


@pytest.mark.parametrize(("imbalance", "largest", "smallest"), [(100, 807, 8), (500, 998, 2)])
def test_ic_defect_synth_meets_its_imbalance(imbalance, largest, smallest):
    spec = benchmark_spec(imbalance)
    counts = train_counts(spec)
    assert (counts.max(), counts.min(), counts.sum()) == (largest, smallest, 2000)
    assert spec.num_held_out == (20, 60)


def test_ic_defect_synth_takes_what_a_generated_set_has():
    spec = benchmark_spec(
        20,
        num_classes=4,
        test_per_class=50,
        clusters_per_class=3,
        defects=["open", "bridge", "void"],
    )
    assert spec.num_held_out == (20, 50)
    assert (train_counts(spec).sum(), spec.clusters, spec.size) == (2000, 3, 64)
    assert spec.classes == ("normal", "open", "bridge", "void")
    assert benchmark_spec(num_images=1000).num_train == 200
    large = large_spec((128, 192), test_per_class=10, imbalance=5)
    assert (large.num_train, large.shape, large.imbalance) == (741, (128, 192), 5)
    with pytest.raises(ConfigError, match=r"no option 'colours'.*choose from num_images, num"):
        benchmark_spec(colours=3)


def test_ic_defect_synth_is_written_and_the_same_again(tmp_path):
    one = public_set("ic_defect_synth_500")
    manifest = one.prepare(None, tmp_path / "a", num_classes=2)
    table = read_manifest(manifest)
    assert table["split"].value_counts().to_dict() == {"train": 2000, "test": 120, "val": 40}
    assert table["product"].nunique() == 12
    assert one.prepare(None, tmp_path / "a", num_classes=2) == manifest
    again = read_manifest(one.prepare(None, tmp_path / "b", num_classes=2))
    pd.testing.assert_frame_equal(table.drop(columns="path"), again.drop(columns="path"))
    for name in table["image"][::100]:
        first, second = (np.asarray(Image.open(tmp_path / at / name)) for at in "ab")
        np.testing.assert_array_equal(first, second)
    with pytest.raises(DataError, match="prepared differently"):
        one.prepare(None, tmp_path / "a")
