"""The steps of a script as a block: what was no step in any of its ranks is left out of all. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from perftool.measure.messages import Steps
from perftool.records import Block


def block_of(ranks: Sequence[Steps]) -> Block:
    """One block of what the ranks did, which make their steps together: it goes as the slowest of them, and learns from
    the samples of all.

    An evaluation on one rank lets the others wait, so that step is none on any. Where no step of the block was nothing
    but a step, all count as steps.
    """
    count = len(ranks[0].step_ns)
    asides = [next((rank.asides[at] for rank in ranks if rank.asides[at] is not None), None) for at in range(count)]
    if all(asides):
        asides = [None] * count
    own = [at for at, aside in enumerate(asides) if aside is None]
    walls_ns = [sum(rank.step_ns[at] for at in own) for rank in ranks]
    slowest = max(ranks, key=lambda rank: sum(rank.step_ns[at] for at in own))
    step_ns = [slowest.step_ns[at] for at in own]
    usual_ns = round(median(step_ns))
    beside: Counter[str] = Counter()
    for took_ns, aside in zip(slowest.step_ns, asides, strict=True):
        if aside is not None:
            beside[aside] += max(0, took_ns - usual_ns)
    several = len(ranks) > 1
    return Block(
        launch=slowest.launch,
        round=slowest.round,
        position=slowest.position,
        started_ns=slowest.started_ns,
        wall_ns=sum(step_ns),
        steps=len(own),
        samples=sum(rank.samples[at] for rank in ranks for at in own),
        step_ns=step_ns,
        wait_ns=[slowest.wait_ns[at] for at in own],
        waited_ns=sum(slowest.wait_ns[at] for at in own),
        aside_ns=dict(beside),
        aside_steps=count - len(own),
        alone_ns=[sum(rank.alone_ns[at] for at in own) for rank in ranks],
        rank_wall_ns=walls_ns if several else [],
        rank_steps=[len(own)] * len(ranks) if several else [],
        labels=slowest.labels,
    )
