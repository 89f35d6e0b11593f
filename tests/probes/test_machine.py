"""What is read of a machine: limits of containers from files as the kernel writes them, and this very machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from perftool.probes import cgroups, machine
from perftool.probes.cgroups import MemoryLimit, memory_limit, quota_cores, throttled_periods
from perftool.probes.machine import describe_machine, read_fitness, usable_cores
from perftool.records import Machine, from_json, to_json

MIB = 2**20


def tree(root: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A mount of cgroups, and the file that says where this process is in it."""
    mount = root / "cgroup"
    mount.mkdir(parents=True)
    for name, text in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "membership").write_text(membership)
    return mount, root / "membership"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/job/step\n", {"job/step/cpu.max": "400000 100000\n", "job/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/job\n", {"unified/job/cpu.max": "100000 100000\n"}, 1.0),
        ("0::/of/the/host\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/../outside\n", {"cpu.max": "100000 100000\n"}, 1.0),
        (
            "4:memory:/x\n2:cpu,cpuacct:/docker/a\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("2:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/job\n", {"job/cpu.max": "max 100000\n"}, None),
        ("", {}, None),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, membership: str, files: dict[str, str], cores: float | None) -> None:
    assert quota_cores(*tree(tmp_path, membership, files)) == cores


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        (
            "0::/job\n",
            {
                "job/memory.max": f"{100 * MIB}\n",
                "job/memory.current": f"{60 * MIB}\n",
                "job/memory.stat": f"anon 1\ninactive_file {20 * MIB}\nactive_file 5\n",
            },
            MemoryLimit(100 * MIB, 60 * MIB),
        ),
        (
            "0::/job/step\n",
            {
                "job/step/memory.max": "max\n",
                "job/memory.max": f"{100 * MIB}\n",
                "job/memory.current": f"{120 * MIB}\n",
            },
            MemoryLimit(100 * MIB, 0),
        ),
        (
            "4:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": f"{100 * MIB}\n",
                "memory/a/memory.usage_in_bytes": f"{50 * MIB}\n",
                "memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {10 * MIB}\n",
            },
            MemoryLimit(100 * MIB, 60 * MIB),
        ),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/job\n", {"job/memory.max": "max\n", "job/memory.current": "5\n"}, None),
    ],
)
def test_the_tightest_memory_limit_counts_and_droppable_cache_is_left(
    tmp_path: Path, membership: str, files: dict[str, str], limit: MemoryLimit | None
) -> None:
    assert memory_limit(*tree(tmp_path, membership, files)) == limit


def test_throttling_is_read_in_both_versions(tmp_path: Path) -> None:
    two = tree(tmp_path / "2", "0::/job\n", {"job/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 4\n"})
    one = tree(tmp_path / "1", "2:cpu:/\n", {"cpu/cpu.stat": "nr_periods 9\nnr_throttled 3\nthrottled_time 7\n"})
    none = tree(tmp_path / "0", "", {})
    assert (throttled_periods(*two), throttled_periods(*one), throttled_periods(*none)) == (4, 3, None)


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (1.5, 1), (0.3, 1), (64.0, 8), (4.0, 4)])
def test_usable_cores_are_whole_ones_of_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cgroups, "quota_cores", lambda: quota)
    assert usable_cores() == cores


def test_a_memory_limit_bounds_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "memory_limit", lambda: MemoryLimit(100 * MIB, 40 * MIB))
    described = describe_machine("cpu")
    assert (described.memory_bytes, described.memory_available_bytes) == (100 * MIB, 40 * MIB)


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    described = describe_machine("cpu", threads_before=7)
    assert from_json(to_json(described), Machine) == described
    assert described.torch_version == torch.__version__
    assert described.torch_threads == 7
    assert described.device == "cpu"
    assert 0 < described.memory_available_bytes <= described.memory_bytes <= psutil.virtual_memory().total
    assert 1 <= described.usable_cores <= (os.cpu_count() or 1)
    assert described.cpu_model
    assert described.environment["OMP_NUM_THREADS"] == "2"
    assert described.environment["PYTORCH_CUDA_ALLOC_CONF"] == "backend:native"
    assert "SECRET_TOKEN" not in described.environment
    assert described.cpu_fp16_matrix == ("amx_fp16" in described.matrix_units)


def test_torch_compile_takes_cxx_and_no_other_where_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CXX", raising=False)
    assert machine._compiler() == str(compiler)
    monkeypatch.setenv("CXX", "not-there")
    assert machine._compiler() is None


def test_the_commit_and_whether_anything_was_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert (describe_machine("cpu").git_commit, describe_machine("cpu").git_dirty) == (None, None)
    (tmp_path / "train.py").write_text("1\n")
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "train.py"], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], check=True)
    (tmp_path / "results").mkdir()
    clean = describe_machine("cpu")
    assert clean.git_commit is not None
    assert len(clean.git_commit) == 40
    assert clean.git_dirty is False
    (tmp_path / "train.py").write_text("2\n")
    assert describe_machine("cpu").git_dirty is True


def test_a_system_that_tells_nothing_is_described_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without /proc, git and a compiler."""
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / str(name).lstrip("/"))
    monkeypatch.setattr(cgroups, "read_words", lambda _: [])
    monkeypatch.setattr(machine, "read_words", lambda _: [])
    monkeypatch.setattr(psutil, "swap_memory", _refuse)
    monkeypatch.setattr(psutil, "sensors_temperatures", _refuse, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "getloadavg")
    described, fitness = describe_machine("cpu"), read_fitness(0.0)
    assert described.cpu_model
    assert (described.compiler, described.git_commit, described.load_average_1min) == (None, None, None)
    assert described.matrix_units == []
    assert (fitness.steal_share, fitness.pressure_share, fitness.governor) == (None, None, None)
    assert (fitness.throttled_periods, fitness.swap_used_bytes, fitness.swapped_bytes) == (None, None, None)
    assert (fitness.cpu_temperature_c, fitness.heat_slowdowns, fitness.device) == (None, None, None)


def _refuse() -> None:
    raise OSError("not here")


def test_a_busy_neighbour_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BUSY_SHOWN", 10_000)  # whatever else this machine does meanwhile
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        fitness = read_fitness(0.5)
    finally:
        spinning.kill()
        spinning.wait()
    busy = fitness.busy_processes
    assert spinning.pid in [process.pid for process in busy]
    assert os.getpid() not in [process.pid for process in busy]
    assert busy == sorted(busy, key=lambda process: -process.cores)
    assert fitness.window_s >= 0.5
    assert fitness.others_cores is not None
    assert fitness.others_cores >= sum(process.cores for process in busy) - 1e-9
    assert fitness.host_cores == os.cpu_count()
    assert all(share is None or 0 <= share <= 1.01 for share in (fitness.steal_share, fitness.pressure_share))


class At:
    """Counters of one moment, of which only the processes are looked at."""

    def __init__(self, at_s: float, cpu_s: dict[tuple[int, float], tuple[str, float]]) -> None:
        self.at_s = at_s
        self.cpu_s = {key: machine._CpuTime(*one) for key, one in cpu_s.items()}


def used(before: At, after: At) -> dict[str, float]:
    return {one.name: one.cores for one in machine._used(before, after)}  # type: ignore[arg-type]


def test_all_work_of_others_counts_also_that_of_processes_that_began_just_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_share_on_own_cores", lambda pid: 1.0)
    before = At(
        10.0, {(1, 5.0): ("idle", 3.0), (2, 5.0): ("make", 100.0), (3, 5.0): ("sh", 900.0), (4, 5.0): ("old", 9.0)}
    )
    after = At(
        12.0,
        {(1, 5.0): ("idle", 3.0), (2, 5.0): ("make", 101.0), (3, 5.0): ("renamed", 900.5), (4, 11.0): ("new", 1.5)},
    )
    assert used(before, after) == {"make": 0.5, "renamed": 0.25, "new": 0.75}


def test_a_process_counts_by_the_share_of_its_cores_that_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = {0: {0, 1}, 7: {2, 3}, 8: {1, 2}}

    def affinity(pid: int) -> set[int]:
        if pid not in bound:
            raise ProcessLookupError
        return bound[pid]

    monkeypatch.setattr(os, "sched_getaffinity", affinity, raising=False)
    names = {7: "elsewhere", 8: "beside", 9: "gone"}
    after = At(1.0, {(pid, 0.5): (name, 1.0) for pid, name in names.items()})
    assert used(At(0.0, {}), after) == {"beside": 0.5, "gone": 1.0}


def cpus(monkeypatch: pytest.MonkeyPatch, root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(machine, "CPUS", root)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2}, raising=False)


@pytest.mark.parametrize(
    ("governors", "found"),
    [
        (["powersave", "performance", "performance"], "performance"),  # the first one is not ours
        (["performance", "performance", "schedutil"], "schedutil"),
        (["performance", "userspace", "performance"], "userspace"),
        ([], None),
    ],
)
def test_the_governor_of_any_usable_core_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, governors: list[str], found: str | None
) -> None:
    cpus(monkeypatch, tmp_path, {f"cpu{n}/cpufreq/scaling_governor": f"{one}\n" for n, one in enumerate(governors)})
    assert machine._governor() == found


def test_slowdowns_by_heat_are_counted_where_the_kernel_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus(monkeypatch, tmp_path, {})
    assert machine._heat_slowdowns() is None
    counters = {
        "cpu0/thermal_throttle/core_throttle_count": "3\n",
        "cpu1/thermal_throttle/package_throttle_count": "4\n",
    }
    cpus(monkeypatch, tmp_path, {**counters, "cpu0/thermal_throttle/core_throttle_total_time_ms": "99\n"})
    assert machine._heat_slowdowns() == 7


def test_the_hottest_sensor_of_a_cpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "coretemp": [SimpleNamespace(current=61.0), SimpleNamespace(current=64.0)],
        "cpu_thermal": [SimpleNamespace(current=50.0)],
        "nvme": [SimpleNamespace(current=80.0)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: found, raising=False)
    assert machine._cpu_temperature_c() == 64.0
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {"nvme": found["nvme"]}, raising=False)
    assert machine._cpu_temperature_c() is None
