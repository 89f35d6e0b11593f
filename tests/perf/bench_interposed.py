"""What perftool's hooks cost a script: its steps by its own clock, with them and without, in turns."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import exp, log, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import stats

from perftool.script.boot import TROUBLE, environment
from tests.perf.table import Row, Table

TITLE = "What perftool's hooks cost a script"
SCRIPT = Path(__file__).parent / "timed_script.py"
CASES = ((128, 40), (700, 8))  # width of the training to steps of a block; of the first a step takes about 2 ms
ALLOWED = 0.01
LAUNCHES, ROUNDS = 12, 100
ENDLESS = 10**9
CALL_LIMIT_S = 60


def run(quick: bool) -> Table:
    rows = [_row(width, steps, LAUNCHES // 4 if quick else LAUNCHES) for width, steps in CASES]
    return Table(
        ["step", "with hooks / without", "95 % interval", "allowed"],
        rows,
        [
            f"A script of `{SCRIPT.name}` in two processes, one with the hooks of a launch that times a block without "
            f"end, in drawn order, {ROUNDS} rounds in each of the launches of both; the interval is of the launches."
        ],
    )


def _row(width: int, steps: int, launches: int) -> Row:
    drawn = random.Random(0)
    medians, step_ns = [], []
    for _ in range(launches):
        with ExitStack() as stack:
            pair = [stack.enter_context(one) for one in (_plain(width, steps), _hooked(width, steps))]
            for process in pair:
                _block_ns(process)
            d = []
            for _ in range(ROUNDS):
                wall_ns = {index: _block_ns(pair[index]) for index in drawn.sample((0, 1), 2)}
                d.append(log(wall_ns[1] / wall_ns[0]))
                step_ns.append(wall_ns[0] / steps)
            medians.append(float(np.median(d)))
    half = float(stats.t.ppf(0.975, launches - 1)) * float(np.std(medians, ddof=1)) / sqrt(launches)
    middle = float(np.mean(medians))
    return Row(
        [
            f"{np.median(step_ns) / 1e6:.2f} ms",
            f"{exp(middle):.4f}",
            f"{exp(middle - half):.4f} to {exp(middle + half):.4f}",
            f"{1 + ALLOWED:.2f}",
        ],
        reached=exp(middle) <= 1 + ALLOWED if width == CASES[0][0] else None,
    )


def _block_ns(process: subprocess.Popen[str]) -> int:
    """One more block; returns the time of the one before it, by the script."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@contextmanager
def _started(width: int, steps: int, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--width", str(width), "--steps", str(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def _plain(width: int, steps: int) -> AbstractContextManager[subprocess.Popen[str]]:
    return _started(width, steps, {})


@contextmanager
def _hooked(width: int, steps: int) -> Iterator[subprocess.Popen[str]]:
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address, told = f"{folder}/turns", f"{folder}/launch.json"
        listener.bind(address)
        listener.listen()
        listener.settimeout(CALL_LIMIT_S)
        hook = {
            "address": address,
            "launch": 0,
            "meeting": folder,
            "script": {"command": [sys.executable, str(SCRIPT)], "folder": folder, "vary": []},
            "settings": {},
            "scenarios": {},
            "rule": {"boundary": "optimizer"},
            "device": "cpu",
            "seed": 0,
        }
        Path(told).write_text(json.dumps(hook))
        with _started(width, steps, environment(told)) as process:
            assert process.stdin is not None
            process.stdin.write("\n")  # its first step, at whose end it calls
            process.stdin.flush()
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                trouble = Path(told + TROUBLE)
                raise RuntimeError(trouble.read_text() if trouble.exists() else "no call") from None
            with connection, connection.makefile("rwb") as channel:
                channel.readline()
                request = {"type": "run", "round": 0, "position": 0, "drop": 0, "steps": ENDLESS}
                channel.write(json.dumps(request).encode() + b"\n")
                channel.flush()
                assert process.stdout is not None
                process.stdout.readline()
                yield process
