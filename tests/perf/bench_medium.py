"""The first promise: what `tune` advises for the medium reference training, and what a plain loop gains by it."""

from __future__ import annotations

from perftool.analysis.handover import script
from perftool.records import WorkloadFacts
from tests.perf.table import Row, Table
from tests.perf.trials import measured, plain_speedup

TITLE = "`tune` on the medium reference training, against a plain PyTorch loop"

REFERENCE = "scenarios.reference:medium"
RUNS = 2
BUDGET_S = 60.0
WALL_LIMIT_S = 180.0
WANTED = 3.0  # with bf16 matrix units


def run(quick: bool) -> Table:
    rows = []
    for number in range(1 if quick else RUNS):
        tuned = measured("tune", REFERENCE, "--budget", str(BUDGET_S), "--seed", str(number))
        advised = tuned.summary.recommendation
        if advised is None:
            rows.append(Row(["nothing", "-", "-", f"{tuned.wall_s:.0f} s"], reached=False))
            continue
        plain = plain_speedup(
            baseline_script(tuned.session.workload), tuned.script, launches=1 if quick else 4, rounds=60
        )
        rows.append(
            Row(
                [
                    ", ".join(f"{name}={value}" for name, value in advised.settings.items()),
                    f"{advised.speedup.ratio:.2f} ({advised.speedup.low:.2f} to {advised.speedup.high:.2f})",
                    f"{plain.ratio:.2f} ({plain.low:.2f} to {plain.high:.2f})",
                    f"{tuned.wall_s:.0f} s",
                ],
                reached=advised.speedup.ratio >= WANTED and tuned.wall_s <= WALL_LIMIT_S,
            )
        )
    units = ", ".join(tuned.session.machine.matrix_units) or "none"
    return Table(
        ["recommended", "confirmed by perftool", "plain loops (their launches)", "wall time"],
        rows,
        [
            f"Target: {WANTED:.0f} times the samples per second on two cores with bf16 matrix units, and `--budget "
            f"{BUDGET_S:.0f}` within {WALL_LIMIT_S:.0f} s. Units for reduced precision on this CPU: {units}. The plain "
            "loops are `recommended.py` and the same without the settings, each in a process of its own, in turns."
        ],
    )


def baseline_script(workload: WorkloadFacts) -> str:
    """The plain training without any setting."""
    return script({}, {}, workload=workload, device="cpu")
