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
BUDGET_S, RUNS = 60, 6
LIMIT_S = 1800
PERFTOOL = (sys.executable, "-P", "-m", "perftool")


@dataclass(frozen=True)
class Case:
    """An example, and the options with which it ends after some seconds."""

    name: str
    short: tuple[str, ...]
    launcher: tuple[str, ...] = (sys.executable,)


CASES = (
    Case("vae", ("--epochs", "2")),
    Case("mnist_cnn", ("--epochs", "1")),
    Case("csv_rows", ("--epochs", "2")),
    Case("gan", ("--epochs", "1")),
    Case("nanogpt_like", ("--max-iters", "60")),
    Case("siren", ("--num-steps", "300")),
    Case("accelerate_loop", ("--num_epochs", "1", "--samples", "3200")),
    Case("amp_already", ("--epochs", "1", "--samples", "3200")),
    Case("dlrm_like", ("--num-batches", "400")),
    Case("gcn", ("--epochs", "300")),
    Case("jax_like_loop", ("--steps", "2000")),
    Case("lbfgs_series", ("--steps", "15")),
    Case("ppo_like", ("--total-timesteps", "60000")),
    Case("unet", ("--epochs", "1")),
    Case("word_language_model", ("--epochs", "2")),
    Case("hf_trainer", ("--max_steps", "60")),
    Case("lightning_module", ("--max-epochs", "1")),
    Case("torchrun_ddp", ("--epochs", "3"), ("torchrun", "--nproc-per-node", "2")),
)


def run(quick: bool) -> Table:
    rows = [_row(case, 3 if quick else RUNS) for case in (CASES[:2] if quick else CASES)]
    return Table(
        ["script", "recommended", "told by tune", "tuned / original, by its own clock", "tuned by"],
        rows,
        [
            f"`perftool tune --budget {BUDGET_S} -- python SCRIPT`, then `git apply recommended.patch` in a copy, and "
            "both as the user runs them, without perftool, in drawn order. Where the patch does not hold all of the "
            "settings, the copy runs by `perftool run -s @recommended.json`. Reached: the two intervals overlap."
        ],
    )


def _row(case: Case, runs: int) -> Row:
    with TemporaryDirectory() as place:
        original, patched, out = (Path(place, name) for name in ("original", "patched", "out"))
        original.mkdir()
        shutil.copy(EXAMPLES / f"{case.name}.py", original)
        command = [*case.launcher, f"{case.name}.py"]
        tune = [*PERFTOOL, "tune", "--budget", str(BUDGET_S), "--quiet", "--out", str(out)]
        subprocess.run([*tune, "--", *command], cwd=original, check=True, capture_output=True, timeout=LIMIT_S)
        [folder] = out.iterdir()
        advice = conclude(load_session(folder)).recommendation
        if advice is None:
            return Row([case.name, "nothing", "-", "-", "-"])
        shutil.copytree(original, patched)
        is_whole = advice.patch is not None and not advice.patch.unwritten
        before = [] if is_whole else [*PERFTOOL, "run", "-s", f"@{folder / 'recommended.json'}", "--"]
        if is_whole:
            apply = ["git", "apply", str(folder / "recommended.patch")]
            subprocess.run(apply, cwd=patched, check=True, capture_output=True)
        command += case.short
        told = advice.speedup
        low, middle, high = _interval({original: command, patched: [*before, *command]}, runs)
        return Row(
            [
                case.name,
                ", ".join(f"{name}={value}" for name, value in advice.settings.items()),
                f"{told.ratio:.2f}x ({told.low:.2f} to {told.high:.2f})",
                f"{middle:.2f}x ({low:.2f} to {high:.2f})",
                "patch" if is_whole else "run",
            ],
            reached=low <= told.high and told.low <= high,
        )


def _interval(commands: dict[Path, list[str]], runs: int) -> tuple[float, float, float]:
    """95 % interval of the second command's steps per second over the first's, from pairs of whole runs."""
    original, tuned = commands
    drawn = random.Random(0)
    ratios = []
    for _ in range(runs):
        rates = {folder: _rate(commands[folder], folder) for folder in drawn.sample((original, tuned), 2)}
        ratios.append(log(rates[tuned] / rates[original]))
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
