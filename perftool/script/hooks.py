"""What is put around torch's own functions, so that a script's loop is seen, and its parts are as the Plan has them.

Each hook costs some microseconds or less, the same under all settings. Hooks of module calls cost more and break
compiled graphs, so they are there only until the models of the script are known.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from perftool.script.attached import CONFIGURED
from perftool.script.loop import CHECKPOINT, EVALUATION, Loop
from perftool.script.steps import BACKWARD
from perftool.script.thread import NO_TASK, backward_task
from perftool.words import BACKWARD as BACKWARD_PHASE
from perftool.words import OPTIMIZER as OPTIMIZER_PHASE
from perftool.words import REST

if TYPE_CHECKING:
    from perftool.script.realise import Realised


def install(loop: Loop, realised: Realised) -> None:
    """Put all hooks in place; torch has just been imported."""
    _around_optimizers(loop, realised)
    around_backward(loop)
    around_scaler(loop)
    around_scaled_steps(realised)
    around_making(realised)
    around_epochs(loop, realised)
    around_fetching(loop)
    around_modes(realised)
    around_saving(loop)
    realised.follow_calls()


def replaced(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Put what `make` makes of a function in its place; what is returned puts the function back."""
    plain = inspect.getattr_static(owner, name)
    function = getattr(owner, name)
    made = functools.wraps(function)(make(function))
    setattr(owner, name, staticmethod(made) if isinstance(plain, staticmethod) else made)
    return functools.partial(setattr, owner, name, plain)


def _around_optimizers(loop: Loop, realised: Realised) -> None:
    """A step of any optimizer. At the end of the whole wrapped step and not in torch's own post-hook, which runs within
    the profiler's range of the step."""
    from torch.optim import Optimizer

    is_here = loop.thread.is_here

    def around_wrapping(wrapping: Callable[..., Any]) -> Callable[..., Any]:
        def hooked(step: Callable[..., Any]) -> Callable[..., Any]:
            plain = wrapping(step)

            @functools.wraps(plain)
            def followed(*arguments: Any, **options: Any) -> Any:
                is_followed = is_here()
                if is_followed and loop.in_update:  # a step that calls its base class's
                    return plain(*arguments, **options)
                optimizer = arguments[0]
                if CONFIGURED not in optimizer.__dict__:
                    realised.configure(optimizer)
                if not is_followed:
                    return plain(*arguments, **options)
                watcher = loop.watcher
                loop.in_update = True
                if watcher is not None:
                    watcher.marks.push(OPTIMIZER_PHASE)
                try:
                    found = plain(*arguments, **options)
                finally:
                    loop.in_update = False
                    if watcher is not None:
                        watcher.marks.pop(REST)
                loop.updated_here(optimizer)
                return found

            return followed

        return hooked

    replaced(Optimizer, "profile_hook_step", around_wrapping)
    around_optimizers_made(realised)


def around_optimizers_made(realised: Realised) -> Callable[[], None]:
    """Each optimizer that the script makes."""
    from torch.optim import Optimizer

    def registering(make: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Any, *arguments: Any, **options: Any) -> None:
            make(self, *arguments, **options)
            realised.optimizer_made(self)

        return init

    return replaced(Optimizer, "__init__", registering)


def around_backward(loop: Loop) -> Callable[[], None]:
    """Backward passes, and their losses."""
    import torch

    task, is_here = backward_task(), loop.thread.is_here

    def around(backward: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: Any, *arguments: Any, **options: Any) -> Any:
            if task() != NO_TASK or not is_here():  # what a checkpoint computes again is part of the pass
                return backward(tensors, *arguments, **options)
            loop.backward_began(tensors if isinstance(tensors, torch.Tensor) else None)
            watcher = loop.watcher
            if watcher is None:
                found = backward(tensors, *arguments, **options)
            else:
                watcher.marks.push(BACKWARD_PHASE)
                found = backward(tensors, *arguments, **options)
                watcher.marks.pop(OPTIMIZER_PHASE if loop.in_update else REST)
            if loop.heeds_backward and not loop.in_update:  # a closure's backward is part of the optimizer's step
                loop.ended(BACKWARD)
            return found

        return call

    return replaced(torch.autograd, "backward", around)


def around_scaler(loop: Loop) -> Callable[[], None]:
    """A scaler skips the update where gradients have overflowed: the step ends all the same."""
    from torch.amp import GradScaler

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, optimizer: Any, *arguments: Any, **options: Any) -> Any:
            before = loop.updates
            found = step(self, optimizer, *arguments, **options)
            if loop.updates == before:
                loop.updated(getattr(optimizer, "optimizer", optimizer))
            return found

        return call

    def scaling(scale: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, outputs: Any) -> Any:
            found = scale(self, outputs)
            loop.scaled(outputs, found)
            return found

        return call

    restore_step, restore_scale = replaced(GradScaler, "step", stepping), replaced(GradScaler, "scale", scaling)

    def restore() -> None:
        restore_step()
        restore_scale()

    return restore


def around_scaled_steps(realised: Realised) -> Callable[[], None]:
    """A scaler asks an optimizer for its kernel before the step: by then it must have the one that it is to have."""
    from torch.amp import GradScaler
    from torch.optim import Optimizer

    def stepping(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, optimizer: Any, *arguments: Any, **options: Any) -> Any:
            if isinstance(optimizer, Optimizer):
                realised.configure(optimizer)
            return step(self, optimizer, *arguments, **options)

        return call

    return replaced(GradScaler, "step", stepping)


def around_making(realised: Realised) -> Callable[[], None]:
    """Each DataLoader that the script makes."""
    from torch.utils.data import DataLoader

    def making(make: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Any, *arguments: Any, **options: Any) -> None:
            make(self, *arguments, **options)
            realised.loaders.made(self)

        return init

    return replaced(DataLoader, "__init__", making)


def around_epochs(loop: Loop, realised: Realised) -> Callable[[], None]:
    """Each epoch of a DataLoader."""
    from torch.utils.data import DataLoader

    def iterating(begin: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any) -> Any:
            number = realised.loaders.made(self).number
            loop.iterated(number)
            batches = realised.epoch(self)
            if batches is not None:
                return Fed(batches, Epoch(self, number), loop)
            watcher = loop.watcher
            if watcher is not None:  # workers may have to start
                watcher.iterating(number)
            found = begin(self)
            if watcher is not None:
                watcher.fetched()
            found.__dict__["_perftool_epoch"] = Epoch(self, number)
            return found

        return call

    return replaced(DataLoader, "__iter__", iterating)


def around_fetching(loop: Loop) -> Callable[[], None]:
    """Each batch of a DataLoader, and the time that it took."""
    from torch.utils.data import dataloader as module

    def fetching(fetch: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any) -> Any:
            epoch = self.__dict__.get("_perftool_epoch")
            if epoch is None:
                return fetch(self)
            return fetched(loop, epoch, fetch, self)

        return call

    return replaced(module._BaseDataLoaderIter, "__next__", fetching)


def fetched(loop: Loop, epoch: Epoch, fetch: Callable[[Any], Any], batches: Any) -> Any:
    """The next of these batches; the time that it took is told to the loop."""
    watcher = loop.watcher
    asked_ns = perf_counter_ns()
    if watcher is not None:
        watcher.fetching()
    try:
        batch = fetch(batches)
    finally:
        if watcher is not None:
            watcher.fetched()
    loop.fetched(epoch.loader, perf_counter_ns() - asked_ns, epoch.next_samples(), batch)
    return batch


class Epoch:
    """One pass of a loader over its data: how many samples each batch has, by what the sampler says."""

    __slots__ = ("_batch_size", "_left", "loader")

    def __init__(self, loader: Any, number: int) -> None:
        self.loader = number
        self._batch_size = batch_size_of(loader)
        self._left = None if self._batch_size is None else rows_of(loader)

    def next_samples(self) -> int | None:
        """Of the batch that has just come; None where only a sampler of batches of the user's own knows."""
        if self._batch_size is None:
            return None
        if not self._left:  # an iterable dataset, whose last batch may have fewer; or more came than was told
            return self._batch_size
        count = min(self._batch_size, self._left)
        self._left -= count
        return count


def batch_size_of(loader: Any) -> int | None:
    """Of the loader, or of what samples its batches; None where neither says."""
    size = loader.batch_size or getattr(_batches_of(loader), "batch_size", None)
    return size if isinstance(size, int) else None


def rows_of(loader: Any) -> int | None:
    """That one pass draws; None where nobody knows."""
    try:
        return len(getattr(_batches_of(loader), "sampler", loader.sampler))
    except TypeError:  # an iterable dataset
        return None


def _batches_of(loader: Any) -> Any:
    """What samples whole batches: the loader's own, or with `batch_size=None` one that is given as its sampler."""
    return loader.batch_sampler if loader.batch_sampler is not None else loader.sampler


class Fed:
    """The iterator of an epoch whose batches come from the Plan and not from the loader itself."""

    def __init__(self, batches: Iterator[Any], epoch: Epoch, loop: Loop) -> None:
        self._batches, self._epoch, self._loop = batches, epoch, loop

    def __iter__(self) -> Fed:
        return self

    def __next__(self) -> Any:
        return fetched(self._loop, self._epoch, next, self._batches)


def around_modes(realised: Realised) -> Callable[[], None]:
    """`model.eval()` announces an evaluation."""
    from torch.nn import Module

    def around(train: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, mode: bool = True) -> Any:
            realised.loaders.is_evaluating = not mode
            if not mode:
                realised.loop.noticed("eval mode", EVALUATION)
            return train(self, mode)

        return call

    return replaced(Module, "train", around)


def around_saving(loop: Loop) -> Callable[[], None]:
    """`torch.save` is a checkpoint."""
    import torch

    def around(save: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            loop.noticed("saving", CHECKPOINT)
            return save(*arguments, **options)

        return call

    return replaced(torch, "save", around)
