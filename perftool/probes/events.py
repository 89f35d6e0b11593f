"""The last step in which something happened that makes it unlike those to come: compilation, a retried allocation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from perftool.probes.device import allocator_retries

if TYPE_CHECKING:
    import torch


class Events:
    """Told of every step of a warm-up. Needs no torch where the training has none."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._last_step: int | None = None

    def after_step(self, step: int) -> None:
        """So many steps are done."""
        dynamo = sys.modules.get("torch._dynamo.utils")
        self._note("compiled", sum(dynamo.counters["frames"].values()) if dynamo else 0, step)

    def after_steps(self, step: int, device: torch.device) -> None:
        """The same before and after several, for what is too dear to ask after each."""
        self._note("retried", allocator_retries(device), step)

    def steps_since(self, step: int) -> int | None:
        """How many steps have been made since the last event; None where there was none."""
        return None if self._last_step is None else step - self._last_step

    def _note(self, kind: str, count: int, step: int) -> None:
        if self._counts.setdefault(kind, count) != count:
            self._last_step = step
        self._counts[kind] = count
