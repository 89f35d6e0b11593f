"""A script under its settings that nobody measures: no more is hooked than these settings need.

What cannot be laid over is told, since nobody proves here that it took effect.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from perftool.plan import WARM_CALLS
from perftool.script import hooks
from perftool.script.attached import CONFIGURED
from perftool.script.boot import say
from perftool.script.loop import Loop
from perftool.script.realise import Realised

if TYPE_CHECKING:
    from perftool.plan import Plan

FIRST_UPDATES = 1  # after which the script has set what it sets itself
TOLD_AFTER = 64  # updates, in which a training has built all that its settings are laid over
NEEDS = {
    "loader": "the script trained from no DataLoader that takes it",
    "epoch": "the script trained from no DataLoader whose batches it could make",
    "optimizer": "the script stepped no optimizer that takes it",
    "optimizer_changes": "the script stepped no optimizer",
    "module": "the script called no model with gradients that has what it changes",
    "model": "the script called no model with gradients",
    "loss": "the script called no model with gradients",
    "warmed_up": "the script made too few updates",
}
"""Part of a Plan to what it may have lacked."""


class Asked(NamedTuple):
    """A setting that is to be in force.

    plan: with it alone. present: which value is, as torch tells; None where it does not.
    """

    name: str
    value: str
    plan: Plan
    present: Callable[[], str] | None = None


class Under:
    """Lays a Plan over this process."""

    def __init__(self, plan: Plan, asked: Sequence[Asked], loaders: Sequence[Sequence[bool]] = ()) -> None:
        """asked: the settings that the plan is made of. loaders: as for Realised."""
        self._plan = plan
        self._asked = asked
        self._realised = Realised(plan, Loop(None), loaders=loaders)
        self._updates = 0
        self._is_told = not plan.process and not any(getattr(plan, part) for part in NEEDS)
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
        if plan.optimizer or plan.optimizer_changes:
            hooks.around_scaled_steps(self._realised)
        if plan.loader or plan.epoch is not None:
            hooks.around_making(self._realised)
            hooks.around_modes(self._realised)
            hooks.replaced(_loader_class(), "__iter__", self._iterating)
        if plan.module or plan.model or plan.loss:
            self._realised.follow_calls(until_calm=True)
        atexit.register(self._ended)

    def _iterating(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        def call(loader: Any) -> Any:
            batches = self._realised.epoch(loader)
            return begin(loader) if batches is None else batches

        return call

    def _updating(self, optimizer: Any, _arguments: Any, _options: Any) -> None:
        """Before each update: some hundred nanoseconds."""
        if CONFIGURED not in optimizer.__dict__:
            self._realised.configure(optimizer)
        if not self._is_told:
            self._updates += 1
            if self._updates == FIRST_UPDATES + 1:  # this is before the update
                self._realised.prepare()
            if self._updates == WARM_CALLS + 1:
                for act in self._plan.warmed_up:
                    act()
                    self._realised.laid.add("warmed_up")
            if self._updates == TOLD_AFTER:
                self._tell()

    def _ended(self) -> None:
        """The process ends. Whether it has trained is shown by an optimizer, where nothing else does."""
        trained = self._realised.laid or self._realised.loop.known.were_made
        if trained and not self._is_told and os.getpid() == self._process:
            self._tell()

    def _tell(self) -> None:
        self._is_told = True
        tell_missing(self._realised, self._asked)


def tell_missing(realised: Realised, asked: Sequence[Asked]) -> None:
    """Tell what is not in force."""
    for one in asked:
        why = _missing(realised, one)
        if why is not None:
            say(f"{one.name}={one.value} is not in force: {why}")


def _missing(realised: Realised, one: Asked) -> str | None:
    lacking = [why for part, why in NEEDS.items() if getattr(one.plan, part) and part not in realised.laid]
    if any(change not in realised.changes_laid for change in one.plan.module):
        lacking.append(NEEDS["module"])
    if lacking:
        return lacking[0]
    if one.present is None or "torch" not in sys.modules:
        return None
    try:
        found = one.present()
    except RuntimeError:  # torch does not tell where a script has used several of its ways to set the same
        return None
    if found == one.value:
        return None
    return f"the script itself has set {found} since its training began; take that out of it"


def _loader_class() -> Any:
    from torch.utils.data import DataLoader

    return DataLoader
