"""Thinning out: millions of step times become a few hundred numbers that show the same picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BINS = 240  # over time: less than the pixels of a phone, twice
BARS = 60  # of a histogram
LONG_TAIL = 5  # largest over smallest value shown, from which on bins are wide in the logarithm
SHOWN = 0.995  # of the values lie inside of a histogram; the rest is told in words


@dataclass(frozen=True)
class Envelope:
    """Of each bin that holds any value: its middle place, the smallest, the median and the largest value."""

    at: list[float]
    low: list[float]
    middle: list[float]
    high: list[float]


def envelope(at: Floats, values: Floats, bins: int = BINS) -> Envelope:
    """The values over their places, in bins of equal width. No extreme is lost."""
    if not len(values):
        return Envelope([], [], [], [])
    order = np.argsort(at, kind="stable")
    at, values = at[order], values[order]
    cuts = np.searchsorted(at, np.linspace(at[0], at[-1], bins + 1)[1:-1])
    parts = [(place, part) for place, part in zip(np.split(at, cuts), np.split(values, cuts), strict=True) if len(part)]
    return Envelope(
        at=[float(place.mean()) for place, _ in parts],
        low=[float(part.min()) for _, part in parts],
        middle=[float(np.median(part)) for _, part in parts],
        high=[float(part.max()) for _, part in parts],
    )


@dataclass(frozen=True)
class Bars:
    """Histograms over the same bins: shares of all values of each, and how many lie above the last bin."""

    low: float
    high: float
    log: bool  # the bins are equally wide in the logarithm
    shares: list[list[float]]
    above: list[int]


def bars(samples: Sequence[Floats], count: int = BARS) -> Bars:
    """Histograms of these samples from the smallest value to where nearly all lie below."""
    low = min(float(sample.min()) for sample in samples)
    high = max(float(np.quantile(sample, SHOWN)) for sample in samples)
    if high <= low:
        high = low * 1.01 or 1.0
    log = 0 < LONG_TAIL * low < high
    edges = np.geomspace(low, high, count + 1) if log else np.linspace(low, high, count + 1)
    edges[0], edges[-1] = low, high  # not a rounding beside them
    found = [np.histogram(sample, bins=edges)[0] / len(sample) for sample in samples]
    return Bars(
        low=low,
        high=high,
        log=log,
        shares=[[float(share) for share in shares] for shares in found],
        above=[int((sample > high).sum()) for sample in samples],
    )
