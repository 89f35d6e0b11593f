"""How uneven the steps are, with intervals that allow for slow steps coming in bursts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perftool.analysis.stats import effective_steps, quantile_interval
from perftool.records import Jitter, known

STALL_FROM = 1.5  # times the median: what is above is stalled time


def stall_share(runs: Sequence[Sequence[int]]) -> float | None:
    """Time above 1.5 medians, of all time. None without steps."""
    times = _pooled(runs)
    if not len(times):
        return None
    return float(np.sum(np.clip(times - STALL_FROM * np.median(times), 0, None)) / np.sum(times))


def jitter(runs: Sequence[Sequence[int]]) -> Jitter:
    """Of end-to-end step times, in runs of consecutive steps (blocks): no difference is taken across their borders."""
    times = _pooled(runs)
    nothing = {
        "j95": None, "j95_low": None, "j95_high": None, "j99": None, "j99_low": None, "j99_high": None,
        "mad_ratio": None, "step_to_step_q95": None, "stall_share": None, "effective_steps": None,
    }  # fmt: skip
    if not len(times):
        return Jitter(steps=0, note="no step times", **nothing)
    median = float(np.median(times))
    figures: dict[str, float | None] = dict(nothing)
    missing = []
    for name, q in (("j95", 0.95), ("j99", 0.99)):
        ends = quantile_interval(times, q)
        if ends is None:
            missing.append(f"p{round(100 * q)}")
            continue
        figures[name] = known(float(np.quantile(times, q)) / median - 1)
        figures[f"{name}_low"], figures[f"{name}_high"] = (known(end / median - 1) for end in ends)
    differences = [np.abs(np.diff(np.asarray(run, dtype=float))) for run in runs if len(run) > 1]
    figures["mad_ratio"] = known(1.4826 * float(np.median(np.abs(times - median))) / median)
    figures["step_to_step_q95"] = (
        known(float(np.quantile(np.concatenate(differences), 0.95)) / median) if differences else None
    )
    figures["stall_share"] = stall_share(runs)
    figures["effective_steps"] = known(effective_steps(times, 0.99))
    note = f"not enough steps for {' and '.join(missing)}" if missing else None
    return Jitter(steps=len(times), note=note, **figures)


def _pooled(runs: Sequence[Sequence[int]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([np.asarray(run, dtype=float) for run in runs]) if runs else np.empty(0)
