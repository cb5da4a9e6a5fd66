from __future__ import annotations

import csv
import errno

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from recame.contracts import Predictions
from recame.errors import ConfigError, DataError
from recame.label_space import LabelSpace
from recame.metrics.evaluation import evaluate_predictions
from recame.runs import prediction_columns
from recame.runs.predictions import load_predictions, predictions_table, save_predictions

SPACE = LabelSpace(("ok", "NA", "a_p_b"), (9, 5, 2))
NAMES = SPACE.names


@pytest.fixture
def some():
    rng = np.random.default_rng(0)
    experts = rng.dirichlet(np.ones(3), (4, 2)).astype(np.float32)
    table = pd.DataFrame(
        {
            "product": ["007", "P,1", None, "x"],
            "image": ["a.png", "ü b.png", "c.png", "d.png"],
            "path": "/abs",
            "row": 1,
            "target": 0,
            "split": "test",
            "label": ["ok", "NA", None, "a_p_b"],
            "confidence": "mine",
        },
        index=[5, 6, 9, 11],
    )
    return Predictions(table, experts.mean(1), experts, np.array([0, 1, -1, 2]))


def test_columns_and_their_order(some):
    table = predictions_table(some, NAMES)
    assert list(table) == [
        *("image", "path", "prediction", "confidence", "p_ok", "p_NA", "p_a_p_b"),
        *("action", "reason", "note", "candidates", "unknown_score", "sha256", "label", "split"),
        *("product", "manifest_confidence"),
        *("expert0_p_ok", "expert0_p_NA", "expert0_p_a_p_b"),
        *("expert1_p_ok", "expert1_p_NA", "expert1_p_a_p_b"),
    ]
    chosen = some.probabilities.argmax(1)
    assert table["prediction"].tolist() == [SPACE.names[i] for i in chosen]
    np.testing.assert_array_equal(table["confidence"], some.probabilities.max(1))
    np.testing.assert_array_equal(table["expert1_p_NA"], some.expert_probabilities[:, 1, 1])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_round_trip_keeps_every_value(some, suffix, tmp_path):
    path = tmp_path / "new" / f"out{suffix}"
    save_predictions(predictions_table(some, NAMES), path, NAMES)
    saved = load_predictions(path)
    assert saved.classes == NAMES
    got = saved.predictions
    np.testing.assert_array_equal(got.probabilities, some.probabilities)
    np.testing.assert_array_equal(got.expert_probabilities, some.expert_probabilities)
    assert got.target.tolist() == [0, 1, -1, 2]
    assert got.table["image"].tolist() == ["a.png", "ü b.png", "c.png", "d.png"]
    assert got.table["product"].tolist()[:2] == ["007", "P,1"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    before = evaluate_predictions(some, SPACE, bootstrap=50).to_dict()
    assert evaluate_predictions(got, SPACE, bootstrap=50).to_dict() == before


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_names_that_split_rows_or_look_like_formulas(some, suffix, tmp_path):
    names = ["a\rb.png", "=1+1.png", "'-c.png", "d\r\n.png"]
    some.table["image"] = names
    path = tmp_path / f"out{suffix}"
    save_predictions(predictions_table(some, NAMES), path, NAMES)
    assert load_predictions(path).predictions.table["image"].tolist() == names
    if suffix == ".csv":
        with path.open(newline="") as stream:
            found = [row[0] for row in csv.reader(stream)][1:]
        assert found == ["a\rb.png", "'=1+1.png", "''-c.png", "d\r\n.png"]


def test_what_is_no_number_is_no_prediction(some):
    some.probabilities[2] = np.nan
    table = predictions_table(some, NAMES)
    assert table["prediction"].isna().tolist() == [False, False, True, False]


def test_images_without_labels(tmp_path, some):
    bare = Predictions(
        pd.DataFrame({"image": ["a", "b"]}),
        some.probabilities[:2],
        some.expert_probabilities[:2],
        np.array([-1, -1]),
    )
    save_predictions(predictions_table(bare, NAMES), tmp_path / "out.csv", NAMES)
    assert load_predictions(tmp_path / "out.csv").predictions.target.tolist() == [-1, -1]


def test_no_image_at_all(tmp_path):
    empty = Predictions(
        pd.DataFrame({"image": []}, dtype=object),
        np.zeros((0, 3), np.float32),
        np.zeros((0, 0, 3), np.float32),
        np.zeros(0, np.int64),
    )
    save_predictions(predictions_table(empty, NAMES), tmp_path / "out.csv", NAMES)
    assert len(load_predictions(tmp_path / "out.csv").predictions) == 0


def test_parquet_has_a_schema_version_and_newer_ones_are_refused(some, tmp_path, monkeypatch):
    path = tmp_path / "out.parquet"
    save_predictions(predictions_table(some, NAMES), path, NAMES)
    assert parquet.read_schema(path).metadata[b"recame.schema"] == b"2"
    monkeypatch.setattr(prediction_columns, "PREDICTIONS_SCHEMA", 7)
    save_predictions(predictions_table(some, NAMES), path, NAMES)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"schema 7; this version reads up to 2.*pip install -U"):
        load_predictions(path)


def test_errors_name_the_way_out(some, tmp_path, monkeypatch):
    table = predictions_table(some, NAMES)
    with pytest.raises(ConfigError, match=r"'out\.xlsx'.*\.csv or \.parquet"):
        save_predictions(table, tmp_path / "out.xlsx", NAMES)
    with pytest.raises(DataError, match="No predictions at"):
        load_predictions(tmp_path / "none.csv", SPACE)
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot be read as predictions"):
        load_predictions(tmp_path / "bad.parquet", SPACE)
    save_predictions(table, tmp_path / "out.csv", NAMES)
    with pytest.raises(DataError, match="predictions of ok, crack, but those of ok, NA, a_p_b"):
        load_predictions(tmp_path / "out.csv", ("ok", "crack"))
    table.assign(label="scratch").to_csv(tmp_path / "out.csv", index=False)
    with pytest.raises(DataError, match="labels scratch, which are not among the model's classes"):
        load_predictions(tmp_path / "out.csv")
    table.drop(columns="expert1_p_NA").to_csv(tmp_path / "out.csv", index=False)
    with pytest.raises(DataError, match="no column 'expert1_p_NA'"):
        load_predictions(tmp_path / "out.csv")
    (tmp_path / "out.csv").write_text("image,label\na.png,ok\n")
    with pytest.raises(DataError, match="does not hold predictions, but none"):
        load_predictions(tmp_path / "out.csv")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(DataError, match=r"No space left.*Free space"):
        save_predictions(table, tmp_path / "new.csv", NAMES)
    assert not (tmp_path / "new.csv").exists()


def test_a_failed_write_leaves_the_old_file(some, tmp_path, monkeypatch):
    path = tmp_path / "out.csv"
    path.write_text("old")

    def half(self, target, **_kwargs):
        target.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    with pytest.raises(DataError, match="No space left"):
        save_predictions(predictions_table(some, NAMES), path, NAMES)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_a_manifests_own_column_may_look_like_a_probability(some, tmp_path):
    table = predictions_table(some, NAMES).assign(p_lot="A1", p_id=16777217)
    save_predictions(table, tmp_path / "out.csv", NAMES)
    again = load_predictions(tmp_path / "out.csv").predictions
    assert set(again.table["p_lot"]) == {"A1"}
    assert set(again.table["p_id"]) == {"16777217"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_names_that_are_no_text_come_back(some, suffix, tmp_path):
    names = ["bad\udcff.png", "bad\\udcff.png", "\\\udcff", "=ü.png"]
    some.table["image"] = pd.Series(names, some.table.index, dtype=object)
    save_predictions(predictions_table(some, NAMES), tmp_path / f"p{suffix}", NAMES)
    assert load_predictions(tmp_path / f"p{suffix}").predictions.table["image"].tolist() == names


def test_a_bit_that_flipped_in_parquet_is_noticed(some, tmp_path):
    path = tmp_path / "p.parquet"
    save_predictions(predictions_table(some, NAMES), path, NAMES)
    content = bytearray(path.read_bytes())
    content[content.index(b"ok") + 1] ^= 1  # a label becomes another
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as predictions .*recame evaluate"):
        load_predictions(path)


def test_no_two_columns_have_one_name(some, tmp_path):
    some.table["action"], some.table["manifest_action"] = "mine", "theirs"
    some.table["expert0_confidence"] = "text"
    table = predictions_table(some, NAMES)
    assert list(table.columns[table.columns.str.contains("manifest_")]) == [
        *("manifest_confidence", "manifest_manifest_action", "manifest_action")
    ] or len(set(table.columns)) == len(table.columns)
    save_predictions(table, tmp_path / "p.csv", NAMES)
    again = load_predictions(tmp_path / "p.csv").predictions.table
    assert set(again["expert0_confidence"]) == {"text"}
    assert {"mine", "theirs"} == {
        again[name].iloc[0] for name in again if name.startswith("manifest_") and "action" in name
    }


@pytest.mark.parametrize("decimal", [".", ","])
def test_a_spreadsheet_has_saved_it_with_semicolons(some, decimal, tmp_path):
    table = predictions_table(some, NAMES)
    table.to_csv(tmp_path / "p.csv", index=False, sep=";", decimal=decimal, encoding="utf-8-sig")
    got = load_predictions(tmp_path / "p.csv")
    assert got.classes == NAMES
    np.testing.assert_allclose(got.predictions.probabilities, some.probabilities)
    assert got.predictions.target.tolist() == [0, 1, -1, 2]
