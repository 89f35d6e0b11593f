"""Where the time of the watched steps went: phases, slow steps and their causes, and what watching cost."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, log
from typing import Literal

import numpy as np

from perftool.analysis.slow_steps import by_cause, slow_steps, watched, worst
from perftool.analysis.stats import median_half_width
from perftool.records import Estimate, Explained, Phase, Session, WatchedBlock

LAUNCH_BOUND = 0.9  # of the step on the device, that the host takes to issue it
DEVICE_BOUND = 0.5


def explained(session: Session) -> Explained | None:
    """What the session's watched blocks say; None where there are none."""
    blocks = session.watched_blocks
    if not any(block.step_ns for block in blocks):
        return None
    steps = watched(blocks)
    slow = slow_steps(steps)
    return Explained(
        steps=len(steps.step_ns),
        median_ns=float(np.median(steps.step_ns)),
        phases=phases(blocks),
        slow_steps=len(slow),
        causes=by_cause(slow, steps, epoch_calls(session)),
        worst=worst(slow),
        distortion=distortion(session),
        bound_by=bound_by(blocks),
    )


def phases(blocks: Sequence[WatchedBlock]) -> list[Phase]:
    """Means over all watched steps, in the order in which they happen."""
    calls = sum(len(block.step_ns) for block in blocks)
    total_ns = sum(map(sum, (block.step_ns for block in blocks)))
    names = dict.fromkeys(name for block in blocks for name in block.phase_ns)
    spent = {name: sum(sum(block.phase_ns.get(name, [])) for block in blocks) for name in names}
    return [Phase(name=name, step_ns=ns / calls, share=ns / total_ns) for name, ns in spent.items() if total_ns]


def epoch_calls(session: Session) -> int | None:
    """Steps of an epoch."""
    facts = session.workload
    return ceil(facts.dataset_rows / facts.batch_size) if facts.dataset_rows and facts.batch_size else None


def distortion(session: Session) -> Estimate | None:
    """How much longer a step takes when it is watched: of the medians of blocks beside each other."""
    plain = {
        block.round: float(np.median(block.step_ns)) if block.step_ns else block.wall_ns / block.steps
        for block in session.blocks
        if block.launch in {watched.launch for watched in session.watched_blocks}
    }
    d = [
        log(float(np.median(block.step_ns)) / plain[block.round])
        for block in session.watched_blocks
        if block.round in plain and block.step_ns
    ]
    if not d:
        return None
    middle, half = float(np.median(d)), median_half_width(d)
    return Estimate(ratio=exp(middle), low=exp(middle - half), high=exp(middle + half)) if np.isfinite(half) else None


def bound_by(blocks: Sequence[WatchedBlock]) -> Literal["launches", "device"] | None:
    """On a GPU: whether steps wait for the host to issue them, or for the device to do them; None between the two."""
    shares = [
        issued / step
        for block in blocks
        for issued, step in zip(block.dispatch_ns, block.step_ns, strict=False)
        if step
    ]
    if not shares:
        return None
    typical = float(np.median(shares))
    return "launches" if typical >= LAUNCH_BOUND else "device" if typical <= DEVICE_BOUND else None
