import errno
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from recame.config import DataConfig
from recame.data.image_table import table_rows
from recame.data.listing import list_images
from recame.data.manifest import ManifestColumns, read_manifest, read_recorded_manifest
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import csv_text


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def test_folder_per_class(tmp_path):
    touch(tmp_path, "ok/b.png", "ok/a.PNG", "crack/deep/c.bmp", ".hidden/x.png", "ok/.d.png")
    (tmp_path / "ok" / "Thumbs.db").write_text("x")
    (tmp_path / "ok" / "notes.txt").write_text("x")
    (tmp_path / "ok" / "zero.png").touch()
    (tmp_path / "empty").mkdir()
    table = read_manifest(tmp_path)
    assert table.columns.tolist() == ["image", "path", "label"]
    assert table["image"].tolist() == ["crack/deep/c.bmp", "ok/a.PNG", "ok/b.png", "ok/zero.png"]
    assert table["label"].tolist() == ["crack", "ok", "ok", "ok"]
    assert table["path"][1] == str(tmp_path / "ok" / "a.PNG")


def test_folder_with_splits(tmp_path):
    touch(tmp_path, "train/ok/a.png", "train/crack/b.png", "Validation/ok/c.png", "new/ok/d.png")
    table = read_manifest(tmp_path)
    assert dict(zip(table["image"], table["split"], strict=True)) == {
        "Validation/ok/c.png": "val",
        "new/ok/d.png": "new",
        "train/crack/b.png": "train",
        "train/ok/a.png": "train",
    }
    assert set(table["label"]) == {"ok", "crack"}


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path, "train/a.png", "tram/b.png")
    table = read_manifest(tmp_path)
    assert table["label"].tolist() == ["train", "tram"]
    assert "split" not in table


def test_images_beside_the_class_folders_are_named(tmp_path):
    touch(tmp_path, "ok/a.png", "crack/b.png", "overview.png")
    with pytest.warns(UserWarning, match=r"1 image .* outside the class folders \(overview.png"):
        assert len(read_manifest(tmp_path)) == 2


def test_csv_keeps_text_order_and_further_columns(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(
        "\ufefffile;klass;set;lot;time;note;label\n"
        "b.png;01;Testing;0012;1.5;;x\n"
        "/abs/a.png;NA;train;0013;2.5;hm;y\n",
        encoding="utf-8",
    )
    table = read_manifest(path, ManifestColumns("file", "klass", "set"))
    assert table["image"].tolist() == ["b.png", "/abs/a.png"]
    assert table["path"].tolist() == [str(tmp_path / "b.png"), "/abs/a.png"]
    assert table["label"].tolist() == ["01", "NA"]
    assert table["split"].tolist() == ["test", "train"]
    assert table["lot"].tolist() == ["0012", "0013"]
    assert table["time"].tolist() == [1.5, 2.5]
    assert table["manifest_label"].tolist() == ["x", "y"]
    assert table["note"].isna().tolist() == [True, False]


def test_a_run_s_own_table_tells_where_its_images_lie(tmp_path):
    text = "image,path,label,split\na.png,/set/a.png,ok,train\nb.png,/set/b.png,crack,train\n"
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    table = read_manifest(tmp_path / "manifest.csv")
    assert table["path"].tolist() == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert table["manifest_path"].tolist() == ["/set/a.png", "/set/b.png"]
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    table = read_manifest(tmp_path / "manifest.csv")
    assert table["path"].tolist() == ["/set/a.png", "/set/b.png"]
    assert list(table) == ["image", "path", "label", "split"]


def test_parquet(tmp_path):
    path = tmp_path / "m.parquet"
    pd.DataFrame({"image": ["a.png", "b.png"], "label": [1, 2], "board": [7, 8]}).to_parquet(path)
    table = read_manifest(path)
    assert table["label"].tolist() == ["1", "2"]
    assert table["board"].tolist() == [7, 8]
    assert "split" not in table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.png,\nb.png,x\nc.png, \n", r"2 rows have no 'label' \(row 1, 3 below"),
        ("image,label\n,x\nb.png,y\n", r"1 row has no 'image'"),
        ("file,label\na.png,x\n", r"no column 'image'; its columns are file, label.*data.image_co"),
        ("image,class\na.png,x\n", r"no column 'label'.*data.label_column"),
        ("image,label\n", "no rows"),
        ("", "cannot be read"),
        ("image,label\na.png,x\nb.png,x\n", r"only one class \('x'\)"),
    ],
)
def test_table_errors_are_one_line(tmp_path, text, message):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_manifest(path)
    assert "\n" not in str(error.value)


def test_a_named_split_column_must_exist(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("image,label\na.png,x\nb.png,y\n")
    with pytest.raises(DataError, match=r"no column 'fold'.*data.split_column"):
        read_manifest(path, ManifestColumns(split="fold"))


def test_source_errors(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(DataError, match="No images in"):
        read_manifest(tmp_path)
    (tmp_path / "m.xlsx").touch()
    with pytest.raises(DataError, match=r"\.csv or \.parquet"):
        read_manifest(tmp_path / "m.xlsx")
    (tmp_path / "m.csv").write_bytes(b"image,label\n\xff\xfe\xff,x\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_manifest(tmp_path / "m.csv")
    (tmp_path / "m.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_manifest(tmp_path / "m.parquet")
    touch(tmp_path, "flat/a.png")
    with pytest.raises(DataError, match="no class folders"):
        read_manifest(tmp_path / "flat")
    touch(tmp_path, "one/ok/a.png")
    with pytest.raises(DataError, match=r"only one class \('ok'\)"):
        read_manifest(tmp_path / "one")
    assert read_manifest(tmp_path / "one", min_classes=1)["label"].tolist() == ["ok"]


@pytest.mark.parametrize("ends", [",", ",,"])
def test_rows_may_end_with_a_separator(tmp_path, ends):
    touch(tmp_path, "a.png", "b.png")
    text = f"image,label,lot\na.png,ok,7{ends}\nb.png,crack,{ends}\n"
    (tmp_path / "t.csv").write_text(text)
    table = read_manifest(tmp_path / "t.csv")
    assert table["image"].tolist() == ["a.png", "b.png"]
    assert table["label"].tolist() == ["ok", "crack"]
    assert table["lot"].tolist()[0] == "7"


def test_cells_that_no_header_names_are_refused(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "t.csv").write_text("image,label\na.png,ok,1.5\nb.png,crack,\n")
    with pytest.raises(
        DataError, match=r"rows of 3 cells, but its header names 2 \(image, label\)"
    ):
        read_manifest(tmp_path / "t.csv")
    recorded = tmp_path / "manifest.csv"
    recorded.write_text("image,path,label,x\na,a.png,ok,1.5,2\nb,b.png,ok,,3\n")
    with pytest.raises(CheckpointError, match=r"rows have more cells than its header"):
        read_recorded_manifest(recorded, "product")


def test_a_table_beside_images_may_have_been_meant(tmp_path):
    touch(tmp_path, "set/images/a.png", "flat/a.png")
    for folder in ("set", "flat"):
        (tmp_path / folder / "manifest.csv").write_text("image,label\n")
        with pytest.raises(DataError) as refused:
            read_manifest(tmp_path / folder)
        table = tmp_path / folder / "manifest.csv"
        assert f"If you mean the table, give {table} itself. " in str(refused.value)
    (tmp_path / "set" / "notes.csv").touch()
    with pytest.raises(DataError, match=r"manifest\.csv itself \(2 tables lie there\)"):
        read_manifest(tmp_path / "set")


def test_images_that_nobody_labelled(tmp_path):
    touch(tmp_path, "flat/b.png", "flat/a.png", "night/2024/01/a.png", "night/2024/b.png")
    for labels in ("optional", "ignored"):
        table = read_manifest(tmp_path / "flat", labels=labels)
        assert list(table.columns) == ["image", "path"]
        assert table["image"].tolist() == ["a.png", "b.png"]
    table = read_manifest(tmp_path / "night", labels="ignored")
    assert list(table.columns) == ["image", "path"]
    assert table["image"].tolist() == ["2024/01/a.png", "2024/b.png"]


def test_labels_of_some_images(tmp_path):
    touch(tmp_path, "a.png", "ok/b.png", "hole/deep/c.png")
    table = read_manifest(tmp_path, labels="optional")
    assert table["image"].tolist() == ["a.png", "hole/deep/c.png", "ok/b.png"]
    assert table["label"].isna().tolist() == [True, False, False]
    assert table["label"].tolist()[1:] == ["hole", "ok"]


def test_splits_without_labels(tmp_path):
    touch(tmp_path, "train/a.png", "train/ok/b.png", "valid/c.png", "loose.png")
    with pytest.warns(UserWarning, match=r"1 image .* outside the folders of the splits"):
        table = read_manifest(tmp_path, labels="optional")
    assert table["split"].tolist() == ["train", "train", "val"]
    assert table["label"].isna().tolist() == [True, False, True]
    with pytest.warns(UserWarning, match="loose.png"):
        assert "label" not in read_manifest(tmp_path, labels="ignored")


def test_tables_without_labels(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("image,lot\na.png,01\nb.png,02\n")
    table = read_manifest(path, labels="optional")
    assert list(table.columns) == ["image", "path", "lot"]
    pd.testing.assert_frame_equal(read_manifest(path, labels="ignored"), table)
    # A column that was named is missed.
    with pytest.raises(DataError, match=r"no column 'kind'.*data.label_column"):
        read_manifest(path, ManifestColumns(label="kind"), labels="optional")
    path.write_text("image,label\na.png,NA\nb.png,\nc.png,  \n")
    table = read_manifest(path, labels="optional")
    assert table["label"].isna().tolist() == [False, True, True]
    assert table["label"][0] == "NA"
    ignored = read_manifest(path, labels="ignored")
    assert "label" not in ignored
    assert ignored["manifest_label"].tolist() == ["NA", "", ""]
    with pytest.raises(DataError, match=r"2 rows have no 'label' \(row 2, 3"):
        read_manifest(path)
    pd.DataFrame({"image": ["a.png", "b.png"], "label": [7, None]}).to_parquet(tmp_path / "m.pq")
    read = read_manifest(tmp_path / "m.pq", labels="optional")
    assert read["label"].isna().tolist() == [False, True]
    path.write_text("image,label\na.png,\nb.png,\n")
    assert "label" not in read_manifest(path, labels="optional")


def test_list_images(tmp_path):
    touch(tmp_path, "a.png", "in/b.jpg", "in/deep/c.tif")
    (tmp_path / "in" / "d.txt").write_text("x")
    (tmp_path / "odd.dat").write_text("x")
    everything = [tmp_path / "a.png", tmp_path / "in" / "b.jpg", tmp_path / "in" / "deep" / "c.tif"]
    assert list_images([tmp_path, tmp_path / "a.png"]) == everything
    assert list_images([str(tmp_path / "*.png"), tmp_path / "in"]) == everything
    assert list_images([str(tmp_path / "**" / "*.tif")]) == everything[2:]
    assert list_images([tmp_path / "odd.dat"]) == [tmp_path / "odd.dat"]
    with pytest.raises(DataError, match="no such file or folder"):
        list_images([tmp_path / "e.png"])
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match="No images in"):
        list_images([tmp_path / "void"])


def test_products_and_lots_are_names(tmp_path):
    text = "image,label,product,lot,size\na.png,x,12,NA,1\nb.png,y,1.10,7,2\nc.png,y,,1.1,3\n"
    (tmp_path / "set.csv").write_text(text)
    columns = ManifestColumns.of(DataConfig(group_by="lot"))
    table = read_manifest(tmp_path / "set.csv", columns)
    assert table["product"].tolist()[:2] == ["12", "1.10"]
    assert table["product"].isna().tolist() == [False, False, True]
    assert table["lot"].tolist() == ["NA", "7", "1.1"]
    assert table["size"].tolist() == [1, 2, 3]


def test_columns_that_no_number_holds_are_text(tmp_path):
    text = "image,label,code\na.png,x,12345678901234567890123\nb.png,y,7\n"
    (tmp_path / "set.csv").write_text(text)
    read = read_manifest(tmp_path / "set.csv")
    assert read["code"].tolist() == ["12345678901234567890123", "7"]
    read.assign(split="train").to_csv(tmp_path / "manifest.csv", index=False)
    again = read_recorded_manifest(tmp_path / "manifest.csv", "product")
    assert again["code"].tolist() == read["code"].tolist()

    boards = pd.Categorical(["b1", "b2"], categories=["b1", "b2", "b3"])
    table = pd.DataFrame({"image": ["a.png", "b.png"], "label": ["x", "y"], "board": boards})
    table["box"] = [[1, 2], [3, 4]]
    table.to_parquet(tmp_path / "set.parquet")
    read = read_manifest(tmp_path / "set.parquet")
    assert read["board"].value_counts().tolist() == [1, 1]
    assert read["box"].nunique() == 2


def test_whole_numbers_with_gaps_stay_whole(tmp_path):
    """A gap makes no fraction of them: 12 is called so by `recame predict`, and by training too."""
    code = [12, None, 9_007_199_254_740_993]  # which no float holds
    stored = pa.table(
        {
            "image": ["a.png", "b.png", "c.png"],
            "label": ["x", "y", "x"],
            "split": ["train"] * 3,
            "code": pa.array(code, pa.int64()),
            "height": pa.array([1.0, None, 2.0], pa.float64()),
            "whole": pa.array([1, 2, 3], pa.int64()),
        }
    )
    parquet.write_table(stored, tmp_path / "set.parquet")
    rows = ["a.png,x,train,12,1.0,1", "b.png,y,train,,,2", f"c.png,x,train,{code[2]},2.0,3"]
    text = "\n".join(["image,label,split,code,height,whole", *rows])
    (tmp_path / "set.csv").write_text(text + "\n")
    for name in ("set.parquet", "set.csv"):
        table = read_manifest(tmp_path / name)
        assert table["code"].tolist()[::2] == ["12", str(code[2])], name
        assert table["code"].isna().tolist() == [False, True, False]
        # As they stand in the table.
        assert table["height"].tolist()[::2] == [1.0, 2.0]
        assert table["whole"].tolist() == [1, 2, 3]
        (tmp_path / "manifest.csv").write_text(csv_text(table, index=False))
        again = read_recorded_manifest(tmp_path / "manifest.csv", "product")
        pd.testing.assert_frame_equal(again, table, check_dtype=False)
        rows = table_rows(tmp_path / name)
        place = rows.columns.index("code")
        assert [row[place] for row in rows.cells] == table["code"].fillna("").tolist()


def test_boxes_beside_whole_images_stay_whole(tmp_path):
    (tmp_path / "set.csv").write_text(
        "image,label,x,y,width,height\na.png,u,4,5.5,8,8\nb.png,v,,,,\n"
    )
    table = read_manifest(tmp_path / "set.csv")
    assert table["image"].tolist() == ["a.png#xywh=4,5.5,8,8", "b.png"]
    assert [table[name][0] for name in ("x", "y", "width")] == [4, 5.5, 8]
    assert csv_text(table[["x", "y", "width"]], index=False) == "x,y,width\n4,5.5,8\n,,\n"
    assert table[["x", "y"]].isna().iloc[1].all()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_that_are_no_text_are_left_out(tmp_path):
    touch(tmp_path, "x/a.png", "y/b.png")
    (Path(os.fsdecode(os.fsencode(tmp_path / "x") + b"/d\xe9f.png"))).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 image of .* is left out.* not valid UTF-8 \(x/d"):
        table = read_manifest(tmp_path)
    assert table["image"].tolist() == ["x/a.png", "y/b.png"]


def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path, monkeypatch):
    for name in ("a", "b", "lost+found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    plain = os.scandir

    def away(path):
        if Path(path).name in {"b", "lost+found"}:
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return plain(path)

    monkeypatch.setattr(os, "scandir", away)
    with pytest.raises(DataError, match=r"b cannot be listed \(Stale file handle\)"):
        list_images([tmp_path])
    (tmp_path / "b").rename(tmp_path / "c")
    assert [path.parent.name for path in list_images([tmp_path])] == ["a", "c"]


def warned(call, *words, **options):
    """What a call returns, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call(*words, **options)
    return found, [str(item.message) for item in caught]


def test_what_lies_in_the_folders_and_is_not_used_is_counted_by_kind(tmp_path):
    touch(tmp_path, "ok/a.png", "hole/b.png")
    for name in ("ok/c.gif", "ok/d.GIF", "hole/e.avif", "hole/f.psd", "ok/g", "ok/.h.png"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("ok/Thumbs.db", "notes.txt", "ok/._a.png", "hole/.DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    table, (told,) = warned(read_manifest, tmp_path)
    assert len(table) == 2
    assert f"8 files in {tmp_path} are not used" in told
    assert "2 .gif (ok/c.gif), 1 .avif (hole/e.avif), 1 .psd (hole/f.psd), 1 hidden .png" in told
    listed, (told,) = warned(list_images, [tmp_path])
    assert len(listed) == 2
    assert "8 files in" in told
    assert "2 .gif" in told
    listed, (told,) = warned(list_images, [str(tmp_path / "ok" / "*")])
    assert [path.name for path in listed] == ["a.png"]
    assert "2 .gif" in told


def test_notes_and_tables_beside_images_are_expected(tmp_path):
    touch(tmp_path, "ok/a.png", "hole/b.png")
    for name in ("manifest.csv", "ok/Thumbs.db", "notes.txt", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    assert warned(read_manifest, tmp_path)[1] == []
    assert warned(list_images, [tmp_path])[1] == []


def test_nothing_but_other_files_says_what_they_are(tmp_path):
    (tmp_path / "ok").mkdir()
    (tmp_path / "ok" / "a.gif").write_bytes(b"x")
    for call, given in ((read_manifest, tmp_path), (list_images, [tmp_path])):
        with pytest.raises(DataError, match=r"No images in .* There are other files: 1 \.gif"):
            warned(call, given)


def test_folders_that_give_no_class_are_named(tmp_path):
    touch(tmp_path / "flat", "ok/a.png", "hole/deep/b.png")
    for name in ("void", "only"):
        (tmp_path / "flat" / name).mkdir()
    (tmp_path / "flat" / "only" / "notes.txt").touch()
    _, (told,) = warned(read_manifest, tmp_path / "flat")
    assert "2 folders of" in told
    assert told.endswith("they make no class: 'only', 'void'.")
    touch(tmp_path / "split", "train/ok/a.png", "train/hole/b.png", "test/ok/c.png")
    (tmp_path / "split" / "test" / "hole").mkdir()
    (tmp_path / "split" / "val" / "ok").mkdir(parents=True)
    _, (told,) = warned(read_manifest, tmp_path / "split")
    assert told.endswith("they make no class: 'val', 'test/hole'.")
    assert warned(read_manifest, tmp_path / "split", labels="ignored")[1] == []


@pytest.mark.parametrize(
    ("one", "other"),
    [("Scratch", "scratch "), ("sc ratch", "scratch"), ("\u00e9clat", "e\u0301clat")],
)
def test_classes_that_a_slip_tells_apart_are_named(tmp_path, one, other):
    touch(tmp_path, f"{one}/a.png", f"{one}/b.png", f"{other}/c.png", "dent/d.png")
    table, (told,) = warned(read_manifest, tmp_path)
    assert table["label"].nunique() == 3
    assert f"{one!r} (2 images)" in told
    assert f"{other!r} (1 image)" in told
    assert "differ only in case, blanks or Unicode form" in told


def test_splits_and_products_that_a_slip_tells_apart_are_named(tmp_path):
    text = "image,label,split,product\na.png,x,holdout,A1\nb.png,y,Holdout,a1\nc.png,x,train,A1\n"
    (tmp_path / "m.csv").write_text(text)
    _, told = warned(read_manifest, tmp_path / "m.csv", ManifestColumns(names=("product",)))
    assert ["'split'" in line for line in told] == [True, False]
    assert "'A1' (2 images) and 'a1' (1 image)" in told[1]


EXCEL = 'image;label;note\r\nbilder\\a.png;kratzer;"ü; 5 µm"\r\nbilder\\b.png;Lötstelle;\r\n'


def test_a_table_of_a_spreadsheet_is_read_and_said(tmp_path):
    touch(tmp_path, "bilder/a.png", "bilder/b.png")
    path = tmp_path / "m.csv"
    path.write_bytes(EXCEL.encode("cp1252"))
    table, (told,) = warned(read_manifest, path)
    assert table["path"].tolist() == [str(tmp_path / "bilder" / n) for n in ("a.png", "b.png")]
    assert table["label"].tolist() == ["kratzer", "Lötstelle"]
    assert table["note"][0] == "ü; 5 µm"
    assert "not UTF-8: it was read as cp1252 (Western Europe), separated by ';'" in told
    declared = ManifestColumns(encoding="cp1252")
    again, told = warned(read_manifest, path, declared)
    pd.testing.assert_frame_equal(again, table)
    assert told == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_marks_and_declarations_tell_the_encoding(tmp_path, encoding):
    path = tmp_path / "m.csv"
    path.write_bytes(("sep=;\r\n" + EXCEL).encode(encoding))
    columns = ManifestColumns(encoding=encoding if encoding == "utf-16-le" else "auto")
    table, told = warned(read_manifest, path, columns)
    assert table["label"].tolist() == ["kratzer", "Lötstelle"]
    assert told == []


@pytest.mark.parametrize(("text", "encoding"), [("царапина", "cp1251"), ("キズ", "cp932")])
def test_a_code_page_that_is_not_certain_must_be_declared(tmp_path, text, encoding):
    path = tmp_path / "m.csv"
    path.write_bytes(f"image,label\na.png,{text}\nb.png,y\n".encode(encoding))
    with pytest.raises(DataError, match=rf"is not UTF-8, and .*data.encoding=.*{encoding}"):
        read_manifest(path)
    assert read_manifest(path, ManifestColumns(encoding=encoding))["label"][0] == text


def test_a_concluded_code_page_must_lead_to_the_files(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes("image,label\nłata.png,x\nb.png,y\n".encode("cp1250"))
    with pytest.raises(
        DataError, match=r"read as cp1252 it names '³ata.png', which does not exist"
    ):
        read_manifest(path)
    with pytest.raises(ConfigError, match=r"data.encoding='fancy' is not an encoding"):
        read_manifest(path, ManifestColumns(encoding="fancy"))
    with pytest.raises(DataError, match="is not ascii text"):
        read_manifest(path, ManifestColumns(encoding="ascii"))
    path.write_bytes("image,label\na.png,x\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"zero bytes.*utf-16-le"):
        read_manifest(path)


def test_a_header_decides_the_separator(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text('image;"a,b,c,d";label\nx.png;1;u\ny.png;2;v\n')
    assert read_manifest(path)["label"].tolist() == ["u", "v"]


def test_a_damaged_record_of_a_run_is_said(tmp_path):
    path = tmp_path / "manifest.csv"
    for content in (b'image,path,label,split\n"a', b"image,path\na,b\n", b"\xff\xfe\0", b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="the run no longer knows its images"):
            read_recorded_manifest(path, "product")


@pytest.mark.skipif(os.name == "nt", reason="Windows' names are made of UTF-16")
def test_a_folder_below_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"lot\xff")
    for name in ("a", "b"):
        (place / name).mkdir(parents=True)
        (place / name / "1.png").touch()
    with pytest.raises(DataError, match=r"lot\\udcff is not valid UTF-8.*rename"):
        read_manifest(place)
