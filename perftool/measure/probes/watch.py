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
from perftool.measure.probes.causes import steal_ticks_by_core
from perftool.measure.probes.cgroups import throttled_periods
from perftool.measure.probes.core import fixed_work_ns
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
READING, END = "reading counters", "end"  # no phases of the training
LAST_PHASES = (BACKWARD, OPTIMIZER, WHOLE)
STEAL_EVERY_NS = 20_000_000  # reading it takes some 50 µs
CORE_EVERY_NS = 2_000_000  # likewise
TICK_NS = 10_000_000  # of /proc/stat
COPYING_CALLS = 2  # after a fork, in which nearly all that a step writes is written
FORKS_LEAST, FAR_BEYOND = 3, 2.0  # to know what is usual after one, and times the usual
FAULTS_TRIED, FAULT_TRIALS = 1024, 7  # to learn what a page fault costs


class Marks:
    """The moments at which phases begin, while they are wanted: on the host, or on the stream of a CUDA device."""

    def __init__(self, device: str) -> None:
        self.wanted = False
        self.on_cuda = device.startswith("cuda")
        self.computing_ns = 0  # when the host began to issue the computation of the present call
        self._calls: list[list[tuple[str, Any]]] = []

    def begin(self, phase: str) -> None:
        """Whatever phase there was has ended, and this one begins."""
        if self.wanted:
            self._calls[-1].append((phase, self._now()))

    def next_call(self) -> None:
        self._calls.append([])

    def host_is_ahead(self) -> bool:
        """On CUDA, when a call has been issued: whether its last phase has not even begun on the device."""
        begun = [event for phase, event in self._calls[-1] if phase in LAST_PHASES]
        return bool(begun) and not begun[-1].query()

    def take(self) -> list[dict[str, int]]:
        """Of each call since the last time: phase to its time in ns. Waits for the device."""
        if self.on_cuda:
            import torch

            torch.cuda.synchronize()
        calls, self._calls = self._calls, []
        return [self._phases(call) for call in calls]

    def _phases(self, call: Sequence[tuple[str, Any]]) -> dict[str, int]:
        found: dict[str, int] = defaultdict(int)
        for (phase, began), (_, ended) in pairwise(call):
            found[phase] += round(began.elapsed_time(ended) * 1e6) if self.on_cuda else ended - began
        found.pop(READING, None)
        return found

    def _now(self) -> Any:
        if not self.on_cuda:
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
            with suppress(AttributeError):  # an optimizer that is none of torch's: it counts as backward then
                training.optimizer.register_step_pre_hook(lambda *_: marks.begin(OPTIMIZER))
                training.optimizer.register_step_post_hook(lambda *_: marks.begin(REST))

        def marked(batch: Batch) -> torch.Tensor:
            marks.computing_ns = perf_counter_ns()  # a copy that does not return before it is done is behind
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
        self._copied_ns: dict[int, list[int]] = {}
        self._compiling = 0
        gc.callbacks.append(self._on_garbage)
        self._count_worker_starts()

    def watch(self, training: Training, *, launch: int, round_: int, steps: int, calls_done: int) -> WatchedBlock:
        """So many calls, each with its phases and what disturbed it."""
        import torch

        from perftool.training import count_samples

        self._prepare()
        device = training.device
        syncs = self._count_syncs(training)
        calls_done += device.type == "cuda"
        single = training.steps_per_call == 1
        marks, read, now = self.marks, self._read, perf_counter_ns
        began: list[int] = []
        waits: list[int] = []
        rests: list[int] = []
        issued: list[int] = []
        ahead: list[bool] = []
        samples = 0
        retries = [device_probe.allocator_retries(device)]
        stopped = throttled_periods()
        readings: list[tuple[Totals, Totals, Totals]] = []
        steals = _Steals()
        core = None if marks.on_cuda else _CoreSpeed()
        started_ns, zero_ns = monotonic_ns(), now()
        marks.wanted = True
        try:
            for _ in range(steps):
                marks.next_call()
                first = read()
                asked_ns = now()
                marks.begin(WAIT)
                batch = training.fetch()
                marks.begin(READING)
                waits.append(now() - asked_ns)
                began.append(asked_ns - zero_ns)
                second = read()
                issued_ns = now()
                marks.begin(COPY if marks.on_cuda else REST)
                training.step(batch)
                marks.begin(END)
                rests.append(now() - issued_ns)
                issued.append(now() - marks.computing_ns)
                if marks.on_cuda:
                    ahead.append(marks.host_is_ahead())
                readings.append((first, second, read()))
                retries.append(device_probe.allocator_retries(device))
                samples += count_samples(batch) if single else sum(map(count_samples, batch))
                steals.after(waits[-1] + rests[-1])
                if core is not None:
                    core.after(waits[-1] + rests[-1])
        finally:
            marks.wanted = False
        throttled = device_probe.is_throttled(device)  # before the device has nothing left to do
        phases = marks.take()
        causes = [self._causes(*one) for one in zip(readings, waits, rests, strict=True)]
        causes = _with_forks(causes, self._copied_ns)
        # On a GPU, what the device was seen to do and to wait: the host works on later steps meanwhile.
        times = phases if marks.on_cuda else [{WAIT: wait, REST: rest} for wait, rest in zip(waits, rests, strict=True)]
        return WatchedBlock(
            launch=launch,
            round=round_,
            first_call=calls_done,
            started_ns=started_ns,
            samples=samples,
            steps_per_call=training.steps_per_call,
            loader_workers=int(training.plan.loader.get("num_workers", 0)),
            threads=torch.get_num_threads(),
            step_ns=[sum(one.values()) for one in times],
            began_ns=began,
            phase_ns=_columns(phases),
            cause_ns=_columns([{**one, STEAL: stolen} for one, stolen in zip(causes, steals.taken(), strict=True)]),
            counts=_columns([{RETRY: after - before} for before, after in pairwise(retries)]),
            fixed_work_ns=[] if core is None else core.readings(),
            minor_faults=[last.minor_faults - first.minor_faults for first, _, last in readings],
            page_bytes=mmap.PAGESIZE,
            dispatch_ns=issued if marks.on_cuda else [],
            host_ahead=ahead,
            device_allocated_bytes=device_probe.allocated_bytes(device),
            throttled=throttled,
            throttled_periods=None if stopped is None else (throttled_periods() or stopped) - stopped,
            syncs=syncs,
        )

    def _count_syncs(self, training: Training) -> int | None:
        """Of one step. The copy of the batch, by which this loop waits for the device, comes before."""
        from perftool.training import copied

        if not self.marks.on_cuda:
            return None
        batch = copied(training.fetch(), training.device, non_blocking=False)
        return device_probe.count_syncs(training.device, lambda: training.step(batch))

    def _prepare(self) -> None:
        self._follow_compilation()
        for descriptor in self._threads:
            os.close(descriptor)
        self._threads = _open_schedstats()
        if not self._fault_ns:
            self._fault_ns = median(fault_ns() for _ in range(FAULT_TRIALS))
        gc.collect(0)  # the lists of the last block

    def _causes(self, readings: tuple[Totals, Totals, Totals], wait_ns: int, rest_ns: int) -> dict[str, int]:
        """Time by cause within one call. What is left of the wait is the loader's."""
        first, second, last = readings
        waiting = self._disturbances(first, second, wait_ns)
        stepping = self._disturbances(second, last, rest_ns)
        loading_ns = max(0, wait_ns - sum(waiting.values()))
        started = second.worker_starts > first.worker_starts
        both = {name: waiting[name] + stepping[name] for name in waiting}
        return {**both, WORKER_START if started else LOADER: loading_ns}

    def _disturbances(self, before: Totals, after: Totals, within_ns: int) -> dict[str, int]:
        """None of them longer than the time it happened in: threads that fault side by side cost it only once."""
        found = {
            GARBAGE: after.garbage_ns - before.garbage_ns,
            COMPILATION: after.compilation_ns - before.compilation_ns,
            FAULTS: round((after.minor_faults - before.minor_faults) * self._fault_ns),
            RUN_QUEUE: max(
                (end - start for start, end in zip(before.run_queue_ns, after.run_queue_ns, strict=True)), default=0
            ),
        }
        return {name: min(ns, within_ns) for name, ns in found.items()}

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
        """Once the compiler is loaded: whoever loads it does so at its first use, which is before any watching.

        Looked at before each block, since `torch._dynamo.reset` forgets whom it tells.
        """
        handler = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
        if handler is not None and self._compiling_began not in handler.start_callbacks:
            self._compiling = 0
            handler.register_start_callback(self._compiling_began)
            handler.register_end_callback(self._compiling_ended)

    def _compiling_began(self, *_: object) -> None:
        if not self._compiling:
            self._began_ns[COMPILATION] = perf_counter_ns()
        self._compiling += 1  # older versions of torch tell of what is compiled within, too

    def _compiling_ended(self, *_: object) -> None:
        self._compiling = max(0, self._compiling - 1)
        if not self._compiling and COMPILATION in self._began_ns:
            self._compilation_ns += perf_counter_ns() - self._began_ns.pop(COMPILATION)

    def _count_worker_starts(self) -> None:
        """Have every DataLoader of this process tell when it starts workers: nothing else in it does."""
        from torch.utils.data import DataLoader

        begin: Callable[[Any], Any] = DataLoader.__iter__

        def counted(loader: Any) -> Any:
            if loader.num_workers and not (loader.persistent_workers and loader._iterator is not None):
                self._worker_starts += 1
            return begin(loader)

        DataLoader.__iter__ = counted  # type: ignore[method-assign]


def _with_forks(calls: list[dict[str, int]], seen_ns: dict[int, list[int]]) -> list[dict[str, int]]:
    """Page faults soon after workers were forked are the forks': each page that is written then is copied first. What
    is far beyond the usual so many calls after a fork is not.

    seen_ns: that usual, by the number of calls since the fork; it is added to.
    """
    started = [WORKER_START in call for call in calls]
    for at, call in enumerate(calls):
        since = next((later for later in range(COPYING_CALLS + 1) if at >= later and started[at - later]), None)
        if since is None:
            continue
        faults_ns, seen = call.pop(FAULTS), seen_ns.setdefault(since, [])
        usual_ns = round(median(seen)) if len(seen) >= FORKS_LEAST else faults_ns
        copied_ns = usual_ns if faults_ns > FAR_BEYOND * usual_ns else faults_ns
        seen.append(faults_ns)
        call[WORKER_START] = call.get(WORKER_START, 0) + copied_ns
        if faults_ns > copied_ns:
            call[FAULTS] = faults_ns - copied_ns
    return calls


class _Steals:
    """Time that the host took from the cores of this process, laid to the longest call of each short window."""

    def __init__(self) -> None:
        self._calls_ns: list[int] = []
        self._taken_ns: list[int] = []
        self._ticks = steal_ticks_by_core()
        self._read_ns = perf_counter_ns()

    def after(self, call_ns: int) -> None:
        self._calls_ns.append(call_ns)
        if perf_counter_ns() - self._read_ns > STEAL_EVERY_NS:
            self._read()

    def taken(self) -> list[int]:
        """Of each call; 0 where the system does not tell."""
        if self._calls_ns:
            self._read()
        return self._taken_ns

    def _read(self) -> None:
        before, self._ticks = self._ticks, steal_ticks_by_core()
        self._read_ns = perf_counter_ns()
        # A step waits for the core that lost most.
        ticks = max((now - then for then, now in zip(before, self._ticks, strict=False)), default=0)
        longest = max(range(len(self._calls_ns)), key=lambda call: self._calls_ns[call])
        found = [0] * len(self._calls_ns)
        found[longest] = min(ticks * TICK_NS, self._calls_ns[longest])
        self._taken_ns += found
        self._calls_ns = []


class _CoreSpeed:
    """The time of a fixed piece of work, before and after each short window of calls; a call has the slower one."""

    def __init__(self) -> None:
        self._calls = self._calls_ns = 0
        self._read_ns: list[int] = []
        self._before_ns = fixed_work_ns()

    def after(self, call_ns: int) -> None:
        self._calls += 1
        self._calls_ns += call_ns
        if self._calls_ns > CORE_EVERY_NS:
            self._read()

    def readings(self) -> list[int]:
        """Of each call."""
        if self._calls:
            self._read()
        return self._read_ns

    def _read(self) -> None:
        after_ns = fixed_work_ns()
        self._read_ns += self._calls * [max(self._before_ns, after_ns)]
        self._calls = self._calls_ns = 0
        self._before_ns = after_ns


def fault_ns() -> float:
    """What a page fault costs here, giving the page back included: memory is mapped, written, and written once more."""
    size = FAULTS_TRIED * mmap.PAGESIZE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    began_ns = perf_counter_ns()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # as malloc has it
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
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
