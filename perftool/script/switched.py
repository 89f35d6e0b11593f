"""The batches of an epoch whose loading goes over to another way in its midst."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

Epoch = Callable[[Any], Iterator[Any]]
"""See `perftool.plan.Plan`."""


def can_be_switched(loader: Any) -> bool:
    """Whether nothing of a loader's epoch is drawn ahead, so that another way of loading can go on where it is."""
    from torch.utils.data import IterableDataset

    return (
        loader.batch_sampler is not None and not loader.num_workers and not isinstance(loader.dataset, IterableDataset)
    )


class Switched(Iterator[Any]):
    """Each batch as it is to be loaded then; the row numbers of all come from the loader's one sampler."""

    def __init__(self, loader: Any, present: Callable[[], Epoch | None]) -> None:
        """present: the way to load at the moment; None: the loader's own."""
        self._loader = copy.copy(loader)
        object.__setattr__(self._loader, "batch_sampler", iter(loader.batch_sampler))
        self._present = present
        self._ways: dict[Epoch | None, Iterator[Any]] = {}

    def __next__(self) -> Any:
        way = self._present()
        if way not in self._ways:
            self._ways[way] = self._loader._get_iterator() if way is None else way(self._loader)
        return next(self._ways[way])
