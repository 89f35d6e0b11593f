"""Stored baselines: how far apart sessions of one training are, and how many of them would be called changed."""

from __future__ import annotations

import subprocess
from itertools import permutations
from math import log
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

from msgspec.structs import replace

from perftool.analysis import baseline
from perftool.analysis.gate import ALPHAS
from perftool.records import MEASURE, Session
from tests.perf.table import Row, Table, share
from tests.perf.trials import UNITS, measured

TITLE = "Stored baselines: the same training, stored again and again"

TRAININGS = {"100 units of work, one thread": UNITS, "scenarios.reference:small": "scenarios.reference:small"}
SESSIONS = 8
BUDGET_S = "20"


def run(quick: bool) -> Table:
    rows = []
    for name, reference in TRAININGS.items():
        found = [_stored(reference, seed) for seed in range(3 if quick else SESSIONS)]
        rows += _rows(name, [one for one in found if one is not None], found.count(None))
    return Table(
        ["training", "figure", "sessions", "not stored", "sd of sessions", "sd assumed", "told as changed", "raw"],
        rows,
        [
            "Each session is a whole `perftool check --write-baseline`; each is then compared with each other one as "
            "if that were stored. Told as changed: beyond the metric's margin at the first look, either way; a check "
            "looks a second time before it fails. The standard deviation is of the sessions' means of log figures; "
            "raw is that of the times themselves, without calibration kernels beside them. Target: at most "
            f"{100 * ALPHAS[MEASURE]:.0f} % told as changed."
        ],
    )


def _stored(reference: str, seed: int) -> Session | None:
    """A session that was stored; None where it could not be compared with."""
    with TemporaryDirectory() as folder:
        file = str(Path(folder) / "baseline.json")
        arguments = ["--write-baseline", "--baseline", file, "--budget", BUDGET_S, "--seed", str(seed)]
        try:
            return measured("check", reference, *arguments).session
        except subprocess.CalledProcessError as failed:
            if failed.returncode != 3:
                raise
            return None


def _rows(name: str, sessions: list[Session], lost: int) -> list[Row]:
    rows = []
    for figure, assumed in baseline.BETWEEN_SESSIONS_SD.items():
        values = [baseline.figures(one)[figure] for one in sessions if figure in baseline.figures(one)]
        if len(values) < 2:
            if figure == "throughput":  # a CPU has no memory of a device
                rows.append(Row([name, figure, str(len(values)), str(lost), "-", "-", "-", "-"], reached=False))
            continue
        pairs = [
            baseline.compared(replace(now, expected=baseline.stored(then)), MEASURE, ALPHAS[MEASURE])[figure]
            for then, now in permutations(sessions, 2)
        ]
        changed = sum(
            one.low is not None
            and one.high is not None
            and max(log(one.low), -log(one.high)) > log(1 + baseline.MARGINS[figure])
            for one in pairs
        )
        sd = stdev(fmean(one) for one in values)
        rows.append(
            Row(
                [
                    name,
                    figure,
                    str(len(values)),
                    str(lost),
                    f"{100 * sd:.2f} %",
                    f"{100 * assumed:.1f} %",
                    share(changed, len(pairs)),
                    f"{100 * stdev(_log_times(sessions)):.2f} %" if figure == "throughput" else "-",
                ],
                reached=changed <= ALPHAS[MEASURE] * len(pairs),
            )
        )
    return rows


def _log_times(sessions: list[Session]) -> list[float]:
    """Of each session, the mean log time per sample of the training's blocks."""
    times = []
    for session in sessions:
        launches = {one.launch for one in session.launches if one.variant == 1}
        times.append(fmean(log(one.wall_ns / one.samples) for one in session.blocks if one.launch in launches))
    return times
