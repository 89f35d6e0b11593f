"""Whatever a test hooks of torch is put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers
from torch.utils.data import DataLoader

HOOKED: list[tuple[type, tuple[str, ...]]] = [
    (nn.Module, ("__call__", "__init__", "train")),
    (Optimizer, ("__init__",)),
    (DataLoader, ("__init__", "__iter__")),
    (torch.amp.GradScaler, ("step",)),
]


@pytest.fixture
def put_back() -> Iterator[None]:
    """What is hooked of a process that ends with a script."""
    before = [(owner, name, getattr(owner, name)) for owner, names in HOOKED for name in names]
    present: tuple[dict[int, Any], ...] = (
        optimizers._global_optimizer_pre_hooks,
        optimizers._global_optimizer_post_hooks,
    )
    hooks = [dict(one) for one in present]
    yield
    for owner, name, plain in before:
        setattr(owner, name, plain)
    for one, those in zip(present, hooks, strict=True):
        one.clear()
        one.update(those)
