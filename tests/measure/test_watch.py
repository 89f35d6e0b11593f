"""Watching a real training in this process: what is marked and counted, and that nothing else changes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from perftool.measure.probes.watch import Marks, Watcher, _with_forks, fault_ns, watch_training, with_marks
from perftool.records import (
    BACKWARD,
    FAULTS,
    FORWARD,
    GARBAGE,
    LOADER,
    OPTIMIZER,
    REST,
    WAIT,
    WHOLE,
    WORKER_START,
    WatchedBlock,
)
from perftool.scenario import discover, plan_of
from perftool.training import Plan, Training
from perftool.workload import Batch, Workload

SLEEP_NS = 20_000_000
HALF = SLEEP_NS // 2


class Rows(Dataset[torch.Tensor]):
    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> torch.Tensor:
        self.act(row)
        return torch.ones(4)


def training_of(
    in_loss: Callable[[], None] = lambda: None, in_row: Callable[[int], None] = lambda _: None
) -> tuple[Plan, Watcher]:
    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        in_loss()
        value: torch.Tensor = model(batch).square().mean()
        return value

    workload = Workload(
        model=lambda: nn.Linear(4, 1),
        dataset=lambda: Rows(in_row),
        loss=loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=4,
        shuffle=False,
    )
    return plan_of(workload, {}, discover(), device="cpu", seed=0), Watcher("cpu")


def watched(plan: Plan, watcher: Watcher, steps: int = 4) -> WatchedBlock:
    training = Training(with_marks(plan, watcher.marks))
    training.step(training.fetch())
    training.step(training.fetch())
    return WatchedBlock(launch=3, round=5, first_call=2, **watch_training(watcher, training, steps))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Watching hooks into this process, which is usually a worker's own."""
    make, callbacks = DataLoader._get_iterator, list(gc.callbacks)
    yield
    DataLoader._get_iterator = make  # type: ignore[method-assign]
    gc.callbacks[:] = callbacks


def test_phases_add_up_to_the_step() -> None:
    block = watched(*training_of())
    assert (block.launch, block.round, block.first_call, block.samples) == (3, 5, 2, 16)
    assert set(block.phase_ns) == {WAIT, REST, FORWARD, BACKWARD, OPTIMIZER}
    for at, step_ns in enumerate(block.step_ns):
        parts_ns = sum(column[at] for column in block.phase_ns.values())
        assert parts_ns <= step_ns, "phases lie within the step"
        assert parts_ns >= 0.5 * step_ns, "and leave little of it out"
    assert len(block.minor_faults) == len(block.fixed_work_ns) == 4
    assert min(block.fixed_work_ns) > 0
    for at, began_ns in enumerate(block.began_ns[1:]):
        assert block.began_ns[at] + block.step_ns[at] <= began_ns, "one after the other"


def test_time_stands_where_it_was_spent() -> None:
    block = watched(*training_of(in_loss=lambda: time.sleep(SLEEP_NS / 1e9)))
    assert min(block.phase_ns[FORWARD]) >= SLEEP_NS
    assert max(block.phase_ns[BACKWARD]) < SLEEP_NS

    block = watched(*training_of(in_row=lambda row: time.sleep(SLEEP_NS / 1e9) if row == 0 else None))
    slow = [wait_ns >= SLEEP_NS for wait_ns in block.phase_ns[WAIT]]
    assert slow == [True, False, True, False], "each epoch has two batches"
    assert [ns >= HALF for ns in block.cause_ns[LOADER]] == slow


def test_a_collection_is_timed_and_taken_out_of_the_wait() -> None:
    rings = []

    def collect(row: int) -> None:
        if row == 0:
            for _ in range(100_000):
                ring: list[object] = []
                ring.append(ring)
                rings.append(ring)
            rings.clear()
            began_ns = time.perf_counter_ns()
            gc.collect()
            spent_ns.append(time.perf_counter_ns() - began_ns)

    spent_ns: list[int] = []
    block = watched(*training_of(in_row=collect), steps=1)
    assert block.cause_ns[GARBAGE][0] >= 0.9 * spent_ns[-1]
    assert block.cause_ns.get(LOADER, [0])[0] <= block.phase_ns[WAIT][0] - block.cause_ns[GARBAGE][0]


def test_a_step_that_is_one_piece_stays_one() -> None:
    plan, watcher = training_of()
    from dataclasses import replace

    block = watched(replace(plan, whole_step=True), watcher)
    assert set(block.phase_ns) <= {WAIT, REST, WHOLE}
    assert min(block.phase_ns[WHOLE]) > 0


def sleep(share: float = 1.0) -> None:
    time.sleep(share * SLEEP_NS / 1e9)


def test_a_call_that_somebody_else_drives_may_fetch_late_often_or_never() -> None:
    """As a script does: the call begins with something else, and phases lie within each other."""
    watcher = Watcher("cpu")
    watcher.begin()
    watcher.stepping()
    sleep()  # an evaluation, say
    for _ in range(2):
        watcher.fetching()
        sleep()
        watcher.fetched()
        watcher.marks.push(FORWARD)
        sleep()
        watcher.marks.push(BACKWARD)  # within the forward pass, as where gradients are penalised
        sleep()
        watcher.marks.pop()
        watcher.marks.pop()
    watcher.stepped()
    watcher.stepping()
    watcher.stepped()
    fields = watcher.finish()
    block = WatchedBlock(launch=0, round=0, first_call=0, samples=0, syncs=None, **fields)
    usual = {REST: 1, WAIT: 2, FORWARD: 2, BACKWARD: 2}
    for phase, times in usual.items():
        assert block.phase_ns[phase][0] >= times * SLEEP_NS, phase
    assert sum(column[0] for column in block.phase_ns.values()) <= block.step_ns[0]
    assert 2 * HALF <= block.cause_ns[LOADER][0] <= block.step_ns[0] - 5 * SLEEP_NS
    assert block.cause_ns[LOADER][1] == block.phase_ns[WAIT][1] == 0
    assert block.step_ns[0] >= 7 * SLEEP_NS > block.step_ns[1]


def test_a_phase_that_began_before_the_call_ends_into_the_rest_of_it() -> None:
    marks = Marks("cpu")
    marks.wanted = True
    marks.next_call()
    marks.push(OPTIMIZER)
    marks.next_call()  # a step ends within the optimizer's own
    marks.begin(REST)
    sleep(0.1)
    marks.pop()
    marks.push(FORWARD)
    marks.pop("after it")
    marks.reading()
    first, second = marks.take()
    assert first == {}
    assert set(second) == {REST, FORWARD, "after it"}


def test_nothing_is_marked_while_nobody_watches() -> None:
    plan, watcher = training_of()
    training = Training(with_marks(plan, watcher.marks))
    training.step(training.fetch())
    assert watcher.marks.take() == []


def test_watching_trains_the_same() -> None:
    plan, watcher = training_of()
    plain, marked = Training(plan), Training(with_marks(plan, watcher.marks))
    for _ in range(3):
        plain.step(plain.fetch())
    watch_training(watcher, marked, 3)
    for ours, theirs in zip(plain.module.parameters(), marked.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.process
def test_workers_that_start_at_an_epoch_are_told_from_a_slow_loader() -> None:
    from dataclasses import replace

    plan, watcher = training_of()
    block = watched(replace(plan, loader={"num_workers": 1}), watcher, steps=5)
    # Two batches an epoch; between the starts there are only the pages to copy that the fork left.
    starts_ns, others_ns = block.cause_ns[WORKER_START][0::2], block.cause_ns[WORKER_START][1::2]
    assert min(starts_ns) > max(others_ns)
    assert FAULTS not in block.cause_ns
    assert [ns > 0 for ns in block.cause_ns[LOADER]] == [False, True, False, True, False]


def test_what_is_far_beyond_the_usual_copies_of_a_fork_are_page_faults_of_their_own() -> None:
    seen_ns: dict[int, list[int]] = {}

    def after_a_fork(*faults_ns: int) -> list[dict[str, int]]:
        first, *later = faults_ns
        calls = [{WORKER_START: 50, FAULTS: first}, *({FAULTS: ns} for ns in later)]
        return _with_forks(calls, seen_ns)

    for _ in range(3):
        assert after_a_fork(10, 4, 4, 0) == [
            {WORKER_START: 60}, {WORKER_START: 4}, {WORKER_START: 4}, {FAULTS: 0}
        ]  # fmt: skip
    assert after_a_fork(12, 90, 4)[1] == {WORKER_START: 4, FAULTS: 86}
    assert after_a_fork(12, 4, 4)[0] == {WORKER_START: 62}


def test_a_page_fault_costs_something() -> None:
    assert max(fault_ns() for _ in range(9)) > 0


@pytest.mark.gpu
def test_a_gpu_tells_its_phases_and_its_syncs() -> None:
    from dataclasses import replace

    def watched_with(look: bool) -> WatchedBlock:
        def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
            value: torch.Tensor = model(batch).square().mean()
            assert not look or value.item() >= 0
            return value

        plan, _ = training_of()
        assert plan.workload is not None
        return watched(replace(plan, device="cuda:0", workload=replace(plan.workload, loss=loss)), Watcher("cuda:0"))

    waiting, free = watched_with(look=True), watched_with(look=False)
    assert set(waiting.phase_ns) >= {FORWARD, BACKWARD, OPTIMIZER}
    assert len(waiting.dispatch_ns) == len(waiting.host_ahead) == 4
    assert (waiting.syncs, free.syncs) == (1, 0)
