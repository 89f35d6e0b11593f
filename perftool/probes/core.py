"""How fast the core is that this thread runs on, by work that never changes.

A core is slower where its clock was lowered, or where another's thread runs on the same physical core. On virtual
machines neither is told otherwise: they have no cpufreq, and their siblings belong to others.
"""

from __future__ import annotations

from time import perf_counter_ns

ADDITIONS = 1_500  # some 20 µs
TRIALS = 2  # the faster one: a thread may lose its core in one of them


def fixed_work_ns() -> int:
    """The time that additions of Python's take, within its caches."""
    best_ns = 0
    for _ in range(TRIALS):
        began_ns = perf_counter_ns()
        sum(range(ADDITIONS))
        took_ns = perf_counter_ns() - began_ns
        best_ns = min(best_ns or took_ns, took_ns)
    return best_ns
