"""When a warm-up is over, on step times whose end is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perftool.measure.warmup import GIVE_UP_S, LEAST_STEPS, PATIENCE_S, classify, last_change, settled


def steps(*levels: tuple[int, float], noise: float = 0.01, seed: int = 0) -> list[int]:
    """Step times in levels of (number of steps, milliseconds)."""
    generator = np.random.default_rng(seed)
    times = np.concatenate([np.full(count, height) for count, height in levels])
    return [round(1e6 * time) for time in times * np.exp(generator.normal(0, noise, len(times)))]


def test_steady_steps_are_settled_once_they_fill_the_window() -> None:
    assert not settled(steps((40, 3.0)), 40, 0.1)
    assert settled(steps((60, 3.0)), 60, 0.2)


def test_slow_steps_need_not_fill_the_window() -> None:
    slow = steps((20, 100.0))
    assert not settled(slow, 20, PATIENCE_S - 0.1)
    assert settled(slow, 20, PATIENCE_S)


def test_a_few_steps_are_never_enough() -> None:
    assert not settled(steps((LEAST_STEPS - 1, 3.0)), 100, 100.0)


def test_a_compilation_starts_the_count_again() -> None:
    assert not settled(steps((100, 3.0)), 5, 0.3)
    assert settled(steps((100, 3.0)), 20, 0.3)


def test_a_change_of_level_must_be_a_window_ago() -> None:
    assert not settled(steps((30, 6.0), (50, 3.0)), 80, 0.3)
    assert settled(steps((30, 6.0), (70, 3.0)), 100, 0.3)


def test_a_machine_that_never_settles_is_measured_as_it_is() -> None:
    assert settled(steps(*[(10, 3.0), (10, 6.0)] * 6), 120, GIVE_UP_S)


@pytest.mark.parametrize(
    ("levels", "end", "word"),
    [
        ([(120, 3.0)], 0, "flat"),
        ([(30, 6.0), (90, 3.0)], 30, "warm-up"),
        ([(30, 3.0), (90, 6.0)], 30, "slowdown"),
        ([(100, 3.0), (20, 6.0)], 100, "no steady state"),
        ([(20, 6.0), (20, 4.0), (80, 3.0)], 40, "warm-up"),
        ([(40, 3.0), (20, 6.0), (80, 3.0)], 60, "warm-up"),  # it was disturbed, and came back
    ],
)
def test_classes(levels: list[tuple[int, float]], end: int, word: str) -> None:
    times = steps(*levels)
    assert abs(last_change(times) - end) <= 2
    assert classify(times) == word


def test_a_decline_in_small_stairs_is_a_warm_up() -> None:
    """Each stair is within what counts as one level; all together are not."""
    stairs = [(20, 3.0 * 1.04**left) for left in (5, 4, 3, 2, 1)]
    times = steps(*stairs, (100, 3.0), noise=0.002)
    assert last_change(times) >= 60
    assert classify(times) == "warm-up"


def test_single_slow_steps_change_nothing() -> None:
    times = steps((120, 3.0))
    for index in range(7, 120, 25):
        times[index] *= 5
    assert last_change(times) == 0
    assert classify(times) == "flat"


@given(st.lists(st.integers(0, 10**10), max_size=80))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_any_times_have_a_class_and_a_change_within_them(times: list[int]) -> None:
    assert 0 <= last_change(times) <= max(0, len(times) - 1)
    assert classify(times) in ("flat", "warm-up", "slowdown", "no steady state")
