"""The optimizers of a loop, numbered in the order of their first steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perftool.script.attached import Known, alive, weakly
from perftool.script.steps import Rule


class Optimizers:
    """Numbers them. A script may train several times with new ones: each of those takes the number of one that is gone,
    and where those before live on, but step no more, all are numbered anew."""

    def __init__(self) -> None:
        self.were_made = False  # any, also where none is left
        self._made: list[Known] = []
        self._known: list[Known] = []
        self._newer: list[Known] = []  # that have stepped since one of those known did
        self._newer_updates = 0
        self._rule: Rule | None = None
        self._period = 0  # updates of a step; 0 while that is not known
        self._updates = 0

    def follow(self, rule: Rule) -> None:
        """From now on steps end by this rule."""
        self._rule = rule
        self._forget_period()

    def made(self, optimizer: Any) -> None:
        """The script has made one."""
        self.were_made = True
        self._made = [known for known in self._made if known() is not None]
        self._made.append(weakly(optimizer))

    def stepped(self) -> list[Any]:
        """Those that have, and are still there, by their numbers."""
        return alive(self._known)

    def awaited(self) -> list[Any]:
        """Those that were made, but have not stepped, and are the only ones to update some parameter."""
        stepped = self.stepped()
        updated = {id(part) for one in stepped for part in _parameters_of(one)}
        unstepped = [one for one in alive(self._made) if not any(one is known for known in stepped)]
        return [one for one in unstepped if any(id(part) not in updated for part in _parameters_of(one))]

    def await_gradients(self) -> bool:
        """Whether some parameter has a gradient that one of those awaited would use."""
        return any(part.grad is not None for one in self.awaited() for part in _parameters_of(one))

    def number_of(self, optimizer: Any) -> int:
        """The number of one that steps now."""
        number: int | None = 0
        if not self._known or self._known[0]() is not optimizer:  # of most scripts it is this one
            number = _index(self._known, optimizer)
        if number is None:
            number = self._number_of_new(optimizer)
        elif self._newer:  # those before go on, and these have come to them
            self._known += self._newer
            self._newer, self._newer_updates = [], 0
        self._updates += 1
        if self._rule is not None and number == self._rule.last:
            self._period, self._updates = self._updates, 0
        return number

    def _number_of_new(self, optimizer: Any) -> int:
        gone = next((number for number, known in enumerate(self._known) if known() is None), None)
        if gone is not None:
            self._known[gone] = weakly(optimizer)
            return gone
        if not self._period or not self._known:
            self._known.append(weakly(optimizer))
            return len(self._known) - 1
        number = _index(self._newer, optimizer)
        if number is None:
            self._newer.append(weakly(optimizer))
            number = len(self._newer) - 1
        self._newer_updates += 1
        if self._newer_updates <= self._period:
            return len(self._known) + number
        self._known, self._newer, self._newer_updates = self._newer, [], 0
        self._forget_period()
        return number

    def _forget_period(self) -> None:
        assert self._rule is not None, "no period is known without a rule"
        self._period = self._rule.every if self._rule.last is None else 0
        self._updates = 0


def _parameters_of(optimizer: Any) -> list[Any]:
    """All that it updates."""
    return [part for group in getattr(optimizer, "param_groups", ()) for part in group["params"]]


def _index(known: Sequence[Known], optimizer: Any) -> int | None:
    for number, one in enumerate(known):  # called at each update
        if one() is optimizer:
            return number
    return None
