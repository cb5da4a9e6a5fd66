"""Which timm families train, are exported and predict: one small member of each, random weights.

    python benchmarks/structure/backbones.py --list members.json
    python benchmarks/structure/backbones.py --members members.json --out backbones.json
    python benchmarks/structure/backbones.py --out backbones.json --page docs/backbones.md

A family is a module of timm; its member is the smallest one with an ImageNet classifier of at most
30 M parameters. Each is built as a run would (regional attention, else none), takes one training
step on four images, becomes a graph of ONNX whose answers are compared with torch's, and predicts
by it. Results are kept after each family, so that the walk can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import get_pretrained_cfg

from recame.contracts import PreprocessSpec
from recame.errors import RecameError
from recame.inference.graph import OneView
from recame.inference.run_graph import OUTPUTS, RunGraph
from recame.losses import Objective
from recame.models import Architecture, MultiExpertClassifier
from recame.models.frozen_forward import export_onnx, quick_onnx
from recame.models.recorded_graph import UnrecordableError

MOST_PARAMETERS = 30e6
CLASSES = 5
#: Of a family, of the processor; what cannot be recorded may take `torch.onnx` longer.
MOST_S = 240
#: Of an image; where it is refused, the size that the network is made for is tried.
SIZE = 64
#: Largest difference of a probability between graph and torch.
PARITY = 1e-4
#: Where the table stands in a page.
MARKERS = ("<!-- walk -->", "<!-- end of walk -->")


def members() -> dict[str, list[Any]]:
    """Module -> its smallest member with an ImageNet classifier, and its parameters."""
    found: dict[str, list[Any]] = {}
    for module in timm.list_modules():
        counted = []
        for name in timm.list_models(module=module, exclude_filters="test_*"):
            config = get_pretrained_cfg(name)
            if config is not None and config.num_classes != 1000:
                continue
            if number := num_parameters(name):
                counted.append((number, name))
        small = [pair for pair in counted if pair[0] <= MOST_PARAMETERS]
        if small:
            parameters, name = min(small)
            found[module] = [name, parameters]
    return found


def num_parameters(name: str) -> int:
    """Of the network with its classifier; 0 where it cannot be built without its weights."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return 0
    return sum(p.numel() for p in model.parameters())


def examine(name: str) -> dict[str, Any]:
    """What a backbone does, or the sentence with which it is refused."""
    plan = Architecture(name, num_experts=2, attention="regional")
    remarks = []
    config = get_pretrained_cfg(name)
    sizes = (SIZE, 224, 256) if config is None else (SIZE, config.input_size[1])
    for size in sizes:
        for attention in ("regional", "none"):
            try:
                tried = replace(plan, attention=attention)
                return {**examine_plan(tried, size), "remarks": remarks}
            except RecameError as error:
                remarks.append(str(error))
    return {"refused": remarks[-1], "remarks": remarks[:-1]}


def examine_plan(plan: Architecture, size: int) -> dict[str, Any]:
    """One step, a graph, and its answers."""
    torch.manual_seed(0)
    spec = PreprocessSpec(size, size, 3, 8, 255.0, (0.5,) * 3, (0.5,) * 3)
    model = MultiExpertClassifier(plan, CLASSES, spec)
    stages = model.num_stages
    shared = max(0, stages - 2)
    if shared:
        model = MultiExpertClassifier(replace(plan, shared_stages=shared), CLASSES, spec)
    found: dict[str, Any] = {"size": size, "attention": plan.attention, "stages": stages}
    found["trains"] = step(model, size)
    return {**found, **exported(model.eval(), size)}


def step(model: MultiExpertClassifier, size: int) -> float:
    """The loss of one training step, whose gradients are finite and reach the first weights."""
    objective = Objective((4,) * CLASSES, num_experts=2, prior=torch.full((CLASSES,), 1 / CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss = objective(model.train()(torch.rand(4, 3, size, size)), torch.arange(4)).total
    loss.backward()
    reached = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in reached)
    assert any(bool(gradient.any()) for gradient in reached[:5])
    optimizer.step()
    return round(float(loss), 3)


def exported(model: MultiExpertClassifier, size: int) -> dict[str, Any]:
    """How the graph was made, and how far its answers are from torch's."""
    view = OneView(model).eval()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    example = torch.from_numpy(images)
    with torch.no_grad():
        expected = view(example)[0]
    assert bool(expected.isfinite().all())
    try:
        graph, how = quick_onnx(view, example[:2], output_names=OUTPUTS), "recorded"
    except UnrecordableError:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "graph.onnx"
            try:
                export_onnx(view, example[:2], path, output_names=OUTPUTS)
            except Exception as error:  # noqa: BLE001 - the exporter fails in many ways
                return {"exports": False, "reason": why(error)}
            graph, how = path.read_bytes(), "torch.onnx"
    logits, _ = RunGraph(graph, threads=1)(images)
    both = [torch.as_tensor(part).mean(1).softmax(-1) for part in (logits, expected)]
    apart = float((both[0] - both[1]).abs().max())
    return {"exports": how, "difference": apart, "predicts": apart <= PARITY}


def why(error: BaseException) -> str:
    """What an exporter failed of, in its innermost words."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split())
    return f"{type(error).__name__}: {words[:140]}"


def counts(results: dict[str, Any]) -> str:
    """How many families did what, in sentences."""
    trained = [row for row in results.values() if "refused" not in row and "bug" not in row]
    whole = sum(row["stages"] == 1 for row in trained)
    plain = sum(row["attention"] == "none" for row in trained)
    made = [row["exports"] for row in trained]
    agreeing = sum(bool(row.get("predicts")) for row in trained)
    refused = sum("refused" in row for row in results.values())
    bugs = sum("bug" in row for row in results.values())
    return (
        f"{len(results)} families: {len(trained)} train, {refused} are refused, {bugs} end in an "
        f"error that is none of ours. Of those that train, {len(trained) - whole} are cut into "
        f"stages and {whole} are one stage; {plain} take no regional attention. "
        f"{made.count('recorded')} graphs are recorded, {made.count('torch.onnx')} made by "
        f"`torch.onnx`, {made.count(False)} by neither, so that these answer in torch; "
        f"{agreeing} of {len(trained) - made.count(False)} graphs answer as torch does.\n"
    )


def write_page(page: Path, results: dict[str, Any]) -> None:
    """Put counts and table between the markers of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    told = f"{MARKERS[0]}\n{counts(results)}\n{table(results)}{MARKERS[1]}"
    page.write_text(before + told + after, encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """A row a family, in Markdown."""
    heads = ("family", "model tried", "M parameters", "stages", "px", "attention", "trains")
    heads = (*heads, "graph", "predicts")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for family, row in sorted(results.items()):
        start = f"| {family} | {row['name']} | {row['parameters'] / 1e6:.1f} |"
        if "refused" in row:
            lines.append(f"{start} | | | refused: {row['refused']} | | |")
            continue
        if "bug" in row:
            lines.append(f"{start} | | | error: {row['bug']} | | |")
            continue
        graph = row["exports"] or f"none: {row['reason']}"
        predicts = "yes" if row.get("predicts") else "in torch" if not row["exports"] else "no"
        facts = (row["stages"], row["size"], row["attention"], "yes", graph, predicts)
        lines.append(f"{start} {' | '.join(map(str, facts))} |")
    return "\n".join(lines) + "\n"


def give_up(number: int, frame: object) -> None:
    """End a family that takes too long."""
    raise TimeoutError(f"more than {MOST_S} s of the processor")


def main() -> None:
    """Walk the families."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", type=Path)
    parser.add_argument("--members", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="to put the table into")
    parser.add_argument("--most", type=int, default=1000, help="families a call")
    words = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, give_up)
    if words.list:
        words.list.write_text(json.dumps(members(), indent=1), encoding="utf-8")
        return
    results = json.loads(words.out.read_text(encoding="utf-8")) if words.out.exists() else {}
    chosen = json.loads(words.members.read_text(encoding="utf-8")) if words.members else {}
    for family in [name for name in chosen if name not in results][: words.most]:
        name, parameters = chosen[family]
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, MOST_S)
        try:
            found = examine(name)
        except Exception as error:  # noqa: BLE001 - a bug: no family may end so
            found = {"bug": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = round(time.process_time() - began, 1)
        parameters = parameters or num_parameters(name)
        results[family] = {"name": name, "parameters": parameters, "seconds": seconds, **found}
        print(family, results[family], flush=True)
        words.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if words.page:
        write_page(words.page, results)


if __name__ == "__main__":
    main()
