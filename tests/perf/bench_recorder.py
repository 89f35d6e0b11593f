"""What `perftool run` adds to a step, with a recording and without: steps that do nothing, hooked and not, in turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter_ns
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as module

from perftool.analysis.stats import median_half_width
from perftool.plan import Plan
from perftool.scenario import discover, plan_of
from perftool.script.record import Recorder
from perftool.script.trail import BLOCK_STEPS, SUFFIX, read
from perftool.script.under import Under
from tests.perf.table import Row, Table

TITLE = "What perftool run adds to a step"
SETTINGS = {"optimizer_kernel": "for-loop"}
STEPS, ROUNDS = BLOCK_STEPS, 2000  # of a block, in which a recorder writes once, and pairs of blocks
ALLOWED_NS = 1000
LEARNT_S = 30.0  # within which the recorder must know what a step is


class Nothing(Optimizer):
    """Steps, and does nothing in it."""

    def __init__(self) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros(1))], {"foreach": None, "fused": None})

    def step(self, closure: Any = None) -> None: ...  # type: ignore[override]


def run(quick: bool) -> Table:
    rounds = ROUNDS // 8 if quick else ROUNDS
    return Table(
        ["perftool run", "added to a step", "95 % interval", "bursts beside it", "allowed in all"],
        [_nothing(rounds), _under(rounds), _recorded(rounds)],
        [
            f"Blocks of {STEPS} calls of an optimizer's step that does nothing, with the hooks and without, in drawn "
            "order; the median of the differences. Bursts are what the recorder counts of itself, per step of so many; "
            "beyond what they take once (10 ms), they take at most 100 ns per step."
        ],
    )


def _nothing(rounds: int) -> Row:
    """For comparison: what torch takes to call a hook."""
    handle = module.register_optimizer_step_post_hook(lambda *_: None)
    optimizer = Nothing()
    optimizer.step()
    added_ns = _differences(optimizer.step, rounds)
    handle.remove()
    return _row("one hook that does nothing", added_ns, 0.0, has_target=False)


def _under(rounds: int) -> Row:
    plan = plan_of(None, SETTINGS, discover(), device="cpu", seed=0)
    Under(plan, [])
    optimizer = Nothing()
    for _ in range(100):
        optimizer.step()
    added_ns = _differences(optimizer.step, rounds)
    for hooks in _hooks():
        hooks.clear()
    return _row(" ".join(f"-s {name}={value}" for name, value in SETTINGS.items()), added_ns, 0.0)


def _recorded(rounds: int) -> Row:
    with TemporaryDirectory() as folder:
        recorder = Recorder(folder, Plan(workload=None))
        recorder.begin()
        optimizer = Nothing()
        began_s = monotonic()
        while not list(Path(folder).iterdir()):
            optimizer.step()
            assert monotonic() - began_s < LEARNT_S, "the recorder does not learn what a step is"
        added_ns = _differences(optimizer.step, rounds)
        recorder.end()
        [path] = Path(folder).glob(f"*{SUFFIX}")
        standing = [line for line in read(path).lines if line["type"] == "standing"][-1]
        return _row("--record", added_ns, standing["bursts_ns"] / standing["steps"])


def _row(name: str, added_ns: list[float], bursts_ns: float, *, has_target: bool = True) -> Row:
    middle, half = median(added_ns), median_half_width(added_ns)
    return Row(
        [
            name,
            f"{middle:.0f} ns",
            f"{middle - half:.0f} to {middle + half:.0f} ns",
            f"{bursts_ns:.0f} ns",
            f"{ALLOWED_NS} ns",
        ],
        reached=middle + bursts_ns <= ALLOWED_NS if has_target else None,
    )


def _differences(step: Callable[[], None], rounds: int) -> list[float]:
    """Time of a step with the hooks less that without, in ns, of each pair of blocks."""
    drawn = random.Random(0)
    found = []
    for _ in range(rounds):
        took_ns = {}
        for hooked in drawn.sample((False, True), 2):
            with nullcontext() if hooked else _taken_away():
                took_ns[hooked] = _block_ns(step)
        found.append((took_ns[True] - took_ns[False]) / STEPS)
    return found


def _block_ns(step: Callable[[], None]) -> int:
    began_ns = perf_counter_ns()
    for _ in range(STEPS):
        step()
    return perf_counter_ns() - began_ns


def _hooks() -> tuple[dict[int, Any], dict[int, Any]]:
    return module._global_optimizer_pre_hooks, module._global_optimizer_post_hooks


@contextmanager
def _taken_away() -> Iterator[None]:
    """The hooks of all optimizers, which are all that is left of perftool in a step."""
    before = [dict(hooks) for hooks in _hooks()]
    for hooks in _hooks():
        hooks.clear()
    yield
    for hooks, those in zip(_hooks(), before, strict=True):
        hooks.update(those)
