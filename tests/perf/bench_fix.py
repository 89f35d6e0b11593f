"""Side by side with train-doctor, which takes a command unchanged, too: whose change is faster, and told truly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from perftool.analysis.recommend import conclude
from perftool.records import Estimate
from perftool.store import load_session
from tests.perf import peer
from tests.perf.scripts import CASES, EXAMPLES, LIMIT_S, PERFTOOL, Case, interval
from tests.perf.table import Row, Table

TITLE = "Side by side with train-doctor on unchanged scripts"

PEER, VERSION = "train-doctor", "0.2.0"
NAMES = ("vae", "csv_rows", "nanogpt_like", "siren", "ppo_like", "dlrm_like")
BUDGET_S, RUNS = 60, 6


@dataclass(frozen=True)
class Advice:
    """What a tool has come to. before: words before the command with which the folder's script is to be run."""

    changes: Sequence[str]
    told: Estimate | None
    wall_s: float
    folder: Path
    before: Sequence[str] = ()


def run(quick: bool) -> Table:
    cases = [case for case in CASES if case.name in NAMES]
    columns = ["script"]
    for tool in (PEER, "perftool"):
        columns += [f"{tool}: {what}" for what in ("changes", "told", "true", "time")]
    try:
        with peer.installed(PEER, VERSION) as command:
            rows = [_row(case, command, 3 if quick else RUNS) for case in (cases[:1] if quick else cases)]
    except peer.UnavailableError:
        return Table(["all"], [Row([f"skipped: {PEER} cannot be installed"])])
    return Table(
        columns,
        rows,
        [
            f"`{PEER} fix --keep -- python SCRIPT` with its defaults, version {VERSION} in an environment of its own, "
            f"and `perftool tune --budget {BUDGET_S} -- python SCRIPT` with its patch applied. The truth: original and "
            f"changed script as the user runs them, without either tool, in drawn order, {RUNS} times each. Reached: "
            "perftool's script is at least as fast, and what it told lies within what is true. loadtune 0.3.0 takes no "
            "script: a training must be written anew for it, so it is judged on the reference trainings above.",
        ],
    )


def _row(case: Case, command: Path, runs: int) -> Row:
    with TemporaryDirectory() as place:
        original, theirs, ours = (Path(place, name) for name in ("original", "theirs", "ours"))
        for folder in (original, theirs, ours):
            folder.mkdir()
            shutil.copy(EXAMPLES / f"{case.name}.py", folder)
        words = [*case.launcher, f"{case.name}.py"]
        told = [_fixed(command, words, theirs), _tuned(words, ours, Path(place, "out"))]
        true = [_true(one, original, [*words, *case.short], runs) for one in told]
        cells = [case.name]
        for one, (low, middle, high) in zip(told, true, strict=True):
            cells += [", ".join(one.changes) or "nothing", "-" if one.told is None else _text(one.told)]
            cells += [f"{middle:.2f}x ({low:.2f} to {high:.2f})" if one.changes else "1.00x", f"{one.wall_s:.0f} s"]
        ours_told, (low, middle, high) = told[1].told, true[1]
        is_true = ours_told is None or (ours_told.low <= high and low <= ours_told.high)
        row = Row(cells, reached=is_true and high >= true[0][0] and (middle >= true[0][1] or low <= true[0][2]))
        print(row, file=sys.stderr, flush=True)
        return row


def _fixed(command: Path, words: Sequence[str], folder: Path) -> Advice:
    """What train-doctor changes, in the folder's script."""
    began_s = time.monotonic()
    fix = [str(command), "fix", "--keep", "--json", "--quiet", "--no-card", "--", *words]
    done = subprocess.run(fix, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    wall_s = time.monotonic() - began_s
    try:
        proven = json.loads(done.stdout).get("proven")
    except ValueError:  # it has ended without an answer
        return Advice([], None, wall_s, folder)
    if not proven:
        return Advice([], None, wall_s, folder)
    ratio = proven["ratio"]
    told = Estimate(ratio=ratio["point"], low=ratio["low"], high=ratio["high"])
    return Advice([proven["describe"]], told, wall_s, folder)


def _tuned(words: Sequence[str], folder: Path, out: Path) -> Advice:
    """What perftool changes, in the folder's script where its patch has all of it."""
    began_s = time.monotonic()
    tune = [*PERFTOOL, "tune", "--budget", str(BUDGET_S), "--quiet", "--out", str(out)]
    subprocess.run([*tune, "--", *words], cwd=folder, check=True, capture_output=True, timeout=LIMIT_S)
    wall_s = time.monotonic() - began_s
    [session] = out.iterdir()
    advice = conclude(load_session(session)).recommendation
    if advice is None:
        return Advice([], None, wall_s, folder)
    changes = [f"{name}={value}" for name, value in advice.settings.items()]
    if advice.patch is None or advice.patch.unwritten:
        before = [*PERFTOOL, "run", "-s", f"@{session / 'recommended.json'}", "--"]
        return Advice(changes, advice.speedup, wall_s, folder, before)
    apply = ["git", "apply", str(session / "recommended.patch")]
    subprocess.run(apply, cwd=folder, check=True, capture_output=True)
    return Advice(changes, advice.speedup, wall_s, folder)


def _true(advice: Advice, original: Path, words: Sequence[str], runs: int) -> tuple[float, float, float]:
    """Steps per second of the changed script over the original's, with a 95 % interval."""
    if not advice.changes:
        return 1.0, 1.0, 1.0
    return interval({original: words, advice.folder: [*advice.before, *words]}, runs)


def _text(one: Estimate) -> str:
    return f"{one.ratio:.2f}x ({one.low:.2f} to {one.high:.2f})"
