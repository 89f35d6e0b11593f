"""Whether a change of numerics trains the same, judged by how much seeds alone move the baseline's loss."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import numpy as np

from perftool.records import LossParity

LEAST_SEEDS = 3
ALLOWED_SDS = 2.0
ALPHA = 0.05


def loss_parity(baseline: Mapping[int, float | None], variant: Mapping[int, float | None], *, steps: int) -> LossParity:
    """Losses by seed, paired: parity when the interval of their mean difference lies within two standard deviations of
    the baseline's own seeds, differs when it lies outside, else undecided. None is a loss that was not finite."""
    from scipy import stats

    seeds = sorted(set(baseline) & set(variant))
    if any(variant[seed] is None or not isfinite(variant[seed] or 0.0) for seed in seeds):
        return LossParity(
            verdict="differs", difference=None, low=None, high=None, allowed=None, seeds=len(seeds), steps=steps
        )
    usable = [seed for seed in seeds if baseline[seed] is not None]
    if len(usable) < LEAST_SEEDS:
        return LossParity(
            verdict="undecided", difference=None, low=None, high=None, allowed=None, seeds=len(usable), steps=steps
        )
    ours = np.array([variant[seed] for seed in usable], dtype=float)
    theirs = np.array([baseline[seed] for seed in usable], dtype=float)
    differences = ours - theirs
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / len(usable) ** 0.5
    half = float(stats.t.ppf(1 - ALPHA / 2, len(usable) - 1)) * error
    allowed = ALLOWED_SDS * float(theirs.std(ddof=1))
    low, high = mean - half, mean + half
    if -allowed <= low and high <= allowed:
        verdict = "parity"
    elif low > allowed or high < -allowed:
        verdict = "differs"
    else:
        verdict = "undecided"
    return LossParity(
        verdict=verdict,  # type: ignore[arg-type]
        difference=mean,
        low=low,
        high=high,
        allowed=allowed,
        seeds=len(usable),
        steps=steps,
    )
