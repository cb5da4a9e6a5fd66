"""A bucket, served on this machine, scored by two nodes into a table in the bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recame

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `lots`; its address is in the environment, also of nodes started later."""
    s3fs = pytest.importorskip("s3fs", reason="needs pip install s3fs")
    server = pytest.importorskip("moto.server", reason="needs pip install 'moto[s3,server]'")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("lots")
    yield store
    running.stop()


@pytest.fixture
def lot(bucket: Any, pictures: tuple[Path, np.ndarray]) -> str:
    bucket.put(f"{pictures[0]}/", "lots/seven/", recursive=True)
    bucket.pipe_file("lots/seven/130-broken.png", b"")
    return "s3://lots/seven"


def test_a_bucket_is_scored_into_itself(
    lot: str,
    bundle: Path,
    bucket: Any,
    two_nodes: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = "s3://lots/made/table.csv"
    summary = recame.predict(bundle, lot, out=out, ray=two_nodes.address)
    assert (summary.out, summary.num_images, summary.num_unreadable) == (out, 300, 1)
    recame.predict(bundle, lot, out="here.csv", batch_size=16)
    assert bucket.cat_file("lots/made/table.csv") == Path("here.csv").read_bytes()
    assert b"s3://lots/seven/299.png" in Path("here.csv").read_bytes()
    assert list(tmp_path.glob("*.sending")) == []
