"""A script's training as proofs see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perftool.script.loop import Loop
from perftool.script.realise import Realised

if TYPE_CHECKING:
    import torch
    from torch import nn

    from perftool.plan import Plan


class ScriptTraining:
    """What a script has built so far. Its loop is its own: a proof yields for a step."""

    def __init__(self, loop: Loop, realised: Realised, device: str) -> None:
        import torch
        from torch import nn

        self.plan: Plan = realised.plan
        self.device: torch.device = torch.device(device)
        self.module: nn.Module = nn.ModuleList(realised.roots)
        self.model = self.module
        self.optimizer: Any = loop.optimizers[0] if loop.optimizers else None
        self.optimizers: list[Any] = list(loop.optimizers)
