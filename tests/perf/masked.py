"""A training whose two large levers hide each other, whatever the machine: a step takes as long as the slower of its
loader and its computation, and both take about as long."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from perftool.workload import Batch, Workload

ROWS, FEATURES, BATCH = 4096, 64, 32
LAYERS = 60  # many small parameters: an optimizer that goes through them one by one takes most of the step
FETCH_S = 0.02  # that a batch has to be waited for, as from a disk far away


class FarRows(Dataset[tuple[Tensor, Tensor]]):
    """Rows that are fetched a batch at a time, with a wait that needs no core."""

    def __init__(self) -> None:
        self.x = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(0))
        self.y = self.x[:, :1].tanh()

    def __len__(self) -> int:
        return ROWS

    def __getitems__(self, rows: list[int]) -> list[tuple[Tensor, Tensor]]:
        time.sleep(FETCH_S)
        return [(self.x[row], self.y[row]) for row in rows]


def _net() -> nn.Module:
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(FEATURES, FEATURES), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(FEATURES, 1))


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


workload = Workload(
    model=_net,
    dataset=FarRows,
    loss=_loss,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-4, foreach=False),
    batch_size=BATCH,
    settings={"dataloader_workers": "1"},
)
