"""Names for the phases of a script's steps, to be seen in a trace."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.profiler import record_function

from perftool.words import REST


class Names:
    """Has a range of the profiler for the phase that a step is in, and for no other: ranges that lie within each other
    would count the same time twice."""

    def __init__(self) -> None:
        self._open: AbstractContextManager[Any] | None = None

    def now(self, phase: str) -> None:
        """What follows is of this phase; the rest of a step has no name."""
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = None if phase == REST else record_function(phase)
        if self._open is not None:
            self._open.__enter__()  # type: ignore[no-untyped-call]
