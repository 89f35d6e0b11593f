"""What a step of a script is, by the events that its loop makes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perftool.script.steps import BACKWARD, MARK, OPTIMIZER, Counter, Event, Rule, find_rule, is_sure, seen_enough

B = Event(BACKWARD)


def updates(*who: int) -> list[Event]:
    return [Event(OPTIMIZER, one) for one in who]


def loop(*step: Event, times: int = 12) -> list[Event]:
    return [*step] * times


@pytest.mark.parametrize(
    ("events", "rule"),
    [
        (loop(B, *updates(0)), Rule(OPTIMIZER)),
        (loop(B, B, B, B, *updates(0)), Rule(OPTIMIZER)),  # accumulation
        (loop(B, *updates(0), B, *updates(1)), Rule(OPTIMIZER, last=1)),  # GAN
        (loop(*[B, *updates(0)] * 5, B, *updates(1)), Rule(OPTIMIZER, last=1)),  # five critics
        (loop(B, *updates(0, 1)), Rule(OPTIMIZER, last=1)),  # two optimizers after one backward pass
        (loop(*updates(0, 1, 1)), Rule(OPTIMIZER, every=3)),
        ([*loop(*updates(1), times=5), *loop(*updates(0, 1))], Rule(OPTIMIZER, last=0)),  # begins with one alone
        (loop(B), Rule(BACKWARD)),  # updates by hand
        (loop(B, *updates(0), Event(MARK)), Rule(MARK)),  # who says it knows it
        ([], None),
    ],
)
def test_the_rule_of_a_loop(events: list[Event], rule: Rule | None) -> None:
    assert find_rule(events) == rule


def test_a_rare_optimizer_ends_the_step_though_its_turn_came_once() -> None:
    assert find_rule(updates(*[0] * 20, 1, *[0] * 9)) == Rule(OPTIMIZER, last=1)


@given(pattern=st.lists(st.integers(0, 3), min_size=1, max_size=6), times=st.integers(4, 8))
def test_steps_are_counted_once_per_pattern(pattern: list[int], times: int) -> None:
    events = updates(*pattern * times)
    rule = find_rule(events)
    assert rule is not None
    counter = Counter(rule)
    steps = sum(counter.ends_step(*event) for event in events)
    shortest = next(p for p in range(1, len(pattern) + 1) if pattern * 2 == pattern[:p] * (2 * len(pattern) // p))
    assert steps == times * len(pattern) // shortest


@given(
    boundary=st.sampled_from([MARK, OPTIMIZER, BACKWARD]), last=st.none() | st.integers(0, 9), every=st.integers(1, 64)
)
def test_a_rule_travels_as_json(boundary: str, last: int | None, every: int) -> None:
    rule = Rule(boundary, last=last, every=every)
    assert Rule.from_json(rule.as_json()) == rule


def test_slow_steps_are_few() -> None:
    assert not seen_enough(2, 100.0)
    assert seen_enough(3, 10.0)
    assert not seen_enough(23, 2.0)
    assert seen_enough(24, 2.0)
    assert not seen_enough(63, 0.1)
    assert seen_enough(64, 0.1)


@pytest.mark.parametrize(
    ("events", "sure"),
    [
        (updates(0, 0, 0), True),
        (updates(0, 1) * 2, False),
        (updates(0, 1) * 3, True),
        (updates(0, 0, 0, 0, 0, 1, 0, 0), False),
        (updates(0, 0, 0, 0, 0, 1) * 3, True),
        (updates(*[0] * 20, 1, *[0] * 9), False),
    ],
)
def test_a_pattern_is_sure_once_it_has_come_three_times(events: list[Event], sure: bool) -> None:
    assert is_sure(events) == sure
