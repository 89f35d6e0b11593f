"""What a loop's events are taken for, with events by hand."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

import pytest
import torch

from perftool.script import hooks
from perftool.script import loop as loop_module
from perftool.script import thread as thread_module
from perftool.script.loop import EVALUATION, Loop
from perftool.script.steps import BACKWARD, OPTIMIZER, Rule
from perftool.script.thread import SILENT_S


class Follower:
    """A loop of one optimizer, and what was seen of each of its steps."""

    def __init__(self) -> None:
        self.loop = Loop(Rule(OPTIMIZER))
        self.asides: list[str | None] = []
        self.samples: list[int | None] = []
        self.loop.turn = self._turn
        self.optimizer = object()

    def _turn(self) -> None:
        self.asides.append(self.loop.interval.aside)
        self.samples.append(self.loop.interval.samples)

    def step(self, loader: int = 1, samples: int | None = 32) -> None:
        self.loop.fetched(loader, 1000, samples, None)
        self.loop.backward_began(None)
        self.loop.updated(self.optimizer)


@pytest.fixture
def follower() -> Follower:
    return Follower()


def test_an_evaluation_is_no_step(follower: Follower) -> None:
    follower.step()
    follower.loop.noticed("eval mode", EVALUATION)
    follower.step()
    follower.step()
    assert [aside is None for aside in follower.asides] == [True, False, True]
    assert str(follower.asides[1]).startswith("evaluation at test_loop.py:")


def test_a_loader_that_never_trained_is_an_evaluation_and_one_that_did_an_epoch(follower: Follower) -> None:
    follower.step(loader=1)
    follower.loop.iterated(1)
    follower.step(loader=1)
    follower.loop.iterated(2)
    follower.loop.fetched(2, 1000, 32, None)
    follower.step(loader=1)
    assert [aside is None for aside in follower.asides] == [True, True, False]


def test_what_comes_with_many_steps_is_part_of_them(follower: Follower) -> None:
    for _ in range(60):
        follower.loop.noticed("no gradients", EVALUATION)
        follower.step()
    assert follower.asides[0] is None  # nothing had been trained yet
    assert follower.asides[-1] is None
    assert any(follower.asides)


def test_samples_are_those_of_all_batches_of_a_step(follower: Follower) -> None:
    follower.loop.fetched(1, 1000, 32, None)
    follower.step(samples=7)
    follower.step(samples=None)
    assert follower.samples == [39, None]


class Learner:
    """A loop whose rule is not known, with a clock by hand. Optimizers are named by letters, `b` is a backward pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(loop_module, "monotonic", lambda: self.now_s)
        self.loop = Loop(None)
        self.weights = {name: torch.zeros(1, requires_grad=True) for name in "DG"}
        self.optimizers = {name: torch.optim.SGD([self.weights[name]]) for name in "DG"}

    def makes(self, names: str) -> None:
        for name in names:
            self.loop.known.made(self.optimizers[name])

    def sees(self, events: str, *, every_s: float, times: int = 100) -> Rule | None:
        """Until a rule is found."""
        for _ in range(times):
            for event in events:
                self.now_s += every_s
                if event == "b":
                    self.loop.ended("backward")
                else:
                    self.loop.updated(self.optimizers[event])
            if self.loop.rule is not None:
                break
        return self.loop.rule


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Learner:
    return Learner(monkeypatch)


@pytest.mark.parametrize("setup_s", [0.0, 11.0, 90.0])
@pytest.mark.parametrize(
    ("made", "events", "rule"),
    [
        ("G", "b" * 8 + "G", Rule(OPTIMIZER)),
        ("DG", "bD" * 5 + "bG", Rule(OPTIMIZER, last=1)),
        ("", "bD" * 5 + "bG", Rule(OPTIMIZER, last=1)),
        ("DG", "bD" * 40 + "bG", Rule(OPTIMIZER, last=1)),
    ],
)
def test_what_a_script_does_before_its_first_event_is_no_evidence(
    learner: Learner, setup_s: float, made: str, events: str, rule: Rule
) -> None:
    learner.now_s = setup_s
    learner.makes(made)
    assert learner.sees(events, every_s=0.2) == rule


def test_a_pattern_that_may_still_grow_is_waited_for(learner: Learner) -> None:
    learner.makes("DG")
    assert learner.sees("bD", every_s=1.0, times=20) is None  # the other one has not had its turn
    assert learner.sees("bD", every_s=1.0) == Rule(OPTIMIZER)  # and does not get it


def test_an_optimizer_within_another_is_not_waited_for(learner: Learner) -> None:
    learner.makes("D")
    inner = torch.optim.SGD([learner.weights["D"]])
    learner.loop.known.made(inner)
    assert learner.sees("bD", every_s=1.0, times=13) == Rule(OPTIMIZER)


def test_updates_of_an_optimizer_that_exists_are_waited_for(learner: Learner) -> None:
    learner.makes("G")
    learner.weights["G"].grad = torch.zeros(1)
    learner.sees("b", every_s=0.01, times=500)  # batches that are accumulated
    assert (learner.loop.steps, learner.loop.rule) == (0, None)
    learner.sees("G", every_s=0.01, times=1)
    assert learner.loop.steps == 1


def test_updates_by_hand_beside_an_optimizer_are_steps(learner: Learner) -> None:
    learner.makes("G")
    assert learner.sees("b", every_s=0.01, times=500) == Rule(BACKWARD)


def test_a_backward_pass_within_another_is_no_event() -> None:
    from torch.utils.checkpoint import checkpoint

    loop = Loop(Rule(BACKWARD))
    undo = hooks.around_backward(loop)
    try:
        layer = torch.nn.Linear(2, 2)
        x = torch.ones(1, 2, requires_grad=True)
        checkpoint(layer, checkpoint(layer, x, use_reentrant=True), use_reentrant=True).sum().backward()
    finally:
        undo()
    assert loop.steps == 1


def train_folds(loop: Loop, *, keeps: bool, folds: int = 3, steps: int = 10) -> list[int]:
    """Train with a new pair of optimizers each time. Returns the steps after each."""
    kept, counts = [], []
    for _ in range(folds):
        pair = [torch.optim.SGD([torch.zeros(1)]) for _ in range(2)]
        kept += pair if keeps else []
        for _ in range(steps):
            for optimizer in pair:
                loop.updated(optimizer)
        counts.append(loop.steps)
    return counts


def test_new_optimizers_take_the_places_of_those_before() -> None:
    loop = Loop(Rule(OPTIMIZER, last=1))
    assert train_folds(loop, keeps=False) == [10, 20, 30]
    assert len(loop.optimizers) == 0  # none is kept alive
    loop = Loop(Rule(OPTIMIZER, last=1))
    assert train_folds(loop, keeps=True) == [10, 19, 28]  # a step each shows that those before step no more


def test_optimizers_that_come_later_have_come_to_those_before() -> None:
    loop = Loop(Rule(OPTIMIZER, last=1))
    first, last, later = (torch.optim.SGD([torch.zeros(1)]) for _ in range(3))
    for optimizer in [first, last] * 5 + [first, last, later] * 5:
        loop.updated(optimizer)
    assert loop.steps == 10
    assert loop.optimizers == [first, last, later]


def in_thread(act: Callable[[], None]) -> None:
    thread = Thread(target=act)
    thread.start()
    thread.join()


def test_the_thread_of_the_first_step_is_followed(follower: Follower) -> None:
    follower.step()
    in_thread(follower.step)
    in_thread(lambda: follower.loop.marked(1))
    assert len(follower.asides) == 1


def test_a_thread_that_is_over_gives_way(follower: Follower) -> None:
    in_thread(follower.step)
    follower.step()
    in_thread(follower.step)
    assert len(follower.asides) == 2


def test_a_thread_that_trains_no_more_gives_way(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = iter([100.0, 100.0 + SILENT_S / 2, 101.0 + SILENT_S])
    monkeypatch.setattr(thread_module, "monotonic", lambda: next(now_s))
    follower.step()
    seen = []
    for _ in range(3):
        in_thread(lambda: seen.append(follower.loop.thread.is_here()))
    assert seen == [False, False, True]


def test_a_child_of_a_process_that_has_made_no_step_may_be_the_one_that_trains() -> None:
    loop = Loop(Rule(OPTIMIZER))
    loop.process = 0
    assert loop.forked()
    assert loop.is_own
    loop.updated(object())
    assert not loop.forked()


def test_what_waits_for_a_warm_loop_is_done_once(follower: Follower) -> None:
    done: list[int] = []
    follower.loop.warmed_up = (lambda: done.append(follower.loop.steps),)
    for _ in range(10):
        follower.step()
    assert done == [3]
