"""Stored expectations: what they hold, when they may be compared, and how little two hours tell."""

from __future__ import annotations

from math import exp

import pytest
from msgspec.structs import replace

from perftool.analysis.baseline import LEAST_LAUNCHES, stored, uncountable, unlike, unstorable
from perftool.analysis.gate import is_check, judged
from perftool.measure.calibration import CALIBRATION
from perftool.records import Session, Side, StoredBaseline
from tests.analysis.test_gate import make_counters, metric
from tests.sessions import timed_session

SIDES = [
    Side(name="calibration kernels", reference=CALIBRATION, settings={}),
    Side(name="working tree", reference="train.py:mine", settings={}),
]


def measured(step_ms: float, generations: int = 8, seed: int = 0) -> Session:
    """A workload beside calibration kernels of 10 ms."""
    session = timed_session([({}, 10), ({}, step_ms)], command="check", generations=generations, seed=seed)
    return replace(session, sides=SIDES, counters=[make_counters(1)])


def before(step_ms: float = 20) -> StoredBaseline:
    found = stored(measured(step_ms))
    assert found is not None
    return found


def test_it_holds_ratios_and_no_milliseconds() -> None:
    found = before()
    assert exp(found.metrics["throughput"].log_values[0]) == pytest.approx(2, rel=0.05)
    assert found.counters is not None


def test_few_launches_are_not_stored() -> None:
    few = measured(20, generations=LEAST_LAUNCHES - 1)
    assert stored(few) is None
    assert "only 4 of at least 5 launches" in str(unstorable(few))


def test_launches_that_differ_severalfold_are_not_stored() -> None:
    session = measured(20)
    assert unstorable(session) is None
    wild = {one.launch for one in session.launches if one.variant == 1 and one.generation == 0}
    blocks = [
        replace(one, wall_ns=5 * one.wall_ns, step_ns=[5 * ns for ns in one.step_ns]) if one.launch in wild else one
        for one in session.blocks
    ]
    assert "differ 5" in str(unstorable(replace(session, blocks=blocks)))


def test_the_same_is_no_regression() -> None:
    check = judged(replace(measured(20, seed=1), expected=before()))
    assert metric(check).verdict == "no regression"
    assert check.outcome == "passed"


def test_much_slower_is_a_suspect() -> None:
    check = judged(replace(measured(30, seed=1), expected=before()))
    assert metric(check).verdict == "undecided"
    assert "regression at the first look" in str(metric(check).reason)


def test_a_fifth_slower_cannot_be_told() -> None:
    """Sessions of the same training are nearly as far apart."""
    assert metric(judged(replace(measured(24, seed=1), expected=before()))).verdict == "undecided"


def test_another_machine_leaves_only_the_counters() -> None:
    session = replace(measured(20), expected=replace(before(), machine={"processor": "another"}))
    check = judged(session)
    assert check.outcome == "undecided"
    assert "another machine (processor another" in str(metric(check).reason)
    assert metric(check, "parameters").verdict == "no regression"
    assert session.expected is not None
    assert unlike(session.expected, session.machine) is not None


@pytest.mark.parametrize(
    ("stored_on", "words"),
    [
        ({"torch": "2.11.0"}, "counted by torch 2.11.0, here 2.13.0"),
        ({"device": "NVIDIA H100"}, "counted on NVIDIA H100, here on cpu"),
    ],
)
def test_work_that_another_torch_or_device_counted_is_not_compared(stored_on: dict[str, str], words: str) -> None:
    then = before()
    then = replace(then, machine={**then.machine, **stored_on})
    session = replace(measured(20), expected=then, counters=[make_counters(1, operations_per_step=51)])
    check = judged(session)
    for name in ("operations_per_step", "flops_per_step"):
        assert metric(check, name).verdict == "not measured"
        assert words in str(metric(check, name).reason)
    assert metric(check, "parameters").verdict == "no regression"
    assert check.outcome == "undecided"
    larger = replace(session, counters=[make_counters(1, parameters=101)])
    assert judged(larger).outcome == "regression"


def test_two_kinds_of_gpu_count_alike() -> None:
    then = replace(before(), machine={"device": "NVIDIA H100"})
    session = measured(20)
    gpu = replace(session.machine, device="cuda:0", device_name="NVIDIA A100")
    assert uncountable(then, gpu) is None
    assert unlike(then, gpu) is not None


def test_a_metric_of_too_few_stored_launches_says_so() -> None:
    then = before()
    few = replace(then.metrics["throughput"], log_values=[0.7] * (LEAST_LAUNCHES - 1))
    check = judged(replace(measured(20), expected=replace(then, metrics={"throughput": few})))
    assert metric(check).verdict == "not measured"
    assert "the baseline has 4 launches of it" in str(metric(check).reason)
    assert "peak_host" not in [one.metric for one in check.metrics]


def test_without_a_revision_or_expectations_there_is_nothing_to_judge() -> None:
    assert not is_check(measured(20))
    assert is_check(replace(measured(20), expected=before()))
