"""What a script's loop does beside its steps, what it gains by faster ones, and which of its ranks comes last.

Pure. Estimates from the baseline's blocks, without intervals: each is of few steps, and what comes rarely may be in
none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from perftool.analysis.pairs import launches_of
from perftool.records import EXPLAIN, Block, LoopPart, RankTime, ScriptReport, Session

LEAST_BLOCKS = 8  # that show which rank comes last
LAST_SHARE = 0.75  # of the blocks in which the same rank must come last
LAG_SHARE = 0.01  # of the step, by which it must: effects below do not count


def script_report(session: Session) -> ScriptReport | None:
    """What there is to tell of a script beyond its steps; None of a workload."""
    facts = session.workload.script
    if facts is None:
        return None
    own = {launch.launch for launch in launches_of(session, 0) if launch.stage != EXPLAIN}
    blocks = [block for block in session.blocks if block.launch in own]
    shares = loop_shares(blocks)
    ranks = rank_times(blocks)
    last = last_rank(blocks)
    return ScriptReport(
        rule=facts.rule,
        optimizers=[one.name for one in facts.optimizers],
        other_processes=facts.other_processes,
        other_threads=facts.other_threads,
        steps=sum(block.steps for block in blocks),
        step_share=1 - sum(one.share for one in shares) if blocks else None,
        beside=shares,
        ranks=ranks,
        last_rank=last.rank if last else None,
        lag_ns=last.lag_ns if last else None,
    )


def loop_shares(blocks: Sequence[Block]) -> list[LoopPart]:
    """What takes the loop's time beside steps, the largest first. Start-up and end are no part of the loop."""
    aside_ns: Counter[str] = Counter()
    for block in blocks:
        aside_ns.update(block.aside_ns)
    # A step that something came with is counted as long as the others of its block.
    steps_ns = sum(block.wall_ns * (1 + block.aside_steps / block.steps) for block in blocks)
    total_ns = steps_ns + aside_ns.total()
    return [LoopPart(name=name, share=ns / total_ns) for name, ns in aside_ns.most_common() if ns]


def whole_loop(step_share: float, speedup: float) -> float:
    """Times that the whole loop is faster where its steps alone are so many times faster (Amdahl, 1967)."""
    return 1 / (1 - step_share + step_share / speedup)


def rank_times(blocks: Sequence[Block]) -> list[RankTime]:
    """Each rank's mean step; empty where there is one rank."""
    told = [block for block in blocks if block.rank_steps]
    if not told:
        return []
    steps, wall_ns, alone_ns = (
        np.array([getattr(block, name) for block in told], dtype=float).sum(axis=0)
        for name in ("rank_steps", "rank_wall_ns", "alone_ns")
    )
    return [
        RankTime(rank=rank, step_ns=wall_ns[rank] / count, alone_ns=alone_ns[rank] / count)
        for rank, count in enumerate(steps)
    ]


class Last(NamedTuple):
    """The rank that the others wait for. lag_ns: how long after the last of these it begins its backward pass."""

    rank: int
    lag_ns: float


def last_rank(blocks: Sequence[Block]) -> Last | None:
    """The rank that surely comes last to the backward pass, in which they wait for each other; None where none does."""
    told = [block for block in blocks if block.rank_steps]
    if len(told) < LEAST_BLOCKS:
        return None
    alone_ns = np.array([np.divide(block.alone_ns, block.rank_steps) for block in told])
    step_ns = np.array([block.wall_ns / block.steps for block in told])
    rank = int(np.argmax(np.median(alone_ns, axis=0)))
    lag_ns = alone_ns[:, rank] - np.delete(alone_ns, rank, axis=1).max(axis=1)
    is_last = np.mean(lag_ns > 0) >= LAST_SHARE and np.median(lag_ns / step_ns) >= LAG_SHARE
    return Last(rank, float(np.median(lag_ns))) if is_last else None
