"""Histories: flat series that are flagged, and steps that are found, in series of many lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perftool.analysis.history import LEAST_POINTS, changes
from tests.perf.table import Row, Table, share

TITLE = "History: changes of level in series of checks"

TRIALS = 1000
GROWING_TRIALS = 400
FULL = 100  # points, for which the targets are
SHORTER = (12, 20, 40)
GROWN = 40
CV = 0.0266
STEP = 0.05
NEAR = 5  # points from the truth
EDGE = 10  # points that a step has before and after it, at least; a quarter of a short series
FLAT_MOST = {0.0: 0.01, 0.5: 0.05}  # by memory
GROWING_MOST = 0.05
FOUND_LEAST = 0.85


def run(quick: bool) -> Table:
    generator = np.random.default_rng(0)
    trials, growing = (each // 20 if quick else each for each in (TRIALS, GROWING_TRIALS))
    lengths = (*SHORTER, FULL)
    rows = [_flat(generator, points, memory, trials) for points in lengths for memory in FLAT_MOST]
    rows += [_growing(generator, memory, growing) for memory in FLAT_MOST]
    rows += [_stepped(generator, points, memory, trials) for points in lengths for memory in FLAT_MOST]
    return Table(
        ["series", "points", "AR(1)", "flagged, near the step where there is one", "flagged elsewhere, too"],
        rows,
        [
            f"Target: flat series flagged in at most 1 % (5 % with AR(1) 0.5) at any length; in at most "
            f"{GROWING_MOST:.0%} of those without memory at some time while they grow, looked at with each point; a "
            f"step of 5 % found in 85 % at {FULL} points without memory, and stated elsewhere. Normal noise with a "
            f"coefficient of variation of {CV:.2%}; the step lies anywhere but in the first and last {EDGE} points "
            f"(a quarter of a shorter series), and is found within {NEAR} points of its place."
        ],
    )


def _flat(generator: np.random.Generator, points: int, memory: float, trials: int) -> Row:
    flagged = sum(bool(changes(_series(generator, points, memory))) for _ in range(trials))
    cells = ["flat", str(points), f"{memory:g}", share(flagged, trials), ""]
    return Row(cells, reached=flagged <= FLAT_MOST[memory] * trials)


def _growing(generator: np.random.Generator, memory: float, trials: int) -> Row:
    """Flat series that somebody looks at after each check."""
    flagged = 0
    for _ in range(trials):
        values = _series(generator, GROWN, memory)
        flagged += any(changes(values[:points]) for points in range(LEAST_POINTS, GROWN + 1))
    cells = ["flat, growing", f"{LEAST_POINTS} to {GROWN}", f"{memory:g}", share(flagged, trials), ""]
    return Row(cells, reached=None if memory else flagged <= GROWING_MOST * trials)


def _stepped(generator: np.random.Generator, points: int, memory: float, trials: int) -> Row:
    edge = min(EDGE, points // 4)
    found = extra = 0
    for _ in range(trials):
        at = int(generator.integers(edge, points - edge + 1))
        values = _series(generator, points, memory)
        values[at:] += np.log1p(STEP)
        told = changes(values)
        near = [one for one in told if abs(one.index - at) <= NEAR]
        found += bool(near)
        extra += len(told) > len(near)
    cells = [f"step of {STEP:.0%}", str(points), f"{memory:g}", share(found, trials), share(extra, trials)]
    return Row(cells, found >= FOUND_LEAST * trials if points == FULL and not memory else None)


def _series(generator: np.random.Generator, points: int, memory: float) -> NDArray[np.float64]:
    """Log-ratios with this coefficient of variation, whatever their memory."""
    drawn = generator.standard_normal(points + 50)
    values = np.zeros(points + 50)
    for index in range(1, len(values)):
        values[index] = memory * values[index - 1] + drawn[index]
    found: NDArray[np.float64] = values[50:] * CV * np.sqrt(1 - memory**2)
    return found
