"""The reference training, and its walk-through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perftool.workload import Workload
from scenarios import reference


def test_labels_are_of_the_circle_and_no_two_calls_differ() -> None:
    inputs, targets = reference.points(1000, 3)
    assert (inputs.shape, targets.shape) == ((1000, 3), (1000, 1))
    assert inputs.abs().max() <= 1
    assert torch.equal(targets[:, 0] == 1, inputs[:, 0] ** 2 + inputs[:, 1] ** 2 < 1)
    assert torch.equal(inputs, reference.points(1000, 3)[0])


@pytest.mark.parametrize(
    ("workload", "widths", "rows", "batch_size", "lr"),
    [
        (reference.seed, (2, 4, 1), 10, None, 0.01),
        (reference.small, (256, 512, 1), 8192, 64, 0.01),
        (reference.medium, (256, 1024, 1024, 1), 65_536, 256, 0.001),
        (reference.large, (4096, 8192, 8192, 1), 32_768, 8192, 0.001),
    ],
    ids=lambda given: given.name if isinstance(given, Workload) else None,
)
def test_sizes(workload: Workload, widths: tuple[int, ...], rows: int, batch_size: int | None, lr: float) -> None:
    with torch.device("meta"):  # shapes without memory
        layers = [part for part in workload.model().modules() if isinstance(part, torch.nn.Linear)]
    assert (layers[0].in_features, *(layer.out_features for layer in layers)) == widths
    assert workload.batch_size == batch_size
    assert workload.optimizer(layers[0].parameters()).defaults["lr"] == lr
    if workload is not reference.large:
        assert len(workload.dataset()[0]) == rows


def test_the_walk_through_trains_saves_and_loads(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "scenarios.reference"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("First five points:", "Linear(in_features=2, out_features=4", "Learning Finished!"):
        assert words in done.stdout
    losses = [float(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if line.startswith("Epoch")]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert done.stdout.rstrip().endswith("the outputs are the same.")
    assert set(torch.load(tmp_path / "model.pth", weights_only=True)) == {"0.weight", "0.bias", "2.weight", "2.bias"}
