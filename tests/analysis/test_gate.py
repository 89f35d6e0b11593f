"""Verdicts of a check, from scripted sessions of two sides."""

from __future__ import annotations

import random
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from perftool.analysis.gate import (
    ALPHAS,
    GATES,
    all_decided,
    decision,
    first_look,
    history_entry,
    judged,
    stage_comparison,
    suspects,
    verdict,
)
from perftool.analysis.history import series_of
from perftool.analysis.pairs import pair_effects
from perftool.analysis.stats import interval, launch_effects
from perftool.analysis.summary import summarise
from perftool.records import CONFIRM, MEASURE, Check, Counters, GateVerdict, MetricCheck, Session, Side
from perftool.report import checks
from tests.sessions import make_comparison, make_launch, make_script, timed_session

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
    session = checked(10, 10)
    drawn = random.Random(0)
    # One step of a block in three takes far longer, but for the same total.
    blocks = [
        replace(one, step_ns=[one.wall_ns - 3 * one.wall_ns // 8, *[one.wall_ns // 8] * 3])
        if drawn.random() < 0.3
        else one
        for one in session.blocks
    ]
    check = judged(replace(session, blocks=blocks))
    assert metric(check, "step_p95").verdict == "undecided"
    assert metric(check).verdict == "no regression"
    assert check.outcome == "passed"


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


def test_a_command_is_in_the_history_as_it_was_typed() -> None:
    """Also where it looks like the reference of a file."""
    command = ["python", "train.py", "--data", "s3://a/b:c"]
    session = make_script(checked(10, 10), aside_ms={}, command=command, loaders=[])
    sides = [replace(one, reference=" ".join(command)) for one in session.sides]
    entry = history_entry(replace(session, sides=sides), judged(session))
    assert entry is not None
    assert entry.workload == "python train.py --data s3://a/b:c"
    [series] = series_of([entry], "throughput")
    assert ", steps/s, 1 check" in checks.history_headline(series, [])


def test_launches_for_something_else_do_not_count_for_a_look() -> None:
    session = checked(10, 10)
    other = timed_session([({}, 10), ({}, 20)], command="check", stage="other", seed=2)
    launches = [replace(one, launch=one.launch + 500, generation=one.generation + 500) for one in other.launches]
    blocks = [replace(one, launch=one.launch + 500, round=one.round + 50_000) for one in other.blocks]
    both = replace(session, launches=[*session.launches, *launches], blocks=[*session.blocks, *blocks])
    assert judged(both) == judged(session)
    looked_at = replace(both, launches=[replace(one, stage=MEASURE) for one in both.launches])
    assert judged(looked_at) != judged(session)  # so these launches would tell


# --------------------------------------------------------------------------------------- what a confirmation has to be


def test_a_confirmation_has_all_of_its_alpha() -> None:
    session = checked(10, 11.5, confirmed_ms=11.5)
    found = metric(judged(session)).confirmation
    assert found is not None
    matrix = pair_effects(session, "throughput", [1], stages={CONFIRM})
    [effect] = launch_effects(matrix.d, matrix.half_widths)
    assert effect is not None
    low, high = interval(effect, ALPHAS[CONFIRM])
    assert (found.low, found.high) == pytest.approx((exp(-high), exp(-low)))


def test_a_first_look_has_its_share_of_alpha() -> None:
    [effect] = launch_effects(np.full((1, 4), 0.1), np.full((1, 4), 0.01))
    assert effect is not None
    low, high = interval(effect, 0.2 * ALPHAS[MEASURE])
    found = stage_comparison("throughput", effect, 240, MEASURE)
    assert (found.low, found.high) == pytest.approx((exp(-high), exp(-low)))


@pytest.mark.parametrize(("now_ms", "confirmed_ms"), [(11.5, 11.5), (11.5, 10.0)])
def test_a_confirmation_that_was_cut_short_decides_nothing(now_ms: float, confirmed_ms: float) -> None:
    session = checked(10, now_ms, confirmed_ms=confirmed_ms)
    kept = [one for one in session.launches if one.stage == MEASURE or one.generation < 104]
    short = replace(session, launches=kept)
    check = judged(short)
    assert metric(check).verdict == "undecided"
    assert metric(check).reason == (
        "regression at the first look, and the confirmation ended early, after 4 of 8 launches"
    )
    assert check.outcome == "undecided"
    assert history_entry(short, check) is None


# --------------------------------------------------------------------------------------- what was not measured is told


def test_several_steps_per_call_have_no_tails_and_that_is_told() -> None:
    session = checked(10, 10)
    check = judged(replace(session, blocks=[replace(one, step_ns=[], wait_ns=[]) for one in session.blocks]))
    for name in ("step_p95", "jitter"):
        assert metric(check, name).verdict == "not measured"
        assert "no times of single steps" in str(metric(check, name).reason)
    assert check.outcome == "passed"


def test_memory_that_no_launch_tells_leaves_the_check_undecided() -> None:
    session = checked(10, 10)
    check = judged(replace(session, launches=[replace(one, peak_host_bytes=None) for one in session.launches]))
    assert metric(check, "peak_host").verdict == "not measured"
    assert "none did" in str(metric(check, "peak_host").reason)
    assert check.outcome == "undecided"


def test_a_cpu_has_no_device_memory_to_be_missed() -> None:
    session = checked(10, 10)
    assert "peak_device" not in [one.metric for one in judged(session).metrics]
    on_gpu = replace(session, machine=replace(session.machine, device="cuda:0"))
    assert metric(judged(on_gpu), "peak_device").verdict == "not measured"


# --------------------------------------------------------------------------------------------------- points of history


def test_a_check_that_ended_early_is_no_point_of_the_history() -> None:
    early, unconfirmed = checked(10, 10, generations=1), checked(10, 11.5)
    assert history_entry(early, judged(early)) is None
    assert history_entry(unconfirmed, judged(unconfirmed)) is None
    whole = checked(10, 10)
    assert history_entry(whole, judged(whole)) is not None


@pytest.mark.parametrize(
    ("typed", "folder", "place", "said"),
    [
        ("./train.py:mine", "/b", "train.py", "train.py:mine"),
        ("train.py:mine", "/b/sub", "train.py", "sub/train.py:mine"),
        ("../train.py:mine", "/b/sub", "../train.py", "train.py:mine"),
        ("package.train:mine", "/b/sub", "package.train", "package.train:mine"),
    ],
)
def test_a_history_names_workloads_from_the_root(typed: str, folder: str, place: str, said: str) -> None:
    session = checked(10, 10)
    now = replace(SIDES[1], reference=f"{place}:mine", folder=folder)
    facts = replace(session.workload, reference=typed)
    moved = replace(session, workload=facts, sides=[SIDES[0], now])
    entry = history_entry(moved, judged(moved))
    assert entry is not None
    assert entry.workload == said


def test_a_history_keeps_the_settings_of_the_pinned_side() -> None:
    session = checked(10, 10)
    session = replace(session, sides=[replace(SIDES[0], settings={"amp": "bf16"}), SIDES[1]])
    entry = history_entry(session, judged(session))
    assert entry is not None
    assert entry.settings == {"amp": "bf16"}


def test_an_improvement_fails_only_where_it_is_strict() -> None:
    better = judged(checked(10, 8.5, confirmed_ms=8.5))
    assert metric(better).verdict == "improvement"
    assert decision(better, strict=False) == "passed"
    assert decision(better, strict=True) == "regression"
    assert decision(judged(checked(10, 10)), strict=True) == "passed"
    assert decision(judged(checked(10, 11.5)), strict=False) == "undecided"


def test_what_got_better_is_named_beside_what_is_undecided() -> None:
    session = checked(10, 11.5)
    session.counters.extend([make_counters(0), make_counters(1, operations_per_step=49)])
    found = judged(session)
    assert decision(found, strict=True) == "regression"
    told = checks.answer(found)
    assert told.startswith("undecided against main (4c1d2e3): samples/s")
    assert "better, is that meant? operations" in told


def test_a_side_that_could_not_be_measured_to_the_end_is_told() -> None:
    session = checked(10, 10)
    session.launches.append(make_launch(900, 1, status="failed", reason="the loss became nan"))
    found = judged(session)
    assert found.outcome == "undecided"
    assert found.failed == "working tree: the loss became nan"
    assert "not measured to the end against main (4c1d2e3): working tree: the loss" in checks.answer(found)
