"""Score files on two Ray nodes, one of which is killed half-way, and on one: is anything lost?

    python benchmarks/predicting/cluster.py                  # 100,000 generated PNG files of 64 px
    python benchmarks/predicting/cluster.py --images 3000
    python benchmarks/predicting/cluster.py --costs --images 3000 --side 128

The nodes are on this machine, each with `--cores` of its own; the head has none. Tables are
compared byte for byte with the one that `recame predict` writes without a cluster. Times are of
whole calls: connecting, loading the bundle on the nodes, every row written. `--costs` needs no
cluster and prints what an image costs instead: milliseconds of one core's own time to read it
(with its checksum), in the model, and for its row at the driver, which unpacks and keeps it.

The bundle (EfficientNet-Lite0, one network and view) is of a short training on a few images of its
own, as scores do not matter here; `--bundle` takes another. `--out DIR` also writes
`results-cluster.json` there, with the machine. Nothing else should run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import recame
from recame.data.decode import Reader
from recame.data.listing import ListedImages, list_image_names
from recame.machine import describe_machine, load_average, package_versions
from recame.runtime import predict_files
from recame.runtime.partial_table import PartialTable

SETTINGS = {
    "model.backbone": "tf_efficientnet_lite0",
    "model.num_experts": 1,
    "data.val_fraction": 0.05,
    "data.test_fraction": 0.05,
    "probe.enabled": False,
    "finetune.epochs": 1,
    "finetune.epoch_size": 32,
    "evaluation.bootstrap": 50,
    "evaluation.views": 1,
}
PICTURES, BATCH = 200, 16


def drawn(side: int, seed: int) -> list[np.ndarray]:
    """Surfaces with noise, every second one with a spot."""
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(60, 190, (side, side), dtype=np.uint8) for _ in range(PICTURES)]
    for picture in pictures[::2]:
        picture[: side // 4, : side // 4] = 250
    return pictures


def make_bundle(folder: Path, side: int) -> Path:
    """Train for seconds and export."""
    from recame.export.export import export

    for number, picture in enumerate(drawn(side, seed=1)):
        target = folder / "train" / ("spot", "ok")[number % 2] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)
    config = recame.Config().updated(SETTINGS | {"data.size": side})
    run = recame.train(folder / "train", config, out=folder / "run").path
    return export(run, folder / "bundle", normal="ok").path


def make_images(folder: Path, count: int, side: int) -> None:
    """Files of their own, a thousand a folder, no two with the same pixels."""
    pictures = drawn(side, seed=2)
    for number in range(count):
        target = folder / f"{number // 1000:05d}" / f"{number:08d}.png"
        if number % 1000 == 0:
            target.parent.mkdir(parents=True)
        image = np.roll(pictures[number % PICTURES], divmod(number // PICTURES, side), (0, 1))
        Image.fromarray(image).save(target)


def kill(cluster: Any, node: Any) -> None:
    """End a node and its workers at once, as a machine does that loses its power."""
    raylet = str(node.all_processes["raylet"][0].process.pid)
    words = ["ps", "-o", "pid=", "--ppid", raylet]
    listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    cluster.remove_node(node, allow_graceful=False)
    for pid in map(int, listed.split()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def on_nodes(number: int, victim: bool, bundle: Path, images: Path, out: Path, cores: int) -> float:
    """Seconds of a prediction on so many nodes, of which the first may be killed half-way."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=cores, **small) for _ in range(number)]
    cluster.wait_for_nodes()
    killers: list[threading.Thread] = []

    def watch(done: int, total: int) -> None:
        if victim and not killers and done >= total // 2:
            killers.append(threading.Thread(target=kill, args=(cluster, nodes[0])))
            killers[0].start()

    began = time.perf_counter()
    try:
        recame.predict(bundle, images, out=out, ray=cluster.address, on_progress=watch)
        took = time.perf_counter() - began
        assert len(killers) == victim, "the node outlived the call"
    finally:
        for killer in killers:
            killer.join()
        cluster.shutdown()
    return took


def costs(bundle: Path, images: Path, out: Path) -> dict[str, float]:
    """Milliseconds of a core's own time for each image, by what they are spent on."""
    predictor = recame.load(bundle, threads=1, batch_size=BATCH)
    names = list_image_names([images])
    reader = Reader(predictor.spec, 10**6)
    spent, began = {}, time.process_time()
    pixels = [reader.read(name, checksum=True).pixels for name in names]
    spent["read"] = time.process_time() - began
    batches = [np.stack(pixels[start : start + BATCH]) for start in range(0, len(names), BATCH)]
    predictor.run(batches[0])
    began = time.process_time()
    for batch in batches:
        predictor.run(batch)
    spent["model"] = time.process_time() - began
    began = time.process_time()
    predict_files(predictor, [images], out)
    spent["all, on one machine"] = time.process_time() - began
    found = list(predictor.stream(names, num_images=len(names), checksums=True))
    sent = [pickle.dumps(found[start : start + 256]) for start in range(0, len(found), 256)]
    began = time.process_time()
    with PartialTable(out, predictor, ListedImages(names, [], {}), resume=False) as table:
        for shard in sent:
            table.add(pickle.loads(shard))
        table.finish(began, 1)
    spent["row at the driver"] = time.process_time() - began
    return {what: 1000 * seconds / len(names) for what, seconds in spent.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--cores", type=int, default=1, help="of each node")
    parser.add_argument("--bundle", type=Path, help="another bundle")
    parser.add_argument("--costs", action="store_true", help="what an image costs instead")
    parser.add_argument("--out", type=Path, help="a folder for results-cluster.json")
    asked = parser.parse_args()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "GOMP_SPINCOUNT": "5000"}
    logging.getLogger("ray").setLevel(logging.ERROR)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = asked.bundle or make_bundle(folder, asked.side)
        make_images(folder / "images", asked.images, asked.side)
        alone = folder / "alone.csv"
        if asked.costs:
            spent = costs(bundle, folder / "images", alone)
            print("| ms of a core each image | |\n| --- | --: |")
            print("\n".join(f"| {what} | {each:.3f} |" for what, each in spent.items()))
            return

        def one_machine(out: Path) -> float:
            began = time.perf_counter()
            recame.predict(
                bundle, folder / "images", out=out, threads=asked.cores, batch_size=BATCH
            )
            return time.perf_counter() - began

        ways = {
            "no cluster": one_machine,
            "one node": lambda out: on_nodes(1, False, bundle, folder / "images", out, asked.cores),
            "two nodes, one killed half-way": lambda out: on_nodes(
                2, True, bundle, folder / "images", out, asked.cores
            ),
            "two nodes": lambda out: on_nodes(
                2, False, bundle, folder / "images", out, asked.cores
            ),
        }
        lines = ["| way | s | images/s | rows |", "| --- | --: | --: | --- |"]
        for number, (way, measure) in enumerate(ways.items()):
            out = folder / f"{number}.csv" if number else alone
            took = measure(out)
            equal = out.read_bytes() == alone.read_bytes()
            told = "" if out == alone else "equal" if equal else "DIFFERENT"
            lines.append(f"| {way} | {took:.1f} | {asked.images / took:.0f} | {told} |")
            rows.append(
                {"way": way, "s": took, "images_per_s": asked.images / took, "equal": equal}
            )
    print("\n".join(lines))  # last, as Ray says at length that a node is gone
    if asked.out:
        asked.out.mkdir(parents=True, exist_ok=True)
        facts = describe_machine() | {"load": load_average(), "ray": package_versions("ray")["ray"]}
        words = {"images": asked.images, "side": asked.side, "cores": asked.cores}
        document = {"asked": words, "rows": rows, "machine": facts}
        (asked.out / "results-cluster.json").write_text(json.dumps(document, indent=1) + "\n")
    if not all(row["equal"] for row in rows):
        raise SystemExit("the tables differ")


if __name__ == "__main__":
    main()
