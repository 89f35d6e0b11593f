"""Whether memory leaks, and how large a batch would fit: both from measured sizes alone.

A leak goes on: memory grows at an even rate to the end, to levels never seen before. That tells it from a warm-up,
whose growth dies down, from a jump, from an allocator that keeps what it once got, and from garbage that is collected
now and then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, sqrt
from typing import Literal

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from perftool.records import BatchFit, BatchPoint, Growth, MemoryReport, MemorySample, Session

Floats = NDArray[np.float64]

PIECES = 10  # that a series is cut into; each counts by its median, so that neither noise nor short dips matter
FEWEST_SAMPLES = 2 * PIECES
STARTS = (0.0, 0.25, 0.5)  # shares of the samples that may have been a warm-up
STRAIGHT = 0.96  # R2 of a line: one jump reaches 0.75, two 0.89, three 0.94
PACE = 0.5  # of a leak's growth in its earlier half, that its later half has at least
NEW_GROUND = 0.5  # of a leak's growth, that goes beyond all that was held before it
SMALL_GROWTH_BYTES = 2_000_000  # of a whole run: counters and caches grow by as much
CLEAR_RATIO = 6.0  # growth over the standard deviation of single samples: the tail of a warm-up has no more in noise
STEADY_BYTES_PER_STEP = 10_000.0  # 1 MB in 100 steps: what is called steady grows by less
SEEN_BYTES = 1_000_000  # the pages of a process come and go by as much
SEEN_RATIO = 4.0  # rise with the batch over scatter about the line, from which on a rise is believed


def memory_report(session: Session) -> MemoryReport | None:
    """All that a session says of memory beyond peaks; None where it says nothing."""
    samples = session.memory_samples
    if not samples and session.memory_parts is None and session.batch_fit is None:
        return None
    host, device, fit = growth(samples), growth(samples, "device"), session.batch_fit
    if fit is not None and any(one is not None and one.verdict == "leak" for one in (host, device)):
        # Later batches were measured with more of it.
        fit = replace(fit, largest_batch_size=None, reason="memory grows with every step, whatever the batch is")
    return MemoryReport(parts=session.memory_parts, host_growth=host, device_growth=device, fit=fit)


# ----------------------------------------------------------------------------------------------------------- growth


def growth(samples: Sequence[MemorySample], of: Literal["host", "device"] = "host") -> Growth | None:
    """Whether memory grows in the launch that was watched over the most steps. None where nobody looked."""
    launches: dict[int, dict[int, int]] = defaultdict(dict)
    for one in samples:
        held_bytes = one.host_bytes if of == "host" else one.device_allocated_bytes
        if held_bytes is not None:
            launches[one.launch][one.steps] = held_bytes
    if not launches:
        return None
    series = max((sorted(launch.items()) for launch in launches.values()), key=lambda one: one[-1][0] - one[0][0])
    return _judged(np.array([steps for steps, _ in series], float), np.array([held for _, held in series], float))


def _judged(steps: Floats, held_bytes: Floats) -> Growth:
    told = Growth(
        verdict="undecided",
        bytes_per_step=None,
        low=None,
        high=None,
        steps=round(steps[-1] - steps[0]),
        grown_bytes=round(held_bytes[-1] - held_bytes[0]),
    )
    if len(steps) < FEWEST_SAMPLES:
        return told
    trends = [_trend(steps, held_bytes, round(share * len(steps))) for share in STARTS]
    leak = next((one for one in trends if one.goes_on()), None)
    trend = leak or trends[-1]
    return replace(
        told,
        verdict="leak" if leak else "steady" if trend.is_over() else "undecided",
        bytes_per_step=trend.slope,
        low=trend.low,
        high=trend.high,
    )


@dataclass(frozen=True)
class _Trend:
    """A robust line through a series from some sample on."""

    steps: float  # in all of the series
    slope: float  # bytes per step, as its interval
    low: float
    high: float
    straightness: float  # R2 of a line; 0 where nothing changes
    early_bytes: float  # growth in the first half, and in the second
    late_bytes: float
    scatter_bytes: float  # of samples about the line, as a standard deviation
    new_ground: float  # share of the growth beyond all that was held before the first sample

    def goes_on(self) -> bool:
        """Whether it grows evenly to the end, and to where memory has not been."""
        return (
            self.low > 0
            and self.straightness >= STRAIGHT
            and self.early_bytes + self.late_bytes >= max(SMALL_GROWTH_BYTES, CLEAR_RATIO * self.scatter_bytes)
            and self.late_bytes >= PACE * self.early_bytes > 0
            and self.new_ground >= NEW_GROUND
        )

    def is_over(self) -> bool:
        """Whether it surely grows slowly, and what growth there is is chance, dies down, or comes to nothing."""
        slows = self.late_bytes < PACE * self.early_bytes
        little = self.high * self.steps < SMALL_GROWTH_BYTES
        return self.high < STEADY_BYTES_PER_STEP and (self.low <= 0 or slows or little)


def _trend(steps: Floats, held_bytes: Floats, start: int) -> _Trend:
    from scipy import stats

    x = np.array([piece.mean() for piece in np.array_split(steps[start:], PIECES)])
    y = _levels(held_bytes[start:], PIECES)
    slope, _, low, high = (float(value) for value in stats.theilslopes(y, x, 0.95))
    # Levels that wander together say less than as many independent ones.
    base = float(np.median(y - slope * x))
    related = _neighbours(y - base - slope * x)
    widened = sqrt((1 + related) / (1 - related))
    half = PIECES // 2
    per_piece = (x[-1] - x[0]) / (PIECES - 1)
    early, late = (float(np.polyfit(x[part], y[part], 1)[0]) for part in (slice(half), slice(half, None)))
    before = _levels(held_bytes[:start], max(1, round(start / (len(steps) - start) * PIECES))) if start else y[:1]
    rise_bytes = slope * (x[-1] - x[0])
    scatter_bytes = 1.4826 * float(np.median(np.abs(held_bytes[start:] - base - slope * steps[start:])))
    return _Trend(
        steps=float(steps[-1] - steps[0]),
        slope=slope,
        low=slope - widened * (slope - low),
        high=slope + widened * (high - slope),
        straightness=float(np.corrcoef(x, y)[0, 1] ** 2) if np.ptp(y) else 0.0,
        early_bytes=early * half * per_piece,
        late_bytes=late * half * per_piece,
        scatter_bytes=scatter_bytes,
        new_ground=(y[-1] - float(before.max())) / rise_bytes if rise_bytes else 0.0,
    )


def _levels(held_bytes: Floats, pieces: int) -> Floats:
    return np.array([np.median(piece) for piece in np.array_split(held_bytes, pieces)])


def _neighbours(rest: Floats) -> float:
    """Correlation of each value with the next, where it is positive, and at most 0.8."""
    centred = rest - rest.mean()
    scale = float(centred @ centred)
    return min(0.8, max(0.0, float(centred[1:] @ centred[:-1]) / scale)) if scale else 0.0


# ---------------------------------------------------------------------------------------------------- largest batch


def largest_batch(points: Sequence[BatchPoint], available_bytes: int) -> BatchFit:
    """The largest batch whose peak, by the least-squares line through these, is within what is available."""
    told = BatchFit(points=list(points), available_bytes=available_bytes)
    sizes = np.array([one.batch_size for one in points], float)
    peaks = np.array([one.peak_bytes for one in points], float)
    if len(set(sizes)) < 2:
        return replace(told, reason="fewer than two batch sizes were measured")
    per_sample, fixed = (float(value) for value in np.polyfit(sizes, peaks, 1))
    rise_bytes = per_sample * np.ptp(sizes)
    scatter_bytes = float(np.sqrt(np.mean((peaks - fixed - per_sample * sizes) ** 2)))
    if rise_bytes < max(SEEN_BYTES, SEEN_RATIO * scatter_bytes):
        return replace(told, reason="what a larger batch takes is lost in what the rest of the process takes")
    largest = floor((available_bytes - fixed) / per_sample)
    return replace(
        told,
        fixed_bytes=fixed,
        per_sample_bytes=per_sample,
        largest_batch_size=largest if largest >= 1 else None,
        reason=None if largest >= 1 else "not even a batch of one would fit",
    )
