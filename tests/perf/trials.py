"""What the benchmarks with real processes share: whole commands on workloads whose truth is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from perftool.records import Session
from perftool.store import load_session

HERE = Path(__file__).parent
UNITS = f"{HERE / 'units_of_work.py'}:workload"
INSERTED = HERE / "inserted.py"
IDENTICAL = HERE / "identical.py"


def measured(*arguments: str) -> Session:
    """The session of one perftool command, without its files. Raises CalledProcessError where it fails."""
    with TemporaryDirectory() as out:
        subprocess.run(
            [sys.executable, "-P", "-m", "perftool", *arguments, "--out", out, "--quiet"],
            check=True,
            capture_output=True,
            timeout=900,
        )
        [folder] = Path(out).iterdir()
        return load_session(folder)


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


def share(count: int, total: int) -> str:
    """`3 of 40 (7.5 %)`."""
    return f"{count} of {total} ({100 * count / total:.1f} %)" if total else "none of 0"


def spread(values: Sequence[float]) -> str:
    """`1.34 (1.31 to 1.37)`: median and range."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.3f} ({ordered[0]:.3f} to {ordered[-1]:.3f})"
