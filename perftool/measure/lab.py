"""What all measuring of one command shares: the ledger of its session, the budget, what launches cost, the limits that
follow from these, and the progress."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil, inf
from pathlib import Path
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from msgspec.structs import replace

from perftool.measure.edits import Edits
from perftool.measure.launch import StartLaunch
from perftool.measure.ledger import Ledger
from perftool.measure.switching import Switching
from perftool.records import Session, Settings, Status, WallTime

if TYPE_CHECKING:
    from perftool.analysis.search import Standing

USUAL_START_MOST_S = 20.0  # of a launch that compiles nothing, on a busy machine
WARM_SHARE = 0.6  # of what compiling costs a start that is left with a full cache, at most as far as was seen
FIRST_GUESS_START_S, FIRST_GUESS_WARM_S = 3.5, 1.0
FIRST_GUESS_SWITCH_S = 1.0  # warm-up included


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


class Lab:
    """Where variants are launched and blocks are run; what is launched, and when it ends, is for others to say."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        start: StartLaunch,
        environment: Callable[[Settings], dict[str, str]],
        scenario_files: Sequence[str] = (),
        parallel_starts: int = 1,
        live_limit: int = 64,
        even_steps: bool = False,
        tunes_kernels: Callable[[Settings], bool] = lambda _: False,
        caches: Path,
        watcher: Watcher,
        clock: Callable[[], float] = monotonic,  # the workers' own, CLOCK_MONOTONIC
    ) -> None:
        """`start` makes a launch out of a spec and its environment variables; `caches` is a folder for compile caches,
        empty at first.

        even_steps: what a step does depends on its number, as in a script, so the blocks of a round cover the same
            steps of every launch; calls are single steps then.
        tunes_kernels: whether a launch with these settings times kernels while it starts, to choose among them.
        """
        session = ledger.session
        self.ledger = ledger
        # A session that was interrupted goes on where it stopped.
        self.spent_s = sum(block.wall_ns for block in session.blocks) / 1e9  # of the budget; dropped steps count, too
        self.lost = {  # variant to why it is not launched again
            one.variant: Lost(one.status, one.reason or one.status)
            for one in session.launches
            if one.status != "measured"
        }
        self._extra_s = 0.0  # of budget, beside the session's
        self.next_launch = 1 + max((one.launch for one in session.launches), default=-1)
        self.next_generation = 1 + max((one.generation for one in session.launches), default=-1)
        self.next_round = 1 + max((one.round for one in session.blocks), default=-1)
        self.launches_to_come = 0  # estimate, for the time left
        self.patience_s: dict[tuple[str, str], float] = {}  # with what starts slowly: it could not be confirmed in time
        self.deadline_s: float | None = None  # that a search reckons with, since it opened; for the time left
        self.planned_s: float | None = None  # of the budget, where not all of it will be needed; for the time left
        self.start, self.environment, self.scenario_files = start, environment, list(scenario_files)
        self.parallel_starts, self.live_limit, self.even_steps = parallel_starts, max(2, live_limit), even_steps
        self._tunes_kernels = tunes_kernels
        self.caches = caches
        self.cached: set[int] = set()  # variants whose own compile cache is no longer empty
        self.edits = Edits(session.sides)
        self.random = random.Random(session.seed)
        self.clock = clock
        self._circumstances = session  # what of it does not grow
        self._watcher = watcher
        self._began_s = clock()
        self.switching = Switching()  # what a search may switch within a process
        self._costs: list[_Cost] = []
        self._wall = session.wall or WallTime(total_s=0.0, starting_s=0.0, warming_s=0.0, turns_s=0.0)
        self._tells_wall = session.wall is not None or not session.blocks  # else it is of an old session
        self._earlier_s = self._wall.total_s  # before it was interrupted
        self._switches_s: list[float] = []  # to a new variant in a process that was there, until it is warm
        self._slowest_s: dict[tuple[str, str], float] = {}  # start of a launch with a setting
        self._expected_s: dict[tuple[str, str], float] = {}  # the same, before there was one

    @property
    def session(self) -> Session:
        """All that is measured by now. It does not grow: ask again."""
        return self.ledger.session

    def variant(self, settings: Settings) -> int:
        """The number of the variant with these settings beyond the baseline's, made known where it is new."""
        return self.ledger.variant(settings)

    def starts_alone(self, variant: int) -> bool:
        """Whether a launch of it must have the machine to itself while it starts."""
        return self._tunes_kernels(self.settings_of(variant))

    def settings_of(self, variant: int) -> Settings:
        """All settings of its launches, the baseline's included."""
        session = self.session
        return session.sides[variant].settings if session.sides else {**session.baseline, **session.variants[variant]}

    @property
    def is_over(self) -> bool:
        """Whether a check has lost a side: the other one alone says nothing."""
        return bool(self._circumstances.sides) and 1 in self.lost

    # ------------------------------------------------------------------------------------------------ time and budget

    @property
    def left_s(self) -> float:
        """Of the budget."""
        return max(0.0, self._circumstances.budget_s + self._extra_s - self.spent_s)

    def extend(self, seconds: float) -> None:
        """Have so much of the budget left, whatever was spent."""
        self._extra_s = max(0.0, seconds - self._circumstances.budget_s + self.spent_s)

    @property
    def elapsed_s(self) -> float:
        """Wall time since the lab was opened."""
        return self.clock() - self._began_s

    @property
    def start_limit_s(self) -> float:
        """A variant that takes longer than this to start is skipped: it could not pay back within the steps planned, or
        would take more than the user expects."""
        session = self._circumstances
        limit_s = max(60.0, session.budget_s)
        if session.goal.planned_steps is None or session.first_step_ns is None:
            return limit_s
        return min(limit_s, USUAL_START_MOST_S + session.goal.planned_steps * session.first_step_ns / 1e9)

    def limit_s(self, settings: Settings) -> float:
        """The same, and how much patience a search has with these settings."""
        return min([self.start_limit_s, *(self.patience_s.get(change, inf) for change in settings.items())])

    @contextmanager
    def timing(self, part: Literal["starting_s", "warming_s", "turns_s"]) -> Iterator[None]:
        """What is done within is this part of the wall time."""
        began_s = self.clock()
        try:
            yield
        finally:
            taken_s = getattr(self._wall, part) + self.clock() - began_s
            self._wall = replace(self._wall, **{part: taken_s})

    def enter_wall_time(self) -> None:
        """Write down what measuring has taken until now."""
        self._wall = replace(self._wall, total_s=self._earlier_s + self.elapsed_s)
        if self._tells_wall:
            self.ledger.enter(self._wall)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What is done within counts for the budget."""
        began_s = self.clock()
        try:
            yield
        finally:
            self.spent_s += self.clock() - began_s

    def note_cost(self, settings: Settings, start_s: float, warm_s: float) -> None:
        """What a launch with these settings took to start and to warm up."""
        self._costs.append(_Cost(settings, start_s, warm_s))
        for change in settings.items():
            self._slowest_s[change] = max(self._slowest_s.get(change, 0.0), start_s)

    def note_shared_cost(self, settings: Settings, start_s: float, warm_s: float, switch_s: float) -> None:
        """The same of a launch in a process that others have, too, and what its own first step took there."""
        self.note_cost(self.switching.start_of(settings), start_s, warm_s)
        if switch_s < start_s:  # else the process was started for it
            self._switches_s.append(switch_s + warm_s)

    def expect_start(self, setting: tuple[str, str], start_s: float) -> None:
        """How long a launch with this setting is taken to start, as long as none has."""
        self._expected_s[setting] = start_s

    def start_s(self, settings: Settings) -> float:
        """How long a launch with these settings may take to start: as last seen, as the slowest that shared a setting
        (compilation), or as any."""
        seen_s = self._expected_s | self._slowest_s
        if not self._costs:
            return max([FIRST_GUESS_START_S, *(seen_s.get(change, 0.0) for change in settings.items())])
        same = [cost.start_s for cost in self._costs if cost.settings == settings]
        usual_s = median(cost.start_s for cost in self._costs)
        return same[-1] if same else max([usual_s, *(seen_s.get(change, 0.0) for change in settings.items())])

    def launches_s(self, variants: Sequence[Settings], *, again: bool = False) -> float:
        """Wall time to start and warm up a launch of each and one of the baseline, blocks not included.

        again: with what was compiled before still in the cache.
        """
        usual_s = self.start_s({})
        kept = WARM_SHARE if again else 1.0
        more = max(0, ceil(len(variants) / (self.live_limit - 1)) - 1)  # groups, each with a launch of the baseline
        together, alone = [0.0], [0.0]
        baselines: list[Settings] = [{}] * (1 + more)
        for settings in (*baselines, *variants):
            is_alone = self._tunes_kernels({**self._circumstances.baseline, **settings})
            own = alone if is_alone else together
            own.append(usual_s + kept * max(0.0, self.start_s(settings) - usual_s))
        warm_s = median(cost.warm_s for cost in self._costs) if self._costs else FIRST_GUESS_WARM_S
        starts_s = max(sum(together) / self.parallel_starts, *together) + sum(alone)
        return starts_s + warm_s * (len(baselines) + len(variants))

    def switched_s(self, variants: Sequence[Settings]) -> float:
        """The same where variants share processes as far as they can be switched."""
        processes = self.switching.processes([{}, *variants])
        switch_s = median(self._switches_s) if self._switches_s else FIRST_GUESS_SWITCH_S
        return self.launches_s(processes[1:]) + switch_s * (1 + len(variants) - len(processes))

    # ------------------------------------------------------------------------------------------------------- progress

    def show(self, standings: Sequence[Standing]) -> None:
        """Let whoever looks on see how the search stands."""
        self._watcher.show(standings)

    def tell(self, text: str, left_s: float | None = None) -> None:
        """Let whoever looks on see what is being done, and for how much longer.

        left_s: by default until the deadline, where there is one to come; else what is left of the budget, and what the
            launches to come take.
        """
        if left_s is None and self.deadline_s is not None and self.deadline_s > self.elapsed_s:
            left_s = self.deadline_s - self.elapsed_s
        if left_s is None:
            left_s = self.left_s if self.planned_s is None else min(self.left_s, self.planned_s)
            if self.launches_to_come:
                left_s += self.launches_s([{}] * (self.launches_to_come - 1))
        self._watcher.update(text, self.elapsed_s, left_s)
