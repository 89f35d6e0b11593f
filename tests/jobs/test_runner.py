"""Jobs without a command line: what they raise, keep and come to, with scripted launches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as changed
from typer.testing import CliRunner

import perftool
from perftool import search
from perftool.cli import app
from perftool.errors import BadInput, NotMeasured, NotWritten, PerftoolError
from perftool.jobs import look
from perftool.jobs.compare import Compare
from perftool.jobs.front import Measured, Silent
from perftool.jobs.job import Job
from perftool.jobs.options import Options
from perftool.jobs.profile import Profile
from perftool.jobs.runner import run
from perftool.jobs.tune import Tune, resumed
from perftool.measure.footprint import Footprint
from perftool.measure.lab import Lab
from perftool.measure.launch import LaunchFailed
from perftool.measure.ledger import Ledger
from perftool.measure.messages import Described, Start
from perftool.records import TraceReport
from perftool.scenario import Scenarios
from perftool.store import load_session
from perftool.target import Script as Command
from perftool.target import Target, reference_of
from perftool.vary import parse
from tests.measure.fakes import MACHINE, WORKLOAD, Script

WORKLOADS = Path(__file__).parents[1] / "measure" / "workloads.py"
COMMAND = [sys.executable, "train.py", "--workers", "1", "--", "x"]


class Seen(Silent):
    """A front that keeps what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, text: str) -> None:
        self.told.append(text)

    def measured(self) -> None:
        self.told.append("measured")

    def answer(self, answer: Measured | TraceReport) -> None:
        self.told.append("answer")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """How launches behave, of a workload and of a command alike; nothing is started."""
    script = Script()

    @contextmanager
    def opened(target: Target, ledger: Ledger, scenarios: Scenarios, **_: Any) -> Iterator[Lab]:
        yield Lab(
            ledger,
            start=script.start,
            environment=lambda settings: {},
            caches=Path("never-written"),
            watcher=Silent().watching().__enter__(),
            clock=lambda: script.now_s,
        )

    def surveyed(target: Target, *_: object) -> tuple[Described, Footprint]:
        facts = changed(WORKLOAD, reference=reference_of(target))
        if not isinstance(target, str):
            facts = changed(facts, driver="script")
        return Described(machine=MACHINE, workload=facts, peak_host_bytes=1, device_used_bytes=None), Footprint(
            host_bytes=1
        )

    monkeypatch.setattr(look, "_survey", surveyed)
    monkeypatch.setattr("perftool.jobs.runner.opened", opened)
    monkeypatch.setattr(look, "measuring_lock", lambda _: nullcontext())
    monkeypatch.setattr(look, "read_fitness", lambda *_: None)
    return script


def options(out: Path | None = None, target: Target = f"{WORKLOADS}:good", **others: Any) -> Options:
    return Options(target=target, budget_s=5.0, out=out, **others)


def command(*vary: str) -> Command:
    return Command(command=tuple(COMMAND), folder="/work", vary=tuple(map(parse, vary)))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_job_tells_in_order_and_writes_what_it_found(script: Script, tmp_path: Path) -> None:
    front = Seen()
    outcome = run(Compare(options=options(tmp_path), variants=("threads=1",)), front)
    [folder] = tmp_path.iterdir()
    assert front.told == [
        "measured",
        "answer",
        f"report: {folder}/report.html; for a pull request, report.md beside it",
    ]
    assert (outcome.exit_code, outcome.unwritten) == (0, None)
    assert files(folder) == {"session.json", "summary.json", "report.md", "report.html"}
    assert load_session(folder).variants == [{}, {"threads": "1"}]


def test_a_call_returns_the_summary_and_leaves_nothing(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script.step_s = lambda settings: 0.005 if settings.get("threads") == "1" else 0.01
    summary = perftool.compare(f"{WORKLOADS}:good", "threads=1", budget_s=5)
    [variant] = summary.variants
    assert variant.versus_baseline["throughput"].ratio == pytest.approx(2, rel=0.01)
    assert summary.arguments[:2] == ["compare", "--budget"]
    assert summary.arguments[-2:] == [f"{WORKLOADS}:good", "threads=1"]
    assert perftool.profile(f"{WORKLOADS}:good", budget_s=5, out=tmp_path / "out").command == "profile"
    assert "report.html" in files(tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_a_search_is_a_call(script: Script) -> None:
    script.step_s = lambda settings: 0.005 if settings.get("threads") == "1" else 0.01
    summary = perftool.tune(f"{WORKLOADS}:good", budget_s=30, only=["threads"], settings={"flush_denormal": True})
    assert summary.recommendation is not None
    assert summary.recommendation.settings == {"threads": "1"}
    assert summary.baseline.settings == {"flush_denormal": "on"}
    assert "-s flush_denormal=on" in " ".join(summary.arguments)
    assert "--only threads" in " ".join(summary.arguments)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: perftool.tune("nonsense"), "names no workload"),
        (lambda: perftool.tune("missing.py:mine"), "there is no file missing.py"),
        (lambda: perftool.tune(f"{WORKLOADS}:good", objective="beauty"), "--objective takes"),
        (lambda: perftool.tune(f"{WORKLOADS}:good", only=["nonsense"]), "there is no scenario 'nonsense'"),
        (lambda: perftool.tune(f"{WORKLOADS}:good", settings="missing.json"), "missing.json cannot be read"),
        (lambda: perftool.tune(f"{WORKLOADS}:good", vary=["--x=1"]), "--vary is for the options of a command"),
        (lambda: perftool.compare(f"{WORKLOADS}:good", "amp=fp99"), "amp=fp99: it takes off, bf16 or fp16"),
        (lambda: perftool.profile(f"{WORKLOADS}:good", scenario_files=["missing.py"]), "there is no such file"),
        (lambda: perftool.profile([]), "there is no command after --"),
        (lambda: perftool.profile(["no-such-program"]), "there is no program no-such-program"),
        (lambda: perftool.profile(COMMAND, vary=["x"]), "--vary takes '--option=VALUE|VALUE'"),
        (lambda: perftool.profile(COMMAND, vary=["amp=1"]), "--vary amp: there is a scenario of that name"),
        (lambda: perftool.profile(COMMAND, settings={"--lr": "1"}), "make it one by --vary '--lr=VALUE'"),
    ],
)
def test_bad_input_is_an_error_with_a_sentence(script: Script, call: Callable[[], object], words: str) -> None:
    with pytest.raises(PerftoolError, match=words.replace("|", r"\|")) as raised:
        call()
    assert type(raised.value) is BadInput
    assert raised.value.exit_code == 2
    assert script.started == []


def test_a_baseline_that_cannot_be_measured_leaves_no_folder(script: Script, tmp_path: Path) -> None:
    script.failures = {("threads=1", Start): LaunchFailed("training", "it broke")}
    with pytest.raises(NotMeasured, match="the baseline could not be measured: it broke"):
        run(Profile(options=options(tmp_path, settings={"threads": "1"})))
    assert not list(tmp_path.iterdir())


def test_an_interrupt_keeps_what_was_measured(script: Script, tmp_path: Path) -> None:
    front = Seen()
    job = Tune(options=options(tmp_path, target=command("--workers=1|2")))
    script.step_s = _interrupting(after=20)
    outcome = run(job, front)
    [folder] = tmp_path.iterdir()
    assert outcome.exit_code == 130
    assert load_session(folder).interrupted
    assert front.told[-1] == (
        f"go on with: perftool tune --resume {folder} --vary '--workers=1|2' -- "
        f"{sys.executable} train.py --workers 1 -- x"
    )
    script.step_s = lambda settings: 0.01
    with pytest.raises(BadInput, match="give it again, and each --vary"):
        resumed(folder, None, 0.0, (), tmp_path)
    again = run(resumed(folder, command("--workers=1|2"), 1.0, (), tmp_path))
    assert again.exit_code == 0
    assert list(tmp_path.iterdir()) == [folder]
    assert not load_session(folder).interrupted


def _interrupting(after: int) -> Callable[[object], float]:
    """Step times that end in Ctrl-C."""
    asked = iter(range(after))

    def step_s(_: object) -> float:
        if next(asked, None) is None:
            raise KeyboardInterrupt
        return 0.01

    return step_s


def test_interrupted_before_anything_was_measured(script: Script, tmp_path: Path) -> None:
    script.step_s = _interrupting(after=0)
    with pytest.raises(KeyboardInterrupt, match="before anything was measured"):
        run(Profile(options=options(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_fault_in_drawing_costs_neither_the_answer_nor_what_was_measured(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("perftool.report.markdown.render", render)
    front = Seen()
    with pytest.raises(ZeroDivisionError):
        run(Profile(options=options(tmp_path)), front)
    [folder] = tmp_path.iterdir()
    assert front.told == [
        "measured",
        "answer",
        f"perftool: what was measured is kept in {folder}; perftool report reads it",
    ]
    assert load_session(folder).blocks


def test_a_full_disk_costs_the_files_alone(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perftool.store._append", full)
    front = Seen()
    outcome = run(Profile(options=options(tmp_path)), front)
    assert outcome.exit_code == 5
    assert "answer" in front.told
    assert outcome.unwritten is not None
    assert "--out" in outcome.unwritten
    with pytest.raises(NotWritten, match="--out"):
        perftool.profile(f"{WORKLOADS}:good", budget_s=5, out=tmp_path / "again")


def test_a_command_is_measured_as_a_workload_is(script: Script, tmp_path: Path) -> None:
    target = command("--workers=0|2", "--amp")
    run(Compare(options=options(tmp_path, target=target), variants=("--workers", "--amp=on,threads=1")))
    [folder] = tmp_path.iterdir()
    assert folder.name.endswith("-train-compare")
    session = load_session(folder)
    assert session.variants == [{}, {"--workers": "0"}, {"--workers": "2"}, {"--amp": "on", "threads": "1"}]
    assert session.defaults["--workers"] == "1"
    assert session.codes["--workers"]["2"] == {"command": "--workers=2"}
    assert session.scenario_changes["--amp"] == "numerics"
    assert session.workload.reference == f"{sys.executable} train.py --workers 1 -- x"


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job[Any]]:
    """What the command line would run."""
    asked: list[Job[Any]] = []

    def stop(job: Job[Any], _: object) -> None:
        asked.append(job)
        raise PerftoolError("seen")

    monkeypatch.setattr("perftool.jobs.runner.run", stop)
    return asked


def typed(*arguments: str) -> str:
    return CliRunner().invoke(app, list(arguments)).output


@pytest.mark.parametrize("name", ["tune", "profile", "trace", "compare"])
def test_what_follows_the_first_bare_dashes_is_the_command_verbatim(jobs: list[Job[Any]], name: str) -> None:
    words = ["python", "train.py", "--json", "-s", "--", "--budget", "--help"]
    typed(name, "--budget", "7", "--vary", "--lr=1|2", "--", *words)
    [job] = jobs
    assert job.options.target == Command(command=tuple(words), folder=str(Path.cwd()), vary=(parse("--lr=1|2"),))
    assert job.options.budget_s == 7


def test_a_check_of_a_command(jobs: list[Job[Any]]) -> None:
    typed("check", "--against", "main", "--", "python", "train.py")
    [job] = jobs
    assert isinstance(job.options.target, Command)
    assert job.options.budget_s == 60
    assert "check a command with --against REV" in typed("check", "--write-baseline", "--", "python", "train.py")


@pytest.mark.parametrize(
    ("arguments", "target", "variants"),
    [
        (["amp=bf16", "threads=1", "--", "python", "a.py"], "command", ("amp=bf16", "threads=1")),
        (["--vary", "--lr=1", "--lr=1", "--", "python", "a.py"], "command", ("--lr=1",)),
        (["--vary", "--lr=1", "amp", "--lr=1,amp=bf16", "--", "python"], "command", ("amp", "--lr=1,amp=bf16")),
        (["--", "python", "a.py"], "command", ()),
        (["amp=bf16", "threads=1"], "scenarios.reference:medium", ("amp=bf16", "threads=1")),
        (["train.py:mine", "amp"], "train.py:mine", ("amp",)),
        ([], "scenarios.reference:medium", ()),
    ],
)
def test_words_of_compare_are_variants_where_they_name_no_workload(
    jobs: list[Job[Any]], arguments: Sequence[str], target: str, variants: tuple[str, ...]
) -> None:
    typed("compare", *arguments)
    [job] = jobs
    assert isinstance(job, Compare)
    assert job.variants == variants
    assert ("command" if isinstance(job.options.target, Command) else job.options.target) == target


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tune", "train.py:mine", "--", "python", "a.py"], "there are a WORKLOAD, train.py:mine, and a command"),
        (["compare", "train.py:mine", "amp", "--", "python"], "there are a WORKLOAD, train.py:mine, and a command"),
        (["tune", "--"], "there is no command after --"),
        (["tune", "--", "no-such-program"], "there is no program no-such-program"),
        (["tune", "--vary", "--lr=1"], "--vary is for the options of a command"),
        (["compare", "--lr=1", "--", "python", "a.py"], "make it one by --vary '--lr=VALUE'"),
        (["profile", "--nonsense", "--", "python"], "No such option"),
        (["scenarios", "--", "no-such-program"], "there is no program no-such-program"),
        (["machine", "--", "python"], "perftool machine takes no command after --"),
        (["report", "--", "python"], "perftool report takes no command after --"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(arguments: Sequence[str], words: str, tmp_path: Path) -> None:
    out = [] if arguments[0] in ("machine", "report", "scenarios") else ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [arguments[0], *out, *arguments[1:]])
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())


def test_help_says_where_a_command_goes() -> None:
    assert "[OPTIONS] [WORKLOAD] [-- COMMAND ...]" in typed("tune", "--help").replace("[workload]", "[WORKLOAD]")
    assert "-- COMMAND" not in typed("report", "--help")


# -------------------------------------------------------------------------------------------------------- the package


def test_the_search_module_does_not_hide_the_call() -> None:
    assert search.__name__ == "perftool.search"
    assert perftool.tune.__module__ == "perftool.jobs.calls"
    assert {"tune", "compare", "profile", "apply", "Workload", "Scenario", "PerftoolError"} <= set(dir(perftool))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        perftool.nonsense  # noqa: B018


def test_import_of_the_package_is_free() -> None:
    code = "import sys; before = set(sys.modules); import perftool; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} <= {"perftool", *sys.stdlib_module_names}
    assert "perftool.records" not in done.stdout.split()
