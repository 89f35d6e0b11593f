"""The worker process: holds one variant, does what it is asked, and stops itself after each answer.

Started as `python -P -m perftool.measure.worker FD PARENT_PID`; see `launch.py` for the other side. Whatever the
workload prints goes to stderr.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic_ns, perf_counter
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace as replace_fields

from perftool import trees
from perftool.measure import messages
from perftool.measure.devices import DeviceError, take_device
from perftool.measure.facts import count_denormal, describe_first_step
from perftool.probes.events import Events
from perftool.records import (
    WAIT,
    BatchFit,
    Block,
    BlockLabels,
    Counters,
    Limits,
    MemoryParts,
    Settings,
    Stretch,
    WatchedBlock,
    known,
)

if TYPE_CHECKING:
    from perftool.probes.clock import StepClock
    from perftool.probes.watch import Watcher
    from perftool.scenario import Scenarios
    from perftool.training import Plan, Training
    from perftool.workload import Loaded

PR_SET_PDEATHSIG = 1
PLAN_STEPS, PLAN_LIMIT_S = 5, 1.0  # for the time that a step takes roughly
RETURN_CALLS = 2  # after which a training that was left without a cache has what it needs
TRACE_WARM_CALLS = 2  # with the profiler on, before what is kept: its own first calls are slow


def die_with_parent(_worker: int = 0) -> None:
    """Have the kernel kill this process when the thread that started it ends. Also the first act of its forks, and of
    loader workers that are no forks: stopped ones would otherwise outlive a killed command for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Worker:
    """One variant in this process, from its description to its end."""

    def __init__(self, spec: messages.LaunchSpec, loaded: Loaded | None = None, present: Settings = {}) -> None:  # noqa: B006
        """loaded: what the process has loaded for another variant. present: settings of the process beside its own."""
        self.spec = spec
        self.device = "cpu"
        self.scenarios: Scenarios = {}
        self.loaded = loaded
        self.present = present
        self.plan: Plan | None = None
        self.training: Training | None = None
        self.calls_done = 0
        self.events = Events()
        self.last_loss: Any = None
        self.watcher: Watcher | None = None
        self.clock: StepClock | None = None

    def answer(self, request: messages.Request) -> messages.Reply:
        """Do what was asked. Exceptions of the user's code pass through; see `failure`."""
        match request:
            case messages.Describe():
                return self.describe()
            case messages.Start():
                return self.start()
            case messages.Switch():
                raise NotImplementedError("a worker is one variant; see Workers")
            case messages.Warm():
                return self.warm(request)
            case messages.Prove():
                return self.prove()
            case messages.Run():
                return self.run(request)
            case messages.Sustain():
                return self.sustain(request)
            case messages.Watch():
                return self.watch(request)
            case messages.Count():
                return self.count(request)
            case messages.Train():
                return self.train(request)
            case messages.Limit():
                return self.limit()
            case messages.Weigh():
                return self.weigh()
            case messages.Fit():
                return self.fit()
            case messages.Trace():
                return self.trace(request)
            case messages.Finish():
                return self.finish()

    def _load(self) -> Plan:
        from perftool.scenario import discover, plan_of
        from perftool.workload import load

        self.device = take_device(self.spec.device)
        self.scenarios = discover([Path(file) for file in self.spec.scenario_files])
        if self.loaded is None:
            self.loaded = load(self.spec.reference)
        settings = {**self.present, **self.spec.settings}
        plan = plan_of(self.loaded.workload, settings, self.scenarios, device=self.device, seed=self.spec.seed)
        if plan.loader.get("num_workers"):
            plan = replace(plan, loader={**plan.loader, "worker_init_fn": _worker_init(plan)})
        self.plan = plan
        return plan

    def describe(self) -> messages.Described:
        import torch

        from perftool.probes.device import read_use
        from perftool.probes.machine import describe_machine
        from perftool.probes.memory import high_water_bytes
        from perftool.training import Training, tensors_of

        threads = torch.get_num_threads()
        plan = self._load()
        training = Training(plan)
        assert self.loaded is not None
        facts, batch = describe_first_step(self.loaded, training)
        step_ns, wait_ns = self._quickest_ns(training)
        self._own_modules()
        facts = replace_fields(
            facts,
            wait_share=wait_ns / step_ns,
            python_objects=len(gc.get_objects()),
            denormal_values=count_denormal([*tensors_of(batch), *training.module.parameters()]),
        )
        return messages.Described(
            machine=describe_machine(self.device, threads_before=threads),
            workload=facts,
            peak_host_bytes=high_water_bytes(os.getpid()),
            device_used_bytes=read_use(training.device).nvml_bytes,
            step_ns=step_ns,
        )

    def _quickest_ns(self, training: Training) -> tuple[int, int]:
        """Of a few steps, and what of it was waiting for its batch: one step alone may have waited for whatever else
        the machine does."""
        found: list[tuple[int, int]] = []
        while len(found) < PLAN_STEPS and sum(step_ns for step_ns, _ in found) < PLAN_LIMIT_S * 1e9:
            began_ns = monotonic_ns()
            batch = training.fetch()
            wait_ns = monotonic_ns() - began_ns
            training.step(batch)
            self._synchronise(training)
            found.append((monotonic_ns() - began_ns, wait_ns))
        return min(found)

    def start(self) -> messages.Started:
        from perftool.training import Training

        plan = self._load()
        if self.spec.watched:
            from perftool.probes.watch import Watcher, with_marks

            self.watcher = Watcher(self.device)
            plan = with_marks(plan, self.watcher.marks)
        if self.spec.phases_named:
            from perftool.probes.marks import with_forward_named

            plan = with_forward_named(plan)
        self.training = Training(plan)
        self._steps(1)
        self._synchronise()
        return self.started()

    def started(self) -> messages.Started:
        """What is known of it from its start on."""
        plan = self._live().plan
        queued = int(plan.loader.get("num_workers", 0)) * int(plan.loader.get("prefetch_factor") or 2)
        return messages.Started(started_ns=monotonic_ns(), queued_batches=queued, steps_per_call=plan.steps_per_call)

    def warm(self, request: messages.Warm) -> messages.Warmed:
        training = self._live()
        clock = self._step_clock()
        deadline = perf_counter() + request.limit_s
        self.events.after_steps(self.calls_done, training.device)
        clock.start()
        for _ in range(request.steps):
            self.last_loss = training.step(training.fetch())
            clock.mark()
            self.calls_done += 1
            self.events.after_step(self.calls_done)
            if perf_counter() > deadline:
                break
        _, step_ns = clock.finish()
        self.events.after_steps(self.calls_done, training.device)
        self._check_loss()
        return messages.Warmed(step_ns=step_ns, steps_since_event=self.events.steps_since(self.calls_done))

    def prove(self) -> messages.Proved:
        from perftool.probes.device import drop_cache, reset_peaks
        from perftool.records import Engaged
        from perftool.training import run_proof

        training = self._live()
        proofs = [
            (name, run_proof(training, self.scenarios[name].proof(training, value)))
            for name, value in sorted(self.spec.settings.items())
        ]
        gc.collect()  # what the proofs left behind is not the training's
        drop_cache(training.device)
        if training.device.type == "cuda":
            self._steps(RETURN_CALLS)  # it takes again what it needs
        reset_peaks(training.device)
        engaged = Engaged(
            ok=all(proof.ok for _, proof in proofs),
            # Where one did not take effect, only that one is of interest.
            evidence="; ".join(
                f"{name}: {proof.evidence}" for name, proof in proofs if not proof.ok or all(p.ok for _, p in proofs)
            ),
        )
        return messages.Proved(engaged=engaged)

    def run(self, request: messages.Run) -> Block:
        from perftool.probes.causes import labels, read_counters
        from perftool.probes.device import clock_labels

        training = self._live()
        single = training.steps_per_call == 1
        clock = self._step_clock()
        self._steps(request.drop)
        fetch, step, mark, now = training.fetch, training.step, clock.mark, monotonic_ns
        wait_ns: list[int] = []
        samples = 0
        loss = self.last_loss
        before = read_counters()
        started_ns = now()
        clock.start()
        for _ in range(request.steps):
            asked_ns = now()
            batch = fetch()
            wait_ns.append(now() - asked_ns)
            samples += training.drawn
            loss = step(batch)
            mark()
        of_clock = clock_labels(training.device)  # before the device has nothing left to do
        wall_ns, step_ns = clock.finish()
        after = read_counters()
        self.last_loss = loss
        self.calls_done += request.steps
        self._check_loss()
        return Block(
            launch=self.spec.launch,
            round=request.round,
            position=request.position,
            started_ns=started_ns,
            wall_ns=wall_ns,
            steps=request.steps * training.steps_per_call,
            samples=samples,
            step_ns=step_ns if single else [],
            wait_ns=wait_ns if single else [],
            waited_ns=sum(wait_ns),
            labels=BlockLabels(**{**labels(before, after), **of_clock}),
        )

    def sustain(self, request: messages.Sustain) -> Stretch:
        from perftool.probes.device import Meter

        training = self._live()
        samples, loss = 0, self.last_loss
        meter = Meter(training.device)
        for _ in range(request.calls):
            batch = training.fetch()
            samples += training.drawn
            loss = training.step(batch)
        measured = meter.read()
        self.last_loss = loss
        self.calls_done += request.calls
        self._check_loss()
        return Stretch(
            launch=self.spec.launch,
            steps=request.calls * training.steps_per_call,
            samples=samples,
            **measured,
        )

    def watch(self, request: messages.Watch) -> WatchedBlock:
        from perftool.probes.watch import watch_training

        assert self.watcher is not None, "only a watched launch can be watched"
        self._steps(request.drop)
        fields = watch_training(self.watcher, self._live(), request.steps)
        self.calls_done += fields["syncs"] is not None  # counted in a call of its own
        block = WatchedBlock(launch=self.spec.launch, round=request.round, first_call=self.calls_done, **fields)
        self.calls_done += request.steps
        return block

    def count(self, request: messages.Count) -> Counters:
        from perftool.probes.work import compiled, count_operations, count_work

        training = self._live()
        self._steps(request.calls)
        self._check_loss()
        breaks, graphs = compiled()
        operations, flops, reasons = None, None, []
        if graphs or training.plan.whole_step:
            reasons.append("the operations of compiled code cannot be counted")
        else:
            try:
                operations = count_operations(training)
            except Exception as error:
                reasons.append(f"its operations cannot be counted ({type(error).__name__}: {error})")
            self.calls_done += 1
        try:
            flops = count_work(training).flops
        except Exception as error:
            reasons.append(f"its arithmetic cannot be counted ({type(error).__name__}: {error})")
        return Counters(
            variant=request.variant,
            parameters=sum(part.numel() for part in training.module.parameters()),
            flops_per_step=flops,
            operations_per_step=operations,
            graph_breaks=breaks,
            compiled_graphs=graphs,
            calls=request.calls,
            reason="; ".join(reasons) or None,
            modules=self._own_modules(),
        )

    def train(self, request: messages.Train) -> messages.Trained:
        """From scratch in this process: settings of the process are in force already, the rest is built anew."""
        from perftool.scenario import with_seed
        from perftool.training import Training

        plan = self.plan or self._load()
        training = Training(with_seed(plan, request.seed))
        samples = 0
        per_call = []
        for _ in range(math.ceil(request.steps / training.steps_per_call)):
            batch = training.fetch()
            samples += training.drawn
            per_call.append(training.step(batch).clone())  # a graph writes every loss into the same place
        losses = [known(loss) for one in per_call for loss in one.reshape(-1).tolist()]
        tail = losses[: request.steps][-max(1, request.steps // 10) :]
        finite = [loss for loss in tail if loss is not None]
        return messages.Trained(
            loss=sum(finite) / len(tail) if len(finite) == len(tail) else None, losses=losses, samples=samples
        )

    def limit(self) -> Limits:
        from perftool.probes.ceilings import limits

        return limits(self._live())

    def weigh(self) -> MemoryParts:
        from perftool.probes.weights import weigh

        return weigh(self._live())

    def fit(self) -> BatchFit:
        from perftool.probes.fit import fit_batch

        return fit_batch(self._live())

    def trace(self, request: messages.Trace) -> messages.Traced:
        from torch.profiler import profile, record_function, schedule, supported_activities

        from perftool.probes.marks import phases_named

        training = self._live()
        self._steps(request.drop)
        profiler = profile(
            activities=supported_activities(),  # type: ignore[no-untyped-call]
            schedule=schedule(wait=0, warmup=TRACE_WARM_CALLS, active=request.calls, repeat=1),
            on_trace_ready=lambda done: done.export_chrome_trace(request.path),
        )
        with phases_named(), profiler:
            for _ in range(TRACE_WARM_CALLS + request.calls):
                with record_function(WAIT):
                    batch = training.fetch()
                self.last_loss = training.step(batch)
                profiler.step()
        self.calls_done += TRACE_WARM_CALLS + request.calls
        self._check_loss()
        return messages.Traced(calls=request.calls)

    def finish(self) -> messages.Finished:
        from perftool.probes.device import read_peaks

        self._own_modules()  # what was imported late
        loss = None if self.last_loss is None else self._loss()
        peaks = read_peaks(self._live().device) if self.training else None
        return messages.Finished(
            last_loss=loss if loss is not None and math.isfinite(loss) else None,
            peak_device_allocated_bytes=peaks.allocated_bytes if peaks else None,
            peak_device_reserved_bytes=peaks.reserved_bytes if peaks else None,
        )

    def _own_modules(self) -> list[str]:
        """The files of the side's tree that were loaded. Raises TreeError where there are none, or another side's."""
        tree = self.spec.tree
        if tree is None:
            return []
        own = trees.modules_of(tree)
        if not own:
            raise trees.TreeError(
                f"{self.spec.reference} loads no file of {tree.root}, so both sides would run the same code; name a "
                "workload of that repository, such as train.py:mine"
            )
        return own

    def resume(self) -> messages.Started:
        """Go on after another variant: the process is as this one has it."""
        for prepare in self._live().plan.process:
            prepare()
        return self.started()

    def _live(self) -> Training:
        assert self.training is not None, "a training is started before it is stepped"
        return self.training

    def _steps(self, count: int) -> None:
        training = self._live()
        for _ in range(count):
            self.last_loss = training.step(training.fetch())
        self.calls_done += count

    def _synchronise(self, training: Training | None = None) -> None:
        from perftool.probes.device import synchronise

        synchronise((training or self._live()).device)

    def _step_clock(self) -> StepClock:
        from perftool.probes.clock import step_clock

        if self.clock is None:
            self.clock = step_clock(self._live().device)
        return self.clock

    def _loss(self) -> float:
        """Of the last step; waits for the device."""
        return float(self.last_loss.reshape(-1)[-1])

    def _check_loss(self) -> None:
        loss = self._loss()
        if not math.isfinite(loss):
            steps = self.calls_done * self._live().steps_per_call
            raise FloatingPointError(f"the loss became {loss} within {steps} steps")


class Workers:
    """The variants that this process has in turn; most processes have the one that they were started for.

    Each has a training of its own, of the same dataset. What holds for the process is set anew at each switch, to what
    was there before the first where a variant says nothing of it.
    """

    def __init__(self, spec: messages.LaunchSpec) -> None:
        self._spec, self._present = spec, Worker(spec)
        self._known: dict[int, Worker] = {}  # by launch, of those that were switched to
        self._own: Settings = {}

    def answer(self, request: messages.Request) -> messages.Reply:
        """Do what was asked; exceptions pass through."""
        return self._switch(request) if isinstance(request, messages.Switch) else self._present.answer(request)

    def _switch(self, request: messages.Switch) -> messages.Started:
        known = self._known.get(request.launch)
        if known is not None:
            self._present = known
            return known.resume()
        from perftool.scenario import discover
        from perftool.workload import load

        first = next(iter(self._known.values()), None)
        if first is None:
            scenarios = discover([Path(file) for file in self._spec.scenario_files])
            take_device(self._spec.device)
            loaded = load(self._spec.reference)  # which may itself set what is in force
            shown = {name: scenarios[name].present for name in self._spec.switched}
            self._own = {name: show() for name, show in shown.items() if show is not None}
        else:
            assert first.loaded is not None
            dataset = first._live().dataset
            loaded = replace(first.loaded, workload=replace(first.loaded.workload, dataset=lambda: dataset))
        spec = replace_fields(self._spec, launch=request.launch, settings=request.settings)
        self._present = self._known[request.launch] = Worker(spec, loaded, self._own)
        return self._present.start()


def _worker_init(plan: Plan) -> Callable[[int], None]:
    given = plan.loader.get("worker_init_fn")
    return die_with_parent if given is None else partial(_begin_loader_worker, given)


def _begin_loader_worker(given: Callable[[int], None], worker: int) -> None:
    die_with_parent()
    given(worker)


def failure(error: BaseException) -> messages.Failed:
    """An exception as a sentence for the user."""
    from perftool.scenario import ScenarioError
    from perftool.training import SettingError
    from perftool.workload import WorkloadError, where

    text = str(error)
    if isinstance(error, trees.TreeError):
        return messages.Failed(kind="tree", reason=text)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return messages.Failed(kind="memory", reason="out of memory: use a smaller batch or a smaller model")
    if isinstance(error, DeviceError):
        return messages.Failed(kind="device", reason=text)
    if isinstance(error, SettingError):
        return messages.Failed(kind="setting", reason=text)
    if isinstance(error, (WorkloadError, ScenarioError)):
        return messages.Failed(kind="reference", reason=text)
    if isinstance(error, FloatingPointError):
        return messages.Failed(kind="training", reason=text)
    if isinstance(error, SystemExit):
        return messages.Failed(kind="training", reason=f"the workload's code called exit({error.code!r})")
    return messages.Failed(kind="training", reason=where(error))


def main() -> None:
    """Answer requests until there are no more, the parent is gone, or one fails."""
    channel = socket.socket(fileno=int(sys.argv[1])).makefile("rwb")
    os.dup2(2, 1)  # whatever the workload prints goes to stderr
    sys.stdout = sys.stderr
    die_with_parent()
    if os.getppid() != int(sys.argv[2]):  # it went before its end could be noticed
        return
    os.register_at_fork(after_in_child=die_with_parent)
    spec = messages.decode_spec(channel.readline())
    workers = Workers(spec)
    if spec.tree is not None:
        trees.enter(spec.tree)
    for line in channel:
        request = messages.decode_request(line)
        reply: messages.Reply
        try:
            reply = workers.answer(request)
        except (Exception, SystemExit) as error:
            reply = failure(error)
        channel.write(messages.encode(reply) + b"\n")
        channel.flush()
        if isinstance(reply, messages.Failed | messages.Finished):
            break
        if isinstance(request, messages.Describe):
            break
        # From here to the next request nothing of this launch runs: not its loader workers, not its spinning threads.
        os.killpg(0, signal.SIGSTOP)
    channel.close()
    sys.stderr.flush()
    # Loader workers and atexit handlers of the user's code have nothing left to do that anybody measures.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
