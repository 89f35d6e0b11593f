"""What a container or a batch system allows this process: the limits of its cgroups, of both versions.

A limit may stand on any cgroup between this process's own and the root; the tightest one counts.
Source: the kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
NO_LIMIT_BYTES = 2**60  # version 1 writes a number near 2^63 for "none"


class MemoryLimit(NamedTuple):
    """The tightest memory limit, and what is left below it; page cache that can be dropped counts as left."""

    limit_bytes: int
    available_bytes: int


def quota_cores(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> float | None:
    """CPU time per wall time that this process's cgroups allow, in cores; None without a limit."""
    quotas = []
    for folder in _folders("cpu", mount, membership):
        # Version 2: "quota period" or "max period". Version 1: two files, the quota -1 for none.
        words = read_words(folder / "cpu.max") or [
            *read_words(folder / "cpu.cfs_quota_us"),
            *read_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def throttled_periods(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> int | None:
    """Periods so far in which a quota stopped this process's cgroups; None where the system does not tell."""
    counts = [
        int(words[words.index("nr_throttled") + 1])
        for folder in _folders("cpu", mount, membership)
        if "nr_throttled" in (words := read_words(folder / "cpu.stat"))
    ]
    return max(counts, default=None)


def memory_limit(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> MemoryLimit | None:
    """The memory that this process's cgroups allow; None without a limit."""
    limits = []
    for folder in _folders("memory", mount, membership):
        limit_bytes = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        if limit_bytes is not None and limit_bytes < NO_LIMIT_BYTES:
            used_bytes = _number(folder / "memory.current", folder / "memory.usage_in_bytes") or 0
            kept_bytes = max(0, used_bytes - _droppable_bytes(folder))
            limits.append(MemoryLimit(limit_bytes, max(0, limit_bytes - kept_bytes)))
    if not limits:
        return None
    return MemoryLimit(min(one.limit_bytes for one in limits), min(one.available_bytes for one in limits))


def read_words(path: Path) -> list[str]:
    """The words of a file; none where it cannot be read."""
    try:
        return path.read_text(errors="replace").split()
    except OSError:
        return []


def _folders(controller: str, mount: Path, membership: Path) -> Iterator[Path]:
    """This process's cgroups, from its own to the root, in every hierarchy that may hold the controller."""
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for hierarchy in (mount / names, mount / controller) if names else (mount, mount / "unified"):
            # In a container the path may be the host's, of which only the root is seen.
            for depth in range(len(parts), -1, -1):
                folder = hierarchy.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder


def _number(*paths: Path) -> int | None:
    """The first file's content that is a number."""
    words = (read_words(path) for path in paths)
    return next((int(one[0]) for one in words if one and one[0].isdigit()), None)


def _droppable_bytes(folder: Path) -> int:
    words = read_words(folder / "memory.stat")
    # Version 1 has the group's own figure under the plain name, and the whole subtree's as total_.
    name = next((name for name in ("total_inactive_file", "inactive_file") if name in words), None)
    return int(words[words.index(name) + 1]) if name else 0
