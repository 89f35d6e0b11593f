"""G5, live: bursts of other work."""

from __future__ import annotations

from tests.perf.live import table
from tests.perf.table import Table

TITLE = "G5, live: bursts of other work"


def run(quick: bool) -> Table:
    return table("bursts", quick, regret=0.05, share_wanted=0.9)
