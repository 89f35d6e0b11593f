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
from perftool.script.optimizers import Optimizers
from perftool.script.sites import own_place
from perftool.script.steps import (
    BACKWARD,
    EVENTS_LONG,
    LONG_S,
    MARK,
    OPTIMIZER,
    Counter,
    Event,
    Rule,
    find_rule,
    is_sure,
    seen_enough,
    waited_long,
)
from perftool.script.thread import Followed

EVALUATION, CHECKPOINT = "evaluation", "checkpoint"
COMMON_SHARE = 0.25  # of the steps: what comes with so many is part of a step, and no interruption
SEEN_LEAST = 8


class Interval:
    """What has happened since the last step ended. There is one for each step of a block, so that it holds no
    container before something has to be kept in one, and its defaults are those of the class."""

    wait_ns = 0  # for batches
    batches = 0
    alone_ns: int | None = None  # until its first backward pass, in which ranks wait for each other
    samples: int | None = None  # None: nobody said
    aside: str | None = None  # what it was besides a step, and where: "evaluation at train.py:88"
    signs: tuple[str, ...] = ()  # of something that is no step, those that come with many steps, too
    losses: tuple[Any, ...] = ()  # scalars that backward began with, where they are kept


class Loop:
    """Follows the events of one process, and calls `turn` at each step end.

    rule: which events end a step; None while it is being found out: then `turn` is called with no step before it is.
    """

    def __init__(self, rule: Rule | None) -> None:
        self.rule: Rule | None = None
        self._counter: Counter | None = None
        self.heeds_backward = True  # a pass may end a step
        self.process = os.getpid()
        self.thread = Followed()
        self.turn: Callable[[], None] = lambda: None
        self.warmed_up: Sequence[Callable[[], None]] = ()  # called once, after WARM_CALLS steps
        self.steps = self.updates = 0
        self.events: list[Event] = []  # while the rule is not known
        self.interval = Interval()  # that a step has just ended, when `turn` is called
        self.keeps_losses = self.keeps_batches = False
        self.batch: Any = None  # that came last, where it is kept
        self.known = Optimizers()
        self.training_loaders: set[int] = set()  # numbers of datasets' loaders
        self.last_loss: Any = None
        self.watcher: Any = None  # of phases and of what disturbs them, while they are wanted
        self.seeded = False
        self.in_update = False
        self._kinds: Tally[str] = Tally()  # of those events
        self._began_s = 0.0  # the first of them
        self._resumed_ns = perf_counter_ns()
        self._signs: Tally[str] = Tally()  # of asides, in how many steps
        self._loader: int | None = None  # whose batch came last
        self._unscaled: dict[int, Any] = {}
        if rule is not None:
            self.follow(rule)

    @property
    def is_own(self) -> bool:
        """Whether this is the process that is followed, and no fork of it."""
        return os.getpid() == self.process

    def forked(self) -> bool:
        """In a child of the process that was followed. Whether it is followed, too: where no step was made before, it
        may be the child that trains."""
        if self.steps:
            return False
        self.process = os.getpid()
        self.events.clear()
        self._kinds.clear()
        self.interval = Interval()
        return True

    @property
    def optimizers(self) -> list[Any]:
        """Those that have stepped, in the order of their first steps."""
        return self.known.stepped()

    # ---------------------------------------------------------------------------------------------------- step ends

    def updated(self, optimizer: Any) -> None:
        """An optimizer's step has returned, or was skipped."""
        if self.thread.is_here():
            self.updates += 1
            self.ended(OPTIMIZER, self.known.number_of(optimizer))

    def updated_here(self, optimizer: Any) -> None:
        """The same, for whoever knows that this thread is followed."""
        self.updates += 1
        self._heed(OPTIMIZER, self.known.number_of(optimizer))

    def ended(self, kind: str, who: int = 0) -> None:
        """Something that may end a step has happened."""
        if self.thread.is_here():
            self._heed(kind, who)

    def _heed(self, kind: str, who: int) -> None:
        if self._counter is None:
            self._find_out(Event(kind, who))
        elif self._counter.ends_step(kind, who):
            self._step_ended()

    def follow(self, rule: Rule) -> None:
        """Steps end by this rule from now on."""
        self.rule = rule
        self._counter = Counter(rule)
        self.heeds_backward = rule.boundary == BACKWARD
        self.known.follow(rule)

    def settle(self) -> None:
        """Follow the rule that is the likeliest by the events so far."""
        rule = find_rule(self.events)
        if rule is not None:
            self.follow(rule)

    def _find_out(self, event: Event) -> None:
        if not self.events:  # a clock from the import of torch on would have a long set-up stand for many events
            self._began_s = monotonic()
        self.events.append(event)
        self._kinds[event.kind] += 1
        kind = next(kind for kind in (MARK, OPTIMIZER, BACKWARD) if kind in self._kinds)
        if event.kind != kind or (kind == BACKWARD and self._awaits_update()):
            return
        if self._has_learnt(kind):
            self.settle()
        self._step_ended()

    def _awaits_update(self) -> bool:
        """Whether this backward pass is one of many before an update: an optimizer is there that has not stepped."""
        if not self.known.awaited() or monotonic() - self._began_s > LONG_S:
            return False
        return len(self.events) <= EVENTS_LONG or self.known.await_gradients()

    def _has_learnt(self, kind: str) -> bool:
        """Whether more events of this kind would hardly show another rule."""
        count, elapsed_s = self._kinds[kind], monotonic() - self._began_s
        if not seen_enough(count, elapsed_s):
            return False
        if kind != OPTIMIZER or waited_long(count, elapsed_s):
            return True
        return not self.known.awaited() and is_sure(self.events)

    def marked(self, samples: int | None) -> None:
        """The script says that a step has ended, and of how many samples it was."""
        if samples is not None:
            self.interval.samples = samples
        self.ended(MARK)

    def _step_ended(self) -> None:
        if not self.steps:
            self.thread.take()
        self.steps += 1
        if self.steps == WARM_CALLS:
            for act in self.warmed_up:
                act()
        self.thread.stands_still = True
        try:
            self.turn()
        finally:
            self.thread.stands_still = False
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
        interval.signs = (*interval.signs, sign)
        self._signs[sign] += 1
        if interval.aside is None and self._signs[sign] <= max(SEEN_LEAST, COMMON_SHARE * self.steps):
            place = own_place()
            where = f" at {os.path.basename(place.file)}:{place.line}" if place.file else ""
            interval.aside = kind + where

    def backward_began(self, loss: Any) -> None:
        if self.interval.alone_ns is None:
            self.interval.alone_ns = perf_counter_ns() - self._resumed_ns
        if self._loader is not None and self.interval.batches:
            self.training_loaders.add(self._loader)
        if self._unscaled:
            loss = self._unscaled.pop(id(loss), loss)
        if loss is not None and (loss.ndim == 0 or loss.numel() == 1):
            self.last_loss = loss.data  # as `detach`, at less than half its price
            if self.keeps_losses:
                self.interval.losses = (*self.interval.losses, self.last_loss)

    def scaled(self, loss: Any, result: Any) -> None:
        """A scaler has made a larger loss of a loss."""
        self._unscaled = {id(result): loss}
