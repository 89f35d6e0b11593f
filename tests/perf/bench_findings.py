"""What `profile` finds wrong with the medium training, and whether `compare` confirms each cure that it names."""

from __future__ import annotations

from perftool.records import FAULT_CHURN, ROW_BY_ROW, SLOW_OPTIMIZER
from perftool.report.wording import comparison_text
from tests.perf.table import Row, Table
from tests.perf.trials import measured

TITLE = "The findings on the medium training, and their cures"

REFERENCE = "scenarios.reference:medium"
EXPECTED = (FAULT_CHURN, ROW_BY_ROW, SLOW_OPTIMIZER)


def run(quick: bool) -> Table:
    found = measured("profile", REFERENCE, "--budget", "20" if quick else "60").summary.findings
    named = {one.name: (one.try_ or "").split(" or ") if one.try_ else [] for one in found}
    cures = [cure for name in named for cure in named[name]]
    compared = measured("compare", REFERENCE, *cures, "--budget", "30" if quick else "90").summary if cures else None
    verdicts = {
        "".join(f"{name}={value}" for name, value in one.settings.items()): one.versus_baseline.get("throughput")
        for one in (compared.variants if compared else [])
    }
    rows = []
    for name in dict.fromkeys([*EXPECTED, *named]):
        told = next((one.evidence for one in found if one.name == name), "not found")
        tried = {cure: verdicts.get(cure) for cure in named.get(name, [])}
        shown = "; ".join(f"{cure}: {comparison_text(one) if one else 'not measured'}" for cure, one in tried.items())
        cured = any(one is not None and one.verdict == "better" for one in tried.values())
        rows.append(Row([name, told, shown or "-"], reached=cured if tried or name in EXPECTED else None))
    return Table(
        ["finding", "evidence", "cures, by samples per second"],
        rows,
        [
            "Target: page-fault churn, the row-by-row loader and the for-loop optimizer are named, each with a cure "
            "that helps."
        ],
    )
