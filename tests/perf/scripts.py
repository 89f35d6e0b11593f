"""Scripts as their users run them, original and changed, in turns, by their own clock."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import stats

EXAMPLES = Path(__file__).parents[2] / "examples"
CLOCK = re.compile(r"(\d+) steps in ([\d.]+) s")
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


def interval(commands: dict[Path, Sequence[str]], runs: int) -> tuple[float, float, float]:
    """95 % interval of the second command's steps per second over the first's, from pairs of whole runs."""
    original, tuned = commands
    drawn = random.Random(0)
    ratios = []
    for _ in range(runs):
        rates = {folder: rate(commands[folder], folder) for folder in drawn.sample((original, tuned), 2)}
        ratios.append(log(rates[tuned] / rates[original]))
    half = float(stats.t.ppf(0.975, runs - 1)) * float(np.std(ratios, ddof=1)) / sqrt(runs)
    middle = float(np.mean(ratios))
    return exp(middle - half), exp(middle), exp(middle + half)


def rate(command: Sequence[str], folder: Path) -> float:
    """Steps per second, by the line that the script ends with."""
    with TemporaryDirectory() as own:
        copy = Path(own, "copy")
        shutil.copytree(folder, copy)
        done = subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True, timeout=LIMIT_S)
    found = CLOCK.findall(done.stdout)
    assert found, done.stdout[-500:]
    steps, seconds = found[-1]
    return int(steps) / float(seconds)
