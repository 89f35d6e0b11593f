"""G5, live: a quiet machine."""

from __future__ import annotations

from tests.perf.live import table
from tests.perf.table import Table

TITLE = "G5, live: a quiet machine"


def run(quick: bool) -> Table:
    return table("quiet", quick, regret=0.02, share_wanted=0.95)
