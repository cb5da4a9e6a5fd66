from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from recame import folders
from recame.contracts import PreprocessSpec
from recame.errors import CheckpointError, ExportError
from recame.label_space import LabelSpace
from recame.runtime import bundle as bundle_module
from recame.runtime.bundle import (
    BUNDLE_SCHEMA,
    _checksum,
    assembling,
    is_bundle,
    open_bundle,
    write_document,
)

#: Replaces a bundle by itself again and again, until it is killed.
REPLACING = """
import sys, shutil
from pathlib import Path
from recame import folders
from recame.runtime.bundle import assembling, open_bundle, write_document
folder = Path(sys.argv[1])
if sys.argv[2] == "0":
    folders._exchange = lambda *_: False
facts = open_bundle(folder).document
for name in ("schema", "files", "checksum"):
    del facts[name]
print("ready", flush=True)
while True:
    for precision in ("fp16", "fp32"):
        facts["precision"] = precision
        with assembling(folder, replace=True) as partial:
            for name in ("model.xml", "model.bin"):
                shutil.copyfile(folder / name, partial / name)
            write_document(partial, facts)
"""

FACTS: dict[str, Any] = {
    "recame": "0.1.0",
    "created": "2026-01-01T00:00:00+00:00",
    "format": "openvino",
    "precision": "int8",
    "label_space": LabelSpace(("ok", "Öffnung"), (90, 3), normal="ok").to_dict(),
    "preprocess": PreprocessSpec(32, 32, 1, 8, 255.0, (0.5,), (0.25,)).to_dict(),
    "graph": {
        "input": "images",
        "outputs": ["probabilities", "features"],
        "views": 2,
        "temperature": 1.25,
        "num_experts": 2,
        "num_classes": 2,
        "attribution_grid": None,
    },
    "thresholds": {"normal": {"release_above": 0.75}},
    "data_fingerprint": "ab",
    "run": {},
    "versions": {},
    "parity": {},
    "max_pixels": 1000,
}


def write(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    (folder / "model.xml").write_bytes(b"<net/>" * 50)
    (folder / "model.bin").write_bytes(bytes(range(256)))
    write_document(folder, {**FACTS, **changes})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


def edit(folder: Path, *, seal: bool, **changes: object) -> None:
    """Change fields of the document; with `seal` also its checksum, as a forger would."""
    path = folder / "bundle.json"
    document = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    if seal:
        document["checksum"] = _checksum(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_opens_what_was_written(folder: Path) -> None:
    bundle = open_bundle(str(folder))
    assert bundle.label_space.names == ("ok", "Öffnung")
    assert (bundle.format, bundle.precision, bundle.views) == ("openvino", "int8", 2)
    assert (bundle.temperature, bundle.num_experts, bundle.max_pixels) == (1.25, 2, 1000)
    assert bundle.outputs == ("probabilities", "features")
    assert bundle.spec.mean == (0.5,)
    assert bundle.release_above == 0.75
    assert bundle.model_path == folder / "model.xml"
    assert bundle.document["files"]["model.bin"]["bytes"] == 256
    assert is_bundle(folder)
    assert not is_bundle(folder.parent)


def test_it_keeps_the_bytes_that_were_checked(folder: Path) -> None:
    bundle = open_bundle(folder)
    shutil.rmtree(folder)
    assert bundle.files == {"model.xml": b"<net/>" * 50, "model.bin": bytes(range(256))}
    assert "net" not in repr(bundle)


def test_it_states_what_may_escape(tmp_path: Path) -> None:
    for name, facts, expected in (
        ("a", {"escape_at_most": 0.25, "asked_max_escape": 0.01}, 0.25),
        ("before", {"max_escape": 0.01, "escape_upper": 0.5}, 0.5),
        ("none", {}, None),
    ):
        thresholds = {"normal": {"release_above": 0.75, **facts}}
        bundle = open_bundle(write(tmp_path / name, thresholds=thresholds))
        assert bundle.escape_at_most == expected


def test_without_threshold_nothing_is_released_or_held(tmp_path: Path) -> None:
    assert open_bundle(write(tmp_path / "b", thresholds={})).release_above is None


@pytest.mark.parametrize("name", ["model.bin", "model.xml"])
def test_flipped_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"content of {name} has changed: SHA-256"):
        open_bundle(folder)


def test_short_file(folder: Path) -> None:
    (folder / "model.bin").write_bytes(bytes(range(255)))
    with pytest.raises(CheckpointError, match=r"model\.bin has 255 bytes instead of 256"):
        open_bundle(folder)


def test_missing_file(folder: Path) -> None:
    (folder / "model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.bin is missing.*export the run again"):
        open_bundle(folder)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no bundle"):
        open_bundle(tmp_path)


def test_newer_schema(folder: Path) -> None:
    edit(folder, seal=True, schema=BUNDLE_SCHEMA + 1)
    with pytest.raises(CheckpointError, match=r"has schema 3; .* pip install -U recame"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"label_space": LabelSpace(("ok", "crack"), (90, 3), normal="ok").to_dict()},
        {"thresholds": {"normal": {"release_above": 0.1}}},
        {"checksum": "0" * 64},
    ],
    ids=["labels", "thresholds", "checksum"],
)
def test_edited_document(folder: Path, change: dict[str, object]) -> None:
    edit(folder, seal=False, **change)
    with pytest.raises(CheckpointError, match="does not match its own checksum"):
        open_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[1]"])
def test_no_json(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON|holds a list"):
        open_bundle(folder)


CALIBRATED = {
    "graph": {**FACTS["graph"], "temperature": 1.0},
    "calibration": {
        "temperature": 2.0,
        "fitted_on": {"split": "val", "images": 90},
        "note": "",
        "method": "bias_corrected",
        "scale": [0.5, 0.5],
        "bias": [-1.0, 1.0],
    },
}


def test_a_calibration_stands_beside_the_graph(tmp_path: Path, folder: Path) -> None:
    bundle = open_bundle(write(tmp_path / "calibrated", **CALIBRATED))
    assert bundle.calibration is not None
    assert (bundle.temperature, bundle.calibration.balanced) == (2.0, True)
    assert bundle.document["schema"] == 2  # a version before would leave it out without a word
    assert bundle == open_bundle(bundle.path)
    before = open_bundle(folder)  # whose graph has its temperature
    assert (before.temperature, before.calibration) == (1.25, None)
    edit(folder, seal=True, schema=1)
    assert open_bundle(folder).temperature == 1.25


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bias": [0.0, 1.0, 2.0], "scale": [0.5] * 3}, "3 class biases and scales"),
        ({"bias": [0.0]}, "scales and .* biases"),
        ({"scale": [0.5, -0.5]}, "scales above 0"),
        ({"temperature": 0}, "temperature 0.0 is not above 0"),
        ({"temperature": 3.0}, "does not agree with that of the scales"),
        ({"scale": [10**400, 1.0]}, "The calibrator cannot be read"),
        ({"fitted_on": None}, "NoneType"),
    ],
)
def test_a_calibration_that_cannot_be_used(
    folder: Path, change: dict[str, object], reason: str
) -> None:
    calibration = {**CALIBRATED["calibration"], **change}
    edit(folder, seal=True, **{**CALIBRATED, "calibration": calibration})
    with pytest.raises(CheckpointError, match=f"cannot be trusted .*{reason}"):
        open_bundle(folder)
    # Nor one beside a graph that calibrates itself.
    edit(folder, seal=True, graph=FACTS["graph"], calibration=CALIBRATED["calibration"])
    with pytest.raises(CheckpointError, match=r"temperature of 1\.25, and there is a calibration"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"label_space": LabelSpace(("ok", "a", "b"), (9, 3, 1)).to_dict(), "thresholds": {}},
            "names 3 classes, but the graph has 2",
        ),
        ({"format": "tflite"}, "format 'tflite' is none of onnx, openvino"),
        ({"precision": "int4"}, "precision 'int4'"),
        ({"thresholds": {"normal": {"release_above": 7}}}, "threshold 7.0"),
        ({"graph": {**FACTS["graph"], "temperature": 0}}, "temperature 0.0 is not above 0"),
        ({"graph": {**FACTS["graph"], "outputs": ["features"]}}, "first output"),
        ({"graph": {}}, "field 'outputs' is missing"),
        ({"graph": None}, "NoneType"),
        ({"files": {}}, r"field 'model.xml' is missing"),
        ({"thresholds": 3}, "int"),
    ],
)
def test_fields_that_do_not_fit(folder: Path, change: dict[str, object], reason: str) -> None:
    edit(folder, seal=True, **change)
    with pytest.raises(CheckpointError, match=reason):
        open_bundle(folder)


def test_takes_its_place_only_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "new" / "bundle"

    def fail() -> None:
        with assembling(out) as partial:
            (partial / "model.xml").write_bytes(b"x")
            raise ExportError("the check failed")

    with pytest.raises(ExportError, match="the check failed"):
        fail()
    assert list(out.parent.iterdir()) == []
    with assembling(out) as partial:
        shutil.rmtree(partial)
        write(partial)
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    assert open_bundle(out).precision == "int8"


def test_replaces_a_bundle_only_when_told(folder: Path) -> None:
    def again(replace: bool) -> None:
        with assembling(folder, replace=replace) as partial:
            shutil.rmtree(partial)
            write(partial, precision="fp16")

    with pytest.raises(ExportError, match=r"already holds a bundle.*--force"):
        again(False)
    assert open_bundle(folder).precision == "int8"
    again(True)
    assert open_bundle(folder).precision == "fp16"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_never_replaces_anything_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match="is no bundle"), assembling(tmp_path, replace=True):
        pass
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


class TestReplacing:
    """A bundle is there at every moment, the old one or the new one, also after a kill."""

    @pytest.fixture
    def two_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A system that cannot exchange two names at once."""
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)

    def replace(self, folder: Path) -> None:
        with assembling(folder, replace=True) as partial:
            shutil.rmtree(partial)
            write(partial, precision="fp16")

    @pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
    def test_two_folders_exchange_their_names(self, folder: Path, tmp_path: Path) -> None:
        other = write(tmp_path / "other", precision="fp16")
        if not folders._exchange(other, folder):
            pytest.skip("this file system cannot")
        assert open_bundle(folder).precision == "fp16"
        assert open_bundle(other).precision == "int8"

    @pytest.mark.usefixtures("two_steps")
    def test_in_two_steps(self, folder: Path) -> None:
        self.replace(folder)
        assert open_bundle(folder).precision == "fp16"
        assert [path.name for path in folder.parent.iterdir()] == ["bundle"]

    @pytest.mark.usefixtures("two_steps")
    def test_a_second_step_that_fails_gives_the_old_one_back(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = Path.rename

        def refused(path: Path, target: Path) -> Path:
            if path.name.endswith(".part"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return plain(path, target)

        monkeypatch.setattr(Path, "rename", refused)
        with pytest.raises(ExportError, match="Permission denied"):
            self.replace(folder)
        assert open_bundle(folder).precision == "int8"
        assert [path.name for path in folder.parent.iterdir()] == ["bundle"]

    def aside(self, folder: Path) -> Path:
        """As a kill between the two steps leaves it."""
        old = folder.with_name(f".bundle.{'ab' * 6}.old")
        folder.rename(old)
        write(folder.with_name(f".bundle.{'ab' * 6}.part"), precision="fp16")
        return old

    def test_a_reader_gives_the_bundle_back(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.aside(folder)
        monkeypatch.setattr(bundle_module, "_APART_S", 0.0)
        assert open_bundle(folder).precision == "int8"

    def test_the_next_export_gives_it_back_though_it_fails(self, folder: Path) -> None:
        self.aside(folder)
        with (
            pytest.raises(ExportError, match="the check failed"),
            assembling(folder, replace=True),
        ):
            raise ExportError("the check failed")
        assert open_bundle(folder).precision == "int8"

    def test_without_force_it_is_not_overwritten(self, folder: Path) -> None:
        self.aside(folder)
        with pytest.raises(ExportError, match="already holds a bundle"), assembling(folder):
            pass
        assert open_bundle(folder).precision == "int8"

    def test_a_reader_without_rights_names_the_place(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = self.aside(folder)

        def refused(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(bundle_module, "_APART_S", 0.0)
        monkeypatch.setattr(bundle_module, "restore_folder", refused)
        with pytest.raises(CheckpointError, match=rf"{old.name}: rename it back"):
            open_bundle(folder)

    def test_what_lies_in_its_place_by_now_is_not_taken_for_it(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = self.aside(folder)
        folder.mkdir()
        (folder / "mine.txt").touch()
        monkeypatch.setattr(bundle_module, "_APART_S", 0.0)
        with pytest.raises(CheckpointError, match=rf"{old.name}: rename it back"):
            open_bundle(folder)
        with pytest.raises(ExportError, match="is no bundle"), assembling(folder, replace=True):
            pass
        assert open_bundle(old).precision == "int8"

    def test_what_was_replaced_and_what_is_old_goes(self, folder: Path, tmp_path: Path) -> None:
        left = [tmp_path / f".bundle.{'cd' * 6}.old", tmp_path / f".bundle.{'cd' * 6}.part"]
        others = [tmp_path / f".bundle.{'ef' * 6}.part", tmp_path / ".bundle.mine.old"]
        for path in (*left, *others):
            path.mkdir()
        os.utime(left[1], (0, 0))
        self.replace(folder)
        assert {path.name for path in tmp_path.iterdir()} == {
            "bundle",
            *(path.name for path in others),
        }

    @pytest.mark.usefixtures("two_steps")
    def test_a_reader_beside_a_writer_always_finds_one(self, folder: Path) -> None:
        stop, found, wrong = threading.Event(), set(), []

        def read() -> None:
            while not stop.is_set():
                try:
                    found.add(open_bundle(folder).precision)
                except CheckpointError as error:
                    wrong.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(40):
            self.replace(folder)
        stop.set()
        reader.join()
        assert wrong == []
        assert "fp16" in found

    @pytest.mark.parametrize("exchange", [True, False])
    def test_killed_at_any_moment(self, exchange: bool, folder: Path, tmp_path: Path) -> None:
        words = [sys.executable, "-c", REPLACING, str(folder), str(int(exchange))]
        seen = set()
        for number in range(12):
            child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            time.sleep(0.002 * number)
            child.kill()
            child.wait()
            child.stdout.close()
            seen.add(open_bundle(folder).precision)
        assert seen <= {"int8", "fp16", "fp32"}
        self.replace(folder)
        assert open_bundle(folder).precision == "fp16"
