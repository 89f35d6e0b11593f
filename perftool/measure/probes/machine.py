"""What this machine is, and how busy it is: facts for scenarios, reports, and whoever wonders about a noisy result.

Source: proc(5), cgroups(7) in both versions, torch's own queries.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from time import sleep
from typing import Any

import psutil

from perftool import __version__
from perftool.records import Fitness, Machine

TELLING = ("OMP_", "KMP_", "MKL_", "GOMP_", "MALLOC_", "TORCH", "PYTORCH_", "CUDA_", "THP_", "LD_PRELOAD")
MATRIX_FLAGS = ("amx_tile", "amx_bf16", "amx_fp16", "amx_int8", "avx512_bf16", "avx_vnni", "avx512_fp16")
CGROUPS = Path("/sys/fs/cgroup")


def describe_machine(device: str, threads_before: int | None = None) -> Machine:
    """The machine as this process finds it; `threads_before` is torch's thread count before anything changed it."""
    import torch

    memory = psutil.virtual_memory()
    limit, used = _memory_limit_bytes()
    available = memory.available if limit is None else min(memory.available, max(0, limit - (used or 0)))
    flags = _cpu_flags()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpu_model=_cpu_model(),
        usable_cores=usable_cores(),
        memory_bytes=memory.total if limit is None else min(memory.total, limit),
        memory_available_bytes=available,
        python_version=platform.python_version(),
        perftool_version=__version__,
        torch_version=str(torch.__version__),
        torch_threads=threads_before or torch.get_num_threads(),
        matrix_units=[flag for flag in MATRIX_FLAGS if flag in flags],
        libc=" ".join(platform.libc_ver()).strip(),
        compiler=_compiler(),
        triton=find_spec("triton") is not None,
        cpu_fp16_matrix="amx_fp16" in flags,
        device=device,
        environment={name: text for name, text in sorted(os.environ.items()) if name.startswith(TELLING)},
        git_commit=_git("rev-parse", "HEAD"),
        git_dirty=None if (status := _git("status", "--porcelain")) is None else bool(status),
        load_average_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        **(_cuda(device) if device.startswith("cuda") else {}),
    )


def _cuda(device: str) -> dict[str, Any]:
    import pynvml
    import torch

    properties = torch.cuda.get_device_properties(device)
    try:
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        driver = None
    return {
        "device_name": properties.name,
        "device_capability": [properties.major, properties.minor],
        "device_memory_bytes": properties.total_memory,
        "cuda_version": torch.version.cuda,
        "driver_version": driver,
    }


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by a cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_cores()
    return cores if quota is None else max(1, min(cores, ceil(quota)))


def _quota_cores() -> float | None:
    for folder in _own_cgroups("cpu"):
        words = _words(folder / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            return int(words[0]) / int(words[1])
        quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            return int(quota[0]) / int(period[0])
    return None


def _memory_limit_bytes() -> tuple[int | None, int | None]:
    """Limit and use of the cgroup; None without one."""
    for folder in _own_cgroups("memory"):
        for limit_file, use_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, use = _words(folder / limit_file), _words(folder / use_file)
            # Version 1 writes a number near 2^63 for "none".
            if limit and limit[0].isdigit() and int(limit[0]) < 2**60:
                return int(limit[0]), int(use[0]) if use else None
    return None, None


def _own_cgroups(controller: str) -> Iterable[Path]:
    """Folders of this process's cgroups, of both versions, where the controller may be."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if not names:
            yield CGROUPS / path.lstrip("/")
        elif controller in names.split(","):
            yield CGROUPS / names / path.lstrip("/")
            yield CGROUPS / controller / path.lstrip("/")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _cpu_info(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set(_cpu_info("flags").split())


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    candidates = [named] if named else ["g++", "clang++", "c++"]
    return next((found for name in candidates if (found := shutil.which(name))), None)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# ----------------------------------------------------------------------------------------------------------- fitness


def read_fitness(window_s: float = 1.0) -> Fitness:
    """What else this machine does, over a short window."""
    busy_before = {process.pid: process for process in psutil.process_iter()}
    for process in busy_before.values():
        _cpu_percent(process)
    steal_before, total_before = _stat_ticks()
    throttled_before = _throttled()
    sleep(window_s)
    steal, total = _stat_ticks()
    throttled = _throttled()
    shares = sorted(
        (
            (_cpu_percent(process) / 100, _name(process))
            for process in busy_before.values()
            if process.pid != os.getpid()
        ),
        reverse=True,
    )
    return Fitness(
        cores=usable_cores(),
        load_average_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        steal_share=(steal - steal_before) / (total - total_before) if total > total_before else None,
        pressure_share=_pressure_share(),
        throttled_periods=None if throttled is None or throttled_before is None else throttled - throttled_before,
        governor=next(iter(_words(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))), None),
        swap_used_bytes=psutil.swap_memory().used if sys.platform != "darwin" else None,
        busy_processes={
            f"{name} ({index + 1})": share for index, (share, name) in enumerate(shares[:3]) if share >= 0.05
        },
    )


def _cpu_percent(process: psutil.Process) -> float:
    try:
        return float(process.cpu_percent())
    except psutil.Error:
        return 0.0


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return "?"


def _stat_ticks() -> tuple[int, int]:
    words = _words(Path("/proc/stat"))[1:9]
    ticks = [int(word) for word in words] if len(words) == 8 else [0] * 8
    return ticks[7], sum(ticks)


def _pressure_share() -> float | None:
    """Share of the last ten seconds in which something waited for a core."""
    for word in _words(Path("/proc/pressure/cpu")):
        if word.startswith("avg10="):
            return float(word.removeprefix("avg10=")) / 100
    return None


def _throttled() -> int | None:
    for folder in _own_cgroups("cpu"):
        words = _words(folder / "cpu.stat")
        if "nr_throttled" in words:
            return int(words[words.index("nr_throttled") + 1])
    return None
