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

from perftool.probes import device as device_probe
from perftool.probes.causes import steal_ticks_by_core
from perftool.probes.cgroups import throttled_periods
from perftool.probes.core import fixed_work_ns
from perftool.words import (
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
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from perftool.plan import Looped, Loss, Plan, Step
    from perftool.training import Training
    from perftool.workload import Batch

THREADS_MOST = 8  # whose waiting for a core is followed: those with the most CPU time
READING = "reading counters"  # no phase of the training
LAST_PHASES = (BACKWARD, OPTIMIZER, WHOLE)
STEAL_EVERY_NS = 20_000_000  # reading it takes some 50 µs
CORE_EVERY_NS = 2_000_000  # likewise
TICK_NS = 10_000_000  # of /proc/stat
COPYING_CALLS = 2  # after a fork, in which nearly all that a step writes is written
FORKS_LEAST, FAR_BEYOND = 3, 2.0  # to know what is usual after one, and times the usual
FAULTS_TRIED, FAULT_TRIALS = 1024, 7  # to learn what a page fault costs


class Marks:
    """The moments at which phases begin, while they are wanted: on the host, or on the stream of a CUDA device.

    Phases may lie within each other; time counts for the innermost.
    """

    def __init__(self, device: str) -> None:
        self.wanted = False
        self.on_cuda = device.startswith("cuda")
        self.computing_ns = 0  # when the host began to issue the computation of the present call
        self._open = [REST]  # phases, the innermost last
        self._calls: list[list[tuple[str, Any]]] = []

    def begin(self, phase: str) -> None:
        """The innermost phase has ended, and this one begins in its place."""
        if self.wanted:
            self._open[-1] = phase
            self._note(phase)

    def push(self, phase: str) -> None:
        """This phase begins within the innermost one."""
        if self.wanted:
            self._open.append(phase)
            self._note(phase)

    def pop(self, then: str | None = None) -> None:
        """The innermost phase has ended, and the one around it goes on, as `then` where that is given.

        What was begun before the present call is no longer known, and ends the rest of it.
        """
        if self.wanted:
            if len(self._open) > 1:
                self._open.pop()
            self._open[-1] = then or self._open[-1]
            self._note(self._open[-1])

    def next_call(self) -> None:
        self._open = [REST]
        self._calls.append([])

    def drop_call(self) -> None:
        """Forget the present call."""
        self._calls.pop()

    def reading(self) -> None:
        """What follows, until the next mark, is not the training's."""
        if self.wanted:
            self._note(READING)

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

    def _note(self, phase: str) -> None:
        self._calls[-1].append((phase, self._now()))

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

    def on_device(training: Looped, step: Step) -> Step:
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


class Piece(NamedTuple):
    """Of a call: it waited for data, or did anything else, without a break."""

    waiting: bool
    before: Totals
    after: Totals
    took_ns: int


class Watcher:
    """Watches the calls of a training that somebody else drives; made before it is built.

    `begin`; of each call `fetching`, `fetched` for each batch and `stepped` at its end; then `finish`. A call that
    begins with anything else than a fetch is begun by `stepping`, and by `restart` where that turns out to be none of
    it. Phases within it are told to `marks`.
    """

    def __init__(self, device: str, fault_trials: int = FAULT_TRIALS) -> None:
        """fault_trials: from which it learns, once, what a page fault costs; each takes a millisecond and more."""
        self.marks = Marks(device)
        self._fault_trials = fault_trials
        self._device_name = device
        self._garbage_ns = self._compilation_ns = self._worker_starts = 0
        self._began_ns: dict[str, int] = {}
        self._threads: list[int] = []  # open files
        self._fault_ns = 0.0
        self._copied_ns: dict[int, list[int]] = {}
        self._compiling = 0
        gc.callbacks.append(self._on_garbage)
        self._count_worker_starts()

    def begin(self) -> None:
        """From here on calls are watched."""
        import torch

        self._prepare()
        self._device = torch.device(self._device_name)
        self._calls: list[list[Piece]] = []
        self._in_call = False
        self._call_began_ns: list[int] = []
        self._issued_ns: list[int] = []
        self._ahead: list[bool] = []
        self._retries = [device_probe.allocator_retries(self._device)]
        self._stopped = throttled_periods()
        self._steals = _Steals()
        self._core = None if self.marks.on_cuda else _CoreSpeed()
        self._started_ns, self._zero_ns = monotonic_ns(), perf_counter_ns()
        self.marks.wanted = True

    def stepping(self) -> None:
        """A call begins."""
        self._open_call()
        self.marks.begin(REST)

    def restart(self) -> None:
        """What came before in this call is none of it."""
        self._calls.pop()
        self._call_began_ns.pop()
        self.marks.drop_call()
        self.stepping()

    def fetching(self) -> None:
        """The next batch is asked for. A call begins with it where none has begun."""
        if self._in_call:
            self._end_piece(waiting=False)
        else:
            self._open_call()
        self.marks.push(WAIT)

    def fetched(self, then: str | None = None) -> None:
        """The batch has come, and the phase `then` begins; without it the one that there was goes on."""
        self._end_piece(waiting=True)
        self.marks.computing_ns = self._since_ns
        self.marks.pop(then)

    def stepped(self) -> None:
        """The call has ended."""
        ended_ns = self._end_piece(waiting=False)
        self._in_call = False
        self._issued_ns.append(ended_ns - self.marks.computing_ns)
        if self.marks.on_cuda:
            self._ahead.append(self.marks.host_is_ahead())
        self._retries.append(device_probe.allocator_retries(self._device))
        took_ns = sum(piece.took_ns for piece in self._calls[-1])
        self._steals.after(took_ns)
        if self._core is not None:
            self._core.after(took_ns)

    def finish(self) -> dict[str, Any]:
        """No more calls are watched. Returns the fields of a WatchedBlock, but for those that only who drives knows:
        launch, round, first_call, samples, steps_per_call, loader_workers and syncs."""
        import torch

        marks, device = self.marks, self._device
        marks.wanted = False
        stopped = None if self._stopped is None else (throttled_periods() or self._stopped) - self._stopped
        throttled = device_probe.is_throttled(device)  # before the device has nothing left to do
        phases = marks.take()
        causes = _with_forks([self._causes(call) for call in self._calls], self._copied_ns)
        stolen = self._steals.taken()
        # On a GPU, what the device was seen to do and to wait: the host works on later steps meanwhile.
        times = phases if marks.on_cuda else [{REST: sum(piece.took_ns for piece in call)} for call in self._calls]
        return {
            "started_ns": self._started_ns,
            "threads": torch.get_num_threads(),
            "step_ns": [sum(one.values()) for one in times],
            "began_ns": self._call_began_ns,
            "phase_ns": _columns(phases),
            "cause_ns": _columns([{**one, STEAL: ns} for one, ns in zip(causes, stolen, strict=True)]),
            "counts": _columns([{RETRY: after - before} for before, after in pairwise(self._retries)]),
            "fixed_work_ns": [] if self._core is None else self._core.readings(),
            "minor_faults": [call[-1].after.minor_faults - call[0].before.minor_faults for call in self._calls],
            "page_bytes": mmap.PAGESIZE,
            "dispatch_ns": self._issued_ns if marks.on_cuda else [],
            "host_ahead": self._ahead,
            "device_allocated_bytes": device_probe.allocated_bytes(device),
            "throttled": throttled,
            "throttled_periods": stopped,
        }

    def _open_call(self) -> None:
        self.marks.next_call()
        self._calls.append([])
        self._in_call = True
        self._before = self._read()
        self._since_ns = self.marks.computing_ns = perf_counter_ns()
        self._call_began_ns.append(self._since_ns - self._zero_ns)

    def _end_piece(self, *, waiting: bool) -> int:
        """Another piece begins, once the counters are read. Returns when this one ended."""
        self.marks.reading()
        ended_ns = perf_counter_ns()
        after = self._read()
        self._calls[-1].append(Piece(waiting, self._before, after, ended_ns - self._since_ns))
        self._before, self._since_ns = after, perf_counter_ns()
        return ended_ns

    def _prepare(self) -> None:
        self._follow_compilation()
        for descriptor in self._threads:
            os.close(descriptor)
        self._threads = _open_schedstats()
        if not self._fault_ns:
            self._fault_ns = median(fault_ns() for _ in range(self._fault_trials))
        gc.collect(0)  # the lists of the last block

    def _causes(self, call: Sequence[Piece]) -> dict[str, int]:
        """Time by cause within one call. What is left of the wait is the loader's."""
        found: dict[str, int] = defaultdict(int)
        loading_ns, started = 0, False
        for piece in call:
            disturbed = self._disturbances(piece.before, piece.after, piece.took_ns)
            for name, ns in disturbed.items():
                found[name] += ns
            if piece.waiting:
                loading_ns += max(0, piece.took_ns - sum(disturbed.values()))
                started = started or piece.after.worker_starts > piece.before.worker_starts
        return {**found, WORKER_START if started else LOADER: loading_ns}

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

        make: Callable[[Any], Any] = DataLoader._get_iterator

        def counted(loader: Any) -> Any:
            self._worker_starts += bool(loader.num_workers)
            return make(loader)

        DataLoader._get_iterator = counted  # type: ignore[assignment, method-assign]


def watch_training(watcher: Watcher, training: Training, calls: int) -> dict[str, Any]:
    """So many calls of a training in perftool's own loop, each with its phases and what disturbed it: the fields of a
    WatchedBlock, but for those of the launch. On a GPU one call comes before, in which `syncs` are counted."""
    syncs = _count_syncs(training)
    then = COPY if watcher.marks.on_cuda else REST
    samples = 0
    watcher.begin()
    for _ in range(calls):
        watcher.fetching()
        batch = training.fetch()
        watcher.fetched(then)
        training.step(batch)
        watcher.stepped()
        samples += training.drawn
    return {
        **watcher.finish(),
        "samples": samples,
        "steps_per_call": training.steps_per_call,
        "loader_workers": int(training.plan.loader.get("num_workers", 0)),
        "syncs": syncs,
    }


def _count_syncs(training: Training) -> int | None:
    """Of one step. The copy of the batch, by which this loop waits for the device, comes before."""
    from perftool.training import copied

    if training.device.type != "cuda":
        return None
    batch = copied(training.fetch(), training.device, non_blocking=False)
    return device_probe.count_syncs(training.device, lambda: training.step(batch))


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
