from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from recame.errors import CheckpointError, DataError, ExportError
from recame.files import (
    file_name,
    held,
    hold,
    holder,
    read_json,
    sha256,
    write_json,
    write_together,
    write_whole,
)
from recame.folders import new_folder


class TestWriting:
    def test_puts_the_file_in_place(self, tmp_path: Path) -> None:
        with write_whole(tmp_path / "a.txt") as partial:
            partial.write_text("new", encoding="utf-8")
            assert not (tmp_path / "a.txt").exists()
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "new"

    @pytest.mark.parametrize("problem", [ValueError("bug"), KeyboardInterrupt()])
    def test_a_failure_leaves_the_old_file(self, problem: BaseException, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("old", encoding="utf-8")

        def fail() -> None:
            with write_whole(path) as partial:
                partial.write_text("half", encoding="utf-8")
                raise problem

        with pytest.raises(type(problem)):
            fail()
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
    def test_what_the_user_can_mend_is_said(self, number: int, tmp_path: Path) -> None:
        def fail() -> None:
            with write_whole(tmp_path / "a.txt"):
                raise OSError(number, os.strerror(number))

        with pytest.raises(DataError, match=r"a\.txt cannot be written .*--resume"):
            fail()

    def test_other_system_errors_are_bugs(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), write_whole(tmp_path / "a.txt"):
            (tmp_path / "nothing").read_text(encoding="utf-8")

    def test_no_json_with_nan(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"x": 1.5})
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"x": float("nan")})
        assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1.5}


class TestTogether:
    def test_other_files_stay(self, tmp_path: Path) -> None:
        out = tmp_path / "new" / "out"
        for content in ("first", "second"):
            with write_together(out) as partial:
                (partial / "a.txt").write_text(content, encoding="utf-8")
            (out / "mine.txt").touch()
        assert sorted(p.name for p in out.iterdir()) == ["a.txt", "mine.txt"]
        assert (out / "a.txt").read_text() == "second"

    def test_all_or_none(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("old", encoding="utf-8")

        def fail() -> None:
            with write_together(tmp_path, error=ExportError) as partial:
                (partial / "a.txt").write_text("new", encoding="utf-8")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(ExportError, match="No space left on device"):
            fail()
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "old"


class TestNewFolder:
    def test_replaces_only_a_whole_one(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        with new_folder(out) as partial:
            (partial / "first").touch()

        def fail() -> None:
            with new_folder(out, replace=True) as partial:
                (partial / "second").touch()
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert [p.name for p in out.iterdir()] == ["first"]
        with new_folder(out, replace=True) as partial:
            (partial / "second").touch()
        assert [p.name for p in out.iterdir()] == ["second"]
        assert [p.name for p in tmp_path.iterdir()] == ["out"]


class TestHolding:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        mine = hold(tmp_path / "new" / "lock")
        assert mine is not None
        assert hold(tmp_path / "new" / "lock") is None
        mine.close()
        again = hold(tmp_path / "new" / "lock")
        assert again is not None
        again.close()

    def test_the_message_names_process_and_host(self, tmp_path: Path) -> None:
        def take() -> None:
            with held(tmp_path / "lock", "The run runs/first", "Wait for it.", error=ExportError):
                pass

        with held(tmp_path / "lock", "The run", "Wait."):
            whole = f"The run runs/first .*process {os.getpid()} on {platform.node()}.*Wait for it"
            with pytest.raises(ExportError, match=whole):
                take()
            (tmp_path / "lock.holder").write_text("{", encoding="utf-8")
            with pytest.raises(ExportError, match="another process"):
                take()
        take()
        assert not (tmp_path / "lock.holder").exists()

    @pytest.mark.parametrize("locks", [True, False], ids=["locks", "none"])
    def test_a_dead_holders_is_taken_over(
        self, locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not locks:  # as on some network shares
            monkeypatch.setattr(FileLock, "_acquire", _no_locks)
        reader, writer = multiprocessing.Pipe(duplex=False)

        def child() -> None:
            taken = hold(tmp_path / "lock")
            assert taken is not None
            writer.send(os.getpid())
            signal.pause()

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        assert reader.recv() == process.pid
        assert hold(tmp_path / "lock") is None
        assert f"process {process.pid} on " in holder(tmp_path / "lock")
        process.kill()
        process.join()
        mine = hold(tmp_path / "lock")
        assert mine is not None
        assert f"process {os.getpid()} on " in holder(tmp_path / "lock")
        mine.close()

    def test_waiting(self, tmp_path: Path) -> None:
        mine = hold(tmp_path / "lock")
        assert mine is not None
        threading.Timer(0.05, mine.close).start()
        other = hold(tmp_path / "lock", wait_s=60.0)
        assert other is not None
        other.close()

    def test_a_place_without_rights_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match=r"lock cannot be written"):
            hold(tmp_path / "file" / "lock")


def _no_locks(_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    values = {"name": "b\udcfcrste", "class": "Bürste"}
    write_json(tmp_path / "a.json", values)
    assert read_json(tmp_path / "a.json") == values
    assert "Bürste" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "cannot be read as JSON"), ("[1]", "holds a list"), ('{"schema": 3}', "schema 3.*to 2")],
)
def test_json_that_cannot_be_used(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=told):
        read_json(tmp_path / "a.json", newest=2)
    with pytest.raises(DataError, match=r"no\.json cannot be read"):
        read_json(tmp_path / "no.json", error=DataError)


def test_checksum(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"recame")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"recame").hexdigest()


class TestNames:
    @pytest.mark.parametrize(
        "text", ["test", "lot 7", "val_2", "缺陷", ".hidden", "console", "com", "a.b"]
    )
    def test_ordinary_ones_stay(self, text: str) -> None:
        assert file_name(text) == text

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("lot:7", "lot%3A7"),
            ("a/b", "a%2Fb"),
            ("..", ".%2E"),
            ("ends ", "ends%20"),
            ("ends.", "ends%2E"),
            ("CON", "%43ON"),
            ("nul.txt", "%6Eul.txt"),
            ("Com1", "%43om1"),
            ("aux .txt", "%61ux .txt"),
            ("conin$", "%63onin$"),
            ("100%", "100%25"),
            ("a\nb\x00", "a%0Ab%00"),
            ("", "%"),
        ],
    )
    def test_others_are_encoded(self, text: str, name: str) -> None:
        assert file_name(text) == name

    @given(
        st.lists(st.text(alphabet='aCON.nul %:/\\"\x00\n12', max_size=6), min_size=2, unique=True)
    )
    def test_no_two_share_one_and_each_can_be_made(self, texts: list[str]) -> None:
        names = [file_name(text) for text in texts]
        assert len(set(names)) == len(texts)
        for name in names:
            assert name not in ("", ".", "..")
            assert not set(name) & set('<>:"/\\|?*\x00\n')
            assert name[-1] not in ". "
            assert name.partition(".")[0].lower() not in ("con", "nul")
