"""Small workloads that behave well, and some that do not, for real worker processes to load."""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import nn
from torch.utils.data import Dataset

from perftool.workload import Workload


class Rows(Dataset[torch.Tensor]):
    """Map-style rows of ones; `act` is called with each index."""

    def __init__(self, act: object = None) -> None:
        self.act = act

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        if callable(self.act):
            self.act(index)
        return torch.ones(4)


def _raise(index: int) -> None:
    raise ValueError("row 3 is broken")


def _exit(index: int) -> None:
    sys.exit(3)


def _die(index: int) -> None:
    os._exit(7)


def _hang(index: int) -> None:
    time.sleep(3600)


def _workload(act: object = None, *, lr: float = 0.01, scale: float = 1.0) -> Workload:
    return Workload(
        model=lambda: nn.Linear(4, 1),
        dataset=lambda: Rows(act),
        loss=lambda model, batch: scale * model(batch).square().mean(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=lr),
        batch_size=8,
    )


good = _workload()
loud = _workload(lambda index: sys.stdout.write("a row was read\n"))
raising = _workload(_raise)
exiting = _workload(_exit)
dying = _workload(_die)
hanging = _workload(_hang)
diverging = _workload(lr=1e30)
rows = Workload(
    model=lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)),
    dataset=lambda: (torch.linspace(-1, 1, 4 * 60).reshape(60, 4), torch.ones(60, 1)),
    loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    batch_size=8,
)
empty = Workload(
    model=lambda: nn.Linear(4, 1),
    dataset=lambda: (torch.ones(3, 4),),
    loss=lambda model, batch: model(batch[0]).mean(),
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    batch_size=8,
    drop_last=True,
)
greedy = Workload(
    model=lambda: nn.Linear(4, 1),
    dataset=lambda: (torch.empty(2**50, 4),),
    loss=lambda model, batch: model(batch[0]).mean(),
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
)
