"""The thread of a process that is followed: that in which the first step has ended.

What others train beside it would mix with its steps, and resume what is being answered. They are left alone, unless
that thread is over or trains no more.
"""

from __future__ import annotations

import sys
import threading
from threading import get_ident
from time import monotonic

SILENT_S = 30.0  # after which another thread that trains is followed


class Followed:
    """Which thread it is; none before the first step."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self._others_since_s: float | None = None  # others have trained, and this one has not
        self.stands_still = False  # for as long as it is asked
        self.has_others = False  # that trained beside it

    def take(self) -> None:
        """A step has ended here."""
        if self._thread is None:
            self._thread = get_ident()

    def is_here(self) -> bool:
        """Whether what happens here counts. Called several times a step."""
        here = get_ident()
        if self._thread is None or here == self._thread:
            self._others_since_s = None
            return True
        if in_backward():  # torch has threads of its own for that, and hooks in it may update
            return True
        if self.stands_still or not self._is_silent():
            self.has_others = True
            return False
        self._thread, self._others_since_s = here, None
        return True

    def _is_silent(self) -> bool:
        if all(self._thread != thread.ident for thread in threading.enumerate()):
            return True
        now_s = monotonic()
        self._others_since_s = self._others_since_s or now_s
        return now_s - self._others_since_s > SILENT_S


def in_backward() -> bool:
    """Whether this thread is within a backward pass."""
    torch = sys.modules.get("torch")
    current = getattr(getattr(torch, "_C", None), "_current_graph_task_id", None)  # torch 2.1
    return current is not None and current() != -1
