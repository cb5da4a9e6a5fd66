from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from recame.data.manifest import read_manifest
from recame.datasets.generated import (
    CLASSES,
    SyntheticSpec,
    generate,
    is_head,
    plan,
    render,
    train_counts,
    windows,
    write,
)
from recame.errors import ConfigError, DataError

DIRTY = {"exact_duplicates": 0.05, "near_duplicates": 0.1, "leaks": 0.2, "label_noise": 0.1}


def digest(pixels: np.ndarray) -> str:
    little = pixels.astype(pixels.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "6e101e2d3b63f95f"),
        (
            {"bit_depth": 16, "colour": True, "size": 40, "num_products": 30, **DIRTY},
            "720c4ca76a313969",
        ),
    ],
    ids=["grey", "colour"],
)
def test_the_same_seed_gives_the_same_bytes_everywhere(settings, expected):
    pixels, _ = generate(SyntheticSpec(num_images=300, seed=7, **settings))
    assert digest(pixels) == expected


def test_the_plan_is_the_same_everywhere():
    text = plan(SyntheticSpec(num_images=500, seed=7, **DIRTY)).to_csv(index=False)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "106a5a656bdc24d4"


def test_another_seed_gives_other_images_of_the_same_products():
    one, table = generate(SyntheticSpec(num_images=300, seed=1))
    other = render(table, SyntheticSpec(num_images=300, seed=2))
    assert not (one == other).all((1, 2)).any()
    # A product's mean grey is its own, whatever the seed.
    means = [pd.Series(x.mean((1, 2))).groupby(table["product"]).mean() for x in (one, other)]
    assert (means[0] - means[1]).abs().max() < 20 < means[0].max() - means[0].min()


def test_any_rows_give_the_pixels_of_the_whole():
    spec = SyntheticSpec(num_images=400, size=32, **DIRTY)
    pixels, table = generate(spec)
    some = table.sample(37, random_state=0)
    np.testing.assert_array_equal(render(some, spec), pixels[some.index])
    np.testing.assert_array_equal(render(table.iloc[5:6], spec)[0], pixels[5])
    assert render(table.iloc[:0], spec).shape == (0, 32, 32)


def test_a_manifest_alone_cannot_be_drawn():
    spec = SyntheticSpec(num_images=100)
    with pytest.raises(DataError, match="without cluster, true_label"):
        render(plan(spec).drop(columns=["true_label", "cluster"]), spec)


def test_progress_ends_at_the_whole():
    seen = []
    generate(SyntheticSpec(num_images=300, size=32), lambda _, n, of: seen.append((n, of)))
    assert seen[-1] == (300, 300)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_train_has_the_long_tail_and_the_rest_is_balanced():
    spec = SyntheticSpec()
    counts = train_counts(spec)
    assert counts.sum() == spec.num_train == 8000 - 14 * (28 + 85)
    assert counts[0] / counts[-1] == pytest.approx(1000, rel=0.2)
    assert (np.diff(counts) < 0).all()
    sizes = plan(spec).groupby(["split", "label"]).size()
    assert sizes["train"][list(spec.classes)].tolist() == counts.tolist()
    assert set(sizes["val"]) == {28}
    assert set(sizes["test"]) == {85}


def test_head_classes_are_many_in_few_and_tail_classes_few_in_many():
    spec = SyntheticSpec(clusters_per_class=4, tail_products=9)
    train = plan(spec).query("split == 'train'")
    for name, count, head in zip(spec.classes, train_counts(spec), is_head(spec), strict=True):
        rows = train[train["label"] == name]
        clusters = rows["cluster"].value_counts()
        if head:
            assert len(clusters) == 4
            assert clusters.max() - clusters.min() <= 1
            assert clusters.min() >= 10
        else:
            assert rows["product"].nunique() == min(count, 9)
            assert rows["product"].value_counts().max() <= -(-count // 9)
    assert is_head(spec).sum() == 8


def test_held_out_images_are_of_known_clusters_and_one_in_five_of_others():
    spec = SyntheticSpec(test_per_class=80)
    table = plan(spec)
    train = set(table.loc[table["split"] == "train", "cluster"])
    test = table[table["split"] == "test"]
    known = test["cluster"].isin(train).groupby(test["label"]).mean()
    np.testing.assert_allclose(known, 4 / 5)


@pytest.mark.parametrize("unseen", [0.0, 0.5, 1.0])
def test_so_many_held_out_images_are_of_other_clusters_as_asked(unseen):
    table = plan(SyntheticSpec(test_per_class=40, unseen=unseen, clusters_per_class=12))
    train = set(table.loc[table["split"] == "train", "cluster"])
    test = table[table["split"] == "test"]
    known = test["cluster"].isin(train).groupby(test["label"]).mean()
    np.testing.assert_allclose(known, 1 - unseen)


def test_clusters_are_filled_unevenly_where_that_is_asked():
    spec = SyntheticSpec(clusters_per_class=12, cluster_skew=1.0)
    train = plan(spec).query("split == 'train'")
    normal = train[train["label"] == "normal"]["cluster"].value_counts()
    share = 1 / np.arange(1, 13) / (1 / np.arange(1, 13)).sum()
    np.testing.assert_allclose(normal / normal.sum(), share, atol=0.004)
    smallest = train_counts(spec)[is_head(spec)].min()
    name = spec.classes[is_head(spec).sum() - 1]
    head = train[train["label"] == name]["cluster"].value_counts()
    assert (len(head), head.sum()) == (12, smallest)
    assert head.min() >= 1
    assert plan(SyntheticSpec(cluster_skew=0.0)).equals(plan(SyntheticSpec()))


def test_the_seed_may_decide_which_defects_are_rare():
    orders = {SyntheticSpec(permuted=True, seed=seed).classes for seed in range(6)}
    assert len(orders) == 6
    usual = SyntheticSpec().classes
    assert all(order[0] == "normal" and set(order) == set(usual) for order in orders)
    spec = SyntheticSpec(permuted=True, seed=3)
    sizes = plan(spec).query("split == 'train'")["label"].value_counts()
    assert sizes[list(spec.classes)].tolist() == train_counts(spec).tolist()
    named = SyntheticSpec(num_classes=3, defects=("open", "void"), permuted=True).classes
    assert (named[0], set(named[1:])) == ("normal", {"open", "void"})


def test_splits_share_no_board_and_no_lot():
    table = plan(SyntheticSpec(num_images=3000))
    for column in ("board", "lot"):
        assert table.groupby(column)["split"].nunique().max() == 1
        assert table.groupby(column)["product"].nunique().max() == 1
    assert table.groupby("board").size().max() == 12
    assert table["image"].is_unique


def test_label_noise_is_the_share_asked_for_and_keeps_the_truth():
    clean = plan(SyntheticSpec(seed=3))
    noisy = plan(SyntheticSpec(seed=3, label_noise=0.1))
    assert (clean["label"] == clean["true_label"]).all()
    assert (noisy["true_label"] == clean["true_label"]).all()
    wrong = noisy["label"] != noisy["true_label"]
    train = noisy["split"] == "train"
    assert not wrong[~train].any()
    assert wrong[train].mean() == pytest.approx(0.1, abs=1e-3)
    # Frequent classes are written by mistake more often than rare ones.
    written = noisy.loc[wrong, "label"].value_counts()
    assert written["normal"] > 2 * written["void"]


def test_duplicates_show_the_same_scene():
    spec = SyntheticSpec(num_images=1200, size=48, exact_duplicates=0.05, near_duplicates=0.08)
    pixels, table = generate(spec)
    row_of = pd.Series(table.index, index=table["image"])
    train = table["split"] == "train"
    for kind, share in (("exact", 0.05), ("near", 0.08)):
        copies = table.index[table["duplicate_kind"] == kind]
        assert len(copies) == round(share * train.sum())
        originals = row_of[table.loc[copies, "duplicate_of"]].to_numpy()
        assert (table.loc[originals, "duplicate_of"] == "").all()
        for column in ("product", "cluster", "true_label", "board", "lot", "split"):
            assert (table.loc[copies, column].to_numpy() == table.loc[originals, column]).all()
        same = (pixels[copies] == pixels[originals]).all((1, 2))
        assert same.all() if kind == "exact" else not same.any()
        # Moved by less than a pixel, a scene still is closer to itself than to its cluster.
        blurred = [cv2.blur(x.astype(np.float32), (5, 5)).ravel() for x in pixels[copies]]
        against = [cv2.blur(x.astype(np.float32), (5, 5)).ravel() for x in pixels[originals]]
        alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(blurred, against, strict=True)]
        assert np.median(alike) > 0.97
        assert min(alike) > 0.75


def test_leaks_repeat_train_images_on_other_boards():
    table = plan(SyntheticSpec(num_images=4000, leaks=0.1))
    held_out = table[table["split"] != "train"]
    leaks = held_out[held_out["duplicate_of"] != ""]
    assert len(leaks) == round(0.1 * len(held_out))
    originals = table.set_index("image").loc[leaks["duplicate_of"]]
    assert (originals["split"] == "train").all()
    assert (originals["true_label"].to_numpy() == leaks["true_label"]).all()
    assert (originals["board"].to_numpy() != leaks["board"]).all()
    assert (table.loc[table["split"] == "train", "duplicate_of"] == "").all()


@pytest.mark.timeout(60)  # 0.3 s on a free core; a loop over images and products takes minutes
def test_a_large_plan():
    table = plan(SyntheticSpec(num_images=100_000, num_products=300, **DIRTY))
    assert len(table) == 100_000
    assert table["image"].iloc[-1].endswith("/099999.png")


@pytest.mark.parametrize(
    ("settings", "shape", "dtype"),
    [
        ({"num_images": 40, "num_classes": 2, "num_products": 1}, (40, 64, 64), np.uint8),
        ({"num_images": 14, "val_per_class": 0, "test_per_class": 0}, (14, 64, 64), np.uint8),
        ({"num_images": 60, "size": 256, "imbalance": 1}, (60, 256, 256), np.uint8),
        ({"num_images": 60, "size": 33, "colour": True}, (60, 33, 33, 3), np.uint8),
        ({"num_images": 60, "num_products": 100, "bit_depth": 16}, (60, 64, 64), np.uint16),
    ],
)
def test_unusual_sets(settings, shape, dtype):
    pixels, table = generate(SyntheticSpec(**settings))
    assert pixels.shape == shape
    assert pixels.dtype == dtype
    assert len(table) == shape[0]
    assert table["label"].nunique() == settings.get("num_classes", len(CLASSES))
    assert pixels.reshape(shape[0], -1).std(1).min() > 0.02 * np.iinfo(dtype).max


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_images": 20}, "num_images = 20 leaves 0 for training"),
        ({"num_images": 10, "val_per_class": 0, "test_per_class": 0}, "every class needs one"),
        ({"size": 8}, "size = 8 is out of range: choose 32 to 256"),
        ({"imbalance": 0.5}, "imbalance = 0.5"),
        ({"num_classes": 15}, "num_classes = 15"),
        ({"num_classes": 31, "fine": True}, "num_classes = 31"),
        ({"num_classes": 2, "fine": True, "defects": ("open",)}, "choose from particle_dark"),
        ({"num_classes": 1}, "num_classes = 1"),
        ({"num_products": 0}, "num_products = 0"),
        ({"clusters_per_class": 37}, "clusters_per_class = 37"),
        ({"num_images": 100, "num_products": 100, "clusters_per_class": 200}, "clusters empty"),
        ({"tail_products": 13}, "tail_products = 13"),
        ({"label_noise": 1.5}, "label_noise = 1.5"),
        ({"near_duplicates": 0.9}, "near_duplicates = 0.9"),
        ({"bit_depth": 12}, "bit_depth = 12"),
        ({"test_per_class": -1}, "test_per_class"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_impossible_sets_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SyntheticSpec(**settings)


def test_a_written_set_is_like_any_users(tmp_path: Path):
    spec = SyntheticSpec(num_images=120, num_products=3, size=32, colour=True, label_noise=0.2)
    manifest = write(spec, tmp_path / "set")
    pixels, table = generate(spec)
    read = read_manifest(manifest)
    assert read["label"].tolist() == table["label"].tolist()
    assert set(read) == {"image", "path", "label", "split", "product", "board", "lot"}
    files = [cv2.imread(path, cv2.IMREAD_UNCHANGED)[..., ::-1] for path in read["path"]]
    np.testing.assert_array_equal(files, pixels)
    truth = pd.read_csv(tmp_path / "set" / "truth.csv", keep_default_na=False)
    for column in ("image", "true_label", "cluster", "duplicate_of", "duplicate_kind"):
        assert truth[column].tolist() == table[column].tolist()
    assert (tmp_path / "set" / "spec.json").read_text().count('"seed": 0') == 1
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_sixteen_bits_survive_the_file(tmp_path: Path):
    spec = SyntheticSpec(num_images=60, num_products=2, size=32, bit_depth=16)
    (tmp_path / "set").mkdir()
    path = read_manifest(write(spec, tmp_path / "set"))["path"][3]
    np.testing.assert_array_equal(cv2.imread(path, cv2.IMREAD_UNCHANGED), generate(spec)[0][3])


def test_nothing_is_replaced_and_nothing_half_written(tmp_path: Path):
    spec = SyntheticSpec(num_images=60, size=32)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="not an empty folder"):
        write(spec, tmp_path / "old")

    def stop(_: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(spec, tmp_path / "new", stop)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write(spec, tmp_path / "file" / "set")


LARGE = SyntheticSpec(
    num_images=40,
    num_classes=3,
    num_products=2,
    size=48,
    canvas=(100, 160),
    defects=("particle", "bridge"),
    val_per_class=2,
    test_per_class=2,
)


def test_a_defect_lies_in_its_window_of_a_larger_image():
    table = plan(LARGE)
    images = render(table, LARGE)
    assert images.shape == (40, 100, 160)
    place = windows(table, LARGE)
    spoilt = table[table["label"] != "normal"]
    assert set(spoilt["label"]) == {"particle", "bridge"}
    sound = render(spoilt.assign(true_label="normal"), LARGE)
    corners = set()
    for row, clean in zip(spoilt.index, sound, strict=True):
        top, left = int(place["y"][row]), int(place["x"][row])
        changed = np.argwhere(images[row] != clean)
        assert len(changed) > 10
        assert (changed >= (top, left)).all()
        assert (changed < (top + 48, left + 48)).all()
        corners.add((top, left))
    assert len(corners) > 8


def test_a_larger_image_goes_on_where_its_window_ends():
    """What a window shows is what the image shows there: no seam tells where a defect may be."""
    table = plan(LARGE)
    images, place = render(table, LARGE).astype(np.float64), windows(table, LARGE)
    inner, outer = [], []
    for row, image in enumerate(images):
        steps = np.abs(np.diff(image, axis=1))
        edges = [int(place["x"][row]) - 1, int(place["x"][row]) + 47]
        inner += [steps[:, edge].mean() for edge in edges if 0 <= edge < steps.shape[1]]
        outer.append(steps.mean())
    assert np.mean(inner) < 1.15 * np.mean(outer)


def test_large_sets_tell_where_their_defects_are(tmp_path):
    manifest = write(LARGE, tmp_path / "set")
    truth = pd.read_csv(manifest.parent / "truth.csv")
    assert list(truth.columns[-4:]) == ["x", "y", "width", "height"]
    assert (truth["width"] == 48).all()
    assert not {"x", "y"} & set(pd.read_csv(manifest).columns)
    assert digest(render(plan(LARGE).iloc[:4], LARGE)) == "d8fac283750ce41e"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"canvas": (40, 160)}, r"canvas = \(40, 160\)"),
        ({"canvas": (100, 9000)}, "8192"),
        ({"defects": ("particle",)}, "does not name 2 different known defects"),
        ({"defects": ("particle", "normal")}, "does not name 2"),
        ({"defects": ("particle", "dust")}, "choose from particle"),
    ],
)
def test_a_large_set_that_cannot_be_is_refused(wrong, told):
    with pytest.raises(ConfigError, match=told):
        replace(LARGE, **wrong)
