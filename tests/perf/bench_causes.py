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

from perftool.analysis.slow_steps import slow_steps, watched
from perftool.measure import messages
from perftool.measure.worker import Worker
from perftool.records import (
    RUN_QUEUE,
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
COMPETES_STEPS = 40  # at most, that a competitor's burst may reach into
ELSEWHERE = (RUN_QUEUE, STEAL, UNKNOWN)  # of the machine's own, which nobody knows the truth of

RUNS = {
    "mixed": ("mixed", {"threads": "1"}),
    "loader workers that start anew": ("with_workers", {"threads": "1", "restarting": "on"}),
}


def run(quick: bool) -> Table:
    steps = STEPS // 10 if quick else STEPS
    rows = []
    for name, (workload, settings) in RUNS.items():
        blocks, truth = _watched(workload, settings, steps)
        rows += _rows(name, blocks, truth)
    return Table(
        ["training", "cause", "injected and slow", "recall", "precision", "taken for"],
        rows,
        [
            f"Target: {TARGET:.0%} each. Slow is above one and a half times the median. Injected: cycles collected, a "
            "`__getitem__` that sleeps, memory touched for the first time, a process on the same core, a function "
            "compiled for a new shape, loader workers started at each epoch, and a sleep within the loss, which "
            "nothing lists and which has to come out unknown. Precision: of the slow steps with this cause, those in "
            "which it was injected; slow steps of no injection that waited for a core, were stolen from, or are of no "
            "known cause are the machine's own, and count for neither."
        ],
    )


def _watched(workload: str, settings: Mapping[str, str], steps: int) -> tuple[list[WatchedBlock], dict[int, str]]:
    """Watched blocks of a training in a process of its own, and what was injected at which call."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "tests.perf.bench_causes", workload, json.dumps(settings), str(steps)]
        done = subprocess.run(command, env={**os.environ, LOG: str(log)}, capture_output=True, check=True)
        blocks = [from_json(line, WatchedBlock) for line in done.stdout.splitlines()]
        events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    truth: dict[int, str] = {call: kind for call, kind, _ in events}
    if "restarting" in settings:
        # The first batch of each epoch; an injection of the same step is forgotten.
        per_epoch = -(-ROWS // BATCH)
        last = max(block.first_call + len(block.step_ns) for block in blocks)
        truth |= dict.fromkeys(range(0, last, per_epoch), WORKER_START)
    return blocks, truth


def _rows(name: str, blocks: Sequence[WatchedBlock], truth: Mapping[int, str]) -> list[Row]:
    slow = slow_steps(watched(blocks))
    bursts = [call for call, kind in truth.items() if kind == RUN_QUEUE]
    told: Counter[tuple[str | None, str]] = Counter()
    for step in slow:
        true = truth.get(step.call)
        if true in (None, RUN_QUEUE):
            near = any(0 <= step.call - call <= COMPETES_STEPS for call in bursts)
            true = RUN_QUEUE if near and step.cause == RUN_QUEUE else None if true is None else true
        if true is None and step.cause in ELSEWHERE:
            continue
        told[true, step.cause] += 1
    rows = []
    for cause in dict.fromkeys(true for true, _ in told if true):
        injected = sum(count for (true, _), count in told.items() if true == cause)
        named = sum(count for (_, found), count in told.items() if found == cause)
        right = told[cause, cause]
        wrong = ", ".join(
            f"{found} {count}" for (true, found), count in told.items() if true == cause and found != cause
        )
        precision = right / named if named else 0.0
        rows.append(
            Row(
                [name, cause, str(injected), f"{right / injected:.1%}", f"{precision:.1%}", wrong or "-"],
                reached=right >= TARGET * injected and precision >= TARGET,
            )
        )
    return rows


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
