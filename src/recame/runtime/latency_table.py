"""Print a latency report as tables."""

from __future__ import annotations

from rich.console import Console, RenderableType

from recame.progress import say
from recame.runtime.latency import LatencyReport
from recame.runtime.timing import Timing
from recame.terminal_table import Column, fitted_table


def print_latency(report: LatencyReport, console: Console) -> None:
    """Print the figures, the machine, and reasons to doubt the figures."""
    machine, runtime, spec = report.machine, report.runtime, report.spec
    memory = f", {machine['memory_gib']} GiB" if machine["memory_gib"] else ""
    backend = runtime.get("backend", "unknown")
    said = [
        f"{name} {value}"
        for name, value in runtime.items()
        if name not in ("model", "backend")
        and isinstance(value, str | int | float)
        and len(str(value)) <= 60
    ]
    for line in (
        f"{report.path}: {spec.width} x {spec.height} x {spec.channels}, {spec.bit_depth} bit",
        f"{machine['processor']}, {machine['cores']} cores usable{memory}",
        *([f"instruction sets: {', '.join(sets)}"] if (sets := machine["instructions"]) else []),
        f"{machine['system']}, Python {machine['python']}",
        f"{backend} {machine['versions'].get(backend, '')}: {', '.join(said)}",
    ):
        say(console, line)
    console.print(_timings_table(report, console.width))
    console.print(_process_table(report, console.width))
    for note in report.notes:
        say(console, note, "yellow")


def _timings_table(report: LatencyReport, width: int) -> RenderableType:
    columns = [
        Column("what", figures=False, least=12),
        Column("samples", expendable=2),
        Column("mean", expendable=1),
        *map(Column, ("p50", "p95", "p99", "max", "images/s")),
    ]
    named = {"png": "bytes to decision, a PNG", "files": "bytes to decision, your files"}
    rows = [
        *([f"inference, batch {n}", *_cells(timing, n)] for n, timing in report.batches.items()),
        *([named[name], *_cells(timing, 1)] for name, timing in report.one_image.items()),
    ]
    return fitted_table(columns, rows, width, title="Latency, ms")


def _cells(timing: Timing, images: int) -> list[str]:
    p99 = "too few" if timing.p99_ms is None else f"{timing.p99_ms:.2f}"
    return [
        f"{timing.samples:,}",
        f"{timing.mean_ms:.2f}",
        f"{timing.p50_ms:.2f}",
        f"{timing.p95_ms:.2f}",
        p99,
        f"{timing.max_ms:.2f}",
        f"{images / timing.mean_ms * 1e3:,.0f}",
    ]


def _process_table(report: LatencyReport, width: int) -> RenderableType:
    rows = []
    start, stream = report.cold_start, report.streaming
    if start is not None:
        parts = f"import {start.import_s:.2f}, load {start.load_s:.2f}, predict "
        parts += f"{start.predict_s:.2f}, together"
        rows.append([f"cold start: {parts}", f"{start.total_s:.2f} s"])
        torch = "with" if start.torch else "without"
        rows.append([f"its peak memory, {torch} torch", _mib(start.peak_mib)])
    if stream is not None:
        chosen = stream.runtime
        how = f"{chosen.get('parallel_batches')} x batch {chosen.get('batch_size')}"
        what = f"stream of {stream.images:,} encoded images ({how})"
        rows.append([what, f"{stream.images_per_s:,.0f} images/s"])
        rows.append(["its peak memory", _mib(stream.peak_mib)])
    if start is None and stream is None:
        rows.append(["cold start, memory", "not measured"])
    columns = [Column("", figures=False, least=20), Column("")]
    return fitted_table(columns, rows, width, title="In a new process")


def _mib(peak: float | None) -> str:
    return "unknown" if peak is None else f"{peak:,.0f} MiB"
