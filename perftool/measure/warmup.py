"""When a training has warmed up, by evidence: nothing was compiled of late and the step times have no change point.

Pure: step times in, a judgement out. Source of the method: Killick et al., PELT (2012), as in `ruptures`; classes after
Barrett et al., Virtual Machine Warmup Blows Hot and Cold (2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log
from typing import TYPE_CHECKING

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


def settled(step_ns: Sequence[int], steps_since_event: int, elapsed_s: float) -> bool:
    """Whether the warm-up is over, given all its step times, the steps since the last compilation, capture or
    allocator retry, and the time it has taken."""
    steps = len(step_ns)
    if steps < LEAST_STEPS:
        return False
    if elapsed_s >= GIVE_UP_S:
        return True
    if steps_since_event < QUIET_STEPS and steps_since_event < steps:
        return False
    if steps < WINDOW_STEPS:
        return elapsed_s >= PATIENCE_S
    return last_change(step_ns) <= steps - WINDOW_STEPS


def last_change(step_ns: Sequence[int]) -> int:
    """Index of the step at which the last level of step times began; 0 where there is one level only."""
    borders = _borders(step_ns)
    return borders[-1] if borders else 0


def classify(step_ns: Sequence[int]) -> WarmupClass:
    """What the whole warm-up looked like: flat, faster at its end, slower at its end, or still changing."""
    import numpy as np

    borders = _borders(step_ns)
    if not borders:
        return "flat"
    steps = len(step_ns)
    if steps - borders[-1] < min(WINDOW_STEPS, steps // 2):
        return "no steady state"
    times = np.log(np.asarray(step_ns, dtype=float))
    last = float(np.median(times[borders[-1] :]))
    before = min(float(np.median(times[start:end])) for start, end in zip([0, *borders[:-1]], borders, strict=True))
    return "slowdown" if last > before + SAME_LEVEL else "warm-up"


def _borders(step_ns: Sequence[int]) -> list[int]:
    """Indices at which the level of the step times changes."""
    import numpy as np
    import ruptures

    offset = max(0, len(step_ns) - SEEN_STEPS)
    times = np.log(np.maximum(np.asarray(step_ns[offset:], dtype=float), 1.0))
    steps = len(times)
    if steps < 2 * LEAST_SEGMENT_STEPS:
        return []
    signal = _standardised(times)
    found = (
        ruptures.Pelt(model="l2", min_size=LEAST_SEGMENT_STEPS, jump=1).fit(signal).predict(pen=PENALTY * log(steps))
    )
    levels = [0, *found]
    medians = [float(np.median(times[start:end])) for start, end in pairwise(levels)]
    return [
        offset + border
        for border, (before, after) in zip(found, pairwise(medians), strict=False)
        if abs(after - before) > SAME_LEVEL
    ]


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
