from __future__ import annotations

import pytest
from msgspec.structs import replace

from perftool.analysis.explain import bound_by, distortion, epoch_calls, explained
from perftool.records import BACKWARD, FORWARD, WAIT, WHOLE, Block, Session, WatchedBlock
from tests.measure.fakes import WORKLOAD, make_session


def watched(step_ns: list[int], round_: int = 0, **columns: object) -> WatchedBlock:
    return WatchedBlock(
        launch=1,
        round=round_,
        first_call=0,
        started_ns=0,
        samples=columns.pop("samples", len(step_ns)),  # type: ignore[arg-type]
        step_ns=step_ns,
        phase_ns=columns.pop("phase_ns", {}),  # type: ignore[arg-type]
        **columns,  # type: ignore[arg-type]
    )


def plain(step_ns: int, round_: int) -> Block:
    return Block(
        launch=1, round=round_, position=0, started_ns=0, wall_ns=3 * step_ns, steps=3, samples=3, step_ns=[step_ns] * 3
    )


def with_blocks(*blocks: WatchedBlock, plain_blocks: list[Block] | None = None) -> Session:
    return replace(make_session(), watched_blocks=list(blocks), blocks=plain_blocks or [])


def test_what_was_not_watched_is_not_explained() -> None:
    assert explained(make_session()) is None
    assert explained(with_blocks(watched([]))) is None


def test_phases_are_shares_of_all_watched_steps_in_their_order() -> None:
    first = watched([10, 10], phase_ns={WAIT: [2, 2], FORWARD: [3, 3], BACKWARD: [5, 5]})
    second = watched([20], round_=1, phase_ns={WAIT: [12], FORWARD: [3], BACKWARD: [5]})
    found = explained(with_blocks(first, second))
    assert found is not None
    assert [(one.name, one.share) for one in found.phases] == [(WAIT, 0.4), (FORWARD, 0.225), (BACKWARD, 0.375)]
    assert found.phases[0].step_ns == pytest.approx(16 / 3)
    assert (found.steps, found.median_ns) == (3, 10)


def test_distortion_compares_blocks_of_the_same_round() -> None:
    # The machine is twice as slow in the second half, for both.
    pairs = [(100, 102), (100, 104), (200, 204), (200, 208)]
    blocks = [watched([slower] * 3, number) for number, (_, slower) in enumerate(pairs)]
    session = with_blocks(*blocks, plain_blocks=[plain(time, number) for number, (time, _) in enumerate(pairs)])
    found = distortion(session)
    assert found is not None
    assert found.low < found.ratio < found.high
    assert found.ratio == pytest.approx(1.03, abs=0.001)
    assert distortion(with_blocks(*blocks)) is None


@pytest.mark.parametrize(("issued", "expected"), [(95, "launches"), (70, None), (30, "device")])
def test_who_waits_for_whom_on_a_gpu(issued: int, expected: str | None) -> None:
    assert bound_by([watched([100] * 5, dispatch_ns=[issued] * 5)]) == expected


def test_a_host_that_a_full_queue_holds_up_is_ahead_and_not_slow() -> None:
    ahead = [True, True, True, False, True]
    assert bound_by([watched([100] * 5, dispatch_ns=[95] * 5, host_ahead=ahead)]) == "device"
    assert bound_by([watched([100] * 5, dispatch_ns=[95] * 5, host_ahead=[False] * 5)]) == "launches"


def test_a_cpu_issues_nothing() -> None:
    assert bound_by([watched([100] * 5)]) is None


def test_an_epoch_is_known_from_the_rows_and_what_a_call_takes_of_them() -> None:
    session = with_blocks(watched([10] * 4, samples=4 * 30))  # 1000 rows
    assert epoch_calls(session) == 34
    assert epoch_calls(replace(session, workload=replace(WORKLOAD, drop_last=True))) == 33
    assert epoch_calls(replace(session, workload=replace(WORKLOAD, dataset_rows=None))) is None
    assert epoch_calls(replace(session, workload=replace(WORKLOAD, batch_size=None))) is None


def test_several_steps_in_a_call_are_told_per_step() -> None:
    block = watched([1000, 1000], steps_per_call=10, phase_ns={WAIT: [200, 200], WHOLE: [800, 800]})
    found = explained(with_blocks(block, plain_blocks=[plain(100, 0)]))
    assert found is not None
    assert (found.steps, found.median_ns) == (20, 100)
    assert [(one.name, one.step_ns) for one in found.phases] == [(WAIT, 20), (WHOLE, 80)]
