"""Where the time of the watched steps went: phases, slow steps and their causes, and what watching cost."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, floor, log
from typing import Literal

import numpy as np

from perftool.analysis.slow_steps import by_cause, slow_steps, watched, worst
from perftool.analysis.stats import median_half_width
from perftool.records import Estimate, Explained, Phase, Session, WatchedBlock

LAUNCH_BOUND_SHARE = 0.9  # of the step on the device, that the host takes to issue it
DEVICE_BOUND_SHARE = 0.5


def explained(session: Session) -> Explained | None:
    """What the session's watched blocks say; None where there are none."""
    blocks = session.watched_blocks
    if not any(block.step_ns for block in blocks):
        return None
    steps = watched(blocks)
    slow = slow_steps(steps)
    return Explained(
        steps=sum(len(block.step_ns) * block.steps_per_call for block in blocks),
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
    steps = sum(len(block.step_ns) * block.steps_per_call for block in blocks)
    total_ns = sum(map(sum, (block.step_ns for block in blocks)))
    names = dict.fromkeys(name for block in blocks for name in block.phase_ns)
    spent = {name: sum(sum(block.phase_ns.get(name, [])) for block in blocks) for name in names}
    return [Phase(name=name, step_ns=ns / steps, share=ns / total_ns) for name, ns in spent.items() if total_ns]


def epoch_calls(session: Session) -> int | None:
    """Calls of an epoch, whatever the batch is; the last one may be of fewer samples."""
    rows, block = session.workload.dataset_rows, session.watched_blocks[0]
    if not rows or not block.samples or session.workload.batch_size is None:
        return None
    calls = rows * len(block.step_ns) / block.samples
    return floor(calls) if session.workload.drop_last else ceil(calls)


def distortion(session: Session) -> Estimate | None:
    """How much longer a step takes when it is watched: of the medians of blocks beside each other."""
    plain = {
        block.round: float(np.median(block.step_ns)) if block.step_ns else block.wall_ns / block.steps
        for block in session.blocks
        if block.launch in {watched.launch for watched in session.watched_blocks}
    }
    d = [
        log(float(np.median(block.step_ns)) / block.steps_per_call / plain[block.round])
        for block in session.watched_blocks
        if block.round in plain and block.step_ns
    ]
    if not d:
        return None
    middle, half = float(np.median(d)), median_half_width(d)
    return Estimate(ratio=exp(middle), low=exp(middle - half), high=exp(middle + half)) if np.isfinite(half) else None


def bound_by(blocks: Sequence[WatchedBlock]) -> Literal["launches", "device"] | None:
    """On a GPU: whether steps wait for the host to issue them, or for the device to do them; None between the two.

    A host that takes as long as the device may be held up by a full queue of launches: then it is ahead all the time.
    """
    shares = [
        issued / step
        for block in blocks
        for issued, step in zip(block.dispatch_ns, block.step_ns, strict=False)
        if step
    ]
    if not shares:
        return None
    typical = float(np.median(shares))
    ahead = [one for block in blocks for one in block.host_ahead]
    if ahead and sum(ahead) > len(ahead) / 2:
        return "device"
    return "launches" if typical >= LAUNCH_BOUND_SHARE else "device" if typical <= DEVICE_BOUND_SHARE else None
