"""ImageNet-LT, Places-LT and iNaturalist 2018 from small lists of the published format."""

import json

import pandas as pd
import pytest

from recame.data.manifest import read_manifest
from recame.datasets.public.inaturalist import prepare as prepare_inaturalist
from recame.datasets.public.lists import class_names, prepare, read_list
from recame.datasets.registry import PUBLIC_SETS
from recame.errors import DataError


def write_list(path, rows, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} {label}\n" for name, label in rows))
    for name, _ in rows:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).touch()


@pytest.fixture
def imagenet(tmp_path):
    raw = tmp_path / "imagenet"
    train = [(f"train/n01440764/n01440764_{n}.JPEG", 0) for n in range(5)]
    train += [(f"train/n01443537/n01443537_{n}.JPEG", 1) for n in range(2)]
    write_list(raw / "ImageNet_LT_train.txt", train, raw)
    write_list(raw / "ImageNet_LT_val.txt", [("train/n01440764/n01440764_9.JPEG", 0)], raw)
    test = [("val/ILSVRC2012_val_00000001.JPEG", 1), ("val/ILSVRC2012_val_00000002.JPEG", 0)]
    write_list(raw / "ImageNet_LT_test.txt", test, raw)
    return raw


def test_imagenet_lt_refers_to_the_images_where_they_lie(tmp_path, imagenet):
    table = read_manifest(PUBLIC_SETS["imagenet_lt"].prepare(imagenet, tmp_path / "out"))
    assert table["split"].tolist() == ["train"] * 7 + ["val"] + ["test"] * 2
    assert table["label"].tolist()[-3:] == ["n01440764", "n01443537", "n01440764"]
    assert table["index"].tolist() == [0] * 5 + [1] * 2 + [0, 1, 0]
    assert table["path"][0] == str(imagenet / "train/n01440764/n01440764_0.JPEG")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["manifest.csv", "prepared.json"]


def test_lists_may_lie_elsewhere(tmp_path, imagenet):
    apart = tmp_path / "lists"
    apart.mkdir()
    for path in imagenet.glob("*.txt"):
        path.rename(apart / path.name)
    assert len(pd.read_csv(prepare(imagenet, tmp_path / "a", lists=str(apart)))) == 10
    apart.rename(imagenet / "ImageNet_LT")
    assert len(pd.read_csv(prepare(imagenet, tmp_path / "b"))) == 10
    with pytest.raises(DataError, match="cannot be read"):
        prepare(tmp_path, tmp_path / "c")


def test_places_lt_names_nested_classes(tmp_path):
    raw = tmp_path / "places"
    train = [("data_256/a/airfield/00000001.jpg", 0), ("data_256/a/airfield/00000002.jpg", 0)]
    train.append(("data_256/a/apartment_building/outdoor/00000001.jpg", 1))
    write_list(raw / "Places_LT_train.txt", train, raw)
    write_list(raw / "Places_LT_val.txt", [("val_256/Places365_val_00000001.jpg", 1)], raw)
    write_list(raw / "Places_LT_test.txt", [("val_256/Places365_val_00000002.jpg", 0)], raw)
    table = pd.read_csv(PUBLIC_SETS["places_lt"].prepare(raw, tmp_path / "out"))
    assert table["label"].tolist() == [
        "airfield",
        "airfield",
        "apartment_building-outdoor",
        "apartment_building-outdoor",
        "airfield",
    ]


def test_classes_are_numbered_where_folders_do_not_tell():
    mixed = pd.DataFrame({"image": ["all/a.jpg", "all/b.jpg", "all/c.jpg"], "index": [0, 11, 0]})
    assert class_names(mixed).to_dict() == {0: "00", 11: "11"}


def test_missing_images_are_counted(tmp_path, imagenet):
    (imagenet / "train/n01443537/n01443537_0.JPEG").unlink()
    for path in (imagenet / "val").iterdir():
        path.unlink()
    (imagenet / "val").rmdir()
    with pytest.raises(DataError, match=r"3 of 10 images of ImageNet-LT's lists .*n01443537_0"):
        prepare(imagenet, tmp_path / "out")


def test_lists_that_do_not_fit_are_refused(tmp_path, imagenet):
    write_list(imagenet / "ImageNet_LT_val.txt", [("train/n9/x.JPEG", 9)], imagenet)
    with pytest.raises(DataError, match=r"Class 9 of train/n9/x\.JPEG has no image in"):
        prepare(imagenet, tmp_path / "out")
    path = tmp_path / "list.txt"
    path.write_text("a/b.jpg 0\n\na/c d.jpg 1\n./a/e.jpg\t2\n")
    assert read_list(path)["image"].tolist() == ["a/b.jpg", "a/c d.jpg", "a/e.jpg"]
    path.write_text("a/b.jpg 0\na/c.jpg\n")
    with pytest.raises(DataError, match=r"line 2 reads 'a/c\.jpg'"):
        read_list(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="it is empty"):
        read_list(path)


def species(number, kingdom):
    return {"id": number, "name": str(number), "supercategory": kingdom, "genus": "JRIDJA"}


@pytest.fixture
def inat(tmp_path):
    """The JSON form, and the lists that the literature made of it, of the same seven images."""
    raw = tmp_path / "inat"
    kinds = [species(7, "Aves"), species(7477, "Plantae")]
    names = {7: "train_val2018/Aves/7", 7477: "train_val2018/Plantae/7477"}
    for split, labels in (("train", [7477, 7477, 7477, 7, 7]), ("val", [7, 7477])):
        rows = [(f"{names[label]}/{split}{n}.jpg", label) for n, label in enumerate(labels)]
        write_list(tmp_path / "lists" / f"iNaturalist18_{split}.txt", rows, raw)
        content = {
            "images": [
                {"id": 100 + n, "file_name": name, "width": 800, "height": 600, "license": 3}
                for n, (name, _) in reversed(list(enumerate(rows)))
            ],
            "annotations": [
                {"id": n, "image_id": 100 + n, "category_id": label}
                for n, (_, label) in enumerate(rows)
            ],
            "categories": kinds,
        }
        (raw / f"{split}2018.json").write_text(json.dumps(content))
    return raw


def test_inaturalist_from_json_and_from_lists_is_one_set(tmp_path, inat):
    from_json = pd.read_csv(
        PUBLIC_SETS["inaturalist_2018"].prepare(inat, tmp_path / "a"), dtype=str
    )
    from_lists = pd.read_csv(
        prepare_inaturalist(inat, tmp_path / "b", annotations=tmp_path / "lists"), dtype=str
    )
    pd.testing.assert_frame_equal(from_json, from_lists)
    assert from_json["label"].tolist() == ["7477", "7477", "7477", "0007", "0007", "0007", "7477"]
    assert from_json["split"].tolist() == ["train"] * 5 + ["test"] * 2
    assert from_json["supercategory"].tolist()[2:4] == ["Plantae", "Aves"]
    assert read_manifest(tmp_path / "a" / "manifest.csv")["label"][3] == "0007"


def test_inaturalist_keeps_species_where_they_are_told(tmp_path, inat):
    for name in ("train2018.json", "val2018.json"):
        content = json.loads((inat / name).read_text())
        content["categories"][0]["name"] = "Branta canadensis"
        (inat / name).write_text(json.dumps(content))
    table = pd.read_csv(prepare_inaturalist(inat, tmp_path / "out"), dtype=str)
    assert table["species"].tolist()[2:4] == ["7477", "Branta canadensis"]
    assert table["label"].tolist()[2:4] == ["7477", "0007"]


def test_inaturalist_files_that_do_not_fit_are_refused(tmp_path, inat):
    content = json.loads((inat / "val2018.json").read_text())
    content["annotations"].pop()
    (inat / "val2018.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="2 images but 1 of them with an annotation"):
        prepare_inaturalist(inat, tmp_path / "out")
    (inat / "val2018.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="does not read as iNaturalist's JSON"):
        prepare_inaturalist(inat, tmp_path / "out")
    with pytest.raises(DataError, match=r"lacks iNaturalist18_train\.txt and iNaturalist18_val"):
        prepare_inaturalist(tmp_path, tmp_path / "out")
