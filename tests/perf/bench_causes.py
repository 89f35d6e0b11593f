"""G9: whether slow steps get their true cause: disturbances of known kinds at known steps, mixed in one training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from perftool.analysis.slow_steps import slow_steps, watched
from perftool.measure import messages
from perftool.measure.worker import Worker
from perftool.probes.watch import COPYING_CALLS
from perftool.records import (
    LOADER,
    RUN_QUEUE,
    SLOWER_CORE,
    STEAL,
    UNKNOWN,
    WORKER_START,
    WatchedBlock,
    from_json,
    to_json,
)
from tests.perf.disturbed import BATCH, LOG, ROWS
from tests.perf.table import Row, Table
from tests.perf.trials import HERE

TITLE = "G9: the causes of slow steps"

STEPS = 20_000
BLOCK_STEPS = 60
TARGET = 0.95
FEWEST = 10  # injected and slow, to be judged
COMPETED = 0.5  # of what a step lost, that the competitor had the core meanwhile
BOTH = 1 / 3  # of what a step lost, from which on the competitor is a second cause beside the injected one
ELSEWHERE = (RUN_QUEUE, SLOWER_CORE, STEAL, UNKNOWN)  # of the machine's own, which nobody knows the truth of

SLEEPING = (LOADER, UNKNOWN)  # while these were injected, the step did not want the core
AFTER_START = "soon after loader workers started"

Event = list[Any]
"""The call or -1, what was done, and from when to when."""

RUNS = {
    "mixed": ("mixed", {"threads": "1"}),
    "loader workers that start anew": ("with_workers", {"threads": "1", "restarting": "on"}),
}


def run(quick: bool) -> Table:
    steps = STEPS // 10 if quick else STEPS
    rows = []
    for name, (workload, settings) in RUNS.items():
        rows += _rows(name, *_watched(workload, settings, steps))
    return Table(
        ["training", "cause", "injected and slow", "recall", "precision", "taken for"],
        rows,
        [
            f"Target: {TARGET:.0%} each. Slow is above one and a half times the median. Injected: cycles collected, a "
            "`__getitem__` that sleeps, memory touched for the first time, a process on the same core, a function "
            "compiled for a new shape, loader workers started at each epoch, and a sleep within the loss, which "
            "nothing lists and which has to come out unknown. Precision: of the slow steps with this cause, those in "
            "which it was injected; slow steps of no injection that waited for a core, had a slower one, were stolen "
            "from, or are of no known cause are the machine's own, and count for neither. Nor do steps with two "
            "causes: work that was injected while the process on the same core took a third of what the step lost, or "
            "more. Nor does a start of workers as the cause of one of the two steps after it: how much the fork left "
            "to them nobody knows."
        ],
    )


def _watched(workload: str, settings: Mapping[str, str], steps: int) -> tuple[list[WatchedBlock], list[Event]]:
    """Watched blocks of a training in a process of its own, and what was injected at which call."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "tests.perf.bench_causes", workload, json.dumps(settings), str(steps)]
        done = subprocess.run(command, env={**os.environ, LOG: str(log)}, capture_output=True, check=True)
        blocks = [from_json(line, WatchedBlock) for line in done.stdout.splitlines()]
        events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if "restarting" in settings:
        # The first batch of each epoch. The fork left pages to copy for the steps after it, nobody knows how many.
        last = max(block.first_call + len(block.step_ns) for block in blocks)
        starts = range(0, last, -(-ROWS // BATCH))
        injected = {call for call, _, _, _ in events}
        events += [[call, WORKER_START, 0, 0] for call in starts]
        after = {call + later for call in starts for later in range(1, 1 + COPYING_CALLS)}
        events += [[call, AFTER_START, 0, 0] for call in after - injected]
    return blocks, events


def _rows(name: str, blocks: Sequence[WatchedBlock], events: Sequence[Event]) -> list[Row]:
    truth = {call: kind for call, kind, _, _ in events if call >= 0}
    bursts = [(began_ns, ended_ns) for call, _, began_ns, ended_ns in events if call < 0]
    steps = watched(blocks)
    slow, median_ns = slow_steps(steps), float(np.median(steps.step_ns))
    first_ns = blocks[0].started_ns
    told: Counter[tuple[str | None, str]] = Counter()
    for step in slow:
        true = truth.get(step.call)
        began_ns = first_ns + step.started_ns
        taken_ns = sum(max(0, _common_ns(burst, (began_ns, began_ns + step.step_ns))) for burst in bursts)
        lost_ns = step.step_ns - median_ns
        if true is None and taken_ns > COMPETED * lost_ns:
            true = RUN_QUEUE
        elif true not in (None, AFTER_START, *SLEEPING) and taken_ns > BOTH * lost_ns:
            continue
        if true == AFTER_START:
            if step.cause == WORKER_START:
                continue
            true = None
        if true is not None or step.cause not in ELSEWHERE:
            told[true, step.cause] += 1
    rows = []
    for cause in dict.fromkeys([*truth.values(), *([RUN_QUEUE] if bursts else [])]):
        if cause == AFTER_START:
            continue
        injected = sum(count for (true, _), count in told.items() if true == cause)
        named = sum(count for (_, found), count in told.items() if found == cause)
        right = told[cause, cause]
        others = {found: count for (true, found), count in told.items() if true == cause and found != cause}
        wrong = ", ".join(f"{found} {count}" for found, count in others.items())
        recall, precision = right / max(1, injected), right / max(1, named)
        rows.append(
            Row(
                [name, cause, str(injected), f"{recall:.1%}", f"{precision:.1%}", wrong or "-"],
                reached=injected >= FEWEST and recall >= TARGET and precision >= TARGET,
            )
        )
    return rows


def _common_ns(one: tuple[int, int], other: tuple[int, int]) -> int:
    return min(one[1], other[1]) - max(one[0], other[0])


def _watch(workload: str, settings: dict[str, str], steps: int) -> None:
    """In a process of its own: the blocks as lines on stdout."""
    spec = messages.LaunchSpec(
        launch=0,
        reference=f"{HERE / 'disturbed.py'}:{workload}",
        settings=settings,
        scenario_files=[str(HERE / "restarting.py")],
        device="cpu",
        seed=0,
        watched=True,
    )
    worker = Worker(spec)
    worker.start()
    worker.warm(messages.Warm(steps=100, limit_s=10))
    for round_ in range(-(-steps // BLOCK_STEPS)):
        block = worker.watch(messages.Watch(round=round_, drop=1, steps=BLOCK_STEPS))
        sys.stdout.buffer.write(to_json(block) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _watch(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.buffer.flush()
    os._exit(0)  # the competitor ends with its pipe
