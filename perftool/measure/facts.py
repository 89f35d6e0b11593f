"""The facts of a workload, read off a training that has been built and one of its batches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from msgspec import convert
from msgspec.structs import replace

from perftool.records import BatchForm, ModuleFacts, WorkloadFacts

if TYPE_CHECKING:
    import torch

    from perftool.training import Training
    from perftool.workload import Batch, Loaded


def batch_form(batch: Batch) -> BatchForm:
    """What a script has to know of a batch to move it: a tensor, a plain container of tensors, or anything else."""
    import torch

    if isinstance(batch, torch.Tensor):
        return "tensor"
    kinds: dict[type, BatchForm] = {list: "list", tuple: "tuple", dict: "dict"}
    form = kinds.get(type(batch), "nested")
    parts = batch.values() if form == "dict" else batch if form != "nested" else ()
    return form if all(isinstance(part, torch.Tensor) for part in parts) else "nested"


def describe_workload(loaded: Loaded, training: Training, batch: Batch, *, attends: bool = False) -> WorkloadFacts:
    """The facts of a training that has been built, and of one of its batches; not those that only a step shows.

    attends: whether one has shown attention.
    """
    import torch
    from torch.utils.data import IterableDataset, TensorDataset

    from perftool.probes.modules import describe_modules
    from perftool.scenario import normalised
    from perftool.training import has_sparse_gradients

    workload, dataset = loaded.workload, training.dataset
    tensors = _tensors_in_memory(dataset)
    parameters = list(training.module.parameters())
    options = ("foreach", "fused", "capturable", "differentiable")
    if tensors:
        kind, rows = "tensors", len(tensors[0])
    elif isinstance(dataset, IterableDataset):
        kind, rows = "iterable", None
    else:
        kind, rows = "map", len(dataset)
    return WorkloadFacts(
        name=workload.name or loaded.reference.rpartition(":")[2],
        reference=loaded.reference,
        batch_size=workload.batch_size,
        dataset_kind=kind,  # type: ignore[arg-type]
        dataset_rows=rows,
        dataset_bytes=sum(part.numel() * part.element_size() for part in tensors) if tensors else None,
        has_collate=workload.collate_fn is not None,
        parameter_count=sum(part.numel() for part in parameters),
        parameter_bytes=sum(part.numel() * part.element_size() for part in parameters),
        floating_parameters=all(torch.is_floating_point(part) for part in parameters),
        sparse_gradients=has_sparse_gradients([training.module]),
        optimizer=type(training.optimizer).__name__,
        optimizer_options={
            name: training.optimizer.defaults[name] for name in options if name in training.optimizer.defaults
        },
        settings=normalised(workload.settings),
        target_loss=workload.target_loss,
        shuffle=workload.shuffle,
        drop_last=workload.drop_last,
        tensor_dataset=isinstance(dataset, TensorDataset),
        dataset_on_device=any(part.device.type != "cpu" for part in tensors),
        batch_form=batch_form(batch),
        is_function=loaded.is_function,
        search_path=loaded.search_path,
        optimizer_step=_torch_class_of_step(training.optimizer),
        modules=convert(describe_modules([training.module], attends=attends), ModuleFacts),
    )


def describe_first_step(loaded: Loaded, training: Training) -> tuple[WorkloadFacts, Batch]:
    """The facts of a training that has been built and of its first step, which is made here; and the batch of that."""
    from perftool.probes.modules import Seen, calls_seen

    versions = [buffer._version for buffer in training.module.buffers()]
    fetched = training.fetch()
    # What is one piece would be compiled once more, to be seen.
    looking = nullcontext(Seen()) if training.plan.whole_step else calls_seen([training.module, training.model])
    with looking as seen:
        training.step(fetched)
    batch = fetched if training.steps_per_call == 1 else fetched[0]
    facts = describe_workload(loaded, training, batch, attends=seen.attention)
    changed = versions != [buffer._version for buffer in training.module.buffers()]
    return replace(facts, changes_buffers=changed), batch


def count_denormal(tensors: Sequence[torch.Tensor]) -> int:
    """Numbers in float32 and float64 tensors that are too small for full precision, and not zero."""
    import torch

    found = 0
    for tensor in tensors:
        if tensor.dtype in (torch.float32, torch.float64):
            sizes = tensor.detach().abs()
            found += int(((sizes > 0) & (sizes < torch.finfo(tensor.dtype).tiny)).sum())
    return found


def _tensors_in_memory(dataset: Any) -> Sequence[torch.Tensor]:
    """The tensors whose rows are the samples; none where the dataset does something of its own with them."""
    from torch.utils.data import TensorDataset

    if isinstance(dataset, tuple):
        return dataset
    plain = type(dataset).__getitem__ is TensorDataset.__getitem__ if isinstance(dataset, TensorDataset) else False
    return dataset.tensors if plain and not hasattr(dataset, "__getitems__") else ()


def _torch_class_of_step(optimizer: torch.optim.Optimizer) -> str | None:
    # Unwrapped: torch replaces `step` of each class, once there is an instance, by one that runs hooks.
    step = inspect.unwrap(type(optimizer).step)
    return step.__qualname__.partition(".")[0] if step.__module__.startswith("torch.optim.") else None
