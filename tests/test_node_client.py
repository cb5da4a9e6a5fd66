"""A client in another language answers as recame does: `make test-node`, which asks npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import recame
from recame.config import Config
from recame.datasets.generated import SyntheticSpec
from recame.datasets.generated.generate import write_png

pytestmark = pytest.mark.node

CLIENT = Path(__file__).parents[1] / "examples" / "node-client"
NUM_IMAGES = 500


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client with its packages."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules"))
    # The libraries for a CPU come with the package; its script would fetch those for a GPU.
    subprocess.run(
        ["npm", "install", "--ignore-scripts", "--no-audit", "--silent"], cwd=folder, check=True
    )
    return folder


def answers(client: Path, bundle: Path, images: list[Path]) -> list[dict[str, object]]:
    done = subprocess.run(
        ["node", "classify.mjs", str(bundle)],
        cwd=client,
        input="\n".join(map(str, images)),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("kind", "sizes", "size", "shape"),
    [
        ({"colour": True}, (96, 32), 48, None),
        ({"bit_depth": 16}, (96,), (40, 56), (96, 64)),
    ],
    ids=["colour, 8 bit, stretched", "grey, 16 bit, padded"],
)
def test_it_says_what_recame_says(
    kind: dict[str, object],
    sizes: tuple[int, ...],
    size: int | tuple[int, int],
    shape: tuple[int, int] | None,
    client: Path,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    spec = SyntheticSpec(
        num_images=900, num_classes=5, imbalance=10, size=sizes[0], unseen=0.0, **kind
    )
    table = recame.synth(spec, tmp_path / "set")
    changes = {"data__size": size, "data__resize": "stretch" if shape is None else "pad"}
    config = tiny_config(**changes, augment__symmetry="flips", finetune__epochs=3)
    recame.train(table, config, out=tmp_path / "run")
    bundle = recame.export_bundle(tmp_path / "run", out=tmp_path / "bundle").path
    for side in sizes:
        images = pictures(tmp_path / str(side), spec, side, shape)
        theirs = answers(client, bundle, images)
        ours = recame.load(bundle).predict(images)
        same = np.mean([a["label"] == b.label for a, b in zip(theirs, ours, strict=True)])
        away = [
            np.abs(np.subtract(a["probabilities"], b.probabilities)).max()
            for a, b in zip(theirs, ours, strict=True)
        ]
        found = len({b.label for b in ours})
        told = f"{side} px: same class {same:.2%} of {len(ours)}, {found} classes"
        print(f"{told}, probabilities within {max(away):.2g}")  # noqa: T201 - for the docs
        assert len(ours) == NUM_IMAGES
        assert same >= 0.99
        assert found > 2
        assert all(
            (a["action"], a["reason"]) == (b.action, b.reason)
            for a, b in zip(theirs, ours, strict=True)
            if a["label"] == b.label
        )


def pictures(
    folder: Path, spec: SyntheticSpec, side: int, shape: tuple[int, int] | None
) -> list[Path]:
    """Images that trained nothing: of another seed."""
    other = SyntheticSpec(
        num_images=NUM_IMAGES + 100,
        num_classes=5,
        imbalance=10,
        size=side,
        seed=1,
        val_per_class=1,
        test_per_class=1,
        colour=spec.colour,
        bit_depth=spec.bit_depth,
    )
    table = recame.synth(other, folder)
    found = sorted((table.parent / "images").rglob("*.png"))[:NUM_IMAGES]
    for path in found if shape is not None else ():
        pixels = np.asarray(Image.open(path))
        write_png(path, pixels[: shape[0], : shape[1]])
    return found
