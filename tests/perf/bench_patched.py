"""What tune promises for a script, against the patched script by itself: both run as the user's command, in turns."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from perftool.analysis.recommend import conclude
from perftool.store import load_session
from tests.perf.scripts import CASES, EXAMPLES, LIMIT_S, PERFTOOL, Case, interval
from tests.perf.table import Row, Table

TITLE = "What tune promises for a script, and what its patch does"
BUDGET_S, RUNS = 60, 6


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
        low, middle, high = interval({original: command, patched: [*before, *command]}, runs)
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
