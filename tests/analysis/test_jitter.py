"""How uneven steps are, by hand and by property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool.analysis.jitter import jitter, stall_share

RUNS = st.lists(st.lists(st.integers(10**5, 10**8), min_size=1, max_size=40), min_size=1, max_size=10)


def test_no_steps_have_no_jitter() -> None:
    nothing = jitter([])
    assert (nothing.steps, nothing.j95, nothing.stall_share) == (0, None, None)
    assert nothing.note == "no step times"
    assert stall_share([]) is None


def test_even_steps_have_none() -> None:
    even = jitter([[1000] * 500])
    assert (even.j95, even.j99, even.mad_ratio, even.step_to_step_q95, even.stall_share) == (0, 0, 0, 0, 0)
    assert even.note is None


def test_stalls_are_what_lies_above_one_and_a_half_medians() -> None:
    assert stall_share([[100] * 9 + [250]]) == pytest.approx((250 - 150) / (9 * 100 + 250))


def test_too_few_steps_are_said_to_be_too_few() -> None:
    few = jitter([[1000 + step for step in range(50)]])
    assert (few.j95, few.j99) == (None, None)
    assert few.note == "not enough steps for p95 and p99"
    assert few.mad_ratio is not None


def test_quantiles_come_with_intervals() -> None:
    times = np.random.default_rng(0).lognormal(np.log(1e6), 0.1, 4000).astype(int).tolist()
    told = jitter([times[start : start + 40] for start in range(0, 4000, 40)])
    assert told.j99 is not None
    assert told.j99_low is not None
    assert told.j99_high is not None
    assert told.j99_low < told.j99 < told.j99_high
    assert told.j99 == pytest.approx(np.quantile(times, 0.99) / np.median(times) - 1)


def test_no_difference_is_taken_between_blocks() -> None:
    told = jitter([[100, 100], [900, 900]])
    assert told.step_to_step_q95 == 0
    assert jitter([[100], [900]]).step_to_step_q95 is None


@given(RUNS, st.integers(2, 50))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_shares_do_not_depend_on_the_unit(runs: list[list[int]], factor: int) -> None:
    one, scaled = jitter(runs), jitter([[factor * step for step in run] for run in runs])
    for name in ("j95", "mad_ratio", "step_to_step_q95", "stall_share", "effective_steps"):
        assert getattr(one, name) == pytest.approx(getattr(scaled, name), abs=1e-9), name


@given(RUNS)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_a_stall_share_is_a_share(runs: list[list[int]]) -> None:
    share = stall_share(runs)
    assert share is not None
    assert 0 <= share < 1
