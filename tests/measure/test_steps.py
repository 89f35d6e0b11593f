"""The steps of a script's processes as one block."""

from __future__ import annotations

from perftool.measure.messages import Steps
from perftool.measure.steps import block_of
from perftool.records import BlockLabels

MS = 1_000_000


def steps(step_ms: list[int], asides: list[str | None] | None = None, samples: int = 8) -> Steps:
    count = len(step_ms)
    return Steps(
        launch=1, round=2, position=0, started_ns=5, step_ns=[ms * MS for ms in step_ms], wait_ns=[MS] * count,
        alone_ns=[2 * MS] * count, samples=[samples] * count, asides=asides or [None] * count, labels=BlockLabels(),
    )  # fmt: skip


def test_what_is_no_step_stands_beside_the_block() -> None:
    block = block_of([steps([10, 90, 10], [None, "evaluation at train.py:9", None])])
    assert (block.wall_ns, block.steps, block.samples) == (20 * MS, 2, 16)
    assert block.step_ns == [10 * MS, 10 * MS]
    assert (block.aside_ns, block.aside_steps) == ({"evaluation at train.py:9": 80 * MS}, 1)
    assert block.rank_wall_ns == []


def test_where_nothing_is_but_a_step_all_are() -> None:
    block = block_of([steps([10, 12], ["evaluation at train.py:9"] * 2)])
    assert (block.wall_ns, block.steps, block.aside_ns) == (22 * MS, 2, {})


def test_ranks_go_as_the_slowest_and_learn_from_all_samples() -> None:
    block = block_of([steps([10] * 4), steps([12] * 4)])
    assert (block.wall_ns, block.samples, block.steps) == (48 * MS, 64, 4)
    assert (block.rank_wall_ns, block.rank_steps) == ([40 * MS, 48 * MS], [4, 4])
    assert block.alone_ns == [8 * MS, 8 * MS]


def test_an_evaluation_of_one_rank_is_a_step_of_none() -> None:
    block = block_of([steps([10, 90, 10], [None, "evaluation", None]), steps([10, 90, 10])])
    assert (block.wall_ns, block.steps, block.aside_ns) == (20 * MS, 2, {"evaluation": 80 * MS})
