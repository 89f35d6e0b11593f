"""One launch while it lives: started, warmed up, asked for blocks, and written down when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

from perftool.measure import messages
from perftool.measure.lab import BaselineFailed, Lab, Lost
from perftool.measure.launch import LaunchFailed, LiveLaunch
from perftool.measure.switching import SharedProcess
from perftool.measure.warmup import classify, settled
from perftool.records import Block, Engaged, Launch, Settings, Side, Status
from perftool.trees import Tree

BLOCK_S = 0.03
QUEUES_PER_BLOCK = (2, 10)  # so that what loader workers held ready when the block began does not decide it
LONG_BLOCK_S = 0.15  # where ten queues would take longer, fewer do: the first one is dropped anyway
WARM_CHUNK_STEPS = 20
WARM_CAP_STEPS = 2000
CHILDREN_INTERVAL_S = 1.0
SHARED_CACHE = "shared"  # of what is compiled, for those that have none of their own
ANSWER_LIMIT_S = 30.0  # for what should take a fraction of a second


@dataclass(eq=False)
class Running:
    """A live launch and what is known of it."""

    lab: Lab
    live: LiveLaunch
    number: int
    variant: int
    stage: str
    generation: int
    cold: bool
    start_up_ns: int | None = None
    switch_s: float = 0.0  # until its first step, in a process that may have been there before
    queued_batches: int = 0
    steps_per_call: int = 1
    warmup_step_ns: list[int] = field(default_factory=list)  # one per call, as all that counts steps here
    warmup_peak_host_bytes: int | None = None
    engaged: Engaged | None = None
    call_ns: float = 0.0  # what a call usually takes, by the last of the warm-up
    steps_per_block: int = 1
    drop: int = 1
    blocks: int = 0
    process: SharedProcess | None = None  # that others have, too
    is_kept: bool = False
    children_sampled_s: float = 0.0

    @property
    def call_s(self) -> float:
        """What a call usually takes."""
        return self.call_ns / 1e9

    @property
    def block_s(self) -> float:
        """What a block usually takes, with what is dropped before it."""
        return (self.steps_per_block + self.drop) * self.call_ns / 1e9

    @property
    def limit_s(self) -> float:
        """That it may take until it can be timed, for each that it is asked."""
        return self.lab.limit_s(self.lab.session.variants[self.variant])

    @property
    def queued_calls(self) -> int:
        """Whose batches loader workers hold ready."""
        return ceil(self.queued_batches / self.steps_per_call)

    def start(self) -> None:
        """Build the training and do its first step. Raises LaunchFailed, as all that asks the launch."""
        asked_ns = round(self.lab.clock() * 1e9)
        started = self.live.ask(messages.Start(), self.limit_s)
        own_ns = started.started_ns - asked_ns
        self.start_up_ns = own_ns if self.process is None else self.process.start_up_ns
        self.switch_s = own_ns / 1e9
        self.queued_batches = started.queued_batches
        self.steps_per_call = started.steps_per_call

    def warm_up(self, drift_limit_s: float) -> None:
        """Step until the times have settled or patience is out, and see that its settings took effect."""
        lab = self.lab
        lab.tell(f"{self.stage}: warming up")
        began_s = lab.clock()
        while len(self.warmup_step_ns) < WARM_CAP_STEPS:
            since_event = self._warm(WARM_CHUNK_STEPS)
            if settled(self.warmup_step_ns, since_event, lab.clock() - began_s, drift_limit_s):
                break
        self.call_ns = median(self.warmup_step_ns[-WARM_CHUNK_STEPS:])
        self.steps_per_block = block_steps(self.call_ns, self.queued_calls)
        self.drop = self.queued_calls + 1
        self.warmup_peak_host_bytes = self.live.host_bytes()
        self.engaged = self.live.ask(messages.Prove(), self.limit_s).engaged
        if not self.engaged.ok:
            raise LaunchFailed("effect", f"did not take effect: {self.engaged.evidence}")
        self.live.reset_host_peak()
        settings = lab.session.variants[self.variant]
        if self.process is None:
            lab.note_cost(settings, (self.start_up_ns or 0) / 1e9, lab.clock() - began_s)
        else:
            lab.note_shared_cost(settings, (self.start_up_ns or 0) / 1e9, lab.clock() - began_s, self.switch_s)

    def step_on(self, steps: int) -> None:
        """Go on with the warm-up until it has so many steps."""
        while len(self.warmup_step_ns) < steps:
            self._warm(steps - len(self.warmup_step_ns))

    def _warm(self, steps: int) -> int:
        """Some more steps; how many there are since something was compiled, captured or retried."""
        warmed = self.live.ask(messages.Warm(steps=steps, limit_s=1.0), self.limit_s)
        self.warmup_step_ns.extend(warmed.step_ns)
        return len(self.warmup_step_ns) if warmed.steps_since_event is None else warmed.steps_since_event

    def block(self, position: int) -> Block:
        """A block of the present round."""
        lab = self.lab
        request = messages.Run(round=lab.next_round, position=position, drop=self.drop, steps=self.steps_per_block)
        with lab.spending():
            # A batch of another shape may be compiled for in the midst of a block.
            block = self.live.ask(request, max(lab.start_limit_s, 20 * self.block_s))
        self.blocks += 1
        if self.queued_batches and lab.clock() - self.children_sampled_s > CHILDREN_INTERVAL_S:
            self.children_sampled_s = lab.clock()
            self.live.host_bytes()
        return block

    def sustain(self, seconds: float) -> None:
        """Step on end for about so long, and write down what that took."""
        lab = self.lab
        lab.tell(f"{self.stage}: {seconds:.0f} s on end")
        calls = max(1, round(seconds / self.call_s))
        lab.ledger.enter(self.live.ask(messages.Sustain(calls=calls), max(lab.start_limit_s, 20 * seconds)))

    # -------------------------------------------------------------------------------------------------------- its end

    def finish(self) -> None:
        """Ask for the last figures, and end it."""
        peak_host_bytes = self.live.host_bytes()
        finished = self.live.ask(messages.Finish(), ANSWER_LIMIT_S)
        self.keep("measured", finished=finished, peak_host_bytes=peak_host_bytes)
        self._notice_edits()

    def lose(self, failed: LaunchFailed) -> None:
        """End it and give up its variant; a script that was over after some blocks has only ended.

        Raises BaselineFailed where the baseline is given up.
        """
        if failed.kind == "ended" and self.blocks:
            self.keep("measured", peak_host_bytes=self.live.host_bytes())
            self._notice_edits()
            return
        status: Status = "skipped" if failed.kind in ("setting", "effect") else "failed"
        reason = failed.reason
        if failed.kind == "time" and not self.call_ns:
            status, reason = "skipped", f"start-up took too long (more than {self.limit_s:.0f} s)"
            if self.limit_s < self.lab.start_limit_s:
                reason += "; a larger --budget has more patience"
        self.keep(status, reason)
        self._notice_edits()
        if self.variant == 0:
            raise BaselineFailed(reason, failed.kind)
        self.lab.lost[self.variant] = Lost(status, reason, failed.kind)

    def keep(
        self,
        status: Status,
        reason: str | None = None,
        *,
        finished: messages.Finished | None = None,
        peak_host_bytes: int | None = None,
    ) -> None:
        """End it and write down what it was; once, so that what an interrupt left is kept as well."""
        self.live.close()
        if self.is_kept:
            return
        launch = Launch(
            launch=self.number,
            variant=self.variant,
            generation=self.generation,
            stage=self.stage,
            status=status,
            reason=reason,
            engaged=self.engaged,
            cold=self.cold,
            start_up_ns=self.start_up_ns,
            warmup_class=classify(self.warmup_step_ns) if self.warmup_step_ns else None,
            warmup_step_ns=self.warmup_step_ns,
            steps_per_call=self.steps_per_call,
            peak_host_bytes=peak_host_bytes,
            warmup_peak_host_bytes=self.warmup_peak_host_bytes,
            peak_device_allocated_bytes=finished.peak_device_allocated_bytes if finished else None,
            peak_device_reserved_bytes=finished.peak_device_reserved_bytes if finished else None,
            last_loss=finished.last_loss if finished else None,
            is_shared=self.process is not None,
        )
        self.is_kept = True
        self.lab.ledger.enter(launch)

    def _notice_edits(self) -> None:
        warning = self.lab.edits.notice(self.variant)
        if warning is not None:
            self.lab.ledger.warn(warning)


def spawn(
    lab: Lab,
    stage: str,
    variant: int,
    *,
    own_caches: bool,
    watched: bool = False,
    phases_named: bool = False,
) -> Running:
    """A launch of the present generation in a process of its own, not yet asked for anything.

    own_caches: what it compiles stays with its variant; else all share it.
    watched, phases_named: see `messages.LaunchSpec`.
    """
    session = lab.session
    number = _next_launch(lab)
    side = session.sides[variant] if session.sides else None
    settings = lab.settings_of(variant)
    patch = session.patch if session.patch is not None and session.patch.variant == variant else None
    laid = {name: value for name, value in settings.items() if patch is None or name not in patch.in_files}
    spec = messages.LaunchSpec(
        launch=number,
        reference=side.reference if side else session.workload.reference,
        tree=tree_of(session.sides, variant),
        patch=patch,
        scenario_files=lab.scenario_files,
        settings=settings,
        device=session.machine.device,
        seed=session.seed,
        watched=watched,
        phases_named=phases_named,
    )
    cold = own_caches and variant not in lab.cached
    if own_caches:
        lab.cached.add(variant)
    places = {"TORCHINDUCTOR_CACHE_DIR": str(lab.caches / (f"variant-{variant}" if own_caches else SHARED_CACHE))}
    if side:  # a C++ extension is built by its name, which both revisions give theirs
        places["TORCH_EXTENSIONS_DIR"] = str(lab.caches / f"extensions-{variant}")
    live = lab.start(spec, {**lab.environment(laid), **places})
    return Running(lab, live, number, variant, stage, lab.next_generation, cold)


def spawn_shared(lab: Lab, stage: str, variants: Sequence[int]) -> Iterator[Running]:
    """Launches of the present generation that share processes as far as they can be switched; see `spawn`.

    A process that only one of them would have is that one's own.
    """
    session = lab.session
    starts = [lab.switching.start_of(session.variants[variant]) for variant in variants]
    processes: list[tuple[Settings, SharedProcess]] = []
    for variant, begun in zip(variants, starts, strict=True):
        if starts.count(begun) == 1:
            yield spawn(lab, stage, variant, own_caches=False)
            continue
        number = _next_launch(lab)
        process = next((one for settings, one in processes if settings == begun), None)
        if process is None:
            process = _shared_process(lab, number, begun)
            processes.append((begun, process))
        live = process.taken_by(number, lab.settings_of(variant))
        yield Running(lab, live, number, variant, stage, lab.next_generation, cold=False, process=process)


def _shared_process(lab: Lab, number: int, variant: Settings) -> SharedProcess:
    """variant: what it starts with beside the baseline's settings."""
    session = lab.session
    settings = {name: value for name, value in session.baseline.items() if name not in lab.switching.live} | variant
    spec = messages.LaunchSpec(
        launch=number,
        reference=session.workload.reference,
        scenario_files=lab.scenario_files,
        settings=settings,
        device=session.machine.device,
        seed=session.seed,
        switched=tuple(sorted(lab.switching.live)),
    )
    environment = lab.environment(settings) | {"TORCHINDUCTOR_CACHE_DIR": str(lab.caches / SHARED_CACHE)}
    return SharedProcess(lambda: lab.start(spec, environment), lab.clock)


def _next_launch(lab: Lab) -> int:
    number = lab.next_launch
    lab.next_launch += 1
    lab.launches_to_come = max(0, lab.launches_to_come - 1)
    return number


def block_steps(call_ns: float, queued_calls: int) -> int:
    """Calls of a block, by what one takes and how many batches loader workers hold ready."""
    least, most = (queues * queued_calls for queues in QUEUES_PER_BLOCK)
    return max(1, round(BLOCK_S * 1e9 / call_ns), min(most, max(least, round(LONG_BLOCK_S * 1e9 / call_ns))))


def tree_of(sides: Sequence[Side], variant: int) -> Tree | None:
    """Where the modules of a side come from, and where they must not."""
    roots = [side.root for side in sides]
    own = sides[variant] if sides else None
    if own is None or own.root is None or own.folder is None:
        return None
    return Tree(root=own.root, folder=own.folder, others=[one for one in roots if one and one != own.root])
