"""The blocks of `docs/python.md` run one after the other; those of a library only where it is.

The block of `docs/howto/prepare.md` too.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recame.data.manifest import read_manifest

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
#: The heading of a recipe -> the library that it needs beside ours.
NEEDED = {"cleanlab": "cleanlab", "FiftyOne": "fiftyone", "MLflow": "mlflow"}
#: Settings with which the first block takes seconds.
QUICK = '{"model.backbone": "test_resnet", "model.pretrained": False, "probe.steps": 20}, '


def recipes() -> list[tuple[str, str]]:
    """Each block under the first word of its heading."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^#{2,3} ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
        found += [(part.split(":")[0].split("\n")[0], block) for block in blocks]
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    rng = np.random.default_rng(0)
    for label, count in (("good", 24), ("scratch", 12), ("void", 9)):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(count):
            image = rng.normal(110, 8, (40, 40))
            image[18:21] += 90 * (label == "scratch")
            image[12:26, 12:26] -= 80 * (label == "void")
            pixels = Image.fromarray(image.clip(0, 255).astype(np.uint8))
            pixels.save(folder / "images" / label / f"{number:02d}.png")
    (folder / "new_images").mkdir()
    pixels.save(folder / "new_images" / "a.png")
    return folder


class Reader:
    """Runs the page's blocks in order, each once: two workers may share them out between them."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] = {}
        self.done = 0

    def run(self, number: int) -> None:
        """Run the block, after those before it that have not run in this process."""
        for heading, block in recipes()[self.done : number + 1]:
            if is_there(heading):
                exec(block.replace('"images/", ', f'"images/", {QUICK}'), self.scope)
        self.done = max(self.done, number + 1)


def is_there(heading: str) -> bool:
    """Whether the library of a recipe is installed."""
    library = NEEDED.get(heading)
    return library is None or find_spec(library) is not None


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.mark.parametrize("number", range(len(recipes())), ids=lambda number: recipes()[number][0])
def test_block(
    number: int,
    workplace: Path,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    heading, block = recipes()[number]
    if not is_there(heading):
        pytest.skip(f"{NEEDED[heading]} is not installed")
    monkeypatch.chdir(workplace)
    reader.run(number - 1)
    capsys.readouterr()
    reader.run(number)
    scope = reader.scope
    told = capsys.readouterr().out
    if heading == "From images to figures":
        assert scope["run"].load_config().finetune.epochs == 2
        assert "balanced accuracy" in told
        assert (workplace / "confusion.png").stat().st_size > 1000
    elif "found = " in block and heading == "A model in memory":
        assert "new_images/a.png" in told
        assert scope["table"]["prediction"].tolist() == [scope["found"][0].label]
    elif heading == "A model in memory":
        assert scope["labels"].tolist() == scope["found"].labels.tolist()
    elif heading == "scikit-learn":
        assert told.startswith("200 images of 3 classes")
    elif heading == "Loops of your own":
        assert set(scope["result_of_step"].parts) == {"base", "hard", "contrastive", "intra"}


def test_every_recipe_is_found() -> None:
    assert {"scikit-learn", *NEEDED} <= {heading for heading, _ in recipes()}


def test_folders_and_names_of_files_make_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGE.parent / "howto" / "prepare.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for name in ("good/b1_0.png", "good/b2_0.png", "scratch/b1_1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / name)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    table = read_manifest(tmp_path / "table.csv")
    assert table["label"].tolist() == ["good", "good", "scratch"]
    assert table["board"].tolist() == ["b1", "b2", "b1"]
