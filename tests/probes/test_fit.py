"""How large a batch would fit, by peaks that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from perftool.probes import fit as fitting
from perftool.probes.fit import fit_batch
from perftool.training import Training
from tests.probes.test_weights import FREE, WIDTH, mean_output, training_of


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sets the memory of the process: what is held, and what each sample of a batch adds to the peak."""

    def script(held_bytes: int, per_sample_bytes: int) -> None:
        seen: list[int] = []
        real = fitting._forward_and_backward

        def noted(training: Training, batch: Any) -> None:
            seen.append(len(batch[0]))
            real(training, batch)

        monkeypatch.setattr(fitting, "_forward_and_backward", noted)
        monkeypatch.setattr(fitting, "resident_bytes", lambda pid: held_bytes)
        monkeypatch.setattr(fitting, "reset_high_water", lambda pid: True)
        monkeypatch.setattr(fitting, "high_water_bytes", lambda pid: held_bytes + per_sample_bytes * seen[-1])

    return script


def test_peaks_of_several_sizes_give_the_largest(peaks: Callable[[int, int], None]) -> None:
    peaks(10**8, 10**6)
    fit = fit_batch(training_of(), 10**9)
    assert [one.batch_size for one in fit.points] == [8, 16, 32, 64]
    assert fit.largest_batch_size == pytest.approx(900, abs=1)


def test_no_size_is_tried_that_might_take_a_quarter_of_what_is_free(peaks: Callable[[int, int], None]) -> None:
    peaks(10**8, 10**6)
    fit = fit_batch(training_of(), 10**8 + 4 * 33 * 10**6)
    assert [one.batch_size for one in fit.points] == [8, 16, 32]
    assert fit.largest_batch_size == pytest.approx(132, abs=1)


def test_where_no_memory_is_free_nothing_is_tried(peaks: Callable[[int, int], None]) -> None:
    peaks(10**8, 10**6)
    fit = fit_batch(training_of(), 10**8 + 1000)
    assert fit.points == []
    assert fit.reason == "too little memory is free to try batches of other sizes safely"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"collate_fn": lambda rows: (torch.stack([row[0] for row in rows]), "text")}, "not made of tensors alone"),
        ({"collate_fn": lambda rows: (torch.ones(len(rows), WIDTH), torch.ones(3))}, "differ in their first dimension"),
        ({"collate_fn": lambda rows: (torch.ones(len(rows), WIDTH), torch.tensor(1.0))}, "not made of tensors alone"),
    ],
)
def test_batches_that_cannot_be_resized_have_a_reason(changes: dict[str, Any], said: str) -> None:
    training = training_of(loss=lambda model, batch: mean_output(model, batch[0]), **changes)
    fit = fit_batch(training, FREE)
    assert fit.largest_batch_size is None
    assert said in (fit.reason or "")


def test_a_model_that_takes_one_size_only_leaves_no_error(peaks: Callable[[int, int], None]) -> None:
    peaks(10**8, 10**6)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return mean_output(model, batch[0].reshape(16, WIDTH))

    fit = fit_batch(training_of(loss=loss), 10**9)
    assert fit.largest_batch_size is None
    assert (fit.reason or "").startswith("a batch of another size failed: RuntimeError")


def test_rows_come_again_where_a_larger_batch_needs_them() -> None:
    batch = {"x": torch.arange(3), "y": [torch.arange(6).reshape(3, 2)]}
    larger = fitting._resized(batch, 5, 3)
    assert larger["x"].tolist() == [0, 1, 2, 0, 1]
    assert larger["y"][0].shape == (5, 2)
