"""What a live training's memory is taken by, and what it may take."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from perftool.probes.device import available_bytes as available_on
from perftool.probes.device import read_use
from perftool.probes.memory import free_host_bytes, resident_bytes
from perftool.probes.storages import Passes, Storages, bytes_of, places_of, tensors_within
from perftool.training import copied, tensors_of
from perftool.words import BACKWARD
from perftool.workload import where

if TYPE_CHECKING:
    from perftool.records import MemoryParts
    from perftool.training import Training
    from perftool.workload import Batch


def weigh(training: Training) -> MemoryParts:
    """The parts of a training that has done some steps. What the user's code refuses is None, with the reason."""
    from msgspec import convert
    from msgspec.structs import replace

    from perftool.records import MemoryParts

    module = training.module
    parts = convert(
        parts_of(list(module.parameters()), list(module.buffers()), [training.optimizer], training.device), MemoryParts
    )
    try:
        batch, samples = training.one_batch()
        batch = copied(batch, training.device, non_blocking=False)
        parts = replace(parts, batch_bytes=bytes_of_batch(batch), batch_size=samples)
        return replace(parts, activations_bytes=activations_bytes(training, batch))
    except (Exception, SystemExit) as error:
        return replace(parts, reason=f"one more forward pass failed: {where(error)}")


def parts_of(
    parameters: Sequence[torch.Tensor], buffers: Iterable[torch.Tensor], optimizers: Iterable[Any], device: torch.device
) -> dict[str, Any]:
    """The fields of MemoryParts that are known between two steps; those of batch and activations are None."""
    use, held = read_use(device), Storages()
    return {
        "type": "memory_parts",
        "parameters_bytes": held.add(parameters),
        "gradients_bytes": held.add(one.grad for one in parameters if one.grad is not None),
        "optimizer_bytes": held.add(tensors_within([getattr(one, "state", {}) for one in optimizers])),
        "buffers_bytes": held.add(buffers),
        "activations_bytes": None,
        "batch_bytes": None,
        "device_allocated_bytes": use.allocated_bytes,
        "device_reserved_bytes": use.reserved_bytes,
        "device_nvml_bytes": use.nvml_bytes,
        "device_inactive_split_bytes": use.inactive_split_bytes,
    }


def activations_bytes(training: Training, batch: Batch) -> int:
    """What autograd keeps for the backward pass, but for what the training and its batch hold anyway."""
    held = places_of([*training.module.parameters(), *training.module.buffers(), *tensors_of(batch)])
    with Passes() as passes:
        # Compiled models keep what their compiler chose; the module as it was written keeps what the user knows.
        training.loss(training.module, batch)
        passes.phase(BACKWARD)
    return passes.saved()[0].held_bytes(but=held)


def bytes_of_batch(batch: Batch) -> int:
    """Of the tensors themselves: a batch may be a view of a whole dataset."""
    return sum(map(bytes_of, tensors_of(batch)))


def available_bytes(device: torch.device) -> int:
    """What this process may hold in all on its device: what it holds, and what is free."""
    return available_on(device) or (resident_bytes(os.getpid()) or 0) + free_host_bytes()
