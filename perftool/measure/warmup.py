"""When a training has warmed up, by evidence: nothing was compiled of late and the step times have no change point.

Pure: step times in, a judgement out. Source of the method: Killick et al., PELT (2012), as in `ruptures`; classes after
Barrett et al., Virtual Machine Warmup Blows Hot and Cold (2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from perftool.records import WarmupClass

LEAST_STEPS = 5
QUIET_STEPS = 20  # since something was compiled, captured or retried
WINDOW_STEPS = 60  # without a change point
PATIENCE_S = 2.0  # after which slow steps need not fill the window
GIVE_UP_S = 4.0  # then it is measured as it is: pairs stand a drifting machine, and the class tells of the rest
SEEN_STEPS = 600  # change points are looked for in the last so many
PENALTY = 4.0  # times ln n
LEAST_SEGMENT_STEPS = 5
CLIP = 3.0  # times the noise
SAME_LEVEL = 0.05  # log step time: segments closer than this are one level


def settled(step_ns: Sequence[int], steps_since_event: int, elapsed_s: float, drift_limit_s: float = GIVE_UP_S) -> bool:
    """Whether the warm-up is over, given all its step times, the steps since the last compilation, capture or
    allocator retry, and the time it has taken. After `drift_limit_s` a change of level no longer matters."""
    steps = len(step_ns)
    if steps < LEAST_STEPS:
        return False
    if elapsed_s >= GIVE_UP_S:
        return True
    if steps_since_event < QUIET_STEPS and steps_since_event < steps:
        return False
    if steps < WINDOW_STEPS:
        return elapsed_s >= min(PATIENCE_S, drift_limit_s)
    return elapsed_s >= drift_limit_s or last_change(step_ns) <= steps - WINDOW_STEPS


def last_change(step_ns: Sequence[int]) -> int:
    """Index of the step from which the times stay at their last level; 0 where they were never elsewhere."""
    return _last_change(_levels(step_ns))


def classify(step_ns: Sequence[int]) -> WarmupClass:
    """What the whole warm-up looked like: flat, faster at its end, slower at its end, or still changing."""
    levels = _levels(step_ns)
    change, steps = _last_change(levels), len(step_ns)
    if not change:
        return "flat"
    if steps - change < min(WINDOW_STEPS, steps // 2):
        return "no steady state"
    fastest = min(level.log_ns for level in levels)
    return "slowdown" if levels[-1].log_ns > fastest + SAME_LEVEL else "warm-up"


class _Level(NamedTuple):
    """Steps of one speed."""

    end: int
    log_ns: float


def _last_change(levels: Sequence[_Level]) -> int:
    # Against the last level, not the next one: a slow decline in small stairs is a warm-up too.
    return max((one.end for one in levels if abs(one.log_ns - levels[-1].log_ns) > SAME_LEVEL), default=0)


def _levels(step_ns: Sequence[int]) -> list[_Level]:
    """The levels of the step times, between their change points; at least one where there are steps."""
    import numpy as np
    import ruptures

    offset = max(0, len(step_ns) - SEEN_STEPS)
    times = np.log(np.maximum(np.asarray(step_ns[offset:], dtype=float), 1.0))
    steps = len(times)
    ends = [steps] if steps else []
    if steps >= 2 * LEAST_SEGMENT_STEPS:
        # With a linear kernel this is PELT with the l2 cost, in C.
        search = ruptures.KernelCPD(kernel="linear", min_size=LEAST_SEGMENT_STEPS)
        ends = search.fit(_standardised(times)).predict(pen=PENALTY * log(steps))
    return [_Level(offset + end, float(np.median(times[start:end]))) for start, end in pairwise([0, *ends])]


def _standardised(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """In units of the noise of neighbouring steps, outliers clipped, so that one penalty fits every training."""
    import numpy as np

    noise = 1.4826 * float(np.median(np.abs(np.diff(times)))) / np.sqrt(2)
    scaled = (times - np.median(times)) / max(noise, 1e-3)
    # A single slow step is no new level: no step leaves the median of itself and its neighbours by more than this.
    middle = np.median(np.stack([scaled[:-2], scaled[1:-1], scaled[2:]]), axis=0)
    clipped: NDArray[np.float64] = scaled.copy()
    clipped[1:-1] = np.clip(scaled[1:-1], middle - CLIP, middle + CLIP)
    clipped[0], clipped[-1] = clipped[1], clipped[-2]
    return clipped
