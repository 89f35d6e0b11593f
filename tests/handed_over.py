"""Workloads of every form that a recommended script has to cope with, and an optimizer that says what it wants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from perftool.workload import Workload

ROWS, BATCH = 22, 4  # the last batch of an epoch is ragged
INPUTS = torch.linspace(-1, 1, 4 * ROWS).reshape(ROWS, 4)
TARGETS = torch.linspace(0, 1, ROWS).reshape(ROWS, 1)


class Pair(NamedTuple):
    """A sample, and a batch, with names."""

    x: torch.Tensor
    y: torch.Tensor


class Samples(Dataset[Any]):
    """Map-style; `form` makes a sample from a row and its target."""

    def __init__(self, form: Any) -> None:
        self.form = form

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        return self.form(INPUTS[index], TARGETS[index])


class Stream(IterableDataset[Any]):
    """The same rows, in order."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(INPUTS, TARGETS, strict=True))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    inputs, targets = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    return nn.functional.mse_loss(model(inputs), targets)


def of_one(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = model(batch).square().mean()
    return value


def stacked(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Batches of its own making, a tuple."""
    inputs, targets = zip(*samples, strict=True)
    return torch.stack(inputs), torch.stack(targets)


def _workload(dataset: Any, **changes: Any) -> Workload:
    usual: dict[str, Any] = {
        "model": model,
        "loss": loss,
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        "batch_size": BATCH,
    }
    return Workload(dataset=dataset, **{**usual, **changes})


shuffled = _workload(lambda: (INPUTS, TARGETS))
ordered = _workload(lambda: (INPUTS, TARGETS), shuffle=False)
dropping = _workload(lambda: TensorDataset(INPUTS, TARGETS), drop_last=True)
dropping_in_order = _workload(lambda: TensorDataset(INPUTS, TARGETS), drop_last=True, shuffle=False)
whole = _workload(lambda: (INPUTS, TARGETS), batch_size=None)
stream = _workload(Stream)
dicts = _workload(lambda: Samples(lambda x, y: {"x": x, "y": y}), shuffle=False)
named = _workload(lambda: Samples(Pair), shuffle=False)
single = _workload(lambda: Samples(lambda x, _: x), loss=of_one, shuffle=False)
collated = _workload(lambda: Samples(lambda x, y: (x, y)), collate_fn=stacked, shuffle=False)
sgd = _workload(
    lambda: (INPUTS, TARGETS), shuffle=False, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)
)
fused_already = _workload(
    lambda: (INPUTS, TARGETS),
    shuffle=False,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True),
)


def made() -> Workload:
    """A function that returns a workload, which says what it does already."""
    return _workload(lambda: (INPUTS, TARGETS), shuffle=False, settings={"amp": "bf16"})
