"""How the traced time divides among phases, and how many calls fit into a trace."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perftool.analysis.traces import TRACED_CALLS_MOST, calls_that_fit, facts_of


def mark(name: str, begin_us: float, end_us: float, category: str = "user_annotation") -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": begin_us, "dur": end_us - begin_us}


def test_shares_are_of_the_time_within_the_steps() -> None:
    events = [
        mark("ProfilerStep#3", 100, 200),
        mark("data wait", 90, 130),  # 30 of it within the step
        mark("forward", 130, 150),
        mark("aten::mm", 130, 150, "cpu_op"),
        mark("Optimizer.zero_grad#Adam.zero_grad", 150, 155),
        mark("Optimizer.step#Adam.step", 180, 195),
        mark("ProfilerStep#4", 200, 300),
        mark("data wait", 200, 210),
        mark("data wait", 205, 220),  # overlaps
        {"ph": "M", "name": "process_name"},
    ]
    facts = facts_of({"traceEvents": events})
    assert (facts.steps, facts.events, facts.step_ns) == (2, 10, 100_000)
    assert facts.shares == pytest.approx({"data wait": 0.25, "forward": 0.1, "optimizer": 0.1})


def test_a_call_may_be_several_steps() -> None:
    facts = facts_of({"traceEvents": [mark("ProfilerStep#0", 0, 100)]}, steps_per_call=10)
    assert (facts.steps, facts.step_ns, facts.shares) == (10, 10_000, {})


def test_a_trace_without_steps_says_nothing() -> None:
    facts = facts_of({"traceEvents": [mark("forward", 0, 1)]})
    assert (facts.steps, facts.step_ns, facts.shares) == (0, None, {})


spans = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)).map(lambda pair: (min(pair), max(pair))))


@given(spans, spans)
def test_shares_agree_with_counting_microseconds(steps: list[tuple[int, int]], waits: list[tuple[int, int]]) -> None:
    events = [mark("ProfilerStep#1", *one) for one in steps] + [mark("data wait", *one) for one in waits]
    within = {at for begin, end in steps for at in range(begin, end)}
    waiting = {at for begin, end in waits for at in range(begin, end)}
    share = facts_of({"traceEvents": events}).shares.get("data wait")
    if not within or not waits:
        assert share is None
    else:
        assert share == pytest.approx(len(within & waiting) / len(within))


@given(
    st.floats(0, 1e9),
    st.floats(0, 1e3),
    st.floats(1, 1e9),
    st.floats(0, 1e3),
)
def test_as_many_calls_as_fit_and_at_least_one(
    call_bytes: float, call_s: float, size_bytes: float, time_s: float
) -> None:
    calls = calls_that_fit(call_bytes, call_s, size_bytes=size_bytes, time_s=time_s)
    assert 1 <= calls <= TRACED_CALLS_MOST
    assert calls == 1 or (calls * call_bytes <= size_bytes and calls * call_s <= 1.001 * time_s)
