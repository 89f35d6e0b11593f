"""The work of a step against what can be reckoned by hand, and that counting leaves the training as it was."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from perftool.measure import messages
from perftool.measure.worker import Worker
from perftool.probes.work import count_work
from perftool.training import Plan, Training
from perftool.workload import Workload
from scenarios.amp import apply as autocast
from scenarios.reference import mlp

ROWS = 12


def squares(model: nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch[0]) - batch[1]).square().mean()  # type: ignore[no-any-return]


def stepped(
    module: Callable[[], nn.Module],
    *,
    inputs: tuple[int, ...] = (2,),
    outputs: int = 1,
    batch_size: int = 4,
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    **plan: Any,
) -> Training:
    """A training of one step on random rows."""
    workload = Workload(
        model=module,
        dataset=lambda: (torch.randn(ROWS, *inputs), torch.randn(ROWS, outputs)),
        loss=squares,
        optimizer=optimizer,
        batch_size=batch_size,
    )
    training = Training(Plan(workload=workload, batch_size=batch_size, **plan))
    training.step(training.fetch())
    return training


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(1, ROWS))
def test_flops_of_an_mlp(widths: list[int], batch: int) -> None:
    work = count_work(stepped(lambda: mlp(*widths), inputs=(widths[0],), outputs=widths[-1], batch_size=batch))
    forward = sum(2 * batch * before * after for before, after in pairwise(widths))
    # Backward: the gradients of weights and of inputs, but of the data there is none.
    assert work.flops == 3 * forward - 2 * batch * widths[0] * widths[1]
    assert work.matmul_flops == work.flops
    assert work.flops_by_dtype == {"float32": work.flops}
    assert work.samples == batch


def test_bytes_of_a_small_net_by_hand() -> None:
    adam = lambda parameters: torch.optim.Adam(parameters, lr=0.01)  # noqa: E731
    work = count_work(stepped(lambda: mlp(2, 3, 1), optimizer=adam))
    parameters, steps = 4 * (2 * 3 + 3 + 3 * 1 + 1), 4 * 4  # bytes; Adam counts its steps for each of four tensors
    # The second matrix is saved for the gradient of the hidden layer. No gradient of the data: not so the first.
    assert work.parameter_bytes == parameters + 4 * 3 + 2 * parameters
    assert work.gradient_bytes == 2 * parameters
    assert work.optimizer_state_bytes == 2 * (2 * parameters + steps)
    # The output of ReLU, which two operations save, and the difference that is squared.
    activations = 4 * (4 * 3 + 4 * 1)
    assert work.activation_bytes == 2 * activations
    inputs, targets = 4 * 4 * 2, 4 * 4
    assert work.batch_bytes == 2 * inputs + targets  # the inputs once more for the first gradient
    assert work.working_set_bytes == 4 * parameters + steps + activations + inputs + targets


def test_frozen_parameters_have_no_gradients_and_no_update() -> None:
    def half_frozen() -> nn.Module:
        net = mlp(2, 3, 1)
        net[0].requires_grad_(False)
        return net

    work = count_work(stepped(half_frozen))
    trained = 4 * (3 + 1)
    assert work.gradient_bytes == 2 * trained
    assert work.parameter_bytes == 4 * (2 * 3 + 3) + trained + 2 * trained
    assert work.optimizer_state_bytes == 0


@pytest.mark.parametrize("sparse", [False, True])
def test_of_a_table_only_what_is_touched_counts(sparse: bool) -> None:
    rows, width, batch = 1000, 4, 3
    workload = Workload(
        model=lambda: nn.Embedding(rows, width, sparse=sparse),
        dataset=lambda: (torch.arange(ROWS),),
        loss=lambda model, batch: model(batch[0]).square().mean(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        batch_size=batch,
    )
    training = Training(Plan(workload=workload, batch_size=batch))
    training.step(training.fetch())
    touched = 4 * width * (batch if sparse else rows)
    work = count_work(training)
    assert work.parameter_bytes == 2 * touched
    assert work.gradient_bytes == 2 * touched


def test_under_autocast_the_same_work_is_done_in_its_dtype() -> None:
    plain = stepped(lambda: mlp(16, 32, 32, 1), inputs=(16,))
    changed = autocast(plain.plan, "bf16")
    mixed = stepped(lambda: mlp(16, 32, 32, 1), inputs=(16,), loss=changed.loss)
    full, short = count_work(plain), count_work(mixed)
    assert short.flops == full.flops
    assert short.flops_by_dtype == {"bfloat16": full.flops}


def test_convolutions_are_counted_apart_from_matmuls() -> None:
    def small() -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 6, 1))

    work = count_work(stepped(small, inputs=(2, 8)))
    matmul = 3 * 2 * 4 * (3 * 6)  # forward and both gradients
    assert work.matmul_flops == matmul
    assert work.flops_by_dtype == {"float32": work.flops}
    assert work.convolution_flops_by_dtype == {"float32": work.flops - matmul}
    assert not count_work(stepped(lambda: mlp(2, 3, 1))).convolution_flops_by_dtype


def test_attention_and_recurrent_layers_count_whatever_kernel_does_them() -> None:
    length, width = 5, 8

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            rows = (self.scale * rows).unsqueeze(1)
            return nn.functional.scaled_dot_product_attention(rows, rows, rows).mean((1, 2, 3)).unsqueeze(1)

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(width, width, batch_first=True)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.cell(rows)[0].mean((1, 2)).unsqueeze(1)  # type: ignore[no-any-return]

    attention = count_work(stepped(Attention, inputs=(length, width)))
    products = 2 * 4 * length * length * width  # of four samples
    assert attention.flops >= (2 + 4) * products  # scores and values, and of each the gradients of both factors
    recurrent = count_work(stepped(Recurrent, inputs=(length, width)))
    forward = 4 * length * 2 * (width * 4 * width + width * 4 * width)
    assert 2 * forward < recurrent.flops <= 3 * forward


class Noisy(nn.Module):
    """Draws random numbers and changes buffers in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layers(rows)  # type: ignore[no-any-return]


def test_counting_leaves_the_training_as_it_was() -> None:
    training = stepped(Noisy)
    gradients = [part.grad for part in training.module.parameters()]
    values = [None if one is None else one.clone() for one in gradients]
    state = {name: value.clone() for name, value in training.module.state_dict().items()}
    random = torch.random.get_rng_state()
    count_work(training)
    assert all(part.grad is one for part, one in zip(training.module.parameters(), gradients, strict=True))
    for one, value in zip(gradients, values, strict=True):
        torch.testing.assert_close(one, value, rtol=0, atol=0)
    for name, value in training.module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_loss_that_fails_leaves_it_as_it_was_too() -> None:
    training = stepped(Noisy)
    gradients = [part.grad for part in training.module.parameters()]

    def broken(model: nn.Module, batch: Any) -> torch.Tensor:
        raise ValueError("no loss today")

    training.loss = broken
    with pytest.raises(ValueError, match="no loss today"):
        count_work(training)
    assert all(part.grad is one for part, one in zip(training.module.parameters(), gradients, strict=True))


def compiled_by_scenario() -> tuple[Training, list[int]]:
    graphs: list[int] = []
    training = stepped(lambda: mlp(2, 3, 1), model=(lambda model: torch.compile(model, backend=_noting(graphs)),))
    return training, graphs


def compiled_by_user() -> tuple[Training, list[int]]:
    graphs: list[int] = []
    return stepped(lambda: torch.compile(mlp(2, 3, 1), backend=_noting(graphs))), graphs  # type: ignore[arg-type, return-value]


def _noting(graphs: list[int]) -> Callable[[Any, Any], Any]:
    def backend(graph: Any, _: Any) -> Any:
        def run(*arguments: Any) -> Any:
            graphs.append(len(arguments))
            return graph.forward(*arguments)

        return run

    return backend


@pytest.mark.parametrize("compiled", [compiled_by_scenario, compiled_by_user])
def test_what_was_compiled_stays_compiled(compiled: Callable[[], tuple[Training, list[int]]]) -> None:
    torch._dynamo.reset()
    training, graphs = compiled()
    assert len(graphs) == 1
    work = count_work(training)
    assert work.flops == 3 * 2 * 4 * (2 * 3 + 3 * 1) - 2 * 4 * 2 * 3
    assert len(graphs) == 1  # counted eagerly
    training.step(training.fetch())
    assert len(graphs) == 2
    training.step([part[:3] for part in training.fetch()])  # another shape has to be compiled anew
    assert len(graphs) == 3
    torch._dynamo.reset()


@pytest.mark.gpu
def test_a_gpu_counts_the_same_flops() -> None:
    here = count_work(stepped(lambda: mlp(16, 32, 1), inputs=(16,)))
    there = count_work(stepped(lambda: mlp(16, 32, 1), inputs=(16,), device="cuda:0"))
    assert (there.flops, there.activation_bytes, there.batch_bytes) == (
        here.flops,
        here.activation_bytes,
        here.batch_bytes,
    )


def test_operations_that_cannot_be_counted_are_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Training) -> int:
        raise RuntimeError("no dispatch here")

    monkeypatch.setattr("perftool.probes.work.count_operations", fail)
    monkeypatch.setattr("perftool.probes.work.compiled", lambda: (0, 0))  # other tests compile in this process
    workload = Path(__file__).parents[1] / "measure" / "workloads.py"
    spec = messages.LaunchSpec(
        launch=0, reference=f"{workload}:good", scenario_files=[], settings={}, device="cpu", seed=0
    )
    worker = Worker(spec)
    worker.start()
    found = worker.count(messages.Count(variant=0, calls=2))
    assert found.operations_per_step is None
    assert "its operations cannot be counted (RuntimeError: no dispatch here)" in str(found.reason)
    assert found.flops_per_step
