"""A module's own call as a module of its own, for transforms that take one (compilation). Torch must be loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Inner(nn.Module):
    """Calls the module as it would be called without perftool, its hooks included."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.wrapped = module
        self._call = call

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The module's own output."""
        return self._call(*arguments, **options)
