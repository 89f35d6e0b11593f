"""What a recorder makes of a loop in this process, and that nothing of it is left afterwards."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizers
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import dataloader as loaders

from perftool.plan import Plan
from perftool.script import loop as loop_module
from perftool.script import record as record_module
from perftool.script.ending import at_end
from perftool.script.record import EVERY_LEAST, WATCHED_STEPS, Recorder
from perftool.script.trail import Left, read

EVENTS_ENOUGH = 12


def hooked() -> list[Any]:
    """All that a recorder may put something around."""
    return [
        torch.autograd.backward,
        torch.save,
        nn.Module.__call__,
        nn.Module.__init__,
        nn.Module.train,
        torch.optim.Optimizer.__init__,
        torch.amp.GradScaler.step,
        DataLoader.__init__,
        DataLoader.__iter__,
        loaders._BaseDataLoaderIter.__next__,
        *optimizers._global_optimizer_pre_hooks.values(),
        *optimizers._global_optimizer_post_hooks.values(),
    ]


class Recorded:
    """One recording at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recorder = Recorder(str(folder), Plan(workload=None))

    def of(self, train: Callable[[], None]) -> Left:
        self.recorder.begin()
        try:
            train()
        finally:
            self.recorder.end()
        [path] = self.folder.iterdir()
        return read(path)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """It knows what a step is after few of them."""
    monkeypatch.setattr(loop_module, "seen_enough", lambda events, _: events >= EVENTS_ENOUGH)
    before = hooked()
    yield Recorded(tmp_path)
    assert hooked() == before


class Training:
    """Steps of a small model, as scripts write them."""

    def __init__(self) -> None:
        self.model = nn.Linear(4, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.loader = DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=4)

    def __call__(self, steps: int, after: Callable[[int], object] = lambda _: None) -> None:
        step = 0
        while step < steps:
            for (x,) in self.loader:
                self.optimizer.zero_grad()
                self.model(x).pow(2).mean().backward()
                self.optimizer.step()
                step += 1
                after(step)
                if step == steps:
                    return


def steps_of(left: Left) -> int:
    return sum(len(block.step_ns) for block in left.blocks)


def asides_of(left: Left) -> int:
    """Steps that were something besides."""
    return sum(times for times, _ in lines_of(left, "standing")[-1]["asides"].values())


def lines_of(left: Left, kind: str) -> list[dict[str, Any]]:
    return [line for line in left.lines if line["type"] == kind]


def test_every_step_is_kept_or_watched(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "ONCE_NS", 10**15)  # however long a burst takes, the next one comes in time
    left = recorded.of(lambda: Training()(2 * EVERY_LEAST + 300))
    bursts = lines_of(left, "watched")
    assert len(bursts) == 2
    assert steps_of(left) + WATCHED_STEPS * len(bursts) == 2 * EVERY_LEAST + 300 - 1  # the first one has no beginning
    assert all(time_ns > 0 for block in left.blocks for time_ns in block.step_ns)
    assert set(bursts[1]["phase_ns"]) == {"data wait", "forward", "backward", "optimizer", "the rest"}
    assert bursts[1]["samples"] == 4 * WATCHED_STEPS
    standing = lines_of(left, "standing")[-1]
    assert (standing["steps"], standing["samples_per_step"]) == (steps_of(left), 4)
    [facts] = lines_of(left, "facts")
    assert (facts["rule"]["boundary"], facts["loaders"][0]["trains"]) == ("optimizer", True)


def test_a_training_that_ends_before_a_step_is_known_is_recorded_all_the_same(recorded: Recorded) -> None:
    left = recorded.of(lambda: Training()(EVENTS_ENOUGH // 4))
    assert steps_of(left) == EVENTS_ENOUGH // 4 - 1
    assert not lines_of(left, "watched")


def test_no_step_leaves_no_file(recorded: Recorded) -> None:
    recorded.recorder.begin()
    recorded.recorder.end()
    assert not list(recorded.folder.iterdir())


def test_an_evaluation_is_kept_apart(recorded: Recorded) -> None:
    training = Training()

    def evaluate(step: int) -> None:
        if step == 100:
            training.model.eval()
            training.model.train()

    left = recorded.of(lambda: training(200, evaluate))
    assert steps_of(left) + WATCHED_STEPS == 200 - 2
    [(what, (times, _))] = lines_of(left, "standing")[-1]["asides"].items()
    assert (what.partition(" at ")[0], times) == ("evaluation", 1)


def test_an_evaluation_after_the_last_step_costs_no_step(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training()

    def train() -> None:
        training(200)
        training.model.eval()

    left = recorded.of(train)
    assert steps_of(left) + WATCHED_STEPS == 200 - 1
    assert capsys.readouterr().err == ""


def test_two_optimizers_make_one_step(recorded: Recorded) -> None:
    training = Training()
    other = torch.optim.SGD(training.model.parameters(), lr=0.01)
    left = recorded.of(lambda: training(100, lambda _: other.step()))
    assert lines_of(left, "facts")[0]["rule"]["last"] == 1
    assert steps_of(left) + WATCHED_STEPS == 100 - 1


def test_an_update_by_that_of_the_base_class_is_one(recorded: Recorded) -> None:
    class Twice(torch.optim.SGD):
        """Steps as its base class does, and is one update."""

        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    training = Training()
    training.optimizer = Twice(training.model.parameters(), lr=0.01)
    torch.optim.SGD(training.model.parameters(), lr=0.01)  # which has the base class's step hooked, too
    left = recorded.of(lambda: training(100))
    assert steps_of(left) + WATCHED_STEPS == 100 - 1


def test_a_skipped_update_ends_its_step(recorded: Recorded) -> None:
    training = Training()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def train() -> None:
        for step in range(100):
            training.optimizer.zero_grad()
            loss = training.model(torch.randn(4, 4)).pow(2).mean()
            scaler.scale(loss * float("inf") if step % 10 == 9 else loss).backward()
            scaler.step(training.optimizer)
            scaler.update()

    left = recorded.of(train)
    assert steps_of(left) + WATCHED_STEPS == 100 - 1


def test_updates_by_hand_are_steps_that_end_with_backward(recorded: Recorded) -> None:
    weight = torch.zeros(3, requires_grad=True)

    def train() -> None:
        for _ in range(100):
            (weight - 1).pow(2).sum().backward()  # type: ignore[no-untyped-call]

    left = recorded.of(train)
    assert steps_of(left) + WATCHED_STEPS == 100 - 1
    assert all(time_ns > 1000 for time_ns in lines_of(left, "watched")[0]["step_ns"])


def test_steps_that_are_marked_say_their_samples(recorded: Recorded) -> None:
    def train() -> None:
        for _ in range(100):
            recorded.recorder.loop.marked(7)

    left = recorded.of(train)
    assert lines_of(left, "standing")[-1]["samples_per_step"] == 7


def test_a_forked_child_writes_nothing(recorded: Recorded) -> None:
    training = Training()

    def fork(step: int) -> None:
        if step == 50:
            child = os.fork()
            if child == 0:
                training(40)
                os._exit(0)
            os.waitpid(child, 0)

    left = recorded.of(lambda: training(100, fork))
    assert steps_of(left) + WATCHED_STEPS == 100 - 1


def test_a_child_that_trains_in_place_of_its_parent_is_recorded(recorded: Recorded) -> None:
    def train() -> None:
        def work() -> None:
            Training()(40)

        at_end(recorded.recorder.end)
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        recorded.recorder.loop.process = 0  # whose end is not this one's

    left = recorded.of(train)
    recorded.recorder.loop.process = os.getpid()
    recorded.recorder.end()
    assert steps_of(left) + WATCHED_STEPS == 40 - 1
    assert lines_of(left, "standing")[-1]["steps"] == steps_of(left)


def test_optimizers_of_a_second_training_end_its_steps(recorded: Recorded) -> None:
    def train() -> None:
        for _ in range(2):
            training = Training()
            other = torch.optim.SGD(training.model.parameters(), lr=0.01)
            training(50, lambda _, other=other: other.step())  # type: ignore[misc]

    left = recorded.of(train)
    assert steps_of(left) + asides_of(left) + WATCHED_STEPS == 100 - 1


def test_one_of_several_threads_is_recorded(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    def beside(step: int) -> None:
        if step % 10 == 0:
            thread = Thread(target=Training(), args=(20,))
            thread.start()
            thread.join()

    left = recorded.of(lambda: Training()(100, beside))
    assert steps_of(left) + asides_of(left) + WATCHED_STEPS == 100 - 1
    assert "several threads have trained" in capsys.readouterr().err


def test_a_fault_of_the_recorder_leaves_the_training_alone(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(recorded.recorder, "_look", broken)
    done: list[int] = []
    recorded.of(lambda: Training()(100, done.append))
    assert len(done) == 100
    assert capsys.readouterr().err == "perftool: recording has ended: RuntimeError: a fault\n"
