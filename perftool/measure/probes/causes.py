"""What else happened during a block: the operating system's own counters, read before and after it.

Source: proc(5) for schedstat and stat, getrusage(2).
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import NamedTuple


class Counters(NamedTuple):
    """Running totals of this thread, this process and the machine; None where the system does not tell."""

    thread_cpu_ns: int | None
    run_queue_ns: int | None
    involuntary_switches: int
    minor_faults: int
    major_faults: int
    system_cpu_ns: int
    steal_ticks: int | None


def read_counters() -> Counters:
    """About 30 microseconds: for the borders of a block, not for steps."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    thread_cpu_ns, run_queue_ns = _schedstat()
    return Counters(
        thread_cpu_ns,
        run_queue_ns,
        usage.ru_nivcsw,
        usage.ru_minflt,
        usage.ru_majflt,
        round(usage.ru_stime * 1e9),
        _steal_ticks(),
    )


def labels(before: Counters, after: Counters) -> dict[str, int | None]:
    """What was added between two readings: the fields of BlockLabels."""
    return {
        name: None if start is None or end is None else end - start
        for name, start, end in zip(Counters._fields, before, after, strict=True)
    }


def _schedstat() -> tuple[int | None, int | None]:
    try:
        on_cpu, waiting, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except (OSError, ValueError):
        return None, None
    return int(on_cpu), int(waiting)


def _steal_ticks() -> int | None:
    try:
        with open("/proc/stat") as stat:
            return int(stat.readline().split()[8])
    except (OSError, ValueError, IndexError):
        return None


def steal_ticks_by_core() -> list[int]:
    """Running totals, in ticks of 1/100 s, of each core that this process may use; empty where the system does not
    tell."""
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    try:
        with open("/proc/stat") as stat:
            return [int(words[8]) for line in stat if (words := line.split())[0] in usable]
    except (OSError, ValueError, IndexError):
        return []
