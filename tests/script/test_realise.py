"""What of a Plan comes over the models and optimizers of a script, and that neither is kept for it."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from perftool.plan import Plan
from perftool.scenario import discover, plan_of
from perftool.script import hooks
from perftool.script import realise as module
from perftool.script.loop import Loop
from perftool.script.realise import Realised

pytestmark = pytest.mark.usefixtures("put_back")


@pytest.fixture
def realised(monkeypatch: pytest.MonkeyPatch) -> Iterator[Realised]:
    """Reduced precision over models, which are looked for until a few calls have shown none."""
    monkeypatch.setattr(module, "CALM_CALLS", 4)
    plan = plan_of(None, {"amp": "bf16"}, discover(), device="cpu", seed=0)
    found = Realised(plan, Loop(None))
    hooks.around_optimizers_made(found)
    found.follow_calls(until_calm=True)
    yield found
    found.stop_following()


class Training:
    """A model, and the types that it computes in."""

    def __init__(self) -> None:
        self.model = nn.Linear(2, 2)
        self.types: list[torch.dtype] = []
        self.model.register_forward_hook(lambda _module, _inputs, output: self.types.append(output.dtype))

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.model(torch.ones(1, 2)).sum().backward()


def test_the_models_of_later_optimizers_are_found_too(realised: Realised) -> None:
    for _ in range(3):
        fold = Training()
        torch.optim.SGD(fold.model.parameters())
        fold.train(10)
        assert set(fold.types) == {torch.bfloat16}
        assert realised._restore_calls is None, "nothing is hooked any more"


def test_a_model_is_found_when_its_optimizer_steps_first(realised: Realised) -> None:
    first, second = Training(), Training()
    optimizers = [torch.optim.SGD(one.model.parameters()) for one in (first, second)]
    for one, optimizer in zip((first, second), optimizers, strict=True):
        for _ in range(10):
            one.train(1)
            realised.configure(optimizer)
    assert set(second.types[1:]) == {torch.bfloat16}


class Checkpointed(nn.Module):
    """Its blocks are computed a second time, within the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.block, self.reentrant = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)), reentrant

    def forward(self, x: torch.Tensor) -> Any:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_backward_pass_calls_is_no_model(realised: Realised, *, reentrant: bool) -> None:
    model = Checkpointed(reentrant=reentrant)
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
    assert realised.roots == [model]
    assert len(realised.calls) == 1


class OwnState(nn.Linear):
    """What is saved of it is its own to say."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__


@pytest.mark.parametrize("kind", [nn.Linear, OwnState])
def test_a_model_is_saved_and_copied_as_it_is(realised: Realised, kind: type[nn.Linear]) -> None:
    model = kind(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    assert realised.roots == [model]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [torch.load(file, weights_only=False), copy.deepcopy(model)]
    realised.stop_following()
    for one in copies:
        nn.init.zeros_(one.weight)
        nn.init.zeros_(one.bias)
        assert one(torch.ones(1, 2)).eq(0).all(), "its own call, and not that of the model"
        assert one.__dict__.get("_compiled_call_impl") is None


def test_nothing_is_kept_of_what_the_script_gives_up(realised: Realised) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    realised.configure(optimizer)
    realised.loop.updated(optimizer)
    kept = weakref.ref(model), weakref.ref(optimizer)
    assert (realised.roots, realised.loop.optimizers) == ([model], [optimizer])
    gc.disable()  # as soon as nobody has them, and not some time
    try:
        del model, optimizer
        assert [one() for one in kept] == [None, None]
    finally:
        gc.enable()
    assert (realised.roots, realised.loop.optimizers) == ([], [])


def test_a_plan_of_nothing_lays_nothing() -> None:
    realised = Realised(Plan(workload=None), Loop(None))
    optimizer = torch.optim.SGD([torch.ones(1)])
    realised.configure(optimizer)
    assert not realised.laid
