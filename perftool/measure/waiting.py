"""Waiting for processes in a way that an interrupt always ends."""

from __future__ import annotations

import select
from collections.abc import Sequence
from time import monotonic
from typing import Protocol, TypeVar

# A signal that arrives just before the system call, or in another thread, does not end the call: Python's handler runs
# only after it. So it is made again now and then, too seldom to disturb what is measured.
AGAIN_S = 1.0


class HasFileno(Protocol):
    def fileno(self) -> int: ...


C = TypeVar("C", bound=HasFileno)


def readable(channels: Sequence[C], limit_s: float) -> list[C]:
    """Those of which there is something to read, as soon as there is; none after the limit."""
    deadline_s = monotonic() + limit_s
    while True:
        left_s = max(0.0, deadline_s - monotonic())
        ready: list[C] = select.select(channels, [], [], min(AGAIN_S, left_s))[0]
        if ready or left_s <= AGAIN_S:
            return ready
