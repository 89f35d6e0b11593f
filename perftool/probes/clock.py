"""Per-step times without synchronising before or inside a block: on the host, or on the stream of a CUDA device."""

from __future__ import annotations

from itertools import pairwise
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class StepClock(Protocol):
    """Started once per block, marked after each step. May be started again."""

    def start(self) -> None:
        """Begin behind what was issued before. Nothing is waited for: a loop that goes on has the device at work while
        the next batch is loaded, and a drained device would let the two add up."""

    def mark(self) -> None:
        """A step has been issued."""

    def finish(self) -> tuple[int, list[int]]:
        """Wait for the device. Returns the time from the start to the end of the last step and each step's end-to-end
        time, in ns."""


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
    """For CUDA: an event after each step on the training's stream, from that of the last step before the block on; a
    step time is the time between two of them.

    Sources: torch.cuda.Event; the simulation of a loop whose loader works beside the device is its test.
    """

    def __init__(self, device: torch.device, cuda: Any = None) -> None:
        """cuda: torch.cuda, unless a test has its own."""
        import torch

        self._cuda = cuda or torch.cuda
        self._device = device
        self._events: list[Any] = []
        self._used = 0

    def start(self) -> None:
        self._used = 0
        self.mark()

    def mark(self) -> None:
        if self._used == len(self._events):
            self._events.append(self._cuda.Event(enable_timing=True))
        self._events[self._used].record()
        self._used += 1

    def finish(self) -> tuple[int, list[int]]:
        self._cuda.synchronize(self._device)
        used = self._events[: self._used]
        step_ns = [round(before.elapsed_time(after) * 1e6) for before, after in pairwise(used)]
        return round(used[0].elapsed_time(used[-1]) * 1e6), step_ns


def step_clock(device: torch.device) -> StepClock:
    """The clock for a device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
