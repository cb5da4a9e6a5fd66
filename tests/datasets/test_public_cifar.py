"""Long-tailed CIFAR from small files in the format of the published ones."""

import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recame.data.manifest import read_manifest
from recame.datasets.public.cifar import _EDITIONS, long_tailed_rows, prepare, prepare_jpeg
from recame.datasets.registry import PUBLIC_SETS
from recame.errors import ConfigError, DataError

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def published_choice(target, imbalance):
    """The published rule, in numpy's global legacy generator as there."""
    np.random.seed(0)  # noqa: NPY002 - as published
    classes = np.unique(target)
    kept = []
    for c in classes:
        share = (1 / imbalance) ** (c / (len(classes) - 1.0))
        rows = np.where(target == c)[0]
        np.random.shuffle(rows)  # noqa: NPY002
        kept.append(rows[: int(len(target) / len(classes) * share)])
    return np.concatenate(kept)


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize("imbalance", [10, 50, 100, 200])
def test_the_rows_are_those_of_the_published_code(num_classes, imbalance):
    target = np.random.default_rng(1).permutation(np.repeat(np.arange(num_classes), 500))
    train, val = long_tailed_rows(target, imbalance)
    np.testing.assert_array_equal(train, published_choice(target, imbalance))
    assert len(val) == 0


def test_the_published_sizes():
    ten, hundred = np.repeat(np.arange(10), 5000), np.repeat(np.arange(100), 500)
    assert len(long_tailed_rows(ten, 100)[0]) == 12406
    assert len(long_tailed_rows(ten, 50)[0]) == 13996
    assert len(long_tailed_rows(hundred, 100)[0]) == 10847
    assert np.bincount(hundred[long_tailed_rows(hundred, 100)[0]])[[0, 99]].tolist() == [500, 5]


def test_val_comes_from_rows_that_training_never_used():
    target = np.repeat(np.arange(10), 500)
    published, _ = long_tailed_rows(target, 100)
    train, val = long_tailed_rows(target, 100, val_per_class=20)
    assert np.bincount(target[val]).tolist() == [20] * 10
    assert set(val).isdisjoint(train)
    lost = np.setdiff1d(published, train)
    assert target[lost].tolist() == [0] * 20  # only the class that used all its images
    with pytest.raises(ConfigError, match="val_per_class = 500"):
        long_tailed_rows(target, 100, val_per_class=500)


def make_cifar10(folder):
    """Five batches of 40 and a test batch of 20, keys and arrays as Python 2 left them."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    pixels, target = [], []
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        count = 20 if name == "test_batch" else 40
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [int(n) for n in rng.permutation(np.arange(count) % 10)]
        batch = {b"data": data, b"labels": labels, b"batch_label": b"x", b"filenames": [b"a.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, 2))
        pixels.append(data)
        target.append(labels)
    meta = {b"label_names": [name.encode() for name in TEN], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, 2))
    return np.concatenate(pixels[:5]), np.concatenate(target[:5]), pixels[5], target[5]


def test_cifar10_from_its_python_files(tmp_path):
    train, target, test, test_target = make_cifar10(tmp_path / "raw" / "cifar-10-batches-py")
    out = tmp_path / "out"
    manifest = PUBLIC_SETS["cifar10_lt"].prepare(tmp_path / "raw", out, imbalance=10, verify=False)
    table = read_manifest(manifest)
    counts = table[table["split"] == "train"]["label"].value_counts()
    assert [int(counts[name]) for name in TEN] == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    chosen = table[table["split"] == "train"]
    assert set(chosen["source_row"]) == set(published_choice(target, 10))
    for split, pixels, labels in (("train", train, target), ("test", test, test_target)):
        part = table[table["split"] == split]
        for row in part.itertuples():
            assert row.label == TEN[labels[row.source_row]]
            expected = pixels[row.source_row].reshape(3, 32, 32).transpose(1, 2, 0)
            np.testing.assert_array_equal(np.asarray(Image.open(row.path)), expected)
    assert (table["split"] == "test").sum() == 20
    # Again: at once where it is the same, refused where it is not.
    assert prepare(tmp_path / "raw", out, imbalance=10, verify=False) == manifest
    with pytest.raises(DataError, match=r"imbalance 10\.0 and not 5\.0"):
        prepare(tmp_path / "raw", out, imbalance=5, verify=False)


def test_cifar100_from_its_python_files(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "cifar-100-python"
    raw.mkdir()
    for name, each in (("train", 4), ("test", 1)):
        labels = np.repeat(np.arange(100), each).tolist()
        data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        coarse = [label // 5 for label in labels]
        batch = {"data": data, "fine_labels": labels, "coarse_labels": coarse}
        (raw / name).write_bytes(pickle.dumps(batch, 2))
    names = [f"class {n}" for n in range(100)]
    (raw / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    table = pd.read_csv(
        prepare(raw, tmp_path / "out", num_classes=100, imbalance=4, val_per_class=1, verify=False)
    )
    sizes = table.groupby("split").size()
    assert sizes.to_dict() == {
        "test": 100,
        "train": len(published_choice(np.repeat(np.arange(100), 4), 4)) - 1,
        "val": 100,
    }
    assert table["label"].nunique() == 100


def test_other_files_are_refused(tmp_path):
    raw = tmp_path / "cifar-10-batches-py"
    make_cifar10(raw)
    with pytest.raises(DataError, match=r"data_batch_1 has MD5 .* published file c99cafc1"):
        prepare(raw, tmp_path / "out")
    (raw / "data_batch_3").write_bytes(pickle.dumps({b"data": 1, b"labels": []}, 2))
    with pytest.raises(DataError, match="data_batch_3 lacks 'data' or 'labels'"):
        prepare(raw, tmp_path / "out", verify=False)
    (raw / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3 of cifar-10-batches-py"):
        prepare(raw, tmp_path / "out", verify=False)
    with pytest.raises(ConfigError, match="num_classes = 20"):
        prepare(raw, tmp_path / "out", num_classes=20)
    with pytest.raises(DataError, match="the set 'cifar10_lt_jpeg'"):
        prepare(tmp_path, tmp_path / "out", num_classes=100)
    assert not (tmp_path / "out").exists()


def test_the_checksums_are_torchvisions():
    from torchvision.datasets import CIFAR10, CIFAR100

    for edition, theirs in ((_EDITIONS[10], CIFAR10), (_EDITIONS[100], CIFAR100)):
        assert edition.folder == theirs.base_folder
        assert list(edition.train.items()) == [tuple(pair) for pair in theirs.train_list]
        assert list(edition.test.items()) == [tuple(pair) for pair in theirs.test_list]
        assert edition.meta == {theirs.meta["filename"]: theirs.meta["md5"]}
        assert edition.names == theirs.meta["key"]


@pytest.fixture
def jpegs(tmp_path):
    folder = tmp_path / "copy"
    for split, counts in (("train", {"cat": 8, "dog": 3}), ("test", {"cat": 2, "dog": 2})):
        for label, count in counts.items():
            (folder / split / label).mkdir(parents=True)
            for n in range(count):
                image = Image.fromarray(np.full((32, 32, 3), 10 * n, np.uint8))
                image.save(folder / split / label / f"{n:04d}.jpg")
    path = tmp_path / "copy.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.jpg")):
            archive.write(file, file.relative_to(folder).as_posix())
        archive.writestr("../../escape/dog/0.jpg", b"x")
        archive.writestr("README.txt", b"x")
    return folder, path


def test_a_zip_of_jpegs_is_extracted_byte_by_byte(tmp_path, jpegs):
    folder, path = jpegs
    table = read_manifest(prepare_jpeg(path, tmp_path / "out"))
    assert table.groupby(["split", "label"]).size().to_dict() == {
        ("test", "cat"): 2,
        ("test", "dog"): 2,
        ("train", "cat"): 8,
        ("train", "dog"): 3,
    }
    for image in table["image"]:
        original = folder / image.removeprefix("images/")
        assert (tmp_path / "out" / image).read_bytes() == original.read_bytes()
    assert not list(tmp_path.rglob("escape"))


def test_a_folder_of_jpegs_is_used_where_it_lies(tmp_path, jpegs):
    folder, path = jpegs
    table = read_manifest(prepare_jpeg(folder, tmp_path / "out", val_per_class=2))
    assert table["split"].value_counts().to_dict() == {"train": 7, "val": 4, "test": 4}
    assert table["path"].str.startswith(str(folder)).all()
    zipped = read_manifest(prepare_jpeg(path, tmp_path / "zipped", val_per_class=2))
    assert zipped["split"].tolist() == table["split"].tolist()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.csv", "prepared.json"]
    with pytest.raises(ConfigError, match="val_per_class = 3 with 3 training images"):
        prepare_jpeg(folder, tmp_path / "other", val_per_class=3)
    with pytest.raises(DataError, match=r"holds no images as train/<class>/NAME\.jpg"):
        prepare_jpeg(tmp_path / "missing", tmp_path / "other")
    (tmp_path / "bad.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="no readable zip file"):
        prepare_jpeg(tmp_path / "bad.zip", tmp_path / "other")
