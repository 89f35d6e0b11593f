"""`profile` on a training that nothing is wrong with: it should find nothing."""

from __future__ import annotations

from perftool.records import NO_CORE, SLOWED, STOLEN
from tests.perf.table import Row, Table
from tests.perf.trials import UNITS, measured

TITLE = "`profile` finds nothing wrong in a quiet training"

RUNS = 10
OTHERS = (NO_CORE, SLOWED, STOLEN)  # of the machine, and true of it


def run(quick: bool) -> Table:
    rows = []
    for number in range(2 if quick else RUNS):
        found = measured("profile", UNITS, "--budget", "20", "--seed", str(number)).summary
        assert found.explained is not None
        false = [one.name for one in found.findings if one.name not in OTHERS]
        machine = [f"{one.name} ({one.evidence})" for one in found.findings if one.name in OTHERS]
        rows.append(
            Row(
                [
                    ", ".join(false) or "none",
                    "; ".join(machine) or "none",
                    f"{found.explained.slow_steps} of {found.explained.steps}",
                    f"{found.explained.distortion.ratio:.3f}" if found.explained.distortion else "-",
                ],
                reached=not false,
            )
        )
    return Table(
        ["findings", "findings on the machine", "slow steps", "watched / plain step"],
        rows,
        [
            f"Target: no false finding in {RUNS} runs. The training does the same small products in each step, on one "
            "core."
        ],
    )
