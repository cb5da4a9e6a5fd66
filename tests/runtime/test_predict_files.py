"""Any number of files into one table: each exactly once, also after a kill."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

import recame
from recame.cli.predicting import print_summary
from recame.contracts import PreprocessSpec
from recame.data.listing import ListedImages
from recame.errors import ConfigError, DataError, MissingDependencyError, UnreadableError
from recame.files import sha256
from recame.label_space import LabelSpace
from recame.names import text_of
from recame.runs.prediction_columns import (
    CLASSES_KEY,
    MODEL_KEY,
    PREDICTIONS_SCHEMA,
    SCHEMA_KEY,
    prediction_columns,
    probability_columns,
)
from recame.runs.predictions import load_predictions
from recame.runtime import predict_files
from recame.runtime.partial_table import PartialTable

Pictures = tuple[Path, np.ndarray]

CLASSES = ["ok", "crack", "NA"]

#: A slow model that is killed half-way.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
import recame
from recame.runtime import predict_files
model = recame.load(sys.argv[1], threads=1, batch_size=16)
run = model._session.run
def slow(images):
    time.sleep(0.05)
    return run(images)
model._session.run = slow
predict_files(model, [sys.argv[2]], sys.argv[3])
"""


@pytest.fixture
def folder(pictures: Pictures, tmp_path: Path) -> Path:
    """The 300 pictures and five files that are none."""
    images = tmp_path / "images"
    images.mkdir()
    for path in pictures[0].iterdir():
        (images / path.name).symlink_to(path)
    for number in (0, 17, 130, 255, 299):
        (images / f"{number:03d}-broken.png").write_bytes(b"")
    return images


def test_table_holds_every_image_once(
    bundle: Path,
    folder: Path,
    pictures: Pictures,
    expected: Callable[..., np.ndarray],
    grey: PreprocessSpec,
    tmp_path: Path,
) -> None:
    out, heard = tmp_path / "made" / "table.csv", []
    summary = recame.predict(
        bundle, folder, out=out, on_progress=lambda done, total: heard.append((done, total))
    )
    table = pd.read_csv(out, keep_default_na=False)
    assert list(table) == prediction_columns(CLASSES)
    assert [Path(name).name for name in table["image"]] == sorted(
        path.name for path in folder.iterdir()
    )
    assert table["path"].tolist() == table["image"].tolist()  # which was absolute
    torn, seen = (table[(table["action"] == "unreadable") == is_torn] for is_torn in (True, False))
    assert [Path(name).name for name in seen["image"]] == [f"{i:03d}.png" for i in range(300)]
    read = load_predictions(out)  # every digit of float32 is there
    assert read.classes == tuple(CLASSES)
    rows = (table["action"] != "unreadable").to_numpy()
    probabilities = read.predictions.probabilities
    np.testing.assert_allclose(probabilities[rows], expected(pictures[1], grey), atol=1e-5)
    assert np.isnan(probabilities[~rows]).all()
    names = np.array(CLASSES)[probabilities[rows].argmax(1)]
    assert seen["prediction"].tolist() == names.tolist()
    assert set(seen["action"]) == set(seen["reason"]) == {"automatic"}
    assert seen["sha256"].tolist() == [sha256(Path(path)) for path in seen["path"]]
    assert (summary.num_images, summary.num_unreadable, summary.num_resumed) == (300, 5, 0)
    assert summary.counts == seen["prediction"].value_counts().to_dict()
    assert summary.decided == {("automatic", "automatic"): 300, ("unreadable", "unreadable"): 5}
    assert torn["note"].tolist() == ["empty file (0 bytes)"] * 5
    assert set(torn[["prediction", "confidence", "p_ok", "candidates"]].to_numpy().ravel()) == {""}
    assert list(torn["image"]) == [name for name, _ in summary.unreadable]
    assert heard[0] == (0, 305)
    assert heard[-1] == (305, 305)
    assert [path.name for path in out.parent.iterdir()] == ["table.csv"]


def wait_for_rows(folder: Path) -> Path:
    """Wait until a prediction into `out.csv` has kept some rows."""
    # What is committed goes to the database's log first.
    rows = folder / "out.csv.partial" / "rows.sqlite-wal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not rows.exists() or rows.stat().st_size < 50_000):
        time.sleep(0.01)
    time.sleep(0.02)  # a commit counts when all of it is written
    return rows


def test_killed_and_restarted(bundle: Path, folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.csv"
    predict_files(recame.load(bundle, threads=1, batch_size=16), [folder], whole)

    out = tmp_path / "out.csv"
    words = [sys.executable, "-c", SLOW, str(bundle), str(folder), str(out)]
    child = subprocess.Popen(words)
    rows = wait_for_rows(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not out.exists()

    # Another batch size now: that of the start decides, so that the last digit is the same.
    summary = predict_files(recame.load(bundle, threads=1, batch_size=7), [folder], out)
    assert 0 < summary.num_resumed < 305
    assert summary.num_resumed % 16 == 0
    assert (summary.num_images, summary.num_unreadable) == (300, 5)
    assert out.read_bytes() == whole.read_bytes()
    assert not rows.parent.exists()


class TestTakingUp:
    @pytest.fixture
    def stopped(self, bundle: Path, folder: Path, tmp_path: Path) -> Path:
        """`out.csv` with 256 + 16 files done of 305 and batches of 16; the whole in `whole.csv`."""
        model = recame.load(bundle, batch_size=16, threads=1)
        predict_files(model, [folder], tmp_path / "whole.csv")

        def stop(done: int, _total: int) -> None:
            if done >= 256:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict_files(model, [folder], tmp_path / "out.csv", on_progress=stop)
        return tmp_path / "out.csv"

    @pytest.mark.parametrize("damage", [b"no database" * 1000, b""])
    def test_a_damaged_database_is_begun_anew(
        self, damage: bytes, stopped: Path, bundle: Path, folder: Path
    ) -> None:
        (stopped.with_name("out.csv.partial") / "rows.sqlite").write_bytes(damage)
        summary = predict_files(recame.load(bundle, batch_size=16, threads=1), [folder], stopped)
        assert (summary.num_resumed, summary.num_images) == (0, 300)
        assert stopped.read_bytes() == stopped.with_name("whole.csv").read_bytes()

    def test_half_a_database_is_begun_anew(self, stopped: Path, bundle: Path, folder: Path) -> None:
        rows = stopped.with_name("out.csv.partial") / "rows.sqlite"
        os.truncate(rows, rows.stat().st_size // 2)
        summary = predict_files(recame.load(bundle, batch_size=16, threads=1), [folder], stopped)
        assert (summary.num_resumed, summary.num_images) == (0, 300)

    def test_the_finished_rows_are_kept(self, stopped: Path, bundle: Path, folder: Path) -> None:
        summary = predict_files(recame.load(bundle, batch_size=7), [folder], stopped)
        assert (summary.num_resumed, summary.num_images, summary.num_unreadable) == (256, 300, 5)
        assert stopped.read_bytes() == stopped.with_name("whole.csv").read_bytes()

    def test_another_model_is_refused(
        self,
        stopped: Path,
        folder: Path,
        write_bundle: Callable[..., Path],
        grey: PreprocessSpec,
        tmp_path: Path,
    ) -> None:
        other = recame.load(write_bundle(tmp_path / "other", grey, seed=1))
        with pytest.raises(DataError, match=r"with another model.*--fresh"):
            predict_files(other, [folder], stopped)
        summary = predict_files(other, [folder], stopped, resume=False)
        assert (summary.num_resumed, summary.num_images) == (0, 300)

    def test_changed_new_and_missing_files(
        self, stopped: Path, bundle: Path, folder: Path, pictures: Pictures
    ) -> None:
        (folder / "100.png").unlink()
        (folder / "000-new.png").symlink_to(pictures[0] / "100.png")
        (folder / "007.png").unlink()
        (folder / "007.png").symlink_to(pictures[0] / "299.png")
        (folder / "017-broken.png").write_bytes((pictures[0] / "017.png").read_bytes())
        model = recame.load(bundle, batch_size=16, threads=1)
        summary = predict_files(model, [folder], stopped)
        assert summary.num_resumed == 256 - 3
        assert (summary.num_images, summary.num_unreadable) == (301, 4)
        again = predict_files(model, [folder], stopped.with_name("again.csv"))
        assert summary.counts == again.counts
        one, other = (pd.read_csv(p, keep_default_na=False) for p in (stopped, again.out))
        assert one["image"].tolist() == other["image"].tolist()
        tables = [
            each[each["action"] != "unreadable"][probability_columns(CLASSES)].astype(np.float32)
            for each in (one, other)
        ]
        np.testing.assert_allclose(*tables, atol=1e-6)

    def test_another_lot_under_the_same_names(
        self, stopped: Path, bundle: Path, folder: Path, pictures: Pictures, tmp_path: Path
    ) -> None:
        """The line recycles its names: lot A was stopped half-way, and lot B lies there now."""
        shuffled = sorted(pictures[0].iterdir())[::-1]
        for place, path in enumerate(sorted(pictures[0].iterdir())):
            (folder / path.name).unlink()
            (folder / path.name).write_bytes(shuffled[place].read_bytes())
        model = recame.load(bundle, batch_size=16, threads=1)
        summary = predict_files(model, [folder], stopped)
        # The empty files alone are what they were.
        assert summary.num_resumed == 3
        predict_files(model, [folder], tmp_path / "lot_b.csv")
        one, other, lot_a = (
            [label for label in pd.read_csv(p, keep_default_na=False)["prediction"] if label]
            for p in (stopped, tmp_path / "lot_b.csv", tmp_path / "whole.csv")
        )
        assert one == other == lot_a[::-1]

    @pytest.mark.parametrize("left", ["a newer version", "the version before"])
    def test_rows_of_another_version_are_refused(
        self, left: str, stopped: Path, bundle: Path, folder: Path
    ) -> None:
        inside = stopped.with_name("out.csv.partial")
        if left == "a newer version":
            with sqlite3.connect(inside / "rows.sqlite") as db:
                db.execute("UPDATE start SET schema = 99")
            db.close()
        else:
            (inside / "rows.sqlite").rename(inside / "rows.csv")
            (inside / "identity.json").write_text('{"schema": 1}')
        model = recame.load(bundle)
        with pytest.raises(DataError, match=r"another version of recame.*--fresh"):
            predict_files(model, [folder], stopped)
        summary = predict_files(model, [folder], stopped, resume=False)
        assert (summary.num_resumed, summary.num_images) == (0, 300)
        assert not inside.exists()


def test_a_full_disk_is_told(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*args: Any, connect: Any = sqlite3.connect, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **options)
        db.execute("PRAGMA max_page_count = 4")
        return db

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(DataError, match=r"the disk is full\. Free some space"):
        predict_files(recame.load(bundle), [folder], tmp_path / "out.csv")


def test_parquet_is_the_same_table(bundle: Path, folder: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    model = recame.load(bundle, batch_size=16, threads=1)
    predict_files(model, [folder], tmp_path / "a.csv")
    predict_files(model, [folder], tmp_path / "a.parquet")
    one = load_predictions(tmp_path / "a.csv")
    other = load_predictions(tmp_path / "a.parquet")
    assert (one.classes, other.classes) == (tuple(CLASSES), tuple(CLASSES))
    assert (one.model, other.model) == ("", model.fingerprint)
    np.testing.assert_array_equal(one.predictions.probabilities, other.predictions.probabilities)
    columns = parquet.read_table(tmp_path / "a.parquet")
    assert (
        columns["prediction"].to_pylist()
        == pd.read_csv(tmp_path / "a.csv", keep_default_na=False)["prediction"].tolist()
    )
    told = columns.schema.metadata
    assert told[SCHEMA_KEY] == str(PREDICTIONS_SCHEMA).encode()
    assert json.loads(told[CLASSES_KEY]) == CLASSES
    assert told[MODEL_KEY].decode() == model.fingerprint


def test_names_with_commas_quotes_and_line_ends(
    bundle: Path, pictures: Pictures, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = ['a,"b".png', "line\nend.png", "car\rriage.png", "ä ö.png", os.fsdecode(b"\xff.png")]
    names = sorted(odd)
    for name in names:
        (folder / name).write_bytes((pictures[0] / "000.png").read_bytes())
    (folder / "0\r.png").write_bytes(b"")
    summary = recame.predict(bundle, folder, out=tmp_path / "odd.csv")
    content = Path(summary.out).read_bytes().decode()
    rows = list(csv.reader(io.StringIO(content, newline="")))
    assert [Path(text_of(row[0])).name for row in rows[1:]] == sorted([*names, "0\r.png"])
    assert [Path(name).name for name, _ in summary.unreadable] == ["0\r.png"]


def test_no_cell_is_a_formula(
    write_bundle: Callable[..., Path],
    grey: PreprocessSpec,
    pictures: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("=cmd()", "+1", "@x")
    space = LabelSpace(names, (90, 9, 3))
    model = recame.load(write_bundle(tmp_path / "formulas", grey, space=space))
    monkeypatch.chdir(tmp_path)
    images = ["-1.png", "=A1.png", "@b.png", "+c.png", "'=d.png", "plain.png"]
    for place, name in enumerate(images):
        Path(name).write_bytes((pictures[0] / f"{place:03d}.png").read_bytes())
    Path("=bad.png").write_bytes(b"")
    tables = {}
    for ending in ("csv", "parquet"):
        summary = predict_files(model, [*images, "=bad.png"], f"out.{ending}")
        tables[ending] = load_predictions(f"out.{ending}", names).predictions
        assert summary.unreadable == (("=bad.png", "empty file (0 bytes)"),)
        assert set(summary.counts) <= set(names)
    with Path("out.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    assert all(cell[:1] not in set("=+-@") for row in rows for cell in row)
    assert sorted(row[0] for row in rows) == sorted(
        name if name == "plain.png" else f"'{name}" for name in [*images, "=bad.png"]
    )
    one, other = tables["csv"].table, tables["parquet"].table
    assert one["image"].tolist() == other["image"].tolist()
    assert sorted(one["image"]) == sorted([*images, "=bad.png"])
    assert one["action"].tolist() == other["action"].tolist()
    assert sorted(set(one["action"])) == ["automatic", "unreadable"]


def test_what_cannot_be_written_is_told_first(
    bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"must end in .csv or .parquet"):
        recame.predict(bundle, folder, out=tmp_path / "out.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="pyarrow"):
        recame.predict(bundle, folder, out=tmp_path / "out.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*Check the folder"):
        recame.predict(bundle, folder, out=tmp_path / "file" / "out.csv")


def test_nothing_readable_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UnreadableError, match=r"None of 1 image can be read \(.*not an image"):
        recame.predict(bundle, tmp_path, out=tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


def test_two_starts_at_once_do_not_mix(bundle: Path, folder: Path, tmp_path: Path) -> None:
    model = recame.load(bundle)
    names = ListedImages(sorted(str(path) for path in folder.iterdir()), [], {})
    out = tmp_path / "out.csv"
    with PartialTable(out, model, names, resume=True):
        for resume in (True, False):
            with pytest.raises(DataError, match="Another prediction is writing"):
                PartialTable(out, model, names, resume=resume)
    with PartialTable(out, model, names, resume=True) as partial:
        assert list(partial.todo) == list(range(305))


@pytest.mark.skipif(os.name == "nt", reason="Windows' names are made of UTF-16")
class TestNamesThatAreNoText:
    """`bad` and the byte FF: valid UTF-8 in every table, and the very name comes back."""

    @pytest.fixture
    def named(self, pictures: Pictures, tmp_path: Path) -> list[str]:
        folder = tmp_path / "images"
        folder.mkdir()
        names = [os.fsdecode(name) for name in (b"bad\xff.png", b"bad\\udcff.png", b"=\xff.png")]
        paths = [str(folder / name) for name in names]
        for path in paths:
            Path(path).write_bytes((pictures[0] / "000.png").read_bytes())
        (folder / os.fsdecode(b"torn\xfe.png")).write_bytes(b"")
        return sorted(paths)

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_both_tables(self, suffix: str, named: list[str], bundle: Path, tmp_path: Path) -> None:
        out = tmp_path / f"out{suffix}"
        summary = recame.predict(bundle, tmp_path / "images", out=out, max_unreadable=1)
        read = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
        seen = read[read["action"] != "unreadable"]
        plain = sorted(seen["image"].map(lambda cell: Path(cell).name))
        assert plain == ["=\\udcff.png", "bad\\\\udcff.png", "bad\\udcff.png"]
        told = load_predictions(out).predictions.table
        assert told["image"][told["action"] != "unreadable"].tolist() == named
        [torn] = told["image"][told["action"] == "unreadable"]
        assert os.fsencode(Path(torn).name) == b"torn\xfe.png"
        assert summary.unreadable == ((torn, "empty file (0 bytes)"),)

    def test_an_interrupted_start_knows_them(
        self, named: list[str], bundle: Path, tmp_path: Path
    ) -> None:
        model, listed = recame.load(bundle), ListedImages(named, [], {})
        with PartialTable(tmp_path / "a.csv", model, listed, resume=True) as partial:
            partial.add(list(model.stream(named, checksums=True))[:2])
        with PartialTable(tmp_path / "a.csv", model, listed, resume=True) as partial:
            assert list(partial.todo) == [2]

    def test_a_terminal_of_ascii(
        self,
        named: list[str],
        write_bundle: Callable[..., Path],
        grey: PreprocessSpec,
        tmp_path: Path,
    ) -> None:
        space = LabelSpace(("ok", "crack", "Bürste"), (90, 9, 3))
        bundle = write_bundle(tmp_path / "b", grey, space=space)
        environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        words = ["predict", bundle, *named, "-o", tmp_path / "out.csv", "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, "-c", "from recame.cli import main; main()", *words],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"3 images: B\\xfcrste 3" in done.stdout


@pytest.mark.parametrize("kind", ["graph", "torch", "bundle"])
def test_digits_do_not_depend_on_what_is_missing(
    kind: str, finished: Path, exported_run: Path, defects: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(defects, tmp_path / "images"))
    model = exported_run
    if kind != "bundle":
        model = Path(shutil.copytree(finished, tmp_path / "run"))
    if kind == "torch":
        shutil.rmtree(model / "graph")
    # Torch rounds alike in batches of one size only.
    recame.predict(
        model, images, out=tmp_path / "whole.csv", batch_size=2 if kind == "torch" else 16
    )
    hidden = sorted(images.rglob("*.png"))[1::2]

    def hide(_done: int, _total: int) -> None:  # each batch keeps one image
        for path in hidden:
            path.rename(path.with_suffix(".away"))
        hidden.clear()

    options: dict[str, Any] = {"out": tmp_path / "out.csv", "batch_size": 2}
    with pytest.raises(UnreadableError, match="51 of 102 files cannot be opened"):
        recame.predict(model, images, on_progress=hide, **options)
    for path in images.rglob("*.away"):
        path.rename(path.with_suffix(".png"))
    assert recame.predict(model, images, **options).num_resumed == 51
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


class TestOutage:
    """A place that goes away is no finished lot."""

    def test_the_share_goes_and_comes_back(
        self, bundle: Path, folder: Path, pictures: Pictures, tmp_path: Path
    ) -> None:
        for path in pictures[0].iterdir():
            for number in (1, 2):
                (folder / f"{number}-{path.name}").symlink_to(path)
        model, away = recame.load(bundle, batch_size=16, threads=1), tmp_path / "away"
        predict_files(model, [folder], tmp_path / "whole.csv")
        out = tmp_path / "out.csv"

        def unmount(done: int, _total: int) -> None:
            if done == 256:
                folder.rename(away)

        with pytest.raises(UnreadableError, match=r"of 905 files cannot be opened.*same command"):
            predict_files(model, [folder], out, on_progress=unmount)
        assert not out.exists()
        away.rename(folder)
        summary = predict_files(model, [folder], out)
        # The stream reads a few batches ahead, which were still there.
        assert 256 <= summary.num_resumed < 256 + 5 * 16
        assert (summary.num_images, summary.num_unreadable) == (900, 5)
        assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()

    def test_more_broken_files_than_any_lot_has(
        self, bundle: Path, folder: Path, tmp_path: Path
    ) -> None:
        for number in range(40):
            (folder / f"{number:03d}-torn.png").write_bytes(b"")
        model, out = recame.load(bundle, batch_size=16, threads=1), tmp_path / "out.csv"
        with pytest.raises(UnreadableError, match=r"45 of 345 files cannot be read.*empty file"):
            predict_files(model, [folder], out)
        assert not out.exists()
        summary = predict_files(model, [folder], out, max_unreadable=1)
        assert (summary.num_resumed, summary.num_images, summary.num_unreadable) == (345, 300, 45)
        predict_files(model, [folder], tmp_path / "at_once.csv", max_unreadable=0.2)
        assert out.read_bytes() == (tmp_path / "at_once.csv").read_bytes()

    @pytest.mark.parametrize(
        ("files", "broken", "share", "finished"),
        [(4, 1, 0.1, True), (4, 1, 0.0, False), (19, 2, 0.1, True), (18, 3, 0.1, False)],
    )
    def test_the_share_is_rounded_up_to_whole_files(
        self,
        files: int,
        broken: int,
        share: float,
        finished: bool,
        bundle: Path,
        pictures: Pictures,
        tmp_path: Path,
    ) -> None:
        lot = tmp_path / "lot"
        lot.mkdir()
        for number in range(files):
            content = b"" if number < broken else (pictures[0] / "000.png").read_bytes()
            (lot / f"{number}.png").write_bytes(content)
        model, out = recame.load(bundle), tmp_path / "out.csv"
        if not finished:
            with pytest.raises(UnreadableError, match=f"{broken} of {files} files"):
                predict_files(model, [lot], out, max_unreadable=share)
        else:
            assert predict_files(model, [lot], out, max_unreadable=share).num_unreadable == broken
        assert out.exists() == finished

    def test_a_share_is_a_share(self, bundle: Path, folder: Path, tmp_path: Path) -> None:
        for share in (-0.1, 5, float("nan")):
            with pytest.raises(
                ConfigError, match=r"--max-unreadable .* share of files in \[0, 1\]"
            ):
                recame.predict(bundle, folder, out=tmp_path / "o.csv", max_unreadable=share)


def test_an_answer_without_numbers_is_a_row_for_review(
    write_bundle: Callable[..., Path], grey: PreprocessSpec, pictures: Pictures, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path, pixels in zip(sorted(pictures[0].iterdir()), pictures[1], strict=True):
        image = pixels[..., 0].copy()
        image[0, 0] = 255 if path.stem in ("000", "123") else 0
        Image.fromarray(image).save(folder / path.name)
    model = recame.load(write_bundle(tmp_path / "b", grey, at_white=float("nan")))
    for ending in ("csv", "parquet"):
        summary = predict_files(model, [folder], tmp_path / f"out.{ending}")
        assert (summary.num_images, summary.num_unreadable) == (300, 0)
        assert (summary.num_unanswered, summary.num_review) == (2, 2)
        assert sum(summary.counts.values()) == 298
        read = load_predictions(tmp_path / f"out.{ending}").predictions
        held = (read.table["action"] == "review").to_numpy()
        assert np.flatnonzero(held).tolist() == [0, 123]
        assert np.isnan(read.probabilities[held]).all()
        assert np.isfinite(read.probabilities[~held]).all()
        assert set(read.table["reason"][held]) == {"not_finite"}
        assert read.table["note"][held].str.contains("no number").all()
    rows = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert rows["prediction"][held].tolist() == ["", ""]


class TestColumnsOfTheTable:
    """A table of images gives its rows the names and columns that it has."""

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_are_kept(self, kind: str, bundle: Path, folder: Path, tmp_path: Path) -> None:
        names = ["002.png", "000.png", "000-broken.png", "001.png"]
        lot = pd.DataFrame(
            {
                "image": [f"images/{name}" for name in names],
                "label": ["ok", "", "crack", "NA"],
                "board": ["=7", "a,b", "0012", ""],
                "action": ["mine"] * 4,
                "p_lot": ["x"] * 4,
                "expert0_p_ok": ["1"] * 4,
            }
        )
        source = tmp_path / f"lot.{kind}"
        lot.to_csv(source, index=False) if kind == "csv" else lot.to_parquet(source)
        out = tmp_path / "made" / f"out.{kind}"
        recame.predict(bundle, source, out=out, max_unreadable=1)
        read = load_predictions(out)
        table = read.predictions.table
        assert read.classes == tuple(CLASSES)
        assert table["image"].tolist() == lot["image"].tolist()
        assert table["path"].tolist() == [str(tmp_path / name) for name in lot["image"]]
        assert read.predictions.target.tolist() == [0, -1, 1, 2]
        assert read.predictions.expert_probabilities.shape == (4, 0, 3)
        assert table["board"].fillna("").tolist() == lot["board"].tolist()
        assert set(table["manifest_action"]) == {"mine"}
        assert {"p_lot", "manifest_expert0_p_ok"} <= set(table)
        assert table["action"].tolist() == ["automatic", "automatic", "unreadable", "automatic"]

    def test_of_several_sources(self, bundle: Path, folder: Path, tmp_path: Path) -> None:
        for name, column in (("a", "lot"), ("b", "wafer")):
            lot = pd.DataFrame({"image": [f"images/00{'12'[name == 'b']}.png"], column: [name]})
            lot.to_csv(tmp_path / f"{name}.csv", index=False)
        sources = [tmp_path / "a.csv", tmp_path / "b.csv", folder / "005.png"]
        recame.predict(bundle, sources, out=tmp_path / "out.csv")
        rows = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
        assert rows["lot"].tolist() == ["a", "", ""]
        assert rows["wafer"].tolist() == ["", "b", ""]
        assert rows["image"].tolist() == ["images/001.png", "images/002.png", str(sources[2])]

    def test_one_file_has_one_row_however_it_is_named(
        self,
        bundle: Path,
        folder: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        pd.DataFrame({"image": ["./images/001.png"], "lot": ["A"]}).to_csv("a.csv", index=False)
        recame.predict(bundle, ["images/001.png", "a.csv", folder / "001.png"], out="out.csv")
        [row] = pd.read_csv("out.csv").to_dict("records")
        assert (row["lot"], row["path"]) == ("A", str(folder / "001.png"))

    def test_contradictions_are_refused(self, bundle: Path, folder: Path, tmp_path: Path) -> None:
        for name, rows in (
            ("twice", "image,label\nimages/001.png,ok\nimages/001.png,crack\n"),
            ("header", "image,label,label\nimages/001.png,ok,crack\n"),
        ):
            (tmp_path / f"{name}.csv").write_text(rows)
        with pytest.raises(DataError, match=r"named twice, once with 'ok' and once with 'crack'"):
            recame.predict(bundle, tmp_path / "twice.csv", out=tmp_path / "out.csv")
        with pytest.raises(DataError, match=r"several columns 'label'"):
            recame.predict(bundle, tmp_path / "header.csv", out=tmp_path / "out.csv")
        (tmp_path / "twice.csv").write_text("image,label\nimages/001.png,ok\nimages/001.png,\n")
        assert (
            recame.predict(bundle, tmp_path / "twice.csv", out=tmp_path / "o.csv").num_images == 1
        )

    def test_change_without_another_forward(
        self, bundle: Path, folder: Path, tmp_path: Path
    ) -> None:
        """What is kept of an interrupted start is what the model said, not what a table says."""
        source = tmp_path / "lot.csv"
        names = [f"images/{number:03d}.png" for number in range(300)]
        pd.DataFrame({"image": names, "lot": "A"}).to_csv(source, index=False)
        model = recame.load(bundle, batch_size=16, threads=1)

        def stop(done: int, _total: int) -> None:
            if done >= 256:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            predict_files(model, [source], tmp_path / "out.csv", on_progress=stop)
        pd.DataFrame({"image": names, "wafer": "B"}).to_csv(source, index=False)
        assert predict_files(model, [source], tmp_path / "out.csv").num_resumed == 256
        rows = pd.read_csv(tmp_path / "out.csv")
        assert set(rows["wafer"]) == {"B"}
        assert "lot" not in rows


def test_ctrl_c_keeps_what_is_done(bundle: Path, folder: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    predict_files(recame.load(bundle, threads=1, batch_size=16), [folder], whole)
    words = [sys.executable, "-c", SLOW, str(bundle), str(folder), str(out)]
    child = subprocess.Popen(words, stderr=subprocess.PIPE)
    wait_for_rows(tmp_path)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert told.strip().endswith(b"KeyboardInterrupt")
    assert child.returncode in (1, 130, -signal.SIGINT)
    assert not out.exists()
    summary = predict_files(recame.load(bundle, threads=1), [folder], out)
    assert 0 < summary.num_resumed < 305
    assert out.read_bytes() == whole.read_bytes()


def test_advice_follows_the_reasons(bundle: Path, tmp_path: Path) -> None:
    heights = np.linspace(0, 1, 30, dtype=np.float32).reshape(6, 5)
    for number in range(4):
        name = str(tmp_path / f"{number}.tif")
        cv2.imwrite(name, heights if number else (heights * 255).astype(np.uint8))
    names = [tmp_path / f"{number}.tif" for number in range(4)]
    with pytest.raises(UnreadableError) as refused:
        recame.predict(bundle, names, out=tmp_path / "out.csv")
    told = str(refused.value)
    assert "3 of 4 files cannot be read" in told
    assert "Bring the files back" not in told
    assert (
        "convert files of a kind that the model does not accept, or train a model that does" in told
    )
    assert told.endswith("or accept a table without these files with --max-unreadable 1.")


def test_what_images_lose_is_counted_named_and_written(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(3)
    for number in range(300):
        pixels = rng.integers(0, 256, (6, 5), dtype=np.uint8)
        shown = pixels.astype(np.uint16) * 16 if number in {7, 290} else pixels
        Image.fromarray(shown).save(folder / f"{number:03d}.png")
    pages = [Image.fromarray(np.full((6, 5), 9 * n, np.uint8)) for n in range(3)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    colour = np.zeros((6, 5, 3), np.uint8)
    colour[..., 0] = 200
    Image.fromarray(colour).save(folder / "red.png")
    predictor = recame.load(bundle, threads=1, batch_size=4)

    def interrupted(done: int, total: int) -> None:
        if done == 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, [folder], tmp_path / "out.csv", on_progress=interrupted)
    summary = predict_files(predictor, [folder], tmp_path / "out.csv")
    assert summary.num_resumed == 256
    assert summary.lost == {
        "near black": (2, str(folder / "007.png")),
        "pages": (1, str(folder / "pages.tif")),
        "colour": (1, str(folder / "red.png")),
    }
    table = pd.read_csv(summary.out, index_col="image", keep_default_na=False)
    dark = table.loc[str(folder / "290.png")]
    assert dark["action"] == table.loc[str(folder / "007.png"), "action"] == "review"
    assert dark["reason"] == "near_black"
    assert dark["note"] == "its values use 12 of 16 bits, but the model sees only the upper 8 bits"
    assert table.loc[str(folder / "red.png"), "note"] == "its colour becomes grey"
    assert (table["note"] != "").sum() == 4
    console = Console(record=True, width=200)
    print_summary(summary, console)
    told = console.export_text()
    assert "2 images use only the darkest part of the model's range of values, " in told
    assert (
        f"1 image is in colour, but the model sees only grey values ({folder / 'red.png'})" in told
    )
    assert "3 of them go to a person (nearly black to the model 2, without an answer 1)" in told
    decided = {("review", "near_black"): 1, ("unknown", "unknown"): 1}
    one = replace(summary, decided=decided, num_unreadable=1, num_resumed=1)
    print_summary(one, console)
    told = console.export_text()
    assert "1 of them goes to a person (nearly black to the model 1)" in told
    assert "1 of them is unlike the training images, and goes to a person" in told
    assert "1 file cannot be read:" in told
    assert "1 file was done by the interrupted prediction" in told
    assert "1 of them goes to a person" in str(replace(one, decided={("review", "audit"): 1}))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_among_the_images_is_not_waited_for(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(20):
        pixels = np.full((6, 5), 9 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    os.mkfifo(tmp_path / "in" / "x.png")
    predictor = recame.load(bundle, threads=1)
    for _ in range(2):
        summary = predict_files(predictor, [tmp_path / "in"], tmp_path / "out.csv")
        assert summary.num_images == 20
        assert summary.unreadable == (
            (str(tmp_path / "in" / "x.png"), "cannot be opened: a pipe or a device, not a file"),
        )


def test_files_that_are_no_images_keep_their_checksum(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (tmp_path / "text.png").write_bytes(b"text")
    predictor = recame.load(bundle, threads=1)
    names = [tmp_path / "torn.png", tmp_path / "text.png", tmp_path / "none.png"]
    found = list(predictor.stream(names, checksums=True))
    assert [item.sha256 is None for item in found] == [False, False, True]
    assert found[1].sha256 == hashlib.sha256(b"text").hexdigest()


def test_pages_are_named_in_the_table(bundle: Path, tmp_path: Path) -> None:
    pages = list(np.random.default_rng(0).integers(0, 256, (3, 5, 6), dtype=np.uint8))
    cv2.imwritemulti(str(tmp_path / "a.tif"), pages)
    names = [str(tmp_path / f"a.tif{page}") for page in ("", "#1", "#2", "#3")]
    out = tmp_path / "out.csv"
    predictor = recame.load(bundle, threads=1)
    summary = predict_files(predictor, names, out)
    assert summary.num_images == 4
    with out.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image"] for row in rows] == names
    # What a folder leaves out is said; who names pages leaves nothing out.
    assert [row["note"] for row in rows] == ["only the first of its 3 pages is read", "", "", ""]
    answers = [found.probabilities for found in predictor.predict(names)]
    np.testing.assert_array_equal(answers[0], answers[1])
    for page, answer in zip(pages, answers[1:], strict=True):
        np.testing.assert_allclose(answer, predictor.predict(page)[0].probabilities, rtol=1e-6)
    assert not np.array_equal(answers[1], answers[2])
    (streamed,) = predictor.stream([Path(names[2])], num_images=1, checksums=True)
    assert (streamed.image, streamed.sha256) == (names[2], sha256(tmp_path / "a.tif"))


@pytest.mark.slow
def test_pages_are_taken_up_by_what_their_file_holds(bundle: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "a.tif", tmp_path / "out.csv"
    cv2.imwritemulti(str(path), [np.full((5, 6), n, np.uint8) for n in range(1, 4)] * 100)
    names = [f"{path}#{page}" for page in range(1, 301)]
    model = recame.load(bundle, batch_size=16, threads=1)

    def stop(done: int, _total: int) -> None:
        if done >= 256:
            raise KeyboardInterrupt

    for changed, resumed in ((False, 256), (True, 0)):
        out.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            predict_files(model, names, out, on_progress=stop)
        if changed:
            cv2.imwritemulti(str(path), [np.full((5, 6), 9, np.uint8)] * 300)
        summary = predict_files(model, names, out)
        assert (summary.num_images, summary.num_resumed) == (300, resumed)
