"""What is called a leak, and how large a batch is said to fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from perftool.analysis.memory import FEWEST_SAMPLES, growth, largest_batch, memory_report
from perftool.analysis.summary import summarise
from perftool.records import BatchPoint, Growth, MemoryParts, MemorySample
from tests.sessions import timed_session

PROPERTY = settings(deadline=None, max_examples=80, derandomize=True)
STEPS = np.arange(0, 2000, 20, dtype=float)
LEAK = 10_000.0  # bytes per step: 1 MB in 100 steps
SIZES = st.lists(st.integers(0, 2**40), min_size=1, max_size=60)


def noise(seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-2e6, 2e6, len(STEPS))


def sampled(held: NDArray[np.float64], launch: int = 0) -> list[MemorySample]:
    return [
        MemorySample(launch=launch, steps=int(step), host_bytes=int(5e8 + size))
        for step, size in zip(STEPS, held, strict=True)
    ]


def judged(held: NDArray[np.float64]) -> Growth:
    told = growth(sampled(held))
    assert told is not None
    return told


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_of_a_megabyte_in_a_hundred_steps_is_found(seed: int) -> None:
    told = judged(LEAK * STEPS + noise(seed))
    assert told.verdict == "leak"
    assert told.low is not None
    assert told.high is not None
    assert told.bytes_per_step == pytest.approx(LEAK, rel=0.2)
    assert told.low < LEAK < told.high
    assert told.steps == 1980


def test_a_leak_in_megabytes_and_one_that_follows_a_warm_up_are_found() -> None:
    assert judged(1e6 * np.floor(LEAK * STEPS / 1e6)).verdict == "leak"
    assert judged(LEAK * STEPS + 1e8 * (1 - np.exp(-STEPS / 100)) + noise()).verdict == "leak"


NOT_LEAKS = {
    "nothing at all": 0.0 * STEPS,
    "noise": noise(1),
    "a warm-up": 1e8 * (1 - np.exp(-STEPS / 300)) + noise(1),
    "an early jump": 5e7 * (STEPS > 300) + noise(1),
    "a late jump": 5e7 * (STEPS > 1700) + noise(),
    "two jumps": 2e7 * (STEPS > 700) + 2e7 * (STEPS > 1300) + noise(),
    "garbage collected now and then": 4e7 * ((STEPS / 700) % 1) + noise(),
    "a last tooth": 4e7 * ((STEPS / 1000) % 1) + noise(),
    "workers that start anew": np.where(STEPS % 400 < 40, 0.0, 1e8) + 3e7 * ((STEPS / 400) % 1) + noise(),
    "memory that is given back": -LEAK * STEPS + noise(),
}


@pytest.mark.parametrize("name", NOT_LEAKS)
def test_what_does_not_go_on_is_no_leak(name: str) -> None:
    assert judged(NOT_LEAKS[name]).verdict != "leak"


@pytest.mark.parametrize("name", ["nothing at all", "noise", "a warm-up", "an early jump"])
def test_what_has_settled_is_steady(name: str) -> None:
    told = judged(NOT_LEAKS[name])
    assert told.verdict == "steady"
    assert told.high is not None
    assert told.high < LEAK


def test_a_counter_that_grows_is_no_leak() -> None:
    told = judged(200 * STEPS)
    assert told.verdict == "steady"
    assert told.low == pytest.approx(200)


def test_too_few_samples_are_undecided() -> None:
    held = LEAK * STEPS
    few = growth(sampled(held)[: FEWEST_SAMPLES - 1])
    assert few is not None
    assert (few.verdict, few.bytes_per_step) == ("undecided", None)
    assert few.grown_bytes == LEAK * few.steps
    assert growth([]) is None


def test_the_longest_launch_is_judged_and_the_device_apart() -> None:
    short = sampled(LEAK * STEPS, launch=1)[:50]
    told = growth([*short, *sampled(0.0 * STEPS, launch=2)])
    assert told is not None
    assert told.verdict == "steady"
    assert growth(short, "device") is None
    on_device = [replace(one, device_allocated_bytes=1000 * one.steps) for one in sampled(0.0 * STEPS)]
    leaking = growth(on_device, "device")
    assert leaking is not None
    assert leaking.grown_bytes == 1_980_000


@PROPERTY
@given(SIZES, st.integers(0, 2**40))
def test_growth_does_not_depend_on_what_is_held_throughout(sizes: list[int], held: int) -> None:
    def told(base: int) -> Growth:
        found = growth([MemorySample(steps=7 * at, host_bytes=base + size) for at, size in enumerate(sizes)])
        assert found is not None
        return found

    one, more = told(0), told(held)
    assert (one.grown_bytes, one.steps) == (more.grown_bytes, more.steps) == (sizes[-1] - sizes[0], 7 * len(sizes) - 7)
    if one.bytes_per_step is not None:
        assert more.bytes_per_step == pytest.approx(one.bytes_per_step, abs=1e-3, rel=1e-9)
        assert one.low is not None
        assert one.high is not None
        assert one.low <= one.bytes_per_step <= one.high


@PROPERTY
@given(SIZES)
def test_what_never_grows_is_never_a_leak(sizes: list[int]) -> None:
    falling = sorted(sizes, reverse=True)
    told = growth([MemorySample(steps=at, host_bytes=size) for at, size in enumerate(falling)])
    assert told is not None
    assert told.verdict != "leak"


# ---------------------------------------------------------------------------------------------------- largest batch


def line(fixed: int, per_sample: int, sizes: tuple[int, ...] = (128, 256, 512)) -> list[BatchPoint]:
    return [BatchPoint(batch_size=size, peak_bytes=fixed + per_sample * size) for size in sizes]


def test_the_largest_batch_is_where_the_line_meets_what_is_available() -> None:
    fit = largest_batch(line(400_000_000, 30_000), 1_000_000_000)
    assert fit.largest_batch_size == pytest.approx(20_000, abs=1)
    assert fit.fixed_bytes == pytest.approx(400_000_000)
    assert fit.per_sample_bytes == pytest.approx(30_000)
    assert fit.reason is None


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "fewer than two"),
        (line(10**8, 30_000, (128,)), "fewer than two"),
        (line(10**8, 0), "lost in"),
        (line(10**8, -30_000), "lost in"),
        (line(10**8, 3), "lost in"),
        ([BatchPoint(batch_size=n, peak_bytes=b) for n, b in ((1, 10**8), (2, 3 * 10**8), (4, 10**8 + 2))], "lost in"),
        (line(2 * 10**9, 30_000), "not even a batch of one"),
    ],
)
def test_what_cannot_be_told_has_a_reason(points: list[BatchPoint], said: str) -> None:
    fit = largest_batch(points, 10**9)
    assert fit.largest_batch_size is None
    assert said in (fit.reason or "")


LINES = st.tuples(st.integers(10**6, 10**9), st.integers(10_000, 10**6))


@PROPERTY
@given(LINES, st.integers(0, 10**11), st.integers(0, 10**10))
def test_more_memory_never_fits_less(made: tuple[int, int], available: int, more: int) -> None:
    points = line(*made)
    assert size_of(points, available) <= size_of(points, available + more)


@PROPERTY
@given(LINES, st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**11))
def test_a_training_that_takes_more_never_fits_more(
    made: tuple[int, int], fixed: int, per_sample: int, available: int
) -> None:
    larger = line(made[0] + fixed, made[1] + per_sample)
    assert size_of(larger, available) <= size_of(line(*made), available) + 1  # of rounding


@PROPERTY
@given(LINES, st.integers(10**9, 10**11))
def test_what_is_said_to_fit_does(made: tuple[int, int], available: int) -> None:
    fixed, per_sample = made
    largest = size_of(line(*made), available)
    assert fixed + per_sample * (largest - 1) <= available
    assert fixed + per_sample * (largest + 2) > available


def size_of(points: list[BatchPoint], available_bytes: int) -> int:
    return largest_batch(points, available_bytes).largest_batch_size or 0


# ---------------------------------------------------------------------------------------------------------- summary


def test_a_summary_says_what_the_session_knows_of_memory() -> None:
    session = timed_session([({}, 10.0)], generations=1, rounds=1)
    assert memory_report(session) is None
    assert summarise(session).memory is None
    parts = MemoryParts(
        parameters_bytes=4, gradients_bytes=4, optimizer_bytes=8, buffers_bytes=0, activations_bytes=2, batch_bytes=1
    )
    fit = largest_batch(line(10**8, 30_000), 10**9)
    known = replace(session, memory_samples=sampled(LEAK * STEPS), memory_parts=parts, batch_fit=fit)
    memory = summarise(known).memory
    assert memory is not None
    assert (memory.parts, memory.device_growth) == (parts, None)
    assert memory.host_growth is not None
    assert memory.host_growth.verdict == "leak"
    assert fit.largest_batch_size is not None
    assert memory.fit is not None
    assert memory.fit.largest_batch_size is None, "what a leak adds is in the measured sizes, too"
    assert "grows with every step" in str(memory.fit.reason)
    steady = summarise(replace(known, memory_samples=[])).memory
    assert steady is not None
    assert steady.fit == fit
