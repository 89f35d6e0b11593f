"""Per-step times without synchronising inside a block: on the host, or on the stream of a CUDA device."""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class StepClock(Protocol):
    """Started once per block, marked after each step."""

    def start(self) -> None:
        """Wait for the device, then begin."""

    def mark(self) -> None:
        """A step has been issued."""

    def finish(self) -> tuple[int, list[int]]:
        """Wait for the device. Returns the wall time since `start` and each step's end-to-end time, in ns."""


class HostClock:
    """For a CPU, where a step has ended when it returns."""

    def __init__(self) -> None:
        self._marks: list[int] = []

    def start(self) -> None:
        self._marks = [perf_counter_ns()]

    def mark(self) -> None:
        self._marks.append(perf_counter_ns())

    def finish(self) -> tuple[int, list[int]]:
        marks = self._marks
        return marks[-1] - marks[0], [after - before for before, after in pairwise(marks)]


class CudaClock:
    """For CUDA: an event after each step on the training's stream; a step time is the time between two of them."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._cuda = torch.cuda
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._used = 0
        self._started_ns = 0

    def start(self) -> None:
        self._cuda.synchronize(self._device)
        self._used = 0
        self._started_ns = perf_counter_ns()
        self.mark()

    def mark(self) -> None:
        if self._used == len(self._events):
            self._events.append(self._cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        self._events[self._used].record()
        self._used += 1

    def finish(self) -> tuple[int, list[int]]:
        self._cuda.synchronize(self._device)
        wall_ns = perf_counter_ns() - self._started_ns
        used = self._events[: self._used]
        return (
            wall_ns,
            [round(before.elapsed_time(after) * 1e6) for before, after in pairwise(used)],
        )


def step_clock(device: torch.device) -> StepClock:
    """The clock for a device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
