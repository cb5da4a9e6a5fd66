"""A latency report as tables for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from recame.runtime.latency import LatencyReport
from recame.runtime.timing import Timing


def print_latency(report: LatencyReport, console: Console) -> None:
    """Print what was measured, on what, and what makes it doubtful."""
    _print_conditions(report, console)
    console.print(_timings(report))
    console.print(_process(report))
    for note in report.notes:
        console.print(f"[yellow]{note}[/yellow]", highlight=False)


def _print_conditions(report: LatencyReport, console: Console) -> None:
    machine, runtime, spec = report.machine, report.runtime, report.spec
    sets = f" ({', '.join(machine['instructions'])})" if machine["instructions"] else ""
    memory = f", {machine['memory_gib']} GiB" if machine["memory_gib"] else ""
    backend = runtime.get("backend", "unknown")
    version = machine["versions"].get(backend, "")
    said = {k: v for k, v in runtime.items() if k not in ("model", "backend") and _is_short(v)}
    lines = [
        f"{report.path}: {spec.width} x {spec.height} x {spec.channels}, {spec.bit_depth} bit",
        f"{machine['processor']}{sets}, {machine['cores']} cores usable{memory}",
        f"{machine['system']}, Python {machine['python']}",
        f"{backend} {version}: {', '.join(f'{k} {v}' for k, v in said.items())}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _is_short(value: object) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) <= 60


def _timings(report: LatencyReport) -> Table:
    table = Table(title="Latency, ms", title_justify="left")
    table.add_column("what", no_wrap=True)
    for name in ("samples", "mean", "p50", "p95", "p99", "max", "images/s"):
        table.add_column(name, justify="right")
    for batch, timing in report.batches.items():
        rate = report.images_per_s(batch)
        table.add_row(f"inference, batch {batch}", *_cells(timing), f"{rate:,.0f}")
    table.add_section()
    for name, timing in report.one_image.items():
        label = {"png": "bytes to decision, a PNG", "files": "bytes to decision, your files"}[name]
        table.add_row(
            label,
            *_cells(timing),
            f"{1e3 / timing.mean_ms:,.0f}",
        )
    return table


def _cells(timing: Timing) -> list[str]:
    p99 = "too few" if timing.p99_ms is None else f"{timing.p99_ms:.2f}"
    return [
        f"{timing.samples:,}",
        f"{timing.mean_ms:.2f}",
        f"{timing.p50_ms:.2f}",
        f"{timing.p95_ms:.2f}",
        p99,
        f"{timing.max_ms:.2f}",
    ]


def _process(report: LatencyReport) -> Table:
    table = Table(title="A process of its own", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    start, stream = report.cold_start, report.streaming
    if start is not None:
        table.add_row(
            f"cold start: import {start.import_s:.2f}, load {start.load_s:.2f}, predict "
            f"{start.predict_s:.2f}, together",
            f"{start.total_s:.2f} s",
        )
        torch = "with torch" if start.torch else "without torch"
        table.add_row(f"its peak memory, {torch}", _mib(start.peak_mib))
    if stream is not None:
        chosen = stream.runtime
        how = f"{chosen.get('parallel_batches')} x batch {chosen.get('batch_size')}"
        table.add_row(
            f"stream of {stream.images:,} encoded images ({how})",
            f"{stream.images_per_s:,.0f} images/s",
        )
        table.add_row("its peak memory", _mib(stream.peak_mib))
    if start is None and stream is None:
        table.add_row("cold start, memory", "not measured")
    return table


def _mib(peak: float | None) -> str:
    return "unknown" if peak is None else f"{peak:,.0f} MiB"
