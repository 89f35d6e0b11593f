"""The thread of a process that is followed: that in which the first step has ended.

What others train beside it would mix with its steps, and resume what is being answered. They are left alone, unless
that thread is over or trains no more.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from threading import get_ident
from time import monotonic

NO_TASK = -1
SILENT_S = 30.0  # after which another thread that trains is followed


class Followed:
    """Which thread it is; none before the first step."""

    def __init__(self) -> None:
        self.ident: int | None = None
        self._others_since_s: float | None = None  # others have trained, and this one has not
        self.stands_still = False  # for as long as it is asked
        self.has_others = False  # that trained beside it

    def take(self) -> None:
        """A step has ended here."""
        if self.ident is None:
            self.ident = get_ident()

    def trains(self) -> None:
        """It has made a step since this was called last, for whoever asks `ident` in place of `is_here`."""
        self._others_since_s = None

    def is_here(self) -> bool:
        """Whether what happens here counts. Called several times a step."""
        here = get_ident()
        if self.ident is None or here == self.ident:
            self._others_since_s = None
            return True
        if in_backward():  # torch has threads of its own for that, and hooks in it may update
            return True
        if self.stands_still or not self._is_silent():
            self.has_others = True
            return False
        self.ident, self._others_since_s = here, None
        return True

    def _is_silent(self) -> bool:
        if all(self.ident != thread.ident for thread in threading.enumerate()):
            return True
        now_s = monotonic()
        self._others_since_s = self._others_since_s or now_s
        return now_s - self._others_since_s > SILENT_S


def in_backward() -> bool:
    """Whether this thread is within a backward pass."""
    return backward_task()() != NO_TASK


def backward_task() -> Callable[[], int]:
    """What tells the number of the backward pass that this thread is within; NO_TASK in none."""
    torch = sys.modules.get("torch")
    found: Callable[[], int] | None = getattr(getattr(torch, "_C", None), "_current_graph_task_id", None)  # torch 2.1
    return found or (lambda: NO_TASK)
