"""The bounds of a step from scripted work and scripted ceilings."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perftool.analysis.roofline import distance, moved_bytes
from perftool.records import Ceiling, Distance, Limits
from perftool.report.profiles import limit_lines, mode_text
from tests.sessions import make_limits, make_work

PROPERTY = settings(deadline=None, max_examples=100, derandomize=True)
UNKNOWN = [("float32", "highest", False), ("bfloat16", None, False)]
POSITIVE = st.floats(min_value=1e3, max_value=1e15)


def found(limits: Limits, step_ns: float) -> Distance:
    told = distance(limits, step_ns)
    assert told is not None
    return told


def with_bandwidths(cache: float, memory: float) -> Limits:
    copies = [
        Ceiling(kind="copy", dtype="float32", buffer_bytes=size, bytes_per_second=rate)
        for size, rate in ((2**22, cache), (2**26, memory))
    ]
    return make_limits(ceilings=[one for one in make_limits().ceilings if one.kind == "matmul"] + copies)


def test_a_step_in_float32_beside_the_machines_best() -> None:
    told = found(make_limits(), 12e6)
    own, best = told.bounds
    assert (told.moved_bytes, told.in_cache, told.bytes_per_second) == (60_000_000, True, 40e9)
    assert (own.dtypes, own.precision, own.as_it_runs, own.bound_by) == (["float32"], "highest", True, "compute")
    assert own.compute_ns == pytest.approx(10e6)
    assert own.memory_ns == pytest.approx(1.5e6)
    assert own.times_above == pytest.approx(1.2)
    assert own.mfu == pytest.approx(10 / 12)
    assert (best.dtypes, best.precision, best.as_it_runs, best.bound_by) == (["bfloat16"], None, False, "memory")
    assert best.bound_ns == pytest.approx(1.5e6)
    assert best.mfu == pytest.approx(1.25 / 12)


def test_a_working_set_beyond_the_cache_moves_at_the_pace_of_memory() -> None:
    large = make_limits(work=make_work(working_set_bytes=10**9))
    assert found(large, 12e6).bounds[-1].memory_ns == pytest.approx(6e6)
    assert not found(make_limits(cache_bytes=None), 12e6).in_cache


def test_a_step_that_mixes_dtypes_is_bound_by_each_at_its_own_peak() -> None:
    mixed = make_work(flops_by_dtype={"bfloat16": 8 * 10**8, "float32": 2 * 10**8})
    own, best = found(make_limits(work=mixed), 12e6).bounds
    assert own.compute_ns == pytest.approx(1e6 + 2e6)
    assert own.flops_per_second == pytest.approx(1e9 / 3e-3)
    assert own.dtypes == ["bfloat16", "float32"]
    assert best.dtypes == ["bfloat16"]


@pytest.mark.parametrize(
    ("changes", "modes"),
    [
        ({}, [("float32", "highest", True), ("bfloat16", None, False)]),
        ({"precision": "medium"}, [("float32", "medium", True), ("bfloat16", None, False)]),
        ({"work": make_work(flops_by_dtype={"bfloat16": 10**9})}, [("bfloat16", None, True)]),
        # Not known: set by backend, a dtype without a ceiling, FLOPs that no dtype is known of.
        ({"precision": None}, UNKNOWN),
        ({"work": make_work(flops_by_dtype={"float64": 10**9})}, UNKNOWN),
        ({"work": make_work(flops_by_dtype={})}, UNKNOWN),
    ],
)
def test_the_modes_that_are_told(changes: dict[str, object], modes: list[tuple[str, str | None, bool]]) -> None:
    bounds = found(make_limits(**changes), 12e6).bounds
    assert [(one.dtypes[0], one.precision, one.as_it_runs) for one in bounds] == modes


def test_convolutions_are_judged_by_their_own_mode() -> None:
    """As on a GPU: 800 MFLOP of convolutions at 400 GFLOP/s, the matmuls at 100 GFLOP/s."""
    work = make_work(matmul_flops=2 * 10**8, convolution_flops_by_dtype={"float32": 8 * 10**8})
    own, _ = found(make_limits(work=work, convolution_precision="medium"), 12e6).bounds
    assert (own.dtypes, own.precision, own.convolution_precision) == (["float32"], "highest", "medium")
    assert own.as_it_runs
    assert own.compute_ns == pytest.approx(2e6 + 2e6)
    assert mode_text(own) == "float32 (convolutions at medium)"

    alike, _ = found(make_limits(work=work, convolution_precision="highest"), 12e6).bounds
    assert alike.compute_ns == pytest.approx(10e6)
    assert alike.convolution_precision is None
    only = make_work(matmul_flops=0, convolution_flops_by_dtype={"float32": 10**9})
    own, _ = found(make_limits(work=only, convolution_precision="medium"), 12e6).bounds
    assert own.compute_ns == pytest.approx(2.5e6)
    assert mode_text(own) == "float32 at medium"
    unknown = found(make_limits(work=work), 12e6).bounds
    assert [(one.dtypes[0], one.precision, one.as_it_runs) for one in unknown] == UNKNOWN


def test_a_mode_that_is_hardly_faster_is_not_told() -> None:
    peaks = [one for one in make_limits().ceilings if one.kind == "copy" or one.precision == "highest"]
    near = Ceiling(kind="matmul", dtype="float32", precision="medium", rows=1024, flops_per_second=110e9)
    assert len(found(make_limits(ceilings=[*peaks, near]), 12e6).bounds) == 1


def test_without_ceilings_work_or_time_there_is_no_distance() -> None:
    ceilings = make_limits().ceilings
    for kind in ("matmul", "copy"):
        assert distance(make_limits(ceilings=[one for one in ceilings if one.kind == kind]), 12e6) is None
    parts = ("parameter", "gradient", "optimizer_state", "activation", "batch")
    nothing = make_work(flops=0, flops_by_dtype={}, **{f"{part}_bytes": 0 for part in parts})
    assert distance(make_limits(work=nothing), 12e6) is None
    assert [distance(make_limits(), time_ns) for time_ns in (0.0, -1.0, float("nan"), float("inf"))] == [None] * 4


def test_a_step_without_matmuls_is_bound_by_memory() -> None:
    limits = make_limits(work=make_work(flops=0, flops_by_dtype={}))
    told = found(limits, 12e6)
    (only,) = told.bounds
    assert (only.bound_by, only.mfu, only.flops_per_second) == ("memory", 0, None)
    assert dict(limit_lines(told))["MFU"] == "no matrix product to judge by"


def test_a_step_below_a_bound_says_why() -> None:
    memory = found(with_bandwidths(cache=1e9, memory=1e9), 30e6)
    assert dict(limit_lines(memory))["bound"].endswith("0.500x that, since caches spare it a part of the traffic")
    compute = found(make_limits(), 5e6)
    assert "measure again" in dict(limit_lines(compute))["bound"]


@PROPERTY
@given(step_ns=POSITIVE, cache=POSITIVE, memory=POSITIVE)
def test_the_bound_times_the_ratio_is_the_step(step_ns: float, cache: float, memory: float) -> None:
    for bound in found(with_bandwidths(cache, memory), step_ns).bounds:
        assert bound.times_above * bound.bound_ns == pytest.approx(step_ns)
        assert bound.bound_ns == max(bound.compute_ns, bound.memory_ns)
        assert bound.mfu * bound.times_above <= 1 + 1e-9  # arithmetic alone never takes longer than the bound


@PROPERTY
@given(rates=st.tuples(POSITIVE, POSITIVE), cache=POSITIVE, fits=st.booleans())
def test_more_bandwidth_never_brings_a_step_closer_to_its_bound(
    rates: tuple[float, float], cache: float, fits: bool
) -> None:
    work = make_work(working_set_bytes=1 if fits else 10**12)
    slow, fast = (found(replace(with_bandwidths(cache, rate), work=work), 12e6).bounds for rate in sorted(rates))
    assert all(more.times_above >= less.times_above for less, more in zip(slow, fast, strict=True))


@PROPERTY
@given(st.tuples(*[st.integers(0, 10**12)] * 5))
def test_all_parts_are_moved(parts: tuple[int, ...]) -> None:
    names = ("parameter_bytes", "gradient_bytes", "optimizer_state_bytes", "activation_bytes", "batch_bytes")
    assert moved_bytes(make_work(**dict(zip(names, parts, strict=True)))) == sum(parts)
