"""What counts, by the rule, at each look."""

from __future__ import annotations

from math import inf, log1p

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool.analysis.stats import Effect
from perftool.analysis.verdict import (
    ALPHA,
    HIGHER_IS_BETTER,
    LOOKS,
    MARGINS,
    alpha_at,
    comparison,
    judge,
    launches_needed,
)
from perftool.records import METRICS, VerdictWord

M = log1p(0.01)


@pytest.mark.parametrize(
    ("theta", "half", "detect", "strict"),
    [
        (-0.05, 0.02, "better", "better"),
        (-0.02, 0.015, "better", "undecided"),  # clears 0 but not the margin
        (0.05, 0.02, "worse", "worse"),
        (0.0, 0.015, "same", "same"),
        (0.0, 0.025, "undecided", "undecided"),  # too wide to be called the same
        (-0.005, 0.004, "same", "same"),  # clears 0, but is smaller than what counts
        (-0.015, 0.02, "undecided", "undecided"),
    ],
)
def test_verdicts(theta: float, half: float, detect: VerdictWord, strict: VerdictWord) -> None:
    assert judge(theta, theta - half, theta + half, M, "detect") == detect
    assert judge(theta, theta - half, theta + half, M, "strict") == strict


@given(st.floats(-0.5, 0.5), st.floats(1e-4, 0.3))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_verdicts_mirror(theta: float, half: float) -> None:
    mirrored = {"better": "worse", "worse": "better", "same": "same", "undecided": "undecided"}
    for rule in ("detect", "strict"):
        one = judge(theta, theta - half, theta + half, M, rule)
        other = judge(-theta, -theta - half, -theta + half, M, rule)
        assert other == mirrored[one]


def test_the_looks_spend_all_of_alpha_and_no_more() -> None:
    assert sum(alpha_at(look, ALPHA) for look in LOOKS) == pytest.approx(ALPHA)
    assert [alpha_at(launches, 1.0) for launches in (1, 2, 3, 4, 5, 6, 7, 8, 9)] == [
        *[0.1, 0.1, 0.1],
        *[0.2, 0.2],
        *[0.3, 0.3],
        *[0.4, 0.4],
    ]


def effect(theta: float, se: float = 0.005, *, unsteady: bool = False) -> Effect:
    return Effect(theta=theta, se=se, df=7, launches=4, unsteady=unsteady)


def test_an_early_look_decides_the_large_alone() -> None:
    for launches, theta, verdict in (
        (2, -0.5, "better"),
        (2, 0.5, "worse"),
        (2, -0.015, "undecided"),  # clears 0, and not the margin
        (3, -0.015, "undecided"),
        (4, -0.015, "better"),
        (2, 0.0, "undecided"),
        (4, 0.0, "same"),
    ):
        early = Effect(theta=theta, se=0.002, df=5, launches=launches, unsteady=False)
        found = comparison("throughput", early, 60 * launches)
        assert (found.verdict, found.low is None) == (verdict, False), (launches, theta)


@pytest.mark.parametrize(("se", "launches", "pairs"), [(inf, 1, 60), (0.01, 2, 2), (inf, 2, 6)])
def test_no_interval_and_no_verdict_of_too_little(se: float, launches: int, pairs: int) -> None:
    found = comparison("throughput", Effect(-1.0, se, 1, launches, unsteady=False), pairs)
    assert (found.verdict, found.low, found.high, found.smallest_detectable) == ("undecided", None, None, None)
    assert found.ratio == pytest.approx(2.718, abs=0.001)


def test_how_many_launches_would_decide() -> None:
    """Of an effect as large as two of its standard errors after two launches; a smaller one never is decided."""
    clear, faint = (Effect(-theta, 0.02, 5, 2, unsteady=False) for theta in (0.05, 0.011))
    assert launches_needed("throughput", clear, 120) in (4, 6, 8)
    assert launches_needed("throughput", faint, 120) is None
    assert launches_needed("throughput", Effect(-0.5, inf, 1, 1, unsteady=False), 60) is None


def test_every_metric_has_a_margin() -> None:
    assert set(MARGINS) == set(METRICS)
    assert set(HIGHER_IS_BETTER) <= set(METRICS)


def test_a_ratio_is_in_the_metrics_own_unit() -> None:
    faster = comparison("throughput", effect(-0.5), 240)
    assert (round(faster.ratio, 4), faster.verdict) == (1.6487, "better")
    assert faster.low is not None
    assert faster.high is not None
    assert faster.low < faster.ratio < faster.high
    shorter = comparison("step_p50", effect(-0.5), 240)
    assert (round(shorter.ratio, 4), shorter.verdict) == (0.6065, "better")


def test_more_comparisons_ask_for_wider_intervals() -> None:
    one, many = (comparison("throughput", effect(-0.02), 240, comparisons=number) for number in (1, 8))
    assert one.low is not None
    assert many.low is not None
    assert many.low < one.low


def test_unsteady_launches_are_judged_strictly() -> None:
    calm = comparison("throughput", effect(-0.025), 240)
    wild = comparison("throughput", effect(-0.025, unsteady=True), 240)
    assert (calm.verdict, wild.verdict) == ("better", "undecided")
    assert (calm.unsteady, wild.unsteady) == (False, True)
    assert wild.smallest_detectable is not None
    assert calm.smallest_detectable is not None
    assert wild.smallest_detectable > calm.smallest_detectable


def test_what_is_said_to_be_detectable_is_detected_in_most_sessions() -> None:
    """At the smallest detectable effect, 80 % of estimates drawn around it lead to a verdict."""
    from scipy import stats

    one = comparison("throughput", effect(0.0), 240)
    assert one.smallest_detectable is not None
    theta = log1p(one.smallest_detectable)
    drawn = theta + 0.005 * stats.t.ppf([(index + 0.5) / 400 for index in range(400)], 7)
    found = sum(comparison("throughput", effect(float(value)), 240).verdict == "worse" for value in drawn)
    assert found / 400 == pytest.approx(0.8, abs=0.02)


def test_an_absurd_effect_is_still_a_number() -> None:
    absurd = comparison("throughput", effect(-1e4, se=1e4), 240)
    assert absurd.ratio > 1e20
    assert absurd.low is not None
