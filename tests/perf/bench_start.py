"""How soon `perftool --help` answers, beside an interpreter that does nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import numpy as np

from tests.perf.table import Row, Table

TITLE = "`perftool --help` against `python -c pass`"

ROUNDS = 30
ALLOWED_S = 0.25


def run(quick: bool) -> Table:
    commands = {"pass": ["-c", "pass"], "help": ["-P", "-m", "perftool", "--help"]}
    drawn = random.Random(0)
    more_s = []
    for _ in range(5 if quick else ROUNDS):
        took_s = {name: _took_s(commands[name]) for name in drawn.sample(list(commands), 2)}
        more_s.append(took_s["help"] - took_s["pass"])
    middle, high = np.quantile(more_s, [0.5, 0.9])
    return Table(
        ["difference, median", "90 % quantile", "allowed"],
        [Row([f"{middle:.3f} s", f"{high:.3f} s", f"{ALLOWED_S} s"], reached=bool(middle <= ALLOWED_S))],
    )


def _took_s(arguments: list[str]) -> float:
    began_s = time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.monotonic() - began_s
