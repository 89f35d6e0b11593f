"""How a live training's peak of memory grows with the batch. The last that a launch does: other batches go through the
model here."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from perftool.analysis.memory import largest_batch
from perftool.probes.memory import high_water_bytes, reset_high_water, resident_bytes
from perftool.probes.storages import Storages
from perftool.probes.weights import activations_bytes, bytes_of_batch
from perftool.probes.weights import available_bytes as available_on
from perftool.records import BatchFit, BatchPoint
from perftool.training import copied, leaves_of, map_tensors
from perftool.workload import where

if TYPE_CHECKING:
    from perftool.training import Training
    from perftool.workload import Batch

MULTIPLES = (0.5, 1, 2, 4)  # of the training's own batch
SAFE_SHARE = 0.25  # of what is free, that a batch may be expected to take
BACKWARD_COPIES = 3  # of the activations, at most, at the peak of the backward pass: for the first prediction


class _Unmeasurable(Exception):
    """Batches of other sizes cannot be tried; the text says why."""


def fit_batch(training: Training, available_bytes: int | None = None) -> BatchFit:
    """The largest batch that would fit, from the peaks of one forward and backward pass with batches of several sizes.

    available_bytes: that the process may hold in all on its device; by default what it holds, and what is free.
    A size is tried only where it is expected to take less than a quarter of what is free. No error of the user's code
    passes; the reason is in the result.
    """
    if available_bytes is None:
        available_bytes = available_on(training.device)
    points: list[BatchPoint] = []
    try:
        _measure(training, available_bytes, points)
    except _Unmeasurable as error:
        return BatchFit(points=points, available_bytes=available_bytes, reason=str(error))
    except (Exception, SystemExit) as error:
        reason = f"a batch of another size failed: {where(error)}"
        return BatchFit(points=points, available_bytes=available_bytes, reason=reason)
    return largest_batch(points, available_bytes)


def _measure(training: Training, available_bytes: int, points: list[BatchPoint]) -> None:
    """Add a point per size, the smallest first, as long as the next one is safe."""
    batch = next(training.batches)
    rows = _rows_of(batch)
    expected_bytes = _expected_bytes(training, batch)
    for size in sorted({int(rows * multiple) for multiple in MULTIPLES} - {0}):
        held_bytes = _settled_bytes(training)
        taken_bytes = expected_bytes * size / rows
        if points:  # what it took in proportion is more than it will take
            taken_bytes = max(taken_bytes, (points[-1].peak_bytes - held_bytes) * size / points[-1].batch_size)
        if taken_bytes > SAFE_SHARE * (available_bytes - held_bytes):
            break
        points.append(BatchPoint(batch_size=size, peak_bytes=_peak_bytes(training, _resized(batch, size, rows))))
    if len(points) < 2:
        raise _Unmeasurable("too little memory is free to try batches of other sizes safely")


def _rows_of(batch: Batch) -> int:
    """The batch size, where every tensor of the batch has it as its first dimension. Raises _Unmeasurable."""
    leaves = leaves_of(batch)
    if not leaves or not all(isinstance(one, torch.Tensor) and one.ndim for one in leaves):
        raise _Unmeasurable("its batches are not made of tensors alone, so none of another size can be built")
    sizes = {one.shape[0] for one in leaves}
    if len(sizes) > 1:
        raise _Unmeasurable(
            "the tensors of a batch differ in their first dimension, so none of another size can be built"
        )
    return int(sizes.pop())


def _resized(batch: Batch, size: int, rows: int) -> Batch:
    """A batch of this size, of the rows of that one, from the first again where they do not suffice."""
    index = torch.arange(size) % rows
    return map_tensors(lambda tensor: tensor[index.to(tensor.device)], batch)


def _expected_bytes(training: Training, batch: Batch) -> int:
    """What a step with this batch takes at most beside what the training holds between steps."""
    gradients_bytes = Storages().add(training.module.parameters())
    moved = copied(batch, training.device, non_blocking=False)
    return bytes_of_batch(batch) + gradients_bytes + BACKWARD_COPIES * activations_bytes(training, moved)


def _peak_bytes(training: Training, batch: Batch) -> int:
    """Peak of the process on its device, all that it holds included. The first pass leaves behind what kernels keep for
    each new shape, so the second one is measured."""
    batch = copied(batch, training.device, non_blocking=False)
    _forward_and_backward(training, batch)
    _settled_bytes(training)
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(training.device)
    elif not reset_high_water(os.getpid()):
        raise _Unmeasurable("the system does not let a process's high-water mark begin again")
    _forward_and_backward(training, batch)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
        return torch.cuda.max_memory_allocated(training.device)
    return _known(high_water_bytes(os.getpid()))


def _forward_and_backward(training: Training, batch: Batch) -> None:
    training.optimizer.zero_grad()
    training.loss(training.module, batch).backward()  # type: ignore[no-untyped-call]


def _settled_bytes(training: Training) -> int:
    """What the process holds on its device between steps, once all that is free has been given back."""
    training.optimizer.zero_grad()
    gc.collect()
    if training.device.type == "cuda":
        return torch.cuda.memory_allocated(training.device)
    with suppress(AttributeError):  # other C libraries than glibc have none
        ctypes.CDLL(None).malloc_trim(0)
    return _known(resident_bytes(os.getpid()))


def _known(size_bytes: int | None) -> int:
    if size_bytes is None:
        raise _Unmeasurable("the system does not tell how much memory a process holds")
    return size_bytes
