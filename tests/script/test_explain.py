"""What a script answers of its own steps, in a process of its own: hooks change torch for all that it does.

No socket: the answers are driven at step ends as `Turns` drives them, where none of perftool's packages is installed.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from perftool.analysis.traces import facts_of
from perftool.records import BatchFit, Counters, Limits, MemoryParts, WatchedBlock
from perftool.script.explain import NOT_FITTED, OWN_BATCHES
from perftool.words import BACKWARD, FORWARD, OPTIMIZER, REST, WAIT, WORKER_START

pytestmark = pytest.mark.process

BEFORE = """
import json, sys
sys.modules.update(dict.fromkeys(["msgspec", "psutil", "scipy", "ruptures", "pynvml"]))
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from perftool.plan import Plan
from perftool.probes import ceilings
from perftool.probes.watch import Watcher
from perftool.script import explain, hooks
from perftool.script.loop import Loop
from perftool.script.realise import Realised
from perftool.script.steps import BACKWARD, OPTIMIZER, Rule

ceilings.ROWS, ceilings.LARGE_COPY_BYTES = {"cpu": (16, 16)}, {"cpu": (2**16, 2**17)}
rule = Rule(OPTIMIZER)
loop = realised = None
FOLLOWED = 3  # steps, in which models are seen
COUNT = {"calls": 2, "variant": 1}
WATCH = {"drop": 1, "steps": 10, "round": 4}

def asking(*ask, rule=rule):
    global loop, realised
    loop = Loop(rule)
    realised = Realised(Plan(workload=None, device="cpu"), loop)
    hooks.install(loop, realised)
    watcher = Watcher("cpu")
    known = {
        "watch": lambda: explain.watched(watcher, loop, WATCH, launch=7, workers=0),
        "trace": lambda: explain.traced(loop, {"drop": 1, "calls": 3, "path": sys.argv[1]}),
        "count": lambda: explain.counted(loop, realised, COUNT),
        "weigh": lambda: explain.weighed(loop, realised, "cpu"),
        "limit": lambda: explain.limited(loop, realised, "cpu"),
        "fit": lambda: explain.not_fitted("cpu"),
    }
    told = iter(ask)
    answers = (known[name]() for name in told)
    answer = None
    def turn():
        nonlocal answer
        if loop.steps < FOLLOWED:
            return
        realised.stop_following()
        while True:
            answer = answer or next(answers, None)
            if answer is None:
                return
            try:
                return next(answer)
            except StopIteration as done:
                answer = None
                print(json.dumps(done.value))
    loop.turn = turn

def data(rows=64):
    return DataLoader(TensorDataset(torch.ones(rows, 8), torch.zeros(rows, 8)), batch_size=16)

def net():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

def adam(model):
    return torch.optim.Adam(model.parameters())

def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()

def train(model, optimizer, loader, steps, every=1, loss=squares, after=lambda step: None):
    made = 0
    while made < steps * every:
        for batch in loader:
            loss(model, batch).backward()
            made += 1
            if made % every == 0:
                optimizer.step()
                optimizer.zero_grad()
                after(made // every)
"""

R = TypeVar("R")
FLOAT, ROWS, WIDTH = 4, 16, 8
LAYER = WIDTH * WIDTH + WIDTH
PRODUCT = 2 * ROWS * WIDTH * WIDTH  # FLOPs of one layer and batch
STEP_FLOPS = 5 * PRODUCT  # two forward, and backward all gradients but that of the data


@dataclass
class Told:
    """What a process printed: replies, a line each, and then whatever the script had to say."""

    lines: list[str]

    def next(self, kind: type[R]) -> R:
        """As a record, strictly: it has the tag and no field that the record has not."""
        line = self.lines.pop(0)
        found = msgspec.json.decode(line, type=kind, strict=True)
        assert msgspec.json.decode(line).keys() <= msgspec.to_builtins(found).keys()
        return found


def told(script: str, *arguments: str) -> Told:
    done = subprocess.run([sys.executable, "-c", BEFORE + script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Told(done.stdout.splitlines())


def test_a_plain_training_is_explained_by_its_own_steps(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    answers = told(
        """
asking("weigh", "limit", "count", "fit", "watch", "trace")
model = net()
train(model, adam(model), data(), 40)
print("trained on")
""",
        str(trace),
    )
    parts = answers.next(MemoryParts)
    assert (parts.parameters_bytes, parts.gradients_bytes, parts.buffers_bytes) == (2 * LAYER * FLOAT,) * 2 + (0,)
    assert parts.optimizer_bytes == (2 * 2 * LAYER + 4) * FLOAT  # moments, and a counter for each parameter
    # The output of the tanh, and the difference that is squared; the input is the batch's own.
    assert parts.activations_bytes == 2 * ROWS * WIDTH * FLOAT
    assert (parts.batch_bytes, parts.batch_size, parts.reason) == (2 * ROWS * WIDTH * FLOAT, ROWS, None)

    limits = answers.next(Limits)
    work = limits.work
    assert work is not None
    assert limits.reason is None
    assert {one.kind for one in limits.ceilings} == {"matmul", "copy"}
    assert (work.samples, work.flops, work.matmul_flops) == (ROWS, STEP_FLOPS, STEP_FLOPS)
    assert work.flops_by_dtype == {"float32": STEP_FLOPS}
    assert work.gradient_bytes == 2 * 2 * LAYER * FLOAT
    assert work.parameter_bytes == (2 * LAYER + WIDTH * WIDTH + 2 * 2 * LAYER) * FLOAT  # one matrix was saved, too
    assert work.optimizer_state_bytes == 2 * parts.optimizer_bytes
    assert work.activation_bytes == 2 * parts.activations_bytes
    assert work.batch_bytes == 3 * ROWS * WIDTH * FLOAT  # the inputs once more for the first gradient

    counters = answers.next(Counters)
    assert (counters.variant, counters.calls, counters.parameters) == (1, 2, 2 * LAYER)
    assert (counters.flops_per_step, counters.compiled_graphs, counters.reason) == (STEP_FLOPS, 0, None)
    assert counters.operations_per_step is not None
    assert counters.operations_per_step > 20
    assert answers.next(BatchFit).reason == NOT_FITTED

    block = answers.next(WatchedBlock)
    assert (block.launch, block.round, len(block.step_ns), block.samples) == (7, 4, 10, 10 * ROWS)
    phases = {name for name, column in block.phase_ns.items() if min(column) > 0}
    assert phases == {WAIT, FORWARD, BACKWARD, OPTIMIZER, REST}
    parts_ns = [sum(column[call] for column in block.phase_ns.values()) for call in range(10)]
    assert all(part_ns <= step_ns for part_ns, step_ns in zip(parts_ns, block.step_ns, strict=True))
    assert sum(parts_ns) > 0.5 * sum(block.step_ns), "what is between the marks is short"

    assert answers.next(dict[str, Any]) == {"type": "traced", "calls": 3}
    traced = facts_of(msgspec.json.decode(trace.read_bytes()))
    assert traced.calls == 3
    assert traced.shares.keys() >= {WAIT, FORWARD, BACKWARD, OPTIMIZER}
    assert sum(traced.shares.values()) <= 1, "the phases do not overlap"
    assert answers.lines == ["trained on"]


def test_micro_batches_of_a_step_add_up() -> None:
    answers = told("""
asking("limit", "weigh", "count")
model = net()
train(model, adam(model), data(), 20, every=2)
""")
    work = answers.next(Limits).work
    assert work is not None
    assert (work.samples, work.flops) == (2 * ROWS, 2 * STEP_FLOPS)
    assert work.gradient_bytes == 3 * 2 * LAYER * FLOAT  # written twice, read once
    assert work.parameter_bytes == (2 * (2 * LAYER + WIDTH * WIDTH) + 2 * 2 * LAYER) * FLOAT
    assert work.batch_bytes == 2 * 3 * ROWS * WIDTH * FLOAT
    parts = answers.next(MemoryParts)
    assert parts.activations_bytes == 2 * ROWS * WIDTH * FLOAT  # of one at a time
    assert answers.next(Counters).flops_per_step == 2 * STEP_FLOPS


def test_an_update_with_a_closure_has_the_phases_of_any_other(tmp_path: Path) -> None:
    """What the closure computes is none of the optimizer's."""
    trace = tmp_path / "trace.json"
    answers = told(
        """
import time
asking("watch", "trace", "limit")
model = net()
class Slow(torch.optim.SGD):
    def step(self, closure):
        loss = closure()
        time.sleep(0.1)
        super().step()
        return loss
optimizer = Slow(model.parameters())
def closed(batch):
    optimizer.zero_grad()
    loss = squares(model, batch)
    time.sleep(0.1)
    loss.backward()
    return loss
for _ in range(10):
    for batch in data():
        optimizer.step(lambda: closed(batch))
""",
        str(trace),
    )
    block = answers.next(WatchedBlock)
    for phase in (FORWARD, OPTIMIZER):
        assert min(block.phase_ns[phase]) >= 100_000_000, phase
    for part_ns, step_ns in zip(block.phase_ns[OPTIMIZER], block.step_ns, strict=True):
        assert part_ns <= step_ns - 100_000_000, "the closure is none of it"
    answers.lines.pop(0)
    traced = facts_of(msgspec.json.decode(trace.read_bytes()))
    assert min(traced.shares[FORWARD], traced.shares[OPTIMIZER]) > 0.01
    assert sum(traced.shares.values()) <= 1
    work = answers.next(Limits).work
    assert work is not None
    assert work.flops == STEP_FLOPS
    assert work.parameter_bytes == (2 * LAYER + WIDTH * WIDTH + 2 * 2 * LAYER) * FLOAT


def test_an_update_by_hand_and_batches_of_its_own() -> None:
    answers = told("""
asking("weigh", "limit", rule=Rule(BACKWARD))
model = net()
for step in range(10):
    model.zero_grad()
    squares(model, (torch.ones(16, 8), torch.zeros(16, 8))).backward()
    for part in model.parameters():
        part.data.add_(part.grad, alpha=-0.1)
""")
    parts = answers.next(MemoryParts)
    assert (parts.batch_bytes, parts.reason) == (None, OWN_BATCHES)
    assert parts.activations_bytes == 3 * ROWS * WIDTH * FLOAT
    assert (parts.gradients_bytes, parts.optimizer_bytes) == (2 * LAYER * FLOAT, 0)
    work = answers.next(Limits).work
    assert work is not None
    assert (work.samples, work.flops, work.batch_bytes) == (1, STEP_FLOPS, 0)
    assert work.parameter_bytes == (2 * LAYER + WIDTH * WIDTH + 2 * 2 * LAYER) * FLOAT


def test_only_steps_that_are_whole_and_nothing_else_are_told() -> None:
    """An epoch's rest comes after three steps, and an evaluation after every fifth."""
    answers = told("""
asking("limit", "weigh", "watch")
model = net()
def evaluate(step):
    if step % 5 == 0:
        model.eval()
        with torch.no_grad():
            model(torch.ones(2, 8))
        model.train()
train(model, adam(model), data(rows=3 * 16 + 8), 30, after=evaluate)
""")
    work = answers.next(Limits).work
    assert work is not None
    assert (work.samples, work.flops) == (ROWS, STEP_FLOPS)
    assert answers.next(MemoryParts).batch_size == ROWS
    block = answers.next(WatchedBlock)
    assert len(block.step_ns) == 8
    assert {len(column) for column in (*block.phase_ns.values(), block.began_ns, block.minor_faults)} == {8}


def test_workers_that_start_at_an_epoch_are_seen_and_an_evaluation_before_it_is_not() -> None:
    answers = told("""
import time
WATCH["drop"] = 0
asking("watch")
model = net()
def evaluate(step):
    if step % 4 == 0:
        for batch in DataLoader(TensorDataset(torch.ones(32, 8), torch.zeros(32, 8)), batch_size=32):
            time.sleep(1.5)  # longer than a worker takes to start
loader = DataLoader(TensorDataset(torch.ones(64, 8), torch.zeros(64, 8)), batch_size=16, num_workers=1)
train(model, adam(model), loader, 16, after=evaluate)
""")
    block = answers.next(WatchedBlock)
    assert (len(block.step_ns), block.samples) == (10, 10 * ROWS)
    starts_ns = block.cause_ns[WORKER_START][1::4]  # watched from the last step of an epoch on
    others_ns = [ns for at, ns in enumerate(block.cause_ns[WORKER_START]) if at % 4 != 1]
    assert min(starts_ns) > max(others_ns)
    assert max(block.step_ns) < 1_500_000_000, "no evaluation is in it"


def test_what_cannot_be_counted_is_told_and_the_script_goes_on() -> None:
    answers = told("""
from perftool.probes import work
def unknown(*_, **__):
    raise ValueError("no such shape")
work._FORMULAS = {**work._FORMULAS, torch.ops.aten.addmm: unknown}
asking("limit", "count", "weigh")
model = net()
train(model, adam(model), data(), 20)
print("trained on")
""")
    limits, counters = answers.next(Limits), answers.next(Counters)
    why = "aten.addmm.default: ValueError: no such shape"
    assert (limits.work, limits.reason) == (None, f"the work of a step could not be counted: {why}")
    assert limits.ceilings
    assert (counters.flops_per_step, counters.reason) == (None, f"its arithmetic cannot be counted ({why})")
    assert counters.operations_per_step is not None
    assert answers.next(MemoryParts).activations_bytes is not None
    assert answers.lines == ["trained on"]


def test_a_function_transform_in_the_script_is_left_alone() -> None:
    """It refuses hooks of saved tensors, by an error where there are any."""
    answers = told("""
asking("weigh", "limit", "count")
model = net()
def slope(model, batch):
    gradient = torch.func.grad(lambda x: model(x).sum())(batch[0])
    return squares(model, batch) + gradient.square().mean()
train(model, adam(model), data(), 20, loss=slope)
with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
    print("trained on")
""")
    parts, limits = answers.next(MemoryParts), answers.next(Limits)
    assert "function transform" in str(parts.reason)
    assert (parts.activations_bytes, parts.parameters_bytes) == (None, 2 * LAYER * FLOAT)
    assert "function transform" in str(limits.reason)
    assert answers.next(Counters).flops_per_step
    assert answers.lines == ["trained on"]


def test_compiled_code_is_counted_eagerly_and_stays_compiled() -> None:
    answers = told("""
graphs = []
def backend(graph, _):
    def run(*arguments):
        graphs.append(1)
        return graph.forward(*arguments)
    return run
asking("count", "limit", "weigh")
model = net()
trained = torch.compile(model, backend=backend)
train(trained, adam(model), data(), 20)
print(len(graphs))
""")
    counters, limits = answers.next(Counters), answers.next(Limits)
    assert (counters.flops_per_step, counters.operations_per_step) == (STEP_FLOPS, None)
    assert counters.compiled_graphs >= 1
    assert "compiled code" in str(counters.reason)
    assert limits.work is not None
    assert limits.work.flops == STEP_FLOPS
    assert answers.next(MemoryParts).activations_bytes == 2 * ROWS * WIDTH * FLOAT
    assert int(answers.lines[0]) == 20 - 3, "all steps but those that were counted"
