"""The reference training: is a point of [-1, 1]^d inside the unit circle of its first two coordinates?

`python -m scenarios.reference` walks through it as a tutorial would: look at the data, train, save, load, compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from perftool.workload import Batch, Workload

LOG_EVERY_EPOCHS = 100
MODEL_FILE = Path("model.pth")


def points(rows: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points uniform in [-1, 1]^dimensions, float32 (rows, dimensions), and labels, float32 (rows, 1)."""
    uniform = 2 * np.random.default_rng(0).random((rows, dimensions), dtype=np.float32) - 1
    inside = uniform[:, :1] ** 2 + uniform[:, 1:2] ** 2 < 1.0
    return torch.from_numpy(uniform), torch.from_numpy(inside.astype(np.float32))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Binary cross entropy of the logits, a scalar."""
    inputs, targets = batch
    return nn.functional.binary_cross_entropy_with_logits(model(inputs), targets)


def adam(lr: float) -> Callable[[Iterable[Any]], torch.optim.Optimizer]:
    """A maker of Adam optimizers."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


seed = Workload(
    name="seed",
    model=lambda: mlp(2, 4, 1),
    dataset=lambda: points(10, 2),
    loss=loss,
    optimizer=adam(0.01),
    batch_size=None,
)
small = Workload(
    name="small",
    model=lambda: mlp(256, 512, 1),
    dataset=lambda: points(8_192, 256),
    loss=loss,
    optimizer=adam(0.01),
    batch_size=64,
)
medium = Workload(
    name="medium",
    model=lambda: mlp(256, 1024, 1024, 1),
    dataset=lambda: points(65_536, 256),
    loss=loss,
    optimizer=adam(0.001),
    batch_size=256,
)
large = Workload(
    name="large",
    model=lambda: mlp(4096, 8192, 8192, 1),
    dataset=lambda: points(32_768, 4096),
    loss=loss,
    optimizer=adam(0.001),
    batch_size=8192,
)


def walk_through(epochs: int = 1000) -> None:
    """Train `seed`, printing what a tutorial prints; save the model, load it, and show that nothing was lost."""
    torch.manual_seed(0)
    inputs, targets = seed.dataset()
    print("First five points:")
    for point, label in zip(inputs[:5].tolist(), targets[:5, 0].tolist(), strict=True):
        print(f"  ({point[0]:+.4f}, {point[1]:+.4f}) -> {label:.0f}")
    model = seed.model()
    print(model)
    optimizer = seed.optimizer(model.parameters())
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        value = seed.loss(model, (inputs, targets))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if epoch % LOG_EVERY_EPOCHS == 0:
            print(f"Epoch {epoch}, loss {value.item():.4f}")
    print("Learning Finished!")

    torch.save(model.state_dict(), MODEL_FILE)
    loaded = seed.model()
    loaded.load_state_dict(torch.load(MODEL_FILE, weights_only=True))
    with torch.no_grad():
        same = torch.equal(model(inputs), loaded(inputs))
    print(f"Saved to {MODEL_FILE} and loaded again: the outputs are {'the same' if same else 'NOT the same'}.")


if __name__ == "__main__":
    walk_through()
