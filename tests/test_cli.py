"""The commands as a user meets them: real processes, exit codes, files, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import psutil
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from perftool.analysis.fitness import rate
from perftool.cli import app, main
from perftool.cli.interrupts import interruptible
from perftool.jobs import look
from perftool.jobs.front import Silent
from perftool.measure import devices, survey
from perftool.measure.scripted import Sandboxes
from perftool.probes import machine
from perftool.records import DeviceFitness, Fitness, Machine, MachineReport, ScenarioReport, from_json, to_json
from perftool.store import SessionStore, load_session
from tests.conftest import Background
from tests.measure.fakes import MACHINE
from tests.sessions import timed_session

pytestmark = pytest.mark.process

WORKLOADS = Path(__file__).parent / "measure" / "workloads.py"
COMMAND = [sys.executable, "-P", "-m", "perftool"]
LIMIT_S = 200


def run(*arguments: str, cwd: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """A whole command, within a shell where limits are set before it."""
    words = [*COMMAND, *arguments]
    if before:
        words = ["bash", "-c", f'{before}; exec "$@"', "bash", *words]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S)


def compare_arguments(budget_s: float = 2, workload: str = "good") -> list[str]:
    return ["compare", f"{WORKLOADS}:{workload}", "threads=1", "--budget", str(budget_s), "--out", "out"]


def measuring(command: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """A long command that has begun to measure."""
    assert command.stderr is not None
    if not any("taking turns" in line for line in command.stderr):
        raise AssertionError("the command ended before it measured")
    return command


def tune_arguments(budget_s: float) -> list[str]:
    return ["tune", f"{WORKLOADS}:good", "--only", "threads", "--budget", str(budget_s), "--out", "out"]


def workers_of(command: subprocess.Popen[str]) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(command.pid).children(recursive=True)
    return found


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def folders(cwd: Path) -> list[Path]:
    return sorted((cwd / "out").iterdir()) if (cwd / "out").exists() else []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from perftool.cli import app\n"
        "result = CliRunner().invoke(app, ['--help']); assert result.exit_code == 0, result\n"
        "print([name for name in ('torch', 'numpy', 'scipy', 'ruptures', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tune", "missing.py:workload"], 2, "there is no file missing.py"),
        (["tune", "nonsense"], 2, "write path/to/file.py:attribute"),
        (["tune", f"{WORKLOADS}:missing"], 2, "has no attribute 'missing'; it has"),
        (["tune", f"{WORKLOADS}:good", "-s", "nonsense=1"], 2, "there is no scenario 'nonsense'"),
        (["tune", f"{WORKLOADS}:good", "-s", "amp"], 2, "-s takes NAME=VALUE"),
        (["tune", f"{WORKLOADS}:good", "-s", "@missing.json"], 2, "missing.json"),
        (["tune", f"{WORKLOADS}:good", "--allow", "nonsense"], 2, "there is no scenario 'nonsense'"),
        (["tune", f"{WORKLOADS}:good", "--scenario", "missing.py"], 2, "there is no such file"),
        (["compare", f"{WORKLOADS}:good", "amp=fp99"], 2, "amp=fp99: it takes off, bf16 or fp16"),
        (["compare", f"{WORKLOADS}:good", "cuda_graphs"], 2, "there is no CUDA device"),
        (["compare", f"{WORKLOADS}:good", "threads=1", "nonsense"], 2, "there is no scenario 'nonsense'"),
        (["compare", "amp=fp99"], 2, "amp=fp99: it takes off, bf16 or fp16"),
        (["compare", "nonsense=1"], 2, "there is no scenario 'nonsense'"),
        (["profile", f"{WORKLOADS}:good", "--device", "tpu"], 2, "a device is auto, cpu, cuda or cuda:N"),
        (["profile", f"{WORKLOADS}:raising"], 4, "ValueError: row 3 is broken"),
        (["profile", f"{WORKLOADS}:exiting"], 4, "exit(3)"),
        (["profile", f"{WORKLOADS}:dying"], 4, "exit code 7"),
        (["tune", f"{WORKLOADS}:good", "--objective", "beauty"], 2, "--objective takes throughput, step-time, jitter"),
        (["tune", f"{WORKLOADS}:good", "--max-host-memory", "lots"], 2, "'lots' is no size; write 800MB or 1.5GB"),
        (["tune", f"{WORKLOADS}:good", "--max-device-memory", "8GB"], 2, "there is no CUDA device here"),
        (["tune", f"{WORKLOADS}:good", "--only", "nonsense"], 2, "there is no scenario 'nonsense'"),
        (["tune", f"{WORKLOADS}:good", "--keep", "amp=bf16"], 2, "the baseline has amp=off; move it with -s amp=bf16"),
        (["tune", "--resume", "missing"], 2, "there is no missing"),
        (["report", "missing"], 2, "there is no missing"),
        (["check", f"{WORKLOADS}:good", "--against", "main", "--budget", "inf"], 2, "from 1 to 604800"),
        (["compare", f"{WORKLOADS}:good", "--budget", "nan"], 2, "from 1 to 604800"),
        (["tune", f"{WORKLOADS}:good", "--budget", "0.5"], 2, "from 1 to 604800"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing(
    arguments: list[str], code: int, words: str, tmp_path: Path
) -> None:
    extra = [] if arguments[0] == "report" else ["--out", "out"]
    done = run(*arguments, *extra, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not folders(tmp_path)


def test_the_machine_as_json(tmp_path: Path) -> None:
    done = run("machine", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = from_json(done.stdout, MachineReport)
    assert report.machine.usable_cores >= 1
    assert report.rating == rate(report.fitness)


def test_the_scenarios_as_json_with_values_and_refusals(tmp_path: Path) -> None:
    done = run("scenarios", "--workload", f"{WORKLOADS}:good", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = from_json(done.stdout, ScenarioReport)
    listed = {one.name: one for one in report.scenarios}
    assert "off" in listed["amp"].available
    assert "there is no CUDA device" in listed["cuda_graphs"].refused["on"]
    done = run("scenarios", "amp", "--workload", f"{WORKLOADS}:good", "--device", "cpu", "--json", cwd=tmp_path)
    assert from_json(done.stdout, ScenarioReport).scenarios == [listed["amp"]]


def test_a_folder_of_the_users_shadows_no_scenario(tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "__init__.py").write_text("raise SystemExit('shadowed')")
    words = [sys.executable, "-m", "perftool", "compare", "nonsense=1"]  # without -P, as a user types it
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
    assert "there is no scenario 'nonsense'; there are accumulation, " in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["profile", "nonsense"],
        ["profile", "missing.py:workload"],
        ["profile", "-s", "nonsense=1"],
        ["compare", "nonsense=1"],
        ["compare", f"{WORKLOADS}:good", "amp=bf16,nonsense=1"],
    ],
)
def test_bad_input_does_not_wait_for_the_lock(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "measuring_lock", lambda _: pytest.fail("it waits"))
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2, done.output
    assert not folders(tmp_path)


def test_the_machine_is_looked_at_when_nobody_else_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    @contextmanager
    def lock(_: object) -> Iterator[None]:
        seen.append("locked")
        try:
            yield
        finally:
            seen.append("released")

    def surveyed(*_: object) -> NoReturn:
        seen.append("looked")
        raise survey.UnusableError("no such device")

    monkeypatch.setattr(look, "measuring_lock", lock)
    monkeypatch.setattr(survey, "survey", surveyed)
    done = CliRunner().invoke(app, ["profile", f"{WORKLOADS}:good", "--out", str(tmp_path / "out")])
    assert (done.exit_code, seen) == (2, ["locked", "looked", "released"])


ON_A_GPU = Fitness(
    window_s=0.5,
    cores=2,
    load_average_1min=0.0,
    steal_share=None,
    pressure_share=None,
    throttled_periods=None,
    governor=None,
    swap_used_bytes=None,
    swapped_bytes=None,
    busy_processes=[],
    device=DeviceFitness(
        busy_share=0.7, processes=1, used_bytes=None, held_down_by=None, temperature_c=None, slowdown_c=None
    ),
)


@pytest.mark.parametrize(("found", "kept"), [("cuda:0", ON_A_GPU.device), ("cpu", None)])
def test_a_gpu_is_looked_at_unless_auto_turns_out_to_be_the_cpu(
    monkeypatch: pytest.MonkeyPatch, found: str, kept: DeviceFitness | None
) -> None:
    looked: list[str] = []

    def read(_window_s: float, device: str) -> Fitness:
        looked.append(device)
        return ON_A_GPU

    described = SimpleNamespace(machine=replace(MACHINE, device=found))
    monkeypatch.setattr(look, "read_fitness", read)
    monkeypatch.setattr(look, "measuring_lock", lambda _: nullcontext())
    monkeypatch.setattr(survey, "survey", lambda *_: (described, 1))
    with ExitStack() as lock:
        seen = look.looked(f"{WORKLOADS}:good", "auto", 0, 1.0, Silent(), Sandboxes(Silent().say), lock)
    assert looked == ["auto"]
    assert seen.fitness == replace(ON_A_GPU, device=kept)


def test_machine_rates_the_gpu_and_looks_before_it_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def read(*, device: str) -> Fitness:
        seen.append(f"looked at {device}")
        return ON_A_GPU

    def describe(device: str) -> Machine:
        seen.append(f"described {device}")
        return replace(MACHINE, device=device, device_name="NVIDIA H100")

    monkeypatch.setattr(devices, "resolve_device", lambda _: "cuda:0")
    monkeypatch.setattr(machine, "read_fitness", read)
    monkeypatch.setattr(machine, "describe_machine", describe)
    done = CliRunner().invoke(app, ["machine", "--device", "cuda"])
    assert seen == ["looked at cuda:0", "described cuda:0"]
    assert "it is unfit now" in done.output
    assert "GPU busy            70 %" in done.output


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.SIG_IGN)
        with interruptible():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
        signal.signal(number, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_an_out_that_is_a_file_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    done = run("tune", "--out", "out", cwd=tmp_path)
    assert done.returncode == 5
    assert "--out" in done.stderr


def test_compare_writes_its_files_and_only_json_on_stdout_even_of_a_workload_that_prints(tmp_path: Path) -> None:
    done = run(*compare_arguments(workload="loud"), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a row was read" in done.stderr
    summary = json.loads(done.stdout)
    [folder] = folders(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"session.json", "summary.json", "report.md", "report.html"}
    assert json.loads((folder / "summary.json").read_text()) == summary
    [variant] = summary["variants"]
    assert variant["status"] == "measured"
    assert variant["versus_baseline"]["throughput"]["pairs"] >= 4

    for form, words in (
        ("terminal", "threads=1"),
        ("markdown", "| threads=1 |"),
        ("html", "<svg"),
        ("json", '"schema_version"'),
    ):
        again = run("report", str(folder), "--format", form, cwd=tmp_path)
        assert (again.returncode, again.stderr) == (0, "")
        assert words in again.stdout
    assert json.loads(again.stdout) == summary


def test_profile_tells_one_variants_figures(tmp_path: Path) -> None:
    done = run(
        "profile", f"{WORKLOADS}:good", "-s", "threads=1", "--budget", "2", "--out", "out", "--quiet", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for words in ("step time", "p99", "data wait", "peak host memory", "samples/s", "forward", "Slow steps", "bound"):
        assert words in done.stdout
    [folder] = (tmp_path / "out").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["explained"]["steps"] > 0
    assert {one["name"] for one in summary["explained"]["phases"]} >= {"data wait", "forward", "backward", "optimizer"}
    assert summary["distance"]["bounds"]
    assert summary["memory"]["parts"]["parameters_bytes"] > 0
    assert summary["fitness"]["cores"] >= 1
    told = [line for line in done.stderr.splitlines() if "another perftool" not in line]
    assert [line.partition(":")[0] for line in told] == ["report"]


def test_an_interrupt_keeps_what_was_measured(background: Background, tmp_path: Path) -> None:
    command = measuring(background([*COMMAND, *compare_arguments(budget_s=60)], tmp_path))
    workers = workers_of(command)
    command.send_signal(signal.SIGINT)
    stdout, stderr = command.communicate(timeout=LIMIT_S)
    assert command.returncode == 130
    assert "Traceback" not in stderr
    assert "threads=1" in stdout
    assert len(workers) >= 2
    assert all_gone(workers)
    [folder] = folders(tmp_path)
    assert {"session.json", "summary.json", "report.md", "report.html"} <= {path.name for path in folder.iterdir()}


def test_an_interrupted_search_says_what_it_knows_and_goes_on(background: Background, tmp_path: Path) -> None:
    command = measuring(background([*COMMAND, *tune_arguments(budget_s=120)], tmp_path))
    command.send_signal(signal.SIGINT)
    output, _ = command.communicate(timeout=LIMIT_S)
    assert command.returncode == 130
    assert "interrupted before anything was confirmed" in " ".join(output.split())
    [folder] = folders(tmp_path)
    before = load_session(folder)
    assert before.interrupted
    # What is left of the budget would take minutes; a session that says less has less left.
    store = SessionStore(folder)
    store.write("session.json", to_json(replace(before, budget_s=3.0)))

    done = run("tune", "--resume", str(folder), "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert folders(tmp_path) == [folder]
    after = load_session(folder)
    assert not after.interrupted
    assert after.blocks[: len(before.blocks)] == before.blocks
    assert [one.action for one in after.decisions][-1] == "chosen"
    assert not list(folder.glob("journal*"))


def test_the_smallest_budget_still_measures_something(tmp_path: Path) -> None:
    done = run(
        "tune", f"{WORKLOADS}:loud", "--budget", "1", "--only", "threads", "--out", "out", "--quiet", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "a row was read" in done.stderr  # the workload's own words are not perftool's to hide
    [folder] = folders(tmp_path)
    assert load_session(folder).blocks


def test_only_a_search_can_be_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    folder.mkdir()
    SessionStore(folder).finish(timed_session([({}, 12.0), ({"threads": "1"}, 8.0)]))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = run("tune", "--resume", str(folder), cwd=tmp_path)
    assert done.returncode == 2
    assert "a session of `perftool compare`, not of a search" in done.stderr
    other = run("tune", "--resume", str(folder), f"{WORKLOADS}:loud", cwd=tmp_path)
    assert other.returncode == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_killing_the_command_leaves_a_readable_journal_and_no_process(background: Background, tmp_path: Path) -> None:
    command = measuring(background([*COMMAND, *compare_arguments(budget_s=60)], tmp_path))
    workers = workers_of(command)
    command.kill()
    command.communicate(timeout=LIMIT_S)
    assert all_gone(workers)
    [folder] = folders(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]
    again = run("report", str(folder), cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert "baseline" in again.stdout


def test_a_killed_worker_costs_only_its_variant(background: Background, tmp_path: Path) -> None:
    command = measuring(background([*COMMAND, *compare_arguments(budget_s=3), "--json"], tmp_path))
    youngest = max(psutil.Process(command.pid).children(), key=lambda child: child.pid)
    os.kill(youngest.pid, signal.SIGKILL)
    stdout, _ = command.communicate(timeout=LIMIT_S)
    assert command.returncode == 0
    [variant] = json.loads(stdout)["variants"]
    assert variant["status"] == "failed"
    assert "killed from outside" in variant["reason"]


def test_a_full_disk_still_gives_the_summary(tmp_path: Path) -> None:
    # No file may grow beyond 12 kB: writing fails in the midst of the blocks, as on a full disk.
    done = run(*compare_arguments(), cwd=tmp_path, before="ulimit -f 12")
    assert done.returncode == 5
    assert "threads=1" in done.stdout
    assert "--out" in done.stderr
    assert "Traceback" not in done.stderr
    [folder] = folders(tmp_path)
    again = run("report", str(folder), cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_two_commands_do_not_measure_at_the_same_time(background: Background, tmp_path: Path) -> None:
    first = measuring(background([*COMMAND, *compare_arguments(budget_s=60)], tmp_path))
    second = background([*COMMAND, *tune_arguments(budget_s=1)], tmp_path)
    assert second.stderr is not None
    line = next(line for line in second.stderr if "another perftool" in line)
    assert str(first.pid) in line
    time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=LIMIT_S)
    second.communicate(timeout=LIMIT_S)
    assert (first.returncode, second.returncode) == (130, 0)


def test_a_fault_of_the_program_is_no_regression(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> NoReturn:
        raise ZeroDivisionError("of the program")

    monkeypatch.setattr("perftool.jobs.look.discover", fail)
    monkeypatch.setattr(sys, "argv", ["perftool", "scenarios"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 70
    told = capsys.readouterr().err
    assert "ZeroDivisionError: of the program" in told  # for the report of the fault
    assert "fault of perftool's own" in told


def test_bad_usage_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["perftool", "scenarios", "--nonsense"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
