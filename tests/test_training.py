"""The reference loop: feeds, batches, optimizers."""

from __future__ import annotations

import math
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from perftool.plan import WARM_CALLS, Looped
from perftool.training import (
    Counted,
    EpochOrder,
    Plan,
    SettingError,
    Training,
    backward_and_step,
    configure,
    copied,
    draws,
    leaves_of,
    map_tensors,
    options_of,
    run_proof,
    tensors_of,
)
from perftool.words import BARE_STEP, FETCH, STEP, Engaged, Proving
from perftool.workload import Batch, Workload, WorkloadError

ROWS = torch.arange(10, dtype=torch.float32).reshape(10, 1)


def workload(**changes: Any) -> Workload:
    usual: dict[str, Any] = {
        "model": lambda: nn.Linear(1, 1),
        "dataset": lambda: (ROWS, ROWS),
        "loss": lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        "batch_size": 4,
    }
    return Workload(**{**usual, **changes})


def plan(**changes: Any) -> Plan:
    made = workload(**changes)
    return Plan(workload=made, batch_size=made.batch_size)


def rows_of(training: Training, count: int) -> list[list[float]]:
    return [training.fetch()[0].flatten().tolist() for _ in range(count)]


def test_epochs_follow_each_other_each_in_its_own_order() -> None:
    training = Training(plan())
    sizes = [len(rows) for rows in rows_of(training, 6)]
    assert sizes == [4, 4, 2, 4, 4, 2]
    epochs = rows_of(Training(plan()), 6)
    first, second = (list(chain(*epochs[half : half + 3])) for half in (0, 3))
    assert sorted(first) == sorted(second) == ROWS.flatten().tolist()
    assert first != second


def test_the_seed_decides_order_and_weights() -> None:
    one, same, other = (Training(replace(plan(), seed=seed)) for seed in (1, 1, 2))
    assert rows_of(one, 3) == rows_of(same, 3) != rows_of(other, 3)
    assert torch.equal(one.module.weight, same.module.weight)  # type: ignore[arg-type]
    assert not torch.equal(one.module.weight, other.module.weight)  # type: ignore[arg-type]


def test_without_shuffling_the_rows_come_as_they_are() -> None:
    assert list(chain(*rows_of(Training(plan(shuffle=False)), 3))) == ROWS.flatten().tolist()


def test_a_ragged_last_batch_is_dropped_on_request() -> None:
    assert [len(rows) for rows in rows_of(Training(plan(drop_last=True)), 4)] == [4, 4, 4, 4]


def test_whole_tensors_are_fed_without_a_loader() -> None:
    training = Training(plan(batch_size=None))
    assert training.fetch()[0] is training.fetch()[0]
    assert len(training.fetch()[0]) == 10


def test_an_iterable_dataset_is_begun_again() -> None:
    class Stream(IterableDataset[torch.Tensor]):
        def __iter__(self) -> Iterator[torch.Tensor]:
            return iter(torch.ones(6, 1))

    training = Training(plan(dataset=Stream, loss=lambda model, batch: model(batch).mean()))
    assert [len(training.fetch()) for _ in range(4)] == [4, 2, 4, 2]


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (lambda: DataLoader(TensorDataset(ROWS)), "return its dataset"),
        (lambda: (np.ones((3, 1)), np.ones((3, 1))), "tuple with a ndarray.*torch.from_numpy"),
        (lambda: (ROWS, "labels"), "tuple with a str: it must hold tensors only$"),
    ],
)
def test_a_dataset_that_cannot_be_fed_says_what_to_return(dataset: Any, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        Training(plan(dataset=dataset))


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": lambda: (torch.ones(3, 1),), "drop_last": True},
        {"dataset": lambda: (torch.ones(0, 1),)},
        {"dataset": lambda: [torch.ones(1)], "batch_size": None},
    ],
)
def test_a_dataset_without_batches_is_said_to_have_none(changes: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError, match=r"no batch|must return a tuple of tensors"):
        Training(plan(**changes)).fetch()


def test_training_lowers_the_loss() -> None:
    training = Training(plan(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01)))
    losses = [training.step(training.fetch()).item() for _ in range(200)]
    assert losses[-1] < losses[0] / 10


def test_parts_of_a_plan_wrap_in_the_order_given() -> None:
    seen: list[str] = []

    def noting(name: str) -> Any:
        def wrap(loss: Any) -> Any:
            def noted(model: nn.Module, batch: Any) -> torch.Tensor:
                seen.append(name)
                result: torch.Tensor = loss(model, batch)
                return result

            return noted

        return wrap

    training = Training(replace(plan(), loss=(noting("inner"), noting("outer"))))
    training.step(training.fetch())
    assert seen == ["outer", "inner"]


def test_what_wraps_a_step_is_left_out_of_the_bare_one() -> None:
    called: list[str] = []

    def around(training: Looped, step: Any) -> Any:
        def noted(batch: Batch) -> torch.Tensor:
            called.append("wrapped")
            loss: torch.Tensor = step(batch)
            return loss

        return noted

    training = Training(replace(plan(), step=(around,)))
    training.step(training.fetch())
    assert called == ["wrapped"]
    assert math.isfinite(training.bare_step().item())
    assert called == ["wrapped"]


def test_several_steps_in_one_call_get_so_many_batches() -> None:
    def one_by_one(training: Looped, step: Any) -> Any:
        return lambda batches: torch.stack([step(batch) for batch in batches])

    single, grouped = Training(plan()), Training(replace(plan(), steps_per_call=3, step=(one_by_one,)))
    assert grouped.steps_per_call == 3
    losses = [single.step(single.fetch()).item() for _ in range(7)]
    assert grouped.step(grouped.fetch()).tolist() + grouped.step(grouped.fetch()).tolist() == losses[:6]
    assert grouped.bare_step().item() == losses[6]


def test_what_comes_after_the_warm_up_is_done_once() -> None:
    done: list[int] = []
    calls = 0

    def counting(_: Looped, step: Any) -> Any:
        def counted(batch: Batch) -> Any:
            nonlocal calls
            calls += 1
            return step(batch)

        return counted

    training = Training(replace(plan(), step=(counting,), warmed_up=(lambda: done.append(calls),)))
    step = training.step  # as a loop holds it
    for _ in range(WARM_CALLS + 2):
        step(training.fetch())
    training.bare_step()
    assert (done, calls) == ([WARM_CALLS], WARM_CALLS + 2)


# ------------------------------------------------------------------------------------------------------------- proofs


def test_a_proof_sees_happen_what_it_asks_for_and_steps_take_the_batch_that_it_fetched() -> None:
    stepped: list[Any] = []

    def noting(_: Looped, step: Any) -> Any:
        def noted(batch: Batch) -> Any:
            stepped.append(batch)
            return step(batch)

        return noted

    def proof() -> Proving:
        batch = yield FETCH
        assert stepped == []
        yield STEP
        assert stepped == [batch]
        nothing = yield BARE_STEP
        assert (nothing, len(stepped)) == (None, 1)
        yield STEP
        return Engaged(ok=len(stepped) == 2, evidence="all of it")

    training = Training(replace(plan(), step=(noting,)))
    assert run_proof(training, proof()) == Engaged(ok=True, evidence="all of it")
    at_once = Engaged(ok=False, evidence="nothing to see")
    assert run_proof(training, at_once) is at_once


def test_what_a_proof_has_opened_is_closed_when_the_step_it_asked_for_fails() -> None:
    closed: list[bool] = []

    def fail(model: nn.Module, batch: Batch) -> torch.Tensor:
        raise RuntimeError("in the loss")

    def proof() -> Proving:
        try:
            yield STEP
        finally:
            closed.append(True)
        raise AssertionError("a failed step is not resumed after")

    with pytest.raises(RuntimeError, match="in the loss"):
        run_proof(Training(plan(loss=fail)), proof())
    assert closed == [True]


# --------------------------------------------------------------------------------------------------------- optimizers


def test_an_optimizer_that_wants_a_closure_is_refused_with_the_remedy() -> None:
    with pytest.raises(WorkloadError, match=r"LBFGS .* such as Adam or SGD"):
        Training(plan(optimizer=torch.optim.LBFGS))


class MyAdam(torch.optim.Adam):
    """A user's own class, whose constructor takes no further options."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.01)


@pytest.mark.parametrize("option", ["fused", "foreach"])
def test_an_option_set_later_is_the_same_as_in_the_constructor(option: str) -> None:
    def losses(make: Any, options: dict[str, Any]) -> list[float]:
        training = Training(replace(plan(optimizer=make), optimizer=options))
        return [training.step(training.fetch()).item() for _ in range(20)]

    option_on: Any = {option: True}
    by_constructor = losses(lambda parameters: torch.optim.Adam(parameters, lr=0.01, **option_on), {})
    assert losses(MyAdam, {option: True}) == by_constructor


def test_an_option_that_the_optimizer_has_not_is_refused_unless_it_is_to_be_off() -> None:
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.ones(1))])
    with pytest.raises(SettingError, match="LBFGS has no option 'fused'"):
        configure(optimizer, {"fused": True})
    configure(optimizer, {"fused": False})


def test_a_scaler_is_told_which_kernel_takes_its_scale() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    configure(optimizer, {"foreach": False, "fused": False})
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()  # type: ignore[no-untyped-call]
    scaler.step(optimizer)
    assert not parameter.equal(torch.ones(2))


def test_counts_of_steps_from_a_checkpoint_go_where_fused_kernels_take_them() -> None:
    parameter = nn.Parameter(torch.ones(2, device="meta"))
    optimizer = torch.optim.Adam([parameter])
    optimizer.state[parameter] = {"step": torch.tensor(3.0)}
    configure(optimizer, {"fused": True})
    assert optimizer.state[parameter]["step"].device.type == "meta"


def test_options_that_are_no_longer_set_are_the_optimizers_own() -> None:
    groups: list[dict[str, Any]] = [
        {"params": [nn.Parameter(torch.ones(2))], "foreach": True},
        {"params": [nn.Parameter(torch.ones(2))]},
    ]
    optimizer = torch.optim.Adam(groups)
    own = options_of(optimizer, ["foreach", "fused", "no such option"])
    configure(optimizer, {"foreach": False, "fused": True}, own)
    assert [(group["foreach"], group["fused"]) for group in optimizer.param_groups] == [(False, True)] * 2
    configure(optimizer, {}, own)
    assert [(group["foreach"], group["fused"]) for group in optimizer.param_groups] == [(True, None), (None, None)]
    assert (optimizer.defaults["foreach"], optimizer.defaults["fused"]) == (None, None)
    assert not optimizer._step_supports_amp_scaling


def test_the_plain_update_is_backward_and_one_step() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    backward_and_step(weight.square(), torch.optim.SGD([weight], lr=0.25))
    assert weight.item() == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------------------ batches

Pair = namedtuple("Pair", ["inputs", "targets"])


def test_every_tensor_of_a_nested_batch_is_changed() -> None:
    batch = {"a": torch.ones(3, 2), "b": [Pair(torch.ones(3), "text"), (torch.zeros(1), 7)]}
    doubled = map_tensors(lambda tensor: 2 * tensor, batch)
    assert doubled["b"][0].inputs.tolist() == [2, 2, 2]
    assert doubled["b"][0].targets == "text"
    assert doubled["b"][1][1] == 7
    assert isinstance(doubled["b"][0], Pair)
    assert [tuple(part.shape) for part in tensors_of(batch)] == [(3, 2), (3,), (1,)]


class Encoding(UserDict[str, Any]):
    """A mapping that moves itself, as tokenisers return it."""

    def to(self, device: torch.device) -> Encoding:
        return Encoding({key: part.to(device) for key, part in self.items()})


class Graph:
    """No container, and moves itself."""

    def __init__(self, nodes: torch.Tensor) -> None:
        self.nodes = nodes

    def to(self, device: torch.device) -> Graph:
        return Graph(self.nodes.to(device))


def test_a_batch_is_copied_with_its_types_and_what_can_moves_itself() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    batch = [packed, Encoding(ids=torch.ones(2)), Graph(torch.ones(2)), OrderedDict(a=torch.ones(1)), "text"]
    moved: Batch = copied(batch, torch.device("meta"), non_blocking=False)
    assert isinstance(moved[0], PackedSequence)
    assert moved[0].data.is_meta
    assert not moved[0].batch_sizes.is_meta  # where torch wants it
    assert isinstance(moved[1], Encoding)
    assert moved[1]["ids"].is_meta
    assert moved[2].nodes.is_meta
    assert isinstance(moved[3], OrderedDict)
    assert moved[3]["a"].is_meta
    assert moved[4] == "text"
    assert not batch[3]["a"].is_meta  # type: ignore[index]


def test_leaves_are_all_that_is_no_container() -> None:
    assert leaves_of({"a": (1, "text"), "b": [Pair(2, None)]}) == [1, "text", 2, None]


@dataclass(frozen=True)
class Rows:
    """A batch in a container of the user's own."""

    inputs: torch.Tensor
    name: str = "text"
    parts: tuple[torch.Tensor, ...] = ()


def test_the_tensors_of_a_dataclass_are_moved_and_the_batch_that_was_handed_over_stays() -> None:
    batch = Rows(torch.ones(3), parts=(torch.ones(2),))
    moved = copied(batch, torch.device("meta"), non_blocking=False)
    assert isinstance(moved, Rows)
    assert (moved.inputs.is_meta, moved.parts[0].is_meta, moved.name) == (True, True, "text")
    assert not batch.inputs.is_meta
    assert len(tensors_of(batch)) == 2


def test_the_tensors_of_an_attrs_class_are_moved() -> None:
    attrs = pytest.importorskip("attrs")
    kind = attrs.make_class("Kind", ["inputs", "count"], frozen=True)
    moved = copied(kind(torch.ones(3), 7), torch.device("meta"), non_blocking=False)
    assert (moved.inputs.is_meta, moved.count) == (True, 7)


ODD_BATCHES = {
    "a scalar first": lambda rows: {"scale": torch.tensor(1.0), "rows": torch.stack(rows)},
    "time-major": lambda rows: torch.stack(rows, dim=1),
    "ragged": lambda rows: torch.cat([row.repeat(index + 1) for index, row in enumerate(rows)]),
    "dataclass": lambda rows: Rows(torch.stack(rows)),
}


@pytest.mark.parametrize("odd", ODD_BATCHES)
def test_samples_are_what_the_loader_drew_whatever_a_batch_looks_like(odd: str) -> None:
    class Dataset(torch.utils.data.Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.full((3,), float(index))

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return next(model.parameters()).square().mean()

    for drops, expected in ((False, [8, 8, 4, 8, 8, 4]), (True, [8, 8, 8])):
        training = Training(
            plan(dataset=Dataset, batch_size=8, collate_fn=ODD_BATCHES[odd], drop_last=drops, loss=loss)
        )
        drawn = []
        for _ in expected:
            training.step(training.fetch())
            drawn.append(training.drawn)
        assert drawn == expected


def test_samples_of_several_batches_are_those_of_all_and_whole_tensors_are_one_batch() -> None:
    rows = (torch.ones(5, 2),)
    assert list(islice(draws(plan(batch_size=None), rows), 2)) == [5, 5]
    counted = Counted(iter("abcd"), draws(plan(batch_size=2), rows))
    assert [(next(counted), counted.samples) for _ in range(4)] == [("a", 2), ("b", 4), ("c", 5), ("d", 7)]


@given(st.integers(1, 50), st.integers(0, 5), st.booleans())
@settings(deadline=None, derandomize=True, max_examples=40)
def test_an_epoch_has_every_row_once(rows: int, seed: int, shuffle: bool) -> None:
    order = EpochOrder(rows, shuffle=shuffle, seed=seed)
    for _ in range(2):
        assert sorted(order) == list(range(rows))
    assert len(order) == rows
    assert list(islice(EpochOrder(rows, shuffle=shuffle, seed=seed), rows)) == list(
        EpochOrder(rows, shuffle=shuffle, seed=seed).permutation()
    )
