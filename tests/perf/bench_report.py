"""How long the page of a very large session takes to draw, and how large it gets."""

from __future__ import annotations

import time

from msgspec.structs import replace

from perftool.analysis.recommend import conclude
from perftool.records import Session
from perftool.report import html
from tests.perf.table import Row, Table
from tests.report.pages import watched_blocks
from tests.sessions import make_block, timed_session

TITLE = "The page of a session with 200 variants and 2 million steps"

VARIANTS, STEPS = 200, 2_000_000
GENERATIONS, ROUNDS = 4, 10
ALLOWED_S = 10.0
ALLOWED_BYTES = 6_000_000


def run(quick: bool) -> Table:
    steps = STEPS // 10 if quick else STEPS
    session = large_session(steps)
    began_s = time.perf_counter()
    summary = conclude(session)
    concluded_s = time.perf_counter()
    page = html.render(session, summary)
    drawn_s = time.perf_counter() - concluded_s
    size_bytes = len(page.encode())
    plain = sum(len(block.step_ns) for block in session.blocks)
    counted = plain + sum(len(block.step_ns) for block in session.watched_blocks)
    return Table(
        ["steps", "analysis", "page", "allowed together", "size", "allowed"],
        [
            Row(
                [
                    f"{counted:,}",
                    f"{concluded_s - began_s:.1f} s",
                    f"{drawn_s:.2f} s",
                    f"{ALLOWED_S:.0f} s",
                    f"{size_bytes / 1e6:.2f} MB",
                    f"{ALLOWED_BYTES / 1e6:.0f} MB",
                ],
                reached=concluded_s - began_s + drawn_s <= ALLOWED_S and size_bytes <= ALLOWED_BYTES,
            )
        ],
        ["The analysis is `conclude` with its first import of scipy. Every form of the report needs it."],
    )


def large_session(steps: int, variants: int = VARIANTS) -> Session:
    """So many variants, and so many steps in all: a fifth are the baseline's, a fifth are watched."""
    settings = [({}, 10.0), *(({"threads": str(one)}, 8.0 + one / 50) for one in range(1, variants + 1))]
    session = timed_session(settings, generations=GENERATIONS, rounds=ROUNDS)
    plain = 3 * steps // 5 // len(session.blocks)
    baseline = steps // 5 // (GENERATIONS * ROUNDS)
    own = {launch.launch for launch in session.launches if launch.variant == 0}
    blocks = [
        make_block(
            block.launch,
            block.round,
            [block.step_ns[0] + 997 * (one % 1009) for one in range(baseline if block.launch in own else plain)],
            block.position,
        )
        for block in session.blocks
    ]
    return replace(session, blocks=blocks, watched_blocks=watched_blocks(100, steps // 5 // 100))
