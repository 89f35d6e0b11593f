"""Verdicts of a check, from scripted sessions of two sides."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perftool.analysis.gate import GATES, all_decided, decision, first_look, history_entry, judged, suspects, verdict
from perftool.analysis.summary import summarise
from perftool.records import CONFIRM, MEASURE, Check, Counters, GateVerdict, MetricCheck, Session, Side
from perftool.report.wording import check_answer
from tests.sessions import make_comparison, make_launch, timed_session

SIDES = [
    Side(name="main", reference="train.py:mine", settings={}, root="/a", folder="/a", commit="4c1d2e3f" * 5),
    Side(
        name="working tree",
        reference="train.py:mine",
        settings={},
        root="/b",
        folder="/b",
        commit="99" * 20,
        dirty=True,
    ),
]


def checked(before_ms: float, now_ms: float, generations: int = 4, confirmed_ms: float | None = None) -> Session:
    """A check of two sides whose steps take so long; confirmed in fresh launches where these are given."""
    session = replace(
        timed_session([({}, before_ms), ({}, now_ms)], command="check", generations=generations), sides=SIDES
    )
    if confirmed_ms is not None:
        again = timed_session(
            [({}, before_ms), ({}, confirmed_ms)], command="check", stage=CONFIRM, generations=2 * generations, seed=1
        )
        session.launches.extend(
            replace(one, launch=one.launch + 100, generation=one.generation + 100) for one in again.launches
        )
        session.blocks.extend(replace(one, launch=one.launch + 100, round=one.round + 10_000) for one in again.blocks)
    return session


def metric(check: Check, name: str = "throughput") -> MetricCheck:
    [found] = [one for one in check.metrics if one.metric == name]
    return found


def make_counters(variant: int, **changes: int | None) -> Counters:
    usual: dict[str, int | None] = {
        "parameters": 100,
        "flops_per_step": 1000,
        "operations_per_step": 50,
        "graph_breaks": 0,
        "compiled_graphs": 0,
    }
    return Counters(variant=variant, calls=20, **{**usual, **changes})  # type: ignore[arg-type]


def test_the_same_code_is_no_regression() -> None:
    session = checked(10, 10)
    check = judged(session)
    assert check.outcome == "passed"
    assert metric(check).verdict == "no regression"
    assert all_decided(first_look(session))
    assert not suspects(first_look(session))


def test_a_slower_step_is_a_suspect_and_a_regression_once_it_is_confirmed() -> None:
    first = checked(10, 11.5)
    assert "throughput" in suspects(first_look(first))
    assert judged(first).outcome == "undecided"
    assert "not confirmed" in str(metric(judged(first)).reason)
    check = judged(checked(10, 11.5, confirmed_ms=11.5))
    assert check.outcome == "regression"
    assert metric(check).verdict == "regression"
    found = metric(check).confirmation
    assert found is not None
    assert found.pairs == 2 * 40


def test_what_fresh_launches_do_not_show_is_no_regression() -> None:
    check = judged(checked(10, 11.5, confirmed_ms=10))
    assert check.outcome == "passed"
    assert metric(check).reason == "regression at the first look, no regression in fresh launches"


def test_what_only_the_confirmation_calls_changed_is_undecided() -> None:
    assert metric(judged(checked(10, 10, confirmed_ms=11.5))).verdict == "undecided"


def test_a_faster_step_is_an_improvement_and_passes() -> None:
    check = judged(checked(10, 8, confirmed_ms=8))
    assert check.outcome == "passed"
    assert metric(check).verdict == "improvement"


def test_nothing_is_said_before_the_first_look() -> None:
    session = checked(10, 11.5, generations=3)
    assert not all_decided(first_look(session))
    assert judged(session).outcome == "undecided"


def test_nothing_measured_is_undecided() -> None:
    session = replace(checked(10, 10), blocks=[], launches=[])
    check = judged(session)
    assert check.outcome == "undecided"
    assert metric(check).verdict == "not measured"


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.93, 0.985, "regression"),
        (0.90, 0.995, "undecided"),
        (0.97, 1.10, "no regression"),
        (0.95, 1.02, "undecided"),
        (0.963, 0.992, "undecided"),  # surely not worse by the limit, but it looks worse by half of it
        (1.03, 1.20, "improvement"),
    ],
)
def test_verdicts_are_of_the_whole_interval(low: float, high: float, told: GateVerdict) -> None:
    found = make_comparison((low + high) / 2, (high - low) / 2, margin=0.01)
    assert verdict("throughput", found) == told


@given(st.floats(0.5, 2.0), st.floats(0.001, 0.3), st.sampled_from(sorted(GATES)))
def test_a_verdict_mirrored_is_its_opposite(ratio: float, half: float, name: str) -> None:
    """What is a regression one way is an improvement the other way, and never both."""
    opposite = {"regression": "improvement", "improvement": "regression"}
    found = make_comparison(ratio, margin=GATES[name].margin)
    one = replace(found, low=ratio * (1 - half), high=ratio / (1 - half))
    other = replace(found, ratio=1 / ratio, low=(1 - half) / ratio, high=1 / (ratio * (1 - half)))
    if verdict(name, one) in opposite:
        assert verdict(name, other) == opposite[verdict(name, one)]


def test_counted_figures_are_equal_or_not() -> None:
    session = replace(checked(10, 10), counters=[make_counters(0), make_counters(1, operations_per_step=51)])
    check = judged(session)
    assert check.outcome == "regression"
    assert metric(check, "operations_per_step").verdict == "regression"
    assert metric(check, "flops_per_step").verdict == "no regression"
    assert not [one for one in check.metrics if one.metric == "graph_breaks"]  # neither side has any


def test_what_cannot_be_counted_is_told_with_its_reason() -> None:
    one = replace(make_counters(1, operations_per_step=None), reason="compiled")
    check = judged(replace(checked(10, 10), counters=[make_counters(0), one]))
    assert check.outcome == "passed"
    assert metric(check, "operations_per_step").reason == "compiled"


def test_more_memory_is_a_regression() -> None:
    session = checked(10, 10, confirmed_ms=10)
    grown = [replace(one, peak_host_bytes=600_000_000) if one.variant else one for one in session.launches]
    assert metric(judged(replace(session, launches=grown)), "peak_host").verdict == "regression"


def test_tails_that_stay_open_do_not_leave_the_check_undecided() -> None:
    check = judged(checked(10, 10))
    open_ = replace(metric(check, "step_p95"), verdict="undecided")
    assert open_.is_open
    assert not open_.required


def test_sides_are_named_with_their_commits() -> None:
    check = judged(checked(10, 10))
    assert check.against == "main (4c1d2e3)"
    assert check.now == "working tree (9999999 with changes)"


def test_a_summary_has_the_check() -> None:
    session = checked(10, 10)
    assert summarise(session).check == judged(session)
    assert summarise(timed_session([({}, 10)])).check is None


def test_a_point_of_the_history() -> None:
    session = checked(10, 11.5, confirmed_ms=11.5)
    entry = history_entry(session, judged(session))
    assert entry is not None
    assert entry.against == SIDES[0].commit
    assert entry.outcome == "regression"
    assert entry.log_ratios["throughput"] == pytest.approx(log(10 / 11.5), abs=0.02)
    assert history_entry(replace(session, blocks=[]), judged(replace(session, blocks=[]))) is None


def test_a_launch_beyond_the_look_does_not_count_for_it() -> None:
    session = checked(10, 10)
    late = make_launch(999, 1, generation=999, stage="other")
    assert judged(replace(session, launches=[*session.launches, late])) == judged(session)
    assert {one.stage for one in session.launches} == {MEASURE}


def test_an_improvement_fails_only_where_it_is_strict() -> None:
    better = judged(checked(10, 8.5, confirmed_ms=8.5))
    assert metric(better).verdict == "improvement"
    assert decision(better, strict=False) == "passed"
    assert decision(better, strict=True) == "regression"
    assert decision(judged(checked(10, 10)), strict=True) == "passed"
    assert decision(judged(checked(10, 11.5)), strict=False) == "undecided"


def test_a_side_that_could_not_be_measured_to_the_end_is_told() -> None:
    session = checked(10, 10)
    session.launches.append(make_launch(900, 1, status="failed", reason="the loss became nan"))
    found = judged(session)
    assert found.outcome == "undecided"
    assert found.failed == "working tree: the loss became nan"
    assert "not measured to the end against main (4c1d2e3): working tree: the loss" in check_answer(found)
