"""The loop of a script: its shares, what it gains, and its ranks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from perftool.analysis.loop import LEAST_BLOCKS, last_rank, loop_shares, rank_times, script_report, whole_loop
from perftool.analysis.pairs import samples_per_second
from perftool.records import EXPLAIN, Block
from tests.sessions import make_block, make_launch, make_script, timed_session

MS = 10**6


def ranked(alone_ms: Sequence[Sequence[float]], steps: Sequence[int] = (4, 4)) -> list[Block]:
    """Blocks of steps of 10 ms, in each of which the ranks take so long before backward, per step."""
    return [
        replace(
            make_block(0, number, [10 * MS] * max(steps)),
            alone_ns=[round(ms * MS) * count for ms, count in zip(one, steps, strict=True)],
            rank_wall_ns=[10 * MS * count for count in steps],
            rank_steps=list(steps),
        )
        for number, one in enumerate(alone_ms)
    ]


def test_shares_are_of_the_whole_loop_and_the_largest_is_first() -> None:
    blocks = [
        replace(make_block(0, 0, [10 * MS] * 4), aside_ns={"checkpoint at a.py:9": 10 * MS}),
        replace(make_block(0, 1, [10 * MS] * 4), aside_ns={"evaluation at a.py:8": 110 * MS}),
    ]
    shares = {one.name: one.share for one in loop_shares(blocks)}
    assert shares == {"evaluation at a.py:8": pytest.approx(0.55), "checkpoint at a.py:9": pytest.approx(0.05)}
    assert next(iter(shares)) == "evaluation at a.py:8"


def test_the_own_part_of_a_step_that_something_came_with_is_a_step() -> None:
    """Four steps of 10 ms, one of which came with 40 ms of evaluation, are half of the loop."""
    block = replace(make_block(0, 0, [10 * MS] * 3), aside_ns={"evaluation": 40 * MS}, aside_steps=1)
    assert loop_shares([block])[0].share == pytest.approx(0.5)


def test_a_loop_of_steps_alone_has_no_other_shares() -> None:
    assert loop_shares([make_block(0, 0, [10 * MS])]) == []
    assert loop_shares([]) == []


@pytest.mark.parametrize(("share", "speedup", "gain"), [(0.72, 1.6, 1.37), (1.0, 1.6, 1.6), (0.5, 1.0, 1.0)])
def test_a_whole_loop_gains_less_than_its_steps(share: float, speedup: float, gain: float) -> None:
    assert whole_loop(share, speedup) == pytest.approx(gain, rel=0.002)


def test_only_the_baselines_plain_blocks_tell_of_the_loop() -> None:
    session = make_script(timed_session([({}, 10.0), ({"amp": "bf16"}, 5.0)]), aside_ms={"evaluation at a.py:8": 10.0})
    watched = replace(make_block(99, 0, [10 * MS]), aside_ns={"tracing": 10**12})
    session.launches.append(make_launch(99, 0, stage=EXPLAIN))
    session.blocks.append(watched)
    found = script_report(session)
    assert found is not None
    assert [one.name for one in found.beside] == ["evaluation at a.py:8"]
    assert found.step_share == pytest.approx(5 / 6, rel=0.05)
    assert found.optimizers == ["Adam"]
    assert found.steps == 4 * 10 * 4
    assert found.ranks == []


def test_a_workload_has_no_script_and_a_script_without_blocks_no_shares() -> None:
    session = timed_session([({}, 10.0)])
    assert script_report(session) is None
    empty = script_report(replace(make_script(session, aside_ms={}), blocks=[]))
    assert empty is not None
    assert empty.step_share is None


def test_each_rank_has_its_mean_step_by_its_own_steps() -> None:
    """The first evaluates for both, so it has fewer steps that are nothing else."""
    first, second = rank_times(ranked([(2, 6)] * 3, steps=(3, 4)))
    assert (first.step_ns, first.alone_ns) == (10 * MS, 2 * MS)
    assert (second.step_ns, second.alone_ns) == (10 * MS, 6 * MS)
    assert rank_times([make_block(0, 0, [10 * MS])]) == []


def test_the_rank_that_the_others_wait_for_is_named() -> None:
    found = last_rank(ranked([(2, 6)] * LEAST_BLOCKS))
    assert found is not None
    assert (found.rank, found.lag_ns) == (1, 4 * MS)


def test_of_more_ranks_the_lag_is_behind_the_one_before() -> None:
    found = last_rank(ranked([(2, 8, 5)] * LEAST_BLOCKS, steps=(4, 4, 4)))
    assert found is not None
    assert (found.rank, found.lag_ns) == (1, 3 * MS)


@pytest.mark.parametrize(
    "alone_ms",
    [
        [(2, 6)] * (LEAST_BLOCKS - 1),  # too few blocks
        [(2, 6), (6, 2)] * LEAST_BLOCKS,  # now the one, now the other
        [(2, 2.05)] * LEAST_BLOCKS,  # half a per cent of the step
        [],
    ],
)
def test_no_rank_is_named_without_evidence(alone_ms: Sequence[Sequence[float]]) -> None:
    assert last_rank(ranked(alone_ms)) is None


def test_steps_are_counted_once_for_all_ranks_and_samples_for_each() -> None:
    block = replace(make_block(0, 0, [10 * MS] * 4), samples=80)  # ten of each rank and step
    session = timed_session([({}, 10.0)])
    assert samples_per_second(make_script(session, aside_ms={}), [block]) == pytest.approx(2000)
    assert samples_per_second(make_script(session, aside_ms={}, loaders=[]), [block]) == pytest.approx(100)
    assert samples_per_second(session, []) is None
