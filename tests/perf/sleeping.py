"""A training whose step takes a known time, apart from a loader that sleeps."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.utils.data import Dataset

from perftool.workload import Batch, Workload

STEP_S = 0.004


class Sleeping(Dataset[torch.Tensor]):
    """Every item sleeps; a batch is one item."""

    def __init__(self, sleep_s: float) -> None:
        self.sleep_s = sleep_s

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, row: int) -> torch.Tensor:
        time.sleep(self.sleep_s)
        return torch.ones(2)


class Clocked(torch.optim.SGD):
    """Its step ends so long after its gradients were cleared, with which a step begins."""

    began_s = 0.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.began_s = time.perf_counter()
        super().zero_grad(set_to_none)

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        super().step()
        while time.perf_counter() - self.began_s < STEP_S:
            pass


def of(sleep_ms: float) -> Workload:
    """A workload whose loader sleeps so long."""

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        value: torch.Tensor = model(batch).square().mean()
        return value

    return Workload(
        model=lambda: nn.Linear(2, 1),
        dataset=lambda: Sleeping(sleep_ms / 1000),
        loss=loss,
        optimizer=lambda parameters: Clocked(parameters, lr=0.001),
        batch_size=1,
        shuffle=False,
    )


of_0_5_ms = of(0.5)
of_2_ms = of(2)
of_8_ms = of(8)
