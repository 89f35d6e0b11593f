"""G11: what measuring costs: a block as a worker runs it, against the same steps in a bare loop of the same process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from math import exp, log

import numpy as np
import torch

from perftool.measure import messages
from perftool.measure.worker import Worker
from perftool.records import Block
from tests.perf.table import Row, Table
from tests.perf.trials import HERE

TITLE = "G11: what measuring costs"

CASES = (("long_step", 0.01), ("short_step", 0.02))  # workload to the overhead allowed
ROUNDS = 800
BLOCK_S = 0.03


def run(quick: bool) -> Table:
    threads = torch.get_num_threads()
    rows = [_row(name, allowed, ROUNDS // 10 if quick else ROUNDS) for name, allowed in CASES]
    torch.set_num_threads(threads)
    return Table(
        ["step", "measured / bare", "95 % interval of the median", "allowed"],
        rows,
        [
            f"Blocks of {1000 * BLOCK_S:.0f} ms in one process, in drawn order. Measured: step times, waits, labels "
            "and sample counts as in every session; the bare loop only fetches and steps."
        ],
    )


def _row(name: str, allowed: float, rounds: int) -> Row:
    worker = Worker(
        messages.LaunchSpec(
            launch=0,
            reference=f"{HERE / 'units_of_work.py'}:{name}",
            settings={"threads": "1"},
            device="cpu",
            seed=0,
            scenario_files=[],
        )
    )
    worker.start()
    worker.warm(messages.Warm(steps=200, limit_s=10))
    training = worker._live()
    fetch, step = training.fetch, training.step

    def bare_ns(steps: int) -> float:
        step(fetch())
        began_ns = time.monotonic_ns()
        for _ in range(steps):
            step(fetch())
        return time.monotonic_ns() - began_ns

    def measured_ns(steps: int) -> float:
        block = worker.run(messages.Run(round=0, position=0, drop=1, steps=steps))
        assert isinstance(block, Block)
        return block.wall_ns

    steps = max(1, round(BLOCK_S * 1e9 / (bare_ns(200) / 200)))
    drawn = random.Random(0)
    kinds: tuple[Callable[[int], float], ...] = (bare_ns, measured_ns)
    d, step_ns = [], []
    for _ in range(rounds):
        wall_ns = {index: kinds[index](steps) for index in drawn.sample((0, 1), 2)}
        d.append(log(wall_ns[1] / wall_ns[0]))
        step_ns.append(wall_ns[0] / steps)
    ordered = np.sort(d)
    half = round(1.96 * rounds**0.5 / 2)
    low, high = (exp(ordered[rounds // 2 + side * half]) for side in (-1, 1))
    ratio = exp(float(np.median(d)))
    return Row(
        [
            f"{np.median(step_ns) / 1e6:.2f} ms",
            f"{ratio:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{1 + allowed:.2f}",
        ],
        reached=ratio <= 1 + allowed,
    )
