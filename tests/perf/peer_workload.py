"""The reference training as loadtune wants it: five callables; PEER_REFERENCE says which of its sizes.

Run by loadtune within its own environment, never by perftool.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from loadtune import Workload
from torch.utils.data import TensorDataset

from perftool.workload import load_workload

REFERENCE = "PEER_REFERENCE"


def get_workload() -> Workload:
    """What `loadtune tune` asks a file for."""
    ours = load_workload(os.environ[REFERENCE])

    def train_step(
        model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Any, device: torch.device
    ) -> torch.Tensor:
        optimizer.zero_grad()
        loss = ours.loss(model, [part.to(device) for part in batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return Workload(
        name=ours.name or "workload",
        make_dataset=lambda: TensorDataset(*ours.dataset()),
        make_model=ours.model,
        train_step=train_step,
        make_optimizer=lambda model: ours.optimizer(model.parameters()),
        default_batch_size=ours.batch_size or 1,
    )
