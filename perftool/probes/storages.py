"""Memory that tensors lie in, each block counted once, and what autograd saves of it for backward passes.

Source: torch.autograd.graph.saved_tensors_hooks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.autograd import graph
from torch.multiprocessing.reductions import StorageWeakRef

from perftool.words import BACKWARD

Place = StorageWeakRef
"""A storage, for as long as its place is known here, which does not keep its memory: no other one takes its place."""


class Uncountable(Exception):
    """The text says why."""


class Storages:
    """Storages that have been counted."""

    def __init__(self) -> None:
        self._seen: set[Place] = set()

    def add(self, tensors: Iterable[torch.Tensor]) -> int:
        """Bytes of these that had not been counted."""
        return sum(self._added(part) for tensor in tensors for part in dense(tensor))

    def _added(self, tensor: torch.Tensor) -> int:
        place = place_of(tensor)
        if place is None or place in self._seen:
            return 0
        self._seen.add(place)
        return tensor.untyped_storage().nbytes()


class Saved:
    """What autograd saves for one backward pass, each storage once."""

    def __init__(self) -> None:
        self._views: dict[Place, dict[Any, int]] = {}
        self._storage_bytes: dict[Place, int] = {}

    def note(self, tensor: torch.Tensor) -> None:
        for part in dense(tensor):
            place = place_of(part)
            if place is not None:
                layout = (part.storage_offset(), part.shape, part.stride())
                self._views.setdefault(place, {})[layout] = bytes_of(part)
                self._storage_bytes[place] = part.untyped_storage().nbytes()

    def shown_bytes(self, places: set[Place], *, within: bool) -> int:
        """Of storages that are among these places, or are not, as many bytes as saved tensors show of them."""
        chosen = (place for place in self._views if (place in places) == within)
        return sum(min(self._storage_bytes[place], sum(self._views[place].values())) for place in chosen)

    def held_bytes(self, but: set[Place]) -> int:
        """Of storages at other places than these, whole."""
        return sum(size_bytes for place, size_bytes in self._storage_bytes.items() if place not in but)


class Passes:
    """While this is open, sees what autograd saves, each pass apart; whoever opened it tells the phases of the step."""

    def __init__(self) -> None:
        self._done: list[Saved] = []
        self._trouble: str | None = None
        self._now = Saved()
        self._hooks = graph.saved_tensors_hooks(self._note, lambda tensor: tensor)
        self._is_open = False

    def __enter__(self) -> Passes:
        graph_module: Any = graph
        self._refuse = graph_module.disable_saved_tensors_hooks
        # A function transform refuses all hooks, and would end in an error of the code that calls it.
        graph_module.disable_saved_tensors_hooks = self._yielding
        self._hooks.__enter__()
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        graph_module: Any = graph
        graph_module.disable_saved_tensors_hooks = self._refuse
        self._end()

    def phase(self, name: str) -> None:
        """What follows is of this phase: a backward pass uses what was saved until then."""
        if name == BACKWARD:
            self._done.append(self._now)
            self._now = Saved()

    def saved(self) -> list[Saved]:
        """By each backward pass that has begun. Raises Uncountable."""
        if self._trouble is not None:
            raise Uncountable(self._trouble)
        return self._done

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        try:
            self._now.note(tensor)
        except Exception as error:  # within the user's forward pass
            self._trouble = self._trouble or f"{type(error).__name__}: {error}"
        return tensor

    def _yielding(self, message: str) -> Any:
        if self._is_open:
            self._trouble = f"a function transform lets nobody see what is saved ({message})"
            self._end()
        return self._refuse(message)

    def _end(self) -> None:
        if self._is_open:
            self._is_open = False
            self._hooks.__exit__()


def place_of(tensor: torch.Tensor) -> Place | None:
    """Where its storage lies; None for what has none, such as sparse tensors."""
    try:
        storage = tensor.untyped_storage()
        return Place(storage) if storage.data_ptr() else None  # type: ignore[no-untyped-call]
    except (NotImplementedError, RuntimeError):  # a subclass without memory of its own
        return None


def places_of(tensors: Iterable[torch.Tensor]) -> set[Place]:
    return {place for tensor in tensors for part in dense(tensor) if (place := place_of(part)) is not None}


def dense(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that hold a tensor's data: those of a sparse gradient are its indices and values."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    return (tensor,)


def tensors_within(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested containers, as an optimizer's state may have them."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (Mapping, list, tuple, deque)):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from tensors_within(value)


def bytes_of(tensor: torch.Tensor) -> int:
    """Of the tensor itself, which may be a view of something larger."""
    return tensor.numel() * tensor.element_size()
