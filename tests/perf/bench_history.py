"""Histories: flat series that are flagged, and steps of five per cent that are found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perftool.analysis.history import changes
from tests.perf.table import Row, Table, share

TITLE = "History: changes of level in series of 100 checks"

TRIALS = 1000
POINTS = 100
CV = 0.0266
STEP = 0.05
NEAR = 5  # points from the truth
EDGE = 10  # points that a step has before and after it, at least


def run(quick: bool) -> Table:
    trials = TRIALS // 20 if quick else TRIALS
    generator = np.random.default_rng(0)
    rows = []
    for memory, most in ((0.0, 0.01), (0.5, 0.05)):
        flagged = sum(bool(changes(_series(generator, memory))) for _ in range(trials))
        rows.append(Row(["flat", f"{memory:g}", share(flagged, trials), ""], reached=flagged <= most * trials))
    for memory, least in ((0.0, 0.85), (0.5, None)):
        found = extra = 0
        for _ in range(trials):
            at = int(generator.integers(EDGE, POINTS - EDGE + 1))
            values = _series(generator, memory)
            values[at:] += np.log1p(STEP)
            told = changes(values)
            near = [one for one in told if abs(one.index - at) <= NEAR]
            found += bool(near)
            extra += len(told) > len(near)
        reached = None if least is None else found >= least * trials
        rows.append(Row([f"step of {STEP:.0%}", f"{memory:g}", share(found, trials), share(extra, trials)], reached))
    return Table(
        ["series", "AR(1)", "flagged, near the step where there is one", "flagged elsewhere, too"],
        rows,
        [
            f"Target: flat series flagged in at most 1 % (5 % with AR(1) 0.5), a step of 5 % found in 85 %. Normal "
            f"noise with a coefficient of variation of {CV:.2%}; the step lies anywhere but in the first and last "
            f"{EDGE} points, and is found within {NEAR} points of its place."
        ],
    )


def _series(generator: np.random.Generator, memory: float) -> NDArray[np.float64]:
    """Log-ratios with this coefficient of variation, whatever their memory."""
    drawn = generator.standard_normal(POINTS + 50)
    values = np.zeros(POINTS + 50)
    for index in range(1, len(values)):
        values[index] = memory * values[index - 1] + drawn[index]
    found: NDArray[np.float64] = values[50:] * CV * np.sqrt(1 - memory**2)
    return found
