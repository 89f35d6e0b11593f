"""G5, live: half of one core taken."""

from __future__ import annotations

from tests.perf.live import table
from tests.perf.table import Table

TITLE = "G5, live: half of one core taken"


def run(quick: bool) -> Table:
    return table("core", quick, regret=0.05, share_wanted=0.9)
