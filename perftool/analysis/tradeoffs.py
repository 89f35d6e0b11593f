"""What else could be chosen: variants that no other one beats in everything, and the smallest batch that is enough."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from perftool.records import Session, Settings, SmallestBatch, VariantSummary

ENOUGH = 0.97  # of the best throughput


def pareto(variants: Sequence[VariantSummary]) -> list[Settings]:
    """Settings of the variants that no other one beats in throughput, memory and jitter together.

    The baseline is to be among them, as {}: what is slower and hungrier than it is no choice at all.
    """

    def costs(one: VariantSummary) -> tuple[float, ...]:
        faster, uneven = one.versus_baseline.get("throughput"), one.versus_baseline.get("jitter")
        memory_bytes = one.peak_device_reserved_bytes or one.peak_host_bytes or inf  # unknown is no merit
        return (-(faster.ratio if faster else 1.0), float(memory_bytes), uneven.ratio if uneven else 1.0)

    def beaten(one: VariantSummary) -> bool:
        mine = costs(one)
        return any(
            costs(other) != mine and all(theirs <= own for theirs, own in zip(costs(other), mine, strict=True))
            for other in variants
        )

    return [one.settings for one in variants if not beaten(one)]


def by_batch(session: Session, variants: Sequence[VariantSummary]) -> dict[int, VariantSummary]:
    """The variants that differ from the baseline in nothing but the batch size, by that size, smallest first. The
    baseline is to be among the variants, as {}."""
    own = str(session.workload.batch_size)
    names = [name for name, changes in session.scenario_changes.items() if changes == "optimisation"]
    [name, *_] = [*(name for name in names if session.defaults.get(name) == own), ""]
    sizes: dict[int, VariantSummary] = {}
    for one in variants:
        size = own if not one.settings else one.settings.get(name, "") if len(one.settings) == 1 else ""
        if size.isdecimal() and ("throughput" in one.versus_baseline or not one.settings):
            sizes[int(size)] = one
    return dict(sorted(sizes.items()))


def smallest_batch(session: Session, variants: Sequence[VariantSummary]) -> SmallestBatch | None:
    """The smallest batch, alone, whose samples per second are nearly those of the best batch; None where only one was
    measured. The baseline is to be among the variants, as {}."""
    found = by_batch(session, variants)
    sizes = {size: one.versus_baseline["throughput"].ratio if one.settings else 1.0 for size, one in found.items()}
    if len(sizes) < 2:
        return None
    best = max(sizes.values())
    enough = min(size for size, ratio in sizes.items() if ratio >= ENOUGH * best)
    return SmallestBatch(batch_size=enough, of_best=sizes[enough] / best, largest_batch_size=max(sizes))
