"""Plan (see plan.py) -> Training (something that can do the next step), and the reference loop.

The loop has no branch for any scenario: a scenario replaces or wraps a part of the Plan, and `build` puts the parts
together in one order whatever the order of the settings.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import repeat
from math import ceil
from typing import Any, TypeGuard

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

# By their old names, too: scenarios of users' own import them from here.
from perftool.plan import WARM_CALLS
from perftool.plan import Feed as Feed
from perftool.plan import Loss as Loss
from perftool.plan import Plan as Plan
from perftool.plan import SettingError as SettingError
from perftool.plan import Step as Step
from perftool.plan import Update as Update
from perftool.plan import backward_and_step as backward_and_step
from perftool.words import BARE_STEP, FETCH, Engaged, Proving
from perftool.workload import Batch, WorkloadError


class Training:
    """Something that can do the next step: `training.step(training.fetch())`.

    `fetch` waits for the next batch (on the host); `step` copies it to the device, and does forward, backward and
    update. Neither synchronises with the device. `step` returns the detached loss, a scalar. With several steps per
    call `fetch` returns a tuple of so many batches, and `step` their losses, of shape (steps_per_call,).
    The tensor that `step` returns may be overwritten by the next call.
    """

    def __init__(self, plan: Plan) -> None:
        """Build everything. Raises WorkloadError for a workload without data, SettingError for impossible settings."""
        for prepare in plan.process:
            prepare()
        torch.manual_seed(plan.seed)
        workload = plan.workload
        assert workload is not None, "a script builds its own training"
        self.plan = plan
        self.device = torch.device(plan.device)
        self.dataset = checked_dataset(workload.dataset())
        self.module = workload.model().to(self.device)  # as the user wrote it
        self.module.train()
        for change_module in plan.module:
            change_module(self.module)
        self.optimizer = checked_optimizer(workload.optimizer(self.module.parameters()))
        configure(self.optimizer, plan.optimizer)
        for change in plan.optimizer_changes:
            change(plan, self.optimizer)
        self.model = self.module  # as it is called
        for transform in plan.model:
            self.model = transform(self.model)
        feed = plan.feed or loader_feed
        batches = whole_feed(self.dataset) if plan.batch_size is None else feed(plan, self.dataset)
        self.batches = Counted(batches, draws(plan, self.dataset))
        self.drawn = 0  # samples that the last fetch has brought
        self.loss: Loss = workload.loss  # with all that the plan wraps around it
        for wrap in plan.loss:
            self.loss = wrap(self.loss)
        if plan.micro_batches > 1:
            self.loss = in_parts(self.loss, plan.micro_batches)
        bare = self._bare()
        self._bare_step = self._copying(bare)
        step = bare
        for around in plan.step:
            step = around(self, step)
        self.step = self._warming(self._copying(step))

    @property
    def steps_per_call(self) -> int:
        return self.plan.steps_per_call

    def fetch(self) -> Batch:
        """The next batch, on the host, or a tuple of them. Starts a new epoch where one ends."""
        before = self.batches.samples
        if self.plan.steps_per_call == 1:
            batch = next(self.batches)
        else:
            batch = tuple(next(self.batches) for _ in range(self.plan.steps_per_call))
        self.drawn = self.batches.samples - before
        return batch

    def one_batch(self) -> tuple[Batch, int]:
        """A single batch, however many a call takes, and its samples."""
        before = self.batches.samples
        batch = next(self.batches)
        return batch, self.batches.samples - before

    def bare_step(self) -> torch.Tensor:
        """Fetch one batch and do one step without what the plan wraps around steps; returns the detached loss.

        For proofs that look into a step: what is replayed shows nothing of what was captured.
        """
        return self._bare_step(next(self.batches))

    def _bare(self) -> Step:
        loss, model, optimizer, update = self.loss, self.model, self.optimizer, self.plan.update

        def on_device(batch: Batch) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss(model, batch)
            update(value, optimizer)
            return value.detach()

        return on_device

    def _copying(self, step: Step) -> Step:
        """The step on batches of the host."""
        if self.device.type == "cpu":
            return step
        device, non_blocking = self.device, self.plan.non_blocking
        if self.plan.copy_aside:
            return CopiedAside(step, device)

        def copy_and_step(batch: Batch) -> torch.Tensor:
            return step(copied(batch, device, non_blocking=non_blocking))

        return copy_and_step

    def _warming(self, step: Step) -> Step:
        """The step, which does once what the plan wants done when it is warmed up."""
        if not self.plan.warmed_up:
            return step
        calls = 0

        def counted(batch: Batch) -> torch.Tensor:
            nonlocal calls
            loss = step(batch)
            calls += 1
            if calls == WARM_CALLS:
                for act in self.plan.warmed_up:
                    act()
                self.step = step
            return loss

        return counted


def run_proof(training: Training, proving: Proving | Engaged) -> Engaged:
    """Have the training do what a proof wants to see, until it says whether the setting took effect."""
    if isinstance(proving, Engaged):
        return proving
    batch = answer = None
    try:
        while True:
            wanted = proving.send(answer)
            answer = None
            if wanted == FETCH:
                answer = batch = training.fetch()
            elif wanted == BARE_STEP:
                training.bare_step()
            else:
                training.step(training.fetch() if batch is None else batch)
                batch = None
    except StopIteration as ended:
        engaged: Engaged = ended.value
        return engaged
    finally:
        proving.close()


def checked_dataset(dataset: Any) -> Any:
    """The dataset, where this loop can feed it. Raises WorkloadError with what to return instead."""
    if isinstance(dataset, DataLoader):
        raise WorkloadError(
            "dataset() returned a DataLoader; return its dataset, and give the Workload its batch_size and collate_fn"
        )
    others = [part for part in dataset if not isinstance(part, torch.Tensor)] if isinstance(dataset, tuple) else []
    if others:
        kind = type(others[0])
        remedy = "; torch.from_numpy makes a tensor of it" if kind.__module__ == "numpy" else ""
        raise WorkloadError(f"dataset() returned a tuple with a {kind.__name__}: it must hold tensors only{remedy}")
    return dataset


def checked_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, where this loop can step it. Raises WorkloadError for one that evaluates the loss by itself."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise WorkloadError(
            f"{type(optimizer).__name__} evaluates the loss several times per step through a closure, which this loop "
            "does not do; use an optimizer whose step() takes no arguments, such as Adam or SGD"
        )
    return optimizer


def configure(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any], own: Mapping[str, tuple[Any, Sequence[Any]]] = {}
) -> None:
    """Set options on an optimizer as its constructor would, whatever class the user derived it from.

    own: what it had of itself, from `options_of`; those that are not set are as they were.
    Raises SettingError where the optimizer has no such option, unless it is to be off.
    """
    for name, (default, of_groups) in own.items():
        if name not in options:
            optimizer.defaults[name] = default
            for group, value in zip(optimizer.param_groups, of_groups, strict=False):
                group[name] = value
    for name, value in options.items():
        if name not in optimizer.defaults:
            if value is False:
                continue
            raise SettingError(f"{type(optimizer).__name__} has no option '{name}'")
        optimizer.defaults[name] = value
        for group in optimizer.param_groups:
            group[name] = value
    if "fused" in {*options, *own} and "fused" in optimizer.defaults:
        is_fused = bool(optimizer.defaults["fused"])
        optimizer._step_supports_amp_scaling = is_fused  # type: ignore[attr-defined]
        _place_counts(optimizer, is_fused=is_fused)


def options_of(optimizer: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, tuple[Any, list[Any]]]:
    """Of these options those that the optimizer has: their default, and the value of each parameter group."""
    return {
        name: (
            optimizer.defaults[name],
            [group.get(name, optimizer.defaults[name]) for group in optimizer.param_groups],
        )
        for name in names
        if name in optimizer.defaults
    }


def has_sparse_gradients(modules: Iterable[torch.nn.Module]) -> bool:
    """Whether one of these modules gives its weights sparse gradients, as an embedding may."""
    return any(getattr(part, "sparse", False) is True for module in modules for part in module.modules())


def _place_counts(optimizer: torch.optim.Optimizer, *, is_fused: bool) -> None:
    """Have counts of steps, which a checkpoint or other options may have brought, where and of the type that fused
    kernels take them; or on the host, where all others look at them without waiting for a device."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            count = optimizer.state.get(parameter, {}).get("step")
            if not isinstance(count, torch.Tensor):
                continue
            if is_fused:
                optimizer.state[parameter]["step"] = count.to(parameter.device, torch.float32)
            elif not group.get("capturable"):
                optimizer.state[parameter]["step"] = count.cpu()


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Have gradients and state lie in memory as their parameters do, where those have changed: fused kernels take that
    for granted."""

    def like(parameter: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(parameter, dtype=kept.dtype).copy_(kept)

    def lies_otherwise(parameter: torch.Tensor, kept: Any) -> TypeGuard[torch.Tensor]:
        if not isinstance(kept, torch.Tensor) or kept.layout != torch.strided or kept.shape != parameter.shape:
            return False
        return kept.stride() != parameter.stride()

    with torch.no_grad():
        for parameter in (part for group in optimizer.param_groups for part in group["params"]):
            state = optimizer.state.get(parameter, {})
            state.update({key: like(parameter, kept) for key, kept in state.items() if lies_otherwise(parameter, kept)})
            gradient = parameter.grad
            if lies_otherwise(parameter, gradient):
                parameter.grad = like(parameter, gradient)


# ------------------------------------------------------------------------------------------------------ micro-batches


def in_parts(loss: Loss, count: int) -> Loss:
    """The loss of a batch that is cut into parts, whose gradients add up to those of the batch where it is a mean over
    samples. Each part but the last has its backward pass at once; that of the last is the caller's."""

    def of_parts(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        *first, (last, last_share) = parts_of(batch, count)
        told: list[torch.Tensor] = []
        for part, share in first:
            value = loss(model, part) * share
            value.backward()  # type: ignore[no-untyped-call]
            told.append(value.detach())
        return sum(told, loss(model, last) * last_share)

    return of_parts


def parts_of(batch: Batch, count: int) -> list[tuple[Batch, float]]:
    """The parts of a batch along its first dimension, each with its share of the samples. Raises SettingError where its
    tensors have none in common."""
    rows = {len(part) if part.ndim else None for part in tensors_of(batch)}
    (common,) = rows if len(rows) == 1 else (None,)
    if not common:
        raise SettingError("the tensors of a batch have no first dimension in common, along which it could be cut")
    size = ceil(common / count)
    return [
        (map_tensors(lambda part, at=at: part[at : at + size], batch), (min(common, at + size) - at) / common)  # type: ignore[misc]
        for at in range(0, common, size)
    ]


# ------------------------------------------------------------------------------------------------------------ feeds


class Counted(Iterator[Batch]):
    """Batches, and how many samples they were in all, as the loader drew them: a batch itself does not tell.

    source: the batches themselves. samples: so far.
    """

    def __init__(self, batches: Iterator[Batch], drawn: Iterator[int]) -> None:
        """drawn: samples of each batch."""
        self.source, self._drawn, self.samples = batches, drawn, 0

    def __next__(self) -> Batch:
        batch = next(self.source)
        self.samples += next(self._drawn)
        return batch


def draws(plan: Plan, dataset: Any) -> Iterator[int]:
    """How many samples each batch has, without end. Of an iterable dataset all have as many, as the last of a pass, of
    which nobody knows, may not."""
    workload, size = plan.workload, plan.batch_size
    rows = rows_of(dataset)
    if size is None or rows is None:
        while True:
            yield rows or size or 1
    whole, rest = divmod(rows, size)
    drops = workload is not None and workload.drop_last
    while True:
        yield from repeat(size, whole)
        if rest and not drops:
            yield rest


def rows_of(dataset: Any) -> int | None:
    """Samples of one pass; None where nobody knows."""
    if isinstance(dataset, tuple):
        return len(dataset[0]) if dataset and dataset[0].ndim else None
    return None if isinstance(dataset, IterableDataset) else len(dataset)


class EpochOrder(Sampler[int]):
    """Row numbers of one epoch after another, the same for every way of loading that asks with the same seed."""

    def __init__(self, rows: int, *, shuffle: bool, seed: int) -> None:
        self.rows, self.shuffle, self.seed, self.epoch = rows, shuffle, seed, 0

    def permutation(self) -> torch.Tensor:
        """The next epoch's row numbers, int64 of shape (rows,)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        return torch.randperm(self.rows, generator=generator) if self.shuffle else torch.arange(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.permutation().tolist())

    def __len__(self) -> int:
        return self.rows


def loader_feed(plan: Plan, dataset: Any) -> Iterator[Batch]:
    """Batches of a stock DataLoader, epoch after epoch."""
    workload = plan.workload
    assert workload is not None, "a script has loaders of its own"
    dataset = TensorDataset(*dataset) if isinstance(dataset, tuple) else dataset
    arguments: dict[str, Any] = {
        "batch_size": plan.batch_size,
        "collate_fn": workload.collate_fn,
        "drop_last": workload.drop_last,
        **plan.loader,
    }
    if not isinstance(dataset, IterableDataset):
        arguments["sampler"] = EpochOrder(len(dataset), shuffle=workload.shuffle, seed=plan.seed)
    return epochs(DataLoader(dataset, **arguments))


def epochs(loader: Any) -> Iterator[Batch]:
    """The loader's batches without end. Raises WorkloadError when an epoch has none."""
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise WorkloadError("the dataset yields no batch: it is empty, or smaller than a batch with drop_last")


def whole_feed(dataset: Any) -> Iterator[Batch]:
    """All tensors at every step. Raises WorkloadError for a dataset that is not a tuple of tensors."""
    if not isinstance(dataset, tuple) or not all(isinstance(part, torch.Tensor) for part in dataset):
        raise WorkloadError("batch_size=None feeds whole tensors: dataset() must return a tuple of tensors")
    while True:
        yield dataset


def map_leaves(change: Callable[[Any], Any], batch: Batch, whole: Callable[[Any], bool] = lambda part: False) -> Batch:
    """The batch with every leaf changed: all that is no mapping, list, tuple, dataclass or attrs class, and all that is
    to stay whole.

    Containers keep their types.
    """
    if isinstance(batch, torch.Tensor) or whole(batch):
        return change(batch)
    if isinstance(batch, Mapping):
        parts = {key: map_leaves(change, part, whole) for key, part in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return parts
        same = copy.copy(batch)
        same.update(parts)
        return same
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_leaves(change, part, whole) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_leaves(change, part, whole) for part in batch)
    names = fields_of(batch)
    if names is None:
        return change(batch)
    same = copy.copy(batch)
    for name in names:
        object.__setattr__(same, name, map_leaves(change, getattr(batch, name), whole))  # frozen ones, too
    return same


def fields_of(part: Any) -> list[str] | None:
    """The names of the fields of a dataclass or an attrs class; None for anything else."""
    kind = type(part)
    fields = getattr(kind, "__dataclass_fields__", None)
    if fields is not None:
        return [name for name in fields if hasattr(part, name)]
    attributes = getattr(kind, "__attrs_attrs__", None)
    return None if attributes is None else [one.name for one in attributes]


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> Batch:
    """The batch with every tensor in it changed; other objects are left as they are."""
    return map_leaves(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf, batch)


def copied(batch: Batch, device: torch.device, *, non_blocking: bool) -> Batch:
    """The batch on the device. What has a `to` of its own (PackedSequence, BatchEncoding) moves itself."""

    def move(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return part.to(device, non_blocking=non_blocking)
        return part.to(device) if moves_itself(part) else part

    return map_leaves(move, batch, whole=moves_itself)


class CopiedAside:
    """The step on batches of the host in pinned memory, each copied on a stream of its own: while the host runs ahead,
    the device still computes the step before.

    Source: torch.Tensor.record_stream, without which the memory of a batch could be given to another copy before the
    step has read it.
    """

    steps = 0  # in this process, for the proof

    def __init__(self, step: Step, device: torch.device, cuda: Any = torch.cuda) -> None:
        """cuda: torch.cuda, unless a test has its own."""
        self._step, self._device, self._cuda = step, device, cuda
        self._side = cuda.Stream(device)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Raises SettingError for a batch with something whose tensors nobody can find."""
        movers = [leaf for leaf in leaves_of(batch, whole=moves_itself) if moves_itself(leaf)]
        others = [leaf for leaf in movers if not isinstance(leaf, torch.Tensor)]
        if others:
            kind = type(others[0]).__name__
            raise SettingError(f"a batch has a {kind}, which copies itself; use pinned_memory=on")
        with self._cuda.stream(self._side):
            moved = copied(batch, self._device, non_blocking=True)
        stream = self._cuda.current_stream(self._device)
        stream.wait_stream(self._side)
        for part in tensors_of(moved):
            part.record_stream(stream)
        CopiedAside.steps += 1
        return self._step(moved)


def moves_itself(part: Any) -> bool:
    """Whether it has a `to` of its own, as PackedSequence and BatchEncoding, or is a tensor."""
    return callable(getattr(part, "to", None))


def leaves_of(batch: Batch, whole: Callable[[Any], bool] = lambda part: False) -> list[Any]:
    """All leaves of the batch, in order: its tensors, and whatever else is no container, or is to stay whole."""
    found: list[Any] = []

    def note(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_leaves(note, batch, whole)
    return found


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """All tensors in the batch, in order."""
    return [leaf for leaf in leaves_of(batch) if isinstance(leaf, torch.Tensor)]
