"""Torch's own hooks of every optimizer's step, also of optimizers that were there before. Torch must be loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Hook = Callable[[Any, Any, Any], None]
"""Gets the optimizer, and the arguments of its step."""


class Updates:
    """One pair of hooks, which may be changed by the second of them: torch goes through all that there are meanwhile,
    so that one may be replaced, and none added or taken away."""

    def __init__(self) -> None:
        self._before: Any = None
        self._after = register_optimizer_step_post_hook(_nothing)

    def follow(self, after: Hook, before: Hook | None = None) -> None:
        """Call these from now on."""
        if self._before is not None:
            self._before.remove()
        self._before = None if before is None else register_optimizer_step_pre_hook(before)
        hooks: Any = self._after.hooks_dict_ref()
        hooks[self._after.id] = after

    def remove(self) -> None:
        """Call nothing any more."""
        self.follow(_nothing)
        self._after.remove()


def _nothing(_optimizer: Any, _arguments: Any, _options: Any) -> None: ...
