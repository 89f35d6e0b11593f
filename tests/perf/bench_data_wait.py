"""The share of waiting for data, on a training whose loader sleeps for a known time."""

from __future__ import annotations

from statistics import median

from perftool.records import WAIT
from tests.perf.sleeping import STEP_S
from tests.perf.table import Row, Table
from tests.perf.trials import HERE, measured

TITLE = "The share of waiting for data, where it is known"

SLEEPS_MS = (0.5, 2, 8)
TARGET = 0.02


def run(quick: bool) -> Table:
    rows = []
    for sleep_ms in SLEEPS_MS[:1] if quick else SLEEPS_MS:
        name = f"of_{str(sleep_ms).replace('.', '_')}_ms"
        found = measured("profile", f"{HERE / 'sleeping.py'}:{name}", "--budget", "20")
        assert found.summary.explained is not None
        watched = next(one.share for one in found.summary.explained.phases if one.name == WAIT)
        plain = found.summary.baseline.data_wait_fraction or 0.0
        step_ns = median(ns for block in found.session.blocks for ns in block.step_ns)
        truth = 1 - STEP_S * 1e9 / step_ns
        rows.append(
            Row(
                [f"{sleep_ms} ms", f"{truth:.1%}", f"{plain:.1%}", f"{watched:.1%}"],
                reached=abs(plain - truth) <= TARGET and abs(watched - truth) <= TARGET,
            )
        )
    return Table(
        ["loader sleeps", "truth", "plain blocks", "watched blocks"],
        rows,
        [
            "Target: within two points. Apart from its loader the training only spins until a known time has passed, "
            "so that the rest of its median step is the truth."
        ],
    )
