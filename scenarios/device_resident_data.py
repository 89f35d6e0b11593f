"""Keep an in-memory dataset on the GPU, and take each batch out of it there.

What it changes: the tensors of the dataset are copied to the GPU once; each batch is one `index_select` per tensor on
    the device, so that neither a loader nor a copy is left in the step. The rows, and their order, are the same.
When it helps: datasets of a few gigabytes and short steps, which a host that loads and copies cannot keep up with.
When it hurts: the dataset takes its size of the GPU's memory; it is not for datasets that do work per row.
Source: https://github.com/pytorch/pytorch/issues/106704
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.scenario import NO_LOADER, Code, Context, Scenario, refuse_unlisted
from perftool.words import FETCH, ROW_BY_ROW, SLOW_COPY, Engaged, Proving, Settings

if TYPE_CHECKING:
    import torch

    from perftool.plan import Live, Plan
    from perftool.workload import Batch

VALUES = ("off", "on")
MEMORY_SHARE = 1 / 16  # of the device's, that the dataset may take: several launches that have it live at a time
OF_THE_HOST = {"batch_gather": "off", "dataloader_workers": "0", "pinned_memory": "off"}
"""Ways of loading that have nothing left to do, by the value that leaves them out."""


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    facts, device_bytes = context.workload, context.machine.device_memory_bytes
    if value != "on":
        return refuse_unlisted(value, VALUES)
    if not context.on_cuda:
        return "there is no accelerator to keep data on: the training runs on the CPU"
    if facts.dataset_kind == "own":
        return NO_LOADER
    if facts.batch_size is None:
        return "the tensors are fed whole, with no batches to take out of them"
    if facts.dataset_kind != "tensors":
        return "the dataset is not a tuple of tensors or a TensorDataset, so its rows cannot be indexed by the batch"
    if facts.has_collate:
        return "the workload has a collate_fn, which wants single rows"
    if facts.dataset_on_device:
        return "the dataset is on the GPU already; batch_gather=on takes its batches there"
    if facts.dataset_bytes and device_bytes and facts.dataset_bytes > MEMORY_SHARE * device_bytes:
        return "the dataset would take a large part of the GPU's memory"
    return None


def clash(value: str, others: Settings) -> str | None:
    if value == "off":
        return None
    idle = next((name for name, own in OF_THE_HOST.items() if others.get(name, own) != own), None)
    return None if idle is None else f"no batch comes from the host any more, so {idle} would do nothing; leave it out"


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, feed=resident)


def resident(plan: Plan, dataset: Any) -> Iterator[Batch]:
    """The batches of `loader_feed`, each gathered from copies on the plan's device."""
    from scenarios.batch_gather import gathered  # late: a script's process, which has no loader of ours, may lack it

    tensors = dataset if isinstance(dataset, tuple) else dataset.tensors
    return gathered(plan, tuple(held(one, plan.device) for one in tensors))


def held(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor on the device, once for all trainings of the process."""
    import torch
    from torch.utils.weak import WeakTensorKeyDictionary

    if tensor.device.type == torch.device(device).type:
        return tensor
    copies = _COPIES.setdefault(device, WeakTensorKeyDictionary())
    if tensor not in copies:
        copies[tensor] = tensor.to(device)
    return copies[tensor]  # type: ignore[no-any-return]


_COPIES: dict[str, Any] = {}
"""Device to a tensor of the host to its copy there, as long as the former is in use."""


def proof(training: Live, value: str) -> Proving:
    """Where the tensors of a fetched batch are."""
    from perftool.training import tensors_of

    batch = yield FETCH
    places = {tensor.device.type for tensor in tensors_of(batch)}
    ok = places == {training.device.type} != {"cpu"} if value == "on" else training.plan.feed is not resident
    return Engaged(ok=ok, evidence=f"the tensors of a batch come from {', '.join(sorted(places)) or 'nowhere'}")


def code(value: str, context: Context) -> Code:
    if value == "off":
        return Code()
    facts = context.workload
    return Code(
        batches=_BATCHES.format(
            tensors="dataset.tensors" if facts.tensor_dataset else "dataset",
            order="randperm" if facts.shuffle else "arange",
            full="\n        if len(rows) < batch_size:\n            return" if facts.drop_last else "",
        )
    )


_BATCHES = """\
resident = [tensor.to(device) for tensor in {tensors}]


def batches():
    for rows in torch.{order}(len(resident[0])).to(device).split(batch_size):{full}
        yield [tensor.index_select(0, rows) for tensor in resident]"""


scenario = Scenario(
    __name__,
    __doc__,
    default=default,
    values=values,
    refusal=refusal,
    apply=apply,
    proof=proof,
    code=code,
    switchable=True,
    cures={ROW_BY_ROW: ("on",), SLOW_COPY: ("on",)},
    clash=clash,
    typical_gain=2.0,
)
