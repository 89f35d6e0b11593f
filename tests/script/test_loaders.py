"""Which loaders the settings are for."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from perftool.plan import Plan
from perftool.script import hooks
from perftool.script.loop import Loop
from perftool.script.realise import Realised

pytestmark = pytest.mark.usefixtures("put_back")

Loader = DataLoader[tuple[torch.Tensor, ...]]
ROWS = TensorDataset(torch.zeros(8, 2))
WORKERS = {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 2}


def script(known: list[list[bool]] | None = None) -> Realised:
    """With workers for the loaders that train. known: as Loaders takes it."""
    realised = Realised(replace(Plan(workload=None), loader=WORKERS), Loop(None), loaders=known or [])
    hooks.around_making(realised)
    hooks.around_modes(realised)
    return realised


def workers(realised: Realised, loader: DataLoader[Any]) -> int:
    """With which an epoch begins."""
    realised.epoch(loader)
    return loader.num_workers


def either(*, train: bool) -> Loader:
    """One place that makes both kinds."""
    return DataLoader(ROWS, shuffle=train)


def test_a_loader_that_is_made_anew_is_of_the_training_each_time() -> None:
    realised = script([[True]])
    assert [workers(realised, DataLoader(ROWS)) for _ in range(3)] == [2, 2, 2]


def test_another_loader_keeps_what_the_user_wrote() -> None:
    realised = script([[True, True], [False]])
    for _ in range(2):
        training, other = DataLoader(ROWS), DataLoader(ROWS, num_workers=1, prefetch_factor=8)
        assert [workers(realised, one) for one in (training, other)] == [2, 1]
        assert (training.persistent_workers, training.prefetch_factor) == (True, 2)
        assert (other.persistent_workers, other.prefetch_factor) == (False, 8)


def test_of_one_place_the_order_tells() -> None:
    realised = script([[False, True]])
    found = [either(train=False), either(train=True), either(train=True)]
    assert [workers(realised, one) for one in found] == [0, 2, 2]


def test_places_are_the_same_in_another_process() -> None:
    def run(realised: Realised, act: Callable[[Loader], object]) -> None:
        for _ in range(2):
            for loader in (DataLoader(ROWS), DataLoader(ROWS)):
                act(loader)
        act(either(train=True))

    first = script()
    seen: list[Loader] = []
    run(first, seen.append)
    for number in (1, 3, 4):
        first.loop.fetched(first.loaders.made(seen[number]).number, 1, 1, None)
        first.loop.backward_began(None)
    assert first.loaders.kinds() == [[False, False], [True, True], [True]]
    second = script(first.loaders.kinds())
    found: list[int] = []
    run(second, lambda loader: found.append(workers(second, loader)))
    assert found == [0, 2, 0, 2, 2]


@pytest.mark.parametrize(
    ("shuffle", "evaluates", "gradients", "expected"),
    [
        (True, False, True, 2),
        (False, False, True, 2),
        (True, True, True, 2),  # a part of the model that is frozen
        (False, True, True, 0),
        (True, False, False, 0),
        (False, False, False, 0),
    ],
)
def test_where_nothing_is_known_a_loader_that_is_iterated_to_train_trains(
    *, shuffle: bool, evaluates: bool, gradients: bool, expected: int
) -> None:
    realised = script()
    loader = DataLoader(ROWS, shuffle=shuffle)
    nn.Linear(1, 1).train(not evaluates)
    with torch.set_grad_enabled(gradients):
        assert workers(realised, loader) == expected
    assert ("loader" in realised.laid) == bool(expected)


def test_a_stream_gets_no_workers() -> None:
    class Stream(IterableDataset[int]):
        """Each worker would yield all of it."""

        def __iter__(self) -> Iterator[int]:
            return iter([1])

    realised = script([[True]])
    assert workers(realised, DataLoader(Stream())) == 0


def test_batches_of_the_plan_are_for_the_training_alone() -> None:
    realised = Realised(replace(Plan(workload=None), epoch=lambda _: iter([1])), Loop(None), loaders=[[True], [False]])
    hooks.around_making(realised)
    training, other = DataLoader(ROWS), DataLoader(ROWS)
    assert realised.epoch(training) is not None
    assert realised.epoch(other) is None


def test_no_loader_is_kept_and_what_is_known_of_it_stays() -> None:
    realised = script()
    loader: Loader = DataLoader(ROWS, batch_size=4)
    realised.epoch(loader)
    number = realised.loaders.made(loader).number
    kept = weakref.ref(loader)
    gc.disable()
    try:
        del loader
        assert kept() is None
    finally:
        gc.enable()
    [facts] = realised.loaders.facts()
    assert (facts["batch_size"], facts["rows"]) == (4, 8)
    assert realised.loaders.in_use() == []
    assert realised.loaders.made(DataLoader(ROWS)).number != number


def test_a_loader_can_be_sent_to_another_process() -> None:
    realised = script()
    loader: Loader = DataLoader(ROWS)
    realised.epoch(loader)
    copy = pickle.loads(pickle.dumps(loader))
    assert realised.loaders.made(copy).number != realised.loaders.made(loader).number
