"""Runs the benchmarks `bench_*.py` and writes each one's section of `results/benchmarks.md`; the others stay."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.perf.table import markdown, with_section

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results" / "benchmarks.md"
HEAD = (
    "# Benchmarks\n\nEach section is written by the command that it names; "
    "`make bench` runs them all. A target that is missed says so.\n"
)


def names() -> list[str]:
    """Of all benchmarks, without their prefix."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def circumstances(name: str, quick: bool, took_s: float) -> str:
    """Date, command, processor and cores, as each section states them."""
    command = f"python -m tests.perf {name}" + (" --quick" if quick else "")
    cores = len(os.sched_getaffinity(0))
    return f"{datetime.now(UTC):%Y-%m-%d}, `{command}`, {cpu_model()}, {cores} cores, {took_s:.0f} s"


def cpu_model() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def run(name: str, quick: bool) -> None:
    """One benchmark: its table to the terminal and into its section of the results."""
    module = importlib.import_module(f"tests.perf.bench_{name}")
    began_s = time.monotonic()
    body = markdown(module.run(quick))
    section = f"{circumstances(name, quick, time.monotonic() - began_s)}\n\n{body}"
    RESULTS.parent.mkdir(exist_ok=True)
    document = RESULTS.read_text() if RESULTS.exists() else HEAD
    RESULTS.write_text(with_section(document, module.TITLE, section))
    print(f"## {module.TITLE}\n\n{section}\n", flush=True)


def main(arguments: Sequence[str]) -> int:
    """0, or 1 where a benchmark failed; the others run all the same."""
    parser = argparse.ArgumentParser(prog="python -m tests.perf", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(names())}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer trials, to see that everything works")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(names()))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(names())}")
    failed = []
    for name in chosen.names or names():
        try:
            run(name, chosen.quick)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
