"""Take a batch out of an in-memory dataset with one index operation instead of row by row.

What it changes: the DataLoader over a TensorDataset, which fetches every row by itself and stacks them, is
    replaced by one `index_select` per tensor and batch. The rows, and their order, are the same.
When it helps: whenever tensors lie in memory and the step is short: fetching row by row costs microseconds
    per sample.
When it hurts: nothing known; it is not for datasets that do work per row, or with a collate function.
Source: https://github.com/pytorch/pytorch/issues/106704
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.scenario import NO_LOADER, Code, Context, Scenario, refuse_unlisted
from perftool.words import FETCH, ROW_BY_ROW, Engaged, Proving

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from perftool.plan import Live, Plan
    from perftool.workload import Batch

VALUES = ("off", "on")
SELECTED = "a selection by index"
TAKEN = {"aten::index_select": SELECTED, "aten::stack": "a stacking of rows"}


def default(_: Context) -> str:
    return "off"


def values(_: Context) -> Sequence[str]:
    return VALUES


def refusal(value: str, context: Context) -> str | None:
    facts = context.workload
    if value == "on" and facts.dataset_kind == "own":
        return NO_LOADER
    if value == "on" and facts.loader_options.get("num_workers"):
        return "the script's DataLoader has worker processes, which gather by themselves"
    if value == "on" and facts.batch_size is None:
        return "the tensors are fed whole already"
    if value == "on" and facts.dataset_kind != "tensors":
        return "the dataset is not a tuple of tensors or a TensorDataset, so its rows cannot be indexed by the batch"
    if value == "on" and facts.has_collate:
        return "the workload has a collate_fn, which wants single rows"
    return refuse_unlisted(value, VALUES)


def apply(plan: Plan, value: str) -> Plan:
    return plan if value == "off" else replace(plan, feed=gathered, epoch=gathered_epoch)


def gathered(plan: Plan, dataset: Any) -> Iterator[Batch]:
    """The batches of `loader_feed`, each taken at once; through a DataLoader where there are worker processes."""
    from torch.utils.data import BatchSampler, DataLoader

    from perftool.training import EpochOrder, epochs

    tensors = dataset if isinstance(dataset, tuple) else dataset.tensors
    workload, size = plan.workload, plan.batch_size
    assert workload is not None, "a script has loaders of its own"
    assert size is not None, "whole tensors are not gathered"
    order = EpochOrder(len(tensors[0]), shuffle=workload.shuffle, seed=plan.seed)
    if plan.loader.get("num_workers"):
        sampler = BatchSampler(order, size, workload.drop_last)
        rows: Any = Gather(tensors)
        return epochs(DataLoader(rows, sampler=sampler, batch_size=None, **plan.loader))
    return epochs(Batches(tensors, order, size, workload.drop_last, pin=bool(plan.loader.get("pin_memory"))))


class Gather:
    """A dataset whose index is a list of rows."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, rows: list[int]) -> list[torch.Tensor]:
        import torch

        index = torch.tensor(rows)
        return [tensor.index_select(0, index.to(tensor.device)) for tensor in self.tensors]


class Batches:
    """The batches of one epoch at each iteration."""

    def __init__(self, tensors: Sequence[torch.Tensor], order: Any, size: int, drop_last: bool, *, pin: bool) -> None:
        self.tensors, self.order, self.size, self.drop_last, self.pin = tensors, order, size, drop_last, pin

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        for rows in self.order.permutation().to(self.tensors[0].device).split(self.size):
            if self.drop_last and len(rows) < self.size:
                return
            batch = [tensor.index_select(0, rows) for tensor in self.tensors]
            yield [part.pin_memory() for part in batch] if self.pin else batch


def gathered_epoch(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The batches of a script's own loader, in its order, each taken at once; its own iterator where that cannot be."""
    import torch
    from torch.utils.data import TensorDataset, default_collate

    if (
        type(loader.dataset) is not TensorDataset
        or loader.collate_fn is not default_collate
        or loader.num_workers
        or loader.batch_sampler is None
    ):
        return own_iterator(loader)
    # What the loader's own iterator draws for its workers, so that the random state goes on as it would have.
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
    pin = loader.pin_memory and torch.accelerator.is_available()
    return rows_by_the_batch(loader.dataset.tensors, iter(loader.batch_sampler), pin=pin)


def rows_by_the_batch(
    tensors: Sequence[torch.Tensor], order: Iterator[Sequence[int]], *, pin: bool
) -> Iterator[list[torch.Tensor]]:
    """The rows of each batch, by their numbers."""
    import torch

    for rows in order:
        index = torch.as_tensor(rows)
        batch = [tensor.index_select(0, index.to(tensor.device)) for tensor in tensors]
        yield [part.pin_memory() for part in batch] if pin else batch


def own_iterator(loader: DataLoader[Any]) -> Iterator[Batch]:
    """What DataLoader.__iter__ returns, which the driver may have replaced by the caller of this."""
    if not (loader.persistent_workers and loader.num_workers):
        return loader._get_iterator()
    if loader._iterator is None:
        loader._iterator = loader._get_iterator()
    else:
        loader._iterator._reset(loader)
    return loader._iterator


def proof(training: Live, value: str) -> Proving:
    """What the operations of one profiled fetch end with: a selection by index, or a stacking of rows."""
    from torch.profiler import ProfilerActivity, profile

    if training.plan.loader.get("num_workers"):
        gathers = training.plan.feed is gathered and training.plan.workload is not None  # not in a script's own workers
        ok = gathers == (value == "on")
        return Engaged(ok=ok, evidence="the loader's worker processes gather by the batch" if ok else "they do not")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        yield FETCH
    # The last one is the batch's: a script may evaluate before it fetches.
    events = sorted(profiled.events() or [], key=lambda event: event.time_range.start)
    last = next((TAKEN[event.name] for event in reversed(events) if event.name in TAKEN), "neither")
    return Engaged(ok=(last == SELECTED) == (value == "on"), evidence=f"one batch was put together by {last}")


def code(value: str, context: Context) -> Code:
    if value == "off":
        return Code()
    facts = context.workload
    tensors = "dataset.tensors" if facts.tensor_dataset else "dataset"
    order = "randperm" if facts.shuffle else "arange"
    sampler = "RandomSampler" if facts.shuffle else "SequentialSampler"
    return Code(
        imports=f"from torch.utils.data import BatchSampler, Dataset, {sampler}",
        dataset=_DATASET.format(tensors=tensors),
        sampling=f"sampler=BatchSampler({sampler}(dataset), batch_size, drop_last={facts.drop_last}), batch_size=None",
        batches=(_FULL_BATCHES if facts.drop_last else _BATCHES).format(
            order=order, tensors=tensors, moved=f".to({tensors}[0].device)" if facts.dataset_on_device else ""
        ),
    )


_BATCHES = """\
def batches():
    for rows in torch.{order}(len({tensors}[0])){moved}.split(batch_size):
        yield [tensor.index_select(0, rows) for tensor in {tensors}]"""
_FULL_BATCHES = """\
def batches():
    for rows in torch.{order}(len({tensors}[0])){moved}.split(batch_size):
        if len(rows) == batch_size:
            yield [tensor.index_select(0, rows) for tensor in {tensors}]"""
_DATASET = '''\
class RowsByTheBatch(Dataset):
    """Its index is a list of rows."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, rows):
        index = torch.tensor(rows)
        return [tensor.index_select(0, index.to(tensor.device)) for tensor in self.tensors]


dataset = RowsByTheBatch({tensors})'''


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
    cures={ROW_BY_ROW: ("on",)},
    typical_gain=1.5,
)
