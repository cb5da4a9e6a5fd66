"""A bundle on a cluster: shards, their order, what nodes answer, and a node that dies."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import recame
from recame.cli import main
from recame.contracts import PreprocessSpec
from recame.data.listing import list_image_names
from recame.decisions.calibration import Calibration
from recame.decisions.calibrators import Calibrator
from recame.decisions.document import signed
from recame.decisions.limits import Limits
from recame.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingDependencyError,
    UnreadableError,
)
from recame.files import read_json, write_json
from recame.runtime import cluster, cluster_node, predict_files, ray_connection
from recame.runtime.cluster import ClusterScorer, in_order, shards_of
from recame.runtime.cluster_node import Scored, Shipment

Pictures = tuple[Path, np.ndarray]


def numbered(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.parametrize(
    ("count", "batch_size", "lengths"),
    [
        (0, 16, []),
        (1, 16, [1]),
        (256, 16, [256]),
        (600, 16, [256, 256, 88]),
        (600, 100, [300, 300]),
        (300, 300, [300]),
    ],
)
def test_shards_are_whole_batches_in_order(count: int, batch_size: int, lengths: list[int]) -> None:
    shards = list(shards_of(numbered(count), batch_size))
    assert [len(shard) for shard in shards] == lengths
    assert [name for shard in shards for name in shard] == numbered(count)


def test_answers_keep_the_order_and_few_are_under_way() -> None:
    sent: list[int] = []
    most = 0

    def send(shard: int) -> int:
        sent.append(shard)
        return -shard

    got = []
    for found in in_order(range(20), send, lambda flight, shard: (flight, shard), lambda: 3, repr):
        got.append(found)
        most = max(most, len(sent) - len(got))
    assert got == [(-number, number) for number in range(20)]
    assert most == 3


def test_room_that_grows_is_used() -> None:
    sent: list[int] = []
    room = 0
    stream = in_order(range(9), sent.append, lambda _, shard: shard, lambda: room, repr)
    assert [next(stream), next(stream), len(sent)] == [0, 1, 2]
    room = 5
    assert [next(stream), len(sent)] == [2, 8]
    assert list(stream) == [3, 4, 5, 6, 7, 8]


def test_what_nobody_waits_for_is_cancelled() -> None:
    cancelled: list[int] = []

    def receive(flight: int, shard: int) -> int:
        if shard == 2:
            raise KeyboardInterrupt
        return shard

    stream = in_order(range(9), lambda shard: shard, receive, lambda: 3, cancelled.append)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert cancelled == [2, 3, 4, 5]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class FakeRay:
    """Enough of ray to run each task where it is waited for, the last sent first."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, cpus: float = 2) -> None:
        self.cpus = cpus
        self.options: dict[str, object] = {}
        self.shards: list[list[str]] = []
        self.cancelled = 0
        self.change: Callable[[Scored], Scored] = lambda scored: scored
        self.death: RayError | None = None

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 99.0}}
        return [dead, {"Alive": True, "Resources": {"CPU": self.cpus}}]

    def put(self, value: object) -> object:
        return value

    def remote(self, function: Any) -> SimpleNamespace:
        def submit(*words: Any) -> Any:
            self.shards.append(words[1])
            return SimpleNamespace(function=function, words=words)

        def options(**words: object) -> SimpleNamespace:
            self.options = words
            return SimpleNamespace(remote=submit)

        return SimpleNamespace(options=options)

    def wait(self, flights: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return (flights, []) if self.cpus else ([], flights)

    def get(self, flight: Any) -> Scored:
        if self.death is not None:
            raise self.death
        return self.change(flight.function(*flight.words))

    def cancel(self, flight: object, force: bool) -> None:
        assert force
        self.cancelled += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(cluster_node, "_LOADED", {})
    return fake


@pytest.fixture
def folder(pictures: Pictures, tmp_path: Path) -> Path:
    """The 300 pictures, five files that are none, and a link to a file that is gone."""
    images = tmp_path / "images"
    images.mkdir()
    for path in pictures[0].iterdir():
        (images / path.name).symlink_to(path)
    for number in (0, 17, 130, 255, 299):
        (images / f"{number:03d}-broken.png").write_bytes(b"")
    (images / "300-gone.png").symlink_to(tmp_path / "nowhere.png")
    return images


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_are_those_of_one_machine(
    suffix: str,
    bundle: Path,
    folder: Path,
    ray: FakeRay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    here, there = Path(f"here{suffix}"), Path(f"there{suffix}")
    one = recame.predict(bundle, "images", out=here, batch_size=16)
    heard: list[tuple[int, int]] = []
    two = recame.predict(
        bundle, "images", out=there, ray="any", on_progress=lambda *done: heard.append(done)
    )
    assert there.read_bytes() == here.read_bytes()
    assert replace(two, out=one.out, seconds=0) == replace(one, seconds=0)
    assert heard == [(0, 306), (256, 306), (306, 306)]
    assert [len(shard) for shard in ray.shards] == [256, 50]
    assert ray.options == {"num_cpus": 1, "max_retries": 3, "name": "recame predict"}
    assert (ray.cancelled, len(cluster_node._LOADED)) == (0, 1)


def test_nodes_calibrate_as_one_machine(
    write_bundle: Callable[..., Path],
    grey: PreprocessSpec,
    pictures: Pictures,
    ray: FakeRay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    biases = Calibrator("bias_corrected", np.full(3, 0.5), np.array([-3.0, 0.0, 3.0]))
    calibration = Calibration(2.0, {"split": "val"}, calibrator=biases)
    for name, found in (("plain", None), ("biased", calibration)):
        write_bundle(tmp_path / name, grey, calibration=found)
        recame.predict(name, pictures[0], out=f"{name}-here.csv", batch_size=16)
        recame.predict(name, pictures[0], out=f"{name}-there.csv", ray="any")
        assert Path(f"{name}-there.csv").read_bytes() == Path(f"{name}-here.csv").read_bytes()
    assert Path("plain-here.csv").read_bytes() != Path("biased-here.csv").read_bytes()


def test_nodes_decide_by_what_was_tuned(
    exported_run: Path,
    ray: FakeRay,
    write_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = {"ok": 60, "scratch": 60, "dent": 60, "hole": 60}
    fresh = write_images(tmp_path / "fresh", counts, seed=7)
    tuned = Path(shutil.copytree(exported_run, tmp_path / "tuned"))
    limits = Limits.from_dict({"escape": 0.2, "audit": 0.2})
    recame.tune(tuned, fresh, limits, normal="ok")
    recame.predict(tuned, fresh, out="here.csv", batch_size=16)
    two = recame.predict(tuned, fresh, out="there.csv", ray="any")
    assert Path("there.csv").read_bytes() == Path("here.csv").read_bytes()
    assert two.decided["review", "audit"] > 20


def test_a_lot_s_budget_is_that_of_one_machine(
    exported_run: Path,
    ray: FakeRay,
    write_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    fresh = write_images(tmp_path / "fresh", {"ok": 150, "scratch": 60, "dent": 60, "hole": 60}, 7)
    tuned = Path(shutil.copytree(exported_run, tmp_path / "tuned"))
    limits = Limits.from_dict({"escape": 0.2, "review": {"share": 0.1, "lot": "lot"}})
    recame.tune(tuned, fresh, limits, normal="ok")
    values = read_json(tuned / "decisions.json")
    values["policy"]["release_above"] = "never"
    write_json(tuned / "decisions.json", signed(values))
    images = sorted(fresh.rglob("*.png"))
    lots = [f"{path.relative_to(tmp_path)},{'AB'[n % 2]}" for n, path in enumerate(images)]
    Path("lots.csv").write_text("\n".join(["image,lot", *lots]))
    one = recame.predict(tuned, "lots.csv", out="here.csv", batch_size=16)
    two = recame.predict(tuned, "lots.csv", out="there.csv", ray="any")
    assert Path("there.csv").read_bytes() == Path("here.csv").read_bytes()
    assert replace(two, out=one.out, seconds=0) == replace(one, seconds=0)
    assert [(lot.lot, lot.images, lot.places) for lot in two.over_budget] == [
        ("A", 165, 16),
        ("B", 165, 16),
    ]
    assert two.decided["review", "over_budget"] > 60


def test_the_command_line(
    bundle: Path,
    folder: Path,
    ray: FakeRay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["predict", str(bundle), str(folder), "-o", str(tmp_path / "out.csv")]
    words += ["--ray", "any", "--threads", "2", "--batch-size", "8"]
    monkeypatch.setattr(sys, "argv", ["recame", *words])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "300 images: " in capsys.readouterr().out
    assert ray.options["num_cpus"] == 2
    assert (tmp_path / "out.csv").exists()


def test_a_start_on_a_cluster_ends_on_one_machine(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path
) -> None:
    here, out = tmp_path / "here.csv", tmp_path / "out.csv"
    recame.predict(bundle, folder, out=here, batch_size=16)

    def once(scored: Scored) -> Scored:
        ray.change = interrupted
        return scored

    def interrupted(scored: Scored) -> Scored:
        raise KeyboardInterrupt

    ray.change = once
    with pytest.raises(KeyboardInterrupt):
        recame.predict(bundle, folder, out=out, ray="any")
    assert ray.cancelled == 1
    assert not out.exists()
    summary = recame.predict(bundle, folder, out=out, batch_size=4)
    assert (summary.num_resumed, out.read_bytes()) == (256, here.read_bytes())


def test_too_many_unreadable_files(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path
) -> None:
    with pytest.raises(UnreadableError, match="6 of 306 files cannot be read"):
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray="any", max_unreadable=0.01)
    assert not (tmp_path / "out.csv").exists()


def test_a_file_that_a_node_does_not_see(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path
) -> None:
    def elsewhere(scored: Scored) -> Scored:
        lost = [
            replace(
                item,
                label=None,
                action="unreadable",
                note="no such file",
                error="no such file",
                sha256=None,
            )
            for item in scored.found
        ]
        return replace(scored, node="left", found=tuple(lost))

    ray.change = elsewhere
    told = r"000-broken.png is on this machine, but node left cannot read it \(no such file\)"
    with pytest.raises(DataError, match=told):
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray="any")


def test_a_shard_that_fails_is_told_with_its_files(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path
) -> None:
    ray.death = RayError("The worker died unexpectedly.\nmore")
    told = (
        r"gave up 256 files, \S+000-broken.png to \S+252.png "
        r"\(RayError: The worker died unexpectedly.\)"
    )
    with pytest.raises(DataError, match=told):
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray="any")
    ray.death = RayTaskError("Traceback\n  somewhere\nValueError: what it was")
    with pytest.raises(DataError, match=r"\(RayTaskError: ValueError: what it was\)"):
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray="any")


def test_a_node_with_other_software_scores_nothing(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = iter(["onnxruntime 1.30", "onnxruntime 1.31"])
    for module in (cluster, cluster_node):
        monkeypatch.setattr(module, "software", lambda _: next(versions))
    told = "Node .* predicts nothing: it has onnxruntime 1.31, but the sending machine has "
    with pytest.raises(ConfigError, match=told):
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray="any")


def test_a_bundle_that_was_damaged_on_its_way(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(shipment: Shipment) -> Shipment:
        return replace(shipment, files={**shipment.files, "model.onnx": b"?"})

    monkeypatch.setattr(ray, "put", damaged)
    with pytest.raises(ConfigError, match=r"model.onnx has 1 bytes instead of"):
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray="any")


def test_processors_of_several_kinds_are_told(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path
) -> None:
    kinds = iter(["avx2", "avx2 avx512f"])
    ray.change = lambda scored: replace(scored, instructions=next(kinds))
    with pytest.warns(UserWarning, match=r"different instruction sets \(avx2; avx2 avx512f\)"):
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray="any")


def test_no_node_is_left(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = ClusterScorer(ray, recame.runtime.open_bundle(bundle), threads=1, batch_size=16)
    ray.cpus = 0
    monkeypatch.setattr(cluster, "_NO_NODE_S", -1.0)
    with pytest.raises(DataError, match="No node of the cluster has had 1 free cores"):
        predict_files(scorer, [folder], tmp_path / "out.csv")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"threads": 3}, "needs 3 cores, which no node of the cluster has"),
        ({"threads": 0}, "threads=0, batch_size=16: give numbers above 0"),
        ({"device": "cuda"}, "device='cuda': --ray predicts only on the nodes' CPUs"),
        ({"views": 4}, "views=4: the bundle .* has 1 in its graph"),
    ],
)
def test_what_a_cluster_cannot_do(
    words: dict[str, Any], told: str, bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray="any", **words)


def test_what_is_no_bundle(folder: Path, ray: FakeRay, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no bundle"):
        recame.predict(tmp_path, folder, out=tmp_path / "out.csv", ray="any")
    (tmp_path / "run.json").touch()
    with pytest.raises(ConfigError, match=f"--ray needs a bundle.*recame export {tmp_path}`"):
        recame.predict(tmp_path, folder, out=tmp_path / "out.csv", ray="any")


def test_addresses_at_which_no_cluster_answers(
    bundle: Path, folder: Path, ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(address: str) -> None:
        recame.predict(bundle, folder, out=tmp_path / "out.csv", ray=address)

    monkeypatch.setattr(FakeRay, "is_initialized", lambda _: False)
    monkeypatch.setattr(ray_connection, "ANSWER_S", 0.5)
    monkeypatch.setattr(ray_connection, "_ASK", "import time; time.sleep(60)")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"No Ray cluster answers at '{address}'.*ray start"):
            predict(address)
        taken.listen()
        with pytest.raises(ConfigError, match="the program there does not answer in"):
            predict(address)
        monkeypatch.setattr(ray_connection, "ANSWER_S", 30)
        monkeypatch.setattr(ray_connection, "_ASK", "raise ValueError('another version')")
        with pytest.raises(ConfigError, match="can use: ValueError: another version"):
            predict(f"ray://{address}")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'recame\[cluster\]'"):
        predict("auto")


def test_threads_and_neighbours_change_no_digit(exported_run: Path, defects: Path) -> None:
    names = list_image_names([defects])
    rows = []
    for threads, order in ((1, 1), (2, 1), (2, -1)):
        model = recame.load(
            exported_run, threads=threads, batch_size=17
        )  # 102 images: whole batches
        found = model.stream(names[::order], num_images=len(names))
        rows.append(np.stack([item.probabilities for item in found])[::order])
    np.testing.assert_array_equal(rows[1], rows[0])
    np.testing.assert_array_equal(rows[2], rows[0])
