"""What the benchmarks with real processes share: whole commands on workloads whose truth is known, and plain loops."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from perftool.analysis.recommend import conclude
from perftool.records import Session, Summary
from perftool.store import load_session

HERE = Path(__file__).parent
UNITS = f"{HERE / 'units_of_work.py'}:workload"
INSERTED = HERE / "inserted.py"
IDENTICAL = HERE / "identical.py"
LIMIT_S = 900


@dataclass(frozen=True)
class Measured:
    """What one perftool command left behind."""

    session: Session
    summary: Summary
    wall_s: float
    script: str  # recommended.py; "" where nothing is recommended


def measured(*arguments: str) -> Measured:
    """Run a command. Raises CalledProcessError where it fails."""
    with TemporaryDirectory() as out:
        began_s = time.monotonic()
        subprocess.run(
            [sys.executable, "-P", "-m", "perftool", *arguments, "--out", out, "--quiet"],
            check=True,
            capture_output=True,
            timeout=LIMIT_S,
        )
        wall_s = time.monotonic() - began_s
        [folder] = Path(out).iterdir()
        session = load_session(folder)
        script = folder / "recommended.py"
        return Measured(session, conclude(session), wall_s, script.read_text() if script.exists() else "")


@contextmanager
def beside(stress: bool) -> Iterator[None]:
    """With a process beside that works and sleeps in turns, as a neighbour would."""
    if not stress:
        yield
        return
    code = (
        "import random, time\n"
        "while True:\n"
        "    end = time.perf_counter() + random.uniform(0.05, 1.0)\n"
        "    while time.perf_counter() < end: sum(range(1000))\n"
        "    time.sleep(random.uniform(0.05, 1.0))"
    )
    neighbour = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


# --------------------------------------------------------------------------------------------------------- plain loops

LOOP = """
import sys, time
import torch
places = {"__name__": "plain"}
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), places)
losses = places["train"](10**9)
for line in sys.stdin:
    begin = time.perf_counter_ns()
    for _ in range(int(line)):
        loss = next(losses)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(time.perf_counter_ns() - begin, flush=True)
"""


class PlainLoop:
    """A process that runs a training script of plain PyTorch, a number of steps at a time; it sleeps in between."""

    def __init__(self, script: str, folder: Path) -> None:
        self.path = folder / f"plain_{abs(hash(script))}.py"
        self.path.write_text(script)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", LOOP, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run_ns(self, steps: int) -> int:
        """Wall time of so many further steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@dataclass(frozen=True)
class Speedup:
    """Steps per second of one plain loop over another's."""

    ratio: float
    low: float  # of the launches seen
    high: float


def plain_speedup(baseline: str, changed: str, *, launches: int, rounds: int, block_s: float = 0.05) -> Speedup:
    """Two scripts in fresh processes, taking turns in drawn order; without perftool's measuring."""
    drawn = random.Random(0)
    logs = []
    for _ in range(launches):
        with TemporaryDirectory() as folder:
            loops = [PlainLoop(script, Path(folder)) for script in (baseline, changed)]
            try:
                for loop in loops:
                    loop.run_ns(50)
                steps = [max(1, round(block_s * 1e9 / (loop.run_ns(50) / 50))) for loop in loops]
                d = []
                for _ in range(rounds):
                    step_ns = {}
                    for index in drawn.sample((0, 1), 2):
                        loops[index].run_ns(1)
                        step_ns[index] = loops[index].run_ns(steps[index]) / steps[index]
                    d.append(log(step_ns[0] / step_ns[1]))
                logs.append(float(np.median(d)))
            finally:
                for loop in loops:
                    loop.close()
    return Speedup(exp(float(np.mean(logs))), exp(min(logs)), exp(max(logs)))


def spread(values: Sequence[float]) -> str:
    """`1.34 (1.31 to 1.37)`: median and range."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.3f} ({ordered[0]:.3f} to {ordered[-1]:.3f})"
