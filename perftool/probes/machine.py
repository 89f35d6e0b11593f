"""What this machine is, and how quiet it is: facts for scenarios, reports, and whoever wonders about a noisy result.

Source: proc(5), the kernel's accounting/psi, psutil, NVML, torch's own queries. What a system does not tell is None or
empty.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import psutil

from perftool import __version__
from perftool.probes import cgroups, nvml
from perftool.probes.cgroups import read_words
from perftool.probes.memory import free_host_bytes
from perftool.records import SAVING_GOVERNORS, BusyProcess, Fitness, Machine

TELLING = ("OMP_", "KMP_", "MKL_", "GOMP_", "MALLOC_", "TORCH", "PYTORCH_", "CUDA_", "THP_", "LD_PRELOAD")
MATRIX_FLAGS = (
    "amx_bf16", "amx_fp16", "amx_int8", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni",  # x86
    "bf16", "i8mm", "sme",  # Arm
)  # fmt: skip
GIT_LIMIT_S = 5.0
BUSY_FROM_CORES = 0.05
BUSY_SHOWN = 3
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "x86_pkg_temp", "cpu", "soc")  # how their names begin
CPUS = Path("/sys/devices/system/cpu")


def describe_machine(device: str, threads_before: int | None = None) -> Machine:
    """The machine as this process finds it.

    device: "cpu" or "cuda:N", known to be there. threads_before: torch's thread count before anything changed it.
    """
    import torch

    total_bytes = psutil.virtual_memory().total
    limit = cgroups.memory_limit()
    flags = {*_cpu_info("flags").split(), *_cpu_info("Features").split()}
    status = _git("status", "--porcelain", "--untracked-files=no")
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpu_model=_cpu_info("model name") or platform.processor() or platform.machine(),
        usable_cores=usable_cores(),
        memory_bytes=min(total_bytes, limit.limit_bytes) if limit else total_bytes,
        memory_available_bytes=free_host_bytes(),
        python_version=platform.python_version(),
        perftool_version=__version__,
        torch_version=str(torch.__version__),
        torch_threads=threads_before or torch.get_num_threads(),
        matrix_units=[flag for flag in MATRIX_FLAGS if flag in flags],
        libc=" ".join(platform.libc_ver()).strip(),
        compiler=_compiler(),
        triton=find_spec("triton") is not None,
        torchao=find_spec("torchao") is not None,
        cpu_fp16_matrix="amx_fp16" in flags,
        huge_pages=_huge_pages(),
        device=device,
        environment={name: text for name, text in sorted(os.environ.items()) if name.startswith(TELLING)},
        git_commit=_git("rev-parse", "HEAD"),
        git_dirty=None if status is None else bool(status),
        load_average_1min=_load_average(),
        **(_cuda(device) if device.startswith("cuda") else {}),
    )


def usable_cores() -> int:
    """Whole cores that this process may use: its affinity, cut by its cgroup's quota; at least one."""
    quota = cgroups.quota_cores()
    # A part of a core more would be used up before the period ends, and every thread be stopped until the next.
    return len(_own_cores()) if quota is None else max(1, min(len(_own_cores()), int(quota)))


def _own_cores() -> set[int]:
    """Those that this process may run on, whatever its quota."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _cuda(device: str) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "device_name": properties.name,
        "device_capability": [properties.major, properties.minor],
        "device_memory_bytes": properties.total_memory,
        "cuda_version": torch.version.cuda,
        "driver_version": nvml.driver_version(),
    }


def _cpu_info(key: str) -> str:
    """The first processor's entry; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def _compiler() -> str | None:
    """The C++ compiler that torch.compile takes: CXX and no other where it is set (torch/_inductor/config.py)."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def _huge_pages() -> str | None:
    """The word in brackets: "always [madvise] never"."""
    words = read_words(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    return next((word.strip("[]") for word in words if word.startswith("[")), None)


def _git(*arguments: str) -> str | None:
    """What git says of the working directory; None where it is no repository, or there is no git."""
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


# ----------------------------------------------------------------------------------------------------------- fitness


def read_fitness(window_s: float = 1.0, device: str = "cpu") -> Fitness:
    """What else this machine does, over a window in which this process only waits. Needs no torch.

    device: as for torch, to look at as well; not to be in use by this process yet. "auto" looks at the first one.
    """
    handle = nvml.handle_of(device)
    before = _Counters(handle)
    sleep(window_s)
    after = _Counters(handle)
    used = _used(before, after)
    return Fitness(
        window_s=after.at_s - before.at_s,
        cores=len(_own_cores()),
        host_cores=os.cpu_count(),
        load_average_1min=_load_average(),
        others_cores=sum(process.cores for process in used),
        steal_share=_growth(before.steal_ticks, after.steal_ticks, per=_growth(before.ticks, after.ticks)),
        pressure_share=_growth(before.waiting_us, after.waiting_us, per=1e6 * (after.at_s - before.at_s)),
        throttled_periods=_whole(_growth(before.throttled_periods, after.throttled_periods)),
        governor=_governor(),
        swap_used_bytes=after.swap_used_bytes,
        swapped_bytes=_whole(_growth(before.swapped_bytes, after.swapped_bytes)),
        busy_processes=_busiest(used),
        cpu_temperature_c=_cpu_temperature_c(),
        heat_slowdowns=_whole(_growth(before.heat_slowdowns, after.heat_slowdowns)),
        device=nvml.read_fitness(handle, _at_both_ends(before.clock_reasons, after.clock_reasons)),
    )


class _Counters:
    """Everything that counts up, read at one moment; None where the system does not count it."""

    def __init__(self, handle: Any) -> None:
        self.at_s = monotonic()
        # "some avg10=0.00 avg60=0.00 avg300=0.00 total=123", then the same for "full". First, since it is set against
        # the time, and what follows takes a while.
        pressure = [word for word in read_words(Path("/proc/pressure/cpu")) if word.startswith("total=")]
        self.waiting_us = int(pressure[0].removeprefix("total=")) if pressure else None
        self.cpu_s = _cpu_seconds()
        # user nice system idle iowait irq softirq steal, in ticks of all cores
        ticks = [int(word) for word in read_words(Path("/proc/stat"))[1:9]]
        self.ticks = sum(ticks) if len(ticks) == 8 else None
        self.steal_ticks = ticks[7] if len(ticks) == 8 else None
        self.throttled_periods = cgroups.throttled_periods()
        self.swap_used_bytes, self.swapped_bytes = _swap()
        self.heat_slowdowns = _heat_slowdowns()
        self.clock_reasons = nvml.clock_reasons(handle)


class _CpuTime(NamedTuple):
    name: str
    cpu_s: float


def _cpu_seconds() -> dict[tuple[int, float], _CpuTime]:
    """CPU time so far of every other process that we may look at, by its number and when it began."""
    found = {}
    for process in psutil.process_iter(["name", "cpu_times", "create_time"]):
        times, began = process.info["cpu_times"], process.info["create_time"]
        if times is not None and began is not None and process.pid != os.getpid():
            name = str(process.info["name"] or "?")
            found[process.pid, float(began)] = _CpuTime(name, float(times.user + times.system))
    return found


def _swap() -> tuple[int | None, int | None]:
    """Bytes in swap, and bytes moved in and out since the start of the machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # psutil's, where a container hides /proc/vmstat
        try:
            swap = psutil.swap_memory()
        except (OSError, psutil.Error):
            return None, None
    return int(swap.used), int(swap.sin + swap.sout)


def _used(before: _Counters, after: _Counters) -> list[BusyProcess]:
    """What each of the others took of the cores that this process may use."""
    found = []
    for (pid, began), (name, cpu_s) in after.cpu_s.items():
        # One that was not there before began within the window, and so did all its work.
        earlier = before.cpu_s.get((pid, began))
        grown_s = cpu_s - (earlier.cpu_s if earlier else 0.0)
        share = _share_on_own_cores(pid) if grown_s > 0 else 0.0
        if share:
            found.append(BusyProcess(pid=pid, name=name, cores=share * grown_s / (after.at_s - before.at_s)))
    return found


def _share_on_own_cores(pid: int) -> float:
    """Of the cores that a process may run on, those that are ours, too. Batch jobs are bound to cores of their own."""
    if not hasattr(os, "sched_getaffinity"):
        return 1.0
    try:
        its = os.sched_getaffinity(pid)
    except OSError:  # it is gone, or not ours to look at
        return 1.0
    return len(its & _own_cores()) / len(its)


def _busiest(used: list[BusyProcess]) -> list[BusyProcess]:
    busy = [process for process in used if process.cores >= BUSY_FROM_CORES]
    return sorted(busy, key=lambda process: -process.cores)[:BUSY_SHOWN]


def _governor() -> str | None:
    """That of the usable cores; where they have several, one that saves power, since any of them may be used."""
    found = [word for cpu in sorted(_own_cores()) for word in read_words(CPUS / f"cpu{cpu}/cpufreq/scaling_governor")]
    return next((word for word in found if word in SAVING_GOVERNORS), found[0] if found else None)


def _heat_slowdowns() -> int | None:
    """Times that heat has lowered a clock, counted by each core and each core's package. Intel only."""
    words = [read_words(path) for path in CPUS.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    counts = [int(one[0]) for one in words if one and one[0].isdigit()]
    return sum(counts) if counts else None


def _cpu_temperature_c() -> float | None:
    """The hottest of the sensors that are known to be a CPU's."""
    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError, ValueError):  # not on this system, or a sensor that answers nonsense
        return None
    ours = [one for name, found in sensors.items() if name.lower().startswith(CPU_SENSORS) for one in found]
    return max((float(one.current) for one in ours), default=None)


def _at_both_ends(before: int | None, after: int | None) -> int | None:
    """The bits that are set in both: a change of clock sets some of them for a moment."""
    return None if before is None or after is None else before & after


def _growth(before: float | None, after: float | None, per: float | None = 1.0) -> float | None:
    if before is None or after is None or not per:
        return None
    return max(0.0, after - before) / per


def _whole(number: float | None) -> int | None:
    return None if number is None else round(number)
