"""Each target beside what was measured, as Markdown."""

from __future__ import annotations

from typing import Any

import numpy as np

#: What, target, measured, whether it holds (None: not measured).
Row = tuple[str, str, str, bool | None]


def table(results: dict[str, Any], deployed: str) -> str:
    """Targets, then the scores and ratios of every bundle.

    Args:
        results: of the parts that have run.
        deployed: name of the bundle that a line would run.
    """
    rows = [
        *_accuracy(results.get("train"), deployed),
        *_throughput(results.get("speed"), deployed),
        *_apart(results.get("apart")),
        *_without_torch(results.get("speed"), deployed),
        *_parity(results.get("train")),
        *_folder(results.get("many")),
    ]
    lines = [f"Deployed bundle: {deployed}.", ""]
    lines += ["| what | target | measured | holds? |", "| --- | --- | --- | --- |"]
    verdict = {True: "yes", False: "**no**", None: "not measured"}
    lines += [
        f"| {what} | {target} | {measured} | {verdict[holds]} |"
        for what, target, measured, holds in rows
    ]
    lines += _all_bundles(results)
    return "\n".join(lines) + "\n"


def _open(rows: list[tuple[str, str]]) -> list[Row]:
    return [(what, target, "", None) for what, target in rows]


def _mean_sd(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _values(found: dict[str, Any], what: str, score: str) -> list[float]:
    """One value a seed of `teacher`, `student` or a bundle."""
    if what in ("teacher", "student"):
        return [seed[what][score] for seed in found.values()]
    return [seed["bundles"][what][score] for seed in found.values()]


def _in_all(found: dict[str, Any]) -> list[str]:
    """Bundles that every seed has."""
    first, *others = (seed["bundles"] for seed in found.values())
    return [name for name in first if all(name in other for other in others)]


def _accuracy(found: dict[str, Any] | None, deployed: str) -> list[Row]:
    asked = (
        ("balanced_accuracy", "balanced accuracy on test", 0.005),
        ("tail_recall", "tail recall on test", 0.015),
    )
    if not found:
        return _open(
            [(f"{name}, student's bundle - teacher", f">= -{by}") for _, name, by in asked]
        )
    if deployed not in _in_all(found):
        return [
            (f"{name}, student's bundle - teacher", f">= -{by}", "export refused", False)
            for _, name, by in asked
        ]
    rows: list[Row] = []
    for score, name, allowed in asked:
        teacher, bundle = _values(found, "teacher", score), _values(found, deployed, score)
        differences = np.subtract(bundle, teacher)
        each = ", ".join(f"{value:+.4f}" for value in differences)
        measured = f"{_mean_sd(bundle)} - {_mean_sd(teacher)} = {differences.mean():+.4f} ({each})"
        rows.append(
            (
                f"{name}, student's bundle - teacher, mean of {len(found)} seeds",
                f">= -{allowed}",
                measured,
                bool(differences.mean() >= -allowed),
            )
        )
    return rows


def _throughput(found: dict[str, Any] | None, deployed: str) -> list[Row]:
    if not found:
        return _open(
            [
                ("student's bundle / two separate experts in eager torch", ">= 15"),
                ("same backbone, batch 32: fp32 bundle / eager torch fp32", ">= 3.5"),
                ("same backbone, batch 32: INT8 bundle / eager torch fp32", ">= 5"),
            ]
        )
    student = found["student"]
    fast = student["student"].get(deployed, 0.0)
    rows: list[Row] = []
    for key, told in (
        ("teacher_equal_views", f"{student['student_views']} test-time view(s) each"),
        (
            "teacher_as_judged",
            f"views as judged: {student['teacher_views']} and {student['student_views']}",
        ),
    ):
        ratio = fast / student[key]
        measured = f"{ratio:.1f} ({fast:,.0f} / {student[key]:,.0f} images/s)"
        what = f"student's bundle / two separate experts in eager torch, best batches, {told}"
        rows.append((what, ">= 15", measured, ratio >= 15))
    for precision, least in (("fp32", 3.5), ("int8", 5.0)):
        for size, same in found["same_backbone"].items():
            ratios = {k: v for k, v in same["times_eager"].items() if k.endswith(precision)}
            told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
            measured = f"{told} (eager {same['eager_images_per_s']:,.0f} images/s)"
            what = f"same backbone, {size} px, batch 32: {precision} bundle / eager torch fp32"
            rows.append(
                (what, f">= {least:g}", measured, max(ratios.values(), default=0.0) >= least)
            )
    return rows


def _apart(found: dict[str, Any] | None) -> list[Row]:
    """Each in a process of its own. The verdict is against eager torch in its faster format."""
    if not found:
        return []
    rates = found["images_per_s"]
    rows: list[Row] = []

    def row(what: str, fast: dict[str, float], eager: str, least: float) -> None:
        default = rates[f"{eager} nchw"]
        faster = max(default, rates[f"{eager} nhwc"])
        told = ", ".join(
            f"{name} {rate / faster:.2f} (to the default format {rate / default:.2f})"
            for name, rate in fast.items()
        )
        measured = f"{told}; eager {faster:,.0f}, in the default format {default:,.0f} images/s"
        best = max((rate / faster for rate in fast.values()), default=0.0)
        named = f"{what}, each in a process of its own"
        rows.append((named, f">= {least:g}", measured, best >= least))

    row(
        "student's bundle, batch 128 / two separate experts in eager torch, batch 32",
        {"student": rates["student"]},
        "two experts, eager",
        15,
    )
    for precision, least in (("fp32", 3.5), ("int8", 5.0)):
        for size in (64, 128):
            start = f"{size} px, "
            fast = {
                name.removeprefix(start): rate
                for name, rate in rates.items()
                if name.startswith(start) and name.endswith(precision)
            }
            what = f"{size} px, batch 32: {precision} bundle / eager torch fp32"
            row(what, fast, f"{start}eager", least)
    return rows


def _without_torch(found: dict[str, Any] | None, deployed: str) -> list[Row]:
    light = (found or {}).get("without_torch", {}).get(deployed)
    if not light:
        return _open(
            [
                ("PNG files of 64 x 64 to the table, images/s, without torch", ">= 400"),
                ("one image, bytes to decision, p99, without torch", "<= 10 ms"),
                ("import, load, first prediction, without torch", "<= 1 s"),
                ("peak memory, without torch", "< 300 MB"),
            ]
        )
    files, latency = light["files"], light["latency"]
    timings = latency["one_image"]
    start, stream = latency["cold_start"], latency["streaming"]
    one = timings["files"]
    p99 = one["p99_ms"]
    # MiB as measured, MB as asked for.
    peak = max(light["peak_mib"], start["peak_mib"], stream["peak_mib"]) * 2**20 / 1e6
    told_p99 = "too few samples" if p99 is None else f"{p99:.2f} ms"
    told_one = f"p50 {one['p50_ms']:.2f} ms, p99 {told_p99} ({one['samples']:,} samples)"
    told_start = (
        f"{start['total_s']:.2f} s (import {start['import_s']:.2f}, load {start['load_s']:.2f}, "
        f"predict {start['predict_s']:.2f}; the interpreter's whole life {start['process_s']:.2f})"
    )
    return [
        (
            f"{files['images']:,} PNG files of 64 x 64 to the table, images/s, without torch",
            ">= 400",
            f"{files['images_per_s']:,.0f}",
            files["images_per_s"] >= 400,
        ),
        (
            "one image, bytes to decision, p99, without torch",
            "<= 10 ms",
            told_one,
            p99 is not None and p99 <= 10,
        ),
        (
            "import, load, first prediction, without torch",
            "<= 1 s",
            told_start,
            start["total_s"] <= 1,
        ),
        ("peak memory, without torch", "< 300 MB", f"{peak:,.0f} MB", peak < 300),
    ]


def _parity(found: dict[str, Any] | None) -> list[Row]:
    if not found:
        return _open(
            [
                ("fp32 bundles: max abs(p - p_torch) on test", "<= 1e-4"),
                ("fp32 bundles: test images with another top-1, ties apart", "0"),
                ("INT8 bundles: top-1 agreement with torch on test", ">= 99 %"),
            ]
        )
    rows: list[Row] = []
    names = _in_all(found)
    for name in (n for n in names if n.endswith("fp32")):
        worst = max(_values(found, name, "max_difference"))
        changed = [int(v) for v in _values(found, name, "changed_without_tie")]
        what = f"{name}: max abs(p - p_torch) on test, {len(found)} seeds"
        rows.append((what, "<= 1e-4", f"{worst:.1e}", worst <= 1e-4))
        what = f"{name}: test images with another top-1, ties apart"
        rows.append((what, "0", str(max(changed)), max(changed) == 0))
    for name in (n for n in names if n.endswith("int8")):
        agreement = _values(found, name, "agreement")
        tail = _values(found, name, "agreement_tail")
        measured = f"{min(agreement):.2%} (tail {min(tail):.2%}), the lowest of {len(found)} seeds"
        what = f"{name}: top-1 agreement with torch on test"
        rows.append((what, ">= 99 %", measured, min(agreement) >= 0.99))
    for seed, part in found.items():
        for name, reason in part["refused"].items():
            rows.append((f"{name} of seed {seed}", "exported", reason.replace("\n", " "), False))
    return rows


def _folder(found: dict[str, Any] | None) -> list[Row]:
    if not found:
        return _open(
            [
                ("a folder killed half-way and started again", "each image exactly once, in order"),
                ("memory for ten times the files", "constant"),
            ]
        )
    few, everything = found["few"], found["all"]
    growth = everything["peak_mib"] - few["peak_mib"]
    killed = f"{everything['files']:,} files, killed at {everything['killed_at_rows']:,} rows"
    told = (
        f"{everything['rows']:,} rows, each once: {everything['each_once']}, in order: "
        f"{everything['in_order']}; {everything['images_per_s']:,.0f} images/s over both starts"
    )
    return [
        (
            f"{killed} and started again",
            "each image exactly once, in order",
            told,
            everything["each_once"] and everything["in_order"],
        ),
        (
            f"memory for {everything['files']:,} files against {few['files']:,}",
            "constant: at most 8 MiB more, and 400 bytes for each file's name",
            f"{everything['peak_mib']:.0f} against {few['peak_mib']:.0f} MiB",
            growth * 2**20 <= 8 * 2**20 + 400 * (everything["files"] - few["files"]),
        ),
    ]


def _all_bundles(results: dict[str, Any]) -> list[str]:
    """Every bundle: scores, agreement, ratios, and what it does without torch."""
    found, speed = results.get("train"), results.get("speed", {})
    lines: list[str] = []
    if found:
        heads = ["model", "balanced accuracy", "tail recall", "agreement", "tail's", "with teacher"]
        lines += ["", f"Test images, {len(found)} seeds, mean ± standard deviation:", ""]
        lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
        for name in ("teacher", "student", *_in_all(found)):
            scores = ["balanced_accuracy", "tail_recall"]
            if name not in ("teacher", "student"):
                scores += ["agreement", "agreement_tail", "agreement_with_teacher"]
            cells = [_mean_sd(_values(found, name, score)) for score in scores]
            cells += [""] * (5 - len(cells))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if "student" in speed:
        lines += ["", f"Images/s, {speed['threads']} threads, medians:", ""]
        lines += ["| what | images/s |", "| --- | --- |"]
        rates = speed["student"]["images_per_s"]
        lines += [f"| {name} | {rate:,.0f} |" for name, rate in rates.items()]
    for size, same in speed.get("same_backbone", {}).items():
        lines += ["", f"One network at {size} px, median ms of a call:", ""]
        lines += ["| what | ms |", "| --- | --- |"]
        lines += [f"| {name} | {ms:.2f} |" for name, ms in same["ms"].items()]
    if speed.get("without_torch"):
        heads = ["bundle", "files, images/s", "one image p50, p99 ms", "cold start s", "peak MiB"]
        lines += ["", "Without torch:", ""]
        lines += ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
        for name, light in speed["without_torch"].items():
            one, start = light["latency"]["one_image"]["files"], light["latency"]["cold_start"]
            p99 = "too few" if one["p99_ms"] is None else f"{one['p99_ms']:.2f}"
            peak = max(light["peak_mib"], light["latency"]["streaming"]["peak_mib"])
            lines.append(
                f"| {name} | {light['files']['images_per_s']:,.0f} | {one['p50_ms']:.2f}, {p99} | "
                f"{start['total_s']:.2f} | {peak:.0f} |"
            )
    return lines
