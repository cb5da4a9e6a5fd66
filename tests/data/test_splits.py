import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recame.data.splits import complete_splits, make_splits
from recame.errors import ConfigError, DataError


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=6),
    st.floats(0.0, 0.45),
    st.floats(0.0, 0.45),
    st.integers(0, 99),
)
def test_each_class_is_represented(counts, val, test, seed):
    labels = pd.Series(np.repeat([f"c{i}" for i in range(len(counts))], counts))
    split = make_splits(labels, val_fraction=val, test_fraction=test, seed=seed)
    table = pd.crosstab(labels, split).reindex(columns=["train", "val", "test"], fill_value=0)
    assert (table["train"] >= 1).all()
    for name, fraction in (("val", val), ("test", test)):
        if fraction == 0:
            assert table[name].sum() == 0
            continue
        for i, count in enumerate(counts):
            held = table.loc[f"c{i}", name]
            assert held == 0 if count < 3 else held >= 1
            assert held <= max(1, count * fraction + 0.5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_group_straddles_and_no_class_leaves_train(data):
    num = data.draw(st.integers(12, 80))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    labels = pd.Series(rng.choice(["a", "b", "c", "d"], num, p=[0.7, 0.2, 0.07, 0.03]))
    groups = pd.Series(rng.integers(0, data.draw(st.integers(4, 15)), num), name="board")
    try:
        split = make_splits(labels, val_fraction=0.2, test_fraction=0.2, groups=groups, seed=seed)
    except DataError:
        # Refused only if some class has too few boards to spare one.
        assert pd.crosstab(labels, groups).astype(bool).sum(axis=1).min() < 3
        return
    assert len(pd.DataFrame({"g": groups, "s": split}).drop_duplicates()) == groups.nunique()
    assert set(labels[split == "train"]) == set(labels)
    assert {"val", "test"} <= set(split)
    shuffled = rng.permutation(num)
    again = make_splits(
        labels.iloc[shuffled],
        val_fraction=0.2,
        test_fraction=0.2,
        groups=groups.iloc[shuffled],
        seed=seed,
    )
    pd.testing.assert_series_equal(again.sort_index(), split)


def test_groups_keep_the_fractions_and_every_class():
    rng = np.random.default_rng(0)
    groups = pd.Series(np.repeat(np.arange(100), 20), name="board")
    labels = pd.Series(rng.choice(["a", "b", "c"], 2000, p=[0.9, 0.09, 0.01]))
    split = make_splits(labels, val_fraction=0.15, test_fraction=0.15, groups=groups, seed=1)
    shares = split.value_counts(normalize=True)
    assert abs(shares["val"] - 0.15) < 0.03
    assert abs(shares["test"] - 0.15) < 0.03
    assert (pd.crosstab(labels, split) > 0).all(axis=None)


def test_a_fraction_of_zero_gets_no_group():
    labels = pd.Series(["a", "b"] * 20)
    groups = pd.Series(np.arange(40) // 4, name="lot")
    split = make_splits(labels, val_fraction=0.2, test_fraction=0.0, groups=groups, seed=0)
    assert split.value_counts().to_dict() == {"train": 32, "val": 8}


def test_same_seed_same_split_other_seed_other_split():
    labels = pd.Series(["a", "b"] * 50)
    first, again, other = (
        make_splits(labels, val_fraction=0.2, test_fraction=0.2, seed=seed) for seed in (3, 3, 4)
    )
    assert first.equals(again)
    assert not first.equals(other)
    assert first.value_counts().to_dict() == {"train": 60, "val": 20, "test": 20}


def test_impossible_splits():
    labels = pd.Series(["a", "a", "b", "b"])
    with pytest.raises(ConfigError, match="less than 1"):
        make_splits(labels, val_fraction=0.5, test_fraction=0.5, seed=0)
    two = pd.Series([1, 1, 2, 2], name="lot")
    with pytest.raises(DataError, match="'lot' has 2 groups"):
        make_splits(labels, val_fraction=0.2, test_fraction=0.2, groups=two, seed=0)
    missing = pd.Series([1, None, 2, 3], name="lot")
    with pytest.raises(DataError, match="1 image has no 'lot'"):
        make_splits(labels, val_fraction=0.2, test_fraction=0.2, groups=missing, seed=0)
    own = pd.Series(["x", "y", "z"], name="product")
    with pytest.raises(DataError, match=r"'product' leaves no group.*'c0', in 1 of 3"):
        make_splits(
            pd.Series(["c0", "c1", "c2"]), val_fraction=0.2, test_fraction=0.2, groups=own, seed=0
        )


def manifest(split=None, num=40):
    table = pd.DataFrame(
        {
            "image": [f"{i:03d}.png" for i in range(num)],
            "label": ["ok", "crack"] * (num // 2),
            "board": np.arange(num) // 4,
        }
    )
    return table if split is None else table.assign(split=split)


def complete(table, group_by=None, val=0.2, test=0.2):
    return complete_splits(table, val_fraction=val, test_fraction=test, group_by=group_by, seed=0)


def test_complete_splits_does_not_depend_on_the_order_of_rows():
    table = manifest()
    done = complete(table)
    assert done["split"].value_counts().to_dict() == {"train": 24, "val": 8, "test": 8}
    again = complete(table.sample(frac=1, random_state=1))
    by_image = [t.set_index("image")["split"].sort_index() for t in (done, again)]
    assert by_image[0].equals(by_image[1])


def test_val_is_carved_out_of_train_only():
    given_split = ["train"] * 28 + ["test"] * 8 + ["new_product_query"] * 4
    done = complete(manifest(given_split), group_by="board")
    changed = done["split"] != given_split
    assert set(done.loc[changed, "split"]) == {"val"}
    assert (done.index[changed] < 28).all()
    assert len(done[["board", "split"]].drop_duplicates()) == done["board"].nunique()
    assert (done["split"] == "new_product_query").sum() == 4


def test_given_splits_stay_and_no_test_is_made_up():
    given_split = ["train"] * 30 + ["val"] * 10
    assert complete(manifest(given_split))["split"].tolist() == given_split
    assert set(complete(manifest(["train"] * 40))["split"]) == {"train", "val"}
    with pytest.warns(UserWarning, match="1 value of 'board'"):
        complete(manifest(given_split), group_by="board")


def test_complete_splits_errors():
    with pytest.raises(DataError, match="No image is in the split 'train', only in test"):
        complete(manifest("test"))
    with pytest.raises(DataError, match=r"no column 'lot'.*image, label, board"):
        complete(manifest(), group_by="lot")


def test_images_without_a_label_are_spread_as_a_class_is():
    names = [f"{i:03d}.png" for i in range(40)]
    bare = pd.DataFrame({"image": names})
    asked = {"val_fraction": 0.2, "test_fraction": 0.1, "group_by": None, "seed": 0}
    counts = complete_splits(bare, **asked)["split"].value_counts()
    assert counts.to_dict() == {"train": 28, "val": 8, "test": 4}
    some = bare.assign(label=["ok"] * 10 + [None] * 30)
    split = complete_splits(some, **asked)["split"]
    assert split[10:].value_counts().to_dict() == {"train": 21, "val": 6, "test": 3}
    assert split[:10].value_counts().to_dict() == {"train": 7, "val": 2, "test": 1}
