"""Whoever a job talks to while it runs: a terminal, or nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from perftool.analysis.search import Standing
    from perftool.measure.lab import Watcher
    from perftool.records import Session, Summary, TraceReport


@dataclass(frozen=True)
class Measured:
    """What was measured, and what it comes to."""

    session: Session
    summary: Summary


class Front(Protocol):
    """What a job tells, in the order in which it does."""

    def watching(self) -> AbstractContextManager[Watcher]:
        """Around what takes long, which a signal may end by a KeyboardInterrupt."""

    def say(self, text: str) -> None:
        """A line for people."""

    def measured(self) -> None:
        """Measuring is over. What follows takes a moment, and keeps what was measured."""

    def answer(self, answer: Measured | TraceReport) -> None:
        """What the job was run for, as soon as it is known."""


class Silent:
    """Nobody: a library call has its answer from the job itself."""

    @contextmanager
    def watching(self) -> Iterator[Watcher]:
        yield _Unwatched()

    def say(self, text: str) -> None: ...

    def measured(self) -> None: ...

    def answer(self, answer: Measured | TraceReport) -> None: ...


class _Unwatched:
    def show(self, standings: Sequence[Standing]) -> None: ...

    def update(self, text: str, done_s: float, left_s: float) -> None: ...
