"""The script's loop as perftool sees it: what has happened since the last step end, and whose turn it is.

Called from within the script, some ten times a step: nothing here may take more than microseconds.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter_ns
from typing import Any

from perftool.plan import WARM_CALLS
from perftool.script.attached import alive, weakly
from perftool.script.sites import own_place
from perftool.script.steps import BACKWARD, MARK, OPTIMIZER, Counter, Event, Rule, find_rule, seen_enough

EVALUATION, CHECKPOINT = "evaluation", "checkpoint"
UPDATES_AWAITED, AWAITED_S = 256, 60.0  # backward passes, while an optimizer is there that has not stepped
COMMON_SHARE = 0.25  # of the steps: what comes with so many is part of a step, and no interruption
SEEN_LEAST = 8


class Interval:
    """What has happened since the last step ended."""

    __slots__ = ("alone_ns", "asides", "batches", "losses", "samples", "signs", "wait_ns")

    def __init__(self) -> None:
        self.wait_ns = 0  # for batches
        self.batches = 0
        self.alone_ns: int | None = None  # until its first backward pass, in which ranks wait for each other
        self.samples: int | None = None  # None: nobody said
        self.asides: dict[str, str] = {}  # sign of something that is no step -> "evaluation at train.py:88"
        self.signs: set[str] = set()  # all of them, those that come with many steps, too
        self.losses: list[Any] = []  # scalars that backward began with, where they are kept

    @property
    def aside(self) -> str | None:
        """What it was besides a step, and where; None for nothing but a step."""
        return next(iter(self.asides.values()), None)


class Loop:
    """Follows the events of one process, and calls `turn` at each step end.

    rule: which events end a step; None while it is being found out: then `turn` is called with no step before it is.
    """

    def __init__(self, rule: Rule | None) -> None:
        self.rule = rule
        self._counter = None if rule is None else Counter(rule)
        self.process = os.getpid()
        self.turn: Callable[[], None] = lambda: None
        self.warmed_up: Sequence[Callable[[], None]] = ()  # called once, after WARM_CALLS steps
        self.steps = self.updates = 0
        self.events: list[Event] = []  # while the rule is not known
        self.interval = Interval()  # that a step has just ended, when `turn` is called
        self.keeps_losses = self.keeps_batches = False
        self.batch: Any = None  # that came last, where it is kept
        self._optimizers: list[Callable[[], Any]] = []  # weak references, in the order of their first steps
        self.training_loaders: set[int] = set()  # numbers of datasets' loaders
        self.last_loss: Any = None
        self.watcher: Any = None  # of phases and of what disturbs them, while they are wanted
        self.seeded = False
        self.in_update = False
        self.has_optimizer = False
        self._began_s = monotonic()
        self._resumed_ns = perf_counter_ns()
        self._signs: Tally[str] = Tally()  # of asides, in how many steps
        self._loader: int | None = None  # whose batch came last
        self._unscaled: dict[int, Any] = {}

    @property
    def is_own(self) -> bool:
        """Whether this is the process that was followed, and no fork of it."""
        return os.getpid() == self.process

    # ---------------------------------------------------------------------------------------------------- step ends

    def updated(self, optimizer: Any) -> None:
        """An optimizer's step has returned, or was skipped."""
        self.updates += 1
        self.ended(OPTIMIZER, self.number_of(optimizer))

    def number_of(self, optimizer: Any) -> int:
        """Of an optimizer, in the order of their first steps."""
        for number, known in enumerate(self._optimizers):
            if known() is optimizer:
                return number
        self._optimizers.append(weakly(optimizer))
        return len(self._optimizers) - 1

    @property
    def optimizers(self) -> list[Any]:
        """In the order of their first steps, those that are still there."""
        return alive(self._optimizers)

    def ended(self, kind: str, who: int = 0) -> None:
        """Something that may end a step has happened."""
        if self._counter is None:
            self._find_out(Event(kind, who))
        elif self._counter.ends_step(kind, who):
            self._step_ended()

    def _find_out(self, event: Event) -> None:
        self.events.append(event)
        kind = self.boundary()
        if kind == BACKWARD and self.has_optimizer and not self._waited_long():
            return
        if event.kind != kind:
            return
        count = sum(one.kind == kind for one in self.events)
        if seen_enough(count, monotonic() - self._began_s):
            self.rule = find_rule(self.events)
            assert self.rule is not None, "there was an event"
            self._counter = Counter(self.rule)
        self._step_ended()

    def _waited_long(self) -> bool:
        """For the first step of an optimizer: many batches may be accumulated for it."""
        return len(self.events) > UPDATES_AWAITED or monotonic() - self._began_s > AWAITED_S

    def boundary(self) -> str:
        """The kind of event that ends steps, as far as is known."""
        kinds = {event.kind for event in self.events}
        return next(kind for kind in (MARK, OPTIMIZER, BACKWARD) if kind in kinds)

    def marked(self, samples: int | None) -> None:
        """The script says that a step has ended, and of how many samples it was."""
        if samples is not None:
            self.interval.samples = samples
        self.ended(MARK)

    def _step_ended(self) -> None:
        self.steps += 1
        if self.steps == WARM_CALLS:
            for act in self.warmed_up:
                act()
        self.turn()
        self.interval = Interval()
        self._resumed_ns = perf_counter_ns()

    # ------------------------------------------------------------------------------------------- within an interval

    def fetched(self, loader: int, wait_ns: int, samples: int | None, batch: Any) -> None:
        """A batch has come from a loader, by its number among them."""
        interval = self.interval
        interval.wait_ns += wait_ns
        interval.batches += 1
        if samples is not None:
            interval.samples = (interval.samples or 0) + samples
        self._loader = loader
        self.batch = batch if self.keeps_batches else None

    def iterated(self, loader: int) -> None:
        """A loader begins an epoch. One that never fed a backward pass is not the training's."""
        if self.steps and loader not in self.training_loaders:
            self.noticed("another loader", EVALUATION)

    def noticed(self, sign: str, kind: str) -> None:
        """A sign of something that is no part of the steps, unless it comes with many of them."""
        interval = self.interval
        if sign in interval.signs or not self.steps:
            return
        interval.signs.add(sign)
        self._signs[sign] += 1
        if self._signs[sign] <= max(SEEN_LEAST, COMMON_SHARE * self.steps):
            place = own_place()
            where = f" at {os.path.basename(place.file)}:{place.line}" if place.file else ""
            interval.asides[sign] = kind + where

    def backward_began(self, loss: Any) -> None:
        if self.interval.alone_ns is None:
            self.interval.alone_ns = perf_counter_ns() - self._resumed_ns
        self._loader_trains()
        if self._unscaled:
            loss = self._unscaled.pop(id(loss), loss)
        if loss is not None and (loss.ndim == 0 or loss.numel() == 1):
            self.last_loss = loss.detach()
            if self.keeps_losses:
                self.interval.losses.append(self.last_loss)

    def _loader_trains(self) -> None:
        if self._loader is not None and self.interval.batches:
            self.training_loaders.add(self._loader)

    def scaled(self, loss: Any, result: Any) -> None:
        """A scaler has made a larger loss of a loss."""
        self._unscaled = {id(result): loss}
