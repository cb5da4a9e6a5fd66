"""A machine that has no torch: bundles load and predict there, and the rest says what it needs."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import recame
from recame.errors import TRAINING_PACKAGES, as_missing_dependency
from recame.export.export import export

ROOT = Path(__file__).parents[2]

#: What the packages of the extras are called where they are imported.
IMPORTED_AS = {"scikit-learn": "sklearn", "PyYAML": "yaml"}

#: Makes every package that only training needs vanish, then runs what follows.
BLOCKER = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run_without(blocked: set[str], code: str, *words: object) -> subprocess.CompletedProcess[str]:
    text = BLOCKER.format(blocked=blocked) + code
    command = [sys.executable, "-c", text, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(finished, tmp_path_factory.mktemp("exported") / "bundle").path


def test_a_bundle_says_what_torch_says(
    exported: Path, finished: Path, defects: Path, tmp_path: Path
) -> None:
    code = """
import recame
import numpy as np
model = recame.load(sys.argv[1])
found = model.predict(sys.argv[2])
recame.predict(sys.argv[1], sys.argv[2], out=sys.argv[3] + "/out.csv")
np.save(sys.argv[3] + "/p.npy", np.stack([item.probabilities for item in found]))
print(" ".join(item.label for item in found))
"""
    # typer's own need of pydantic does not count: no command line here.
    done = run_without(set(TRAINING_PACKAGES), code, exported, defects / "hole", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with_torch = recame.load(exported).predict(defects / "hole")
    got = np.load(tmp_path / "p.npy")
    expected = np.stack([item.probabilities for item in with_torch])
    np.testing.assert_array_equal(got, expected)
    assert done.stdout.split() == [item.label for item in with_torch]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 7
    run = recame.load(finished).predict(defects / "hole")
    assert [item.label for item in run] == [item.label for item in with_torch]


def test_a_run_folder_answers_by_its_graph(finished: Path, defects: Path, tmp_path: Path) -> None:
    code = """
import recame
import numpy as np
model = recame.load(sys.argv[1], views=4)
found = model.predict(sys.argv[2])
recame.predict(sys.argv[1], sys.argv[2], out=sys.argv[3] + "/out.csv")
np.save(sys.argv[3] + "/p.npy", np.stack([item.probabilities for item in found]))
"""
    # Not even what reads settings is there.
    done = run_without(set(TRAINING_PACKAGES), code, finished, defects / "hole", tmp_path)
    assert done.returncode == 0, done.stderr
    with_torch = recame.load(finished, views=4).predict(defects / "hole")
    expected = np.stack([item.probabilities for item in with_torch])
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), expected)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 7


def test_the_command_line_predicts(exported: Path, defects: Path, tmp_path: Path) -> None:
    # Some versions of typer bring pydantic themselves.
    blocked = set(TRAINING_PACKAGES) - {"pydantic"}
    code = "from recame.cli import main\nsys.argv[0] = 'recame'\nmain()"
    out = tmp_path / "out.csv"
    done = run_without(blocked, code, "predict", exported, defects / "hole", "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 images: " in done.stdout
    assert run_without(blocked, code, "--help").returncode == 0


def test_nothing_that_posix_alone_has(exported: Path, defects: Path, tmp_path: Path) -> None:
    """Loading, predicting into a table and being replaced, where POSIX's own is denied."""
    code = """
import os, warnings
import cv2, numpy, onnxruntime, PIL.Image
warnings.filterwarnings("ignore", message="only soft file lock")  # beside the other locks
for name in ("fork", "getuid", "geteuid", "getpgid", "setsid", "sched_getaffinity", "getloadavg",
             "sysconf", "posix_fallocate", "mkfifo", "chown", "fchmod", "nice", "statvfs"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
import recame
from recame import folders
from recame.machine import describe_machine, peak_memory_mib
from recame.runtime.bundle import assembling
folders._exchange = lambda *_: False
model = recame.load(sys.argv[1])
summary = recame.predict(sys.argv[1], sys.argv[2], out=sys.argv[3] + "/out.csv")
describe_machine(), peak_memory_mib()
print(summary.num_images, model.predict(sys.argv[2])[0].label is not None)
"""
    denied = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "syslog"}
    done = run_without(denied, code, exported, defects / "hole", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["6", "True"]


@pytest.mark.parametrize("words", [["train", "{data}"], ["evaluate", "{run}"], ["export", "{run}"]])
def test_other_verbs_name_the_extra(words: list[str], finished: Path, defects: Path) -> None:
    code = "from recame.cli import main\nsys.argv[0] = 'recame'\nmain()"
    words = [word.format(data=defects, run=finished) for word in words]
    done = run_without(set(TRAINING_PACKAGES) - {"pydantic"}, code, *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    told = rf"^error: recame {words[0]} needs the extra train \(package '\w+' is not installed\): "
    told += r"pip install 'recame\[train\]'\. With a bundle, recame predict and recame latency work"
    assert re.search(told, done.stderr)


def test_python_names_the_extra(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("graph"))
    told = "MissingDependencyError: Package 'torch' is not installed"
    done = run_without({"torch"}, "import recame\nrecame.load(sys.argv[1])", run)
    assert told in done.stderr
    assert "pip install 'recame[train]'" in done.stderr
    done = run_without({"torch"}, "import recame\nrecame.train")
    told = "recame.train needs the extra train (package 'torch' is not installed): pip install"
    assert f"MissingDependencyError: {told} 'recame[train]'" in done.stderr


def test_predict_says_which_option_needs_the_extra(tmp_path: Path) -> None:
    code = "from recame.cli import main\nsys.argv[0] = 'recame'\nmain()"
    words = ("predict", tmp_path, tmp_path, "--set", "evaluation.views=4")
    done = run_without(set(TRAINING_PACKAGES) - {"pydantic"}, code, *words)
    assert "recame predict needs the extra train here" in done.stderr
    assert "without --set, it works without this extra" in done.stderr


def test_the_extra_goes_with_the_runtime_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ModuleNotFoundError(name="torch.nn")
    assert "recame[train]" in str(as_missing_dependency(missing, "recame train"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.22")
    assert "needs the extra train-gpu" in str(as_missing_dependency(missing, "recame train"))


def test_dependency_lists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[<>=\[]", line)[0] for line in lines}

    core = names(project["dependencies"])
    extras = project["optional-dependencies"]
    assert core == {"numpy", "pillow", "opencv-python-headless", "filelock", "typer", "rich"}
    assert names(extras["runtime"]) == {"onnxruntime"}
    assert names(extras["runtime-openvino"]) == {"openvino"}
    alone = names(extras["train-alone"])
    imported = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in alone}
    assert imported == TRAINING_PACKAGES
    assert extras["train"] == ["recame[train-alone,runtime]"]
