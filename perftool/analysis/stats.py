"""Intervals that hold on a noisy machine: launches as a random effect, any-time tests, quantiles of dependent samples.

Pure functions of arrays; effects are on the log scale, negative is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, inf, log, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    Rule = Literal["strict", "detect"]

# Standard deviation between launches of one program: by placement and memory layout, measured on a shared machine.
LAUNCH_SD_PINNED = 0.008
LAUNCH_SD_UNPINNED = 0.012
PRIOR_DF = 4.0
POOLED_DF_MOST = 8.0
POWER = 0.8
LEAST_PAIRS = 3  # below which a spread is not known, and nothing is concluded
LEAST_LAUNCHES = 2  # below which nothing is known of how launches differ
LAGS_MOST = 200
BOOTSTRAPS = 40


@dataclass(frozen=True)
class Effect:
    """The effect of one variant over its launches."""

    theta: float  # mean over launches of the launch's median paired log-ratio
    se: float  # infinite where too little was measured to say
    df: float
    launches: int
    unsteady: bool  # launches differ far more than they should: only the strict rule may judge


def median_half_width(values: ArrayLike) -> float:
    """Half the order-statistic interval of the median at ranks n/2 -+ sqrt(n)/2, about one standard deviation.

    NaN for fewer values than LEAST_PAIRS.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    count = len(ordered)
    if count < LEAST_PAIRS:
        return float("nan")
    low = max(0, int(np.floor(count / 2 - sqrt(count) / 2)) - 1)
    high = min(count - 1, int(np.ceil(count / 2 + sqrt(count) / 2)) - 1)
    return float(ordered[high] - ordered[low]) / 2


def launch_effects(d: ArrayLike, half_widths: ArrayLike, *, pinned: bool = False) -> list[Effect | None]:
    """A moderated t over launches, for each row of `d`.

    d: (variants, generations) medians of paired log-ratios, NaN where a variant was not live.
    half_widths: same shape, of those medians; NaN where a launch has too few pairs to tell. None for a variant without
        any launch.

    A launch's own variance is weighed against a prior and against what the other variants of the session show, as in
    Smyth, Linear models and empirical Bayes methods (2004). Where no launch has enough pairs to tell its spread, the
    launches alone do, if there are as many as LEAST_PAIRS. One launch never tells.
    """
    d, half_widths = np.asarray(d, dtype=float), np.asarray(half_widths, dtype=float)
    spread = (LAUNCH_SD_PINNED if pinned else LAUNCH_SD_UNPINNED) ** 2
    return [_effect(d, half_widths, row, spread) for row in range(len(d))]


def _effect(d: NDArray[np.float64], half_widths: NDArray[np.float64], row: int, spread: float) -> Effect | None:
    there = ~np.isnan(d[row])
    own = d[row, there]
    launches = len(own)
    if not launches:
        return None
    theta, own_variance = float(np.mean(own)), float(np.var(own, ddof=1)) if launches > 1 else 0.0
    widths = half_widths[row, there]
    known = widths[~np.isnan(widths)]
    if launches < LEAST_LAUNCHES or len(known) < min(launches, LEAST_PAIRS):
        # Their spread is in the launches, too, but only in them.
        se = sqrt(max(spread, own_variance) / launches) if launches >= LEAST_PAIRS else inf
        return Effect(theta, se, max(1, launches - 1), launches, unsteady=False)
    within = float(np.mean(known**2))
    prior = spread + within
    pooled, pooled_df = _pooled_variance(d, row, there)
    if len(d) == 1:
        moderated, weight = prior, PRIOR_DF
    else:
        moderated = (PRIOR_DF * prior + pooled_df * pooled) / (PRIOR_DF + pooled_df)
        weight = min(POOLED_DF_MOST, PRIOR_DF + pooled_df)
    df = weight + launches - 1
    variance = (weight * moderated + (launches - 1) * own_variance) / df
    unsteady = launches > 2 and own_variance > (1.5**2) * spread + within
    return Effect(theta, sqrt(variance / launches), df, launches, unsteady)


def _pooled_variance(d: NDArray[np.float64], row: int, there: NDArray[np.bool_]) -> tuple[float, float]:
    """Variance of a difference of two launches, and its degrees of freedom, from the other variants and the baseline
    (a row of zeros), less the means of rows and generations."""
    others = np.delete(d[:, there], row, axis=0)
    complete = others[~np.isnan(others).any(axis=1)]
    matrix = np.vstack([np.zeros(others.shape[1]), complete])
    df = (matrix.shape[0] - 1) * (matrix.shape[1] - 1)
    if df <= 0:
        return 0.0, 0.0
    residuals = matrix - matrix.mean(axis=1, keepdims=True) - matrix.mean(axis=0, keepdims=True) + matrix.mean()
    return 2 * float(np.sum(residuals**2)) / df, float(df)


def interval(effect: Effect, alpha: float) -> tuple[float, float]:
    """Two-sided interval of the effect at level 1 - alpha; infinite where too little was measured to say."""
    from scipy import stats

    half = float(stats.t.ppf(1 - alpha / 2, effect.df)) * effect.se
    return effect.theta - half, effect.theta + half


def smallest_detectable(effect: Effect, alpha: float, margin: float, rule: Rule) -> float:
    """The effect that such launches would have shown with a probability of 80 %, on the log scale."""
    from scipy import stats

    critical = float(stats.t.ppf(1 - alpha / 2, effect.df))
    power = float(stats.t.ppf(POWER, effect.df))
    both = (critical + power) * effect.se
    return margin + both if rule == "strict" else max(margin + power * effect.se, both)


def sign_test_log_e(below: int, count: int) -> float:
    """Log of the evidence that `below` of `count` signs are not from a fair coin; log(1/alpha) rejects at alpha.

    Valid at every stopping time, under drift and autocorrelation, since the coin is the drawn order within pairs. The
    mixture is Jeffreys' (Krichevsky and Trofimov 1981); see Ramdas et al., Game-theoretic statistics (2023).
    """
    from scipy.special import betaln

    if count == 0:
        return 0.0
    mixture = float(betaln(below + 0.5, count - below + 0.5) - betaln(0.5, 0.5))
    return count * log(2) + mixture


# ------------------------------------------------------------------------------------------------- dependent samples


def correlation_length(indicator: ArrayLike) -> float:
    """1 + 2 sum of autocorrelations, by Geyer's initial positive sequence (1992); at least 1."""
    series = np.asarray(indicator, dtype=float)
    count = len(series)
    if count < 3:
        return 1.0
    series = series - series.mean()
    power = float(np.dot(series, series))
    if power == 0:
        return 1.0
    size = 1 << (2 * count - 1).bit_length()
    spectrum = np.fft.rfft(series, size)
    acf = np.fft.irfft(spectrum * np.conj(spectrum), size)[: min(count, LAGS_MOST)] / power
    total = 0.0
    for lag in range(1, len(acf) - 1, 2):
        pair = float(acf[lag] + acf[lag + 1])
        if pair <= 0:
            break
        total += pair
    return max(1.0, 1 + 2 * total)


def effective_steps(step_ns: ArrayLike, q: float) -> float:
    """How many independent steps say as much about the quantile as these do."""
    times = np.asarray(step_ns, dtype=float)
    return len(times) / correlation_length(times > np.quantile(times, q)) if len(times) else 0.0


def quantile_interval(step_ns: ArrayLike, q: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """Interval of a quantile from order statistics, with the effective number of steps; None: not enough steps."""
    from scipy import stats

    times = np.sort(np.asarray(step_ns, dtype=float))
    count = int(effective_steps(step_ns, q))
    tail = (1 - confidence) / 2
    if count < 1 or q**count > tail or (1 - q) ** count > tail:
        return None
    low_rank = int(stats.binom.ppf(tail, count, q))
    high_rank = int(stats.binom.ppf(1 - tail, count, q)) + 1
    if low_rank < 1 or high_rank > count:
        return None

    def at(rank: int) -> float:
        return float(times[min(len(times) - 1, max(0, ceil(rank / count * len(times)) - 1))])

    return at(low_rank), at(high_rank)


@dataclass(frozen=True)
class Resampled:
    """The values of some blocks pooled, as they are (row 0) and as a bootstrap over whole blocks draws them.

    Only how often each value is drawn differs between rows, so that all of them share one sorting.
    """

    values: NDArray[np.float64]  # (values,), ascending
    drawn: NDArray[np.int32]  # (1 + BOOTSTRAPS, values): how many are drawn of the first so many

    @classmethod
    def of(cls, blocks: Sequence[NDArray[np.float64]]) -> Resampled:
        """blocks: at least one, none of them empty."""
        pooled = np.concatenate(blocks)
        order = np.argsort(pooled, kind="stable")
        owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])[order]
        return cls(pooled[order], np.cumsum(_draws(len(blocks))[:, owner], axis=1, dtype=np.int32))

    def quantile(self, q: float) -> NDArray[np.float64]:
        """Of each row, interpolated between its order statistics as numpy's default does; (1 + BOOTSTRAPS,)."""
        position = (self.drawn[:, -1] - 1) * q
        below = np.floor(position)
        low = self._ranked(below)
        high = self._ranked(np.minimum(below + 1, self.drawn[:, -1] - 1))
        found: NDArray[np.float64] = low + (high - low) * (position - below)
        return found

    def share_above(self, level: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of (value - level)+ over the sum of all values, of each row; level and result: (1 + BOOTSTRAPS,)."""
        weights = np.diff(self.drawn, axis=1, prepend=np.int32(0))
        above = np.clip(self.values - level[:, None], 0.0, None)
        shares: NDArray[np.float64] = np.einsum("rv,rv->r", weights, above) / (weights @ self.values)
        return shares

    def _ranked(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value of each row that has so many drawn below it."""
        places = [np.searchsorted(row, rank, side="right") for row, rank in zip(self.drawn, ranks, strict=True)]
        found: NDArray[np.float64] = self.values[np.array(places)]
        return found


@cache
def _draws(blocks: int) -> NDArray[np.int32]:
    """How often each block is drawn: once in row 0, at random with replacement in the others."""
    chosen = np.random.default_rng(0).integers(0, blocks, (BOOTSTRAPS, blocks))
    counts = [np.bincount(row, minlength=blocks) for row in chosen]
    return np.array([np.ones(blocks), *counts], dtype=np.int32)
