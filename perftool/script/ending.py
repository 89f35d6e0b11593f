"""What is to be done when a process of the script ends."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from multiprocessing import util
from typing import Any


def at_end(act: Callable[[], object]) -> None:
    """Have this called when this process ends, and in each child of it, which multiprocessing ends past `atexit`.

    It may be called twice.
    """

    def in_child(_: Any) -> None:
        util.Finalize(None, act, exitpriority=0)

    atexit.register(act)
    util.register_after_fork(act, in_child)
