"""The smallest training, for five million steps: compiling the whole step, ten at a time, pays back."""

from __future__ import annotations

from tests.perf.bench_seed import COLUMNS, judged_runs
from tests.perf.table import Table
from tests.perf.trials import Measured, Speedup

TITLE = "`tune` on the seed training for five million steps: at least 8 times"

BUDGET_S = 120.0
PLANNED_STEPS = 5_000_000
WANTED = 8.0


def run(quick: bool) -> Table:
    rows = judged_runs(1, BUDGET_S, PLANNED_STEPS, launches=1 if quick else 4, reached=is_enough)
    return Table(
        COLUMNS,
        rows,
        [
            f"Target: {WANTED:.0f} times the samples per second of the eager baseline. "
            f"`tune --budget {BUDGET_S:.0f} --planned-steps {PLANNED_STEPS}`; start-up and compilation are not budget."
        ],
    )


def is_enough(tuned: Measured, _: Speedup) -> bool:
    advised = tuned.summary.recommendation
    return advised is not None and advised.speedup.ratio >= WANTED
