"""The compiled step trains as the eager one does, updates the module and the optimizer in place, and says what it
cannot do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace as dataclass_replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from perftool.analysis.handover import script
from perftool.measure.facts import describe_workload
from perftool.scenario import Context, clashes, discover, plan_of
from perftool.training import SettingError, Training
from perftool.workload import Loaded, Workload, load, load_workload
from tests.measure.fakes import MACHINE
from tests.proofs import proved

pytestmark = pytest.mark.usefixtures("fresh_compiler")

SCENARIOS = discover()
SCENARIO = SCENARIOS["compiled_step"]
STEPS = 24
Make = Callable[[nn.Module], torch.optim.Optimizer]


class Model(nn.Module):
    """Two layers, and a parameter that the loss does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.second(torch.tanh(self.first(rows)))
        return output


def workload(make: Callable[[Any], torch.optim.Optimizer], *, rows: int = 64, **changes: Any) -> Workload:
    usual: dict[str, Any] = {
        "model": Model,
        "dataset": lambda: (torch.linspace(-1, 1, 4 * rows).reshape(rows, 4), torch.linspace(0, 1, rows)[:, None]),
        "loss": lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        "optimizer": make,
        "batch_size": 8,
    }
    return Workload(**{**usual, **changes})


def training_of(of: Workload, value: str, *, device: str = "cpu", **settings: str) -> Training:
    return Training(plan_of(of, {"compiled_step": value, **settings}, SCENARIOS, device=device, seed=0))


def losses(training: Training, steps: int) -> list[float]:
    found: list[float] = []
    while len(found) < steps:
        found += training.step(training.fetch()).reshape(-1).tolist()
    return found


def two_groups(parameters: Any) -> torch.optim.Optimizer:
    first, *others = parameters
    groups = [{"params": others, "lr": 0.02, "weight_decay": 0.1}, {"params": [first], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True, weight_decay=0.01, fused=True),
        two_groups,
        lambda parameters: torch.optim.SGD(parameters, lr=0.05),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    ],
    ids=["adam", "amsgrad", "adamw with two groups", "sgd", "nesterov"],
)
def test_a_compiled_step_trains_as_an_eager_one_and_can_be_followed_by_it(make: Any) -> None:
    eager, compiled = (training_of(workload(make), value) for value in ("off", "1"))
    assert losses(compiled, STEPS) == pytest.approx(losses(eager, STEPS), rel=1e-4)
    ours, theirs = compiled.optimizer.state_dict(), eager.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for key, state in theirs["state"].items():
        assert ours["state"][key].keys() == state.keys()
        for kind, tensor in state.items():
            if tensor is not None:
                torch.testing.assert_close(ours["state"][key][kind], tensor, rtol=1e-3, atol=1e-6)
    for one, other in zip(compiled.module.parameters(), eager.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    following = [compiled.bare_step().item() for _ in range(4)]
    assert following == pytest.approx(losses(eager, 4), rel=1e-3)
    assert proved(SCENARIO, compiled, "1").ok


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_ten_steps_in_one_call_train_as_ten_eager_ones_and_ragged_groups_do_not_compile_again(device: str) -> None:
    """Of 12 batches per epoch the last is short, so that some groups of ten have one and some have none."""
    from torch._dynamo.utils import counters

    of = workload(
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9), rows=92, model=lambda: nn.Linear(4, 1)
    )
    eager, compiled = (training_of(of, value, device=device) for value in ("off", "10"))
    counters.clear()
    assert losses(compiled, 60) == pytest.approx(losses(eager, 60), rel=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert proved(SCENARIO, compiled, "10").ok
    assert not proved(SCENARIO, compiled, "1").ok


def test_reduced_precision_is_compiled_in() -> None:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)

    eager = training_of(workload(adam), "off", amp="bf16")
    compiled = training_of(workload(adam), "1", amp="bf16")
    exact = losses(training_of(workload(adam), "off"), 10)
    found, wanted = losses(compiled, 10), losses(eager, 10)
    assert found == pytest.approx(wanted, rel=0.02)
    assert found != pytest.approx(exact, rel=1e-5)
    for name, value in (("amp", "bf16"), ("compiled_step", "1")):
        assert proved(SCENARIOS[name], compiled, value).ok


def test_the_proof_fails_where_no_group_has_batches_of_one_shape() -> None:
    training = training_of(workload(lambda parameters: torch.optim.SGD(parameters, lr=0.05), rows=20), "10")
    assert losses(training, 20)
    proof = proved(SCENARIO, training, "10")
    assert not proof.ok
    assert "0 compiled regions" in proof.evidence


@pytest.mark.parametrize(("name", "value"), [("Adam", "1"), ("SGD", "10")])
def test_the_code_to_paste_trains_as_the_plain_script(name: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / f"mine_{name.lower()}.py"  # scripts import it by its name
    file.write_text(
        "import torch\nfrom perftool.workload import Workload\n"
        "mine = Workload(\n"
        "    model=lambda: torch.nn.Linear(4, 1),\n"
        "    dataset=lambda: (torch.linspace(-1, 1, 256).reshape(64, 4), torch.ones(64, 1)),\n"
        "    loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),\n"
        f"    optimizer=lambda parameters: torch.optim.{name}(parameters, lr=0.05, weight_decay=0.1),\n"
        "    batch_size=8, shuffle=False,\n)\n"
    )
    reference = f"{file}:mine"
    plain = Training(plan_of(load_workload(reference), {}, SCENARIOS, device="cpu", seed=0))
    facts = Context(machine=MACHINE, workload=describe_workload(load(reference), plain, plain.fetch()))
    codes = {"compiled_step": {value: SCENARIO.code(value, facts).filled()}}
    text = script(codes, {"compiled_step": value}, workload=facts.workload, device="cpu")
    places: dict[str, Any] = {"__name__": "recommended"}
    exec(compile(text, "recommended.py", "exec"), places)
    eager = Training(plain.plan)
    found, wanted = [], losses(eager, 20)
    for loss in places["train"](40):
        found.append(loss.item())
        if len(found) == 20:  # as a scheduler does
            places["optimizer"].param_groups[0]["lr"] = eager.optimizer.param_groups[0]["lr"] = 0.01
    wanted += losses(eager, 20)
    assert found[9::10] == pytest.approx(wanted[9::10], rel=1e-4)


class Running(nn.Module):
    """A model with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layers(rows)
        return output


def branching(model: nn.Module, batch: Any) -> torch.Tensor:
    loss: torch.Tensor = (model(batch[0]) - batch[1]).square().mean()
    return loss if loss.item() > 0.1 else 2 * loss


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": Running}, "changes buffers"),
        ({"loss": branching}, "cannot be compiled as one graph"),
        ({"make": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5)}, "dampening"),
        (
            {"make": lambda parameters: torch.optim.SGD([*parameters, nn.Parameter(torch.ones(1))], lr=0.1)},
            None,  # one more that gets no gradient is left alone
        ),
        (
            {"collate_fn": lambda rows: [torch.stack([row[0] for row in rows]), torch.ones(len(rows), 1), "text"]},
            "a batch holds a str",
        ),
    ],
)
def test_what_cannot_be_compiled_says_why(changes: dict[str, Any], words: str | None) -> None:
    make = changes.get("make", lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    training = training_of(workload(make, **{name: one for name, one in changes.items() if name != "make"}), "1")
    if words is None:
        assert training.step(training.fetch()).isfinite()
        return
    before = [part.clone() for part in training.module.parameters()]
    with pytest.raises(SettingError, match=words):
        training.step(training.fetch())
    for one, other in zip(before, training.module.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_known_beforehand_is_refused() -> None:
    adam = workload(lambda parameters: torch.optim.Adam(parameters))
    plain = training_of(adam, "off")
    facts = describe_workload(Loaded(workload=adam, reference="mine.py:mine"), plain, plain.fetch())
    running = replace(facts, changes_buffers=True)
    here = Context(machine=MACHINE, workload=facts)
    assert SCENARIO.available(here) == ["off", "1", "10"]
    large = Context(machine=MACHINE, workload=replace(facts, parameter_count=10**6))
    assert SCENARIO.available(large) == ["off", "1"]
    assert SCENARIO.refusal("10", large) is None  # for whoever wants it all the same
    for context, words in (
        (Context(machine=MACHINE, workload=running), "BatchNorm"),
        (Context(machine=MACHINE, workload=replace(facts, optimizer="Mine", optimizer_step=None)), "Mine has a step"),
        (Context(machine=MACHINE, workload=replace(facts, optimizer_step="Adagrad")), "Adam, AdamW and SGD"),
        (Context(machine=MACHINE, workload=replace(facts, optimizer_options={"differentiable": True})), "backward"),
        (dataclass_replace(here, machine=replace(MACHINE, compiler=None)), r"g\+\+"),
        (dataclass_replace(here, machine=replace(MACHINE, device="cuda:0", device_capability=[9, 0])), "Triton"),
    ):
        with pytest.raises(AssertionError, match=words):
            raise AssertionError(SCENARIO.refusal("1", context))


@pytest.mark.parametrize(
    "other", [("torch_compile", "default"), ("cuda_graphs", "on"), ("amp", "fp16"), ("optimizer_kernel", "fused")]
)
def test_what_is_compiled_in_cannot_be_had_twice(other: tuple[str, str]) -> None:
    assert "compiled_step=1: " in (clashes(dict([("compiled_step", "1"), other]), SCENARIOS) or "")
    assert clashes({"compiled_step": "1", "amp": "bf16", "batch_gather": "on"}, SCENARIOS) is None


def clipping(parameters: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    parts = optimizer.param_groups[0]["params"]

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parts, 0.1)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def scheduled(parameters: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    optimizer.schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)  # type: ignore[attr-defined]
    return optimizer


def scaling_gradients(parameters: Any) -> torch.optim.Optimizer:
    parts = list(parameters)
    for part in parts:
        part.register_hook(lambda gradient: gradient / 2)
    return torch.optim.SGD(parts, lr=0.05)


def accumulating(parameters: Any) -> torch.optim.Optimizer:
    parts = list(parameters)
    parts[0].register_post_accumulate_grad_hook(lambda _: None)
    return torch.optim.SGD(parts, lr=0.05)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (clipping, "hooks are registered on the optimizer's step"),
        (scheduled, "the optimizer's step is wrapped"),
        (scaling_gradients, "hooks are registered on gradients"),
        (accumulating, "hooks are registered on gradients"),
    ],
)
def test_what_hangs_on_a_step_is_never_left_out(make: Any, words: str) -> None:
    training = training_of(workload(make), "1")
    with pytest.raises(SettingError, match=words):
        losses(training, 2)


def test_hooks_of_modules_backward_are_not_left_out_either() -> None:
    training = training_of(workload(lambda parameters: torch.optim.SGD(parameters, lr=0.05)), "1")
    training.module.register_full_backward_hook(lambda *_: None)
    with pytest.raises(SettingError, match="the backward pass of modules"):
        losses(training, 2)


def test_a_learning_rate_that_changes_on_the_way_is_not_trained_with_as_it_was() -> None:
    training = training_of(workload(lambda parameters: torch.optim.SGD(parameters, lr=0.05)), "1")
    losses(training, 3)
    before = [part.detach().clone() for part in training.module.parameters()]
    training.optimizer.param_groups[0]["lr"] = 0.01
    with pytest.raises(SettingError, match="the options of the optimizer change"):
        losses(training, 1)
    assert all(torch.equal(one, other) for one, other in zip(training.module.parameters(), before, strict=True))
