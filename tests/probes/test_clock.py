"""The clock of a CUDA device, on a device and a host whose times are scripted: what a block tells of a loop is what the
loop takes in the long run."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perftool.probes.clock import CudaClock, HostClock

LONG_RUN = 400


@dataclass
class Loop:
    """A training loop that loads on the host, copies, and issues its step to a device that works beside it; in s."""

    load_s: float
    copy_s: float
    device_s: float
    issue_s: float = 0.003
    waits_for_copy: bool = True  # as of memory that is not pinned
    host_s: float = 0.0
    idle_from_s: float = 0.0  # when the device has done what was issued
    events: list[FakeEvent] = field(default_factory=list)

    def step(self) -> None:
        self.host_s += self.load_s
        if self.waits_for_copy:
            self.host_s = self.idle_from_s = max(self.host_s, self.idle_from_s) + self.copy_s
        else:
            self.idle_from_s = max(self.idle_from_s, self.host_s) + self.copy_s
        begins_s = max(self.idle_from_s, self.host_s)
        self.host_s += self.issue_s
        self.idle_from_s = max(begins_s + self.device_s, self.host_s)

    def synchronize(self, _: torch.device) -> None:
        self.host_s = max(self.host_s, self.idle_from_s)

    def step_s(self) -> float:
        """In the long run."""
        for _ in range(LONG_RUN):
            self.step()
        began_s = self.idle_from_s
        for _ in range(LONG_RUN):
            self.step()
        return (self.idle_from_s - began_s) / LONG_RUN

    def clock(self) -> CudaClock:
        cuda = SimpleNamespace(synchronize=self.synchronize, Event=lambda *, enable_timing: FakeEvent(self))
        return CudaClock(torch.device("cuda"), cuda)


@dataclass
class FakeEvent:
    loop: Loop
    reached_s: float = 0.0

    def record(self) -> None:
        self.reached_s = max(self.loop.idle_from_s, self.loop.host_s)

    def elapsed_time(self, later: FakeEvent) -> float:
        return 1000 * (later.reached_s - self.reached_s)


def block_s(loop: Loop, clock: CudaClock, drop: int, steps: int) -> tuple[float, list[float]]:
    """The wall time of a block and its step times."""
    for _ in range(drop):
        loop.step()
    clock.start()
    for _ in range(steps):
        loop.step()
        clock.mark()
    wall_ns, step_ns = clock.finish()
    return wall_ns / 1e9, [ns / 1e9 for ns in step_ns]


@pytest.mark.parametrize("steps", [1, 4])
def test_a_loader_that_works_beside_the_device_is_no_part_of_the_step(steps: int) -> None:
    loop = Loop(load_s=0.09, copy_s=0.012, device_s=0.1)
    clock = loop.clock()
    for _ in range(2):  # after a pause, too
        wall_s, step_s = block_s(loop, clock, 1, steps)
        assert wall_s / steps == pytest.approx(0.112)
        assert step_s == pytest.approx([0.112] * steps)


times = st.floats(0.001, 0.2)


@given(load_s=times, copy_s=times, device_s=times, waits_for_copy=st.booleans(), steps=st.integers(1, 5))
def test_a_block_takes_as_long_as_its_steps_in_the_long_run(
    load_s: float, copy_s: float, device_s: float, waits_for_copy: bool, steps: int
) -> None:
    """Also where the loader is hidden by the device or the other way round, and without asking which."""
    loop = Loop(load_s, copy_s, device_s, waits_for_copy=waits_for_copy)
    expected_s = loop.step_s()
    loop.synchronize(torch.device("cuda"))
    wall_s, step_s = block_s(loop, loop.clock(), 1, steps)
    assert wall_s / steps == pytest.approx(expected_s, rel=0.02, abs=0.004)
    assert sum(step_s) == pytest.approx(wall_s)


def test_the_host_counts_from_mark_to_mark() -> None:
    clock = HostClock()
    for steps in (3, 2):
        clock.start()
        for _ in range(steps):
            clock.mark()
        wall_ns, step_ns = clock.finish()
        assert len(step_ns) == steps
        assert sum(step_ns) == wall_ns
