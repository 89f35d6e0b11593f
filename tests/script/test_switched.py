"""Batches of one epoch that are loaded in one way and another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from perftool.script.switched import Switched, can_be_switched
from scenarios.batch_gather import gathered_epoch

ROWS, SIZE = 22, 4
DATA = TensorDataset(torch.arange(ROWS))


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.booleans(), st.booleans())
def test_each_row_comes_once_in_the_samplers_order(gathers: list[bool], shuffle: bool, drop_last: bool) -> None:
    def loader() -> DataLoader[Any]:
        # With a generator of its own: a loader draws a seed for its workers, too, and another one each time it begins.
        shuffled = RandomSampler(DATA, generator=torch.Generator().manual_seed(3))
        return DataLoader(DATA, batch_size=SIZE, sampler=shuffled if shuffle else None, drop_last=drop_last)

    choices = iter(gathers)
    found = [batch.tolist() for (batch,) in Switched(loader(), lambda: gathered_epoch if next(choices, 0) else None)]
    drawn = [DATA.tensors[0][rows].tolist() for rows in loader().batch_sampler or ()]
    assert found == drawn


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(4))


@pytest.mark.parametrize(
    ("loader", "can"),
    [
        (DataLoader(DATA, batch_size=SIZE), True),
        (DataLoader(DATA, batch_size=SIZE, num_workers=1), False),
        (DataLoader(DATA, batch_size=None), False),
        (DataLoader(Stream(), batch_size=2), False),
    ],
)
def test_only_what_draws_nothing_ahead_is_switched(loader: DataLoader[Any], can: bool) -> None:
    assert can_be_switched(loader) is can
