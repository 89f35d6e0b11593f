"""Why single steps are slow: what disturbed each of them beyond its usual, as the watched blocks have it.

A step is slow above one and a half times the median. Its cause is what took most time beyond its own median, where all
known causes together make up at least half of what the step lost, and that one no less than what nothing explains; else
it is unknown, and said to be.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perftool.analysis.jitter import STALL_FROM
from perftool.records import CAUSES, RETRY, SLOWER_CORE, STEAL, UNKNOWN, SlowCause, SlowStep, WatchedBlock

Integers = NDArray[np.int64]

EXPLAINS = 0.5  # of what a step lost, for the known causes together
WORST_SHOWN = 8
SLOWER_FROM = 1.1  # times what a fixed piece of work usually takes; below, it is the noise of reading it
SHORT_STEPS = 10
SHORT_PERIOD, LONG_PERIOD = (16, 0.95), (4, 0.8)  # slow steps at least, and gaps that are multiples of the period
PERIOD_TOLERANCE = 0.05  # of the period; steps of the loader's queue come early or late


class Watched(NamedTuple):
    """All watched calls of a session, in order; times are per step, where a call is several."""

    step_ns: Integers
    call: Integers
    started_ns: Integers  # since the first block
    causes: dict[str, Integers]
    counts: dict[str, Integers]


def watched(blocks: Sequence[WatchedBlock]) -> Watched:
    """The steps of these blocks as arrays; a cause that a block does not have is 0 there."""

    def column(name: str, tables: Sequence[dict[str, list[int]]], *, per_step: bool = True) -> Integers:
        return _whole(
            [
                np.asarray(table.get(name, [0] * len(block.step_ns)), dtype=np.int64)
                // (block.steps_per_call if per_step else 1)
                for table, block in zip(tables, blocks, strict=True)
            ]
        )

    causes = [block.cause_ns for block in blocks]
    counts = [block.counts for block in blocks]
    began_ns = blocks[0].started_ns if blocks else 0
    step_ns = _whole([np.asarray(block.step_ns, dtype=np.int64) // block.steps_per_call for block in blocks])
    times = {name: column(name, causes) for name in CAUSES if any(name in table for table in causes)}
    fixed_work_ns = _whole([block.fixed_work_ns or [0] * len(block.step_ns) for block in blocks])
    if fixed_work_ns.any():
        times[SLOWER_CORE] = _slower_core_ns(step_ns, fixed_work_ns)
    return Watched(
        step_ns=step_ns,
        call=_whole([range(block.first_call, block.first_call + len(block.step_ns)) for block in blocks]),
        started_ns=_whole(
            [
                block.started_ns - began_ns + np.asarray(block.began_ns or np.cumsum([0, *block.step_ns[:-1]]))
                for block in blocks
                if block.step_ns
            ]
        ),
        causes=times,
        counts={
            name: column(name, counts, per_step=False) for name in CAUSES if any(name in table for table in counts)
        },
    )


def _slower_core_ns(step_ns: Integers, fixed_work_ns: Integers) -> Integers:
    """What a median step takes longer by, where fixed work takes longer; waiting is not slowed, so no step loses
    more."""
    slower = fixed_work_ns / np.median(fixed_work_ns[fixed_work_ns > 0])
    return np.where(slower < SLOWER_FROM, 0, (slower - 1) * np.median(step_ns)).astype(np.int64)


def _whole(parts: Sequence[Sequence[int] | Integers | range]) -> Integers:
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts]) if parts else np.empty(0, np.int64)


def slow_steps(steps: Watched) -> list[SlowStep]:
    """Every slow step with its cause, in the order in which they came."""
    if not len(steps.step_ns):
        return []
    median_ns = float(np.median(steps.step_ns))
    beyond = {name: values - np.median(values) for name, values in steps.causes.items()}
    found = []
    for at in np.flatnonzero(steps.step_ns > STALL_FROM * median_ns):
        lost_ns = float(steps.step_ns[at] - median_ns)
        cause, cause_ns = _cause({name: float(values[at]) for name, values in beyond.items()}, lost_ns)
        if cause == UNKNOWN and RETRY in steps.counts and steps.counts[RETRY][at]:
            cause = RETRY
        found.append(
            SlowStep(
                call=int(steps.call[at]),
                started_ns=int(steps.started_ns[at]),
                step_ns=int(steps.step_ns[at]),
                cause=cause,
                cause_ns=cause_ns,
            )
        )
    return found


def _cause(beyond_ns: dict[str, float], lost_ns: float) -> tuple[str, int | None]:
    """What took most of the time that was lost, and how much; steal is counted in coarse ticks of all cores, so it is
    believed only as far as nothing else explains."""
    known = {name: min(ns, lost_ns) for name, ns in beyond_ns.items() if name != STEAL and ns > 0}
    left_ns = max(0.0, lost_ns - sum(known.values()))
    known[STEAL] = min(beyond_ns.get(STEAL, 0.0), left_ns)
    name = max(known, key=lambda one: known[one])
    explained_ns = sum(known.values())
    if explained_ns < EXPLAINS * lost_ns or known[name] < lost_ns - explained_ns:
        return UNKNOWN, None
    return name, round(known[name])


def by_cause(slow: Sequence[SlowStep], steps: Watched, epoch_calls: int | None) -> list[SlowCause]:
    """The slow steps of each cause together, most time lost first.

    epoch_calls: calls of an epoch, where that is known.
    """
    median_ns = float(np.median(steps.step_ns)) if len(steps.step_ns) else 0.0
    total_ns = float(steps.step_ns.sum())
    found = []
    for cause in dict.fromkeys(step.cause for step in slow):
        own = [step for step in slow if step.cause == cause]
        lost_ns = sum(step.step_ns - median_ns for step in own)
        found.append(
            SlowCause(
                cause=cause,
                steps=len(own),
                share_of_slow=len(own) / len(slow),
                share_of_time=lost_ns / total_ns,
                worst_ns=max(step.step_ns for step in own),
                period=period([step.call for step in own], epoch_calls),
            )
        )
    return sorted(found, key=lambda one: -one.share_of_time)


def worst(slow: Sequence[SlowStep]) -> list[SlowStep]:
    """The slowest ones, slowest first."""
    return sorted(slow, key=lambda step: -step.step_ns)[:WORST_SHOWN]


def period(calls: Sequence[int], epoch_calls: int | None) -> str | None:
    """ "every epoch" or "every N steps", where slow steps come so regularly that chance does not do it."""
    gaps = [after - before for before, after in pairwise(calls)]
    if epoch_calls is not None and _fits(gaps, epoch_calls):
        return "every epoch"
    # Steps between two blocks are not watched, so a gap may be a multiple of the period; the smallest usual one is it.
    for candidate in sorted(set(gaps)):
        if _fits(gaps, candidate):
            return f"every {candidate} steps"
    return None


def _fits(gaps: Sequence[int], candidate: int) -> bool:
    """Whether the gaps are multiples of so many steps. Of few steps, many a gap is one by chance."""
    times, share = SHORT_PERIOD if candidate < SHORT_STEPS else LONG_PERIOD
    if candidate < 2 or len(gaps) < times - 1:
        return False
    tolerance = max(1, ceil(PERIOD_TOLERANCE * candidate)) if candidate >= 2 * SHORT_STEPS else 0
    near = sum(
        gap >= candidate - tolerance and abs(gap - candidate * round(gap / candidate)) <= tolerance for gap in gaps
    )
    return near >= share * len(gaps)
