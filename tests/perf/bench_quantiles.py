"""G8: whether the interval of p99 holds its promise when slow steps come in bursts."""

from __future__ import annotations

import numpy as np
from scipy import stats

from perftool.analysis.stats import quantile_interval
from tests.perf.noise import Floats
from tests.perf.table import Row, Table, share

TITLE = "G8: coverage of the p99 interval when slow steps come in bursts"

Q = 0.99
BURSTS = (1, 2, 5, 10, 20)  # steps
STEPS = (1000, 4000, 16_000)
SERIES = 1000
COVERED = 0.90
SLOW_SHARE = 0.02  # of steps, so that p99 is the median slow step
NOISE_SD = 0.02  # of log step time
SLOW_LOG, SLOW_SD = np.log(2.0), 0.3  # a slow step takes about twice as long; by how much its burst decides


def run(quick: bool) -> Table:
    generator = np.random.default_rng(8)
    true_p99 = _true_p99()
    rows = []
    for burst in BURSTS:
        for steps in STEPS:
            total = SERIES // 20 if quick else SERIES
            ends = [quantile_interval(np.exp(_log_steps(generator, steps, burst)), Q) for _ in range(total)]
            told = [end for end in ends if end is not None]
            covered = sum(low <= true_p99 <= high for low, high in told)
            width = f"{np.median([high - low for low, high in told]):.2f}" if told else "-"
            cells = [
                str(burst),
                str(steps),
                share(total - len(told), total),
                share(covered, len(told)),
                share(len(told) - covered, total),
                width,
            ]
            rows.append(Row(cells, reached=covered >= COVERED * len(told)))
    return Table(
        ["burst, steps", "steps", "not enough steps", "covered, where told", "missed, of all", "median width, medians"],
        rows,
        [
            "Target: 95 % intervals cover the true p99 in at least 90 % of the series for which one is given. Two per "
            "cent of the steps are slow, in bursts of fixed length with one slowness each, "
            f"beside {100 * NOISE_SD:.0f} % of noise.",
            "Missed: long bursts in short series. What is told there is told of series in which no burst, or too few, "
            "happened; the column of all series says how often that misleads.",
        ],
    )


def _log_steps(generator: np.random.Generator, steps: int, burst: int) -> Floats:
    """A stationary series whose slow steps come in bursts; bursts may touch, not overlap."""
    times: Floats = generator.normal(0.0, NOISE_SD, steps + burst)
    # A renewal process: geometric gaps whose mean makes the share of slow steps right.
    mean_gap = burst * (1 - SLOW_SHARE) / SLOW_SHARE
    count = int(3 * steps / (mean_gap + burst)) + 20
    gaps = generator.geometric(1 / (mean_gap + 1), count) - 1
    # Begun long before the series, so that its first step is like any other.
    starts = np.cumsum(gaps + burst) - burst - generator.integers(10 * burst, 11 * burst + round(mean_gap))
    for start in starts[(starts > -burst) & (starts < steps)]:
        times[max(0, start) : start + burst] += generator.normal(SLOW_LOG, SLOW_SD)
    return times[:steps]


def _true_p99() -> float:
    """Where the distribution of a single step, a mixture of two lognormals, reaches 0.99."""
    log_times = np.linspace(0.0, 3.0, 300_001)
    slow = stats.norm.cdf(log_times, SLOW_LOG, (SLOW_SD**2 + NOISE_SD**2) ** 0.5)
    fast = stats.norm.cdf(log_times, 0.0, NOISE_SD)
    reached = (1 - SLOW_SHARE) * fast + SLOW_SHARE * slow >= Q
    return float(np.exp(log_times[reached.argmax()]))
