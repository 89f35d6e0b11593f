"""G2 and G4 live: a known amount of work is inserted; is it found, and do the intervals hold it?"""

from __future__ import annotations

import random
from math import exp, log

import numpy as np

from perftool.measure import messages
from perftool.measure.worker import Worker
from tests.perf.table import Row, Table, share
from tests.perf.trials import INSERTED, UNITS, measured, spread

TITLE = "G2 and G4, live: inserted work found, and covered by its interval"

SESSIONS = 8
FOUND = {"5": 0.95, "2": 0.80}  # units of 100 to the share of sessions that must find them
BUDGET_S = 40.0
LIMIT_S = 60.0


def run(quick: bool) -> Table:
    truth = {units: _true_ratio(int(units), 100 if quick else 1000) for units in FOUND}
    rows = []
    for units, target in FOUND.items():
        sessions = [
            measured(
                "compare",
                UNITS,
                f"inserted={units}",
                "--scenario",
                str(INSERTED),
                "--seed",
                str(number),
                "--budget",
                str(BUDGET_S),
            )
            for number in range(1 if quick else SESSIONS)
        ]
        compared = [one.summary.variants[0].versus_baseline["throughput"] for one in sessions]
        found = sum(one.verdict == "worse" for one in compared)
        covered = sum(
            one.low is not None and one.high is not None and one.low <= truth[units] <= one.high for one in compared
        )
        walls_s = [one.wall_s for one in sessions]
        rows.append(
            Row(
                [
                    f"{100 * (1 / truth[units] - 1):.1f} %",
                    share(found, len(compared)),
                    share(covered, len(compared)),
                    f"{truth[units]:.4f}",
                    spread([one.ratio for one in compared]),
                    f"{max(walls_s):.0f} s",
                ],
                reached=found >= target * len(compared) and max(walls_s) <= LIMIT_S,
            )
        )
    return Table(
        ["inserted work", "found", "interval covers the truth", "true ratio", "estimates", "slowest session"],
        rows,
        [
            f"Target: 5 % found in 95 % of sessions, 2 % in 80 %, within {LIMIT_S:.0f} s, launches included. Fresh "
            f"launches in every session, `compare --budget {BUDGET_S:.0f}`. The truth: the same steps with and without "
            "the work, in turns within one process, where no launch effect is."
        ],
    )


def _true_ratio(units: int, rounds: int) -> float:
    """Samples per second with the work over without it, of one process: median over paired blocks."""
    worker = Worker(
        messages.LaunchSpec(
            launch=0, reference=UNITS, settings={"threads": "1"}, device="cpu", seed=0, scenario_files=[]
        )
    )
    worker.start()
    worker.warm(messages.Warm(steps=200, limit_s=10))
    module = worker._live().module
    own = int(module.units)  # type: ignore[arg-type]
    drawn = random.Random(0)
    d = []
    for _ in range(rounds):
        wall_ns = {}
        for more in drawn.sample((0, units), 2):
            module.units = own + more  # type: ignore[assignment]
            wall_ns[more] = worker.run(messages.Run(round=0, position=0, drop=1, steps=12)).wall_ns
        d.append(log(wall_ns[0] / wall_ns[units]))
    return exp(float(np.median(d)))
