from __future__ import annotations

from pathlib import Path

import pytest

from recame.config import Config
from recame.inference import device
from recame.inference.device import judging_precision
from recame.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("began_on", "precision", "place", "expected"),
    [
        ("cuda", "bf16", "cuda", "bf16"),
        ("cuda", "bf16", "cuda:1", "bf16"),
        ("cuda", "bf16", "cpu", "32"),  # half precision was a GPU's
        ("cuda", "32", "cuda", "32"),
        ("cpu", "bf16", "cpu", "bf16"),  # as it was asked
        ("cpu", "32", "cuda", "32"),
    ],
)
def test_a_run_is_judged_in_what_it_trained_in(
    began_on: str, precision: str, place: str, expected: str, tmp_path: Path
) -> None:
    config = Config().updated({"run.precision": precision})
    folder = RunFolder.free(tmp_path / "run")
    folder.begin(tmp_path, "f00d", config, device=began_on)
    assert judging_precision(folder, config, place) == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, 2), ("16", 16)])
def test_torch_keeps_to_the_quota_of_a_container(
    asked: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [16]
    monkeypatch.setattr(device, "usable_cores", lambda: 2)
    monkeypatch.setattr(device.torch, "get_num_threads", lambda: found[-1])
    monkeypatch.setattr(device.torch, "set_num_threads", found.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    device.choose_device("cpu")
    device.choose_device("cpu")
    assert found[-1] == expected
