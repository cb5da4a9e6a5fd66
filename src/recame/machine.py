"""The machine that something was made or measured on."""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Instruction sets that decide how fast a network runs, above all in INT8.
_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")

#: Microseconds of all cores together in each period.
_QUOTA = ("quota", "period")

#: Package of each backend that a predictor names.
_RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch")

#: What decides how a run trains.
_TRAINING_PACKAGES = (
    *("recame", "torch", "torchvision", "timm", "lightning"),
    *("numpy", "pandas", "scikit-learn"),
)


def describe_machine() -> dict[str, Any]:
    """Processor, usable cores, memory, system, and the versions of what runs networks here."""
    return {
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": package_versions("recame", "numpy", *_RUNTIME_PACKAGES),
    }


def package_versions(*names: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to load

    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def process_began() -> float:
    """`time.monotonic()` at which this command began: what the interpreter's start took counts.

    Now where the system does not say, or where other work went before in this process.
    """
    now = time.monotonic()
    if "torch" in sys.modules:  # only a program that did something else has loaded it by now
        return now
    try:
        # The fields after the name in brackets, which may hold spaces; the 22nd of all.
        ticks = int(_text("/proc/self/stat").rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, IndexError, ValueError, OSError):
        return now
    return now - max(0.0, age_s)


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:  # the first version of control groups
        quota, period = (_text(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in _QUOTA)
    if quota.strip().isdigit() and period.strip().isdigit():  # `max` or -1: no quota
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def peak_memory_mib() -> float | None:
    """The largest memory that this process held at once, in MiB; None where nobody counts it."""
    # The kernel's own count for this program; what getrusage says may be that of the parent,
    # whose pages a new process shares until it runs its own program.
    for line in _text("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    # macOS counts bytes, the others KiB.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def load_average() -> float | None:
    """Processes that ran or wanted to, mean of the last minute; None where nobody counts them."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str]:
    found = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [name for name in _FEATURES if name in found]


def _cpuinfo(field: str) -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (OSError, ValueError, AttributeError):
        return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def environment() -> dict[str, Any]:
    """What ran this: packages, Python, machine, device."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _cpuinfo("model name") or platform.processor(),
        "cpu_threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": dict.fromkeys(_TRAINING_PACKAGES, "not installed")
        | package_versions(*_TRAINING_PACKAGES),
    }
