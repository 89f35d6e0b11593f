"""Where a series of checks changed its level: change points that neither single outliers nor slow wandering make.

Pure. Hampel's clip (1974) against outliers, an autoregression of order one against wandering, then PELT (Killick et
al. 2012, by `ruptures`) on what remains.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perftool.records import HistoryEntry, Settings

Floats = NDArray[np.float64]

LEAST_POINTS = 12  # below which nothing is looked for: their own scatter is known too badly
LEAST_SEGMENT = 4
WINDOW = 3  # neighbours on either side that a value is judged by
CLIP = 3.0  # times their spread
PENALTY = 4.0  # times ln n; `python -m tests.perf history` shows what it finds
FEW_POINTS = 250
"""A shorter series pays the penalty of one so long: its scatter is known worse, and it is looked at again with every
point that comes."""
MOST_MEMORY = 0.9
MAD = 1.4826
LEAST_SPREAD = 1e-4  # log-ratio: nothing is seen more finely


@dataclass(frozen=True)
class Series:
    """Checks that may be read as one series: the same workload, settings, pinned revision, machine and metric."""

    workload: str
    against: str
    machine: str
    settings: Settings
    metric: str
    entries: list[HistoryEntry]

    @property
    def log_ratios(self) -> Floats:
        return np.array([one.log_ratios[self.metric] for one in self.entries], dtype=float)


@dataclass(frozen=True)
class Change:
    """A new level, from this point on."""

    index: int
    ratio: float  # of the level after it to the level before


def series_of(entries: Sequence[HistoryEntry], metric: str) -> list[Series]:
    """The entries of each series, oldest first; those without the metric are left out."""
    groups: dict[tuple[str, str, str, tuple[tuple[str, str], ...]], list[HistoryEntry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda one: one.created_at):
        if metric in entry.log_ratios:
            groups[entry.workload, entry.against, entry.machine, tuple(sorted(entry.settings.items()))].append(entry)
    return [
        Series(workload, against, machine, dict(settings), metric=metric, entries=those)
        for (workload, against, machine, settings), those in groups.items()
    ]


def changes(log_ratios: ArrayLike) -> list[Change]:
    """The changes of level of a series, oldest first; none where there are fewer than LEAST_POINTS points."""
    import ruptures

    values = np.asarray(log_ratios, dtype=float)
    count = len(values)
    if count < LEAST_POINTS:
        return []
    clipped = hampel(values)
    memory = _memory(clipped)
    # What is new in each value, scaled so that levels stay what they are.
    new = np.concatenate([clipped[:1], (clipped[1:] - memory * clipped[:-1]) / (1 - memory)])
    noise = max(_spread_of_neighbours(new), LEAST_SPREAD)
    search = ruptures.KernelCPD(kernel="linear", min_size=LEAST_SEGMENT)
    ends = search.fit((new - np.median(new))[:, None] / noise).predict(pen=PENALTY * log(max(count, FEW_POINTS)))
    levels = [float(np.mean(clipped[start:end])) for start, end in pairwise([0, *ends])]
    return [Change(end, exp(after - before)) for end, (before, after) in zip(ends[:-1], pairwise(levels), strict=True)]


def hampel(values: Floats) -> Floats:
    """Each value no further from the median of its neighbourhood than CLIP times the series' own scatter about it."""
    padded = np.pad(values, WINDOW, mode="edge")
    middle = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * WINDOW + 1), axis=1)
    reach = CLIP * max(MAD * float(np.median(np.abs(values - middle))), LEAST_SPREAD)
    clipped: Floats = np.clip(values, middle - reach, middle + reach)
    return clipped


def _memory(values: Floats) -> float:
    """How much of a value's deviation the next one keeps, by the differences of neighbours, which a change of level
    hardly touches: their autocorrelation at lag one is -(1 - memory) / 2."""
    steps = np.diff(values)
    steps = np.clip(steps, *(np.median(steps) + np.array([-1, 1]) * CLIP * MAD * np.median(np.abs(steps))))
    power = float(steps @ steps)
    if power == 0:
        return 0.0
    return float(np.clip(1 + 2 * float(steps[1:] @ steps[:-1]) / power, 0.0, MOST_MEMORY))


def _spread_of_neighbours(values: Floats) -> float:
    """Standard deviation by the differences of neighbours, as they are where they do not depend on each other."""
    return MAD * float(np.median(np.abs(np.diff(values)))) / 2**0.5
