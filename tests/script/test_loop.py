"""What a loop's events are taken for, with events by hand."""

from __future__ import annotations

import pytest

from perftool.script.loop import EVALUATION, Loop
from perftool.script.steps import OPTIMIZER, Rule


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


def test_updates_of_an_optimizer_that_exists_are_waited_for() -> None:
    loop = Loop(None)
    ended: list[int] = []
    loop.turn = lambda: ended.append(loop.steps)
    loop.has_optimizer = True
    for _ in range(100):  # batches that are accumulated
        loop.ended("backward")
    assert not ended
    loop.updated(object())
    assert ended == [1]


def test_what_waits_for_a_warm_loop_is_done_once(follower: Follower) -> None:
    done: list[int] = []
    follower.loop.warmed_up = (lambda: done.append(follower.loop.steps),)
    for _ in range(10):
        follower.step()
    assert done == [3]
