"""G1 simulated: how often identical programs, in fresh launches, are called different."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.perf.noise import LAUNCH_SDS, at_end, looked_at, simulate
from tests.perf.table import Row, Table, share

if TYPE_CHECKING:
    from perftool.analysis.stats import Rule

TITLE = "G1, simulated: identical programs called different"

RULES: tuple[tuple[Rule, float], ...] = (("strict", 0.01), ("detect", 0.05))
SESSIONS = {1: 4000, 8: 600}  # by variants


def run(quick: bool) -> Table:
    rows = []
    for variants, sessions in SESSIONS.items():
        for launch_sd in LAUNCH_SDS:
            trials = simulate(trials=sessions // 20 if quick else sessions, variants=variants, launch_sd=launch_sd)
            for rule, alpha in RULES:
                ends = [at_end(looks)[1] for looks in looked_at(trials, rule=rule, alpha=alpha)]
                alarms = [[one.verdict in ("better", "worse") for one in compared] for compared in ends]
                false, comparisons = sum(map(sum, alarms)), variants * len(alarms)
                rows.append(
                    Row(
                        [
                            f"{rule}, alpha {alpha}",
                            str(variants),
                            f"{100 * launch_sd:.1f} %",
                            share(false, comparisons),
                            share(sum(map(any, alarms)), len(alarms)),
                            share(sum(one.verdict == "same" for compared in ends for one in compared), comparisons),
                        ],
                        reached=false <= alpha * comparisons,
                    )
                )
    return Table(
        ["rule", "variants", "launch sd", "comparisons called different", "sessions with one", "called same"],
        rows,
        [
            "Target: at most alpha of the comparisons. Shipped margin of 1 %, looks after 4, 6 and 8 generations of 60 "
            "rounds; recorded noise, and a launch effect drawn afresh for every launch."
        ],
    )
