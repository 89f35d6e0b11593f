"""What a page says about its plots."""

from __future__ import annotations

from collections.abc import Sequence

from perftool import units

MARKS = "Filled in colour is faster, filled dark is slower, hollow is the same or undecided"
CAPTIONS = {
    "variants": "Samples per second over the baseline's, whose line is at 1x; bars are the intervals. " + MARKS + ". "
    "A bar without a cap goes on beyond the plot.",
    "contributions": "Samples per second that each setting adds: hollow alone, filled on top of all the others.",
    "beside": "The first session is hollow, the second filled below it.",
    "steps": "The line is the median, the band reaches from the fastest to the slowest step of each moment.",
    "slow": "Each slow step has a tick in the lane of its cause.",
    "distribution": "Shares of all steps, by how long they took.",
    "front": "Filled are the variants that no other one beats in throughput, memory and jitter together; their numbers "
    "are those of the table.",
    "batches": "Samples per second over the baseline's, by batch size, with nothing else changed.",
    "fit": "Peak memory of one forward and backward pass, by batch size.",
    "phases": "Where the time of a mean step goes.",
    "parts": "What the memory of a training step is taken by.",
    "growth": "Memory that one launch held beyond what it had at first, by the steps it had done.",
    "distance": "The least time that this machine could take for the step's work, as a part of what it takes.",
}


def ratio_axis(unit: str) -> str:
    """unit: what samples are counted in."""
    return units.told_in("samples per second over the baseline's", unit)


def series_caption(told: Sequence[tuple[str, int]], *, blocks: bool) -> str:
    """Which series a plot of step times shows: "baseline (4,000 steps) and amp=bf16 (4,000 steps)"."""
    each = " and ".join(f"{name} ({units.counted(steps, 'block' if blocks else 'step')})" for name, steps in told)
    return f"{each}; means of blocks, since several steps run in one call." if blocks else f"{each}."


def beyond(told: Sequence[tuple[str, int]]) -> str:
    """How many steps a histogram leaves out on its right."""
    left_out = ", ".join(f"{units.count(steps)} of {name}" for name, steps in told if steps)
    return f"Slower still, and not shown: {left_out}." if left_out else ""
