"""The DataLoaders of a script: where each was made, and which of them the training takes its batches from.

A loader is known by the place that makes it, for a script may make it anew in each epoch; by the order in which they
are made only where one place makes those of the training and others. Places are numbered in the order in which they
make their first one: so they are the same in another process, in another folder, and in a file that was patched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perftool.script.attached import Attached, Known, alive, weakly
from perftool.script.hooks import batch_size_of
from perftool.script.loop import Loop
from perftool.script.sites import Place, own_place

MADE = "_perftool_made"  # an attribute of a loader
REMEMBERED_MOST = 64  # loaders, and places that make them


class Made(Attached):
    """What is known of a loader; it may be gone.

    number: another one for each loader. site: number of the place that made it; None for one too many. order: among
    those of that place. dataset: its identity. facts: the loader as plain values, as it was at its first epoch.
    """

    __slots__ = ("dataset", "facts", "is_laid", "name", "number", "order", "place", "reference", "site")

    def __init__(self, loader: Any, place: Place, number: int, site: int | None, order: int) -> None:
        self.place, self.number, self.site, self.order = place, number, site, order
        self.name, self.dataset = type(loader).__name__, id(loader.dataset)
        self.reference = weakly(loader)
        self.facts: dict[str, Any] | None = None
        self.is_laid = False  # the Plan's options are its own

    def describe(self) -> dict[str, Any] | None:
        """Its facts; None for one that went before anybody looked."""
        loader = self.reference()
        if self.facts is None and loader is not None:
            self.facts = facts_of(loader)
        return self.facts


class Loaders:
    """All of this process."""

    def __init__(self, loop: Loop, known: Sequence[Sequence[bool]] = ()) -> None:
        """known: from an earlier process, by place: whether each loader made there, in that order, was trained with."""
        self._loop, self._known = loop, known
        self._sites: dict[tuple[Any, int], int] = {}
        self._made_by: list[int] = []  # by place: how many loaders
        self._count = 0
        self._references: list[Known] = []
        self.remembered: list[Made] = []  # the first of them
        self.is_evaluating = False  # the last model whose mode was set was set to evaluate

    def made(self, loader: Any) -> Made:
        """What is known of a loader, which is met here where it was not seen being made."""
        found: Made | None = loader.__dict__.get(MADE)
        if found is None:
            found = loader.__dict__[MADE] = self._meet(loader)
        return found

    def _meet(self, loader: Any) -> Made:
        place = own_place(loader)
        site = self._site(place)
        made = Made(loader, place, self._count, site, 0 if site is None else self._made_by[site])
        self._count += 1
        if site is not None:
            self._made_by[site] += 1
        if len(self.remembered) < REMEMBERED_MOST:
            self.remembered.append(made)
        self._references = [*map(weakly, alive(self._references)), made.reference]
        return made

    def _site(self, place: Place) -> int | None:
        key = place.code, place.instruction
        if key not in self._sites:
            if len(self._sites) == REMEMBERED_MOST:
                return None
            self._sites[key] = len(self._sites)
            self._made_by.append(0)
        return self._sites[key]

    # --------------------------------------------------------------------------------------------------- what trains

    def trains(self, loader: Any) -> bool:
        """Whether the epoch that begins is one of the training, before it has shown."""
        import torch

        if not torch.is_grad_enabled():
            return False
        known = self._is_known_to_train(self.made(loader))
        return _is_shuffled(loader) or not self.is_evaluating if known is None else known

    def _is_known_to_train(self, made: Made) -> bool | None:
        kinds = self._known[made.site] if made.site is not None and made.site < len(self._known) else ()
        if len(set(kinds)) == 1:
            return kinds[0]
        return kinds[made.order] if made.order < len(kinds) else None

    def in_use(self) -> list[Any]:
        """Those whose batches went into backward passes; all, while there are none."""
        found = alive(self._references)
        return [one for one in found if self.made(one).number in self._loop.training_loaders] or found

    def kinds(self) -> list[list[bool]]:
        """By place: whether each loader made there was trained with; as `known` of another process."""
        found: list[list[bool]] = [[] for _ in self._sites]
        for one in self.remembered:
            if one.site is not None:
                found[one.site].append(one.number in self._loop.training_loaders)
        return found

    def in_training(self) -> list[Made]:
        """Those whose batches are trained with, and those of which a framework has made one of these."""
        fed = [one for one in self.remembered if one.number in self._loop.training_loaders]
        datasets = {one.dataset for one in fed if one.place.framework}
        return [one for one in self.remembered if one in fed or one.dataset in datasets]

    def facts(self) -> list[dict[str, Any]]:
        """In the order made."""
        described = [(one, one.describe()) for one in self.remembered]
        return [
            {**facts, "trains": one.number in self._loop.training_loaders}
            for one, facts in described
            if facts is not None
        ]


def facts_of(loader: Any) -> dict[str, Any]:
    """A loader as plain values."""
    from torch.utils.data import IterableDataset, RandomSampler, TensorDataset
    from torch.utils.data._utils.collate import default_collate

    dataset = loader.dataset
    plain = isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__
    kind = "iterable" if isinstance(dataset, IterableDataset) else "tensors" if plain else "map"
    batches = loader.batch_sampler
    return {
        "name": type(loader).__name__,
        "dataset": type(dataset).__name__,
        "kind": kind,
        "rows": _length(dataset) if kind != "iterable" else None,
        "batch_size": batch_size_of(loader),
        "workers": loader.num_workers,
        "pinned": bool(loader.pin_memory),
        "has_collate": loader.collate_fn is not default_collate and batches is not None,
        "shuffle": isinstance(_sampler(loader), RandomSampler),
        "drop_last": bool(getattr(batches, "drop_last", loader.drop_last)),
    }


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


def _sampler(loader: Any) -> Any:
    return getattr(loader.batch_sampler, "sampler", loader.sampler)


def _is_shuffled(loader: Any) -> bool:
    """Whether its rows come in an order of their own, as far as its sampler says."""
    from torch.utils.data import IterableDataset, SequentialSampler

    sampler = _sampler(loader)
    in_order = isinstance(sampler, SequentialSampler) or isinstance(loader.dataset, IterableDataset)
    return not in_order and bool(getattr(sampler, "shuffle", True))
