"""How the traced time divides among phases, and how many calls fit into a trace."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perftool.analysis.traces import BUSY_LEAST, TRACED_CALLS_MOST, calls_that_fit, facts_of, loses_kernels


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


def launched(number: int, category: str, at_us: float, begin_us: float, end_us: float) -> list[dict[str, Any]]:
    """A call of the CUDA runtime on the host, and what it makes the device do later."""
    arguments = {"args": {"correlation": number}}
    return [
        mark("cudaLaunchKernel", at_us, at_us + 1, "cuda_runtime") | arguments,
        mark("of the device", begin_us, end_us, category) | arguments,
    ]


def gpu_step(number: int, start_us: float) -> list[dict[str, Any]]:
    """A step of 100 us on a busy GPU: the copy waits for the step before, and the device lags by 60 us."""
    host = [
        mark(f"ProfilerStep#{number}", start_us, start_us + 100),
        mark("data wait", start_us, start_us + 5),
        mark("copy to device", start_us + 5, start_us + 75),
        mark("forward", start_us + 75, start_us + 80),
        mark("backward", start_us + 80, start_us + 90),
        mark("Optimizer.step#Adam.step", start_us + 90, start_us + 95),
    ]
    first, on = 10 * number, start_us + 60
    device = [
        *launched(first + 1, "gpu_memcpy", start_us + 6, on, on + 10),
        *launched(first + 2, "kernel", start_us + 76, on + 20, on + 40),
        *launched(first + 3, "kernel", start_us + 81, on + 40, on + 60),  # by the thread of autograd
        *launched(first + 4, "kernel", start_us + 89, on + 62, on + 80),
        *launched(first + 5, "kernel", start_us + 91, on + 80, on + 95),
        *launched(first + 6, "gpu_memset", start_us + 94, on + 95, on + 100),
    ]
    repeated = [
        mark(f"ProfilerStep#{number}", on, on + 100, "gpu_user_annotation"),
        mark("copy to device", on, on + 10, "gpu_user_annotation"),
        mark("forward", on + 20, on + 40, "gpu_user_annotation"),
        mark("Optimizer.step#Adam.step", on + 80, on + 100, "gpu_user_annotation"),
    ]
    return [*host, *device, *repeated]


def test_on_a_gpu_the_devices_shares_are_apart_from_the_hosts() -> None:
    facts = facts_of({"traceEvents": [*gpu_step(1, 0), *gpu_step(2, 100)]}, on_cuda=True)
    assert (facts.steps, facts.step_ns) == (2, 100_000)
    assert facts.shares["copy to device"] == pytest.approx(0.7)
    # Of 260 us, from the first step on the host until the device ended.
    assert facts.device_shares == pytest.approx(
        {"copy to device": 20 / 260, "forward": 40 / 260, "backward": 80 / 260, "optimizer": 40 / 260}
    )
    assert facts.device_busy == pytest.approx(2 * (10 + 20 + 20 + 18 + 20) / 260)
    assert not loses_kernels(facts)


def test_a_mark_of_the_device_counts_where_its_launches_are_not_known() -> None:
    events = [one for one in gpu_step(1, 0) if one["cat"] != "cuda_runtime"]
    facts = facts_of({"traceEvents": events}, on_cuda=True)
    assert facts.device_shares == pytest.approx(
        {"copy to device": 10 / 160, "forward": 20 / 160, "optimizer": 20 / 160}
    )


def test_on_a_cpu_nothing_is_said_of_a_device() -> None:
    facts = facts_of({"traceEvents": gpu_step(1, 0)})
    assert (facts.device_shares, facts.device_busy) == ({}, None)
    assert not loses_kernels(facts)


def test_kernels_that_were_lost_are_noticed_whether_they_are_absent_or_without_times() -> None:
    whole = gpu_step(1, 0)
    host = [one for one in whole if one["cat"] in ("user_annotation", "cuda_runtime")]
    emptied = [one if one in host else one | {"ts": 0, "dur": 0} for one in whole]
    for events in (host, [one | {"ts": one["ts"] + 1000} if one in host else one for one in emptied]):
        facts = facts_of({"traceEvents": events}, on_cuda=True)
        assert (facts.device_busy, facts.device_shares) == (0, {})
        assert loses_kernels(facts)


def test_a_gpu_that_idles_since_the_host_waits_for_data_has_lost_nothing() -> None:
    def of(wait_us: float, kernel_us: float) -> bool:
        events = [
            mark("ProfilerStep#1", 0, 1000),
            mark("data wait", 0, wait_us),
            *launched(1, "kernel", wait_us, wait_us + 1, wait_us + 1 + kernel_us),
        ]
        return loses_kernels(facts_of({"traceEvents": events}, on_cuda=True))

    assert not of(wait_us=900, kernel_us=1.5 * BUSY_LEAST * 100)
    assert of(wait_us=900, kernel_us=0.5 * BUSY_LEAST * 100)
    assert of(wait_us=0, kernel_us=1.5 * BUSY_LEAST * 100)


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
