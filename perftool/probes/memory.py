"""Host memory of a worker and its children, read from outside while they are stopped, and of a process by itself.

Source: proc(5): VmRSS and VmHWM in status, 5 written to clear_refs resets the latter, smaps_rollup for the
proportional set size; MemAvailable in meminfo.
"""

from __future__ import annotations

from pathlib import Path

from perftool.probes import cgroups

MEMINFO = Path("/proc/meminfo")


def high_water_bytes(pid: int) -> int | None:
    """Largest resident set of the process since its start or the last reset."""
    return _status_bytes(pid, "VmHWM:")


def resident_bytes(pid: int) -> int | None:
    """Present resident set of the process."""
    return _status_bytes(pid, "VmRSS:")


def _status_bytes(pid: int, name: str) -> int | None:
    return _bytes_in(Path(f"/proc/{pid}/status"), name)


def _bytes_in(file: Path, name: str) -> int | None:
    """Of a file of the kernel's with a name, kilobytes and a unit in each line."""
    try:
        for line in file.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def reset_high_water(pid: int) -> bool:
    """Start the high-water mark again at the present size; False where the system does not allow it."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def free_host_bytes() -> int:
    """What this process may still take: free on the machine, and left by its cgroups."""
    limit = cgroups.memory_limit()
    free_bytes = _bytes_in(MEMINFO, "MemAvailable:") or 0
    return min(free_bytes, limit.available_bytes) if limit else free_bytes


def children_bytes(pid: int) -> int:
    """Sum of the proportional set sizes of all descendants: shared pages are counted once over all."""
    import psutil

    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return 0
    return sum(_proportional_bytes(child.pid) for child in children)


def _proportional_bytes(pid: int) -> int:
    return _bytes_in(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") or 0
