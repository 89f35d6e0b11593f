"""The smallest training: what `tune` recommends for the document's own 1000 steps, and for five million."""

from __future__ import annotations

from tests.perf.bench_medium import baseline_script
from tests.perf.table import Row, Table
from tests.perf.trials import Speedup, measured, plain_speedup

TITLE = "`tune` on the seed training: fused Adam for 1000 steps, compiled steps for millions"

REFERENCE = "scenarios.reference:seed"
PLANS = ((1000, 5, 30.0), (5_000_000, 1, 120.0))  # planned steps, runs, budget in seconds
WANTED = 8.0  # for the long training


def run(quick: bool) -> Table:
    rows = []
    judged: dict[str, Speedup] = {}
    for planned_steps, runs, budget_s in PLANS:
        for number in range(1 if quick else runs):
            options = ("--budget", str(budget_s), "--seed", str(number), "--planned-steps", str(planned_steps))
            tuned = measured("tune", REFERENCE, *options)
            advised = tuned.summary.recommendation
            if advised is None:
                rows.append(Row([f"{planned_steps:,}", "nothing", "-", "-", f"{tuned.wall_s:.0f} s"], reached=False))
                continue
            label = ", ".join(f"{name}={value}" for name, value in advised.settings.items())
            if label not in judged:
                baseline = baseline_script(tuned.session.workload)
                judged[label] = plain_speedup(baseline, tuned.script, launches=2 if quick else 4, rounds=60)
            plain, told = judged[label], advised.speedup
            fused = advised.settings.get("optimizer_kernel") == "fused"
            overlaps = told.low <= plain.high and plain.low <= told.high
            rows.append(
                Row(
                    [
                        f"{planned_steps:,}",
                        label,
                        f"{told.ratio:.3f} ({told.low:.3f} to {told.high:.3f})",
                        f"{plain.ratio:.3f} ({plain.low:.3f} to {plain.high:.3f})",
                        f"{tuned.wall_s:.0f} s",
                    ],
                    reached=fused and overlaps if planned_steps == PLANS[0][0] else told.ratio >= WANTED,
                )
            )
    return Table(
        ["planned steps", "recommended", "confirmed by perftool", "plain loops (their launches)", "wall time"],
        rows,
        [
            "Target: the fused Adam in each run for 1000 steps, where compiling cannot pay back, its interval "
            f"overlapping what the plain loops show; at least {WANTED:.0f} times the baseline for five million. The "
            "plain loops are `recommended.py` and the same without the settings, each in a process of its own, in "
            "turns. Budgets: " + ", ".join(f"{budget_s:.0f} s" for _, _, budget_s in PLANS) + "."
        ],
    )
