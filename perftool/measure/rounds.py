"""Generations of launches that live at the same time and take turns, one running at a time, in a drawn order.

A `Lab` holds what all measuring of one command shares. It appends raw records to the session as they come and decides
nothing about them; how many generations there are is the caller's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec.structs import replace

from perftool.measure import messages
from perftool.measure.launch import LaunchFailed, LiveLaunch
from perftool.measure.trees import Stamp, edited, stamps
from perftool.measure.warmup import GIVE_UP_S, classify, settled
from perftool.records import (
    COUNT,
    PARITY,
    BatchFit,
    Block,
    Counters,
    Decision,
    Engaged,
    Launch,
    Limits,
    MemoryParts,
    MemorySample,
    Record,
    Session,
    Settings,
    Side,
    Status,
    TrainingRun,
    WatchedBlock,
)

if TYPE_CHECKING:
    from perftool.analysis.search import Standing

BLOCK_S = 0.03
QUEUES_PER_BLOCK = (2, 10)  # so that what loader workers held ready when the block began does not decide it
LONG_BLOCK_S = 0.15  # where ten queues would take longer, fewer do: the first one is dropped anyway
WARM_CHUNK_STEPS = 20
WARM_CAP_STEPS = 2000
WATCHED_MOST = 400  # calls of a watched block
EDITED_MOST = 3  # files that a warning names
COUNTED_CALLS = 20  # in which what compiles has compiled
COUNTED_LEAST = 2
COUNT_S = 60.0  # that these calls should not exceed; both sides make as many, so it is planned and not watched
COUNT_SLACK = 3.0  # what counts makes two more steps, slow ones, and the first steps may not have been typical
CHILDREN_INTERVAL_S = 1.0
ANSWER_LIMIT_S = 30.0  # for what should take a fraction of a second
USUAL_START_MOST_S = 20.0  # of a launch that compiles nothing, on a busy machine
WARM_SHARE = 0.6  # of what compiling costs a start that is left with a full cache, at most as far as was seen
FIRST_GUESS_START_S, FIRST_GUESS_WARM_S = 3.5, 1.0


class Watcher(Protocol):
    """Whoever shows the progress."""

    def show(self, standings: Sequence[Standing]) -> None:
        """The best combinations so far, best first."""

    def update(self, text: str, done_s: float, left_s: float) -> None:
        """What is being done, wall time so far, and an estimate of what is left."""


class BaselineFailed(Exception):
    """The baseline could not be measured; the text says why, and `kind` is the launch's that failed."""

    def __init__(self, reason: str, kind: str = "training") -> None:
        super().__init__(reason)
        self.kind = kind


StartLaunch = Callable[[messages.LaunchSpec, dict[str, str]], LiveLaunch]


@dataclass
class Running:
    """A live launch and what is known of it."""

    live: LiveLaunch
    number: int
    variant: int
    stage: str
    generation: int
    cold: bool
    asked_ns: int = 0
    start_up_ns: int | None = None
    queued_batches: int = 0
    steps_per_call: int = 1
    warmup_step_ns: list[int] = field(default_factory=list)  # one per call, as all that counts steps here
    warmup_peak_host_bytes: int | None = None
    engaged: Engaged | None = None
    steps_per_block: int = 1
    drop: int = 1
    block_s: float = BLOCK_S
    children_sampled_s: float = 0.0

    @property
    def call_s(self) -> float:
        """What a call usually takes, by the blocks."""
        return self.block_s / (self.steps_per_block + self.drop)


class Lost(NamedTuple):
    """Why a variant is not launched again."""

    status: Status
    reason: str
    kind: str = "training"  # of the failure


class _Cost(NamedTuple):
    """What a launch took beside its blocks."""

    settings: Settings
    start_s: float
    warm_s: float


def _strides(live: Sequence[Running]) -> dict[int, int]:
    """Launch to the rounds of which it joins one, so that no launch takes much more time than the others."""
    usual_s = median(one.block_s for one in live)
    return {one.number: max(1, round(one.block_s / usual_s)) for one in live if one.variant}


def tree_of(sides: Sequence[Side], variant: int) -> messages.Tree | None:
    """Where the modules of a side come from, and where they must not."""
    roots = [side.root for side in sides]
    own = sides[variant] if sides else None
    if own is None or own.root is None or own.folder is None:
        return None
    return messages.Tree(root=own.root, folder=own.folder, others=[one for one in roots if one and one != own.root])


class Lab:
    """Where variants are launched and blocks are run."""

    def __init__(
        self,
        session: Session,
        *,
        start: StartLaunch,
        append: Callable[[Record], None],
        environment: Callable[[Settings], dict[str, str]],
        scenario_files: Sequence[str] = (),
        parallel_starts: int = 1,
        live_limit: int = 64,
        caches: Path,
        watcher: Watcher,
        clock: Callable[[], float] = monotonic,  # the workers' own, CLOCK_MONOTONIC
    ) -> None:
        """`start` makes a launch out of a spec and its environment variables; `append` writes a record to disk;
        `caches` is a folder for compile caches, empty at first."""
        self.session = session
        # A session that was interrupted goes on where it stopped.
        self.spent_s = sum(block.wall_ns for block in session.blocks) / 1e9  # of the budget; dropped steps count, too
        self.lost = {  # variant to why it is not launched again
            one.variant: Lost(one.status, one.reason or one.status)
            for one in session.launches
            if one.status != "measured"
        }
        self.launches_to_come = 0  # estimate, for the time left
        self.planned_s: float | None = None  # of the budget, where not all of it will be needed; for the time left
        self._start_launch, self._append, self._environment = start, append, environment
        self._scenario_files = list(scenario_files)
        self._parallel_starts, self._live_limit = parallel_starts, max(2, live_limit)
        self._watcher, self._clock = watcher, clock
        self._began_s = clock()
        self._costs: list[_Cost] = []
        self._slowest_s: dict[tuple[str, str], float] = {}  # start of a launch with a setting
        self._random = random.Random(session.seed)
        self._next_launch = 1 + max((one.launch for one in session.launches), default=-1)
        self._next_generation = 1 + max((one.generation for one in session.launches), default=-1)
        self._next_round = 1 + max((one.round for one in session.blocks), default=-1)
        self._stamps: dict[int, dict[str, Stamp | None]] = {}  # of each side's modules, when they were counted
        self._caches = caches
        self._cached: set[int] = set()  # variants whose own compile cache is no longer empty

    @property
    def left_s(self) -> float:
        """Of the budget."""
        return max(0.0, self.session.budget_s - self.spent_s)

    @property
    def is_over(self) -> bool:
        """Whether a check has lost a side: the other one alone says nothing."""
        return bool(self.session.sides) and 1 in self.lost

    @property
    def elapsed_s(self) -> float:
        """Wall time since the lab was opened."""
        return self._clock() - self._began_s

    def start_s(self, settings: Settings) -> float:
        """How long a launch with these settings may take to start: as last seen, as the slowest that shared a setting
        (compilation), or as any."""
        if not self._costs:
            return FIRST_GUESS_START_S
        same = [cost.start_s for cost in self._costs if cost.settings == settings]
        usual_s = median(cost.start_s for cost in self._costs)
        return same[-1] if same else max([usual_s, *(self._slowest_s.get(change, 0.0) for change in settings.items())])

    def launches_s(self, variants: Sequence[Settings], *, again: bool = False) -> float:
        """Wall time to start and warm up a launch of each and one of the baseline, blocks not included.

        again: with what was compiled before still in the cache.
        """
        usual_s = self.start_s({})
        kept = WARM_SHARE if again else 1.0
        starts = [usual_s + kept * max(0.0, self.start_s(settings) - usual_s) for settings in ({}, *variants)]
        warm_s = median(cost.warm_s for cost in self._costs) if self._costs else FIRST_GUESS_WARM_S
        return max(sum(starts) / self._parallel_starts, *starts) + warm_s * len(starts)

    def variant(self, settings: Settings) -> int:
        """The number of the variant with these settings beyond the baseline's, made known where it is new."""
        if settings in self.session.variants:
            return self.session.variants.index(settings)
        self.session.variants.append(settings)
        return len(self.session.variants) - 1

    def show(self, standings: Sequence[Standing]) -> None:
        """Let whoever looks on see how the search stands."""
        self._watcher.show(standings)

    def decide(self, decision: Decision) -> None:
        """Keep a choice with the session."""
        self.session.decisions.append(decision)
        self._append(decision)

    # ------------------------------------------------------------------------------------------------- generations

    def generation(
        self,
        stage: str,
        variants: Sequence[int],
        *,
        budget_s: float,
        rounds: int,
        own_caches: bool = True,
        drift_limit_s: float = GIVE_UP_S,
        even_time: bool = False,
        guests: Mapping[int, str] | None = None,
        keep: Callable[[Mapping[int, float]], Collection[int]] | None = None,
        afterwards: Callable[[Running], None] | None = None,
    ) -> None:
        """One fresh launch of the baseline and of each variant, then up to `rounds` rounds within `budget_s`.

        own_caches: each variant has a compile cache of its own, empty at its first launch in the session; else all
            share one, which is faster and makes no start-up time worth reporting.
        drift_limit_s: of a launch's warm-up, after which it is measured though its step times still change.
        even_time: launches whose blocks take much longer than the others' join so many fewer rounds.
        guests: further variants, with the stage that their launches are for.
        keep: called with each variant's time per sample (ns) in a round, returns the variants to go on with.
        afterwards: what else is asked of each launch after its blocks. Its phases are named in traces then.
        Where memory does not allow all launches at a time they go in groups, each with a baseline of its own.
        Raises BaselineFailed when the baseline fails, and leaves no process behind whatever happens.
        """
        stages = dict.fromkeys(variants, stage) | dict(guests or {})
        wanted = [variant for variant in stages if variant and variant not in self.lost]
        size = self._live_limit - 1
        groups = [wanted[at : at + size] for at in range(0, len(wanted), size)] or [[]]
        for group in groups:
            live: list[Running] = []
            try:
                # One by one, so that those started are known, and ended, when the next cannot be.
                live.extend(
                    self._spawn(stages.get(variant, stage), variant, own_caches, phases_named=afterwards is not None)
                    for variant in [0, *group]
                )
                self._start_all(live)
                for running in tuple(live):
                    self._attempt(live, running, partial(self._warm_up, drift_limit_s))
                end_s = self.spent_s + min(budget_s / len(groups), self.left_s)
                self._rounds(live, end_s, rounds, keep, _strides(live) if even_time else {})
                if afterwards is not None:
                    for running in tuple(live):
                        self._attempt(live, running, afterwards)
                for running in tuple(live):
                    self._attempt(live, running, partial(self._finish, live))
            finally:
                for running in live:  # interrupted: what was measured is kept
                    running.live.close()
                    self._keep(running, "measured")
            self._next_generation += 1

    @contextmanager
    def watched(self, stage: str) -> Iterator[Running]:
        """A launch of the baseline that can be watched, warmed up; what it did is kept whatever happens in the block.

        Raises LaunchFailed where it does not come so far.
        """
        running = self._spawn(stage, 0, own_caches=True, watched=True)
        status: Status = "failed"
        reason: str | None = "it did not come to its first step"
        try:
            self._tell(f"{stage}: starting")
            running.asked_ns = round(self._clock() * 1e9)
            self._started(running, running.live.ask(messages.Start(), self.start_limit_s))
            self._warm_up(GIVE_UP_S, running)
            status, reason = "measured", None
            yield running
        except LaunchFailed as failed:
            if status == "failed":
                reason = failed.reason
            raise
        finally:
            running.live.close()
            self._keep(running, status, reason)
            self._next_generation += 1

    def watched_round(self, running: Running, seconds: float) -> WatchedBlock:
        """A plain block and a watched one of about so many seconds, in a drawn order, kept with the session."""
        found: WatchedBlock | None = None
        blocks: list[Block] = []
        for watch in self._random.sample((False, True), 2):
            if not watch:
                self._block(blocks, 0, running)
                continue
            steps = max(1, min(WATCHED_MOST, round(seconds / running.call_s)))
            began_s = self._clock()
            reply = running.live.ask(
                messages.Watch(round=self._next_round, drop=running.drop, steps=steps),
                max(self.start_limit_s, 20 * seconds),
            )
            assert isinstance(reply, WatchedBlock)
            self.spent_s += self._clock() - began_s
            found = reply
        assert found is not None
        self._next_round += 1
        self.session.blocks.extend(blocks)
        self.session.watched_blocks.append(found)
        records: list[Record] = [*blocks, found]
        held_bytes = running.live.held_bytes()
        if held_bytes is not None:
            sample = MemorySample(
                launch=running.number,
                steps=(found.first_call + len(found.step_ns)) * running.steps_per_call,
                host_bytes=held_bytes,
                device_allocated_bytes=found.device_allocated_bytes,
            )
            self.session.memory_samples.append(sample)
            records.append(sample)
        for record in records:
            self._append(record)
        return found

    def learn(self, **facts: Limits | MemoryParts | BatchFit) -> None:
        """Keep what is known once of a session: fields by their names."""
        self.session = replace(self.session, **facts)
        for fact in facts.values():
            self._append(fact)

    def _spawn(
        self, stage: str, variant: int, own_caches: bool, *, watched: bool = False, phases_named: bool = False
    ) -> Running:
        session = self.session
        number = self._next_launch
        self._next_launch += 1
        self.launches_to_come = max(0, self.launches_to_come - 1)
        side = session.sides[variant] if session.sides else None
        settings = side.settings if side else {**session.baseline, **session.variants[variant]}
        cache = self._caches / (f"variant-{variant}" if own_caches else "shared")
        spec = messages.LaunchSpec(
            launch=number,
            reference=side.reference if side else session.workload.reference,
            tree=tree_of(session.sides, variant),
            scenario_files=self._scenario_files,
            settings=settings,
            device=session.machine.device,
            seed=session.seed,
            watched=watched,
            phases_named=phases_named,
        )
        cold = own_caches and variant not in self._cached
        if own_caches:
            self._cached.add(variant)
        places = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
        if side:  # a C++ extension is built by its name, which both revisions give theirs
            places["TORCH_EXTENSIONS_DIR"] = str(self._caches / f"extensions-{variant}")
        live = self._start_launch(spec, {**self._environment(settings), **places})
        return Running(live, number, variant, stage, self._next_generation, cold)

    def _start_all(self, live: list[Running]) -> None:
        """Build all trainings, a few at a time; start-up is mostly one thread's work."""

        def start(running: Running) -> messages.Reply | LaunchFailed:
            running.asked_ns = round(self._clock() * 1e9)
            try:
                return running.live.ask(messages.Start(), self.start_limit_s)
            except LaunchFailed as failed:
                return failed

        everyone = list(live)
        with ThreadPoolExecutor(self._parallel_starts) as pool:
            try:
                for index, (running, answer) in enumerate(zip(everyone, pool.map(start, everyone), strict=True)):
                    self._tell(f"{everyone[0].stage}: started {index + 1} of {len(everyone)} launches")
                    if isinstance(answer, LaunchFailed):
                        self._lose(live, running, answer)
                    else:
                        self._started(running, answer)
            except BaseException:
                for running in live:
                    running.live.kill()  # so that the threads that wait for it come back
                raise

    def _started(self, running: Running, answer: messages.Reply) -> None:
        assert isinstance(answer, messages.Started)
        running.start_up_ns = answer.started_ns - running.asked_ns
        running.queued_batches = answer.queued_batches
        running.steps_per_call = answer.steps_per_call

    def _warm_up(self, drift_limit_s: float, running: Running) -> None:
        self._tell(f"{running.stage}: warming up")
        began_s = self._clock()
        self._settle(running, drift_limit_s)
        running.warmup_peak_host_bytes = running.live.host_bytes()
        proved = running.live.ask(messages.Prove(), self.start_limit_s)
        assert isinstance(proved, messages.Proved)
        running.engaged = proved.engaged
        if not proved.engaged.ok:
            raise LaunchFailed("effect", f"did not take effect: {proved.engaged.evidence}")
        running.live.reset_host_peak()
        settings = self.session.variants[running.variant]
        self._costs.append(_Cost(settings, (running.start_up_ns or 0) / 1e9, self._clock() - began_s))
        for change in settings.items():
            self._slowest_s[change] = max(self._slowest_s.get(change, 0.0), self._costs[-1].start_s)

    def _settle(self, running: Running, drift_limit_s: float) -> None:
        """Step until the times have settled or patience is out; then the length of a block is known."""
        began_s = self._clock()
        step_ns = running.warmup_step_ns
        while len(step_ns) < WARM_CAP_STEPS:
            warmed = running.live.ask(messages.Warm(steps=WARM_CHUNK_STEPS, limit_s=1.0), self.start_limit_s)
            assert isinstance(warmed, messages.Warmed)
            step_ns.extend(warmed.step_ns)
            since_event = len(step_ns) if warmed.steps_since_event is None else warmed.steps_since_event
            if settled(step_ns, since_event, self._clock() - began_s, drift_limit_s):
                break
        typical_ns = median(step_ns[-WARM_CHUNK_STEPS:])
        queued = ceil(running.queued_batches / running.steps_per_call)
        least, most = (queues * queued for queues in QUEUES_PER_BLOCK)
        running.steps_per_block = max(
            1, round(BLOCK_S * 1e9 / typical_ns), min(most, max(least, round(LONG_BLOCK_S * 1e9 / typical_ns)))
        )
        running.drop = queued + 1
        running.block_s = (running.steps_per_block + running.drop) * typical_ns / 1e9

    def _rounds(
        self,
        live: list[Running],
        end_s: float,
        rounds: int,
        keep: Callable[[Mapping[int, float]], Collection[int]] | None,
        strides: Mapping[int, int],
    ) -> None:
        """Rounds until the spent budget reaches `end_s`: at least one, since a launch without a pair is for nothing.

        strides: of launches that join only every so many rounds, beginning with the first.
        """
        for index in range(rounds):
            if self.is_over or (index and self.spent_s >= end_s):
                return
            order = [one for one in live if index % strides.get(one.number, 1) == 0]
            self._random.shuffle(order)
            blocks: list[Block] = []
            for position, running in enumerate(order):
                if not self.is_over:
                    self._attempt(live, running, partial(self._block, blocks, position))
            self._next_round += 1
            for block in blocks:
                self.session.blocks.append(block)
                self._append(block)
            self._tell(f"{live[0].stage}: {len(live)} launches taking turns, round {index + 1}")  # the baseline's
            if keep is not None:
                variant_of = {running.number: running.variant for running in order}
                staying = {0, *keep({variant_of[one.launch]: one.wall_ns / one.samples for one in blocks})}
                for running in [one for one in live if one in order and one.variant not in staying]:
                    self._attempt(live, running, partial(self._finish, live))
                if len(live) == 1:
                    return

    def _block(self, blocks: list[Block], position: int, running: Running) -> None:
        request = messages.Run(
            round=self._next_round, position=position, drop=running.drop, steps=running.steps_per_block
        )
        began_s = self._clock()
        try:
            # A batch of another shape may be compiled for in the midst of a block.
            block = running.live.ask(request, max(self.start_limit_s, 20 * running.block_s))
        finally:
            self.spent_s += self._clock() - began_s
        assert isinstance(block, Block)
        if running.queued_batches and self._clock() - running.children_sampled_s > CHILDREN_INTERVAL_S:
            running.children_sampled_s = self._clock()
            running.live.host_bytes()
        blocks.append(block)

    def _finish(self, live: list[Running], running: Running) -> None:
        peak_host_bytes = running.live.host_bytes()
        finished = running.live.ask(messages.Finish(), ANSWER_LIMIT_S)
        assert isinstance(finished, messages.Finished)
        live.remove(running)
        running.live.close()
        self._keep(running, "measured", finished=finished, peak_host_bytes=peak_host_bytes)
        self._notice_edits(running.variant)

    # ---------------------------------------------------------------------------------------------------- failures

    def _attempt(self, live: list[Running], running: Running, act: Callable[[Running], None]) -> None:
        """Do something with a launch; where it fails, its variant is lost and the rest goes on."""
        try:
            act(running)
        except LaunchFailed as failed:
            self._lose(live, running, failed)

    def _lose(self, live: list[Running], running: Running, failed: LaunchFailed) -> None:
        live.remove(running)
        running.live.close()
        status: Status = "skipped" if failed.kind in ("setting", "effect") else "failed"
        reason = failed.reason
        if failed.kind == "time" and running.start_up_ns is None:
            status, reason = "skipped", f"start-up took too long (more than {self.start_limit_s:.0f} s)"
        self._keep(running, status, reason)
        self._notice_edits(running.variant)
        if running.variant == 0:
            raise BaselineFailed(reason, failed.kind)
        self.lost[running.variant] = Lost(status, reason, failed.kind)

    def _keep(
        self,
        running: Running,
        status: Status,
        reason: str | None = None,
        *,
        finished: messages.Finished | None = None,
        peak_host_bytes: int | None = None,
    ) -> None:
        """Write down a launch that is over."""
        launch = Launch(
            launch=running.number,
            variant=running.variant,
            generation=running.generation,
            stage=running.stage,
            status=status,
            reason=reason,
            engaged=running.engaged,
            cold=running.cold,
            start_up_ns=running.start_up_ns,
            warmup_class=classify(running.warmup_step_ns) if running.warmup_step_ns else None,
            warmup_step_ns=running.warmup_step_ns,
            steps_per_call=running.steps_per_call,
            peak_host_bytes=peak_host_bytes,
            warmup_peak_host_bytes=running.warmup_peak_host_bytes,
            peak_device_allocated_bytes=finished.peak_device_allocated_bytes if finished else None,
            peak_device_reserved_bytes=finished.peak_device_reserved_bytes if finished else None,
            peak_device_nvml_bytes=finished.peak_device_nvml_bytes if finished else None,
            last_loss=finished.last_loss if finished else None,
        )
        self.session.launches.append(launch)
        self._append(launch)

    # ------------------------------------------------------------------------------------ counters, training runs

    def count(self, variant: int, calls: int | None = None) -> Counters:
        """What a step of a variant does by counting, in a launch of its own, kept with the session.

        calls: to make before; by default as many as COUNT_S has room for.
        Raises LaunchFailed.
        """
        step_s = (self.session.first_step_ns or 0) / 1e9
        if calls is None:
            calls = COUNTED_CALLS if not step_s else max(COUNTED_LEAST, min(COUNTED_CALLS, int(COUNT_S / step_s)))
        limit_s = self.start_limit_s + COUNT_SLACK * calls * step_s
        running = self._spawn(COUNT, variant, own_caches=False)
        try:
            self._tell(f"{COUNT}: what a step does")
            running.live.ask(messages.Start(), self.start_limit_s)
            found = running.live.ask(messages.Count(variant=variant, calls=calls), limit_s)
            assert isinstance(found, Counters)
        finally:
            running.live.close()
        self.session.counters.append(found)
        self._append(found)
        root = self.session.sides[variant].root if self.session.sides else None
        if root is not None:
            self._stamps[variant] = stamps(root, found.modules)
        return found

    def _notice_edits(self, variant: int) -> None:
        """Each launch imports a side's files anew: where they were edited meanwhile, say so, once."""
        side = self.session.sides[variant] if self.session.sides else None
        before = self._stamps.get(variant)
        if side is None or side.root is None or before is None:
            return
        files = edited(before, stamps(side.root, before))
        if files:
            del self._stamps[variant]
            told = ", ".join(files[:EDITED_MOST]) + (" and others" if len(files) > EDITED_MOST else "")
            self.session.warnings.append(
                f"files of the {side.name} were edited while it was measured ({told}), so its numbers are of more "
                "than one program; check again, and leave the files alone meanwhile"
            )

    def train_runs(self, variants: Sequence[int], seeds: Sequence[int], steps: int, limit_s: float) -> None:
        """Train each variant from each seed, one process per variant, and keep the losses with the session.

        limit_s: of one training. A training that fails leaves its variant without that loss, and a warning.
        """
        for variant in variants:
            running = self._spawn(PARITY, variant, own_caches=False)
            try:
                for index, seed in enumerate(seeds):
                    self._tell(f"comparing losses: seed {index + 1} of {len(seeds)}")
                    trained = running.live.ask(messages.Train(seed=seed, steps=steps), limit_s)
                    assert isinstance(trained, messages.Trained)
                    run = TrainingRun(
                        variant=variant,
                        seed=seed,
                        steps=steps,
                        loss=trained.loss,
                        samples=trained.samples,
                        losses=trained.losses,
                    )
                    self.session.training_runs.append(run)
                    self._append(run)
            except LaunchFailed as failed:
                self.session.warnings.append(f"the loss could not be compared: {failed.reason}")
            finally:
                running.live.close()

    @property
    def start_limit_s(self) -> float:
        """A variant that takes longer than this to start is skipped: it could not pay back within the steps planned, or
        would take more than the user expects."""
        session = self.session
        limit_s = max(60.0, session.budget_s)
        if session.goal.planned_steps is None or session.first_step_ns is None:
            return limit_s
        return min(limit_s, USUAL_START_MOST_S + session.goal.planned_steps * session.first_step_ns / 1e9)

    def tell(self, text: str, left_s: float) -> None:
        """Let whoever looks on see what is being done, and for how much longer."""
        self._watcher.update(text, self.elapsed_s, left_s)

    def _tell(self, text: str) -> None:
        left_s = self.left_s if self.planned_s is None else min(self.left_s, self.planned_s)
        self.tell(text, left_s + self.launches_to_come * self.launches_s([]))
