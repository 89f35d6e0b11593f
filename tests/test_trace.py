"""`perftool trace`: marks in a real trace, its size, its files, and how it ends when something is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from perftool import tensorboard, trace, training
from perftool.analysis.recommend import conclude
from perftool.analysis.traces import SIZE_MOST_BYTES, TRACED_CALLS_MOST, facts_of
from perftool.measure import messages
from perftool.measure.lab import BaselineFailed, Lab
from perftool.measure.launch import LaunchFailed
from perftool.measure.worker import Worker
from perftool.plan import Looped, Plan, Step
from perftool.probes.marks import phases_named, with_forward_named
from perftool.records import TraceFacts, TraceReport, from_json
from perftool.report.profiles import trace_warnings
from perftool.report.terminal import render_trace
from perftool.store import SessionStore, StoreError, load_session, open_results
from perftool.training import Training
from perftool.workload import Batch
from tests.conftest import Background
from tests.measure.fakes import Script, ScriptedLaunch, make_lab, make_session

WORKLOADS = Path(__file__).parent / "measure" / "workloads.py"
LIMIT_S = 200
# Without the lock of the machine: no time is looked at here.
COMMAND = """
from contextlib import nullcontext
from perftool import store
store.measuring_lock = lambda _: nullcontext()
from perftool.cli import main
main()
"""


# -------------------------------------------------------------------------------------------------------- in a worker


def worker_of(change: Callable[[Plan], Plan] = lambda plan: plan) -> Worker:
    """A worker in this process that holds the started training of a changed plan."""
    spec = messages.LaunchSpec(
        launch=0,
        reference=f"{WORKLOADS}:rows",
        scenario_files=[],
        settings={},
        device="cpu",
        seed=0,
        phases_named=True,
    )
    worker = Worker(spec)
    worker.training = Training(with_forward_named(change(worker._load())))
    return worker


def traced(worker: Worker, path: Path, calls: int) -> dict[str, Any]:
    assert worker.trace(messages.Trace(drop=1, calls=calls, path=str(path))) == messages.Traced(calls=calls)
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def test_every_step_and_phase_has_its_mark(tmp_path: Path) -> None:
    plain = torch.Tensor.backward, training.copied
    events = traced(worker_of(), tmp_path / "trace.json", 3)
    assert (torch.Tensor.backward, training.copied) == plain
    names = [event["name"] for event in events["traceEvents"] if event.get("cat") == "user_annotation"]
    for name in ("data wait", "forward", "backward", "Optimizer.zero_grad#Adam.zero_grad", "Optimizer.step#Adam.step"):
        assert names.count(name) == 3
    facts = facts_of(events)
    assert facts.steps == 3
    assert list(facts.shares) == ["data wait", "forward", "backward", "optimizer"]
    assert 0 < sum(facts.shares.values()) <= 1


def one_by_one(_: Looped, step: Step) -> Step:
    def call(batches: Batch) -> torch.Tensor:
        return torch.stack([step(batch) for batch in batches])

    return call


def replayed(_: Looped, step: Step) -> Step:
    """As a graph does: no Python of the step runs any more."""

    def call(batches: Batch) -> torch.Tensor:
        return torch.zeros(len(batches))

    return call


@pytest.mark.parametrize(
    ("around", "phases"),
    [(one_by_one, ["data wait", "forward", "backward", "optimizer"]), (replayed, ["data wait"])],
)
def test_several_steps_per_call_and_whole_steps_that_are_replayed(
    around: Callable[[Looped, Step], Step], phases: list[str], tmp_path: Path
) -> None:
    worker = worker_of(lambda plan: changed(plan, steps_per_call=4, step=(around,)))
    facts = facts_of(traced(worker, tmp_path / "trace.json", 2), steps_per_call=4)
    assert (facts.steps, list(facts.shares)) == (8, phases)


def test_a_compiled_loss_has_no_mark_and_still_compiles_whole() -> None:
    worker = worker_of()
    assert worker.training is not None
    loss, model, batch = worker.training.loss, worker.training.model, worker.training.fetch()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert compiled(model, batch).item() == pytest.approx(loss(model, batch).item())


@pytest.mark.gpu
def test_on_a_gpu_the_copy_and_the_kernels_are_seen(tmp_path: Path) -> None:
    worker = worker_of(lambda plan: changed(plan, device="cuda:0"))
    events = traced(worker, tmp_path / "trace.json", 3)
    assert "copy to device" in facts_of(events).shares
    assert {"kernel", "cuda_runtime"} <= {event.get("cat") for event in events["traceEvents"]}


def test_the_copy_to_the_device_is_named_while_phases_are() -> None:
    with torch.profiler.profile() as profiled, phases_named():
        training.copied([torch.ones(2)], torch.device("cpu"), non_blocking=False)
    assert "copy to device" in {event.key for event in profiled.key_averages()}


# ------------------------------------------------------------------------------------------------------------- bounds


@dataclass
class Tracing(Script):
    """Launches that write traces of so many bytes per call, and per trace of several calls so many more."""

    call_bytes: int = 1_000_000
    surplus: float = 1.0
    growth: float = 1.0  # of the bytes per call, with each further trace
    asked: list[messages.Trace] = field(default_factory=list)
    named: list[bool] = field(default_factory=list)
    broken: bool = False

    def start(self, spec: messages.LaunchSpec, environment: dict[str, str]) -> ScriptedLaunch:
        self.named.append(spec.phases_named)
        super().start(spec, environment)
        return TracingLaunch(self, spec)


class TracingLaunch(ScriptedLaunch):
    def answer(self, request: messages.Ask[Any]) -> Any:
        script = self.script
        assert isinstance(script, Tracing)
        if not isinstance(request, messages.Trace):
            return super().answer(request)
        script.asked.append(request)
        self.fail_where_scripted(request)
        step_us = 1e6 * script.step_s(self.spec.settings)
        step = {"ph": "X", "cat": "user_annotation", "dur": step_us}
        steps = [step | {"name": f"ProfilerStep#{call}", "ts": call * step_us} for call in range(request.calls)]
        size_bytes = script.call_bytes * request.calls * (script.surplus if request.calls > 1 else 1)
        size_bytes *= script.growth ** (len(script.asked) - 1)
        text = json.dumps({"traceEvents": steps, "filling": ""})
        filling = "x" * (int(size_bytes) - len(text))
        text = json.dumps({"traceEvents": steps, "filling": filling})
        Path(request.path).write_text(text[:-1] if script.broken else text)
        return messages.Traced(calls=request.calls)


def lab_of(script: Tracing) -> Lab:
    return make_lab(script, make_session(budget_s=90))[0]


def calls_of(script: Tracing) -> list[int]:
    return [request.calls for request in script.asked]


def test_the_first_call_decides_how_many_fit() -> None:
    script = Tracing(queued_batches=4)
    taken = trace.trace(lab_of(script))
    assert calls_of(script) == [1, 18]
    assert len(taken.document) == 18_000_000
    assert taken.facts.steps == 18
    assert {request.drop for request in script.asked} == script.dropped == {5}
    assert script.named == [True]


def test_small_traces_end_where_there_is_no_more_to_see() -> None:
    script = Tracing(call_bytes=20_000)
    trace.trace(lab_of(script))
    assert calls_of(script) == [1, TRACED_CALLS_MOST]


def test_what_comes_out_too_large_is_traced_again_with_fewer() -> None:
    script = Tracing(surplus=2.0)
    taken = trace.trace(lab_of(script))
    assert calls_of(script) == [1, 18, 9]
    assert len(taken.document) <= SIZE_MOST_BYTES


def test_slow_steps_are_few() -> None:
    script = Tracing(step_s=lambda _: 2.0)
    trace.trace(lab_of(script))
    assert calls_of(script) == [1, 2]


def warned(taken: trace.Taken) -> str:
    return " ".join(trace_warnings(taken.facts, len(taken.document)))


def test_one_step_is_traced_however_large_and_that_is_told() -> None:
    script = Tracing(call_bytes=30_000_000)
    taken = trace.trace(lab_of(script))
    assert calls_of(script) == [1]
    assert "larger than 20 MB" in warned(taken)
    assert "fewer than 1 step cannot be traced here" in warned(taken)


def test_what_stays_too_large_is_told_with_the_steps_that_fit() -> None:
    # Each trace of several calls is larger than the one before lets expect.
    script = Tracing(call_bytes=1_000_000, growth=1.6)
    taken = trace.trace(lab_of(script))
    assert calls_of(script) == [1, 18, 11, 7]
    assert len(taken.document) > SIZE_MOST_BYTES
    assert "larger than 20 MB" in warned(taken)
    assert warned(taken).endswith("trace fewer steps: --steps 4")


def test_a_trace_that_fits_has_no_warning() -> None:
    assert warned(trace.trace(lab_of(Tracing()))) == ""


def test_the_steps_to_take_instead_count_steps_and_not_calls() -> None:
    facts = TraceFacts(steps=40, calls=4, events=1, step_ns=1e6, shares={})
    assert trace_warnings(facts, 30_000_000)[0].endswith("--steps 20")
    facts = TraceFacts(steps=10, calls=1, events=1, step_ns=1e6, shares={})
    assert "fewer than 10 steps cannot be traced here" in trace_warnings(facts, 30_000_000)[0]


def test_a_number_of_steps_that_is_given_is_kept() -> None:
    script = Tracing(steps_per_call=10)
    taken = trace.trace(lab_of(script), steps=25)
    assert calls_of(script) == [3]
    assert taken.facts.steps == 30


def test_a_trace_that_was_cut_short_is_told_with_a_remedy() -> None:
    script = Tracing(broken=True)
    with pytest.raises(StoreError, match="free some space there, or name another folder with the variable TMPDIR"):
        trace.trace(lab_of(script))
    assert not script.alive


@pytest.mark.parametrize(
    ("request_kind", "failure", "blocks"),
    [
        (messages.Prove, LaunchFailed("effect", "did not take effect"), False),
        (messages.Trace, LaunchFailed("died", "died: signal 9"), True),
    ],
)
def test_a_launch_that_fails_is_the_baselines_failure(
    request_kind: type[Any], failure: LaunchFailed, blocks: bool
) -> None:
    script = Tracing(failures={("amp=on", request_kind): failure})
    lab = make_lab(script, make_session(baseline={"amp": "on"}))[0]
    with pytest.raises(BaselineFailed, match=str(failure)):
        trace.trace(lab)
    assert bool(lab.session.blocks) == blocks  # a death while being traced comes after the plain blocks
    assert calls_of(script) == ([1] if blocks else [])
    assert not script.alive


def test_a_script_that_is_over_before_is_told() -> None:
    script = Tracing(last_step=lambda settings: 150)
    lab = lab_of(script)
    with pytest.raises(BaselineFailed, match="over before its steps could be traced; let it run for more steps"):
        trace.trace(lab)
    assert [launch.status for launch in lab.session.launches] == ["measured"]
    assert not script.alive


# -------------------------------------------------------------------------------------------------------------- files


def test_files_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    lab = lab_of(Tracing(call_bytes=1000))
    taken = trace.trace(lab, steps=2)
    store = SessionStore(tmp_path)
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        trace.save(store, lab.session, conclude(lab.session), taken)
    assert (tmp_path / "trace.json").read_bytes() == taken.document


def test_without_tensorboard_its_folder_has_the_trace_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "available", lambda: False)
    lab = lab_of(Tracing(call_bytes=1000))
    store = open_results(tmp_path, "somewhere.py:mine", "trace")
    summary = conclude(lab.session)
    report = trace.save(store, lab.session, summary, trace.trace(lab, steps=2))
    assert report.files == ["trace.json", "tensorboard/trace.pt.trace.json"]
    assert [path.name for path in (store.folder / "tensorboard").iterdir()] == ["trace.pt.trace.json"]
    facts = TraceFacts(steps=1, calls=1, events=1234, step_ns=3e6, shares={"data wait": 0.25})
    report = replace(report, folder="out put", size_bytes=19_000_000, facts=facts)
    text = render_trace(report)
    assert "1 step traced, 1,234 events, 19 MB" in text
    assert "data wait 25 %; the rest runs as one graph" in " ".join(text.split())
    assert "pip install tensorboard" in text
    assert "tensorboard --logdir 'out put'" in text
    written = replace(report, files=[*report.files, "tensorboard/events.out.tfevents.1"])
    assert "pip install" not in render_trace(written)


def gpu_report(**facts: Any) -> TraceReport:
    shown = TraceFacts(steps=2, calls=2, events=99, step_ns=3e6, **facts)
    return TraceReport(
        workload="mine",
        folder="out",
        files=["trace.json"],
        size_bytes=1000,
        plain_step_ns=None,
        facts=shown,
        warnings=trace_warnings(shown, 1000),
    )


def test_on_a_gpu_the_devices_time_is_told_apart_from_the_hosts() -> None:
    shares = {"data wait": 0.01, "copy to device": 0.7, "forward": 0.1}
    on_device = {"copy to device": 0.02, "forward": 0.3, "backward": 0.6}
    text = " ".join(render_trace(gpu_report(shares=shares, device_shares=on_device, device_busy=0.95)).split())
    assert "share of the device's time copy to device 2 %, forward 30 %, backward 60 %, busy in all 95 %" in text
    assert "share of the host's time data wait 1 %, copy to device 70 %, forward 10 %" in text
    assert "copy to device includes waiting there for the step before" in text
    assert "Warning" not in text


def test_a_trace_that_lost_its_kernels_says_so_and_tells_the_hosts_time_alone() -> None:
    shares = {"data wait": 0.01, "forward": 0.1}
    text = " ".join(render_trace(gpu_report(shares=shares, device_shares={}, device_busy=0.0)).split())
    assert "Warning: next to no kernels are in the trace" in text
    assert "share of the host's time data wait 1 %" in text
    assert "share of the device's time" not in text


# -------------------------------------------------------------------------------------------------------- the command


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-c", COMMAND, "trace", *arguments, "--out", "out"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S)


@pytest.mark.process
def test_the_command_writes_its_files_and_says_how_to_open_them(tmp_path: Path) -> None:
    done = run(f"{WORKLOADS}:rows", "-s", "threads=1", "--steps", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "out").iterdir()
    assert folder.name.endswith("-trace")
    read = json.loads((folder / "trace.json").read_text())
    assert facts_of(read).steps == 3
    written = json.loads((folder / "tensorboard" / "trace.pt.trace.json").read_text())
    assert written == tensorboard.for_plugin(read)
    assert bool(list((folder / "tensorboard").glob("*tfevents*"))) == tensorboard.available()
    for words in ("3 steps traced", "https://ui.perfetto.dev", "trace.json", "tensorboard --logdir"):
        assert words in done.stdout
    assert "trace: 3 steps" in done.stderr
    assert load_session(folder).baseline == {"threads": "1"}
    again = subprocess.run(
        [sys.executable, "-P", "-m", "perftool", "report", str(folder)], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert "throughput" in again.stdout


@pytest.mark.process
def test_json_is_the_facts_and_the_files_and_nothing_else(tmp_path: Path) -> None:
    done = run(f"{WORKLOADS}:rows", "--steps", "2", "--json", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = from_json(done.stdout, TraceReport)
    assert report.facts.steps == report.facts.calls == 2
    assert report.facts.device_busy is None
    assert report.size_bytes == (tmp_path / report.folder / report.files[0]).stat().st_size
    assert all((tmp_path / report.folder / name).is_file() for name in report.files)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "write path/to/file.py:attribute"),
        ([f"{WORKLOADS}:good", "-s", "nonsense=1"], 2, "there is no scenario 'nonsense'"),
        ([f"{WORKLOADS}:good", "-s", "amp=fp99"], 2, "amp=fp99: it takes off, bf16 or fp16"),
        ([f"{WORKLOADS}:good", "--steps", "0"], 2, "--steps"),
        ([f"{WORKLOADS}:raising"], 4, "ValueError: row 3 is broken"),
        ([f"{WORKLOADS}:diverging"], 4, "the loss became"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.process
def test_no_room_for_temporary_files_is_told(tmp_path: Path) -> None:
    # No file may grow beyond 16 kB: the trace is cut short, as on a full disk.
    words = ["bash", "-c", 'ulimit -f 16; exec "$@"', "bash", *command(f"{WORKLOADS}:rows", "--steps", "9")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (5, "")
    assert "TMPDIR" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.process
def test_an_interrupt_leaves_nothing(background: Background, tmp_path: Path) -> None:
    process = background(command(f"{WORKLOADS}:rows", "--steps", "100000"), tmp_path)
    assert process.stderr is not None
    next(line for line in process.stderr if "trace: 100000 steps" in line)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stdout) == (130, "")
    assert "interrupted before the trace was complete" in stderr
    assert "Traceback" not in stderr
    assert not list((tmp_path / "out").glob("*"))
