import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from recame.config import DataConfig
from recame.contracts import PreprocessSpec
from recame.data.audit import audit_manifest
from recame.data.dataset import load_inspection_set, make_loader
from recame.data.manifest import read_manifest
from recame.data.samplers import EpochBatches
from recame.data.splits import complete_splits, make_splits
from recame.data.transforms import to_unit
from recame.errors import DataError
from recame.label_space import LabelSpace


def make_set(folder, counts, split=None, value=None):
    rows = []
    for label, count in counts.items():
        for number in range(count):
            name = f"{label}_{number}.png"
            pixels = np.full((16, 16), len(rows) if value is None else value, np.uint8)
            Image.fromarray(pixels).save(folder / name)
            rows.append({"image": name, "label": label, "board": number})
    table = pd.DataFrame(rows)
    if split is not None:
        table["split"] = split
    table.to_csv(folder / "m.csv", index=False)
    return folder / "m.csv"


@pytest.fixture
def config(tmp_path):
    return DataConfig(cache_dir=tmp_path / "cache", normal_class="ok", max_broken_fraction=0.1)


def test_load_splits_decodes_and_counts(tmp_path, config):
    source = make_set(tmp_path, {"ok": 20, "crack": 10})
    (tmp_path / "ok_3.png").write_bytes(b"")
    loaded = load_inspection_set(source, config, seed=0)
    assert loaded.splits == ("train", "val", "test")
    assert len(loaded.table) == 29
    assert [b.reason for b in loaded.cache.broken] == ["empty file (0 bytes)"]
    assert loaded.label_space.names == ("ok", "crack")
    assert loaded.label_space.normal == "ok"
    assert loaded.native_size == (16, 16)
    assert loaded.spec.channels == 1
    train = loaded.view("train")
    assert tuple(train.counts(2)) == loaded.label_space.counts
    assert loaded.table["label"][loaded.table["target"] == 1].unique().tolist() == ["crack"]
    # Each image was painted with its row number.
    painted = loaded.cache.images[loaded.table["row"], 0, 0, 0]
    names = [int(name.split("_")[1][:-4]) for name in loaded.table["image"]]
    offset = np.where(loaded.table["label"] == "crack", 20, 0)
    np.testing.assert_array_equal(painted, names + offset)
    with pytest.raises(DataError, match=r"split 'query'; the splits are train, val, test"):
        loaded.view("query")


def test_fingerprint_follows_labels_and_pixels(tmp_path, config):
    source = make_set(tmp_path, {"ok": 6, "crack": 6})
    first = load_inspection_set(source, config, seed=0).fingerprint
    assert load_inspection_set(source, config, seed=0).fingerprint == first
    text = source.read_text()
    source.write_text(text.replace("ok_1.png,ok", "ok_1.png,crack"))
    assert load_inspection_set(source, config, seed=0).fingerprint != first
    source.write_text(text)
    Image.fromarray(np.full((16, 16), 200, np.uint8)).save(tmp_path / "ok_2.png")
    assert load_inspection_set(source, config, seed=0).fingerprint != first


def test_batches_carry_pixels_targets_and_rows(tmp_path, config):
    loaded = load_inspection_set(make_set(tmp_path, {"ok": 20, "crack": 10}), config, seed=0)
    view = loaded.view("train")
    sampler = EpochBatches(view.targets, kind="instance", batch_size=6, seed=0)
    seen = []
    for batch in make_loader(view, loaded.cache, sampler):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (1, 16, 16)
        rows = loaded.table.iloc[batch.index.numpy()]
        np.testing.assert_array_equal(rows["target"], batch.target)
        expected = loaded.cache.images[rows["row"]][..., 0]
        np.testing.assert_array_equal(batch.images[:, 0], expected)
        seen += batch.index.tolist()
    assert sorted(seen) == view.indices.tolist()
    in_order = [i for batch in make_loader(view, loaded.cache, 8) for i in batch.index.tolist()]
    assert in_order == view.indices.tolist()


def test_16_bit_batches_and_unit_range(tmp_path, config):
    source = make_set(tmp_path, {"ok": 4, "crack": 4})
    for number, path in enumerate(sorted(tmp_path.glob("*.png"))):
        Image.fromarray(np.full((16, 16), 500 * number, np.uint16)).save(path)
    loaded = load_inspection_set(source, config, seed=0)
    assert (loaded.spec.bit_depth, loaded.spec.scale) == (16, 4095.0)
    (batch,) = make_loader(loaded.view("train"), loaded.cache, 64)
    assert batch.images.dtype == torch.int32
    unit = to_unit(batch.images, 1000.0)
    assert unit.dtype == torch.float32
    assert unit.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(unit, (batch.images.float() / 1000).clamp(max=1.0))
    assert unit.max() == 1.0


def test_too_many_broken_files(tmp_path, config):
    source = make_set(tmp_path, {"ok": 20, "crack": 10})
    for number in range(6):
        (tmp_path / f"ok_{number}.png").write_bytes(b"")
    message = r"6 of 30 images cannot be read \(.*ok_0.png: empty.*; \.\.\.\).*max_broken_fraction"
    with pytest.raises(DataError, match=message):
        load_inspection_set(source, config, seed=0)
    allowed = config.model_copy(update={"max_broken_fraction": 0.5})
    assert len(load_inspection_set(source, allowed, seed=0).table) == 24


def test_a_class_must_not_vanish(tmp_path, config):
    source = make_set(tmp_path, {"ok": 20, "crack": 1})
    (tmp_path / "crack_0.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"training image of 'crack' is unreadable") as refused:
        load_inspection_set(source, config, seed=0)
    told = str(refused.value)
    assert f"({tmp_path / 'crack_0.png'}: not an image" in told
    assert told.endswith("Repair or replace this file, or leave out the class.")


def breaks(folder, names):
    for name in names:
        (folder / name).write_text(f"no image, {name}")


def test_a_class_keeps_a_training_image_if_one_can_be_read(tmp_path, config):
    source = make_set(tmp_path, {"ok": 40, "crack": 4})
    drawn = load_inspection_set(source, config, seed=0).table.set_index("image")["split"]
    crack = drawn.filter(like="crack")
    breaks(tmp_path, crack.index[crack == "train"])
    with pytest.warns(UserWarning, match=r"of 'crack' is unreadable .* moves from val to train"):
        loaded = load_inspection_set(source, config, seed=0)
    after = loaded.table.set_index("image")["split"]
    assert after.filter(like="crack").tolist().count("train") == 1
    assert after.filter(like="ok").equals(drawn.filter(like="ok"))
    assert loaded.label_space.counts[loaded.label_space.names.index("crack")] == 1


@pytest.mark.parametrize("how", ["given", "grouped"])
def test_a_class_is_not_moved_out_of_given_splits_and_groups(tmp_path, config, how):
    split = ["train"] * 16 + ["val"] * 2 + ["test"] * 2 + ["train", "val", "test"]
    source = make_set(tmp_path, {"ok": 20, "crack": 3}, split if how == "given" else None)
    if how == "grouped":
        config = config.model_copy(update={"group_by": "board"})
        split = load_inspection_set(source, config, seed=0).table.set_index("image")["split"]
        crack = split.filter(like="crack")
        broken = crack.index[crack == "train"].tolist()
    else:
        broken = ["crack_0.png"]
    breaks(tmp_path, broken)
    told = r"Repair or replace (this file|these files), or move readable .* train, from \w+ \(\d\)"
    with pytest.raises(DataError, match=told):
        load_inspection_set(source, config, seed=0)


def test_labels_that_training_never_saw(tmp_path, config):
    split = ["train"] * 8 + ["test"] * 2
    source = make_set(tmp_path, {"ok": 4, "crack": 4, "burr": 2}, split)
    with pytest.raises(DataError, match=r"never sees 'burr' \(2 images\), .* split test"):
        load_inspection_set(source, config, seed=0)
    space = LabelSpace(("ok", "crack"), (4, 4))
    with pytest.raises(DataError, match=r"model was not trained on 'burr' \(2 images\)"):
        load_inspection_set(source, config, seed=0, label_space=space)


def test_a_trained_model_s_space_and_spec_are_kept(tmp_path, config):
    source = make_set(tmp_path, {"crack": 5})
    space = LabelSpace(("ok", "dent", "crack"), (90, 9, 3))
    spec = PreprocessSpec(4, 4, 3, 8, 255.0, (0.5,) * 3, (0.5,) * 3)
    loaded = load_inspection_set(
        source, config, seed=0, spec=spec, label_space=space, split_if_absent="test"
    )
    assert loaded.splits == ("test",)
    assert loaded.label_space is space
    assert loaded.table["target"].tolist() == [2] * 5
    assert loaded.cache.images.shape == (5, 4, 4, 3)
    assert loaded.native_size == (16, 16)
    assert loaded.view("test").counts(3).tolist() == [0, 0, 5]


@pytest.mark.parametrize("numbered", ["from 0", "otherwise"])
@pytest.mark.parametrize("with_splits", [False, True])
def test_a_caller_s_table_stays_as_it_was(tmp_path, config, with_splits, numbered):
    table = read_manifest(make_set(tmp_path, {"ok": 20, "crack": 10}))
    (tmp_path / "ok_3.png").write_bytes(b"")  # dropped from the set, not from the table
    if with_splits:
        table["split"] = ["train", "test"] * 15
    if numbered == "otherwise":
        table.index = table.index[::-1] + 7
    table["board"] = table["board"].astype("category")
    before = table.copy(deep=True)
    space = LabelSpace(("ok", "crack"), (4, 4))
    asked = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}
    for label_space in (None, space):
        for split in (None, "train", "night"):
            if split != "night" or label_space is not None or with_splits:
                load_inspection_set(
                    table, config, seed=0, label_space=label_space, split_if_absent=split
                )
    grouped = config.model_copy(update={"group_by": "board"})
    load_inspection_set(table.drop(columns="split", errors="ignore"), grouped, seed=0)
    complete_splits(table, group_by="board", **asked)
    make_splits(table["label"], groups=table["board"], **asked)
    audit_manifest(table, product_column="board", group_by="board")
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize("labels", ["optional", "ignored"])
def test_a_set_without_labels_is_a_set(tmp_path, config, labels):
    source = make_set(tmp_path, {"ok": 20, "crack": 10})
    table = pd.read_csv(source).drop(columns="label")
    table.to_csv(source, index=False)
    (tmp_path / "ok_3.png").write_bytes(b"")
    flat = tmp_path / "flat"
    flat.mkdir()
    make_set(flat, {"ok": 20, "crack": 10})
    for described in (source, flat, read_manifest(source, labels=labels)):
        loaded = load_inspection_set(described, config, seed=0, labels=labels)
        assert "label" not in loaded.table
        assert loaded.splits == ("train", "val", "test")
        assert loaded.classes is None
        assert set(loaded.table["target"]) == {-1}
        view = loaded.view("train")
        assert view.counts(2).tolist() == [0, 0]
        sampler = EpochBatches(view.targets, kind="instance", batch_size=6, seed=0)
        batches = list(make_loader(view, loaded.cache, sampler))
        assert {target for batch in batches for target in batch.target.tolist()} == {-1}
        drawn = sorted(i for batch in batches for i in batch.index.tolist())
        assert drawn == view.indices.tolist()
        assert len(loaded.fingerprint) == 32
        with pytest.raises(DataError, match=r"None of \d+ images has a label.*a folder for"):
            _ = loaded.label_space
    with pytest.raises(DataError, match="no column 'label'"):
        load_inspection_set(source, config, seed=0)
    with pytest.raises(DataError, match="no class folders"):
        load_inspection_set(flat, config, seed=0)
    with pytest.raises(DataError, match=r"30 of 30 images have no label.*Add a column 'label'"):
        load_inspection_set(read_manifest(source, labels=labels), config, seed=0)


def test_labels_of_some_images_are_kept(tmp_path, config):
    source = make_set(tmp_path, {"ok": 20, "crack": 10, "burr": 2}, ["train"] * 30 + ["val"] * 2)
    table = read_manifest(source)
    fingerprint = load_inspection_set(table[:30], config, seed=0).fingerprint
    assert load_inspection_set(table[:30], config, seed=0, labels="optional").fingerprint == (
        fingerprint
    )
    table.loc[::2, "label"] = None
    before = table.copy()
    loaded = load_inspection_set(table, config, seed=0, labels="optional")
    assert loaded.label_space.names == ("ok", "crack", "burr")
    assert loaded.label_space.counts == (10, 5, 0)  # train shows no burr, and it is a class
    assert (loaded.table["target"] == -1).tolist() == [True, False] * 16
    assert loaded.view("val").targets.tolist() == [-1, 2]
    with pytest.raises(DataError, match=r"16 of 32 images have no label"):
        load_inspection_set(table, config, seed=0)
    space = LabelSpace(("burr", "crack", "ok"), (4, 4, 4))
    loaded = load_inspection_set(table, config, seed=0, label_space=space, labels="optional")
    assert loaded.label_space is space
    assert loaded.view("val").targets.tolist() == [-1, 0]
    two = LabelSpace(("ok", "crack"), (4, 4))
    with pytest.raises(DataError, match=r"model was not trained on 'burr' \(1 image\)"):
        load_inspection_set(table, config, seed=0, label_space=two, labels="optional")
    ignored = load_inspection_set(table, config, seed=0, label_space=space, labels="ignored")
    assert set(ignored.table["target"]) == {-1}
    pd.testing.assert_frame_equal(table, before)


def test_a_class_that_val_lacks_is_named(tmp_path, config):
    split = (["train"] * 4 + ["val"]) * 4 + ["train"] * 2
    source = make_set(tmp_path, {"ok": 10, "crack": 10, "hole": 2}, split)
    with pytest.warns(UserWarning, match=r"val has no image of 'hole' \(2\) \(training images"):
        loaded = load_inspection_set(source, config, seed=0)
    # Whoever judges with a model that is there chooses nothing.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space = loaded.label_space
        load_inspection_set(source, config, seed=0, spec=loaded.spec, label_space=space)
