"""Two nodes on this machine, one of which is killed; and a driver that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recame
from recame.errors import DataError
from recame.runtime import cluster

Pictures = tuple[Path, np.ndarray]

pytestmark = pytest.mark.slow


@pytest.fixture
def many(defects: Path, tmp_path: Path) -> Path:
    """2,040 images: each of a small set twenty times, and files that are none."""
    images = tmp_path / "many"
    images.mkdir()
    for number, path in enumerate(sorted(defects.rglob("*.png"))):
        for copy in range(20):
            (images / f"{copy:02d}-{number:03d}.png").symlink_to(path)
    for number in range(7):
        (images / f"{2 * number:02d}-{13 * number:03d}-broken.png").write_bytes(b"")
    return images


def kill(cluster: Any, node: Any) -> None:
    """End a node and its processes at once, as a machine does that loses its power."""
    raylet = node.all_processes["raylet"][0].process.pid
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(raylet)], capture_output=True, text=True, check=False
    )
    cluster.remove_node(node, allow_graceful=False)
    for pid in listed.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_node_is_killed_half_way(
    exported_run: Path, many: Path, two_nodes: Any, tmp_path: Path
) -> None:
    out, victim = tmp_path / "out.csv", two_nodes.nodes_with_cores[0]
    killers: list[threading.Thread] = []

    def kill_once(done: int, total: int) -> None:
        if done and not killers:
            killers.append(threading.Thread(target=kill, args=(two_nodes, victim)))
            killers[0].start()

    summary = recame.predict(
        exported_run, many, out=out, ray=two_nodes.address, on_progress=kill_once
    )
    killers[0].join()
    assert (summary.num_images, summary.num_unreadable) == (2040, 7)
    for batch_size, threads in ((16, 1), (16, 2)):
        here = tmp_path / f"here-{batch_size}-{threads}.csv"
        recame.predict(exported_run, many, out=here, batch_size=batch_size, threads=threads)
        assert out.read_bytes() == here.read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_goes_on(
    how: signal.Signals, exported_run: Path, many: Path, two_nodes: Any, tmp_path: Path
) -> None:
    out, here = tmp_path / "out.parquet", tmp_path / "here.parquet"
    words = ["predict", exported_run, many, "--out", out, "--ray", two_nodes.address]
    code = "from recame.cli import main; main()"
    driver = subprocess.Popen([sys.executable, "-c", code, *map(str, words)])
    rows = tmp_path / "out.parquet.partial" / "rows.sqlite-wal"
    while not (rows.exists() and rows.stat().st_size > 2**16):
        assert driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(how)
    assert driver.wait(60) == (130 if how is signal.SIGINT else -how)
    assert not out.exists()
    summary = recame.predict(exported_run, many, out=out, ray=two_nodes.address)
    assert 0 < summary.num_resumed < 2047
    recame.predict(exported_run, many, out=here, batch_size=16)
    assert out.read_bytes() == here.read_bytes()


def test_files_that_crash_a_process_are_named(
    bundle: Path, pictures: Pictures, two_nodes: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def crash(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(cluster, "score", crash)
    told = r"gave up 256 files, \S+000.png to \S+255.png \(WorkerCrashedError: "
    with pytest.raises(DataError, match=told):
        recame.predict(bundle, pictures[0], out=tmp_path / "out.csv", ray=two_nodes.address)
