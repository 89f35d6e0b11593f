"""The phases of a script's steps, for whoever takes a watcher's place: it has the calls of a watcher and of its marks
that hooks make."""

from __future__ import annotations

from collections.abc import Callable

from perftool.words import REST, WAIT


class Phases:
    """Keeps what phase a step is in; phases may lie within each other, and the innermost one counts."""

    def __init__(self, now: Callable[[str], None]) -> None:
        """now: told each phase that becomes the innermost one."""
        self.marks = self
        self._now = now
        self._open = [REST]

    def begin(self, phase: str) -> None:
        """The innermost phase has ended, and this one begins in its place."""
        self._open[-1] = phase
        self._now(phase)

    def push(self, phase: str) -> None:
        """This phase begins within the innermost one."""
        self._open.append(phase)
        self._now(phase)

    def pop(self, then: str | None = None) -> None:
        """The innermost phase has ended, and the one around it goes on, as `then` where that is given."""
        if len(self._open) > 1:
            self._open.pop()
        self.begin(then or self._open[-1])

    def iterating(self, loader: int) -> None:
        """A loader begins an epoch; `fetched` is told when it has."""
        self.push(WAIT)

    def fetching(self) -> None:
        """The next batch is asked for."""
        self.push(WAIT)

    def fetched(self, then: str | None = None) -> None:
        """It has come."""
        self.pop(then)

    def end(self) -> None:
        """The step has ended, and with it whatever was open."""
        self._open = [REST]
        self._now(REST)
