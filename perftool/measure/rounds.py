"""Generations of launches that live at the same time and take turns, one running at a time, in a drawn order.

They enter raw records into the ledger as they come and decide nothing about them; how many generations there are is
the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from math import log
from statistics import median

from perftool.analysis.stats import LAUNCH_SD_UNPINNED, median_half_width
from perftool.measure.lab import Lab
from perftool.measure.launch import LaunchFailed
from perftool.measure.running import Running, block_steps, spawn, spawn_shared
from perftool.measure.warmup import GIVE_UP_S
from perftool.records import Block
from perftool.units import counted

LOOK_ROUNDS = 20  # of those beyond the usual, after each of which one sees whether they tell enough

Keep = Callable[[Mapping[int, float]], Collection[int]]


def generation(
    lab: Lab,
    stage: str,
    variants: Sequence[int],
    *,
    budget_s: float,
    rounds: int,
    own_caches: bool = True,
    drift_limit_s: float = GIVE_UP_S,
    even_time: bool = False,
    noisy_rounds: int = 0,
    guests: Mapping[int, str] | None = None,
    keep: Keep | None = None,
    shared: bool = False,
    stretch_s: float = 0.0,
    afterwards: Callable[[Running], None] | None = None,
) -> None:
    """One fresh launch of the baseline and of each variant, then up to `rounds` rounds within `budget_s`.

    own_caches: each variant but guests has a compile cache of its own, empty at its first launch in the session; else
        all share one, which is faster and makes no start-up time worth reporting.
    drift_limit_s: of a launch's warm-up, after which it is measured though its step times still change.
    even_time: launches whose blocks take much longer than the others' join so many fewer rounds; not in a lab of even
        steps, where each joins all.
    noisy_rounds: go on to so many where `rounds` do not tell each launch's median as well as launches agree.
    guests: further variants, with the stage that their launches are for.
    keep: called with each variant's time per sample (ns) in a round, returns the variants to go on with.
    shared: launches share processes as far as they can be switched, which is for a search and not for verdicts.
    stretch_s: for which the baseline and each variant but guests steps on end after its rounds.
    afterwards: what else is asked of each launch after its blocks. Its phases are named in traces then. One whose
        script is over before is not asked.
    Where memory does not allow all launches at a time they go in groups, each with a baseline of its own.
    Raises BaselineFailed when the baseline fails, and leaves no process behind whatever happens.
    """
    stages = dict.fromkeys(variants, stage) | dict(guests or {})
    wanted = [variant for variant in stages if variant and variant not in lab.lost]
    size = lab.live_limit - 1
    groups = [wanted[at : at + size] for at in range(0, len(wanted), size)] or [[]]
    for variants_of_group in groups:
        group = _Group(lab, stage)
        try:
            present, named = [0, *variants_of_group], afterwards is not None
            beside = guests or {}  # whose start-up nobody asks for
            own = (
                spawn(
                    lab,
                    stages.get(variant, stage),
                    variant,
                    own_caches=own_caches and variant not in beside,
                    phases_named=named,
                )
                for variant in present
            )
            with lab.timing("starting_s"):
                # One by one, so that those started are known, and ended, when the next cannot be.
                for running in spawn_shared(lab, stage, present) if shared else own:
                    group.live.append(running)
                group.start()
            with lab.timing("warming_s"):
                group.each(lambda running: running.warm_up(drift_limit_s))
                if lab.even_steps and not shared:
                    group.level()
            end_s = lab.spent_s + min(budget_s / len(groups), lab.left_s)
            most = (rounds, max(rounds, noisy_rounds))
            with lab.timing("turns_s"):
                group.rounds(end_s, most, keep, even_time=even_time and (shared or not lab.even_steps))
            if stretch_s:
                on_end = [one for one in group.live if one.variant not in beside]
                lab.random.shuffle(on_end)  # the first finds a device that has rested
                with lab.timing("turns_s"):
                    for running in on_end:
                        group.attempt(running, lambda one: one.sustain(stretch_s))
            if afterwards is not None:
                group.each(afterwards)
            group.each(group.finish)
        finally:
            for running in group.live:  # interrupted: what was measured is kept
                running.keep("measured")
            lab.enter_wall_time()
        lab.next_generation += 1


class _Group:
    """Launches that live at the same time. Each method leaves those that can go on; where the baseline fails it raises
    BaselineFailed."""

    def __init__(self, lab: Lab, stage: str) -> None:
        self.lab, self.stage = lab, stage
        self.live: list[Running] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to pair: a check has lost a side, or the baseline's script is over."""
        return self.lab.is_over or all(running.variant for running in self.live)

    def each(self, act: Callable[[Running], None]) -> None:
        """Do something with every launch."""
        for running in tuple(self.live):
            self.attempt(running, act)

    def attempt(self, running: Running, act: Callable[[Running], None]) -> None:
        """Do something with a launch; where it fails, its variant is lost and the rest goes on."""
        try:
            act(running)
        except LaunchFailed as failed:
            self.lose(running, failed)

    def lose(self, running: Running, failed: LaunchFailed) -> None:
        """Go on without a launch that failed."""
        running.lose(failed)
        self.live.remove(running)

    def finish(self, running: Running) -> None:
        """End a launch that has done its part."""
        running.finish()
        self.live.remove(running)

    def start(self) -> None:
        """Build all trainings, a few at a time; start-up is mostly one thread's work. What times kernels while it
        starts has the machine to itself, and those that share a process come one by one, once that is there."""

        def start(running: Running) -> LaunchFailed | None:
            try:
                running.start()
            except LaunchFailed as failed:
                return failed
            return None

        everyone = tuple(self.live)
        total = counted(len(everyone), "launch", "launches")
        begun: dict[object, Running] = {}
        for running in everyone:
            begun.setdefault(running.process or running, running)
        firsts = tuple(begun.values())
        together = [one for one in firsts if not self.lab.starts_alone(one.variant)]
        alone = [one for one in firsts if one not in together]
        with ThreadPoolExecutor(self.lab.parallel_starts) as pool:
            try:
                started = chain(
                    zip(together, pool.map(start, together), strict=True), ((one, start(one)) for one in alone)
                )
                for index, (running, failed) in enumerate(started):
                    self.lab.tell(f"{self.stage}: started {index + 1} of {total}")
                    if failed is not None:
                        self.lose(running, failed)
            except BaseException:
                for running in self.live:
                    running.live.kill()  # so that the threads that wait for it come back
                raise
        for index, running in enumerate(one for one in everyone if one not in firsts):
            self.attempt(running, Running.start)
            self.lab.tell(f"{self.stage}: started {len(firsts) + index + 1} of {total}")

    def level(self) -> None:
        """Step those behind on to the one that is furthest, and give all blocks of the same steps from there."""
        furthest = max(len(running.warmup_step_ns) for running in self.live)
        self.each(lambda running: running.step_on(furthest))
        queued_calls = max(running.queued_calls for running in self.live)
        steps = block_steps(median(running.call_ns for running in self.live), queued_calls)
        for running in self.live:
            running.steps_per_block, running.drop = steps, queued_calls + 1

    def rounds(self, end_s: float, most: tuple[int, int], keep: Keep | None, *, even_time: bool) -> None:
        """Rounds until the spent budget reaches `end_s` or the group is over: at least one, since a launch without a
        pair is for nothing.

        most: rounds where they tell enough, and where they do not.
        """
        lab = self.lab
        strides = _strides(self.live) if even_time else {}
        d: dict[int, list[float]] = {}
        for index in range(most[1]):
            if self.is_over or (index and lab.spent_s >= end_s):
                return
            if index >= most[0] and index % LOOK_ROUNDS == 0 and _are_told(d):
                return
            order = [one for one in self.live if index % strides.get(one.number, 1) == 0]
            lab.random.shuffle(order)
            blocks: list[Block] = []
            for position, running in enumerate(order):
                if self.is_over:
                    break
                try:
                    blocks.append(running.block(position))
                except LaunchFailed as failed:
                    self.lose(running, failed)
            lab.next_round += 1
            lab.ledger.enter(*blocks)
            if self.is_over:
                return
            times = {one.launch: one.wall_ns / one.samples for one in blocks if one.samples}
            base = times.get(self.live[0].number) if self.live[0].variant == 0 else None
            for launch, sample_ns in times.items():
                if base:
                    d.setdefault(launch, []).append(log(sample_ns / base))
            present = counted(len(self.live), "launch", "launches")
            lab.tell(f"{self.stage}: {present} taking turns, round {index + 1}")
            if keep is not None:
                variant_of = {running.number: running.variant for running in order}
                staying = {0, *keep({variant_of[one.launch]: one.wall_ns / one.samples for one in blocks})}
                for running in [one for one in self.live if one in order and one.variant not in staying]:
                    self.attempt(running, self.finish)
                if len(self.live) == 1:
                    return


def _are_told(d: Mapping[int, Sequence[float]]) -> bool:
    """Whether the rounds tell every launch's median of log-ratios to the baseline as well as launches agree."""
    return all(median_half_width(of_launch) <= LAUNCH_SD_UNPINNED for of_launch in d.values())


def _strides(live: Sequence[Running]) -> dict[int, int]:
    """Launch to the rounds of which it joins one, beginning with the first, so that none takes much more time than the
    others."""
    usual_s = median(one.block_s for one in live)
    return {one.number: max(1, round(one.block_s / usual_s)) for one in live if one.variant}
