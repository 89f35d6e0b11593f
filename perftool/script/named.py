"""Names for the phases of a script's steps, to be seen in a trace; takes a watcher's place while one is taken."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.profiler import record_function

from perftool.words import REST, WAIT


class Named:
    """Opens a range of the profiler for each phase; those of one step end with it. Has the calls of a `Watcher` that
    hooks make, and of its marks."""

    def __init__(self) -> None:
        self.marks = self
        self._open: list[AbstractContextManager[Any]] = []

    def begin(self, phase: str) -> None:
        """The innermost phase has ended, and this one begins in its place."""
        self._close()
        self.push(phase)

    def push(self, phase: str) -> None:
        """This phase begins within the innermost one."""
        self._open.append(record_function(phase))
        self._open[-1].__enter__()

    def pop(self, then: str | None = None) -> None:
        """The innermost phase has ended."""
        self._close()
        if then not in (None, REST):
            self.begin(str(then))

    def fetching(self) -> None:
        """The next batch is asked for."""
        self.push(WAIT)

    def fetched(self, then: str | None = None) -> None:
        """It has come."""
        self.pop(then)

    def end(self) -> None:
        """The step has ended, and with it whatever was open."""
        while self._open:
            self._close()

    def _close(self) -> None:
        if self._open:
            self._open.pop().__exit__(None, None, None)
