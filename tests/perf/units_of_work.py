"""A training whose step is a known number of equal units of work, so that inserted work has a known effect."""

from __future__ import annotations

import torch
from torch import nn

from perftool.workload import Workload

UNITS_PER_STEP = 100


class Units(nn.Module):
    """One parameter, and `units` small products per forward."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.units = UNITS_PER_STEP
        self.register_buffer("matrix", torch.eye(96))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        work = self.get_buffer("matrix")
        with torch.no_grad():
            for _ in range(self.units):
                work = work @ self.get_buffer("matrix")
        return self.scale * work[0, 0] * batch.mean()


workload = Workload(
    name="units",
    model=Units,
    dataset=lambda: (torch.ones(8, 4),),
    loss=lambda model, batch: model(batch[0]).square(),
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    batch_size=None,
    settings={"threads": 1},
)
