"""Documents that were edited or damaged are refused in words, whatever their values are."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import recame
from recame.config.files import parse_settings
from recame.contracts import PreprocessSpec
from recame.data.manifest import read_manifest, read_recorded_manifest
from recame.decisions.calibration import load_calibration
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import read_json
from recame.label_space import LabelSpace
from recame.models import load_checkpoint
from recame.runs.folder import RunFolder

BEFORE = Path(__file__).parent / "fixtures" / "before"
SPEC = PreprocessSpec(6, 6, 1, 8, 255.0, (0.5,), (0.5,)).to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("height", value) for value in (0, -1, 2**40, 1.5, "6", None)],
        *[("channels", value) for value in (2, 1.0)],
        *[("bit_depth", value) for value in (12, "8")],
        *[("scale", value) for value in (0, -1.0, math.nan, math.inf, "255")],
        *[("mean", value) for value in (["x"], [math.nan])],
        *[("std", value) for value in ([0.0], [-1.0])],
        *[("resize", value) for value in ("bend", None)],
    ],
)
def test_preprocessing_that_prepares_no_image(name: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}=.*edited or damaged"):
        PreprocessSpec.from_dict({**SPEC, name: value})


@pytest.mark.parametrize("changed", [{"counts": [1, math.inf]}, {"names": ["a", 3]}])
def test_classes_that_are_none(changed: dict[str, Any]) -> None:
    values = LabelSpace(("a", "b"), (1, 2)).to_dict()
    with pytest.raises(CheckpointError, match="label space cannot be read"):
        LabelSpace.from_dict({**values, **changed})


@pytest.mark.parametrize("text", ["{", '["a", 3]', '{"a": 1}', "[" * 100_000])
def test_reasons_that_are_no_sentences(text: str, tmp_path: Path) -> None:
    (tmp_path / "reasons.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"reasons.json cannot be read.*remove it"):
        RunFolder(tmp_path).reasons()


def test_brackets_deeper_than_a_parser_goes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a":' * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_json(path, error=DataError)


@pytest.mark.parametrize("temperature", [[], "x", "nan", 10**400, None, {}])
def test_temperatures_that_are_no_number(temperature: Any, tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    fitted = {"temperature": temperature, "fitted_on": {"split": "val"}}
    path.write_text(json.dumps({"schema": 1, "calibration": fitted}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"decisions.json.*Remove it"):
        load_calibration(path, {}, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": ["x"]},
        {"shared_stages": "x"},
        {"regions": 7},
        {"regions": [math.inf, 1]},
    ],
)
def test_networks_that_cannot_be_built(change: dict[str, Any], tmp_path: Path) -> None:
    run = shutil.copytree(BEFORE / "run", tmp_path / "run")
    document = json.loads((run / "model.json").read_text(encoding="utf-8"))
    document["architecture"] |= change
    (run / "model.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckpointError, match="edited"):
        load_checkpoint(run)


def test_a_description_without_checksum(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="no checksum of the weights"):
        RunFolder(tmp_path).weights_sha256()


def test_settings_of_a_run_that_leave_open_what_it_decided(tmp_path: Path) -> None:
    run = shutil.copytree(BEFORE / "run", tmp_path / "run")
    text = (run / "config.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(evaluation:\n(?: .*\n)*?  views: )\d+", r"\1auto", text)
    (run / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"has evaluation.views: auto"):
        recame.load(run)


def test_a_table_whose_texts_are_none(tmp_path: Path) -> None:
    texts = pa.array([b"a.png", b"\xaf.png"]).view(pa.binary()).cast(pa.binary())
    broken = pa.StringArray.from_buffers(2, *texts.buffers()[1:], texts.buffers()[0])
    parquet.write_table(pa.table({"image": broken, "label": ["x", "y"]}), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_manifest(tmp_path / "m.parquet")


LAUGHS = "\n".join(
    ["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LAUGHS}\ndata: {{size: *a8}}", "aliases, but at most 20 are followed"),
        ("data: " + "[" * 5000, "brackets are open"),
        ("- " * 3000, "lists are nested"),
        ("data: !!int x", "cannot be read as YAML"),
        ("data: 2001-99-99", "cannot be read as YAML"),
        ("data: !!timestamp x", "cannot be read as YAML"),
        ("data: {size: " + "9" * 6000 + "}", "cannot be read as YAML"),
        ("data: !!bool maybe", "cannot be read as YAML"),
        ("? [a]\n: 1", "settings.yaml"),
    ],
)
def test_settings_that_are_no_yaml(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as error:
        recame.load_config(path)
    assert len(str(error.value)) < 2000


def test_words_of_a_command_line_that_are_no_yaml() -> None:
    for text in ("!!int x", "2001-99-99", "[" * 5000, "9" * 6000):
        with pytest.raises(ConfigError, match="the value cannot be read as YAML"):
            parse_settings([f"data.size={text}"])


def test_aliases_may_be_used(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("data: {size: &side 64}\nfinetune: {batch_size: *side}\n", encoding="utf-8")
    config = recame.load_config(path)
    assert (config.data.size, config.finetune.batch_size) == (64, 64)


@pytest.mark.parametrize("kept", [0, 25, 41])
def test_a_runs_manifest_that_is_cut_off(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"image,path,label,split\na,/a,ok,test\nb,/b,ok,test\n"[:kept])
    with pytest.raises(CheckpointError, match=r"empty or cut off.*no longer knows its images"):
        read_recorded_manifest(path, "product")
