"""A script under its settings that nobody measures: no more is hooked than these settings need.

What cannot be laid over is told, since nobody proves here that it took effect.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perftool.plan import WARM_CALLS
from perftool.script import hooks
from perftool.script.boot import say
from perftool.script.loop import Loop
from perftool.script.realise import CONFIGURED, Realised

if TYPE_CHECKING:
    from perftool.plan import Plan

TOLD_AFTER = 64  # updates, in which a training has built all that its settings are laid over
NEEDS = {
    "loader": "the script made no DataLoader that takes it",
    "epoch": "the script iterated no DataLoader whose batches it could make",
    "optimizer": "the script stepped no optimizer that takes it",
    "optimizer_changes": "the script stepped no optimizer",
    "model": "the script called no model with gradients",
    "loss": "the script called no model with gradients",
    "warmed_up": "the script made too few updates",
}
"""Part of a Plan to what it may have lacked."""


class Under:
    """Lays a Plan over this process."""

    def __init__(self, plan: Plan, alone: Mapping[str, Plan]) -> None:
        """alone: each setting, "amp=bf16", to the plan with it alone."""
        self._plan = plan
        self._alone = alone
        self._realised = Realised(plan, Loop(None))
        self._updates = 0
        self._is_told = not any(getattr(plan, part) for part in NEEDS)
        self._process = os.getpid()
        self._realised.prepare()
        if self._is_told:
            return
        if "torch" not in sys.modules:  # a script that has none, and says itself where its steps end
            self._tell()
            return
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(self._updating)
        hooks.around_optimizers_made(self._realised)
        if plan.loader:
            hooks.around_making(self._realised)
        if plan.epoch is not None:
            hooks.replaced(_loader_class(), "__iter__", self._iterating)
        if plan.model or plan.loss:
            self._realised.follow_calls(until_calm=True)
        atexit.register(self._ended)

    def _iterating(self, begin: Any) -> Any:
        return lambda loader: self._realised.epoch(loader)

    def _updating(self, optimizer: Any, _arguments: Any, _options: Any) -> None:
        """Before each update: some hundred nanoseconds."""
        if CONFIGURED not in optimizer.__dict__:
            self._realised.configure(optimizer)
        if not self._is_told:
            self._updates += 1
            if self._updates == WARM_CALLS + 1:  # this is before the update
                for act in self._plan.warmed_up:
                    act()
                    self._realised.laid.add("warmed_up")
            if self._updates == TOLD_AFTER:
                self._tell()

    def _ended(self) -> None:
        """The process ends. Whether it has trained is shown by an optimizer, where nothing else does."""
        trained = self._realised.laid or self._realised.optimizer_places
        if trained and not self._is_told and os.getpid() == self._process:
            self._tell()

    def _tell(self) -> None:
        self._is_told = True
        tell_missing(self._realised, self._alone)


def tell_missing(realised: Realised, alone: Mapping[str, Plan]) -> None:
    """Tell what is not in force. alone: as for Under."""
    for setting, plan in alone.items():
        missing = [why for part, why in NEEDS.items() if getattr(plan, part) and part not in realised.laid]
        if missing:
            say(f"{setting} is not in force: {missing[0]}")


def _loader_class() -> Any:
    from torch.utils.data import DataLoader

    return DataLoader
