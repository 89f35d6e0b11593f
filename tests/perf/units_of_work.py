"""Trainings whose step is a known number of equal units of work, so that inserted work has a known effect."""

from __future__ import annotations

import torch
from torch import nn

from perftool.workload import Workload


class Units(nn.Module):
    """One parameter, and `units` small products per forward."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.units = units
        self.register_buffer("matrix", torch.eye(96))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        work = self.get_buffer("matrix")
        with torch.no_grad():
            for _ in range(self.units):
                work = work @ self.get_buffer("matrix")
        return self.scale * work[0, 0] * batch.mean()


def of(units: int) -> Workload:
    """A training with so many units per step."""
    return Workload(
        name=f"{units} units",
        model=lambda: Units(units),
        dataset=lambda: (torch.ones(8, 4),),
        loss=lambda model, batch: model(batch[0]).square(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
        batch_size=None,
        settings={"threads": 1},
    )


workload = of(100)
long_step = of(90)  # about 2 ms on one core of a server
short_step = of(4)  # about 0.2 ms
