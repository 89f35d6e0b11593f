"""What memory is taken by, counted on small trainings whose parts are known."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from perftool.analysis.memory import growth
from perftool.measure import messages
from perftool.measure.launch import ProcessLaunch
from perftool.probes.fit import fit_batch
from perftool.probes.memory import resident_bytes
from perftool.probes.weights import weigh
from perftool.records import MemorySample
from perftool.training import Plan, Training
from perftool.workload import Workload

FREE = 2**40
ROWS, WIDTH = 64, 8
FLOAT = 4


def training_of(steps: int = 2, device: str = "cpu", **changes: Any) -> Training:
    """Two linear layers of 8 by 8 with bias, Adam, batches of 16 rows."""
    usual: dict[str, Any] = {
        "model": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)),
        "dataset": lambda: (torch.ones(ROWS, WIDTH), torch.zeros(ROWS, WIDTH)),
        "loss": lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
        "optimizer": lambda parameters: torch.optim.Adam(parameters),
        "batch_size": 16,
    }
    workload = Workload(**{**usual, **changes})
    training = Training(Plan(workload=workload, batch_size=workload.batch_size, device=device))
    for _ in range(steps):
        training.step(training.fetch())
    return training


def mean_output(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(rows)
    return output.mean()


LAYER = (WIDTH * WIDTH + WIDTH) * FLOAT


def test_every_part_is_counted() -> None:
    parts = weigh(training_of())
    assert (parts.parameters_bytes, parts.gradients_bytes, parts.buffers_bytes) == (2 * LAYER, 2 * LAYER, 0)
    steps = 4 * FLOAT  # Adam's counters, one per parameter
    assert parts.optimizer_bytes == 4 * LAYER + steps
    # The output of the tanh, and the difference that is squared; the input is the batch's own.
    assert parts.activations_bytes == 2 * 16 * WIDTH * FLOAT
    assert (parts.batch_bytes, parts.batch_size) == (2 * 16 * WIDTH * FLOAT, 16)
    assert (parts.reason, parts.device_allocated_bytes) == (None, None)


def test_tied_weights_views_and_buffers_are_counted_once() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
        model[1].weight = model[0].weight
        model.register_buffer("part_of_it", model[2].running_mean[:4])  # type: ignore[index]
        return model

    parts = weigh(training_of(model=tied))
    assert parts.parameters_bytes == (WIDTH * WIDTH + 4 * WIDTH) * FLOAT
    assert parts.buffers_bytes == 2 * WIDTH * FLOAT + 8  # mean, variance, and the counter of batches


def test_state_in_lists_and_sparse_gradients_are_counted() -> None:
    def table() -> nn.Module:
        return nn.EmbeddingBag(100, WIDTH, sparse=True, mode="sum")

    training = training_of(
        model=table,
        dataset=lambda: (torch.zeros(ROWS, 3, dtype=torch.long),),
        loss=lambda model, batch: model(batch[0]).square().mean(),
        optimizer=lambda parameters: torch.optim.SparseAdam(parameters),
    )
    training.optimizer.state[torch.zeros(1)] = {"history": [torch.zeros(5), (torch.zeros(7),)], "name": "text"}
    parts = weigh(training)
    assert 0 < parts.gradients_bytes < parts.parameters_bytes == 100 * WIDTH * FLOAT
    assert parts.optimizer_bytes == 2 * 100 * WIDTH * FLOAT + 12 * FLOAT


def test_what_the_users_code_refuses_has_a_reason() -> None:
    calls = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2:
            raise ValueError("no more of this")
        return mean_output(model, batch[0])

    training = training_of(loss=loss)
    parts = weigh(training)
    assert parts.activations_bytes is None
    assert "ValueError: no more of this" in (parts.reason or "")
    assert parts.parameters_bytes == 2 * LAYER
    fit = fit_batch(training, FREE)
    assert fit.largest_batch_size is None
    assert "ValueError: no more of this" in (fit.reason or "")


@pytest.mark.process
def test_a_worker_weighs_its_training_and_ends_as_ever() -> None:
    workloads = Path(__file__).parents[1] / "measure" / "workloads.py"
    spec = messages.LaunchSpec(
        launch=0, reference=f"{workloads}:rows", scenario_files=[], settings={}, device="cpu", seed=0
    )
    launch = ProcessLaunch(spec, {})
    try:
        launch.ask(messages.Start(), 60)
        parts = launch.ask(messages.Weigh(), 60)
        fit = launch.ask(messages.Fit(), 60)
        assert parts.parameters_bytes == (4 * 16 + 16 + 16 + 1) * FLOAT
        assert [one.batch_size for one in fit.points] == [4, 8, 16, 32]
        assert min(one.peak_bytes for one in fit.points) > 10**7
        assert launch.ask(messages.Finish(), 60).last_loss is not None
    finally:
        launch.close()


@pytest.mark.gpu
def test_a_device_tells_its_own_figures() -> None:
    training = training_of(device="cuda:0")
    parts = weigh(training)
    assert parts.device_allocated_bytes is not None
    assert parts.device_reserved_bytes is not None
    held = parts.parameters_bytes + parts.gradients_bytes + parts.optimizer_bytes
    assert held - 100 <= parts.device_allocated_bytes <= parts.device_reserved_bytes  # Adam's counters are on the host
    assert parts.device_inactive_split_bytes is not None
    fit = fit_batch(training, 10**10)
    assert [one.batch_size for one in fit.points] == [8, 16, 32, 64]


@pytest.mark.parametrize(("keeps", "verdict"), [(True, "leak"), (False, "steady")])
def test_a_process_that_keeps_a_megabyte_in_a_hundred_steps_leaks(keeps: bool, verdict: str) -> None:
    kept: list[torch.Tensor] = []
    samples = []
    for steps in range(0, 2000, 20):
        held_bytes = resident_bytes(os.getpid())
        assert held_bytes is not None
        samples.append(MemorySample(steps=steps, host_bytes=held_bytes))
        for _ in range(20):
            made = torch.ones(2500)  # 10 kB
            if keeps:
                kept.append(made)
    told = growth(samples)
    assert told is not None
    assert told.verdict == verdict
