"""What is installed and kept here, as `recame doctor` and `recame cache` tell it."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recame import machine
from recame.cli import upkeep
from recame.contracts import PreprocessSpec
from recame.data.cache import build_cache
from recame.files import hold

ROOT = Path(__file__).parents[2]
DESCRIBED = {
    "versions": {},
    "python": "3.11",
    "system": "Linux",
    "processor": "one",
    "instructions": ["avx2"],
    "cores": 1,
    "memory_gib": 1.0,
}
Recame = Callable[..., tuple[int, str, str]]
SPEC = PreprocessSpec(8, 8, 1, 8, 255.0, (0.5,), (0.5,))


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that holds two sets of images."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RECAME_CACHE", str(folder))
    monkeypatch.setenv("RECAME_CACHE_LIMIT", "7GB")
    for number in range(2):
        image = tmp_path / f"{number}.png"
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(image)
        build_cache([image], SPEC, max_pixels=100)
    return folder


def test_the_cache_is_shown_and_cleared(recame: Recame, cached: Path) -> None:
    code, out, err = recame("cache")
    assert (code, err) == (0, "")
    assert out == f"{cached} holds 2 image sets, 0.000128 MB of at most 7 GB\n"
    assert recame("cache", "--clear")[1].startswith("Removed 2 image sets, 0.000128 MB\n")
    assert [path.name for path in cached.iterdir() if path.suffix != ".lock"] == ["uses.json"]
    assert recame("cache", "--clear")[1].startswith("Removed 0 image sets, 0 MB\n")


def test_a_cache_in_the_making_stays(recame: Recame, cached: Path) -> None:
    key = next(cached.glob("*.pixels")).stem
    mine = hold(cached / f"{key}.lock")
    assert mine is not None
    with mine:
        assert recame("cache", "--clear")[1].startswith("Removed 1 image set, ")
    assert [path.stem for path in cached.glob("*.pixels")] == [key]


def test_no_cache_yet(recame: Recame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECAME_CACHE", str(tmp_path / "none"))
    assert "none holds 0 image sets, 0 MB of at most " in recame("cache")[1]


def test_doctor_tells_what_a_report_of_a_fault_needs(
    recame: Recame, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_SPEED_S", 0.01)
    code, out, err = recame("doctor")
    assert (code, err) == (0, "")
    rows = dict(line.split(None, 1) for line in out.splitlines() if not line.startswith(" "))
    assert set(rows) >= {"recame", "Python", "processor", "cores", "packages", "torch", "speed"}
    assert f"{cached}: 2 image sets, 0.000128 MB of 7 GB" in rows["cache"]
    assert float(rows["speed"].split()[0].replace(",", "")) > 1
    assert rows["extras"].startswith("complete: runtime, ")
    assert "train" in rows["extras"].removeprefix("complete: ").split(", ")


def test_what_an_extra_lacks_is_named_with_its_command(
    recame: Recame, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["typer>=0.15", "torch>=2; extra == 'train'", 'no-such>=1; extra == "cluster"']
    all_of_them = "recame[cluster,train]; extra == 'all'"
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [*lines, all_of_them])
    monkeypatch.setattr(upkeep, "_torch", lambda: {"torch": "not here"})
    assert upkeep.extras() == {"train": [], "cluster": ["no-such"], "all": ["no-such"]}
    out = recame("doctor")[1]
    told = out[out.index("extras ") :].splitlines()
    assert told == [
        "extras    complete: train",
        "          To add one of these: pip install 'recame[NAME]'",
        "          cluster: use a Ray cluster (no-such)",
    ]


@pytest.mark.parametrize(
    ("there", "complete", "absent"),
    [
        ({"onnxruntime", "torch"}, "runtime, train", {"runtime-gpu", "train-gpu"}),
        ({"onnxruntime-gpu", "torch"}, "runtime-gpu, train-gpu", {"runtime", "train"}),
        ({"onnxruntime"}, "runtime", {"runtime-gpu", "train-gpu"}),
        (set(), "none", set()),
    ],
)
def test_no_extra_is_proposed_that_would_overwrite_what_is_there(
    recame: Recame,
    cached: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: set[str],
    complete: str,
    absent: set[str],
) -> None:
    own = [f"package-{number}; extra == 'train-alone'" for number in range(4)]
    lines = [
        *("torch; extra == 'train-alone'", *own, "ray; extra == 'cluster'"),
        *(f"onnxruntime{gpu}; extra == 'runtime{gpu}'" for gpu in ("", "-gpu")),
        *(f"recame[runtime{gpu},train-alone]; extra == 'train{gpu}'" for gpu in ("", "-gpu")),
        *("recame[train-alone]; extra == 'cluster'", "recame[cluster]; extra == 'all'"),
    ]
    if "torch" in there:
        there = {*there, *(f"package-{number}" for number in range(4))}
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(
        machine, "package_versions", lambda *names: {n: "1" for n in names if n in there}
    )
    monkeypatch.setattr(machine, "describe_machine", lambda: {**DESCRIBED, "versions": {}})
    monkeypatch.setattr(upkeep, "_torch", lambda: {"torch": "not here"})
    first, _, *told = [
        line.removeprefix("extras").strip()
        for line in recame("doctor")[1].splitlines()
        if line.startswith(("extras", " "))
    ]
    assert first == f"complete: {complete}"
    named = {line.partition(":")[0] for line in told}
    shown = {"runtime", "runtime-gpu", "train", "train-gpu", "cluster"}
    assert named == shown - absent - set(complete.split(", "))
    assert max(map(len, told)) < 100
    if "torch" not in there:
        assert "cluster: use a Ray cluster (the training packages, ray)" in told
        assert any("(torch, " in line for line in told)


def test_every_extra_but_those_for_packagers_has_a_purpose() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"])
    assert set(upkeep._PURPOSES) == extras - {"all", "train-alone"}


def test_packages_that_overwrite_each_other_are_told(
    recame: Recame, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"onnxruntime-gpu": "1.20", "opencv-python": "5.0", "opencv-python-headless": "5.1"}
    monkeypatch.setattr(
        machine, "package_versions", lambda *names: {n: there[n] for n in names if n in there}
    )
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["onnxruntime; extra == 'runtime'"]
    )
    assert upkeep.extras() == {"runtime": []}  # the other one answers to its name
    (told,) = upkeep.conflicts()
    assert told.startswith("opencv-python-headless 5.1 and opencv-python 5.0 write the same files")
    monkeypatch.setattr(upkeep, "_torch", lambda: {"torch": "not here"})
    monkeypatch.setattr(machine, "describe_machine", lambda: DESCRIBED)
    assert f"conflict  {told}" in recame("doctor")[1]
