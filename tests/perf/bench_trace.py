"""The trace of the medium reference training: its size, and its wait for data by our summary and by TensorBoard's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from perftool import units
from perftool.analysis.traces import SIZE_MOST_BYTES
from perftool.records import WAIT, TraceReport, from_json
from tests import plugin_overview
from tests.perf.table import Row, Table
from tests.perf.trials import LIMIT_S

TITLE = "The trace of the medium reference training, and what TensorBoard makes of it"

REFERENCE = "scenarios.reference:medium"
RUNS = 3
TARGET_POINTS = 2.0
PLUGIN_FOLDER = "tensorboard"  # of a traced session: a run to the plugin


def run(quick: bool) -> Table:
    if not plugin_overview.available():
        raise RuntimeError(f"install {plugin_overview.EXTRA}: the other half of this benchmark is its profiler plugin")
    return Table(
        ["seed", "steps", "size", "allowed", "DataLoader, by perftool", "by torch-tb-profiler", "apart"],
        [_row(seed) for seed in range(1 if quick else RUNS)],
        [
            f"Target: at most {units.size(SIZE_MOST_BYTES)}, and within {TARGET_POINTS:.0f} points. `perftool trace` "
            "with its default options; torch-tb-profiler 0.4.3 is asked by its own HTTP routes, of the copy in the "
            "session's folder `tensorboard`."
        ],
    )


def _row(seed: int) -> Row:
    with TemporaryDirectory() as out:
        words = ["perftool", "trace", REFERENCE, "--seed", str(seed), "--out", out, "--json", "--quiet"]
        done = subprocess.run([sys.executable, "-P", "-m", *words], check=True, capture_output=True, timeout=LIMIT_S)
        report = from_json(done.stdout, TraceReport)
        [overview] = plugin_overview.asked(Path(report.folder) / PLUGIN_FOLDER).values()
    ours = 100 * report.facts.shares[WAIT]
    theirs = plugin_overview.step_shares(overview)["DataLoader"]
    apart = abs(ours - theirs)
    return Row(
        [
            str(seed),
            str(report.facts.steps),
            units.size(report.size_bytes),
            units.size(SIZE_MOST_BYTES),
            f"{ours:.2f} %",
            f"{theirs:.2f} %",
            f"{apart:.2f} points",
        ],
        reached=report.size_bytes <= SIZE_MOST_BYTES and apart <= TARGET_POINTS,
    )
