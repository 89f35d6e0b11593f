"""The smallest training: `tune` recommends the fused Adam each time, with the gain that a plain loop shows."""

from __future__ import annotations

from perftool.analysis.handover import script
from perftool.scenario import Context, discover
from tests.perf.bench_medium import baseline_script
from tests.perf.table import Row, Table
from tests.perf.trials import measured, plain_speedup

TITLE = "`tune` on the seed training: the fused Adam, five times"

REFERENCE = "scenarios.reference:seed"
RUNS = 5
BUDGET_S = 30.0


def run(quick: bool) -> Table:
    rows, plain = [], None
    for number in range(1 if quick else RUNS):
        tuned = measured("tune", REFERENCE, "--budget", str(BUDGET_S), "--seed", str(number))
        if plain is None:
            context = Context(machine=tuned.session.machine, workload=tuned.session.workload)
            fused = {"optimizer_kernel": {"fused": discover()["optimizer_kernel"].code("fused", context).filled()}}
            changed = script(fused, {"optimizer_kernel": "fused"}, workload=context.workload, device="cpu")
            plain = plain_speedup(baseline_script(context.workload), changed, launches=2 if quick else 8, rounds=60)
        advised = tuned.summary.recommendation
        settings = advised.settings if advised else {}
        overlaps = advised is not None and advised.speedup.low <= plain.high and plain.low <= advised.speedup.high
        rows.append(
            Row(
                [
                    ", ".join(f"{name}={value}" for name, value in settings.items()) or "nothing",
                    f"{advised.speedup.ratio:.3f} ({advised.speedup.low:.3f} to {advised.speedup.high:.3f})"
                    if advised
                    else "-",
                    f"{plain.ratio:.3f} ({plain.low:.3f} to {plain.high:.3f})",
                    f"{tuned.wall_s:.0f} s",
                ],
                reached=settings.get("optimizer_kernel") == "fused" and overlaps,
            )
        )
    return Table(
        ["recommended", "confirmed by perftool", "plain loop with fused Adam (its launches)", "wall time"],
        rows,
        [
            f"Target: the fused Adam in each run, its interval overlapping what the plain loop shows. `tune --budget "
            f"{BUDGET_S:.0f}`."
        ],
    )
