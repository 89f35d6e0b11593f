"""What a step is made of and what disturbed it, for steps that are watched and not timed for a verdict.

Phases are marked from within the training: around the loss, and by the optimizer's hooks. Disturbances are counters
that are read before a step, after its data has come, and after it.
Source: proc(5) for schedstat and stat, getrusage(2), gc.callbacks, torch.optim.Optimizer.register_step_pre_hook.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import resource
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from statistics import median
from time import monotonic_ns, perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from perftool.measure.probes import device as device_probe
from perftool.measure.probes.causes import steal_ticks
from perftool.records import (
    BACKWARD,
    COMPILATION,
    COPY,
    FAULTS,
    FORWARD,
    GARBAGE,
    LOADER,
    OPTIMIZER,
    REST,
    RETRY,
    RUN_QUEUE,
    STEAL,
    WAIT,
    WHOLE,
    WORKER_START,
    WatchedBlock,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from perftool.training import Loss, Plan, Step, Training
    from perftool.workload import Batch

THREADS_MOST = 8  # whose waiting for a core is followed: those with the most CPU time
STEAL_EVERY_NS = 20_000_000  # reading it takes some 50 µs
TICK_NS = 10_000_000  # of /proc/stat
FAULTS_TRIED, FAULT_TRIALS = 1024, 7  # to learn what a page fault costs


class Marks:
    """The moments at which phases begin, while they are wanted: on the host, or on the stream of a CUDA device."""

    def __init__(self, device: str) -> None:
        self.wanted = False
        self._on_cuda = device.startswith("cuda")
        self._calls: list[list[tuple[str, Any]]] = []

    def begin(self, phase: str) -> None:
        """Whatever phase there was has ended, and this one begins."""
        if self.wanted:
            self._calls[-1].append((phase, self._now()))

    def next_call(self) -> None:
        self._calls.append([])

    def take(self) -> list[dict[str, int]]:
        """Of each call since the last time: phase to its time in ns. Waits for the device."""
        if self._on_cuda:
            import torch

            torch.cuda.synchronize()
        calls, self._calls = self._calls, []
        return [self._phases(call) for call in calls]

    def _phases(self, call: Sequence[tuple[str, Any]]) -> dict[str, int]:
        found: dict[str, int] = defaultdict(int)
        for (phase, began), (_, ended) in pairwise(call):
            found[phase] += round(began.elapsed_time(ended) * 1e6) if self._on_cuda else ended - began
        return found

    def _now(self) -> Any:
        if not self._on_cuda:
            return perf_counter_ns()
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def with_marks(plan: Plan, marks: Marks) -> Plan:
    """The plan with marks around its phases. A step that is replayed or compiled as a whole stays one piece."""
    whole = plan.whole_step

    def around_loss(loss: Loss) -> Loss:
        def marked(model: nn.Module, batch: Batch) -> torch.Tensor:
            marks.begin(FORWARD)
            value = loss(model, batch)
            marks.begin(BACKWARD)
            return value

        return marked

    def on_device(training: Training, step: Step) -> Step:
        if not whole:
            training.optimizer.register_step_pre_hook(lambda *_: marks.begin(OPTIMIZER))
            training.optimizer.register_step_post_hook(lambda *_: marks.begin(REST))

        def marked(batch: Batch) -> torch.Tensor:
            marks.begin(WHOLE if whole else REST)
            return step(batch)

        return marked

    return replace(plan, step=(*plan.step, on_device), loss=plan.loss if whole else (*plan.loss, around_loss))


class Totals(NamedTuple):
    """Running totals of this process, read at one moment."""

    garbage_ns: int
    compilation_ns: int
    worker_starts: int
    minor_faults: int
    run_queue_ns: tuple[int, ...]  # of each thread that is followed


class Watcher:
    """Watches the steps of one training; made before it is built."""

    def __init__(self, device: str) -> None:
        self.marks = Marks(device)
        self._garbage_ns = self._compilation_ns = self._worker_starts = 0
        self._began_ns: dict[str, int] = {}
        self._threads: list[int] = []  # open files
        self._fault_ns = 0.0
        self._steal_ticks: int | None = None
        self._steal_read_ns = 0
        gc.callbacks.append(self._on_garbage)
        self._count_worker_starts()

    def watch(self, training: Training, *, launch: int, round_: int, steps: int, calls_done: int) -> WatchedBlock:
        """So many calls, each with its phases and what disturbed it."""
        from perftool.training import count_samples

        self._prepare(training)
        single = training.steps_per_call == 1
        marks, read, now = self.marks, self._read, perf_counter_ns
        on_cuda = training.device.type == "cuda"
        waits, rests, samples = [], [], 0
        retries = [device_probe.allocator_retries(training.device)]
        readings: list[tuple[Totals, Totals, Totals]] = []
        stolen = [0] * steps
        since = 0
        started_ns = monotonic_ns()
        marks.wanted = True
        try:
            for call in range(steps):
                marks.next_call()
                first = read()
                asked_ns = now()
                batch = training.fetch()
                waits.append(now() - asked_ns)
                second = read()
                issued_ns = now()
                marks.begin(COPY if on_cuda else REST)
                training.step(batch)
                marks.begin("end")
                rests.append(now() - issued_ns)
                readings.append((first, second, read()))
                retries.append(device_probe.allocator_retries(training.device))
                samples += count_samples(batch) if single else sum(map(count_samples, batch))
                if now() - self._steal_read_ns > STEAL_EVERY_NS or call == steps - 1:
                    ticks = self._stolen_ticks()
                    longest = max(range(since, call + 1), key=lambda one: waits[one] + rests[one])
                    stolen[longest] += ticks * TICK_NS
                    since = call + 1
        finally:
            marks.wanted = False
        phases = [{WAIT: wait, **phase} for wait, phase in zip(waits, marks.take(), strict=True)]
        causes = [self._causes(one, wait) for one, wait in zip(readings, waits, strict=True)]
        step_ns = (
            [sum(phase.values()) for phase in phases] if on_cuda else [a + b for a, b in zip(waits, rests, strict=True)]
        )
        return WatchedBlock(
            launch=launch,
            round=round_,
            first_call=calls_done,
            started_ns=started_ns,
            samples=samples,
            step_ns=step_ns,
            phase_ns=_columns(phases),
            cause_ns=_columns([{**one, STEAL: ticks_ns} for one, ticks_ns in zip(causes, stolen, strict=True)]),
            counts=_columns([{RETRY: after - before} for before, after in pairwise(retries)]),
            minor_faults=[last.minor_faults - first.minor_faults for first, _, last in readings],
            dispatch_ns=rests if on_cuda else [],
            device_allocated_bytes=device_probe.read_use(training.device).allocated_bytes,
            throttled=device_probe.is_throttled(training.device),
        )

    def _prepare(self, training: Training) -> None:
        self._follow_compilation()
        for descriptor in self._threads:
            os.close(descriptor)
        self._threads = _open_schedstats()
        if not self._fault_ns:
            self._fault_ns = median(fault_ns() for _ in range(FAULT_TRIALS))
        self._stolen_ticks()
        gc.collect(0)  # the lists of the last block

    def _causes(self, readings: tuple[Totals, Totals, Totals], wait_ns: int) -> dict[str, int]:
        """Time by cause within one call. What is left of the wait is the loader's."""
        first, second, last = readings
        disturbed_ns = sum(self._disturbances(first, second).values())
        loading_ns = max(0, wait_ns - disturbed_ns)
        started = second.worker_starts > first.worker_starts
        return {**self._disturbances(first, last), WORKER_START if started else LOADER: loading_ns}

    def _disturbances(self, before: Totals, after: Totals) -> dict[str, int]:
        return {
            GARBAGE: after.garbage_ns - before.garbage_ns,
            COMPILATION: after.compilation_ns - before.compilation_ns,
            FAULTS: round((after.minor_faults - before.minor_faults) * self._fault_ns),
            RUN_QUEUE: max(
                (end - start for start, end in zip(before.run_queue_ns, after.run_queue_ns, strict=True)), default=0
            ),
        }

    def _read(self) -> Totals:
        """Some 5 µs."""
        return Totals(
            self._garbage_ns,
            self._compilation_ns,
            self._worker_starts,
            resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
            tuple(_waited_ns(descriptor) for descriptor in self._threads),
        )

    # ------------------------------------------------------------------------------------------------------ hooks

    def _on_garbage(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began_ns[GARBAGE] = perf_counter_ns()
        elif GARBAGE in self._began_ns:
            self._garbage_ns += perf_counter_ns() - self._began_ns.pop(GARBAGE)

    def _follow_compilation(self) -> None:
        """Once the compiler is loaded: whoever loads it does so at its first use, which is before any watching."""
        handler = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
        if handler is None or COMPILATION in self._began_ns:
            return
        self._began_ns[COMPILATION] = 0

        def began(*_: object) -> None:
            self._began_ns[COMPILATION] = perf_counter_ns()

        def ended(*_: object) -> None:
            self._compilation_ns += perf_counter_ns() - self._began_ns[COMPILATION]

        handler.register_start_callback(began)
        handler.register_end_callback(ended)

    def _count_worker_starts(self) -> None:
        """Have every DataLoader of this process tell when it starts workers: nothing else in it does."""
        from torch.utils.data import DataLoader

        begin: Callable[[Any], Any] = DataLoader.__iter__

        def counted(loader: Any) -> Any:
            if loader.num_workers and not (loader.persistent_workers and loader._iterator is not None):
                self._worker_starts += 1
            return begin(loader)

        DataLoader.__iter__ = counted  # type: ignore[method-assign]

    def _stolen_ticks(self) -> int:
        """Since the last time, of all cores together; 0 where the system does not tell."""
        self._steal_read_ns = perf_counter_ns()
        before, self._steal_ticks = self._steal_ticks, steal_ticks()
        return 0 if before is None or self._steal_ticks is None else self._steal_ticks - before


def fault_ns() -> float:
    """What a page fault costs here, giving the page back included: memory is mapped, written, and written once more."""
    size = FAULTS_TRIED * mmap.PAGESIZE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    began_ns = perf_counter_ns()
    memory = mmap.mmap(-1, size)
    held = ctypes.c_char.from_buffer(memory)
    ctypes.memset(ctypes.addressof(held), 1, size)
    once_ns = perf_counter_ns()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    ctypes.memset(ctypes.addressof(held), 1, size)
    twice_ns = perf_counter_ns()
    del held
    memory.close()
    ended_ns = perf_counter_ns()
    return max(0, (once_ns - began_ns) - (twice_ns - once_ns) + (ended_ns - twice_ns)) / max(1, faults)


def _columns(rows: Sequence[dict[str, int]]) -> dict[str, list[int]]:
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value)
    return {name: [row.get(name, 0) for row in rows] for name in names}


def _open_schedstats() -> list[int]:
    """Of the threads with the most CPU time, the main one among them."""
    found = []
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError, ValueError, IndexError):
                descriptor = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)
                on_cpu_ns = int(os.pread(descriptor, 64, 0).split()[0])
                found.append((int(thread) == os.getpid(), on_cpu_ns, descriptor))
    found.sort(reverse=True)
    for _, _, descriptor in found[THREADS_MOST:]:
        os.close(descriptor)
    return [descriptor for _, _, descriptor in found[:THREADS_MOST]]


def _waited_ns(descriptor: int) -> int:
    """A thread that has ended waits no more."""
    try:
        return int(os.pread(descriptor, 64, 0).split()[1])
    except (OSError, ValueError, IndexError):
        return 0
