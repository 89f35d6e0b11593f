"""What is to be trained and how, before anything is built: scenarios transform it, drivers realise it.

Two realise it: `training.py` in perftool's own loop, `perftool/script/` over the loop of a user's own script. Applying
a scenario needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from perftool.workload import Batch, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

Loss = Callable[["nn.Module", Batch], "torch.Tensor"]
Update = Callable[["torch.Tensor", "torch.optim.Optimizer"], None]
Step = Callable[[Batch], "torch.Tensor"]
Feed = Callable[["Plan", Any], Iterator[Batch]]
Epoch = Callable[["DataLoader[Any]"], Iterator[Batch]]

WARM_CALLS = 3  # after which what lives long is there


class SettingError(ValueError):
    """Settings that cannot be had together, or not with this training; the text says why."""


class Live(Protocol):
    """What a proof sees of a training that runs, whoever has the loop."""

    @property
    def plan(self) -> Plan: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def module(self) -> nn.Module:
        """As the user wrote it."""

    @property
    def model(self) -> nn.Module:
        """As it is called; the same where it was changed in place."""

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...


class Looped(Live, Protocol):
    """What is wrapped around a step gets: a training in perftool's own loop."""

    @property
    def loss(self) -> Loss: ...
    @property
    def steps_per_call(self) -> int: ...


def backward_and_step(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The plain update: gradients, then one optimizer step."""
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A training that has not been built yet. Scenarios return a changed copy (`dataclasses.replace`).

    workload: None where the training is a script's own.
    process: run first, before anything is built (precision modes, threads, allocator).
    loader: keyword arguments of the DataLoader.
    feed: (plan, dataset) -> endless iterator of batches, in place of a stock DataLoader over a dataset that is not fed
        whole.
    epoch: of a script's own loaders: the batches of one epoch of a DataLoader, in place of its own iterator.
    non_blocking: of the copy of a batch to the device.
    copy_aside: the copy is on a stream of its own, so that the device computes the step before meanwhile.
    optimizer: options set on every parameter group of the user's optimizer ({"fused": True}).
    optimizer_changes: done to the optimizer in turn, once it has its options (learning rates); get the plan, too.
    module: done to the user's own module in turn, in place, as soon as it is there (memory format, checkpointing);
        returns whether there was something to do.
    model: applied to the built model in turn (compilation).
    loss: wrapped around the workload's loss in turn (autocast).
    micro_batches: parts that a batch is cut into, whose gradients add up before the one update.
    update: what follows the loss; replaced where gradients are scaled.
    step: wrapped around the whole step in turn (CUDA graphs); gets the training and the step.
    steps_per_call: batches that one fetch returns, as a tuple where there are several. Whoever raises it wraps `step`
        with something that takes so many.
    whole_step: what is wrapped around the step makes one piece of it, which is compiled or replayed as a whole.
    warmed_up: called once, after the first WARM_CALLS calls of a step.
    """

    workload: Workload | None
    device: str = "cpu"
    seed: int = 0
    batch_size: int | None = None
    process: tuple[Callable[[], None], ...] = ()
    loader: Mapping[str, Any] = field(default_factory=dict)
    feed: Feed | None = None
    epoch: Epoch | None = None
    non_blocking: bool = False
    copy_aside: bool = False
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    optimizer_changes: tuple[Callable[[Plan, torch.optim.Optimizer], None], ...] = ()
    module: tuple[Callable[[nn.Module], bool], ...] = ()
    model: tuple[Callable[[nn.Module], nn.Module], ...] = ()
    loss: tuple[Callable[[Loss], Loss], ...] = ()
    micro_batches: int = 1
    update: Update = backward_and_step
    step: tuple[Callable[[Looped, Step], Step], ...] = ()
    steps_per_call: int = 1
    whole_step: bool = False
    warmed_up: tuple[Callable[[], None], ...] = ()


def needs_own_loop(before: Plan, after: Plan) -> str | None:
    """Why what was changed cannot be laid over the loop of a script, as a sentence; None where it can."""
    parts = changed(before, after)
    if parts & {"step", "steps_per_call", "whole_step"}:
        return "it replaces the whole step, and the script has a loop of its own; write a Workload"
    if "update" in parts:
        return "it replaces backward and update, and the script does them itself; write a Workload"
    if "micro_batches" in parts:
        return "it cuts each batch into parts within the step, and the script has a loop of its own; write a Workload"
    if "copy_aside" in parts:
        return "it copies batches on a stream of its own, and the script copies them itself; write a Workload"
    if "batch_size" in parts:
        return "the script chooses its batches; vary its own option with --vary '--batch-size=32|64'"
    if "feed" in parts and "epoch" not in parts:
        return "it replaces the loading of batches, and the script has a loader of its own; write a Workload"
    return None


SWITCHED = ("process", "feed", "epoch", "optimizer", "loss")
"""The parts of a Plan that a script's training can go over to other ones of, in the midst of its loop."""
COMPILED = ("model", "step", "whole_step")
"""Those of which other code is made: compiled, or captured."""


def changed(before: Plan, after: Plan) -> set[str]:
    """The names of the parts that differ."""
    return {one.name for one in fields(Plan) if getattr(before, one.name) != getattr(after, one.name)}
