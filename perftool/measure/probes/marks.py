"""Names for the phases of a step, to be seen in a trace. They cost time, so only a launch that is traced has them.

A phase that runs within one compiled or captured graph has no name there: no Python is left to say where it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch.profiler import record_function

from perftool import training
from perftool.plan import Loss, Plan
from perftool.words import BACKWARD, COPY, FORWARD
from perftool.workload import Batch


def with_forward_named(plan: Plan) -> Plan:
    """The plan with its loss, and all that is wrapped around it, named as the forward pass."""
    return replace(plan, loss=(*plan.loss, _forward))


def _forward(loss: Loss) -> Loss:
    def call(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return loss(model, batch)
        with record_function(FORWARD):
            return loss(model, batch)

    return call


@contextmanager
def phases_named() -> Iterator[None]:
    """Name the other phases while this is open, whoever starts them: the scaled update of fp16, a user's own."""
    with _named(torch.Tensor, "backward", BACKWARD), _named(training, "copied", COPY):
        yield


@contextmanager
def _named(owner: Any, attribute: str, name: str) -> Iterator[None]:
    plain: Callable[..., Any] = getattr(owner, attribute)

    @wraps(plain)
    def marked(*arguments: Any, **options: Any) -> Any:
        with record_function(name):
            return plain(*arguments, **options)

    setattr(owner, attribute, marked)
    try:
        yield
    finally:
        setattr(owner, attribute, plain)
