"""A laboratory without processes: launches whose times are scripted, on a clock that only they move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from perftool.analysis.search import Standing
from perftool.measure import messages
from perftool.measure.lab import Lab
from perftool.measure.launch import LaunchFailed
from perftool.measure.ledger import Ledger
from perftool.records import (
    FORWARD,
    BatchFit,
    Block,
    Ceiling,
    Counters,
    Engaged,
    Limits,
    Machine,
    MemoryParts,
    Record,
    Session,
    Settings,
    StepWork,
    Stretch,
    WatchedBlock,
    WorkloadFacts,
)

R = TypeVar("R")

MACHINE = Machine(
    system="Linux",
    cpu_model="scripted",
    usable_cores=2,
    memory_bytes=8 * 2**30,
    memory_available_bytes=8 * 2**30,
    python_version="3.11.0",
    perftool_version="0",
    torch_version="2.13.0",
    torch_threads=2,
    matrix_units=[],
    libc="glibc 2.36",
    compiler="/usr/bin/g++",
    device="cpu",
)
WORKLOAD = WorkloadFacts(
    name="scripted",
    reference="scripted.py:workload",
    batch_size=10,
    dataset_kind="tensors",
    dataset_rows=1000,
    dataset_bytes=4000,
    has_collate=False,
    parameter_count=10,
    parameter_bytes=40,
    floating_parameters=True,
    optimizer="Adam",
    optimizer_options={"fused": None},
    settings={},
)


LIMITS = Limits(
    work=StepWork(
        samples=10,
        flops=1_000_000,
        parameter_bytes=120,
        gradient_bytes=80,
        optimizer_state_bytes=160,
        activation_bytes=400,
        batch_bytes=400,
        working_set_bytes=900,
    ),
    ceilings=[
        Ceiling(kind="matmul", dtype="float32", precision="highest", rows=512, flops_per_second=1e9),
        Ceiling(kind="copy", dtype="uint8", buffer_bytes=2**26, bytes_per_second=1e10),
    ],
    precision="highest",
)


PARTS = MemoryParts(
    parameters_bytes=40,
    gradients_bytes=40,
    optimizer_bytes=80,
    buffers_bytes=0,
    activations_bytes=400,
    batch_bytes=400,
    batch_size=10,
)
FIT = BatchFit(points=[], available_bytes=8 * 2**30, reason="scripted")


def make_session(budget_s: float = 10.0, baseline: Settings | None = None) -> Session:
    """An empty session of the scripted workload."""
    return Session(
        command="compare",
        arguments=[],
        created_at="2026-01-01T00:00:00+00:00",
        seed=0,
        budget_s=budget_s,
        machine=MACHINE,
        workload=WORKLOAD,
        scenario_changes={},
        baseline=baseline or {},
        variants=[{}],
    )


@dataclass
class Script:
    """How the launches behave. `step_s` gives the time of a step of a launch with these settings, `failures` what
    happens instead when a launch with a setting is asked something."""

    step_s: Callable[[Settings], float] = lambda settings: 0.010
    failures: Mapping[tuple[str, type[Any]], Exception] = field(default_factory=dict)
    engaged: Callable[[Settings], bool] = lambda settings: True
    loss: Callable[[Settings, int], float | None] = lambda settings, seed: 0.5
    losses: Callable[[Settings, int, int], list[float]] | None = None  # of every step, in place of `loss`
    samples_per_step: Callable[[Settings], int] = lambda settings: 10
    host_bytes: Callable[[Settings], int] = lambda settings: 100_000_000
    sample_mj: Callable[[Settings], float] = lambda settings: 2.0  # energy of a sample on end
    operations: Callable[[Settings], int] = lambda settings: 50
    modules: Sequence[str] = ()
    start_s: float = 1.0
    start_of: Callable[[Settings], float] | None = None  # in place of `start_s`
    switch_s: float = 0.3  # to a variant that is new in a process that is there already
    switched: list[Settings] = field(default_factory=list)
    steps_per_call: int = 1
    queued_batches: int = 0
    queued_of: Callable[[Settings], int] | None = None  # in place of `queued_batches`
    last_step: Callable[[Settings], int | None] = lambda settings: None  # after which the script is over
    now_s: float = 0.0
    running: int = 0
    most_alive: int = 0
    alive: set[int] = field(default_factory=set)
    started: list[Settings] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)  # of each launch started
    ran: list[tuple[int, int]] = field(default_factory=list)  # (round, launch) in the order run
    covered: dict[tuple[int, int], range] = field(default_factory=dict)  # (round, launch) to the steps of the block
    limits: list[tuple[type[Any], float]] = field(default_factory=list)  # of each request, in seconds
    dropped: set[int] = field(default_factory=set)  # calls before a block

    def start(self, spec: messages.LaunchSpec, environment: dict[str, str]) -> ScriptedLaunch:
        self.started.append(spec.settings)
        self.environments.append(environment)
        self.alive.add(spec.launch)
        self.most_alive = max(self.most_alive, len(self.alive))
        return ScriptedLaunch(self, spec)


class ScriptedLaunch:
    """A LiveLaunch without a process."""

    def __init__(self, script: Script, spec: messages.LaunchSpec) -> None:
        self.script, self.spec = script, spec
        self.number = spec.launch
        self.steps = 0  # done so far
        self.known: set[int] = set()  # launches that had the process

    def ask(self, request: messages.Ask[R], limit_s: float) -> R:
        self.script.limits.append((type(request), limit_s))
        reply: R = self.answer(request)
        return reply

    def answer(self, request: messages.Ask[Any]) -> Any:
        script = self.script
        if isinstance(request, messages.Switch):
            self.spec = replace(self.spec, launch=request.launch, settings=request.settings)
            script.switched.append(request.settings)
        spec = self.spec
        self.fail_where_scripted(request)
        step_s = script.step_s(spec.settings)
        match request:
            case messages.Start() | messages.Switch():
                start_s = script.start_of(spec.settings) if script.start_of else script.start_s
                is_new = spec.launch not in self.known
                script.now_s += (script.switch_s if self.known else start_s) if is_new else 0.0
                self.known.add(spec.launch)
                self.step(is_new)
                return messages.Started(
                    started_ns=round(script.now_s * 1e9),
                    queued_batches=script.queued_of(spec.settings) if script.queued_of else script.queued_batches,
                    steps_per_call=script.steps_per_call,
                )
            case messages.Warm(steps=steps, limit_s=within_s):
                steps = max(1, min(steps, int(within_s / step_s)))
                script.now_s += steps * step_s
                self.step(steps)
                return messages.Warmed(step_ns=[round(step_s * 1e9)] * steps, steps_since_event=None)
            case messages.Prove():
                ok = script.engaged(spec.settings)
                return messages.Proved(engaged=Engaged(ok=ok, evidence="scripted"))
            case messages.Run():
                script.now_s += (request.drop + request.steps) * step_s
                self.step(request.drop + request.steps)
                script.ran.append((request.round, spec.launch))
                script.covered[request.round, spec.launch] = range(self.steps - request.steps, self.steps)
                script.dropped.add(request.drop)
                return Block(
                    launch=spec.launch,
                    round=request.round,
                    position=request.position,
                    started_ns=round(script.now_s * 1e9),
                    wall_ns=round(request.steps * step_s * 1e9),
                    steps=request.steps,
                    samples=script.samples_per_step(spec.settings) * request.steps,
                    step_ns=[round(step_s * 1e9)] * request.steps,
                    wait_ns=[0] * request.steps,
                )
            case messages.Sustain(calls=calls):
                script.now_s += calls * step_s
                samples = script.samples_per_step(spec.settings) * calls
                return Stretch(
                    launch=spec.launch,
                    wall_ns=round(calls * step_s * 1e9),
                    steps=calls,
                    samples=samples,
                    energy_mj=round(script.sample_mj(spec.settings) * samples),
                )
            case messages.Watch():
                script.now_s += (request.drop + request.steps) * step_s
                step_ns = [round(step_s * 1e9)] * request.steps
                return WatchedBlock(
                    launch=spec.launch,
                    round=request.round,
                    first_call=0,
                    started_ns=round(script.now_s * 1e9),
                    samples=script.samples_per_step(spec.settings) * request.steps,
                    step_ns=step_ns,
                    phase_ns={FORWARD: step_ns},
                )
            case messages.Train(seed=seed, steps=steps):
                losses: list[float | None] = [script.loss(spec.settings, seed)] * steps
                if script.losses is not None:
                    losses = list(script.losses(spec.settings, seed, steps))
                samples = script.samples_per_step(spec.settings) * steps
                tail = [loss for loss in losses[-max(1, steps // 10) :] if loss is not None]
                return messages.Trained(loss=sum(tail) / len(tail) if tail else None, losses=losses, samples=samples)
            case messages.Count(variant=variant, calls=calls):
                return Counters(
                    variant=variant,
                    parameters=100,
                    flops_per_step=1000,
                    operations_per_step=script.operations(spec.settings),
                    graph_breaks=0,
                    compiled_graphs=0,
                    calls=calls,
                    modules=list(script.modules),
                )
            case messages.Limit():
                return LIMITS
            case messages.Weigh():
                return PARTS
            case messages.Fit():
                return FIT
            case messages.Finish():
                return messages.Finished(
                    last_loss=0.5,
                    peak_device_allocated_bytes=None,
                    peak_device_reserved_bytes=None,
                )
        raise LaunchFailed("died", "not scripted")

    def step(self, steps: int) -> None:
        last_step = self.script.last_step(self.spec.settings)
        if last_step is not None and self.steps + steps > last_step:
            raise LaunchFailed("ended", f"its script was over after {last_step} steps")
        self.steps += steps

    def fail_where_scripted(self, request: messages.Ask[Any]) -> None:
        for setting in self.spec.settings.items():
            failure = self.script.failures.get(("=".join(setting), type(request)))
            if failure is not None:
                raise failure

    def host_bytes(self) -> int | None:
        return self.script.host_bytes(self.spec.settings)

    def held_bytes(self) -> int | None:
        return self.script.host_bytes(self.spec.settings)

    def reset_host_peak(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def close(self) -> None:
        self.script.alive.discard(self.number)


class Silent:
    """A watcher that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float, float]] = []
        self.shown: list[Standing] = []

    def update(self, text: str, done_s: float, left_s: float) -> None:
        self.told.append((text, done_s, left_s))

    def show(self, standings: Sequence[Standing]) -> None:
        self.shown = list(standings)


def make_lab(
    script: Script,
    session: Session,
    *,
    live_limit: int = 64,
    even_steps: bool = False,
    tunes_kernels: Callable[[Settings], bool] = lambda _: False,
) -> tuple[Lab, list[Record]]:
    """A lab on the script, and what it appends to disk."""
    appended: list[Record] = []
    lab = Lab(
        Ledger(session, appended.append),
        start=script.start,
        environment=lambda settings: {},
        live_limit=live_limit,
        even_steps=even_steps,
        tunes_kernels=tunes_kernels,
        caches=Path("never-written"),
        watcher=Silent(),
        clock=lambda: script.now_s,
    )
    return lab, appended
