"""A training whose steps are disturbed in known ways at known calls; what was done, and when, goes to a file.

The calls of the loss count the steps: a step's data are fetched before its loss, in this process or ahead of it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch
from torch import nn
from torch.utils.data import Dataset

from perftool.records import COMPILATION, FAULTS, GARBAGE, LOADER, RUN_QUEUE, UNKNOWN
from perftool.workload import Batch, Workload

LOG = "PERFTOOL_BENCH_LOG"
ROWS, FEATURES, BATCH = 2048, 128, 32
DISTURBED_EVERY = 12  # steps, on average
UNDISTURBED = 150  # calls at first
LOSS_S = 0.02  # that a disturbance takes, or somewhat more
FAULTED_BYTES = 48 * 2**20  # glibc maps so large a block anew each time
CYCLES = 60_000
TURN_NS = 200_000  # without the core, that are no interrupt


class Disturbances:
    """Decides what happens at which call, and writes it down."""

    def __init__(self, kinds: list[str], competitor: Callable[[], None] | None = None) -> None:
        self.kinds, self.competitor = kinds, competitor
        self.random = random.Random(7)
        self.call = 0
        self.planned = self._drawn()
        self.log = Path(os.environ[LOG]).open("a", buffering=1)  # noqa: SIM115
        self.compiled = torch.compile(_several, backend="eager", dynamic=False)
        self.compiled(torch.ones(4))
        self.shape = 4

    def _drawn(self) -> str | None:
        chance = self.random.random() < 1 / DISTURBED_EVERY and self.call >= UNDISTURBED
        return self.random.choice(self.kinds) if chance else None

    def while_loading(self) -> None:
        if self.planned == LOADER:
            self._do(lambda: time.sleep(LOSS_S))

    def in_loss(self) -> None:
        acts: dict[str, Callable[[], None]] = {
            GARBAGE: collect_cycles,
            FAULTS: touch_new_memory,
            COMPILATION: self._recompile,
            UNKNOWN: lambda: time.sleep(LOSS_S),
        }
        if self.planned in acts:
            self._do(acts[self.planned])
        if self.planned == RUN_QUEUE and self.competitor is not None:
            self.competitor()
        self.call += 1
        self.planned = self._drawn()

    def _do(self, act: Callable[[], None]) -> None:
        kind, self.planned = self.planned, None
        began_ns = time.monotonic_ns()
        act()
        write_event(self.log, self.call, kind, began_ns)

    def _recompile(self) -> None:
        self.shape += 1
        self.compiled(torch.ones(self.shape))


def write_event(log: IO[str], call: int, kind: str | None, began_ns: int, ended_ns: int | None = None) -> None:
    """One line: the call, or -1 where only the time is known, what it was, and from when to when (now)."""
    log.write(json.dumps([call, kind, began_ns, ended_ns or time.monotonic_ns()]) + "\n")


def _spin() -> list[tuple[int, int]]:
    """Be at work for a while, and tell from when to when it had the core: a jump of the time is another's turn."""
    began_ns = last_ns = time.monotonic_ns()
    end_ns = began_ns + int(4 * LOSS_S * 1e9)
    turns = []
    while last_ns < end_ns:
        now_ns = time.monotonic_ns()
        if now_ns - last_ns > TURN_NS:
            turns.append((began_ns, last_ns))
            began_ns = now_ns
        last_ns = now_ns
    return [*turns, (began_ns, last_ns)]


def _several(values: torch.Tensor) -> torch.Tensor:
    """Enough operations that tracing them takes tens of milliseconds."""
    for _ in range(60):
        values = torch.sin(values) + torch.cos(values) * 0.5
    return values


def collect_cycles() -> None:
    """Make cyclic garbage, and have it collected as the collector would do by itself some time."""
    gc.disable()
    for _ in range(CYCLES):
        ring: list[object] = []
        ring.append(ring)
    gc.enable()
    gc.collect()


def touch_new_memory() -> None:
    """Have the kernel map and clear pages, and take them back, as a tensor of this size does that lives for a step."""
    torch.empty(FAULTED_BYTES, dtype=torch.uint8).fill_(1)


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Rows in memory; the first of a batch may be slow to come."""

    def __init__(self, disturb: Callable[[], None]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(ROWS, FEATURES, generator=generator)
        self.y = torch.randn(ROWS, 1, generator=generator)
        self.disturb = disturb

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.disturb()
        return self.x[row], self.y[row]


def _workload(disturbances: Disturbances | None) -> Workload:
    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        if disturbances is not None:
            disturbances.in_loss()
        x, y = batch
        return nn.functional.mse_loss(model(x), y)

    return Workload(
        model=lambda: nn.Sequential(
            nn.Linear(FEATURES, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)
        ),
        dataset=lambda: Rows(disturbances.while_loading if disturbances else lambda: None),
        loss=loss,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.001),
        batch_size=BATCH,
    )


def mixed() -> Workload:
    """Everything that can be disturbed in one process, and one that nothing lists."""
    competitor = Competitor()
    return _workload(Disturbances([GARBAGE, LOADER, FAULTS, RUN_QUEUE, COMPILATION, UNKNOWN], competitor.start))


def with_workers() -> Workload:
    """With loader workers that start anew at each epoch, by their scenario; the rows are fetched elsewhere."""
    torch._dynamo.config.recompile_limit = 10_000
    return _workload(Disturbances([GARBAGE, FAULTS, UNKNOWN]))


class Competitor:
    """A process on the same core, at work for a while whenever it is told to."""

    def __init__(self) -> None:
        self.told, tell = os.pipe()
        self.tell = tell
        cores = os.sched_getaffinity(0)
        if os.fork() == 0:
            os.close(tell)
            os.sched_setaffinity(0, {min(cores)})
            log = Path(os.environ[LOG]).open("a", buffering=1)  # noqa: SIM115
            while os.read(self.told, 1):
                for began_ns, ended_ns in _spin():
                    write_event(log, -1, RUN_QUEUE, began_ns, ended_ns)
            os._exit(0)
        os.sched_setaffinity(0, {min(cores)})

    def start(self) -> None:
        os.write(self.tell, b"x")


if sys.platform == "linux":
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 10_000
    torch._dynamo.config.accumulated_recompile_limit = 100_000
