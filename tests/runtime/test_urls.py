"""Images and tables at URLs: the rows, the rules and the resuming of files."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import recame
from recame.errors import ConfigError, DataError, MissingDependencyError
from recame.runtime import url_table, urls
from recame.runtime.urls import UrlReader, is_url, list_names

Pictures = tuple[Path, np.ndarray]


@pytest.fixture
def store(pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The 300 pictures at memory://lot, two files that are none, and one that is no image's."""
    fs = fsspec.filesystem("memory")
    for path in pictures[0].iterdir():
        fs.pipe_file(f"/lot/{path.name}", path.read_bytes())
    fs.pipe_file("/lot/017-broken.png", b"")
    fs.pipe_file("/lot/130-broken.png", b"\x89PNG\r\n\x1a\n and no more")
    fs.pipe_file("/lot/.hidden/000.png", b"")
    fs.pipe_file("/lot/notes.txt", b"")
    monkeypatch.chdir(tmp_path)
    yield fs
    for path in fs.find("/"):
        fs.rm_file(path)


@pytest.fixture
def folder(store: Any, tmp_path: Path) -> Path:
    """The same files in a folder."""
    store.get("/lot/", str(tmp_path / "lot"), recursive=True)
    return tmp_path / "lot"


def without_place(table: bytes, place: str) -> bytes:
    return table.replace(place.encode(), b"")


def test_rows_are_those_of_files(bundle: Path, folder: Path, store: Any) -> None:
    recame.predict(bundle, folder, out="here.csv", batch_size=16)
    summary = recame.predict(bundle, "memory://lot", out="there.csv", batch_size=16)
    assert (summary.num_images, summary.num_unreadable) == (300, 2)
    here, there = (Path(name).read_bytes() for name in ("here.csv", "there.csv"))
    assert without_place(there, "memory:///lot/") == without_place(here, f"{folder}/")


def test_table_goes_to_a_url_when_it_is_whole(bundle: Path, folder: Path, store: Any) -> None:
    out = "memory://made/table.parquet"
    summary = recame.predict(bundle, folder, out=out, batch_size=16)
    recame.predict(bundle, folder, out="here.parquet", batch_size=16)
    assert store.cat_file("/made/table.parquet") == Path("here.parquet").read_bytes()
    assert summary.out == out
    recame.predict(bundle, [folder / "000.png"], out=out)
    assert store.ls("/made", detail=False) == ["/made/table.parquet"]
    assert sorted(Path().glob("*.sending")) == []


def test_interrupted_table_goes_on(
    bundle: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = "memory://made/table.csv"

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recame.predict(bundle, "memory://lot", out=out, batch_size=16, on_progress=stop)
    assert not store.exists("/made/table.csv")
    picture = io.BytesIO()
    Image.new("L", (5, 6), 200).save(picture, "png")
    store.pipe_file("/lot/003.png", picture.getvalue())
    summary = recame.predict(bundle, "memory://lot", out=out, batch_size=16)
    assert summary.num_resumed == 255
    recame.predict(bundle, "memory://lot", out="afresh.csv", batch_size=16)
    assert store.cat_file("/made/table.csv") == Path("afresh.csv").read_bytes()


def test_names(store: Any, folder: Path) -> None:
    sources = ["memory://lot/00*.png", folder / "001.png", f"file://{folder}/000.png"]
    names = list_names(sources).paths
    assert names[:2] == [f"{folder}/000.png", f"{folder}/001.png"]
    assert names[2:] == [f"memory:///lot/00{number}.png" for number in range(10)]
    assert list_names(["memory://lot/notes.txt"]).paths == ["memory://lot/notes.txt"]
    assert len(list_names(["memory://lot"]).paths) == 302
    assert not is_url(Path("s3://lot"))
    with pytest.raises(DataError, match=r"No images at memory://elsewhere: looked for PNG"):
        list_names(["memory://elsewhere"])
    with pytest.raises(ConfigError, match="ftps2://lot cannot be read"):
        list_names(["ftps2://lot"])


def test_pages(bundle: Path, store: Any) -> None:
    rng = np.random.default_rng(0)
    pages = [Image.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8)) for _ in range(2)]
    file = io.BytesIO()
    pages[0].save(file, "tiff", save_all=True, append_images=pages[1:])
    store.pipe_file("/lot/two.tif", file.getvalue())
    recame.predict(bundle, ["memory://lot/two.tif#2", "memory://lot/two.tif"], out="t.csv")
    read = pd.read_csv("t.csv")
    assert read["image"].tolist() == ["memory://lot/two.tif", "memory://lot/two.tif#2"]
    assert read["p_ok"].nunique() == 2


def test_a_header_is_looked_at_before_the_rest_is_read(
    bundle: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = recame.load(bundle)
    reader = UrlReader(model.spec, 1_000_000)
    huge = io.BytesIO()
    Image.new("L", (2000, 2000)).save(huge, "bmp")
    store.pipe_file("/lot/huge.bmp", huge.getvalue())
    store.pipe_file("/lot/long.bmp", b"x" * 10**6)
    taken: list[int] = []
    read = urls._Stream.read

    def counted(self: Any, size: int = -1) -> bytes:
        data = read(self, size)
        taken.append(len(data))
        return data

    monkeypatch.setattr(urls._Stream, "read", counted)
    assert str(reader.read("memory://lot/huge.bmp").pixels).startswith("2000 x 2000 = 4,000,000 pi")
    assert str(reader.read("memory://lot/long.bmp").pixels).startswith("not an image")
    assert sum(taken) < 2000
    assert reader.read("memory://lot/gone.png", checksum=True)[:2] == ("no such file", None)


def test_a_store_that_fails_for_a_moment(
    bundle: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    failures = [ValueError("of the client's own kind"), TimeoutError(110, "timed out")]
    opened = type(store).open

    def open_(self: Any, path: str, *words: Any, **more: Any) -> Any:
        if failures:
            raise failures.pop()
        return opened(self, path, *words, **more)

    monkeypatch.setattr(type(store), "open", open_)
    reader = UrlReader(recame.load(bundle).spec, 1_000_000)
    assert not isinstance(reader.read("memory://lot/000.png").pixels, str)
    failures += [RuntimeError("down")] * 99
    told = reader.read("memory://lot/000.png", checksum=True)
    assert told[:2] == ("cannot be opened: RuntimeError: down", None)


def test_what_cannot_be_written(
    bundle: Path, folder: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = "memory://made/table.csv"

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(url_table, "_put", refuse)
    with pytest.raises(DataError, match=r"table.csv cannot be written \(Access Denied\)") as error:
        recame.predict(bundle, folder, out=out)
    (kept,) = Path().glob("table.csv.*.sending/table.csv")
    assert f"The complete table is {kept}: copy it" in str(error.value)
    assert len(kept.read_bytes().splitlines()) == 303


def test_other_stores_get_a_name_of_its_own_first(
    bundle: Path, folder: Path, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_table, "_WHOLE", set())
    names: list[str] = []
    put = type(store).put_file
    monkeypatch.setattr(
        type(store), "put_file", lambda *words: (names.append(words[2]), put(*words))
    )
    recame.predict(bundle, folder, out="memory://made/table.csv")
    assert names == ["/made/table.csv.part"]
    assert len(store.ls("/made")) == 1


def test_missing_packages_are_named(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"s3://lot/ needs a package .* pip install s3fs"):
        recame.predict(bundle, "s3://lot/", out="table.csv")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'recame\[cluster\]'"):
        recame.predict(bundle, folder, out="s3://lot/table.csv")
