"""Real worker processes: what they answer, that they stop between answers, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from perftool.measure import messages
from perftool.measure.launch import LaunchFailed, ProcessLaunch

pytestmark = pytest.mark.process

WORKLOADS = Path(__file__).with_name("workloads.py")
LIMIT_S = 60.0


def spec_of(workload: str, **settings: str) -> messages.LaunchSpec:
    return messages.LaunchSpec(
        launch=5, reference=f"{WORKLOADS}:{workload}", scenario_files=[], settings=settings, device="cpu", seed=0
    )


@pytest.fixture
def launches() -> Iterator[list[ProcessLaunch]]:
    """Launches to be closed after the test."""
    live: list[ProcessLaunch] = []
    yield live
    for launch in live:
        launch.close()


def launched(launches: list[ProcessLaunch], workload: str, **settings: str) -> ProcessLaunch:
    launches.append(ProcessLaunch(spec_of(workload, **settings), {}))
    return launches[-1]


def states(launch: ProcessLaunch) -> set[str]:
    """The states of the worker and all its descendants."""
    worker = psutil.Process(launch.pid)
    return {process.status() for process in [worker, *worker.children(recursive=True)]}


def gone(pid: int, limit_s: float = 10.0) -> bool:
    """Whether the process ends (or is a zombie that waits for its parent) within the limit."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_a_launch_tells_the_limits_and_goes_on(launches: list[ProcessLaunch]) -> None:
    launch = launched(launches, "rows", amp="off")
    launch.ask(messages.Start(), LIMIT_S)
    limits = launch.ask(messages.Limit(), LIMIT_S)
    assert limits.work is not None
    assert limits.work.flops == 2 * 8 * (4 * 16 + 16) * 3 - 2 * 8 * 4 * 16
    assert limits.precision == "highest"
    assert limits.convolution_precision == "highest"
    assert {one.kind for one in limits.ceilings} == {"matmul", "copy"}
    assert launch.ask(messages.Run(round=0, position=0, drop=1, steps=2), LIMIT_S).steps == 2


def test_a_launch_from_start_to_finish(launches: list[ProcessLaunch]) -> None:
    launch = launched(launches, "good")
    assert launch.ask(messages.Start(), LIMIT_S).steps_per_call == 1
    warmed = launch.ask(messages.Warm(steps=12, limit_s=10), LIMIT_S)
    assert len(warmed.step_ns) == 12
    proved = launch.ask(messages.Prove(), LIMIT_S)
    assert proved.engaged.ok
    block = launch.ask(messages.Run(round=3, position=1, drop=1, steps=10), LIMIT_S)
    assert (block.launch, block.round, block.position, block.steps, block.samples) == (5, 3, 1, 10, 80)
    assert sum(block.step_ns) == block.wall_ns
    assert all(wait <= step for wait, step in zip(block.wait_ns, block.step_ns, strict=True))
    assert launch.host_bytes()
    finished = launch.ask(messages.Finish(), LIMIT_S)
    assert finished.last_loss is not None


GROUPED = '''"""Three steps in one call.

What it changes: so many.
When it helps: never.
When it hurts: never.
Source: https://example.org
"""

import dataclasses

from perftool.records import Engaged
from perftool.scenario import Code, Scenario, refuse_unlisted


def apply(plan, value):
    import torch

    def around(training, step):
        return lambda batches: torch.stack([step(batch) for batch in batches])

    return dataclasses.replace(plan, step=(around,), steps_per_call=3)


scenario = Scenario(
    __name__,
    __doc__,
    default=lambda context: "off",
    values=lambda context: ("off", "on"),
    refusal=lambda value, context: refuse_unlisted(value, ("off", "on")),
    apply=apply,
    proof=lambda training, value: Engaged(ok=True, evidence="there is none"),
    code=lambda value, context: Code(),
)
'''


def test_steps_and_samples_are_counted_right_with_several_steps_per_call(
    launches: list[ProcessLaunch], tmp_path: Path
) -> None:
    file = tmp_path / "grouped.py"
    file.write_text(GROUPED)
    spec = replace(spec_of("good", grouped="on"), scenario_files=[str(file)])
    launches.append(launch := ProcessLaunch(spec, {}))
    started = launch.ask(messages.Start(), LIMIT_S)
    assert started.steps_per_call == 3
    warmed = launch.ask(messages.Warm(steps=5, limit_s=10), LIMIT_S)
    assert len(warmed.step_ns) == 5
    block = launch.ask(messages.Run(round=0, position=0, drop=1, steps=4), LIMIT_S)
    assert (block.steps, block.samples, block.step_ns, block.wait_ns) == (12, 96, [], [])
    assert block.waited_ns is not None
    assert 0 < block.waited_ns < block.wall_ns
    plain = launched(launches, "good")
    trained, wanted = (one.ask(messages.Train(seed=1, steps=20), LIMIT_S) for one in (launch, plain))
    assert trained.loss == wanted.loss
    assert trained.losses[:20] == wanted.losses
    assert (trained.samples, wanted.samples) == (21 * 8, 20 * 8)  # whole calls only
    finished = launch.ask(messages.Finish(), LIMIT_S)
    assert finished.last_loss is not None


def test_a_launch_is_stopped_whenever_it_is_not_answering(launches: list[ProcessLaunch]) -> None:
    launch = launched(launches, "good", dataloader_workers="2")
    launch.ask(messages.Start(), LIMIT_S)
    for _ in range(20):
        launch.ask(messages.Run(round=0, position=0, drop=5, steps=8), LIMIT_S)
        # A loader worker on the other core takes its stop when the kernel gets to it, at once but not before.
        deadline = time.monotonic() + 5
        while states(launch) != {psutil.STATUS_STOPPED} and time.monotonic() < deadline:
            time.sleep(0.001)
        assert states(launch) == {psutil.STATUS_STOPPED}
    assert len(psutil.Process(launch.pid).children(recursive=True)) >= 2


def test_closing_leaves_no_loader_worker(launches: list[ProcessLaunch]) -> None:
    launch = launched(launches, "good", dataloader_workers="2")
    launch.ask(messages.Start(), LIMIT_S)
    pids = [launch.pid, *(child.pid for child in psutil.Process(launch.pid).children(recursive=True))]
    launch.close()
    assert all(gone(pid) for pid in pids)


def test_two_trainings_from_one_seed_have_one_loss(launches: list[ProcessLaunch]) -> None:
    launch = launched(launches, "good")
    losses = [launch.ask(messages.Train(seed=seed, steps=20), LIMIT_S) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_the_survey_describes_the_workload(launches: list[ProcessLaunch]) -> None:
    described = launched(launches, "good").ask(messages.Describe(), LIMIT_S)
    facts = described.workload
    assert (facts.name, facts.batch_size, facts.dataset_kind, facts.dataset_rows) == ("good", 8, "map", 64)
    assert (facts.parameter_count, facts.optimizer) == (5, "SGD")
    assert described.machine.device == "cpu"
    assert (facts.optimizer_step, facts.changes_buffers, facts.denormal_values) == ("SGD", False, 0)
    assert (facts.python_objects or 0) > 100_000


@pytest.mark.parametrize(
    ("workload", "kind", "words"),
    [
        ("raising", "training", "ValueError: row 3 is broken"),
        ("exiting", "training", "exit(3)"),
        ("dying", "died", "exit code 7"),
        ("diverging", "training", "the loss became"),
        ("empty", "reference", "yields no batch"),
        ("greedy", "memory", "out of memory"),
        ("missing", "reference", "no attribute 'missing'; it has"),
    ],
)
def test_a_workload_that_fails_says_why(launches: list[ProcessLaunch], workload: str, kind: str, words: str) -> None:
    launch = launched(launches, workload)

    def start_and_step() -> None:
        launch.ask(messages.Start(), LIMIT_S)
        launch.ask(messages.Warm(steps=200, limit_s=10), LIMIT_S)

    with pytest.raises(LaunchFailed) as failed:
        start_and_step()
    assert failed.value.kind == kind
    assert words in failed.value.reason
    assert "Traceback" not in failed.value.reason
    assert gone(launch.pid)


def test_a_hanging_workload_is_given_up(launches: list[ProcessLaunch]) -> None:
    launch = launched(launches, "hanging")
    with pytest.raises(LaunchFailed) as failed:
        launch.ask(messages.Start(), 6.0)
    assert failed.value.kind == "time"
    assert gone(launch.pid)


def test_a_killed_worker_is_a_failure_with_a_reason(launches: list[ProcessLaunch]) -> None:
    launch = launched(launches, "good")
    launch.ask(messages.Start(), LIMIT_S)
    os.kill(launch.pid, signal.SIGKILL)
    with pytest.raises(LaunchFailed, match="killed from outside"):
        launch.ask(messages.Run(round=0, position=0, drop=1, steps=5), LIMIT_S)


def test_what_the_workload_prints_is_kept_for_the_reason(launches: list[ProcessLaunch]) -> None:
    launch = launched(launches, "loud")
    launch.ask(messages.Start(), LIMIT_S)
    os.kill(launch.pid, signal.SIGKILL)
    with pytest.raises(LaunchFailed, match="last output: a row was read"):
        launch.ask(messages.Run(round=0, position=0, drop=1, steps=5), LIMIT_S)


def test_a_device_that_is_not_there(launches: list[ProcessLaunch]) -> None:
    spec = messages.LaunchSpec(
        launch=0, reference=f"{WORKLOADS}:good", scenario_files=[], settings={}, device="cuda:99", seed=0
    )
    launches.append(ProcessLaunch(spec, {}))
    with pytest.raises(LaunchFailed) as failed:
        launches[-1].ask(messages.Describe(), LIMIT_S)
    assert failed.value.kind == "device"


def test_killing_the_command_ends_its_stopped_launches() -> None:
    """SIGKILL of the parent while the worker and its loader workers are stopped."""
    code = (
        "import sys, time; from tests.measure.test_launch import *\n"
        "launch = ProcessLaunch(spec_of('good', dataloader_workers='2'), {})\n"
        "launch.ask(messages.Start(), LIMIT_S)\n"
        "pids = [launch.pid] + [child.pid for child in psutil.Process(launch.pid).children(recursive=True)]\n"
        "print(*pids, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        pids = [int(word) for word in command.stdout.readline().split()]
        assert len(pids) >= 3
        deadline = time.monotonic() + LIMIT_S  # only the worker's own stop is waited for; its children's comes with it
        while any(psutil.Process(pid).status() != psutil.STATUS_STOPPED for pid in pids):
            assert time.monotonic() < deadline
        command.kill()
        command.wait()
    assert all(gone(pid) for pid in pids)
