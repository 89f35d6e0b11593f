"""The smallest training: what `tune` recommends for the document's own 1000 steps, which compiling cannot pay back."""

from __future__ import annotations

from collections.abc import Callable

from tests.perf.bench_medium import baseline_script
from tests.perf.table import Row, Table
from tests.perf.trials import Measured, Speedup, measured, plain_speedup

TITLE = "`tune` on the seed training for 1000 steps: the fused Adam, five times"

REFERENCE = "scenarios.reference:seed"
RUNS = 5
BUDGET_S = 60.0
PLANNED_STEPS = 1000
COLUMNS = ("recommended", "confirmed by perftool", "plain loops (their launches)", "wall time")


def run(quick: bool) -> Table:
    rows = judged_runs(
        1 if quick else RUNS, BUDGET_S, PLANNED_STEPS, launches=2 if quick else 8, reached=is_fused_and_overlaps
    )
    return Table(
        COLUMNS,
        rows,
        [
            "Target: the fused Adam in each run, its interval overlapping what the plain loops show. The plain loops "
            "are `recommended.py` and the same without the settings, each in a process of its own, in turns. "
            f"`tune --budget {BUDGET_S:.0f} --planned-steps {PLANNED_STEPS}`."
        ],
    )


def is_fused_and_overlaps(tuned: Measured, plain: Speedup) -> bool:
    advised = tuned.summary.recommendation
    return (
        advised is not None
        and advised.settings.get("optimizer_kernel") == "fused"
        and advised.speedup.low <= plain.high
        and plain.low <= advised.speedup.high
    )


def judged_runs(
    runs: int, budget_s: float, planned_steps: int, *, launches: int, reached: Callable[[Measured, Speedup], bool]
) -> list[Row]:
    """A row for each run of `tune`, judged by plain loops of what it recommends."""
    rows = []
    judged: dict[str, Speedup] = {}
    for number in range(runs):
        options = ("--budget", str(budget_s), "--seed", str(number), "--planned-steps", str(planned_steps))
        tuned = measured("tune", REFERENCE, *options)
        advised = tuned.summary.recommendation
        if advised is None:
            rows.append(Row(["nothing", "-", "-", f"{tuned.wall_s:.0f} s"], reached=False))
            continue
        label = ", ".join(f"{name}={value}" for name, value in advised.settings.items())
        if label not in judged:
            baseline = baseline_script(tuned.session.workload)
            judged[label] = plain_speedup(baseline, tuned.script, launches=launches, rounds=60)
        plain, told = judged[label], advised.speedup
        rows.append(
            Row(
                [
                    label,
                    f"{told.ratio:.3f} ({told.low:.3f} to {told.high:.3f})",
                    f"{plain.ratio:.3f} ({plain.low:.3f} to {plain.high:.3f})",
                    f"{tuned.wall_s:.0f} s",
                ],
                reached=reached(tuned, plain),
            )
        )
    return rows
