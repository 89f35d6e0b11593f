"""When an effect counts: better, worse, same or undecided, against a margin, and how often one may look."""

from __future__ import annotations

from math import exp, isfinite, log, sqrt
from typing import TYPE_CHECKING

from msgspec.structs import replace

from perftool.analysis.stats import LEAST_PAIRS, Effect, interval, smallest_detectable
from perftool.records import Comparison, VerdictWord, known

if TYPE_CHECKING:
    from perftool.analysis.stats import Rule

ALPHA = 0.05  # interactive; the gate uses 0.01

LOOKS = {2: 0.1, 4: 0.2, 6: 0.3, 8: 0.4}
"""Generations after which one looks, and the share of alpha that this look may spend."""

FULL_LOOK = 4
"""Generations that a verdict is planned with. An earlier look finds large effects, by the whole interval, and never
that two are the same."""

MARGINS = {
    "throughput": 0.01,
    "step_p50": 0.01,
    "step_p95": 0.05,  # a tail rests on a twentieth of the steps
    "jitter": 0.05,  # p95/p50
    "stall_share": 0.25,  # rests on the few slow steps there are
    "peak_host": 0.02,  # allocators keep a page more or less
    "peak_device": 0.01,
}
HIGHER_IS_BETTER = ("throughput",)


def alpha_at(launches: int, alpha: float) -> float:
    """The part of alpha that a verdict after so many launches may spend."""
    return alpha * LOOKS[max((look for look in LOOKS if look <= launches), default=min(LOOKS))]


def judge(theta: float, low: float, high: float, margin: float, rule: Rule) -> VerdictWord:
    """The verdict on a log effect of something of which less is better."""
    m = log(1 + margin)
    if rule == "strict":
        better, worse = high <= -m, low >= m
    else:
        better, worse = high < 0 and theta <= -m, low > 0 and theta >= m
    if better or worse:
        return "better" if better else "worse"
    return "same" if -2 * m <= low and high <= 2 * m and abs(theta) < m else "undecided"


def comparison(
    metric: str,
    effect: Effect,
    pairs: int,
    *,
    comparisons: int = 1,
    alpha: float = ALPHA,
    rule: Rule = "detect",
    margin: float | None = None,
    single_look: bool = False,
) -> Comparison:
    """One metric's comparison, its interval simultaneous over so many comparisons.

    `effect` is on the log scale of time, or of whatever less is better of; the ratio is in the metric's own unit.
    margin: the metric's usual one where none is given. single_look: nobody looked before, so that it has all of alpha.
    Without an interval, and undecided, where too little was measured: a single launch, or fewer than three pairs.
    """
    margin = MARGINS[metric] if margin is None else margin
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    measured = Comparison(
        ratio=_exp(sign * effect.theta),
        low=None,
        high=None,
        margin=margin,
        verdict="undecided",
        pairs=pairs,
        launches=effect.launches,
        smallest_detectable=None,
        unsteady=effect.unsteady,
    )
    if not isfinite(effect.se) or pairs < LEAST_PAIRS:
        return measured
    is_early = effect.launches < FULL_LOOK and not single_look
    rule = "strict" if effect.unsteady or is_early else rule
    spent = (alpha if single_look else alpha_at(effect.launches, alpha)) / max(1, comparisons)
    low, high = interval(effect, spent)
    ends = sorted((_exp(sign * low), _exp(sign * high)))
    verdict = judge(effect.theta, low, high, margin, rule)
    return replace(
        measured,
        low=known(ends[0]),
        high=known(ends[1]),
        verdict="undecided" if is_early and verdict == "same" else verdict,
        smallest_detectable=known(_exp(smallest_detectable(effect, spent, log(1 + margin), rule)) - 1),
    )


def launches_needed(metric: str, effect: Effect, pairs: int) -> int | None:
    """With how many launches in all such an effect would have a verdict, if those to come were like those that were:
    one of LOOKS. None where even the last look would not decide, or too little was measured to say."""
    for look in LOOKS:
        if look > effect.launches and isfinite(effect.se):
            to_come = look - effect.launches
            se = effect.se * sqrt(effect.launches / look)
            then = Effect(effect.theta, se, effect.df + to_come, look, effect.unsteady)
            if comparison(metric, then, pairs * look // effect.launches).verdict != "undecided":
                return look
    return None


def _exp(value: float) -> float:
    return exp(min(value, 50.0))
