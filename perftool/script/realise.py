"""The second realisation of a Plan: laid over what a script builds, while it builds it.

`process` before the script starts, `loader` on each training DataLoader before its first epoch, `epoch` where one
begins, `optimizer` before an optimizer's first step, `module` before the first outermost call of each module with
parameters while gradients are enabled, `model` and `loss` around each such call: reduced precision inside, float32
outside, as accelerate has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from perftool.plan import SWITCHED
from perftool.script.attached import CONFIGURED, MADE_AT, OWN_OPTIONS, Attached, Call, Known, alive, weakly
from perftool.script.loaders import Loaders
from perftool.script.loop import EVALUATION, Loop
from perftool.script.sites import Place, own_place
from perftool.script.switched import Switched, can_be_switched
from perftool.script.thread import in_backward
from perftool.words import FORWARD

if TYPE_CHECKING:
    from perftool.plan import Plan

SITES_MOST = 64
CALLED = "_compiled_call_impl"
"""Torch's own place for what a call runs in place of the module's forward with its hooks: instance-wide, and taken by
torch.nn.Module.compile itself."""
CALM_CALLS = 256  # with gradients, in which no other module was called from outside


class MadeAt(Attached):
    """Where an optimizer was made."""

    __slots__ = ("place",)

    def __init__(self, place: Place) -> None:
        self.place = place


class Root:
    """A module that is called from outside of any module, with gradients.

    place: where it was made. inner: what its call runs, with what the Plan makes of models; None: its own call.
    """

    __slots__ = ("inner", "place", "reference")

    def __init__(self, reference: Known, place: Place | None) -> None:
        self.reference, self.place = reference, place
        self.inner: Callable[..., Any] | None = None


class Own(Attached):
    """The options that an optimizer had of itself: name to its default and to what each group has."""

    __slots__ = ("options",)

    def __init__(self) -> None:
        self.options: dict[str, tuple[Any, list[Any]]] = {}


class Realised:
    """A Plan over the loop of this process."""

    def __init__(
        self, plan: Plan, loop: Loop, *, loaders: Sequence[Sequence[bool]] = (), is_switched: bool = False
    ) -> None:
        """loaders: which of them train, as `Loaders` takes it. is_switched: other Plans will follow; see `switch`."""
        self.plan, self.loop, self.is_switched = plan, loop, is_switched
        loop.warmed_up = plan.warmed_up
        self.loaders = Loaders(loop, loaders)
        self._restore_calls: Callable[[], None] | None = None
        self._follows_anew = False  # where a new optimizer may have a new model
        self._depth = 0  # of calls of modules, while all are followed
        self._is_within_root = False
        self._calm_calls: int | None = None  # since a module was new, where following ends by itself
        self.laid: set[str] = set()  # parts of the Plan that have come over something
        self.changes_laid: set[Callable[[Any], bool]] = set()  # of modules, likewise
        self._made: dict[int, Place] = {}  # where modules were made, by identity
        self._roots: list[Root] = []
        self.calls: dict[tuple[Any, int], tuple[Place, str]] = {}  # of roots, by where: with what they returned
        self.torch_place = own_place()  # the hooks begin while torch is being imported
        self.autocast: str | None = None  # the type that the script itself computes in

    @property
    def roots(self) -> list[Any]:
        """Modules that are called from outside of any module, with gradients, and are still there."""
        return alive([root.reference for root in self._roots])

    def root_places(self) -> list[tuple[Any, Place | None]]:
        """Each of them, with where it was made."""
        return [(module, root.place) for root in self._roots if (module := root.reference()) is not None]

    # ------------------------------------------------------------------------------------------- process, optimizer

    def prepare(self) -> None:
        """What holds for the process: before the script builds anything, and once it has built all, since it may have
        set the same itself."""
        for prepare in self.plan.process:
            prepare()

    def optimizer_made(self, optimizer: Any) -> None:
        self.loop.known.made(optimizer)
        optimizer.__dict__[MADE_AT] = MadeAt(own_place(optimizer))
        self._follow_anew()

    def configure(self, optimizer: Any) -> None:
        """Before an optimizer's first step."""
        if CONFIGURED in optimizer.__dict__:
            return
        optimizer.__dict__[CONFIGURED] = True
        self._follow_anew()
        if self.plan.module:
            from perftool.training import match_layouts

            match_layouts(optimizer)  # its state may be that of a checkpoint
        if not self.plan.optimizer and not self.plan.optimizer_changes:
            return
        defaults = optimizer.defaults
        options = {name: value for name, value in self.plan.optimizer.items() if name in defaults or value}
        if all(name in defaults for name in options):
            self._lay_on(optimizer, options)
            self.laid.add("optimizer")
        for change in self.plan.optimizer_changes:
            change(self.plan, optimizer)
            self.laid.add("optimizer_changes")

    def _lay_on(self, optimizer: Any, options: Mapping[str, Any]) -> None:
        """These options, and of those that another Plan had, the optimizer's own."""
        from perftool.training import configure, options_of

        own = optimizer.__dict__.setdefault(OWN_OPTIONS, Own()).options
        own.update(options_of(optimizer, [name for name in options if name not in own]))
        configure(optimizer, options, own)

    def switch(self, plan: Plan) -> None:
        """Go over to the parts of another Plan that can be had in the midst of the loop (see `plan.SWITCHED`)."""
        self.plan = replace(self.plan, **{part: getattr(plan, part) for part in SWITCHED})
        self.prepare()
        for optimizer in self.loop.optimizers:
            if self.plan.optimizer or OWN_OPTIONS in optimizer.__dict__:
                options = {name: value for name, value in self.plan.optimizer.items() if name in optimizer.defaults}
                self._lay_on(optimizer, options)
        for root in self._roots:
            module = root.reference()
            if module is not None:
                self._lay_call(module, root)

    # ------------------------------------------------------------------------------------------------------ loaders

    def epoch(self, loader: Any) -> Iterator[Any] | None:
        """An epoch begins. Its batches, where the Plan has its own way to come by them."""
        made = self.loaders.made(loader)
        made.describe()
        if not self.plan.loader and self.plan.epoch is None and not self.is_switched:
            return None
        if not self.loaders.trains(loader):
            return None
        if self.plan.loader and not made.is_laid and not _is_iterable(loader.dataset):
            made.is_laid = True
            self._lay_options(loader)
        if self.is_switched and can_be_switched(loader):
            return Switched(loader, lambda: self.plan.epoch)
        if self.plan.epoch is None:
            return None
        batches = self.plan.epoch(loader)
        if not _is_own_iterator(batches):
            self.laid |= {"epoch", "feed"}
        return batches

    def _lay_options(self, loader: Any) -> None:
        for name, value in self.plan.loader.items():
            object.__setattr__(loader, name, value)  # the loader's own refuses some of them once it is made
        loader._iterator = None  # of workers that stay alive, which another loop may have started
        self.laid.add("loader")

    # -------------------------------------------------------------------------------------------------------- calls

    def follow_calls(self, *, until_calm: bool = False) -> None:
        """See every outermost call of a module, and where modules are made, until `stop_following`.

        until_calm: or until no other module has been called for many calls.
        """
        from torch.nn import Module

        self._calm_calls = 0 if until_calm else None
        self._follows_anew = True
        plain, make = Module.__call__, Module.__init__
        realised = self

        @functools.wraps(plain)
        def outermost(module: Any, *arguments: Any, **options: Any) -> Any:
            if realised._depth or in_backward():  # the latter where activations are computed a second time
                return plain(module, *arguments, **options)
            realised._depth += 1
            try:
                is_root = realised._adopt(module)
                found = plain(module, *arguments, **options)
            finally:
                realised._depth -= 1
            if is_root:
                realised._called(found)
            return found

        @functools.wraps(make)
        def made(module: Any, *arguments: Any, **options: Any) -> None:
            make(module, *arguments, **options)
            realised._made[id(module)] = own_place(module, outside=True)

        Module.__call__ = outermost  # type: ignore[method-assign]
        Module.__init__ = made  # type: ignore[assignment, method-assign]

        def restore() -> None:
            Module.__call__, Module.__init__ = plain, make  # type: ignore[method-assign]
            realised._made.clear()

        self._restore_calls = restore

    def _follow_anew(self) -> None:
        """An optimizer is new, and so may be the models that it trains."""
        if self._calm_calls is not None:
            self._calm_calls = 0
        if self._restore_calls is None and self._follows_anew:
            self.follow_calls(until_calm=True)

    def stop_following(self) -> None:
        """Calls cost nothing from here on but for the roots that are known, until an optimizer is new."""
        if self._restore_calls is not None:
            self._restore_calls()
            self._restore_calls = None

    def _adopt(self, module: Any) -> bool:
        """Make a module's calls go by the Plan, at its first call with gradients. Whether this is such a call."""
        import torch

        if not torch.is_grad_enabled():
            return False
        if any(module is root for root in self.roots):
            self._note_calm()
            return True
        if next(module.parameters(), None) is None:  # a loss, an activation
            return False
        self._calm_calls = None if self._calm_calls is None else 0
        self._roots = [root for root in self._roots if root.reference() is not None]
        root = Root(weakly(module), self._made.get(id(module)))
        self._roots.append(root)
        if self.autocast is None:
            self.autocast = _autocast_in_force()
        try:
            self._change(module)
            root.inner = self._transformed(module, module.__dict__.get(CALLED))
            self._lay_call(module, root)
            self.laid |= {"model", "loss"}
        except (AttributeError, TypeError):
            pass  # no ordinary module: left as it is, which the proofs then say
        return True

    def _change(self, module: Any) -> None:
        """What the Plan does to a module itself."""
        if not self.plan.module:
            return
        from perftool.training import match_layouts

        for change in self.plan.module:
            if change(module):
                self.laid.add("module")
                self.changes_laid.add(change)
        for optimizer in self.loop.optimizers:
            match_layouts(optimizer)

    def _lay_call(self, module: Any, root: Root) -> None:
        """What the Plan wraps around the calls of a root."""
        module.__dict__[CALLED] = Call(self._call_of(module, root.inner))

    def _note_calm(self) -> None:
        """Another call of a root that is known."""
        if self._calm_calls is not None:
            self._calm_calls += 1
            if self._calm_calls == CALM_CALLS:
                self.stop_following()

    def _called(self, output: Any) -> None:
        """A root has been called, and has returned this."""
        place = own_place()
        if len(self.calls) < SITES_MOST:
            key, kind = (place.code, place.instruction), outputs_of(output)
            _, before = self.calls.get(key, (place, kind))
            self.calls[key] = (place, kind if kind == before else "other")

    def _transformed(self, module: Any, own: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """The module's call with what the Plan makes of models; None: as it is called by itself. own: what the script
        has put in its place."""
        if not self.plan.model:
            return own
        from perftool.script.inner import Inner

        model: Any = Inner(module, own or module._call_impl)
        for transform in self.plan.model:
            model = transform(model)
        called: Callable[..., Any] = model
        return called

    def _call_of(self, module: Any, inner: Callable[..., Any] | None) -> Callable[..., Any]:
        """What runs in place of the module's own call. inner: what it runs itself; None: that call."""
        import torch

        loop, is_grad_enabled, reference = self.loop, torch.is_grad_enabled, weakly(module)

        def followed(*arguments: Any, **options: Any) -> Any:
            if not is_grad_enabled():
                loop.noticed("no gradients", EVALUATION)
            elif loop.watcher is not None:
                loop.watcher.marks.begin(FORWARD)
            if inner is None:  # as in `plain_call`, whose frame is spared
                return reference()._call_impl(*arguments, **options)
            return inner(*arguments, **options)

        if not self.plan.loss:
            return followed
        compute: Callable[..., Any] = lambda _, batch: followed(*batch[0], **batch[1])  # noqa: E731
        for wrap in self.plan.loss:
            compute = wrap(compute)

        def reduced(*arguments: Any, **options: Any) -> Any:
            if self._is_within_root or not is_grad_enabled():
                return followed(*arguments, **options)
            self._is_within_root = True
            try:
                return in_float32(compute(reference(), (arguments, options)))
            finally:
                self._is_within_root = False

        return reduced


def place_of(optimizer: Any) -> Place | None:
    """Where it was made; None where nobody saw that."""
    made: MadeAt | None = getattr(optimizer, "__dict__", {}).get(MADE_AT)
    return None if made is None else made.place


def plain_call(module: Any) -> Callable[..., Any]:
    """As the module is called by itself. It does not keep the module alive, for the module has it."""
    reference = weakly(module)

    def call(*arguments: Any, **options: Any) -> Any:
        return reference()._call_impl(*arguments, **options)

    return call


def outputs_of(output: Any) -> str:
    """What a call has returned: a "tensor" of floating point, "tensors" in a tuple or list, or something "other"."""
    import torch

    if isinstance(output, torch.Tensor):
        return "tensor" if output.is_floating_point() else "other"
    several = type(output) in (tuple, list) and len(output) > 1
    return "tensors" if several and all(outputs_of(part) == "tensor" for part in output) else "other"


def in_float32(output: Any) -> Any:
    """The output with floating tensors of fewer bits as float32, whatever holds them."""
    import torch

    if isinstance(output, torch.Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(in_float32(part) for part in output))
    if isinstance(output, (list, tuple)):
        return type(output)(in_float32(part) for part in output)
    if isinstance(output, dict):
        for key in list(output):
            output[key] = in_float32(output[key])
    return output


def _autocast_in_force() -> str | None:
    import torch

    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(torch.get_autocast_dtype(kind))
    return None


def _is_own_iterator(batches: Any) -> bool:
    """Whether they come from the loader itself."""
    from torch.utils.data import dataloader

    return isinstance(batches, dataloader._BaseDataLoaderIter)


def _is_iterable(dataset: Any) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(dataset, IterableDataset)
