"""Trainings with what users hang on them: none of it may be lost by a setting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from perftool.workload import Workload

ROWS, BATCH, WIDTH, WORDS = 44, 4, 8, 6
INPUTS = torch.linspace(-1, 1, WIDTH * ROWS).reshape(ROWS, WIDTH).sin()
TARGETS = torch.linspace(0, 1, ROWS).reshape(ROWS, 1)
PICTURES = torch.linspace(-1, 1, ROWS * 3 * 8 * 8).reshape(ROWS, 3, 8, 8).sin()
TOKENS = torch.arange(3 * ROWS).reshape(ROWS, 3) % WORDS

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))


def squared(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def _workload(make: Make = adam, model: Callable[[], nn.Module] = plain, inputs: torch.Tensor = INPUTS) -> Workload:
    return Workload(
        model=model,
        dataset=lambda: (inputs, TARGETS),
        loss=squared,
        optimizer=make,
        batch_size=BATCH,
        shuffle=False,
    )


# ---------------------------------------------------------------------------------------------------------- optimizers


def _clipping(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """By a hook of the step, and so strong that leaving it out shows."""
    parts = list(parameters)
    optimizer = torch.optim.SGD(parts, lr=0.5)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parts, 0.05)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def _averaging(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A hook after the step that pulls the weights back, as averages of weights do."""
    parts = list(parameters)
    optimizer = adam(parts)

    def pull(*_: Any) -> None:
        with torch.no_grad():
            for part in parts:
                part.mul_(0.99)

    optimizer.register_step_post_hook(pull)
    return optimizer


def _scheduled(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A schedule that a hook of the step drives."""
    optimizer = adam(parameters)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def _in_groups(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    first, *others = list(parameters)
    groups: list[dict[str, Any]] = [{"params": [first], "lr": 0.001}, {"params": others, "weight_decay": 0.1}]
    return torch.optim.AdamW(groups, lr=0.02)


def _with_gradient_hooks(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    parts = list(parameters)
    for part in parts:
        part.register_hook(lambda gradient: gradient / 8)  # type: ignore[no-untyped-call]
    return torch.optim.SGD(parts, lr=0.5)


# -------------------------------------------------------------------------------------------------------------- models


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
    for part in model[0].parameters():
        part.requires_grad_(False)
    return model


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out_of, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.out_of.weight = self.into.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.out_of(self.into(inputs).relu()))
        return found


class Words(nn.Module):
    """An embedding with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH, sparse=True), nn.Linear(WIDTH, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.words(tokens).mean(dim=1))
        return found


class Normed(nn.Module):
    """Buffers that training changes, and a part that is to stay as in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 1)
        self.fixed = nn.BatchNorm1d(WIDTH)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.fixed.eval()
        found: torch.Tensor = self.head(self.fixed(self.norm(self.first(inputs))).relu())
        return found


class Pictures(nn.Module):
    """Convolutions over two dimensions, and a chain of modules that is long enough to be computed again in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 4, 3)
        )
        self.head = nn.Linear(4, 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(pictures).mean(dim=(2, 3)))
        return found


class Halved(nn.Sequential):
    """A sequence that does more than its modules."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) / 2  # type: ignore[no-untyped-call, no-any-return]


def _repeating() -> nn.Module:
    """One activation in several places, and a sequence with a forward of its own."""
    active = nn.Tanh()
    linear = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    tail = Halved(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1))
    return nn.Sequential(linear[0], active, linear[1], active, linear[2], active, tail)


class Block(nn.Module):
    """Attention, and where it is asked for dropout, which draws random numbers."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.mixed, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mixed(self.norm(tokens)).unsqueeze(1).chunk(3, dim=-1)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).squeeze(1)
        found: torch.Tensor = tokens + self.dropout(self.out(attended))
        return found


class Sentences(nn.Module):
    """A list of alike blocks."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.words(tokens)
        for block in self.blocks:
            found = block(found)
        return self.head(found.mean(dim=1))  # type: ignore[no-any-return]


class Last(nn.Module):
    """Of what a recurrent layer returns, the last state."""

    def forward(self, outputs: tuple[torch.Tensor, Any]) -> torch.Tensor:
        return outputs[0][:, -1]


clipping = _workload(_clipping)
recurrent = _workload(
    model=lambda: nn.Sequential(nn.GRU(WIDTH, WIDTH, 2, batch_first=True, dropout=0.5), Last(), nn.Linear(WIDTH, 1)),
    inputs=INPUTS.unsqueeze(1).repeat(1, 3, 1),
)
averaging = _workload(_averaging)
scheduled = _workload(_scheduled)
in_groups = _workload(_in_groups)
gradient_hooks = _workload(_with_gradient_hooks)
frozen = _workload(model=_frozen)
tied = _workload(model=Tied)
sparse = _workload(lambda parameters: torch.optim.SGD(parameters, lr=0.2), Words, TOKENS)
repeating = _workload(model=_repeating)
pictures = _workload(lambda parameters: torch.optim.Adam(parameters, lr=0.002), Pictures, PICTURES)
sentences = _workload(model=Sentences, inputs=TOKENS)
forgetful = _workload(model=lambda: Sentences(dropout=0.2), inputs=TOKENS)
summed = replace(pictures, loss=lambda model, batch: squared(model, batch) * len(batch[0]))
normed = _workload(lambda parameters: torch.optim.Adam(parameters, lr=0.002), Normed)
