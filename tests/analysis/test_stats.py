"""The statistics against independent computations, and the properties that every input must have."""

from __future__ import annotations

from math import exp, inf, log, sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats
from scipy.special import betaln

from perftool.analysis.stats import (
    BOOTSTRAPS,
    Effect,
    Resampled,
    correlation_length,
    effective_steps,
    interval,
    launch_effects,
    median_half_width,
    quantile_interval,
    sign_test_log_e,
    smallest_detectable,
)

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True)
LOGS = st.floats(-2, 2, allow_nan=False, width=32)
MATRICES = st.integers(1, 4).flatmap(
    lambda rows: st.integers(1, 6).flatmap(lambda columns: arrays(float, (rows, columns), elements=LOGS))
)


def test_one_variant_is_a_moderated_t_with_the_prior_alone() -> None:
    d = [0.10, 0.12, 0.08, 0.11]
    [effect] = launch_effects([d], [[0.01] * 4])
    assert effect is not None
    prior = 0.012**2 + 0.01**2
    own = np.var(d, ddof=1)
    assert effect.theta == pytest.approx(np.mean(d))
    assert effect.df == 4 + 3
    assert effect.se == pytest.approx(sqrt((4 * prior + 3 * own) / 7 / 4))
    assert not effect.unsteady


def test_several_variants_lend_each_other_their_launch_variance() -> None:
    d = np.array([[0.10, 0.12, 0.08, 0.11], [0.30, 0.33, 0.29, 0.30], [-0.2, -0.22, -0.19, -0.21]])
    widths = np.full(d.shape, 0.005)
    effect = launch_effects(d, widths)[0]
    assert effect is not None
    matrix = np.vstack([np.zeros(4), d[1:]])
    residuals = matrix - matrix.mean(1, keepdims=True) - matrix.mean(0, keepdims=True) + matrix.mean()
    nu = 2 * 3
    pooled = 2 * np.sum(residuals**2) / nu
    prior = 0.012**2 + 0.005**2
    moderated = (4 * prior + nu * pooled) / (4 + nu)
    own = np.var(d[0], ddof=1)
    assert effect.df == 8 + 3
    assert effect.se == pytest.approx(sqrt((8 * moderated + 3 * own) / 11 / 4))


def test_one_launch_decides_nothing() -> None:
    [effect] = launch_effects([[0.1]], [[0.01]])
    assert effect is not None
    assert (effect.theta, effect.se, effect.launches) == (0.1, inf, 1)
    assert interval(effect, 0.05) == (-inf, inf)


def test_launches_with_too_few_pairs_to_tell_their_spread_stand_on_how_they_differ() -> None:
    nan = float("nan")
    d = [0.10, 0.13, 0.08]
    [effect] = launch_effects([d], [[nan] * 3])
    assert effect is not None
    assert effect.df == 2
    assert effect.se == pytest.approx(np.std(d, ddof=1) / sqrt(3))
    [alike] = launch_effects([[0.1] * 3], [[nan] * 3])
    assert alike is not None
    assert alike.se == pytest.approx(0.012 / sqrt(3))  # as launches differ at least
    [few] = launch_effects([[0.1, 0.1]], [[nan] * 2])
    assert few is not None
    assert few.se == inf


def test_pinned_launches_differ_less() -> None:
    [pinned], [unpinned] = (launch_effects([[0.1, 0.1]], [[0.0, 0.0]], pinned=pinned) for pinned in (True, False))
    assert pinned is not None
    assert unpinned is not None
    assert pinned.se < unpinned.se


def test_a_variant_without_launches_has_no_effect_and_disturbs_no_other() -> None:
    nan = float("nan")
    alone = launch_effects([[0.1, 0.2]], [[0.01, 0.01]])
    both = launch_effects([[0.1, 0.2], [nan, nan]], [[0.01, 0.01], [nan, nan]])
    assert both[1] is None
    assert both[0] is not None
    assert alone[0] is not None
    assert both[0].theta == alone[0].theta


def test_a_variant_that_came_later_is_judged_by_its_own_generations() -> None:
    nan = float("nan")
    effect = launch_effects([[nan, nan, 0.2, 0.2]], [[nan, nan, 0.01, 0.01]])[0]
    assert effect is not None
    assert effect.launches == 2
    assert effect.theta == pytest.approx(0.2)


def test_launches_that_differ_wildly_are_unsteady() -> None:
    [wild] = launch_effects([[0.0, 0.3, -0.3, 0.2]], [[0.001] * 4])
    [calm] = launch_effects([[0.0, 0.01, -0.01, 0.0]], [[0.001] * 4])
    assert wild is not None
    assert calm is not None
    assert (wild.unsteady, calm.unsteady) == (True, False)


@given(MATRICES)
@PROPERTY
def test_the_order_of_launches_does_not_matter(d: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(d.shape[1])
    widths = np.abs(d) / 10
    for one, other in zip(launch_effects(d, widths), launch_effects(d[:, order], widths[:, order]), strict=True):
        assert one is not None
        assert other is not None
        assert (one.theta, one.se, one.df) == pytest.approx((other.theta, other.se, other.df))


@given(MATRICES)
@PROPERTY
def test_swapping_variant_and_baseline_turns_the_effect_round(d: np.ndarray) -> None:
    widths = np.full(d.shape, 0.01)
    for one, other in zip(launch_effects(d, widths), launch_effects(-d, widths), strict=True):
        assert one is not None
        assert other is not None
        assert (one.theta, one.se) == pytest.approx((-other.theta, other.se))


EFFECTS = st.builds(
    Effect,
    theta=LOGS,
    se=st.floats(1e-4, 0.5),
    df=st.floats(4, 20),
    launches=st.integers(1, 8),
    unsteady=st.just(False),
)


@given(EFFECTS, st.floats(0.001, 0.2))
@PROPERTY
def test_an_interval_holds_its_estimate_and_grows_with_confidence(effect: Effect, alpha: float) -> None:
    low, high = interval(effect, alpha)
    surer = interval(effect, alpha / 2)
    assert surer[0] < low < effect.theta < high < surer[1]


@given(EFFECTS)
@PROPERTY
def test_the_strict_rule_sees_less(effect: Effect) -> None:
    assert smallest_detectable(effect, 0.05, 0.01, "strict") >= smallest_detectable(effect, 0.05, 0.01, "detect") > 0


# ------------------------------------------------------------------------------------------------------- sign test


@pytest.mark.parametrize(("below", "count"), [(0, 1), (5, 10), (9, 10), (100, 126), (1000, 2000)])
def test_the_evidence_is_the_mixture_over_the_coin(below: int, count: int) -> None:
    expected = count * log(2) + betaln(below + 0.5, count - below + 0.5) - betaln(0.5, 0.5)
    assert sign_test_log_e(below, count) == pytest.approx(expected)


@given(st.integers(1, 12))
@PROPERTY
def test_the_evidence_of_a_fair_coin_is_one_on_average(count: int) -> None:
    mean = sum(
        scipy_stats.binom.pmf(below, count, 0.5) * exp(sign_test_log_e(below, count)) for below in range(count + 1)
    )
    assert mean == pytest.approx(1.0)


@given(st.integers(0, 200), st.integers(0, 200))
@PROPERTY
def test_evidence_is_the_same_for_both_sides(below: int, above: int) -> None:
    count = below + above
    assert sign_test_log_e(below, count) == pytest.approx(sign_test_log_e(above, count))


def test_no_pairs_are_no_evidence() -> None:
    assert sign_test_log_e(0, 0) == 0


# ------------------------------------------------------------------------------------------------- medians, quantiles


def test_the_half_width_of_a_median_is_about_its_standard_deviation() -> None:
    drawn = np.random.default_rng(0).normal(size=(2000, 60))
    widths = [median_half_width(sample) for sample in drawn]
    assert np.mean(widths) == pytest.approx(np.std(np.median(drawn, axis=1)), rel=0.15)


def test_fewer_than_three_values_have_no_half_width() -> None:
    assert np.isnan(median_half_width([1.0]))
    assert np.isnan(median_half_width([1.0, 3.0]))
    assert median_half_width([1.0, 2.0, 3.0]) == 1.0


@pytest.mark.parametrize(("q", "least"), [(0.95, 72), (0.99, 368), (0.999, 3688)])
def test_a_quantile_needs_enough_steps(q: float, least: int) -> None:
    """A two-sided interval at 95 % is finite from the first n with q^n < 0.025 on."""
    times = np.random.default_rng(1).permutation(np.arange(least, dtype=float))
    assert q ** (least - 1) > 0.025 >= q**least
    assert quantile_interval(times[: least - 1], q) is None
    if correlation_length(times > np.quantile(times, q)) == 1:
        found = quantile_interval(times, q)
        assert found is not None
        assert found[0] <= np.quantile(times, q) <= found[1]


def test_independent_steps_agree_with_scipy() -> None:
    times = np.random.default_rng(2).lognormal(size=5000)
    found = quantile_interval(times, 0.99)
    assert found is not None
    theirs = scipy_stats.quantile_test(times, q=np.quantile(times, 0.99), p=0.99).confidence_interval(0.95)
    assert found == pytest.approx((theirs.low, theirs.high), rel=0.05)


def test_bursts_count_as_fewer_steps() -> None:
    generator = np.random.default_rng(3)
    slow = np.repeat(generator.random(1000) < 0.02, 10)
    assert correlation_length(slow) > 5
    assert effective_steps(np.where(slow, 2.0, 1.0) + generator.normal(0, 1e-3, len(slow)), 0.985) < len(slow) / 5


@given(arrays(float, st.integers(0, 60), elements=st.sampled_from([0.0, 1.0])))
@PROPERTY
def test_a_correlation_length_is_at_least_one(indicator: np.ndarray) -> None:
    assert correlation_length(indicator) >= 1


@given(arrays(float, st.integers(100, 300), elements=st.floats(1e3, 1e9)), st.floats(0.1, 100))
@PROPERTY
def test_a_quantile_interval_scales_with_the_times(times: np.ndarray, factor: float) -> None:
    ours, scaled = quantile_interval(times, 0.9), quantile_interval(times * factor, 0.9)
    assume(ours is not None and scaled is not None)
    assert ours is not None
    assert scaled is not None
    assert scaled == pytest.approx((ours[0] * factor, ours[1] * factor))


@given(
    st.lists(arrays(float, st.integers(1, 12), elements=st.integers(1, 50)), min_size=1, max_size=8), st.floats(0, 1)
)
@PROPERTY
def test_resamples_are_what_pooling_the_drawn_blocks_gives(blocks: list[np.ndarray], q: float) -> None:
    resampled = Resampled.of(blocks)
    quantiles, stalls = resampled.quantile(q), resampled.share_above(1.5 * resampled.quantile(0.5))
    generator = np.random.default_rng(0)
    drawn = [np.arange(len(blocks)), *(generator.integers(0, len(blocks), len(blocks)) for _ in range(BOOTSTRAPS))]
    for row, chosen in enumerate(drawn):
        pooled = np.concatenate([blocks[index] for index in chosen])
        assert quantiles[row] == pytest.approx(np.quantile(pooled, q))
        assert stalls[row] == pytest.approx(np.clip(pooled - 1.5 * np.median(pooled), 0, None).sum() / pooled.sum())
