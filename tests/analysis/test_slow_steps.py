from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from perftool.analysis.slow_steps import by_cause, period, slow_steps, watched, worst
from perftool.records import (
    FAULTS,
    GARBAGE,
    LOADER,
    RETRY,
    RUN_QUEUE,
    SLOWER_CORE,
    STEAL,
    UNKNOWN,
    WatchedBlock,
)

MS = 1_000_000


def block(
    step_ms: Sequence[float], causes_ms: dict[str, Sequence[float]] | None = None, first_call: int = 0
) -> WatchedBlock:
    """Steps of so many ms, with what each cause took of them."""
    return WatchedBlock(
        launch=1,
        round=0,
        first_call=first_call,
        started_ns=0,
        samples=len(step_ms),
        step_ns=[round(ms * MS) for ms in step_ms],
        phase_ns={},
        cause_ns={name: [round(ms * MS) for ms in values] for name, values in (causes_ms or {}).items()},
    )


def causes(*blocks: WatchedBlock) -> list[str]:
    return [step.cause for step in slow_steps(watched(blocks))]


def test_no_steps_are_no_slow_steps() -> None:
    assert slow_steps(watched([])) == []
    assert slow_steps(watched([block([])])) == []


def test_even_steps_are_not_slow() -> None:
    assert causes(block([10, 10, 14.9, 10, 10])) == []


def test_a_slow_step_has_the_cause_that_took_most_beyond_its_usual() -> None:
    # Data take 4 ms of every step, so the 5 ms of the slow one explain 1 ms of it only.
    steps = block([10, 10, 30, 10, 10], {LOADER: [4, 4, 5, 4, 4], GARBAGE: [0, 0, 18, 0, 0]})
    assert causes(steps) == [GARBAGE]


def test_what_the_known_causes_do_not_explain_is_unknown() -> None:
    assert causes(block([10, 10, 30, 10, 10], {GARBAGE: [0, 0, 9, 0, 0]})) == [UNKNOWN]
    assert causes(block([10, 10, 30, 10, 10])) == [UNKNOWN]


def test_a_cause_explains_no_less_than_what_nothing_explains() -> None:
    steps = block([10, 10, 30, 10, 10], {one: [0, 0, 4, 0, 0] for one in (GARBAGE, FAULTS, LOADER)})
    assert causes(steps) == [UNKNOWN]


def test_causes_that_explain_it_together_name_the_larger() -> None:
    assert causes(block([10, 10, 30, 10, 10], {GARBAGE: [0, 0, 8, 0, 0], FAULTS: [0, 0, 7, 0, 0]})) == [GARBAGE]


def test_steal_counts_only_for_what_nothing_else_explains() -> None:
    # Ticks of 10 ms, of all cores: one of them fell into a step that the collector had made slow.
    both = block([10, 10, 30, 10, 10], {GARBAGE: [0, 0, 19, 0, 0], STEAL: [0, 0, 20, 0, 0]})
    alone = block([10, 10, 30, 10, 10], {STEAL: [0, 0, 20, 0, 0]})
    assert causes(both) == [GARBAGE]
    assert causes(alone) == [STEAL]


def test_a_step_is_slow_where_its_core_is() -> None:
    slowed = replace(block([10, 10, 17, 10, 10]), fixed_work_ns=[20, 20, 36, 21, 20])
    [step] = slow_steps(watched([slowed]))
    assert (step.cause, step.cause_ns) == (SLOWER_CORE, 7 * MS)  # no more than it lost


def test_a_slower_core_explains_no_more_than_its_share_of_the_usual_step() -> None:
    # A core of 0.6 times its speed makes 17 ms of 10; the other 23 ms have a cause of their own.
    slowed = replace(block([10, 10, 40, 10, 10]), fixed_work_ns=[20, 20, 34, 20, 20])
    assert causes(slowed) == [UNKNOWN]


def test_the_noise_of_fixed_work_is_no_slower_core() -> None:
    even = replace(block([10, 10, 16, 10, 10]), fixed_work_ns=[20, 20, 21, 20, 20])
    assert watched([even]).causes[SLOWER_CORE].tolist() == [0] * 5


def test_steps_began_when_they_did() -> None:
    told = replace(block([10, 10]), started_ns=100, began_ns=[3, 30])
    after = replace(block([10, 10]), started_ns=10 * MS)  # of older sessions: one after the other
    assert watched([told, after]).started_ns.tolist() == [3, 30, 10 * MS - 100, 20 * MS - 100]


def test_a_retry_is_believed_where_nothing_is_measured() -> None:
    steps = block([10, 10, 30, 10, 10])
    with_retry = WatchedBlock(
        launch=1,
        round=0,
        first_call=0,
        started_ns=0,
        samples=5,
        step_ns=steps.step_ns,
        phase_ns={},
        counts={RETRY: [0, 0, 1, 0, 0]},
    )
    assert causes(with_retry) == [RETRY]


def test_a_cause_that_one_block_lacks_is_nothing_there() -> None:
    first = block([10] * 5)
    second = block([10, 10, 10, 10, 40], {RUN_QUEUE: [0, 0, 0, 0, 30]}, first_call=5)
    [step] = slow_steps(watched([first, second]))
    assert (step.cause, step.call, step.step_ns, step.cause_ns) == (RUN_QUEUE, 9, 40 * MS, 30 * MS)


def test_causes_are_told_by_the_time_they_lost() -> None:
    steps = watched(
        [
            block(
                [10] * 10 + [20, 20, 60],
                {GARBAGE: [0] * 10 + [10, 10, 0], FAULTS: [0] * 12 + [50]},
            )
        ]
    )
    found = by_cause(slow_steps(steps), steps, None)
    assert [(one.cause, one.steps, one.worst_ns) for one in found] == [(FAULTS, 1, 60 * MS), (GARBAGE, 2, 20 * MS)]
    assert found[0].share_of_slow == pytest.approx(1 / 3)
    assert found[0].share_of_time == pytest.approx(50 / 200)
    assert [step.step_ns // MS for step in worst(slow_steps(steps))] == [60, 20, 20]


def test_a_regular_stall_has_a_period() -> None:
    assert period(range(0, 640, 64), None) == "every 64 steps"
    assert period([0, 64, 192, 256, 448], None) == "every 64 steps", "steps between blocks are not watched"
    assert period(range(0, 640, 64), 64) == "every epoch"
    assert period(range(0, 640, 64), 32) == "every epoch", "not each epoch's was watched"


def test_irregular_stalls_have_none() -> None:
    assert period([3, 40, 55, 131, 160, 200, 291], None) is None
    assert period([5, 6, 7, 8, 9], None) is None, "neighbours are one stall"
    assert period([0, 64], None) is None, "twice may be chance"


def test_a_short_period_needs_more_stalls_that_fit() -> None:
    assert period(range(0, 400, 4), None) == "every 4 steps"
    assert period(range(0, 400, 8), 8) == "every epoch"
    assert period(range(0, 40, 4), None) is None, "ten of them may be chance"
    assert period([4 * at + (at % 7 == 0) for at in range(100)], None) is None


@settings(deadline=None, derandomize=True)
@given(
    st.lists(st.floats(1, 100), min_size=1, max_size=60),
    st.lists(st.floats(0, 100), min_size=60, max_size=60),
    st.lists(st.floats(0, 100), min_size=60, max_size=60),
)
def test_every_slow_step_has_one_cause_and_none_explains_more_than_was_lost(
    step_ms: Sequence[float], garbage: Sequence[float], faults: Sequence[float]
) -> None:
    steps = watched([block(step_ms, {GARBAGE: garbage[: len(step_ms)], FAULTS: faults[: len(step_ms)]})])
    slow = slow_steps(steps)
    found = by_cause(slow, steps, None)
    assert sum(one.steps for one in found) == len(slow)
    assert sum(one.share_of_time for one in found) <= 1
    for step in slow:
        assert step.cause_ns is None or 0 < step.cause_ns < step.step_ns
