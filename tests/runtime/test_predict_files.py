"""Any number of files into one table: each exactly once, also after a kill."""

from __future__ import annotations

import csv
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import recame
from recame.contracts import PreprocessSpec
from recame.errors import ConfigError, DataError, MissingDependencyError
from recame.runs.predictions import PREDICTIONS_SCHEMA, SCHEMA_KEY, load_predictions
from recame.runtime import predict_files
from recame.runtime.partial_table import PartialTable

Pictures = tuple[Path, np.ndarray]

HEADER = ["image", "prediction", "confidence", "decision", "p_ok", "p_crack", "p_NA"]

#: A slow model that is killed half-way.
SLOW = """
import sys, time
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
    assert list(table) == HEADER
    assert [Path(name).name for name in table["image"]] == [f"{i:03d}.png" for i in range(300)]
    space = recame.load(bundle).label_space
    read = load_predictions(out, space)  # every digit of float32 is there
    np.testing.assert_allclose(read.probabilities, expected(pictures[1], grey), atol=1e-5)
    names = np.array(space.names)[read.probabilities.argmax(1)]
    assert table["prediction"].tolist() == names.tolist() == table["decision"].tolist()
    assert (summary.num_images, summary.num_unreadable, summary.num_resumed) == (300, 5, 0)
    assert summary.counts == table["prediction"].value_counts().to_dict()
    broken = pd.read_csv(summary.unreadable_path)
    assert broken["reason"].tolist() == ["empty file (0 bytes)"] * 5
    assert list(broken["image"]) == [name for name, _ in summary.unreadable]
    assert heard[0] == (0, 305)
    assert heard[-1] == (305, 305)
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "table.csv",
        "table_unreadable.csv",
    ]


def test_killed_and_restarted(bundle: Path, folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.csv"
    predict_files(recame.load(bundle, threads=1, batch_size=16), [folder], whole)

    out = tmp_path / "out.csv"
    words = [sys.executable, "-c", SLOW, str(bundle), str(folder), str(out)]
    child = subprocess.Popen(words)
    # What is committed goes to the database's log first.
    rows = tmp_path / "out.csv.partial" / "rows.sqlite-wal"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not rows.exists() or rows.stat().st_size < 50_000):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not out.exists()

    # Another batch size now: that of the start decides, so that the last digit is the same.
    summary = predict_files(recame.load(bundle, threads=1, batch_size=7), [folder], out)
    assert 0 < summary.num_resumed < 305
    assert summary.num_resumed % 16 == 0
    assert (summary.num_images, summary.num_unreadable) == (300, 5)
    assert out.read_bytes() == whole.read_bytes()
    unreadable = tmp_path / "out_unreadable.csv"
    assert unreadable.read_bytes() == (tmp_path / "whole_unreadable.csv").read_bytes()
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
        for name in ("{}.csv", "{}_unreadable.csv"):
            whole = stopped.with_name(name.format("whole"))
            assert stopped.with_name(name.format("out")).read_bytes() == whole.read_bytes()

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
        np.testing.assert_allclose(one[HEADER[4:]], other[HEADER[4:]], atol=1e-6)

    @pytest.mark.parametrize("left", ["a newer version", "the version before"])
    def test_rows_of_another_version_are_refused(
        self, left: str, stopped: Path, bundle: Path, folder: Path
    ) -> None:
        inside = stopped.with_name("out.csv.partial")
        if left == "a newer version":
            with sqlite3.connect(inside / "rows.sqlite") as db:
                db.execute("UPDATE start SET schema = 3")
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
    space = model.label_space
    one = load_predictions(tmp_path / "a.csv", space)
    other = load_predictions(tmp_path / "a.parquet", space)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    columns = parquet.read_table(tmp_path / "a.parquet")
    assert (
        columns["prediction"].to_pylist()
        == pd.read_csv(tmp_path / "a.csv", keep_default_na=False)["prediction"].tolist()
    )
    assert columns.schema.metadata[SCHEMA_KEY] == str(PREDICTIONS_SCHEMA).encode()


def test_names_with_commas_quotes_and_line_ends(
    bundle: Path, pictures: Pictures, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    names = sorted(['a,"b".png', "line\nend.png", "ä ö.png", os.fsdecode(b"\xff.png")])
    for name in names:
        (folder / name).write_bytes((pictures[0] / "000.png").read_bytes())
    recame.predict(bundle, folder, out=tmp_path / "odd.csv")
    text = (tmp_path / "odd.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = list(csv.reader(text.splitlines(keepends=True)))
    assert [Path(row[0]).name for row in rows[1:]] == names


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
    with pytest.raises(DataError, match=r"None of 1 images can be read \(.*not an image"):
        recame.predict(bundle, tmp_path, out=tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.png"]


def test_two_starts_at_once_do_not_mix(bundle: Path, folder: Path, tmp_path: Path) -> None:
    model = recame.load(bundle)
    names = sorted(str(path) for path in folder.iterdir())
    out = tmp_path / "out.csv"
    with PartialTable(out, model, names, resume=True):
        for resume in (True, False):
            with pytest.raises(DataError, match="Another prediction is writing"):
                PartialTable(out, model, names, resume=resume)
    with PartialTable(out, model, names, resume=True) as partial:
        assert list(partial.todo) == list(range(305))


def test_parquet_refuses_names_that_are_no_text(bundle: Path, tmp_path: Path) -> None:
    model = recame.load(bundle)
    with pytest.raises(DataError, match=r"d\\udce9f\.png is no UTF-8"):
        PartialTable(tmp_path / "out.parquet", model, ["d\udce9f.png"], resume=True)
    assert not list(tmp_path.iterdir())
