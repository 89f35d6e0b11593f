"""What a step of a script is, learnt from what it calls: where one ends, and how many updates make one.

Pure: events in, a rule out. A step ends where the optimizer's step does; with the last of several that take turns; with
the backward pass where updates are made by hand; or where the script says so itself (`perftool.step()`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

MARK, OPTIMIZER, BACKWARD = "mark", "optimizer", "backward"
PERIOD_MOST = 64
TIMES_SEEN = 2  # that a pattern repeats before it is one
TIMES_SURE = 3  # before it is one that still holds with more events
EVENTS_ENOUGH, ENOUGH_S = 24, 2.0
EVENTS_MANY = 64  # in however short a time: a quick script may soon be over
EVENTS_FEW, FEW_S = 3, 10.0  # of a script whose steps are slow
EVENTS_LONG, LONG_S = 256, 60.0  # after which what has been seen must do


class Event(NamedTuple):
    """Something that may end a step. `who` numbers the optimizers in the order of their first steps."""

    kind: str
    who: int = 0


@dataclass(frozen=True)
class Rule:
    """Which events end a step.

    boundary: MARK, OPTIMIZER or BACKWARD: the kind of event; other kinds end nothing.
    last: the optimizer whose step ends a training step; None where any does.
    every: so many of these events make one step.
    """

    boundary: str
    last: int | None = None
    every: int = 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Rule:
        return Rule(boundary=str(fields["boundary"]), last=fields.get("last"), every=int(fields.get("every", 1)))


class Counter:
    """Counts steps by a rule."""

    def __init__(self, rule: Rule) -> None:
        self.boundary, self._last, self._every = rule.boundary, rule.last, rule.every
        self._events = 0

    def ends_step(self, kind: str, who: int = 0) -> bool:
        """Whether a step ends with this event. Called several times a step: below a microsecond."""
        if kind != self.boundary or (self._last is not None and who != self._last):
            return False
        self._events += 1
        return self._events % self._every == 0


def seen_enough(events: int, elapsed_s: float) -> bool:
    """Whether so many events that may end a step, in so many seconds, show what a step is."""
    least = EVENTS_FEW if elapsed_s >= FEW_S else EVENTS_ENOUGH if elapsed_s >= ENOUGH_S else EVENTS_MANY
    return events >= least


def waited_long(events: int, elapsed_s: float) -> bool:
    """Whether no more of a pattern is waited for."""
    return events > EVENTS_LONG or elapsed_s > LONG_S


def is_sure(events: Sequence[Event]) -> bool:
    """Whether more events of the same optimizers would hardly show another pattern."""
    updates = [event.who for event in events if event.kind == OPTIMIZER]
    pattern = _repeated(updates, TIMES_SURE)
    return pattern is not None and set(pattern) == set(updates)


def find_rule(events: Sequence[Event]) -> Rule | None:
    """The rule that these events follow; None where there are none."""
    if any(event.kind == MARK for event in events):
        return Rule(MARK)
    updates = [event.who for event in events if event.kind == OPTIMIZER]
    if not updates:
        return Rule(BACKWARD) if any(event.kind == BACKWARD for event in events) else None
    pattern = _pattern(updates)
    if pattern.count(pattern[-1]) == 1:
        return Rule(OPTIMIZER, last=pattern[-1] if len(pattern) > 1 else None)
    return Rule(OPTIMIZER, every=len(pattern))


def _pattern(updates: Sequence[int]) -> Sequence[int]:
    """What the updates repeat; one update where they repeat nothing."""
    pattern = _repeated(updates, TIMES_SEEN)
    return pattern if pattern is not None and set(pattern) == set(updates) else _ends_with_rarest(updates)


def _repeated(updates: Sequence[int], times: int) -> Sequence[int] | None:
    """What is repeated so many times, by the first start after which something is.

    A script may begin with something else, such as a few updates of one network alone.
    """
    for start in range(0, len(updates) // 2 + 1):
        rest = updates[start:]
        for period in range(1, min(PERIOD_MOST, len(rest) // times) + 1):
            if rest[period:] == rest[:-period]:
                return rest[:period]
    return None


def _ends_with_rarest(updates: Sequence[int]) -> Sequence[int]:
    """Where nothing repeats, the optimizer that steps least ends a step: the others work towards it."""
    counts = {who: updates.count(who) for who in updates}
    rarest = min(counts, key=lambda who: counts[who])
    return [*(who for who in counts if who != rarest), rarest]
