"""What tune promises for a script, against the patched script by itself: both run as the user's command, in turns."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import stats

from perftool.analysis.recommend import conclude
from perftool.store import load_session
from tests.perf.table import Row, Table

TITLE = "What tune promises for a script, and what its patch does"
EXAMPLES = Path(__file__).parents[2] / "examples"
CLOCK = re.compile(r"(\d+) steps in ([\d.]+) s")
BUDGET_S, RUNS = 45, 8
LIMIT_S = 1800


@dataclass(frozen=True)
class Case:
    """An example, and the options with which it ends after some seconds."""

    name: str
    short: tuple[str, ...]


CASES = (
    Case("vae", ("--epochs", "2")),
    Case("mnist_cnn", ("--epochs", "1")),
    Case("csv_rows", ("--epochs", "2")),
    Case("gan", ("--epochs", "1")),
    Case("nanogpt_like", ("--max-iters", "60")),
    Case("siren", ("--num-steps", "300")),
)


def run(quick: bool) -> Table:
    rows = [_row(case, 3 if quick else RUNS) for case in (CASES[:2] if quick else CASES)]
    return Table(
        ["script", "recommended", "told by tune", "patched / original, by its own clock", "the patch has"],
        rows,
        [
            f"`perftool tune --budget {BUDGET_S} -- python SCRIPT`, then `git apply recommended.patch` in a copy, and "
            "both as the user runs them, without perftool, in drawn order. Reached: the two intervals overlap; of a "
            "patch that does not hold all of the settings nothing is said."
        ],
    )


def _row(case: Case, runs: int) -> Row:
    with TemporaryDirectory() as place:
        original, patched, out = (Path(place, name) for name in ("original", "patched", "out"))
        original.mkdir()
        shutil.copy(EXAMPLES / f"{case.name}.py", original)
        command = [sys.executable, f"{case.name}.py"]
        tune = [sys.executable, "-P", "-m", "perftool", "tune", "--budget", str(BUDGET_S), "--quiet", "--out", str(out)]
        subprocess.run([*tune, "--", *command], cwd=original, check=True, capture_output=True, timeout=LIMIT_S)
        [folder] = out.iterdir()
        advice = conclude(load_session(folder)).recommendation
        if advice is None:
            return Row([case.name, "nothing", "-", "-", "-"])
        shutil.copytree(original, patched)
        diff = folder / "recommended.patch"
        is_whole = advice.patch is not None and not advice.patch.unwritten
        if diff.exists():
            subprocess.run(["git", "apply", str(diff)], cwd=patched, check=True, capture_output=True)
        named = ", ".join(f"{name}={value}" for name, value in advice.settings.items())
        told = advice.speedup
        low, middle, high = _interval([*command, *case.short], original, patched, runs)
        return Row(
            [
                case.name,
                named,
                f"{told.ratio:.2f}x ({told.low:.2f} to {told.high:.2f})",
                f"{middle:.2f}x ({low:.2f} to {high:.2f})",
                "all" if is_whole else "not all" if diff.exists() else "nothing",
            ],
            reached=low <= told.high and told.low <= high if is_whole else None,
        )


def _interval(command: list[str], original: Path, patched: Path, runs: int) -> tuple[float, float, float]:
    """95 % interval of the ratio of steps per second, from pairs of whole runs."""
    drawn = random.Random(0)
    ratios = []
    for _ in range(runs):
        rates = {folder: _rate(command, folder) for folder in drawn.sample((original, patched), 2)}
        ratios.append(log(rates[patched] / rates[original]))
    half = float(stats.t.ppf(0.975, runs - 1)) * float(np.std(ratios, ddof=1)) / sqrt(runs)
    middle = float(np.mean(ratios))
    return exp(middle - half), exp(middle), exp(middle + half)


def _rate(command: list[str], folder: Path) -> float:
    """Steps per second, by the line that the script ends with."""
    with TemporaryDirectory() as own:
        copy = Path(own, "copy")
        shutil.copytree(folder, copy)
        done = subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    found = CLOCK.findall(done.stdout)
    assert found, done.stdout[-500:]
    steps, seconds = found[-1]
    return int(steps) / float(seconds)
