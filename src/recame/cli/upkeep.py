"""The verbs about this machine: its speed, its installation, its cache."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from recame.cli.options import Device, Model
from recame.errors import RecameError
from recame.names import counted
from recame.progress import say

if TYPE_CHECKING:
    from torch import nn

#: Seconds for which speed is measured; images in each batch; their side in pixels.
_SPEED_S, _BATCH, _SIDE = 1.0, 32, 64
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_INNER = re.compile(r"\[([^\]]+)\]")
#: A package that recame uses -> another package with the same import name.
_SAME_FILES = {
    "onnxruntime": "onnxruntime-gpu",
    "opencv-python-headless": "opencv-python",
}
#: Extra -> what it is for. `all` and `train-alone` are for packagers.
_PURPOSES = {
    "runtime": "predict with a bundle",
    "runtime-gpu": "predict with a bundle on an NVIDIA GPU",
    "runtime-openvino": "predict with an OpenVINO bundle",
    "train": "train, evaluate, report, export to ONNX",
    "train-gpu": "as train, on an NVIDIA GPU",
    "export": "export to OpenVINO, INT8",
    "cluster": "use a Ray cluster",
    "tensorboard": "log to TensorBoard",
    "mlflow": "log to MLflow",
    "wandb": "log to Weights & Biases",
    "lift": "fine-tune with LoRA",
}
_TRAINING = ("train", "train-gpu")
#: Missing packages of an extra that are named.
_MOST_NAMED = 3


def latency(
    model: Model,
    batches: Annotated[str, typer.Option(help="Batch sizes to measure.")] = "1,2,4,8,16,32,64",
    seconds: Annotated[float, typer.Option(help="Seconds for each batch size.")] = 2.0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="CPU cores for each batch.", show_default="chosen by measuring"),
    ] = None,
    device: Device = "auto",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of images of the line; their end-to-end latency is measured too.",
        ),
    ] = None,
    takt: Annotated[
        str | None,
        typer.Option(help="Time for one image, for example 20ms; exit code 1 if MODEL is slower."),
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
) -> None:
    """Measure the speed of MODEL on this machine: latency, throughput, start, memory."""
    from recame.durations import parse_duration
    from recame.runtime.latency import measure_latency, parse_batches, save_latency
    from recame.runtime.latency_table import print_latency

    console = Console()
    takt_s = None if takt is None else parse_duration(takt)
    sizes = parse_batches(batches)
    with console.status("measuring") as status:
        found = measure_latency(
            model,
            batches=sizes,
            seconds=seconds,
            threads=threads or "auto",
            device=device,
            images=images,
            on_progress=status.update,
        )
    print_latency(found, console)
    if json_ is not None:
        save_latency(found, json_, takt_s)
        say(console, f"Written: {json_}")
    if takt_s is not None:
        say(console, f"Takt {takt}: {found.answer(takt_s)}")
        raise typer.Exit(0 if found.fits(takt_s) else 1)


def doctor() -> None:
    """Show what is installed and what this machine can do; add this to a fault report."""
    from recame.data.cache_room import cache_folder, cache_limit, taken
    from recame.machine import describe_machine

    console = Console()
    machine = describe_machine()
    memory = machine["memory_gib"]
    versions = machine["versions"]
    rows = {
        "recame": versions.pop("recame", "not installed as a package"),
        "Python": f"{machine['python']} on {machine['system']}",
        "processor": f"{machine['processor']} ({', '.join(machine['instructions'])})",
        "cores": f"{machine['cores']} usable, memory {memory or 'unknown'} GiB",
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        **_torch(),
    }
    try:
        number, size = taken(cache_folder())
        limit = size_in_words(cache_limit(cache_folder()))
        rows["cache"] = f"{cache_folder()}: {_sets(number)}, {size_in_words(size)} of {limit}"
    except RecameError as error:
        rows["cache"] = str(error)
    for name, words in rows.items():
        say(console, f"{name:10}{words}")
    for line in _told_extras(extras()):
        say(console, line)
    for sentence in conflicts():
        say(console, f"{'conflict':10}{sentence}")


def cache(
    clear: Annotated[
        bool,
        typer.Option("--clear", help="Remove the decoded images; the next run decodes them again."),
    ] = False,
) -> None:
    """Show folder and size of the cache of decoded images (RECAME_CACHE, RECAME_CACHE_LIMIT)."""
    from recame.data import cache_room

    console, folder = Console(), cache_room.cache_folder()
    if clear:
        number, size = cache_room.clear(folder)
        say(console, f"Removed {_sets(number)}, {size_in_words(size)}")
    number, size = cache_room.taken(folder)
    limit = size_in_words(cache_room.cache_limit(folder))
    say(console, f"{folder} holds {_sets(number)}, {size_in_words(size)} of at most {limit}")


def extras() -> dict[str, list[str]]:
    """Extra -> packages that are missing here, by the metadata of the installed recame."""
    from recame.machine import package_versions

    brings = _brought()
    found: dict[str, list[str]] = {}
    for extra_name in brings:
        lacking = found.setdefault(extra_name, [])
        for package in _packages(extra_name, brings):
            instead = _SAME_FILES.get(package, package)
            if package not in lacking and not package_versions(package, instead):
                lacking.append(package)
    return found


def _told_extras(found: Mapping[str, list[str]]) -> Iterator[str]:
    """Which extras are complete here; then each other one that can be added, and what for."""
    from recame.machine import package_versions

    twins = {**_SAME_FILES, **{other: ours for ours, other in _SAME_FILES.items()}}
    there = package_versions(*twins)
    shown = {}
    for extra, purpose in _PURPOSES.items():
        # `runtime` is no part of an environment that has the ONNX Runtime for GPUs, nor inversely.
        brought = _packages(extra, _brought())
        if extra in found and not any(p not in there and twins.get(p) in there for p in brought):
            shown[extra] = purpose
    complete = [extra for extra in shown if not found[extra]]
    if shown:
        yield f"{'extras':10}complete: {', '.join(complete) or 'none'}"
    if len(complete) < len(shown):
        yield f"{'':10}To add one of these: pip install 'recame[NAME]'"
    training = set(found.get("train-alone", ()))
    for extra, purpose in shown.items():
        if lacking := found[extra]:
            own = [p for p in lacking if p not in training or extra in _TRAINING]
            own.sort(key=lambda package: package != "torch")  # the best known one first
            names = [*(["the training packages"] if len(own) < len(lacking) else []), *own]
            more = len(names) - _MOST_NAMED
            named = ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
            yield f"{'':10}{extra}: {purpose} ({named})"


def conflicts() -> list[str]:
    """Packages that write the same files and are both installed, so that only one of them works."""
    from recame.machine import package_versions

    told = []
    for ours, other in _SAME_FILES.items():
        there = package_versions(ours, other)
        if len(there) == 2:
            told.append(
                f"{ours} {there[ours]} and {other} {there[other]} write the same files, so it is "
                "left to chance which of them works: pip uninstall both, then install one"
            )
    return told


def _brought() -> dict[str, list[str]]:
    """Extra -> the packages and extras that it names, by the metadata of the installed recame."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        needed = requires("recame") or []
    except PackageNotFoundError:
        return {}
    brings: dict[str, list[str]] = {}
    for line in needed:
        extra, name = _EXTRA.search(line), _NAME.match(line)
        if extra is not None and name is not None:
            brings.setdefault(extra[1], []).extend(_named(line, name[0]))
    return brings


def _named(line: str, name: str) -> list[str]:
    """The package of a requirement, or the extras of recame in it, for example `recame[train]`."""
    if name.lower() != "recame":
        return [name]
    inner = _INNER.search(line)
    return [f"recame[{each.strip()}]" for each in inner[1].split(",")] if inner else []


def _packages(extra: str, brings: Mapping[str, list[str]]) -> Iterator[str]:
    """All packages of an extra, with those of the extras that it names."""
    for name in brings.get(extra, ()):
        if inner := _INNER.fullmatch(name.removeprefix("recame")):
            yield from _packages(inner[1], brings)
        else:
            yield name


def size_in_words(number: int) -> str:
    """A number of bytes in MB or GB.

    Examples:
        >>> size_in_words(0), size_in_words(2_500_000), size_in_words(100 * 10**9)
        ('0 MB', '2.5 MB', '100 GB')
    """
    unit, name = (10**9, "GB") if number >= 10**9 else (10**6, "MB")
    return f"{number / unit:.3g} {name}"


def _sets(number: int) -> str:
    return counted(number, "image set")


def _torch() -> dict[str, str]:
    """Version of torch, the GPUs that it sees, and its speed."""
    try:
        import torch

        from recame.contracts import PreprocessSpec
        from recame.models import PACKAGED_BACKBONE, Architecture, MultiExpertClassifier
    except ImportError as error:
        return {"torch": f"not installed ({error}): this machine can run bundles, but not train"}
    seen = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    spec = PreprocessSpec(_SIDE, _SIDE, 3, 8, 255.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    plan = Architecture(PACKAGED_BACKBONE, num_experts=1, attention="none")
    speed = _images_per_s(MultiExpertClassifier(plan, 2, spec).eval())
    return {
        "torch": f"{torch.__version__} on {counted(torch.get_num_threads(), 'thread')}",
        "GPUs": ", ".join(seen) or "torch sees none",
        "speed": f"{speed:,.0f} images/s of {_SIDE} x {_SIDE} px through {PACKAGED_BACKBONE}",
    }


def _images_per_s(model: nn.Module) -> float:
    """Images per second through a network in torch on this processor, without a graph."""
    import torch

    images = torch.zeros(_BATCH, 3, _SIDE, _SIDE)
    with torch.inference_mode():
        model(images)
        rounds, began = 0, time.perf_counter()
        while time.perf_counter() - began < _SPEED_S:
            model(images)
            rounds += 1
    return rounds * _BATCH / (time.perf_counter() - began)
